//! What a run waits for: a port that is listened on, a request that is answered. The line is the copier's.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::runtime::RuntimeError;

/// How often a request is made.
const PERIOD: Duration = Duration::from_millis(100);
/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// Whether a socket of the network namespace of the process `proc` (its directory in /proc) listens on a TCP
/// port.
pub(crate) fn is_listened_on(proc: &Path, port: u16) -> bool {
    ["net/tcp", "net/tcp6"].iter().any(|table| {
        let table = fs::read_to_string(proc.join(table)).unwrap_or_default();
        has_listener(&table, port)
    })
}

/// Reads the table that proc(5) describes: local address and port in hexadecimal, then the remote one, then the
/// state; 0A is TCP_LISTEN.
fn has_listener(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1));
        let local = local
            .rsplit_once(':')
            .map(|(_, port)| u16::from_str_radix(port, 16));
        state == Some("0A") && matches!(local, Some(Ok(local)) if local == port)
    })
}

/// Asks for a URL again and again until the answer is a success. Ends when this is dropped, or soon after.
#[derive(Debug)]
pub(crate) struct Requests {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    is_over: AtomicBool,
    is_answered: AtomicBool,
}

impl Requests {
    /// Starts a thread that joins the network namespace of the process `proc`.
    pub(crate) fn start(proc: &Path, url: &str) -> Result<Self, RuntimeError> {
        let namespace: PathBuf = proc.join("ns/net");
        let file = fs::File::open(&namespace)
            .map_err(|source| RuntimeError::io("opening", &namespace, source))?;
        let state = Arc::new(State::default());
        let (inner, url) = (Arc::clone(&state), url.to_owned());
        let ask = move || {
            let joined = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            match joined {
                Ok(()) => ask(&url, &inner),
                Err(error) => tracing::warn!("the container's network cannot be joined: {error}"),
            }
        };
        // Not joined at the end: a request may take its time, and holds nothing that is to be removed but
        // the namespace, which ends with its last user.
        thread::Builder::new()
            .name("wait-on-http".to_owned())
            .spawn(ask)
            .map_err(|source: io::Error| RuntimeError::Watch {
                operation: "starting a thread for",
                source,
            })?;
        Ok(Self { state })
    }

    pub(crate) fn are_answered(&self) -> bool {
        self.state.is_answered.load(Ordering::Acquire)
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Release);
    }
}

fn ask(url: &str, state: &State) {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .proxy(None)
        .build()
        .new_agent();
    while !state.is_over.load(Ordering::Acquire) {
        match agent.get(url).call() {
            Ok(mut answer) => {
                // The server is to read all that it serves.
                let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES);
                if let Err(error) = io::copy(&mut body.reader(), &mut io::sink()) {
                    tracing::debug!("reading {url}: {error}");
                } else {
                    state.is_answered.store(true, Ordering::Release);
                    return;
                }
            }
            Err(error) => tracing::debug!("asking for {url}: {error}"),
        }
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_ports_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
               0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
               1: 0100007F:1F91 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 2\n\
               2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A x\nbroken\n";
        for (port, expected) in [(8080, true), (8081, false), (80, true), (0, false)] {
            assert_eq!(has_listener(table, port), expected, "{port}");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_listened_on(Path::new("/proc/self"), port));
        drop(listener);
    }
}
