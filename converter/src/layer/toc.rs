//! The TOC's JSON (eStargz specification, "TOC"). Pure: rows in, bytes out, and back.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::image::Digest;
use crate::layer::entry::{Entry, EntryKind, ScannedLayer, Timestamp};
use crate::layer::plan::RowSource;

/// The whole document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Toc<'a> {
    /// Always 1.
    pub version: u32,
    /// Rows in order.
    #[serde(borrow)]
    pub entries: Vec<TocEntry<'a>>,
}

/// One row; fields that are empty or zero are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct TocEntry<'a> {
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    #[serde(skip_serializing_if = "is_zero")]
    pub size: u64,
    #[serde(skip_serializing_if = "str::is_empty", borrow)]
    pub modtime: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty", borrow)]
    pub link_name: Cow<'a, str>,
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub gid: u64,
    #[serde(skip_serializing_if = "str::is_empty", borrow)]
    pub user_name: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty", borrow)]
    pub group_name: Cow<'a, str>,
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub inner_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_digest: Option<Digest>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The row's type as the TOC names it.
pub fn type_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Regular => "reg",
        EntryKind::Hardlink => "hardlink",
        EntryKind::Symlink => "symlink",
        EntryKind::CharDevice => "char",
        EntryKind::BlockDevice => "block",
        EntryKind::Directory => "dir",
        EntryKind::Fifo => "fifo",
    }
}

/// Owner names stand only in the first row of an id, and where they change; readers inherit them.
#[derive(Default)]
pub struct OwnerNames<'a> {
    users: HashMap<u32, &'a str>,
    groups: HashMap<u32, &'a str>,
}

impl<'a> OwnerNames<'a> {
    fn changed(seen: &mut HashMap<u32, &'a str>, id: u32, name: &'a str) -> Cow<'a, str> {
        if name.is_empty() || seen.insert(id, name) == Some(name) {
            return Cow::Borrowed("");
        }
        Cow::Borrowed(name)
    }
}

/// The first row of what a plan has in its TOC, without offsets and digests.
pub fn first_row<'a>(
    layer: &'a ScannedLayer,
    source: RowSource,
    names: &mut OwnerNames<'a>,
) -> TocEntry<'a> {
    match source {
        RowSource::Entry(index) => entry_row(&layer.entries[index as usize], names),
        RowSource::Landmark(name) => TocEntry {
            name: name.into(),
            kind: "reg".into(),
            size: 1,
            ..TocEntry::default()
        },
    }
}

/// The row of `entry`, without offsets and digests.
pub fn entry_row<'a>(entry: &'a Entry, names: &mut OwnerNames<'a>) -> TocEntry<'a> {
    TocEntry {
        name: go_string(&entry.name),
        kind: Cow::Borrowed(type_name(entry.kind)),
        size: entry.size_bytes,
        modtime: rfc3339(entry.mtime).into(),
        link_name: go_string(&entry.link_name),
        mode: u64::from(entry.mode),
        uid: u64::from(entry.uid),
        gid: u64::from(entry.gid),
        user_name: OwnerNames::changed(&mut names.users, entry.uid, &entry.user_name),
        group_name: OwnerNames::changed(&mut names.groups, entry.gid, &entry.group_name),
        dev_major: u64::from(entry.dev_major),
        dev_minor: u64::from(entry.dev_minor),
        xattrs: entry
            .xattrs
            .iter()
            .map(|(name, value)| {
                let value = base64::engine::general_purpose::STANDARD.encode(value);
                (go_string(name).into_owned(), value)
            })
            .collect(),
        ..TocEntry::default()
    }
}

/// Text as Go's encoding/json writes it: every byte that is not UTF-8 becomes one U+FFFD.
pub fn go_string(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut text = String::with_capacity(bytes.len() + 8);
            for chunk in bytes.utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
            }
            Cow::Owned(text)
        }
    }
}

/// RFC 3339 in UTC, rounded to the nearest second; empty for 1970-01-01T00:00:00Z itself.
pub fn rfc3339(time: Timestamp) -> String {
    if time.secs == 0 {
        return String::new();
    }
    let secs = time
        .secs
        .saturating_add(i64::from(time.nanos >= 500_000_000));
    let (days, second) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days since 1970 to a date of the proleptic Gregorian calendar, computed over eras of 400 years
/// that begin on the first of March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn row() -> impl Strategy<Value = TocEntry<'static>> {
        let text = || ".{0,12}".prop_map(Cow::<str>::Owned);
        let digest = || prop::option::of(any::<u64>().prop_map(|n| Digest::of(&n.to_le_bytes())));
        let numbers = vec(prop_oneof![Just(0), any::<u64>()], 10);
        let xattrs = btree_map(".{1,6}", "[A-Za-z0-9+/]{0,8}", 0..3);
        (vec(text(), 6), numbers, xattrs, digest(), digest()).prop_map(
            |(texts, numbers, xattrs, digest, chunk_digest)| {
                let mut texts = texts.into_iter();
                let mut text = || texts.next().unwrap_or_default();
                TocEntry {
                    name: text(),
                    kind: text(),
                    size: numbers[0],
                    modtime: text(),
                    link_name: text(),
                    mode: numbers[1],
                    uid: numbers[2],
                    gid: numbers[3],
                    user_name: text(),
                    group_name: text(),
                    offset: numbers[4],
                    inner_offset: numbers[5],
                    dev_major: numbers[6],
                    dev_minor: numbers[7],
                    xattrs,
                    digest,
                    chunk_offset: numbers[8],
                    chunk_size: numbers[9],
                    chunk_digest,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn documents_round_trip(entries in vec(row(), 0..5)) {
            let toc = Toc { version: 1, entries };
            let json = serde_json::to_vec(&toc).unwrap();
            let again: Toc<'_> = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(again.version, 1);
            prop_assert_eq!(again.entries, toc.entries);
        }

        /// As Go decodes what it encoded: never fewer characters than bytes that are no text.
        #[test]
        fn any_bytes_become_text(bytes: Vec<u8>) {
            let text = go_string(&bytes);
            match std::str::from_utf8(&bytes) {
                Ok(same) => prop_assert_eq!(text, same),
                Err(_) => prop_assert!(text.contains(char::REPLACEMENT_CHARACTER)),
            }
        }

        /// The date is the one from which the seconds are counted back.
        #[test]
        fn dates_count_back(secs in -60_000_000_000_i64..200_000_000_000) {
            prop_assume!(secs != 0);
            let text = rfc3339(Timestamp { secs, nanos: 0 });
            let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
            let (year, month, day) = (number(0..4), number(5..7), number(8..10));
            let leap = |year: i64| year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
            let lengths = [31, 28 + i64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            let before = lengths[..usize::try_from(month).unwrap() - 1].iter().sum::<i64>();
            prop_assert!(day >= 1 && day <= lengths[usize::try_from(month).unwrap() - 1]);
            let leaps = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
            let days = (year - 1970) * 365 + leaps(year - 1) - leaps(1969) + before + day - 1;
            let clock = number(11..13) * 3600 + number(14..16) * 60 + number(17..19);
            prop_assert_eq!(days * 86_400 + clock, secs);
        }
    }

    #[test]
    fn times_are_written_as_go_does() {
        let check = |secs, nanos, text: &str| {
            assert_eq!(rfc3339(Timestamp { secs, nanos }), text);
        };
        check(0, 0, "");
        check(1, 0, "1970-01-01T00:00:01Z");
        check(1_700_000_000, 499_999_999, "2023-11-14T22:13:20Z");
        check(1_700_000_000, 500_000_000, "2023-11-14T22:13:21Z");
        check(951_782_400, 0, "2000-02-29T00:00:00Z");
        check(-1, 0, "1969-12-31T23:59:59Z");
        check(4_107_542_399, 0, "2100-02-28T23:59:59Z");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_one_by_one() {
        assert_eq!(go_string(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
        assert_eq!(go_string(b"\xe2\x82"), "\u{fffd}\u{fffd}");
    }
}
