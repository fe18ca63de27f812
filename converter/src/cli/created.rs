//! The time that an image says it was created at.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::layer::entry::Timestamp;
use crate::layer::toc::rfc3339;

/// A time in RFC 3339, as `--created` and `SOURCE_DATE_EPOCH` give it (the latter as seconds since
/// 1970: reproducible-builds.org, "SOURCE_DATE_EPOCH").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Created(pub(super) String);

/// The last second of the year 9999, the last that RFC 3339 can write.
const MAX_SECONDS: i64 = 253_402_300_799;

impl Created {
    /// Now, to the millisecond.
    pub(super) fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let secs = i64::try_from(now.as_secs()).unwrap_or(MAX_SECONDS);
        let second = rfc3339(Timestamp { secs, nanos: 0 });
        let millis = now.subsec_millis();
        Self(format!("{}.{millis:03}Z", second.trim_end_matches('Z')))
    }
}

impl FromStr for Created {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let secs = text.parse().ok().filter(|&secs| secs <= MAX_SECONDS);
            let secs = secs.ok_or_else(|| format!("{text} seconds are after the year 9999"))?;
            // The TOC writes no time for 0.
            let time = match secs {
                0 => "1970-01-01T00:00:00Z".to_owned(),
                secs => rfc3339(Timestamp { secs, nanos: 0 }),
            };
            return Ok(Self(time));
        }
        if is_rfc3339(text) {
            return Ok(Self(text.to_owned()));
        }
        Err("not a time such as 2026-01-02T03:04:05Z, and not seconds since 1970".to_owned())
    }
}

/// RFC 3339, 5.6, in the capital letters that Go's parser asks for. A leap second is not taken.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<u32> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let stands = |at: usize, byte: u8| bytes.get(at) == Some(&byte);
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else {
        return false;
    };
    let (Some(hour), Some(minute), Some(second)) = (number(11..13), number(14..16), number(17..19))
    else {
        return false;
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|&(at, byte)| stands(at, byte)) {
        return false;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    if day == 0 || day > days || hour > 23 || minute > 59 || second > 59 {
        return false;
    }
    let mut zone = 19;
    if stands(zone, b'.') {
        let digits = bytes[zone + 1..].iter();
        let digits = digits.take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        zone += 1 + digits;
    }
    match bytes.get(zone) {
        Some(b'Z') => bytes.len() == zone + 1,
        Some(b'+' | b'-') => {
            let (hours, minutes) = (number(zone + 1..zone + 3), number(zone + 4..zone + 6));
            bytes.len() == zone + 6
                && stands(zone + 3, b':')
                && hours.is_some_and(|hours| hours < 24)
                && minutes.is_some_and(|minutes| minutes < 60)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_rfc_3339() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse(), Ok(Created(expected.to_owned())));
        };
        check("0", "1970-01-01T00:00:00Z");
        check("1700000000", "2023-11-14T22:13:20Z");
        check("253402300799", "9999-12-31T23:59:59Z");
        for same in [
            "2026-01-02T03:04:05Z",
            "2024-02-29T23:59:59.123456789Z",
            "2026-01-02T03:04:05+05:30",
        ] {
            check(same, same);
        }
        for bad in [
            "",
            "-1",
            "yesterday",
            "253402300800",
            "99999999999999999999999",
            "2026-01-02",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05",
            "2026-13-02T03:04:05Z",
            "2025-02-29T03:04:05Z",
            "2026-01-02T24:04:05Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05Zx",
            "2026-01-02T03:04:05+5:30",
            "2026-01-0é",
        ] {
            assert!(bad.parse::<Created>().is_err(), "{bad}");
        }
    }
}
