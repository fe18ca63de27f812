//! Tar headers that esgz itself writes: landmarks, the TOC, and entries whose source header cannot
//! stand in the output. Pure.

use crate::layer::entry::{Entry, EntryKind};
use crate::layer::scan::tar::BLOCK_BYTES;

/// The header of a file that is none of the image's: name, type and size only.
pub fn plain_file(name: &str, size_bytes: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let fits = header.set_path(name);
    debug_assert!(fits.is_ok(), "{name}");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size_bytes);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// PAX records and a ustar header that describe `entry` completely, its contents in full. Stands in
/// the output where the source's own header blocks would be wrong: for a sparse file, which is
/// written out, and for an entry that is moved away from the global header it depends on.
pub fn rewritten(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| {
        if !value.is_empty() {
            records.extend(pax_record(key, value));
        }
    };
    // Every field that could be too wide for ustar is given as a record: no case distinction.
    record(b"path", &entry.name);
    record(b"linkpath", &entry.link_name);
    if entry.kind == EntryKind::Regular {
        record(b"size", entry.size_bytes.to_string().as_bytes());
    }
    record(b"uid", entry.uid.to_string().as_bytes());
    record(b"gid", entry.gid.to_string().as_bytes());
    record(b"uname", entry.user_name.as_bytes());
    record(b"gname", entry.group_name.as_bytes());
    record(b"mtime", decimal_time(entry).as_bytes());
    for (name, value) in &entry.xattrs {
        record(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    let mut extension = tar::Header::new_ustar();
    extension.set_entry_type(tar::EntryType::XHeader);
    let fits = extension.set_path("PaxHeaders.0/esgz");
    debug_assert!(fits.is_ok());
    extension.set_mode(0o644);
    extension.set_uid(0);
    extension.set_gid(0);
    extension.set_mtime(0);
    extension.set_size(records.len() as u64);
    extension.set_cksum();

    let mut header = tar::Header::new_ustar();
    header.set_entry_type(entry_type(entry.kind));
    // Readers take names from the records; these are for those that know only ustar.
    let mut text = |at: usize, text: &[u8]| {
        let short = &text[..text.len().min(100)];
        header.as_mut_bytes()[at..at + short.len()].copy_from_slice(short);
    };
    text(0, &entry.name);
    text(157, &entry.link_name);
    header.set_mode(entry.mode & 0o777_7777);
    header.set_uid(u64::from(entry.uid.min(0o777_7777)));
    header.set_gid(u64::from(entry.gid.min(0o777_7777)));
    header.set_mtime(
        u64::try_from(entry.mtime.secs)
            .unwrap_or(0)
            .min(0o777_7777_7777),
    );
    header.set_size(entry.size_bytes.min(0o777_7777_7777));
    if matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
        // Octal digits of 24 bits always fit.
        let _ = header.set_device_major(entry.dev_major.min(0o777_7777));
        let _ = header.set_device_minor(entry.dev_minor.min(0o777_7777));
    }
    header.set_cksum();

    let mut bytes = extension.as_bytes().to_vec();
    bytes.extend_from_slice(&records);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

fn entry_type(kind: EntryKind) -> tar::EntryType {
    match kind {
        EntryKind::Regular => tar::EntryType::Regular,
        EntryKind::Hardlink => tar::EntryType::Link,
        EntryKind::Symlink => tar::EntryType::Symlink,
        EntryKind::CharDevice => tar::EntryType::Char,
        EntryKind::BlockDevice => tar::EntryType::Block,
        EntryKind::Directory => tar::EntryType::Directory,
        EntryKind::Fifo => tar::EntryType::Fifo,
    }
}

fn decimal_time(entry: &Entry) -> String {
    let time = entry.mtime;
    if time.nanos == 0 {
        return time.secs.to_string();
    }
    // Seconds were rounded down: before 1970 the fraction counts towards zero again.
    if time.secs < 0 {
        let nanos = 1_000_000_000 - time.nanos;
        let secs = time.secs + 1;
        let sign = if secs == 0 { "-" } else { "" };
        return format!("{sign}{secs}.{nanos:09}");
    }
    format!("{}.{:09}", time.secs, time.nanos)
}

/// `LEN KEY=VALUE\n`, where LEN counts itself.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len = len.to_string().len() + rest;
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::spool::Extent;

    /// An entry of every kind, read back from its rewritten header, says the same.
    #[test]
    fn a_rewritten_header_says_the_same() {
        let long = "d/".repeat(80) + "name";
        for (kind, link, size) in [
            (EntryKind::Regular, "", 0o7777_7777_7777_u64),
            (EntryKind::Hardlink, long.as_str(), 0),
            (EntryKind::Symlink, "../x", 0),
            (EntryKind::CharDevice, "", 0),
            (EntryKind::Directory, "", 0),
            (EntryKind::Fifo, "", 0),
        ] {
            let entry = Entry {
                name: long.as_bytes().into(),
                kind,
                link_name: link.as_bytes().into(),
                mode: 0o4755,
                uid: u32::MAX,
                gid: 7,
                user_name: "u".into(),
                group_name: "".into(),
                mtime: crate::layer::entry::Timestamp {
                    secs: -3,
                    nanos: 250_000_000,
                },
                dev_major: if kind == EntryKind::CharDevice { 5 } else { 0 },
                dev_minor: if kind == EntryKind::CharDevice { 9 } else { 0 },
                xattrs: vec![(b"user.a"[..].into(), b"\0=\n"[..].into())],
                size_bytes: size,
                header: Extent::default(),
                payload: Extent::default(),
                sparse: None,
            };
            let bytes = rewritten(&entry);
            let mut again = crate::layer::scan::tar::read_one_header(&bytes).unwrap();
            again.header = Extent::default();
            again.payload = Extent::default();
            assert_eq!(format!("{again:?}"), format!("{entry:?}"));
        }
    }

    #[test]
    fn records_count_their_own_length() {
        assert_eq!(pax_record(b"path", b"abc"), b"12 path=abc\n");
        let long = pax_record(b"k", &[b'v'; 93]);
        assert_eq!(long.len(), 99);
        assert!(long.starts_with(b"99 k="));
        let longer = pax_record(b"k", &[b'v'; 94]);
        assert!(longer.starts_with(format!("{} k=", longer.len()).as_bytes()));
    }
}
