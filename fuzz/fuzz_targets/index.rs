//! An OCI layout's `index.json`, read as a source and as a destination.
#![no_main]

use std::cell::OnceCell;

use esgz::cancel::Cancel;
use esgz::containerd::ContainerdOptions;
use esgz::image::ImageRef;
use esgz::registry::RegistryOptions;
use esgz::sink::{Sink, SinkOptions};
use esgz::source::{self, OpenOptions, Selection};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static LAYOUT: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fuzz_target!(|index: &[u8]| {
    LAYOUT.with(|layout| {
        let layout = layout.get_or_init(|| {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let marker = dir.path().join("oci-layout");
            std::fs::write(marker, r#"{"imageLayoutVersion":"1.0.0"}"#).expect("it is writable");
            dir
        });
        let path = layout.path().join("index.json");
        std::fs::write(path, index).expect("the directory is writable");
        let options = OpenOptions {
            scratch: layout.path().to_owned(),
            max_unpacked_bytes: 1 << 20,
            registry: RegistryOptions::default(),
            containerd: ContainerdOptions::default(),
        };
        let sink_options = SinkOptions {
            scratch: layout.path().to_owned(),
            registry: RegistryOptions::default(),
            containerd: ContainerdOptions::default(),
            cancel: Cancel::default(),
        };
        for tag in ["", ":latest"] {
            let name = format!("oci:{}{tag}", layout.path().display());
            let reference: ImageRef = name.parse().expect("it is a name");
            let opened = source::open(&reference, &Selection::All, &options, &Cancel::default());
            // There are no blobs: nothing can be opened.
            assert!(opened.is_err());
            let _ = Sink::open(&reference, &reference, &sink_options);
        }
    });
});
