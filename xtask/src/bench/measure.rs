//! One command, and what it cost.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};

/// What a run cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) wall_seconds: f64,
    /// Of the command and, where it has one, its daemon; in user and system mode.
    pub(super) cpu_seconds: f64,
    /// The command's, and its daemon's added: both are there at once.
    pub(super) peak_memory_bytes: u64,
}

/// Short against any run, and long against what a look costs.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a command ended, and what it said.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) cost: Cost,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs `command` to its end, which must be a success; gives its standard output, too. `daemon` is the process
/// that works for it.
pub(super) fn measure(command: &mut Command, daemon: Option<u32>) -> Result<(Cost, String)> {
    let ended = measure_any(command, daemon, &mut |_| ())?;
    ensure!(
        ended.status.success(),
        "{command:?}: {}: {}",
        ended.status,
        ended.stderr.trim_end()
    );
    Ok((ended.cost, ended.stdout))
}

/// As [`measure`], however it ends. `look` is called with its process, again and again while it runs.
pub(super) fn measure_any(
    command: &mut Command,
    daemon: Option<u32>,
    look: &mut dyn FnMut(u32),
) -> Result<Ended> {
    if let Some(daemon) = daemon {
        forget_peak(daemon)?;
    }
    let cpu_before = children_seconds()?;
    let daemon_before = daemon.map(cpu_seconds).transpose()?.unwrap_or(0.0);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let (status, mut peak_memory_bytes) = watch(&mut child, look)?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let mut cpu = children_seconds()? - cpu_before;
    if let Some(daemon) = daemon {
        cpu += cpu_seconds(daemon)? - daemon_before;
        peak_memory_bytes += peak(daemon).context("the daemon has ended")?;
    }
    let cost = Cost {
        wall_seconds,
        cpu_seconds: cpu,
        peak_memory_bytes,
    };
    Ok(Ended {
        status,
        cost,
        stdout,
        stderr,
    })
}

fn read_all(stream: Option<impl std::io::Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came before an error is what there is.
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Waits for its end, and sees how much memory it had at most.
fn watch(child: &mut Child, look: &mut dyn FnMut(u32)) -> Result<(ExitStatus, u64)> {
    let mut peak_bytes = 0;
    loop {
        // An ended process has no memory any more: the last figure before counts.
        peak_bytes = peak(child.id()).unwrap_or(0).max(peak_bytes);
        look(child.id());
        if let Some(status) = child.try_wait()? {
            return Ok((status, peak_bytes));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// `VmHWM` of `proc_pid_status(5)`.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Lets the peak begin anew (`proc_pid_clear_refs(5)`).
fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// CPU time of a process so far (`proc_pid_stat(5)`, fields 14 and 15).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = stat_ticks(&stat).with_context(|| format!("{path}: {stat:?}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(ticks as f64 / per_second as f64)
}

fn stat_ticks(stat: &str) -> Option<u64> {
    // The name before may hold anything but ends with the last parenthesis; state is field 3.
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// CPU time of all children that have been waited for.
fn children_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// Bytes of all files below `dir`.
pub(super) fn tree_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            tree_bytes(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_move_the_fields() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 8 0 5 9 9 18";
        assert_eq!(stat_ticks(stat), Some(42));
        assert_eq!(stat_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn a_command_is_measured() {
        let program = "x=$(seq 200000); echo ${#x}; sleep 0.1";
        let mut command = Command::new("sh");
        let (cost, stdout) = measure(command.args(["-c", program]), None).unwrap();
        assert_eq!(stdout.trim(), "1288894");
        assert!(cost.wall_seconds >= 0.1, "{cost:?}");
        assert!(
            cost.cpu_seconds > 0.0 && cost.cpu_seconds < cost.wall_seconds + 1.0,
            "{cost:?}"
        );
        assert!(cost.peak_memory_bytes > 1 << 20, "{cost:?}");
        let failed = measure(
            Command::new("sh").args(["-c", "echo why >&2; exit 3"]),
            None,
        );
        let message = failed.unwrap_err().to_string();
        assert!(
            message.contains("3") && message.ends_with("why"),
            "{message}"
        );
    }
}
