//! A long, narrow link made of a TCP proxy, so that a pull within one machine takes the time that it takes between two.
//!
//! What goes down to the clients shares one bandwidth, whatever the number of connections, and is half a round trip
//! on its way. What goes up is small: it has the delay alone. A new connection costs one round trip more, which a
//! handshake on a loopback device does not. Not made: loss, a slow start, TLS.

mod measured;
mod requests;
mod wire;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

pub(super) use measured::measured;
pub(super) use requests::Request;
use requests::Requests;
use wire::{MAX_BOOKED, Wire, sleep_until};

/// How long and how wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Link {
    /// In 10⁶ bytes a second.
    pub(super) mb_per_second: f64,
    pub(super) round_trip_ms: f64,
}

impl Link {
    fn bytes_per_second(self) -> f64 {
        self.mb_per_second * 1e6
    }

    fn round_trip(self) -> Duration {
        Duration::from_secs_f64(self.round_trip_ms / 1e3)
    }
}

impl FromStr for Link {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let context = || format!("{text:?} is no link: MB/s:MS, as 125:10");
        let (width, length) = text.split_once(':').with_context(context)?;
        let link = Self {
            mb_per_second: width.parse().with_context(context)?,
            round_trip_ms: length.parse().with_context(context)?,
        };
        let is_usable = |number: f64, min: f64| number.is_finite() && number >= min;
        ensure!(
            is_usable(link.mb_per_second, 0.001) && is_usable(link.round_trip_ms, 0.0),
            "{text:?} is no link: the width is more than 0, the delay not less"
        );
        Ok(link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MB/s, {} ms", self.mb_per_second, self.round_trip_ms)
    }
}

/// What went through a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Down to the clients, HTTP's own among them.
    pub(super) bytes: u64,
    /// Of HTTP/1.1.
    pub(super) requests: u64,
    pub(super) connections: u64,
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    connections: AtomicU64,
}

/// A link before one server. Its drop ends it: no new connection is taken, those there are end with their ends.
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    link: Link,
    upstream: SocketAddr,
    wire: Wire,
    counters: Counters,
    log: Mutex<Log>,
    is_over: AtomicBool,
}

/// What was asked for since a moment.
struct Log {
    since: Instant,
    requests: Vec<Request>,
}

impl Log {
    fn begin() -> Self {
        Self {
            since: Instant::now(),
            requests: Vec::new(),
        }
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Listens on a free port of the loopback device.
    pub(super) fn start(link: Link, upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("the link has no port")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            link,
            upstream,
            wire: Wire::new(link.bytes_per_second()),
            counters: Counters::default(),
            log: Mutex::new(Log::begin()),
            is_over: AtomicBool::new(false),
        });
        let accepting = thread::Builder::new().name("link".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        })?;
        Ok(Self {
            address,
            shared,
            accepting: Some(accepting),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What went through since the last call, and what was asked for, in the order of arrival.
    pub(super) fn take(&self) -> (Traffic, Vec<Request>) {
        let requests = std::mem::replace(&mut *self.shared.log(), Log::begin()).requests;
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let traffic = Traffic {
            bytes: take(&self.shared.counters.bytes),
            requests: requests.len() as u64,
            connections: take(&self.shared.counters.connections),
        };
        (traffic, requests)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.is_over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = Arc::clone(shared);
        // A connection that fails is the client's to complain of: it is closed.
        let serve = move || {
            let _ = serve(client, &shared);
        };
        let _ = thread::Builder::new()
            .name("connection".to_owned())
            .spawn(serve);
    }
}

/// One connection, from its acceptance to the end of both directions.
fn serve(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let established = Instant::now() + shared.link.round_trip();
    let server = TcpStream::connect(shared.upstream)?;
    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (client_up, server_up) = (client.try_clone()?, server.try_clone()?);
    let mut requests = Requests::default();
    let up = Direction {
        from: client_up,
        to: server_up,
        link: shared.link,
    };
    let down = Direction {
        from: server,
        to: client,
        link: shared.link,
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let leaves = |bytes: &[u8]| {
                requests.read(bytes, |request| {
                    let mut log = shared.log();
                    let seconds = log.since.elapsed().as_secs_f64();
                    log.requests.push(Request { seconds, ..request });
                });
                Instant::now().max(established)
            };
            up.carry(leaves, |_| ());
        });
        down.carry(
            |bytes| shared.wire.book(bytes.len()),
            |len| {
                shared
                    .counters
                    .bytes
                    .fetch_add(len as u64, Ordering::Relaxed);
            },
        );
    });
    Ok(())
}

/// So many bytes at most take their turn on the wire together.
const TURN_BYTES: usize = 16 << 10;

/// Bytes, and when they are there.
type OnTheWay = (Instant, Vec<u8>);

/// One way of a connection.
struct Direction {
    from: TcpStream,
    to: TcpStream,
    link: Link,
}

impl Direction {
    /// Carries bytes until either end closes. `leaves` says when the last of the bytes just read has left; they
    /// arrive half a round trip later, and `arrived` is told.
    fn carry(self, leaves: impl FnMut(&[u8]) -> Instant + Send, mut arrived: impl FnMut(usize)) {
        let delay = self.link.round_trip() / 2;
        // Twice what can be on its way at once: never the bottleneck, and still a bound.
        let on_the_way = (delay + MAX_BOOKED).as_secs_f64() * self.link.bytes_per_second();
        let (sender, receiver) = sync_channel(64 + 2 * (on_the_way as usize / TURN_BYTES));
        thread::scope(|scope| {
            let from = &self.from;
            scope.spawn(move || read(from, delay, &sender, leaves));
            for (due, bytes) in receiver {
                sleep_until(due);
                // First: who has received it may ask at once what went through.
                arrived(bytes.len());
                if (&self.to).write_all(&bytes).is_err() {
                    break;
                }
            }
            // No more comes: whoever reads sees the end, whoever still sends here is told.
            let _ = self.to.shutdown(Shutdown::Write);
            let _ = self.from.shutdown(Shutdown::Read);
        });
    }
}

fn read(
    mut from: &TcpStream,
    delay: Duration,
    sender: &SyncSender<OnTheWay>,
    mut leaves: impl FnMut(&[u8]) -> Instant,
) {
    let mut buffer = vec![0; TURN_BYTES];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..len];
        let due = leaves(bytes) + delay;
        if sender.send((due, bytes.to_vec())).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_understood() {
        let link: Link = "125:10".parse().unwrap();
        assert_eq!((link.mb_per_second, link.round_trip_ms), (125.0, 10.0));
        assert_eq!(
            "0.5:0".parse::<Link>().unwrap().to_string(),
            "0.5 MB/s, 0 ms"
        );
        for bad in ["", "125", "0:10", "-1:10", "1:-1", "1:inf", "nan:1", "a:b"] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }
}
