//! What is printed: logs, errors, results.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use serde_json::Value;

use crate::cli::failure::{Failure, OTHER};
use crate::cli::progress::Shown;

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
