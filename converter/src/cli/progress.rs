//! `--progress`: steps as bars on a terminal, as plain lines elsewhere, or not at all.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::output::Size;
use crate::progress::{Meter, Progress, Stage, Step};

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressArg {
    /// Bars if stderr is a terminal, else plain lines
    #[default]
    Auto,
    /// A line when a step begins, and one when it has ended; they are log lines of the level info
    Plain,
    /// Nothing
    None,
}

/// Shows steps on stderr. Clones draw on the same lines.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    how: How,
    bars: MultiProgress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Bars,
    Lines,
    Nothing,
}

impl Shown {
    /// As `arg` asks for, where stderr is what it is.
    pub(super) fn new(arg: ProgressArg) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let how = match arg {
            ProgressArg::Auto if io::stderr().is_terminal() && !is_dumb => How::Bars,
            ProgressArg::Auto | ProgressArg::Plain => How::Lines,
            ProgressArg::None => How::Nothing,
        };
        let target = match how {
            How::Bars => ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND),
            How::Lines | How::Nothing => ProgressDrawTarget::hidden(),
        };
        Self {
            how,
            bars: MultiProgress::with_draw_target(target),
        }
    }
}

const DRAWS_PER_SECOND: u8 = 10;

impl Progress for Shown {
    fn begin(&self, step: Step) -> Box<dyn Meter> {
        let started = Instant::now();
        match (self.how, step.stage) {
            (How::Nothing, _) => Box::new(crate::progress::Silent),
            // The terminal is the workload's: a line, and nothing that moves.
            (How::Bars, Stage::Run) | (How::Lines, _) => {
                tracing::info!("{}", Begun(step));
                Box::new(Lines { step, started })
            }
            (How::Bars, _) => {
                let digest = step
                    .digest
                    .map_or_else(String::new, |digest| short(&digest));
                let hidden = ProgressDrawTarget::hidden();
                let bar = ProgressBar::with_draw_target(Some(step.total_bytes), hidden)
                    .with_style(style())
                    .with_prefix(step.stage.name())
                    .with_message(digest);
                let bar = self.bars.add(bar);
                bar.tick();
                // Draws at once, however much has been drawn of late.
                self.bars.suspend(|| ());
                Box::new(Bar(bar))
            }
        }
    }
}

/// A step that is drawn; its line is gone when it ends, however it does.
struct Bar(ProgressBar);

impl Meter for Bar {
    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn finish(self: Box<Self>) {}
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style() -> ProgressStyle {
    const TEMPLATE: &str =
        "{prefix:<6} {msg} [{wide_bar}] {bytes_done} of {bytes_all}, {rate}, {left} left";
    let size = |of: fn(&ProgressState) -> u64| {
        move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}", Size(of(state)));
        }
    };
    ProgressStyle::with_template(TEMPLATE)
        .expect("the template is valid: a test makes it")
        .progress_chars("=> ")
        .with_key("bytes_done", size(ProgressState::pos))
        .with_key("bytes_all", size(|state| state.len().unwrap_or(0)))
        .with_key(
            "rate",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{:.0} MB/s", state.per_sec() / 1e6);
            },
        )
        .with_key(
            "left",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{}", Left(state.eta()));
            },
        )
}

/// A step that is told in two lines.
struct Lines {
    step: Step,
    started: Instant,
}

impl Meter for Lines {
    fn advance(&self, _: u64) {}

    fn finish(self: Box<Self>) {
        let seconds = self.started.elapsed().as_secs_f64();
        tracing::info!(
            "{}",
            Ended {
                step: self.step,
                seconds
            }
        );
    }
}

/// `scan sha256:0123456789ab 3.0 GiB`
struct Begun(Step);

impl std::fmt::Display for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.stage)?;
        match self.0.digest {
            Some(digest) => write!(f, " {} {}", short(&digest), Size(self.0.total_bytes)),
            None => Ok(()),
        }
    }
}

/// `scan sha256:0123456789ab done in 12.3 s, 262 MB/s`
struct Ended {
    step: Step,
    seconds: f64,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { step, seconds } = self;
        write!(f, "{}", step.stage)?;
        let Some(digest) = step.digest else {
            return write!(f, " done in {seconds:.1} s");
        };
        let rate = step.total_bytes as f64 / 1e6 / seconds.max(1e-6);
        write!(
            f,
            " {} done in {seconds:.1} s, {rate:.0} MB/s",
            short(&digest)
        )
    }
}

/// `1:02:03`, or `2:03`.
struct Left(Duration);

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match hours {
            0 => write!(f, "{minutes}:{seconds:02}"),
            _ => write!(f, "{hours}:{minutes:02}:{seconds:02}"),
        }
    }
}

/// As much of a digest as people compare.
fn short(digest: &crate::image::Digest) -> String {
    let mut text = digest.to_string();
    text.truncate("sha256:".len() + 12);
    text
}

/// Log lines go above the bars.
impl<'a> MakeWriter<'a> for Shown {
    type Writer = AboveBars;

    fn make_writer(&'a self) -> AboveBars {
        AboveBars(self.bars.clone())
    }
}

/// Standard error; while a line is written, there are no bars.
pub(super) struct AboveBars(MultiProgress);

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn lines_name_the_step() {
        let layer = Step::of(Stage::Scan, Digest::of(b""), 3 << 30);
        assert_eq!(Begun(layer).to_string(), "scan sha256:e3b0c44298fc 3.0 GiB");
        assert_eq!(Begun(Step::RUN).to_string(), "run");
        let seconds = 2.0;
        let ended = Ended {
            step: layer,
            seconds,
        };
        assert_eq!(
            ended.to_string(),
            "scan sha256:e3b0c44298fc done in 2.0 s, 1611 MB/s"
        );
        let ended = Ended {
            step: Step::RUN,
            seconds,
        };
        assert_eq!(ended.to_string(), "run done in 2.0 s");
    }

    #[test]
    fn time_left_is_short() {
        let check = |seconds, text: &str| {
            assert_eq!(Left(Duration::from_secs(seconds)).to_string(), text);
        };
        check(0, "0:00");
        check(63, "1:03");
        check(3723, "1:02:03");
    }

    #[test]
    fn the_template_is_valid() {
        style();
    }
}
