//! Tar archives byte by byte, with everything that writers in the field have put into them.

use crate::header::{Header, decimal_time, encode_records, gnu_long, push_padded};

/// What kind of file an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// Another name of an earlier entry.
    Hardlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A PAX global header; its records are the entry's [`Entry::records`].
    Global,
}

/// How numbers and names that do not fit the header are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// PAX records.
    #[default]
    Pax,
    /// GNU: `L` and `K` entries for names, base-256 for numbers; no extended attributes.
    Gnu,
    /// As PAX, but a name of over 100 bytes is split over the header's prefix and name fields.
    Ustar,
}

/// How the holes of a sparse file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseFormat {
    /// GNU's typeflag `S`, with extension blocks when there are more than four segments.
    GnuOld,
    /// PAX, version 1.0: the map stands in front of the data.
    Pax10,
}

/// The holes of a sparse file.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// How they are written.
    pub format: SparseFormat,
    /// Offset and bytes of every stored segment, ascending.
    pub segments: Vec<(u64, Vec<u8>)>,
    /// Size in bytes of the file with its holes.
    pub size_bytes: u64,
}

/// One entry of an archive to be.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Kind of file.
    pub kind: Kind,
    /// Name as it is to stand in the archive.
    pub name: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Mode field.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Owner's name.
    pub user: String,
    /// Group's name.
    pub group: String,
    /// Modification time: seconds (rounded down) and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Contents of a regular file without holes.
    pub contents: Vec<u8>,
    /// Set for a sparse file.
    pub sparse: Option<Sparse>,
    /// Further PAX records, written as they are.
    pub records: Vec<(String, Vec<u8>)>,
    /// How what does not fit is written.
    pub dialect: Dialect,
}

impl Entry {
    /// An entry of `kind` called `name`, mode 0644 (0755 for a directory), owned by root.
    pub fn new(kind: Kind, name: impl AsRef<[u8]>) -> Self {
        let mode = if kind == Kind::Dir { 0o755 } else { 0o644 };
        Self {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode,
            uid: 0,
            gid: 0,
            user: String::new(),
            group: String::new(),
            mtime: (1_700_000_000, 0),
            device: (0, 0),
            contents: Vec::new(),
            sparse: None,
            records: Vec::new(),
            dialect: Dialect::Pax,
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, contents: impl AsRef<[u8]>) -> Self {
        Self {
            contents: contents.as_ref().to_vec(),
            ..Self::new(Kind::File, name)
        }
    }

    /// A directory.
    pub fn dir(name: impl AsRef<[u8]>) -> Self {
        Self::new(Kind::Dir, name)
    }

    /// A symbolic link to `target`.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            mode: 0o777,
            ..Self::new(Kind::Symlink, name)
        }
    }

    /// Another name of the entry `target`.
    pub fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(Kind::Hardlink, name)
        }
    }

    /// A device of `kind`.
    pub fn device(kind: Kind, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(kind, name)
        }
    }

    /// A sparse file.
    pub fn sparse(name: impl AsRef<[u8]>, sparse: Sparse) -> Self {
        let dialect = match sparse.format {
            SparseFormat::GnuOld => Dialect::Gnu,
            SparseFormat::Pax10 => Dialect::Pax,
        };
        Self {
            sparse: Some(sparse),
            dialect,
            ..Self::new(Kind::File, name)
        }
    }

    /// With another mode.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With another owner and group.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    /// With owner's and group's names.
    #[must_use]
    pub fn owner_names(self, user: &str, group: &str) -> Self {
        Self {
            user: user.to_owned(),
            group: group.to_owned(),
            ..self
        }
    }

    /// With another modification time.
    #[must_use]
    pub fn mtime(self, secs: i64, nanos: u32) -> Self {
        Self {
            mtime: (secs, nanos),
            ..self
        }
    }

    /// With an extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(&format!("SCHILY.xattr.{name}"), value)
    }

    /// With a PAX record.
    #[must_use]
    pub fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// With another way to write what does not fit the header.
    #[must_use]
    pub fn dialect(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// The entry's headers and payload, padded to whole blocks.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut records = self.records.clone();
        let mut header = Header::of(self);
        let mut payload = self.contents.clone();
        if let Some(sparse) = &self.sparse {
            payload = crate::sparse::write(sparse, &self.name, &mut header, &mut records);
        }
        match self.dialect {
            Dialect::Gnu => {
                header.set_magic(b"ustar  \0");
                if self.link.len() > 100 {
                    gnu_long(&mut bytes, b'K', &self.link);
                }
                if self.name.len() > 100 {
                    gnu_long(&mut bytes, b'L', &self.name);
                }
                header.number_base256(108..116, i128::from(self.uid));
                header.number_base256(116..124, i128::from(self.gid));
                header.number_base256(124..136, payload.len() as i128);
                header.number_base256(136..148, i128::from(self.mtime.0));
            }
            Dialect::Pax | Dialect::Ustar => {
                header.set_magic(b"ustar\x0000");
                self.overflow_records(&mut records);
                if self.dialect == Dialect::Ustar && self.name.len() > 100 {
                    header.split_name(&self.name);
                }
                header.number(108..116, self.uid);
                header.number(116..124, self.gid);
                header.number(124..136, payload.len() as u64);
                header.number(136..148, u64::try_from(self.mtime.0).unwrap_or(0));
            }
        }
        if self.kind == Kind::Global {
            payload = encode_records(&records);
            header.number(124..136, payload.len() as u64);
        } else if !records.is_empty() {
            let text = encode_records(&records);
            let mut extension = Header::named(b"PaxHeaders/entry", b'x');
            extension.set_magic(b"ustar\x0000");
            extension.number(124..136, text.len() as u64);
            bytes.extend(extension.finish());
            push_padded(&mut bytes, &text);
        }
        bytes.extend(header.finish());
        bytes.extend(header.extension);
        push_padded(&mut bytes, &payload);
        bytes
    }

    fn overflow_records(&self, records: &mut Vec<(String, Vec<u8>)>) {
        let mut add = |key: &str, value: Vec<u8>| records.push((key.to_owned(), value));
        if self.name.len() > 100 && self.sparse.is_none() && self.dialect == Dialect::Pax {
            add("path", self.name.clone());
        }
        if self.link.len() > 100 {
            add("linkpath", self.link.clone());
        }
        if self.uid >= 1 << 21 {
            add("uid", self.uid.to_string().into_bytes());
        }
        if self.gid >= 1 << 21 {
            add("gid", self.gid.to_string().into_bytes());
        }
        if self.mtime.0 < 0 || self.mtime.1 != 0 {
            add("mtime", decimal_time(self.mtime).into_bytes());
        }
    }
}

/// How an archive ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ending {
    /// Two zero blocks.
    #[default]
    Blocks,
    /// Zero blocks up to a multiple of 10 240 bytes, as GNU tar writes.
    Record,
    /// Nothing.
    None,
    /// Two zero blocks and then bytes that are no tar.
    Garbage,
}

/// A whole archive.
pub fn archive(entries: &[Entry], ending: Ending) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(Entry::encode).collect();
    match ending {
        Ending::Blocks => bytes.resize(bytes.len() + 1024, 0),
        Ending::Record => bytes.resize((bytes.len() + 1024).next_multiple_of(10_240), 0),
        Ending::None => {}
        Ending::Garbage => {
            bytes.resize(bytes.len() + 1024, 0);
            bytes.extend(b"this is not a tar header".repeat(50));
        }
    }
    bytes
}
