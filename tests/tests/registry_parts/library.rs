//! Conversions without the command line, where a test sets what that has no flag for.

use esgz::cancel::Cancel;
use esgz::containerd::ContainerdOptions;
use esgz::convert::{
    Compression, Conversion, ImageError, ImageOptions, LayerFormat, Reuse, Verify,
};
use esgz::image::ImageRef;
use esgz::image::manifest::DocumentOptions;
use esgz::layer::Parallel;
use esgz::layer::plan::PlanOptions;
use esgz::layer::scan::{DecodeOptions, EntryMemory, Keep, ScanOptions};
use esgz::planner::PlannerOptions;
use esgz::progress::Progress;
use esgz::registry::RegistryOptions;
use esgz::sink::{Sink, SinkOptions};
use esgz::source::{self, OpenOptions, Selection};

use crate::Fixture;

/// Converts the image `from` to `to` as `esgz convert` does it, in one pass.
pub(crate) fn convert(
    fixture: &Fixture,
    (from, to): (&str, &str),
    registry: RegistryOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(), ImageError> {
    let scratch = fixture.conversion.path("scratch");
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
    let from: ImageRef = from.parse().unwrap();
    let to: ImageRef = to.parse().unwrap();
    let open = OpenOptions {
        scratch: scratch.clone(),
        max_unpacked_bytes: 1 << 30,
        registry: registry.clone(),
        containerd: ContainerdOptions::default(),
    };
    let source = source::open(&from, &Selection::ThisMachine, &open, cancel)?;
    let sink_options = SinkOptions {
        scratch,
        registry,
        containerd: ContainerdOptions::default(),
        cancel: cancel.clone(),
    };
    let sink = Sink::open(&to, &from, &sink_options)?;
    let mut conversion = Conversion::new(&source, &options, sink, cancel)?.shown(progress);
    assert!(conversion.can_go_in_one_pass());
    conversion.image_in_one_pass(0)?;
    conversion.finish().map(|_| ())
}
