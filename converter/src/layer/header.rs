//! Tar headers that esgz itself writes: landmarks, the TOC, and entries whose source header cannot
//! stand in the output. Pure.

use crate::layer::entry::Entry;
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

/// Whether the entry's own header blocks would describe the output wrongly: a sparse file is
/// written out in full.
pub fn must_be_rewritten(entry: &Entry) -> bool {
    entry.sparse.is_some()
}

/// PAX records and a ustar header that describe `entry` completely, its contents in full.
pub fn rewritten(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| records.extend(pax_record(key, value));
    // Every field that could be too wide for ustar is given as a record: no case distinction.
    record(b"path", &entry.name);
    record(b"size", entry.size_bytes.to_string().as_bytes());
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
    let _ = extension.set_path("PaxHeaders.0/sparse");
    extension.set_mode(0o644);
    extension.set_uid(0);
    extension.set_gid(0);
    extension.set_mtime(0);
    extension.set_size(records.len() as u64);
    extension.set_cksum();

    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    // Readers take the name from the record; this one is for those that know only ustar.
    let short: Vec<u8> = entry.name.iter().copied().take(100).collect();
    header.as_mut_bytes()[..short.len()].copy_from_slice(&short);
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(u64::from(entry.uid.min(0o777_7777)));
    header.set_gid(u64::from(entry.gid.min(0o777_7777)));
    header.set_mtime(
        u64::try_from(entry.mtime.secs)
            .unwrap_or(0)
            .min(0o777_7777_7777),
    );
    header.set_size(entry.size_bytes.min(0o777_7777_7777));
    header.set_cksum();

    let mut bytes = extension.as_bytes().to_vec();
    bytes.extend_from_slice(&records);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    bytes.extend_from_slice(header.as_bytes());
    bytes
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
