//! Manifest and configuration: what is understood can be rewritten, and is understood again.
#![no_main]

use esgz::image::manifest::{DocumentOptions, rewrite_config, rewrite_manifest};
use esgz::image::{BlobId, Digest, Document, NewLayer};
use libfuzzer_sys::fuzz_target;
use oci_spec::image::{ImageConfiguration, ImageManifest};

fn layers(count: usize) -> Vec<NewLayer> {
    let digest = Digest::of(b"layer");
    let layer = NewLayer {
        blob: BlobId {
            digest,
            size_bytes: 5,
        },
        diff_id: digest,
        toc_digest: Some(digest),
        uncompressed_bytes: 7,
    };
    vec![layer; count]
}

fuzz_target!(|json: &[u8]| {
    let Ok(raw) = serde_json::from_slice(json) else {
        return;
    };
    let id = BlobId::of(json);
    if let Ok(parsed) = serde_json::from_slice::<ImageManifest>(json) {
        let layers = layers(parsed.layers().len());
        let document = Document { raw, parsed, id };
        let written = rewrite_manifest(&document, id, &layers, &DocumentOptions::default());
        let again: ImageManifest = serde_json::from_slice(&written).expect("still a manifest");
        assert_eq!(again.layers().len(), layers.len());
        assert_eq!(again.config().size(), id.size_bytes);
    } else if let Ok(parsed) = serde_json::from_slice::<ImageConfiguration>(json) {
        let layers = layers(parsed.rootfs().diff_ids().len());
        let document = Document { raw, parsed, id };
        let written = rewrite_config(&document, &layers, &DocumentOptions::default());
        let again: ImageConfiguration =
            serde_json::from_slice(&written).expect("still a configuration");
        assert_eq!(again.rootfs().diff_ids().len(), layers.len());
    }
});
