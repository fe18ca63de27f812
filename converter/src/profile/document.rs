//! The profile document, version 1 (docs/profile.md).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::image::Digest;

/// The version that this program writes.
const VERSION: u32 = 1;

/// A whole profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The document's version; 1.
    pub esgz_profile: u32,
    /// Of which image.
    pub image: Image,
    /// Of which workload.
    pub workload: Workload,
    /// How it was collected.
    pub collector: Collector,
    /// Whether no event was lost.
    pub complete: bool,
    /// How many events were lost.
    pub lost_events: u64,
    /// Why the run ended.
    pub ended: Ended,
    /// The workload's exit code, where it ended by itself.
    pub exit_code: Option<i32>,
    /// How long the workload ran.
    pub duration_ms: u64,
    /// From how many runs this is merged.
    pub runs: u32,
    /// Files in the order of their first touch.
    pub files: Vec<ProfiledFile>,
    /// Files from outside the image that were opened through bind mounts, by first touch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounted: Vec<BoundFile>,
    /// Paths that the workload opened or executed in vain, by first attempt.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Keys of later versions.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The image that was profiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// As the user named it.
    pub reference: String,
    /// The platform's manifest.
    pub manifest: Digest,
    /// `os/architecture`.
    pub platform: String,
    /// The source's layers, base first.
    pub layers: Vec<Digest>,
    /// Merged from profiles of different images: `layers` are the layers of all of them, the rest is the first
    /// one's, and the profile means paths alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_path: bool,
    /// Keys of later versions.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The process that was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment that the user added.
    pub env: Vec<String>,
    /// As given, may be empty.
    pub user: String,
    /// Working directory.
    pub cwd: String,
    /// Keys of later versions.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// How accesses were seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collector {
    /// `filemap`, `page-cache`, `open` or `fanotify`.
    pub tier: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Ranges are multiples of this; 0 for whole files.
    pub granularity_bytes: u32,
    /// `partial` where ranges of mapped files are lower bounds, `whole` where every file that was
    /// opened stands as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<String>,
    /// The container ran already: what it touched before is not known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub attached: bool,
    /// Keys of the document that the collector cannot fill, or not wholly: `ranges`, `opened`, `missing`, `mounted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_known: Vec<String>,
    /// Keys of later versions.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// The workload exited.
    Exit,
    /// The time was over.
    Period,
    /// An expected line was printed.
    Line,
    /// An expected port was listened on.
    Port,
    /// An expected request was answered.
    Http,
    /// The user sent a signal.
    Signal,
}

/// When a file was touched first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// By the runtime or a hook, before the workload's first exec.
    Setup,
    /// By the workload.
    Run,
}

/// A file of the image that was touched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProfiledFile {
    /// Cleaned path of the entry that holds the bytes, no leading `/`.
    pub path: String,
    /// 0-based index of the layer that supplies the file.
    pub layer: u32,
    /// The file's size.
    pub size_bytes: u64,
    /// When it was touched first.
    pub phase: Phase,
    /// Order of the first touch among all files.
    pub first_touch_seq: u64,
    /// Time of the first touch since the run began.
    pub first_touch_ms: u64,
    /// Whether it was opened by name.
    pub opened: bool,
    /// Whether it was executed.
    pub executed: bool,
    /// Sum of the ranges.
    pub touched_bytes: u64,
    /// (offset, length) in bytes; ascending, disjoint, page-aligned except at the file's end.
    pub ranges: Vec<(u64, u64)>,
    /// Keys of later versions.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A file that is none of the image's: it was opened through a bind mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundFile {
    /// Its path in the container, no leading `/`.
    pub path: String,
    /// Where in the container the mount is.
    pub mount: String,
    /// The file's size.
    pub size_bytes: u64,
    /// When it was opened first.
    pub phase: Phase,
    /// Order of the first touch among all files, those of the image included.
    pub first_touch_seq: u64,
    /// Time of the first touch since the run began.
    pub first_touch_ms: u64,
    /// Whether it was opened by name.
    pub opened: bool,
    /// Whether it was executed.
    pub executed: bool,
    /// Keys of later versions.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Why a document is no usable profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON, or a key is missing or of the wrong type.
    #[error("not an esgz profile")]
    Syntax(#[source] serde_json::Error),
    /// A version that this program does not know.
    #[error("profile of version {found}; this program reads version {VERSION}")]
    Version {
        /// Found in the document.
        found: u32,
    },
    /// A value contradicts another.
    #[error("file \"{path}\" of the profile {reason}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Profile {
    /// The version that [`Profile::to_json`] writes.
    pub const VERSION: u32 = VERSION;

    /// Reads a document and checks it.
    ///
    /// # Errors
    /// [`ProfileError`] names what is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, ProfileError> {
        let profile: Self = serde_json::from_slice(json).map_err(ProfileError::Syntax)?;
        if profile.esgz_profile != VERSION {
            return Err(ProfileError::Version {
                found: profile.esgz_profile,
            });
        }
        for file in &profile.files {
            let wrong = |reason| ProfileError::File {
                path: file.path.clone(),
                reason,
            };
            if file.layer as usize >= profile.image.layers.len() {
                return Err(wrong("is in a layer that the image does not have"));
            }
            let mut reached = 0;
            for &(offset, len) in &file.ranges {
                let end = offset
                    .checked_add(len)
                    .ok_or(wrong("has a range past its end"))?;
                if offset < reached || len == 0 {
                    return Err(wrong("has ranges that are not ascending and disjoint"));
                }
                if end > file.size_bytes {
                    return Err(wrong("has a range past its end"));
                }
                reached = end;
            }
        }
        Ok(profile)
    }

    /// The document, one file a line so that it can be read and compared.
    pub fn to_json(&self) -> Vec<u8> {
        let mut head = self.clone();
        head.files.clear();
        head.missing.clear();
        head.mounted.truncate(1);
        let mut value = serde_json::to_value(&head).expect("a profile is valid JSON");
        let map = value.as_object_mut().expect("a profile is an object");
        let files = lines(self.files.iter().map(serde_json::to_string));
        let mounted = lines(self.mounted.iter().map(serde_json::to_string));
        let missing = lines(self.missing.iter().map(serde_json::to_string));
        let mut out = String::from("{");
        for (index, (key, value)) in map.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            let text = match key.as_str() {
                "files" => files.clone(),
                "mounted" => mounted.clone(),
                "missing" => missing.clone(),
                _ => value.to_string(),
            };
            out.push_str(&format!("\n{}:{text}", Value::from(key.as_str())));
        }
        out.push_str("\n}\n");
        out.into_bytes()
    }

    /// Sum of the touched bytes of all files.
    pub fn touched_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.touched_bytes).sum()
    }
}

fn lines(rows: impl Iterator<Item = serde_json::Result<String>>) -> String {
    let rows: Vec<String> = rows
        .map(|row| row.expect("text and numbers are JSON"))
        .collect();
    if rows.is_empty() {
        "[]".to_owned()
    } else {
        format!("[\n{}]", rows.join(",\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"esgz_profile":1,"image":{"reference":"oci:a","manifest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","platform":"linux/amd64","layers":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"workload":{"args":["a"],"env":[],"user":"","cwd":"/","gpus":"all"},"collector":{"tier":"filemap","kernel":"6.18","granularity_bytes":4096},"complete":true,"lost_events":0,"ended":"exit","exit_code":0,"duration_ms":6120,"runs":1,"files":[{"path":"a","layer":0,"size_bytes":5000,"phase":"run","first_touch_seq":0,"first_touch_ms":3,"opened":true,"executed":false,"touched_bytes":4096,"ranges":[[0,4096]],"new":1}],"missing":["b"],"later":{"x":[]}}"#;

    #[test]
    fn documents_round_trip_with_unknown_keys() {
        let profile = Profile::parse(DOCUMENT.as_bytes()).unwrap();
        let again = Profile::parse(&profile.to_json()).unwrap();
        assert_eq!(again, profile);
        assert_eq!(again.unknown["later"]["x"], serde_json::json!([]));
        assert_eq!(again.workload.unknown["gpus"], "all");
        assert_eq!(again.files[0].unknown["new"], 1);
    }

    #[test]
    fn numbers_of_later_versions_stay_the_same() {
        // Found by fuzzing: read, written and read again, the second was another number.
        let number = "133333333333333333333333333333333333333333";
        let document = DOCUMENT.replace(r#"{"x":[]}"#, number);
        let profile = Profile::parse(document.as_bytes()).unwrap();
        assert_eq!(profile.unknown["later"], 1.333_333_333_333_333_4e41);
        assert_eq!(Profile::parse(&profile.to_json()).unwrap(), profile);
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |from: &str, to: &str, message: &str| {
            let changed = DOCUMENT.replacen(from, to, 1);
            assert_ne!(changed, DOCUMENT);
            let error = Profile::parse(changed.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        };
        check(
            "\"layer\":0",
            "\"layer\":1",
            "layer that the image does not have",
        );
        check("[[0,4096]]", "[[0,9000]]", "past its end");
        check("[[0,4096]]", "[[100,4],[90,4]]", "ascending");
        check("[[0,4096]]", "[[100,18446744073709551615]]", "past its end");
        check("\"esgz_profile\":1", "\"esgz_profile\":2", "version 2");
        check("\"complete\":true,", "", "not an esgz profile");
    }
}
