//! What is printed: logs, errors, results.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use serde_json::Value;

use crate::cli::failure::{Failure, OTHER};
use crate::cli::progress::Shown;
use crate::unfinished;

/// Log lines go to stderr, without time stamps: they are for people and CI logs.
pub(super) fn init_logging(level: &str, shown: Shown) {
    // A bare level is ours; libraries then only warn, and one not at all: our own error says the same.
    let is_bare = level.chars().all(char::is_alphanumeric);
    let directives = if is_bare {
        format!("warn,rustls_platform_verifier=off,esgz={level}")
    } else {
        level.to_owned()
    };
    let filter = tracing_subscriber::EnvFilter::try_new(directives)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,esgz=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(shown)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}

/// The one line that says why the command failed.
pub(super) fn error(failure: &Failure) {
    let _ = writeln!(io::stderr(), "esgz: {}", failure.line());
}

/// A line of a result.
pub(super) fn line(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(stdout_failure)
}

/// Bytes of a result that is no text of ours.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    io::stdout().write_all(bytes).map_err(stdout_failure)
}

/// A name from an image, which may hold anything, so that it does nothing to the terminal.
pub(super) fn printable(name: &str) -> Cow<'_, str> {
    if !name.contains(char::is_control) {
        return Cow::Borrowed(name);
    }
    let escaped = name.chars().map(|character| {
        if character.is_control() {
            character.escape_default().to_string()
        } else {
            character.to_string()
        }
    });
    Cow::Owned(escaped.collect())
}

/// A JSON result.
pub(super) fn json(value: &Value) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value)
        .map_err(io::Error::from)
        .and_then(|()| writeln!(stdout))
        .map_err(stdout_failure)
}

fn stdout_failure(error: io::Error) -> Failure {
    Failure::new(OTHER, error).context("writing to stdout".to_owned())
}

/// Written beside its place and renamed, so that an old file stays whole until then. A device or
/// pipe is written to directly.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return std::fs::write(path, bytes);
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        unfinished::remove_abandoned(parent);
        let mut file = unfinished::hidden_file(parent, "profile")?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write()
        .map_err(|error| Failure::new(OTHER, error).context(format!("writing {}", path.display())))
}

/// 1536 as `1.5 KiB`.
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1000.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = usize::from(value < 100.0);
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_nothing_to_the_terminal() {
        assert_eq!(printable("usr/lib/é b"), "usr/lib/é b");
        assert_eq!(printable("a\u{1b}[2J\n\u{9b}"), "a\\u{1b}[2J\\n\\u{9b}");
    }

    #[test]
    fn sizes_are_short() {
        let check = |bytes, text: &str| assert_eq!(Size(bytes).to_string(), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1536, "1.5 KiB");
        check(5 << 30, "5.0 GiB");
        check(999 << 20, "999 MiB");
        check(1000 << 20, "1.0 GiB");
    }
}
