//! A layer is scanned, and encoded, while it is still on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use esgz::cancel::Cancel;
use esgz::progress::{Meter, Progress, Stage, Step};
use esgz::registry::RegistryOptions;
use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression as SourceCompression;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::registry::{Behaviour, Server};
use esgz_tests::sets::noise;

use crate::Fixture;
use crate::registry_parts::library::convert;

/// Sees how far layers are encoded.
#[derive(Debug, Default)]
struct Watcher(Arc<AtomicU64>);

struct Counter(Arc<AtomicU64>);

impl Progress for Watcher {
    fn begin(&self, step: Step) -> Box<dyn Meter> {
        assert_eq!(
            step.stage,
            Stage::Encode,
            "in one pass, nothing is scanned apart"
        );
        Box::new(Counter(Arc::clone(&self.0)))
    }
}

impl Meter for Counter {
    fn advance(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::SeqCst);
    }

    fn finish(self: Box<Self>) {}
}

#[test]
fn a_layer_is_scanned_while_it_arrives() {
    let files: Vec<Entry> = (0..6)
        .map(|number| Entry::file(format!("file-{number}"), noise(number, 1 << 20)))
        .collect();
    let layer = Layer::new(&files, SourceCompression::Gzip(1));
    let fixture = Fixture::of(&LayoutBuilder::new().layer(layer));
    let digest = fixture.conversion.source.layer_digest(0);
    let size_bytes = fixture.conversion.source.manifest()["layers"][0]["size"].as_u64();
    let size_bytes = size_bytes.unwrap();
    let server = Server::start(Behaviour {
        holds: Some(digest),
        ..Behaviour::default()
    });
    server.put_layout(&fixture.conversion.source, "from/here", "src");

    let from = server.reference("from/here:src");
    let output = fixture.conversion.output("arrived");
    let watcher = Watcher::default();
    let seen = thread::scope(|scope| {
        let watching = scope.spawn(|| {
            // More than could wait in a queue is decoded before the second half is sent.
            let started = Instant::now();
            let wanted = size_bytes * 2 / 5;
            while watcher.0.load(Ordering::SeqCst) < wanted
                && started.elapsed() < Duration::from_secs(25)
            {
                thread::sleep(Duration::from_millis(5));
            }
            let seen = watcher.0.load(Ordering::SeqCst);
            server.release();
            seen
        });
        let (to, options) = (output.reference(), RegistryOptions::default());
        convert(
            &fixture,
            (&from, &to),
            options,
            &watcher,
            &Cancel::default(),
        )
        .unwrap();
        watching.join().unwrap()
    });
    assert!(
        (size_bytes * 2 / 5..size_bytes).contains(&seen),
        "{seen} of {size_bytes} bytes were read before the second half was sent"
    );
    assert!(!server.waited_in_vain());
    assert_eq!(output.manifest_digest(), fixture.expected.manifest_digest());
}
