//! PAX extended header records (POSIX.1-2001, pax, "Extended Header"). Pure.

use std::collections::BTreeMap;

use crate::layer::entry::{Timestamp, Xattr};

/// Key and value pairs; an empty value takes a key's effect away.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU.sparse.offset and GNU.sparse.numbytes of format 0.0 are repeated, in order.
    pub(super) sparse_stretches: Vec<Vec<u8>>,
}

impl Records {
    pub(super) fn merge(&mut self, newer: Self) {
        self.values.extend(newer.values);
        if !newer.sparse_stretches.is_empty() {
            self.sparse_stretches = newer.sparse_stretches;
        }
    }

    /// Keys and values together.
    pub(super) fn len_bytes(&self) -> u64 {
        let records = self.values.iter();
        records
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum()
    }

    pub(super) fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.values
            .get(key.as_bytes())
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.bytes(key)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    pub(super) fn xattrs(&self) -> Vec<Xattr> {
        const PREFIX: &[u8] = b"SCHILY.xattr.";
        self.values
            .range(PREFIX.to_vec()..)
            .take_while(|(key, _)| key.starts_with(PREFIX))
            .filter(|(key, _)| key.len() > PREFIX.len())
            .map(|(key, value)| (key[PREFIX.len()..].into(), value.as_slice().into()))
            .collect()
    }
}

/// Parses `LEN KEY=VALUE\n` records.
pub(super) fn parse(mut body: &[u8]) -> Result<Records, &'static str> {
    const BAD: &str = "bad PAX record";
    let mut records = Records::default();
    while !body.is_empty() {
        // Some writers pad the body with zeros.
        if body.iter().all(|&b| b == 0) {
            break;
        }
        let space = body.iter().take(20).position(|&b| b == b' ').ok_or(BAD)?;
        let len: usize = std::str::from_utf8(&body[..space])
            .ok()
            .and_then(|t| t.parse().ok())
            .ok_or(BAD)?;
        let record = body.get(space + 1..len).ok_or(BAD)?;
        body = &body[len..];
        let record = record.strip_suffix(b"\n").ok_or(BAD)?;
        let equals = record.iter().position(|&b| b == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"" => return Err(BAD),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // They must alternate, beginning with an offset.
                let is_length = records.sparse_stretches.len() % 2 == 1;
                if is_length != (key == b"GNU.sparse.numbytes") {
                    return Err("bad sparse map");
                }
                records.sparse_stretches.push(value.to_vec());
            }
            // A name with a NUL in it would be cut by the kernel.
            b"path" | b"linkpath" | b"uname" | b"gname" if value.contains(&0) => return Err(BAD),
            _ => {
                records.values.insert(key.to_vec(), value.to_vec());
            }
        }
    }
    Ok(records)
}

/// `1700000000.25`, negative and without fraction too; digits past nanoseconds are dropped.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanos = 0_u32;
    for place in 0..9 {
        let digit = fraction
            .as_bytes()
            .get(place)
            .map_or(0, |b| u32::from(b - b'0'));
        nanos = nanos * 10 + digit;
    }
    if negative && nanos > 0 {
        return Some(Timestamp {
            secs: secs.checked_sub(1)?,
            nanos: 1_000_000_000 - nanos,
        });
    }
    Some(Timestamp { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_parsed_and_bad_ones_refused() {
        let records = parse(b"12 path=abc\n9 size=5\n27 SCHILY.xattr.user.a=b=\0\n").unwrap();
        assert_eq!(records.bytes("path"), Some(b"abc".as_slice()));
        assert_eq!(records.text("size"), Some("5"));
        assert_eq!(
            records.xattrs(),
            vec![(b"user.a"[..].into(), b"b=\0"[..].into())]
        );
        for bad in [
            b"12 path=abc" as &[u8],
            b"99 path=abc\n",
            b"x path=abc\n",
            b"12 path=a\0c\n",
            b"8 =abcd\n",
            b"4 a\n",
            b"0 a=\n",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn timestamps_round_down() {
        let check = |text, secs, nanos| {
            assert_eq!(timestamp(text), Some(Timestamp { secs, nanos }), "{text}");
        };
        check("5", 5, 0);
        check("5.25", 5, 250_000_000);
        check("-5", -5, 0);
        check("-0.5", -1, 500_000_000);
        check("-5.75", -6, 250_000_000);
        check("1.1234567899", 1, 123_456_789);
        for bad in ["", ".5", "a", "1.x", "1.-5"] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }
}
