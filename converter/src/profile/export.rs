//! A profile in the forms that other tools read. Pure.
//!
//! A file that was opened and not read has nothing to prefetch: only ctr-remote's record, which knows of opens
//! alone, has it.

use serde_json::{Value, json};

use crate::profile::{Profile, ProfiledFile};

/// What nydus reads: `{"version":"v1","files":[{"path":"/…","ranges":[[offset,length],…]}]}`, as its builder parses
/// it (dragonflyoss/nydus, `builder/src/optimize_prefetch.rs`, `PrefetchJson`). Paths are absolute, ranges in bytes;
/// a file without ranges is meant as a whole. So it is written where all of it was touched, and where the profile's
/// ranges are lower bounds.
pub fn to_nydus(profile: &Profile) -> Vec<u8> {
    let has_bounds_alone = profile.collector.ranges.is_some();
    let row = |file: &ProfiledFile| -> Value {
        let path = format!("/{}", file.path);
        if has_bounds_alone || file.touched_bytes == file.size_bytes {
            json!({ "path": path })
        } else {
            json!({ "path": path, "ranges": file.ranges })
        }
    };
    let files: Vec<Value> = touched(profile).map(row).collect();
    document(&json!({ "version": "v1", "files": files }))
}

/// What `soci create --prefetch-files-json` reads: an array of paths (awslabs/soci-snapshotter,
/// `cmd/soci/commands/internal/prefetch.go`). They have no leading `/`, with which its first releases found nothing
/// (issue 1944 there).
pub fn to_soci(profile: &Profile) -> Vec<u8> {
    let paths: Vec<&str> = touched(profile).map(|file| &*file.path).collect();
    document(&json!(paths))
}

/// Absolute paths, one a line: a list for `--prefetch-list`, or nydus's older form. Also gives how many paths hold
/// a line break and are left out.
pub fn to_paths(profile: &Profile) -> (Vec<u8>, usize) {
    let (mut list, mut left_out) = (Vec::new(), 0);
    for file in touched(profile) {
        if file.path.contains(['\n', '\r']) {
            left_out += 1;
            continue;
        }
        list.extend_from_slice(format!("/{}\n", file.path).as_bytes());
    }
    (list, left_out)
}

fn touched(profile: &Profile) -> impl Iterator<Item = &ProfiledFile> {
    profile.files.iter().filter(|file| !file.ranges.is_empty())
}

fn document(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::PrefetchList;
    use crate::profile::merge::tests::profile;

    #[test]
    fn each_form_has_what_its_reader_wants() {
        let mut profile = profile(&[
            ("usr/bin/a", &[(0, 4096), (8192, 4096)]),
            ("opened", &[]),
            ("#all", &[(0, 100_000)]),
            ("two\nlines", &[(0, 4096)]),
        ]);
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let nydus = json!({"version": "v1", "files": [
            {"path": "/usr/bin/a", "ranges": [[0, 4096], [8192, 4096]]},
            {"path": "/#all"},
            {"path": "/two\nlines", "ranges": [[0, 4096]]},
        ]});
        assert_eq!(parse(&to_nydus(&profile)), nydus);
        assert_eq!(
            parse(&to_soci(&profile)),
            json!(["usr/bin/a", "#all", "two\nlines"])
        );
        assert_eq!(to_paths(&profile), (b"/usr/bin/a\n/#all\n".to_vec(), 1));
        // `#` is no comment then.
        assert!(!PrefetchList::parse(b"/#all\n").is_empty());

        profile.collector.ranges = Some("partial".to_owned());
        let files = parse(&to_nydus(&profile))["files"].clone();
        assert_eq!(files[0], json!({"path": "/usr/bin/a"}));
    }
}
