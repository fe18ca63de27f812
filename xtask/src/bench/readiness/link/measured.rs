//! Is a link as wide and as long as it says?

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Link, Proxy};

/// Transfers take this long.
const SECONDS: f64 = 0.5;
const CONNECTIONS: u64 = 4;

/// What a link was found to be.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench::readiness) struct Measured {
    mb_per_second_alone: f64,
    mb_per_second_together: f64,
    round_trip_ms: f64,
    new_connection_ms: f64,
}

impl Measured {
    pub(in crate::bench::readiness) fn to_json(self) -> Value {
        json!({
            "mb_per_second_one_connection": rounded(self.mb_per_second_alone),
            "mb_per_second_four_connections": rounded(self.mb_per_second_together),
            "request_ms": rounded(self.round_trip_ms),
            "request_on_a_new_connection_ms": rounded(self.new_connection_ms),
        })
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Measures a link of its own: a stream over one connection and over four at once, and small requests on an open
/// connection and on new ones, of which the median counts.
pub(in crate::bench::readiness) fn measured(link: Link) -> Result<Measured> {
    let server = Server::start()?;
    let proxy = Proxy::start(link, server.address)?;
    let connect = || TcpStream::connect(proxy.address()).context("the link does not answer");
    let mut open = connect()?;
    ask(&mut open, 1)?;
    let round_trip_ms = median_ms(|| ask(&mut open, 1))?;
    let new_connection_ms = median_ms(|| ask(&mut connect()?, 1))?;

    let bytes = ((link.bytes_per_second() * SECONDS) as u64).max(CONNECTIONS);
    let _ = proxy.take();
    let begun = Instant::now();
    ask(&mut open, bytes)?;
    // From the first byte's departure to the last one's arrival, without the round trip.
    let mb_per_second =
        |begun: Instant| bytes as f64 / 1e6 / (begun.elapsed() - link.round_trip()).as_secs_f64();
    let mb_per_second_alone = mb_per_second(begun);
    let mut opened = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = connect()?;
        ask(&mut connection, 1)?;
        opened.push(connection);
    }
    let begun = Instant::now();
    thread::scope(|scope| {
        let asking: Vec<_> = opened
            .iter_mut()
            .map(|connection| scope.spawn(|| ask(connection, bytes / CONNECTIONS)))
            .collect();
        asking
            .into_iter()
            .try_for_each(|one| one.join().expect("asking does not panic"))
    })?;
    let mb_per_second_together = mb_per_second(begun);
    let (traffic, _) = proxy.take();
    let expected = bytes + CONNECTIONS + bytes / CONNECTIONS * CONNECTIONS;
    ensure!(
        traffic.bytes == expected && traffic.connections == CONNECTIONS,
        "the link counted {traffic:?}, expected {expected} bytes"
    );
    Ok(Measured {
        mb_per_second_alone,
        mb_per_second_together,
        round_trip_ms,
        new_connection_ms,
    })
}

fn median_ms(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Asks for so many bytes and reads them.
fn ask(connection: &mut TcpStream, len_bytes: u64) -> Result<()> {
    connection.write_all(&len_bytes.to_le_bytes())?;
    let got = io::copy(&mut connection.take(len_bytes), &mut io::sink())?;
    ensure!(
        got == len_bytes,
        "the link ended after {got} of {len_bytes} bytes"
    );
    Ok(())
}

/// Sends as many bytes as it is asked for, on connections that end with the client's.
struct Server {
    address: SocketAddr,
}

impl Server {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        // Waits for connections until the process ends.
        thread::Builder::new()
            .name("far end".to_owned())
            .spawn(move || {
                for connection in listener.incoming().flatten() {
                    thread::spawn(move || send(connection));
                }
            })?;
        Ok(Self { address })
    }
}

fn send(mut connection: TcpStream) -> io::Result<()> {
    let block = vec![b'x'; 64 << 10];
    let mut asked = [0; 8];
    loop {
        connection.read_exact(&mut asked)?;
        let mut left = u64::from_le_bytes(asked) as usize;
        while left > 0 {
            let sent = connection.write(&block[..left.min(block.len())])?;
            left -= sent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A busy machine delays what it runs: of each figure the best of so many attempts says what the link does.
    const ATTEMPTS: usize = 20;

    /// Never faster than it says, and at best slower by a few per cent.
    #[test]
    fn a_link_is_as_wide_and_as_long_as_it_says() {
        for (text, width, length) in [("40:10", 40.0, 10.0), ("8:40", 8.0, 40.0)] {
            let link: Link = text.parse().unwrap();
            let mut best = measured(link).unwrap();
            let is_exact = |best: &Measured| {
                best.mb_per_second_alone > width * 0.96
                    && best.mb_per_second_together > width * 0.96
                    && best.round_trip_ms < length * 1.05 + 1.0
                    && best.new_connection_ms < 2.0 * length * 1.05 + 1.0
            };
            for _ in 1..ATTEMPTS {
                if is_exact(&best) {
                    break;
                }
                let found = measured(link).unwrap();
                best = Measured {
                    mb_per_second_alone: best.mb_per_second_alone.max(found.mb_per_second_alone),
                    mb_per_second_together: best
                        .mb_per_second_together
                        .max(found.mb_per_second_together),
                    round_trip_ms: best.round_trip_ms.min(found.round_trip_ms),
                    new_connection_ms: best.new_connection_ms.min(found.new_connection_ms),
                };
            }
            assert!(is_exact(&best), "{text}: {best:?}");
            // What is booked ahead leaves at once, and a turn's last bytes are counted with it.
            for got in [best.mb_per_second_alone, best.mb_per_second_together] {
                assert!(got < width * 1.03, "{text}: {best:?}");
            }
            assert!(best.round_trip_ms >= length, "{text}: {best:?}");
            assert!(best.new_connection_ms >= 2.0 * length, "{text}: {best:?}");
        }
    }
}
