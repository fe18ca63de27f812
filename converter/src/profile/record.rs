//! ctr-remote's record: one JSON object a line, in the order of access.

use serde::{Deserialize, Serialize};

use crate::image::Digest;
use crate::profile::Profile;

/// One accessed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordLine {
    /// Cleaned path, no leading `/`.
    pub path: String,
    /// Digest of the source's platform manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_digest: Option<String>,
    /// 0-based index of the layer; converting reads only the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_index: Option<u32>,
}

/// A line of a record is not what it must be.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the record is not valid")]
pub struct RecordError {
    /// 1-based.
    pub line: usize,
    /// What is wrong with it.
    #[source]
    pub source: serde_json::Error,
}

/// Reads a record; empty lines are skipped, unknown keys ignored.
///
/// # Errors
/// [`RecordError`] names the first bad line.
pub fn parse_record(text: &[u8]) -> Result<Vec<RecordLine>, RecordError> {
    text.split(|&b| b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|source| RecordError {
                line: index + 1,
                source,
            })
        })
        .collect()
}

/// The files of a profile as a record, in the same order.
pub fn to_record(profile: &Profile) -> Vec<u8> {
    let manifest: Digest = profile.image.manifest;
    let mut record = Vec::new();
    for file in &profile.files {
        let line = RecordLine {
            path: file.path.clone(),
            manifest_digest: Some(manifest.to_string()),
            layer_index: Some(file.layer),
        };
        serde_json::to_writer(&mut record, &line).expect("text and numbers are JSON");
        record.push(b'\n');
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_bad_ones_named() {
        let lines = parse_record(
            b"{\"path\":\"usr/bin/a\",\"manifestDigest\":\"sha256:x\",\"layerIndex\":2,\"z\":1}\n\n{\"path\":\"b\"}\n",
        )
        .unwrap();
        assert_eq!(lines[0].layer_index, Some(2));
        assert_eq!(lines[1].path, "b");
        assert_eq!(parse_record(b"{\"path\":\"a\"}\nx\n").unwrap_err().line, 2);
    }
}
