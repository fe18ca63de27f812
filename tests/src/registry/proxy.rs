//! A proxy that cuts the connection after so many bytes, once.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Which bytes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that the client sends.
    ToRegistry,
    /// Those that the registry sends.
    FromRegistry,
}

/// A proxy before a registry.
#[derive(Debug)]
pub struct CuttingProxy {
    address: SocketAddr,
    counters: [Arc<AtomicU64>; 2],
}

impl CuttingProxy {
    /// In front of `target`: when `direction` has seen `after_bytes`, over all connections, the one that
    /// has the next byte is cut, in both directions.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn new(target: SocketAddr, direction: Direction, after_bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it has an address");
        let counters = [Arc::default(), Arc::default()];
        let proxy = Self {
            address,
            counters: counters.clone(),
        };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(registry) = TcpStream::connect(target) else {
                    continue;
                };
                let ends = [(&client, &registry), (&registry, &client)];
                for (at, (from, to)) in ends.into_iter().enumerate() {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                        continue;
                    };
                    let counts = (at == 0) == (direction == Direction::ToRegistry);
                    let limit = if counts { after_bytes } else { u64::MAX };
                    let counter = Arc::clone(&counters[at]);
                    thread::spawn(move || pass(from, to, &counter, limit));
                }
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many bytes have passed.
    pub fn passed_bytes(&self, direction: Direction) -> u64 {
        let at = usize::from(direction == Direction::FromRegistry);
        self.counters[at].load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, counter: &AtomicU64, limit: u64) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        let before = counter.fetch_add(read as u64, Ordering::SeqCst);
        let is_cut = before <= limit && limit < before + read as u64;
        let length = if is_cut {
            usize::try_from(limit - before).unwrap_or(0)
        } else {
            read
        };
        let written = to.write_all(&buffer[..length]);
        if is_cut {
            // What has been sent arrives, and then the end.
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        }
        if read == 0 || is_cut || written.is_err() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}
