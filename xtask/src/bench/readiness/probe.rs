//! A server's first answer, asked for from inside its network.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

/// Short against any start.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// An answer that has begun may take so long.
const LONGEST_ANSWER: Duration = Duration::from_secs(600);

/// Asks again and again. Its drop ends that.
pub(super) struct Probe {
    is_over: Arc<AtomicBool>,
    answered: Receiver<Result<Instant>>,
    asking: Option<JoinHandle<()>>,
}

impl Probe {
    /// Begins to ask for `/` on the loopback device of `network`.
    pub(super) fn start(network: File, port: u16) -> Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (sender, answered) = channel();
        let asking = thread::Builder::new().name("probe".to_owned()).spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                // For this thread alone.
                let entered = setns(&network, CloneFlags::CLONE_NEWNET);
                let found = match entered {
                    Ok(()) => first_answer(port, &is_over).map(Ok),
                    Err(error) => Some(Err(error).context("cannot enter the network")),
                };
                if let Some(found) = found {
                    let _ = sender.send(found);
                }
            }
        })?;
        Ok(Self {
            is_over,
            answered,
            asking: Some(asking),
        })
    }

    /// When the first answer was read to its end, if it comes within `longest`.
    pub(super) fn answer(&self, longest: Duration) -> Result<Option<Instant>> {
        match self.answered.recv_timeout(longest) {
            Ok(found) => found.map(Some),
            Err(_) => Ok(None),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(asking) = self.asking.take().filter(JoinHandle::is_finished) {
            let _ = asking.join();
        }
    }
}

/// None: nobody wants to know any more.
fn first_answer(port: u16, is_over: &AtomicBool) -> Option<Instant> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    while !is_over.load(Ordering::Relaxed) {
        if matches!(ask(address), Ok(true)) {
            return Some(Instant::now());
        }
        thread::sleep(ASK_EVERY);
    }
    None
}

/// True if the answer has a status below 400.
fn ask(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LONGEST_ANSWER))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(is_success(&answer))
}

fn is_success(answer: &[u8]) -> bool {
    let Some(behind) = answer.strip_prefix(b"HTTP/1.") else {
        return false;
    };
    matches!(behind.get(1..3), Some([b' ', b'1'..=b'3']))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_an_answer_without_an_error_counts() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], true),
            (b"HTTP/1.0 302 Found\r\n\r\n", true),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", false),
            (b"HTTP/1.1 503 \r\n\r\n", false),
            (b"HTTP/1.1", false),
            (b"", false),
        ] {
            assert_eq!(is_success(answer), expected);
        }
    }

    #[test]
    fn a_server_is_asked_until_it_answers_well() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            for answer in ["HTTP/1.0 503 \r\n\r\n", "HTTP/1.0 200 \r\n\r\nyes"] {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let begun = Instant::now();
        let answered = first_answer(port, &AtomicBool::new(false)).unwrap();
        assert!(answered - begun >= ASK_EVERY);
        server.join().unwrap();
    }
}
