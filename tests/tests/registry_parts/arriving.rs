//! A layer is scanned, and encoded, while it is still on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use esgz::cancel::Cancel;
use esgz::containerd::ContainerdOptions;
use esgz::convert::{Compression, Conversion, ImageOptions, LayerFormat, Reuse, Verify};
use esgz::image::ImageRef;
use esgz::image::manifest::DocumentOptions;
use esgz::layer::Parallel;
use esgz::layer::plan::PlanOptions;
use esgz::layer::scan::{DecodeOptions, EntryMemory, Keep, ScanOptions};
use esgz::planner::PlannerOptions;
use esgz::progress::{Meter, Progress, Stage, Step};
use esgz::registry::RegistryOptions;
use esgz::sink::{Sink, SinkOptions};
use esgz::source::{self, OpenOptions, Selection};
use esgz_tests::archive::Entry;
use esgz_tests::compress::Compression as SourceCompression;
use esgz_tests::layout::{Layer, LayoutBuilder};
use esgz_tests::registry::{Behaviour, Server};
use esgz_tests::sets::noise;

use crate::Fixture;

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

    let (cancel, scratch) = (Cancel::default(), fixture.conversion.path("scratch"));
    let parallel = Parallel {
        threads: 2,
        memory_bytes: 256 << 20,
    };
    let options = ImageOptions {
        scan: ScanOptions {
            scratch: scratch.clone(),
            max_layer_bytes: 1 << 30,
            entry_memory: EntryMemory::new(64 << 20),
            keep: Keep::Readable,
            decode: DecodeOptions {
                parallel,
                index_cache: None,
            },
        },
        plan: PlanOptions::default(),
        planner: PlannerOptions::default(),
        compression: Compression::Keep { overhead: 0.01 },
        parallel,
        format: LayerFormat::Estargz,
        reuse: Reuse::Never,
        verify: Verify::Full,
        documents: DocumentOptions::default(),
    };
    let registry = RegistryOptions::default();
    let from: ImageRef = server.reference("from/here:src").parse().unwrap();
    let output = fixture.conversion.output("arrived");
    let to: ImageRef = output.reference().parse().unwrap();
    let open = OpenOptions {
        scratch: scratch.clone(),
        max_unpacked_bytes: 1 << 30,
        registry: registry.clone(),
        containerd: ContainerdOptions::default(),
    };
    let source = source::open(&from, &Selection::ThisMachine, &open, &cancel).unwrap();
    let sink_options = SinkOptions {
        scratch,
        registry,
        containerd: ContainerdOptions::default(),
        cancel: cancel.clone(),
    };
    let sink = Sink::open(&to, &from, &sink_options).unwrap();
    let watcher = Watcher::default();
    let mut conversion = Conversion::new(&source, &options, sink, &cancel)
        .unwrap()
        .shown(&watcher);
    assert!(conversion.can_go_in_one_pass());
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
        conversion.image_in_one_pass(0).unwrap();
        watching.join().unwrap()
    });
    assert!(
        (size_bytes * 2 / 5..size_bytes).contains(&seen),
        "{seen} of {size_bytes} bytes were read before the second half was sent"
    );
    assert!(!server.waited_in_vain());
    conversion.finish().unwrap();
    assert_eq!(output.manifest_digest(), fixture.expected.manifest_digest());
}
