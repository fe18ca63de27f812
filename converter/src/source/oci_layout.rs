//! OCI image layouts (OCI image specification, image-layout.md), as a directory or in an archive.

use oci_spec::image::{Descriptor, ImageIndex};
use serde_json::{Map, Value};

use crate::image::manifest::REF_NAME;
use crate::source::SourceError;
use crate::source::store::{Files, parse};

/// The descriptor of the image that `tag` names, or of the only one, as it stands in the index.
///
/// # Errors
/// When there is no layout, or no such image.
pub(super) fn find(files: &Files, tag: Option<&str>) -> Result<Map<String, Value>, SourceError> {
    if let Err(source) = files.open("oci-layout") {
        return Err(SourceError::NoLayout {
            place: files.place(),
            source,
        });
    }
    let bytes = files.document("index.json")?;
    let what = || files.path("index.json").display().to_string();
    let index: ImageIndex = parse(&bytes, what)?;
    let raw: Map<String, Value> = parse(&bytes, what)?;
    let at = choose(files, &index, tag)?;
    let descriptor = raw
        .get("manifests")
        .and_then(|manifests| manifests.get(at)?.as_object().cloned());
    Ok(descriptor.unwrap_or_default())
}

fn choose(files: &Files, index: &ImageIndex, tag: Option<&str>) -> Result<usize, SourceError> {
    let name = |descriptor: &Descriptor| {
        descriptor
            .annotations()
            .as_ref()
            .and_then(|all| all.get(REF_NAME))
            .cloned()
    };
    let known = || index.manifests().iter().filter_map(name).collect();
    match (tag, index.manifests().len()) {
        (Some(tag), _) => index
            .manifests()
            .iter()
            .position(|descriptor| name(descriptor).as_deref() == Some(tag))
            .ok_or_else(|| SourceError::UnknownTag {
                place: files.place(),
                tag: tag.to_owned(),
                known: known(),
            }),
        (None, 1) => Ok(0),
        (None, 0) => Err(SourceError::Invalid {
            what: files.path("index.json").display().to_string(),
            reason: "it lists no image".to_owned(),
        }),
        (None, count) => Err(SourceError::Ambiguous {
            place: files.place(),
            count,
            known: known(),
        }),
    }
}
