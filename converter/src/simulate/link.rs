//! What lies between a node and its registry. Pure: text to numbers and back.

use std::fmt;
use std::str::FromStr;

/// One bandwidth that all connections share, and a round trip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes in a second; more than 0, finite.
    pub bytes_per_second: f64,
    /// From a request's sending to its answer's first byte; 0 or more, finite.
    pub round_trip_seconds: f64,
}

impl Link {
    /// Within a data centre: 1 Gbit/s and 10 ms.
    pub const FAST: Self = Self {
        bytes_per_second: 125e6,
        round_trip_seconds: 0.010,
    };
    /// To a registry far away: 200 Mbit/s and 40 ms.
    pub const SLOW: Self = Self {
        bytes_per_second: 25e6,
        round_trip_seconds: 0.040,
    };
}

/// Why a text names no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// There is no comma, or more than one.
    #[error("expected BANDWIDTH,ROUNDTRIP such as 1gbit,10ms")]
    Parts,
    /// Before the comma.
    #[error("expected a bandwidth such as 1gbit, 200mbit or 25MB/s, found \"{0}\"")]
    Bandwidth(String),
    /// Behind it.
    #[error("expected a round trip such as 10ms, 0.5ms or 1s, found \"{0}\"")]
    RoundTrip(String),
}

/// Decimal units, as links are sold.
const BANDWIDTHS: [(&str, f64); 8] = [
    ("kbit", 1e3 / 8.0),
    ("mbit", 1e6 / 8.0),
    ("gbit", 1e9 / 8.0),
    ("tbit", 1e12 / 8.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("b", 1.0),
];
const TIMES: [(&str, f64); 4] = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];

impl FromStr for Link {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let (bandwidth, round_trip) = text.split_once(',').ok_or(LinkError::Parts)?;
        if round_trip.contains(',') {
            return Err(LinkError::Parts);
        }
        let lower = bandwidth.trim().to_ascii_lowercase();
        let per_second = lower.strip_suffix("/s").unwrap_or(&lower);
        let bytes_per_second = number(per_second, &BANDWIDTHS)
            .filter(|&value| value > 0.0)
            .ok_or_else(|| LinkError::Bandwidth(bandwidth.trim().to_owned()))?;
        let time = round_trip.trim().to_ascii_lowercase();
        let round_trip_seconds = number(&time, &TIMES)
            .ok_or_else(|| LinkError::RoundTrip(round_trip.trim().to_owned()))?;
        Ok(Self {
            bytes_per_second,
            round_trip_seconds,
        })
    }
}

/// A finite number of 0 or more with one of the units.
fn number(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (value, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    let value = value.parse::<f64>().ok()? * factor;
    value.is_finite().then_some(value)
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes_per_second / 1e6;
        let milliseconds = self.round_trip_seconds * 1e3;
        write!(f, "{megabytes} MB/s, {milliseconds} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_units() {
        let check = |text: &str, bytes_per_second, round_trip_seconds| {
            let expected = Link {
                bytes_per_second,
                round_trip_seconds,
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        };
        check("1gbit,10ms", 125e6, 0.010);
        check("200Mbit/s, 40ms", 25e6, 0.040);
        check("25MB/s,1s", 25e6, 1.0);
        check("1.5kB,0us", 1500.0, 0.0);
        assert_eq!(Link::SLOW.to_string(), "25 MB/s, 40 ms");
    }

    #[test]
    fn what_is_no_link_is_named() {
        let check = |text: &str, message: &str| {
            let error = text.parse::<Link>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        };
        check("1gbit", "BANDWIDTH,ROUNDTRIP");
        check("1gbit,1ms,2ms", "BANDWIDTH,ROUNDTRIP");
        for bad in [
            "0gbit",
            "1",
            "gbit",
            "1qbit",
            "-1gbit",
            "1e400gbit",
            "1..2mb",
        ] {
            check(&format!("{bad},1ms"), "bandwidth");
        }
        for bad in ["1", "ms", "-1ms", "1min", ""] {
            check(&format!("1gbit,{bad}"), "round trip");
        }
    }
}
