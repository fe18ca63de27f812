//! A layer is sent while it is being made.

use std::thread;
use std::time::{Duration, Instant};

use esgz::cancel::Cancel;
use esgz::convert::ImageError;
use esgz::progress::Silent;
use esgz::registry::{Early, RegistryOptions, Retry};
use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression as SourceCompression;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::registry::{Behaviour, CuttingProxy, Direction, Seen, Server};
use esgz_tests::sets::noise;

use crate::Fixture;
use crate::registry_parts::library::convert;

const PART_BYTES: u64 = 128 << 10;
const DST: &str = "to/there:dst";

fn files() -> Vec<Entry> {
    files_of(512 << 10)
}

fn files_of(len: usize) -> Vec<Entry> {
    let file = |number| Entry::file(format!("file-{number}"), noise(number, len));
    (0..24).map(file).collect()
}

fn image(entries: &[Entry]) -> Fixture {
    let layer = Layer::new(entries, SourceCompression::Gzip(1));
    Fixture::of(&LayoutBuilder::new().layer(layer))
}

fn options(early: Early) -> RegistryOptions {
    RegistryOptions {
        part_bytes: PART_BYTES,
        early,
        retry: Retry {
            first_pause: Duration::from_millis(5),
            ..Retry::default()
        },
        ..RegistryOptions::default()
    }
}

fn push(fixture: &Fixture, to: &str, early: Early) -> Result<(), ImageError> {
    let from = fixture.conversion.source.reference();
    let ends = (from.as_str(), to);
    convert(fixture, ends, options(early), &Silent, &Cancel::default())
}

/// The image is there, and nothing is left over.
fn assert_there(fixture: &Fixture, server: &Server) {
    assert_whole(fixture, server);
    assert_eq!(server.open_uploads(), 0);
}

fn assert_whole(fixture: &Fixture, server: &Server) {
    let expected = fixture.expected.manifest_digest();
    assert_eq!(server.tag("to/there", "dst"), Some(expected));
    assert_eq!(server.missing("to/there", "dst"), Vec::<String>::new());
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
}

fn count(seen: &[Seen], method: &str, path: &str) -> usize {
    let is_it = |seen: &&Seen| seen.method == method && seen.path.contains(path);
    seen.iter().filter(is_it).count()
}

/// A registry that has the source, and keeps back half of the layer.
fn holding(fixture: &Fixture) -> Server {
    let server = Server::start(Behaviour {
        holds: Some(fixture.conversion.source.layer_digest(0)),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");
    server
}

/// Waits until so many parts have been sent, but no longer than a layer is kept back; how many there are then.
fn wait_for_parts(server: &Server, wanted: usize) -> usize {
    let started = Instant::now();
    let sent = || count(&server.seen(), "PATCH", "/blobs/uploads/");
    while sent() < wanted && started.elapsed() < Duration::from_secs(25) {
        thread::sleep(Duration::from_millis(5));
    }
    sent()
}

#[test]
fn parts_are_sent_before_the_source_has_arrived() {
    // Half of it is more than a guess takes.
    let fixture = image(&files_of(1 << 20));
    let from = holding(&fixture);
    let to = Server::start(Behaviour::default());
    let sent_early = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let sent = wait_for_parts(&to, 4);
            from.release();
            sent
        });
        let (from, to) = (from.reference("from/here:src"), to.reference(DST));
        let (ends, options) = ((&*from, &*to), options(Early::NewRepository));
        convert(&fixture, ends, options, &Silent, &Cancel::default()).unwrap();
        watching.join().unwrap()
    });
    assert!(!from.waited_in_vain());
    assert!(sent_early >= 4, "{sent_early} parts were sent early");
    assert_there(&fixture, &to);
    // Each part once, and the rest of the layer; the configuration is too small for parts.
    let layer_bytes = fixture.expected.manifest()["layers"][0]["size"].as_u64();
    let parts = layer_bytes.unwrap().div_ceil(PART_BYTES);
    let seen = to.seen();
    let patches = count(&seen, "PATCH", "/blobs/uploads/");
    assert_eq!(patches as u64, parts);
    assert_eq!(count(&seen, "PUT", "/blobs/uploads/"), 2);
    assert_eq!(count(&seen, "DELETE", ""), 0);
}

#[test]
fn what_turns_out_to_be_there_is_given_up() {
    let fixture = image(&files());
    let server = Server::start(Behaviour::default());
    push(&fixture, &server.reference(DST), Early::Never).unwrap();
    let sent = server.seen();
    assert_eq!(count(&sent, "PATCH", ""), 0);
    assert_eq!(count(&sent, "GET", "/tags/list"), 0);

    push(&fixture, &server.reference(DST), Early::Always).unwrap();
    assert_there(&fixture, &server);
    let seen = server.seen().split_off(sent.len());
    assert!(count(&seen, "PATCH", "/blobs/uploads/") > 0);
    assert_eq!(count(&seen, "DELETE", "/blobs/uploads/"), 1);
    assert_eq!(count(&seen, "PUT", "/blobs/uploads/"), 0);
}

#[test]
fn nothing_is_sent_early_to_a_repository_that_has_tags() {
    let fixture = image(&files());
    let server = Server::start(Behaviour::default());
    server.put_layout(&fixture.conversion.source, "to/there", "other");
    push(&fixture, &server.reference(DST), Early::NewRepository).unwrap();
    assert_there(&fixture, &server);
    let seen = server.seen();
    assert_eq!(count(&seen, "GET", "/tags/list"), 1);
    assert_eq!(count(&seen, "PATCH", ""), 0);
    assert_eq!(count(&seen, "POST", ""), 2);
}

#[test]
fn a_layer_that_is_made_otherwise_in_the_end_is_sent_again() {
    let mut entries = files();
    // The first is left out for it, which shows when most of the layer has been made.
    entries.push(Entry::file("file-0", noise(9, 512 << 10)));
    let fixture = image(&entries);
    let server = Server::start(Behaviour::default());
    push(&fixture, &server.reference(DST), Early::NewRepository).unwrap();
    assert_there(&fixture, &server);
    let seen = server.seen();
    assert_eq!(count(&seen, "DELETE", "/blobs/uploads/"), 1, "{seen:?}");
    assert_eq!(count(&seen, "PUT", "/blobs/uploads/"), 2);
}

#[test]
fn refusals_and_stumbles_do_no_harm() {
    let fixture = image(&files());
    for behaviour in [
        Behaviour {
            refuses_chunks: Some(405),
            ..Behaviour::default()
        },
        Behaviour {
            refuses_chunks: Some(501),
            ..Behaviour::default()
        },
        Behaviour {
            stumbles: Some((503, "0")),
            ..Behaviour::default()
        },
        Behaviour {
            stumbles: Some((429, "0")),
            ..Behaviour::default()
        },
    ] {
        let server = Server::start(behaviour.clone());
        push(&fixture, &server.reference(DST), Early::Always).unwrap();
        assert_there(&fixture, &server);
        let seen = server.seen();
        let patches = count(&seen, "PATCH", "");
        if behaviour.refuses_chunks.is_some() {
            assert_eq!(patches, 1, "it is asked once");
        } else {
            assert!(patches > 1);
        }
    }
}

#[test]
fn a_cut_at_any_place_does_no_harm() {
    let fixture = image(&files());
    let run = |after_bytes: u64| {
        let server = Server::start(Behaviour::default());
        let direction = Direction::ToRegistry;
        let proxy = CuttingProxy::new(server.address(), direction, after_bytes);
        let to = format!("docker://{}/{DST}", proxy.address());
        let done = push(&fixture, &to, Early::Always);
        done.unwrap_or_else(|error| panic!("cut at {after_bytes}: {error}"));
        // Of an upload whose begin was not answered nobody knows but the registry.
        assert_whole(&fixture, &server);
        proxy.passed_bytes(direction)
    };
    let all_bytes = run(u64::MAX);
    for tenth in 0..10 {
        let sent_bytes = run(all_bytes * tenth / 10 + 50);
        // It goes on where it was, or a part earlier.
        let most_bytes = all_bytes + 2 * PART_BYTES;
        assert!(sent_bytes < most_bytes, "{sent_bytes} of {all_bytes}");
    }
}

#[test]
fn an_interrupted_conversion_leaves_no_upload() {
    // Half of it is more than a guess takes.
    let fixture = image(&files_of(1 << 20));
    let from = holding(&fixture);
    let to = Server::start(Behaviour::default());
    let cancel = Cancel::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_parts(&to, 2);
            cancel.cancel();
            from.release();
        });
        let (from, to) = (from.reference("from/here:src"), to.reference(DST));
        let (ends, options) = ((&*from, &*to), options(Early::Always));
        convert(&fixture, ends, options, &Silent, &cancel).unwrap_err();
    });
    assert!(count(&to.seen(), "PATCH", "") >= 2);
    assert_eq!(to.open_uploads(), 0);
    assert_eq!(to.tag("to/there", "dst"), None);
    assert_eq!(fixture.left_in_scratch(), Vec::<String>::new());
}
