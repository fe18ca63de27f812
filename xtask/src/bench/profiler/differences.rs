//! How esgz and strace differ on the same run of each program.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::results::Results;

/// Markdown; None where no program was looked at.
pub(super) fn text(results: &Results) -> Result<Option<String>> {
    if results.differences.is_empty() {
        return Ok(None);
    }
    let mut text = "Files of the image that esgz (`filemap`) and `strace -f` saw on the same run of each program. What \
        the kernel itself opens to execute them (the interpreter of `#!`, the dynamic linker of `PT_INTERP`), strace \
        cannot see; it is added. strace also saw what no profile of an image has: directories, /proc, /dev and /tmp, \
        files that the program made, opens that failed.\n\n\
        | program | strace and closure | of these by the kernel | esgz | both | not explained | lost | directories | /proc, /dev, /tmp | made | failed |\n\
        |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for row in &results.differences {
        let cells = [
            "/strace_files",
            "/of_these_opened_by_the_kernel",
            "/esgz_files",
            "/both",
            "/not_explained",
            "/esgz_lost_events",
            "/not_compared/directories",
            "/not_compared/files_of_proc_dev_tmp",
            "/not_compared/files_made_by_the_workload",
            "/not_compared/failed_opens",
        ]
        .map(|pointer| {
            row.pointer(pointer)
                .map_or_else(String::new, Value::to_string)
        });
        let name = row["differences_of"].as_str().context("a row has a name")?;
        writeln!(text, "| {name} | {} |", cells.join(" | "))?;
    }
    text += "\n## One by one\n\n| program | file | why |\n|---|---|---|\n";
    let mut none = true;
    for row in &results.differences {
        for difference in row["differences"].as_array().into_iter().flatten() {
            let part = |name: &str| difference[name].as_str().unwrap_or_default();
            let name = row["differences_of"].as_str().unwrap_or_default();
            writeln!(text, "| {name} | `{}` | {} |", part("path"), part("class"))?;
            none = false;
        }
    }
    if none {
        text += "| – | – | no difference |\n";
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_has_a_row() {
        let line = r#"{"differences_of":"gcc","strace_files":3,"both":2,"not_explained":0,"differences":[{"path":"a","class":"why"}]}"#;
        let text = text(&Results::parse(line).unwrap()).unwrap().unwrap();
        assert!(text.contains("| gcc | 3 |  |  | 2 | 0 |"), "{text}");
        assert!(text.contains("| gcc | `a` | why |"), "{text}");
        assert_eq!(super::text(&Results::default()).unwrap(), None);
    }
}
