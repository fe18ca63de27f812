//! Chromium without a screen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// What the user prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

pub(crate) struct Browser {
    program: PathBuf,
    dir: TempDir,
}

/// Opens all details of a page in a frame and says how it lies there: what stands out of it (but for what scrolls by
/// itself), which text is too small to read, and the text.
const LOOK: &str = r#"<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" src="PAGE" style="display:block;border:0;width:WIDTHpx;height:HEIGHTpx"></iframe><pre id="found"></pre>
<script>
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll('details').forEach(d => d.open = true);
  const all = [...page.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg'));
  const name = e => e.tagName + '.' + e.className;
  const hasText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  found.textContent = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth,
    beyond: all.filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(name),
    small: all.filter(e => hasText(e) && parseFloat(frame.contentWindow.getComputedStyle(e).fontSize) < 11).map(name),
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    text: page.body.innerText,
  });
};
</script>"#;

/// The page alone, at its width.
const FRAME: &str = r#"<!DOCTYPE html><body style="margin:0">
<iframe src="PAGE" style="display:block;border:0;width:WIDTHpx;height:HEIGHTpx"></iframe>"#;

/// Higher than the page of the tests at any width.
const HEIGHT: u32 = 4000;

impl Browser {
    /// Says that the test `name` is skipped, and returns none, where there is no Chromium.
    pub(crate) fn for_test(name: &str) -> Option<Self> {
        let Some(program) = esgz_tests::find_program("chromium") else {
            esgz_tests::skipped(name, "chromium is not installed");
            return None;
        };
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        Some(Self { program, dir })
    }

    /// What a page looks like to a script.
    pub(crate) fn show(&self, page: &Path, width: u32, scheme: Scheme) -> Value {
        let frame = self.frame(LOOK, page, width);
        let mut command = self.command(width, scheme);
        let output = command.arg("--dump-dom").arg(&frame).output();
        let output = output.expect("chromium can be run");
        let html = String::from_utf8_lossy(&output.stdout);
        let found = html.split_once("<pre id=\"found\">").and_then(|(_, rest)| {
            let (json, _) = rest.split_once("</pre>")?;
            let json = json
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&nbsp;", "\u{a0}");
            serde_json::from_str(&json.replace("&amp;", "&")).ok()
        });
        found.unwrap_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            panic!("chromium: {}: {errors}\n{html}", output.status)
        })
    }

    /// Takes a picture of the page's upper part into the target directory, and returns its size in bytes.
    pub(crate) fn screenshot(&self, page: &Path, width: u32, scheme: Scheme) -> u64 {
        let dir = esgz_tests::profile_dir().join("report-screenshots");
        fs::create_dir_all(&dir).expect("the target directory is writable");
        let picture = dir.join(format!("{width}-{scheme:?}.png").to_lowercase());
        let frame = self.frame(FRAME, page, width);
        let mut command = self.command(width, scheme);
        command
            .arg(format!("--screenshot={}", picture.display()))
            .arg(&frame);
        let output = command.output().expect("chromium can be run");
        let errors = String::from_utf8_lossy(&output.stderr);
        let metadata = fs::metadata(&picture);
        metadata
            .unwrap_or_else(|error| panic!("{error}: {errors}"))
            .len()
    }

    fn frame(&self, template: &str, page: &Path, width: u32) -> PathBuf {
        let html = template
            .replace("PAGE", &page.display().to_string())
            .replace("WIDTH", &width.to_string())
            .replace("HEIGHT", &HEIGHT.to_string());
        let path = self.dir.path().join("frame.html");
        fs::write(&path, html).expect("a temporary directory is writable");
        path
    }

    fn command(&self, width: u32, scheme: Scheme) -> Command {
        // As Blink numbers them.
        let scheme = match scheme {
            Scheme::Dark => 0,
            Scheme::Light => 1,
        };
        let mut command = Command::new(&self.program);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--allow-file-access-from-files",
                "--virtual-time-budget=10000",
            ])
            .arg(format!(
                "--user-data-dir={}",
                self.dir.path().join("profile").display()
            ))
            .arg(format!("--window-size={width},{HEIGHT}"))
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .stdin(Stdio::null());
        command
    }
}
