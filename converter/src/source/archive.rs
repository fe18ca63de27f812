//! Archives: tars that are read in place.
//!
//! A plain archive's members are found once and read at their offsets; a compressed one, or one that
//! is no regular file, is first unpacked to a file without a name in the scratch directory. Nothing
//! is extracted, so no member's name reaches the file system.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::EntryType;

use crate::blob::{Blob, ReadAt as _};
use crate::cancel::Cancel;
use crate::source::{OpenOptions, SourceError};

/// More members than any image has.
const MAX_MEMBERS: usize = 1 << 20;
/// A longer extension header, which holds a name, is an attack.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// More links in a row than this are a loop.
const MAX_LINKS: usize = 16;

/// An opened archive.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    bytes: Blob,
    /// By name, without `./` and the like. Of two members of a name the last counts.
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    File {
        offset_bytes: u64,
        len_bytes: u64,
    },
    /// Another member's name; `None` for one outside of the archive.
    Link(Option<String>),
}

impl Archive {
    /// Opens the archive and finds its members.
    ///
    /// # Errors
    /// When it cannot be read, is no tar, or ends too early.
    pub(super) fn open(
        path: &Path,
        options: &OpenOptions,
        cancel: &Cancel,
    ) -> Result<Self, SourceError> {
        let read_error = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(io::ErrorKind::IsADirectory.into()));
        }
        let mut stream = BufReader::with_capacity(1 << 20, &file);
        let compression = Compression::of(stream.fill_buf().map_err(read_error)?);
        let bytes = if metadata.is_file() && compression == Compression::None {
            Blob::of_file(file).map_err(read_error)?
        } else {
            unpack(path, stream, compression, options, cancel)?
        };
        let members = members(path, &bytes)?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            members,
        })
    }

    /// The archive's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The member of this name, or that a link of this name means; `None` if there is none.
    pub(super) fn member(&self, name: &str) -> Option<Blob> {
        let mut name = clean(name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                &Member::File {
                    offset_bytes,
                    len_bytes,
                } => return Some(self.bytes.part(offset_bytes, len_bytes)),
                Member::Link(target) => name.clone_from(target.as_ref()?),
            }
        }
        None
    }
}

/// How an archive or a layer is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    /// One that esgz does not read.
    Other(&'static str),
}

impl Compression {
    pub(super) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

fn unpack(
    path: &Path,
    stream: impl BufRead,
    compression: Compression,
    options: &OpenOptions,
    cancel: &Cancel,
) -> Result<Blob, SourceError> {
    let invalid = |reason: String| SourceError::Archive {
        path: path.to_owned(),
        reason,
    };
    let scratch_error = |source| SourceError::Unpack {
        path: path.to_owned(),
        scratch: options.scratch.clone(),
        source,
    };
    let mut stream: Box<dyn Read> = match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        Compression::Zstd => Box::new(
            zstd::Decoder::with_buffer(stream).map_err(|error| invalid(error.to_string()))?,
        ),
        Compression::Other(name) => {
            return Err(invalid(format!(
                "it is compressed with {name}; gzip and zstd can be read"
            )));
        }
    };
    let mut file = tempfile::tempfile_in(&options.scratch).map_err(scratch_error)?;
    let mut block = vec![0; 1 << 20];
    let mut len_bytes = 0;
    loop {
        cancel.check()?;
        let read = match stream.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(invalid(format!(
                    "{error} after {len_bytes} uncompressed bytes"
                )));
            }
        };
        len_bytes += read as u64;
        if len_bytes > options.max_unpacked_bytes {
            return Err(invalid(format!(
                "it is longer than {} bytes when decompressed",
                options.max_unpacked_bytes
            )));
        }
        file.write_all(&block[..read]).map_err(scratch_error)?;
    }
    Ok(Blob::in_file(Arc::new(file), 0, len_bytes))
}

fn members(path: &Path, bytes: &Blob) -> Result<HashMap<String, Member>, SourceError> {
    let invalid = |reason: String| SourceError::Archive {
        path: path.to_owned(),
        reason,
    };
    let not_tar = |error: io::Error| invalid(error.to_string());
    check_headers(path, bytes)?;
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(bytes.clone());
    for entry in archive.entries_with_seek().map_err(not_tar)? {
        let entry = entry.map_err(not_tar)?;
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(name) = clean(&raw) else {
            return Err(invalid(format!(
                "the member \"{}\" points out of it",
                shortened(&raw)
            )));
        };
        let link = || {
            let target = entry.link_name_bytes()?;
            Some(String::from_utf8_lossy(&target).into_owned())
        };
        let member = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => Member::File {
                offset_bytes: entry.raw_file_position(),
                len_bytes: entry.size(),
            },
            EntryType::Link => Member::Link(link().and_then(|target| clean(&target))),
            EntryType::Symlink => {
                Member::Link(link().and_then(|target| clean_relative(&name, &target)))
            }
            EntryType::GNUSparse => {
                return Err(invalid(format!(
                    "the member \"{}\" is a sparse file",
                    shortened(&raw)
                )));
            }
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// Goes over all headers without keeping anything: that the members lie within the archive, and that
/// names are no longer than names are.
fn check_headers(path: &Path, bytes: &Blob) -> Result<(), SourceError> {
    let invalid = |reason: String| SourceError::Archive {
        path: path.to_owned(),
        reason,
    };
    let mut archive = tar::Archive::new(bytes.clone());
    let entries = archive
        .entries_with_seek()
        .map_err(|error| invalid(error.to_string()))?;
    for (number, entry) in entries.raw(true).enumerate() {
        let entry = entry.map_err(|error| invalid(error.to_string()))?;
        let name = || shortened(&String::from_utf8_lossy(&entry.path_bytes()));
        let is_extension = matches!(
            entry.header().entry_type(),
            EntryType::XHeader
                | EntryType::XGlobalHeader
                | EntryType::GNULongName
                | EntryType::GNULongLink
        );
        let (start_bytes, size_bytes) = (entry.raw_file_position(), entry.size());
        if number >= MAX_MEMBERS {
            return Err(invalid(format!("it has more than {MAX_MEMBERS} members")));
        }
        if is_extension && size_bytes > MAX_HEADER_BYTES {
            return Err(invalid(format!(
                "the header at offset {start_bytes} is {size_bytes} bytes long"
            )));
        }
        if start_bytes
            .checked_add(size_bytes)
            .is_none_or(|end| end > bytes.len_bytes())
        {
            return Err(invalid(format!(
                "it ends at offset {}, within \"{}\", which has {size_bytes} bytes at offset {start_bytes}",
                bytes.len_bytes(),
                name()
            )));
        }
    }
    Ok(())
}

/// For messages.
fn shortened(name: &str) -> String {
    name.chars().take(200).collect()
}

/// A member's name without `.`, empty components and a leading `/`; `None` if it has a `..`.
fn clean(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// What the symlink `name` to `target` means; `None` if that is outside of the archive.
fn clean_relative(name: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
        parent.split('/').filter(|part| !part.is_empty()).collect()
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_within_the_archive() {
        let check = |name: &str, target: &str, expected: Option<&str>| {
            assert_eq!(
                clean_relative(name, target).as_deref(),
                expected,
                "{target}"
            );
        };
        check("a/layer.tar", "../b/layer.tar", Some("b/layer.tar"));
        check("a/layer.tar", "./c", Some("a/c"));
        check("layer.tar", "b", Some("b"));
        check("a/b/c", "/d", Some("d"));
        check("layer.tar", "../b", None);
        assert_eq!(clean("./a//b/"), Some("a/b".to_owned()));
        assert_eq!(clean("a/../b"), None);
    }
}
