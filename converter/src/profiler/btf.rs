//! Offsets of structure members in the running kernel, from its BTF
//! (<https://docs.kernel.org/bpf/btf.html>).
//!
//! Enters: the bytes of `/sys/kernel/btf/vmlinux`. Leaves: byte offsets of members. Pure; no input
//! panics or makes it loop.

use zerocopy::byteorder::{NativeEndian, U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const MAGIC: u16 = 0xeb9f;
/// Structures without a name are searched to this depth.
const MAX_DEPTH: u32 = 8;

/// The kernel's BTF cannot be parsed, or lacks a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not BTF, or of another byte order.
    #[error("no BTF header")]
    Header,
    /// A section or type runs past the end, or the type is of an unknown kind.
    #[error("malformed BTF type {id}")]
    Type {
        /// The type's number.
        id: u32,
    },
    /// No structure of that name has that member.
    #[error("no member {member} in struct {structure}")]
    NoMember {
        /// The structure.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
struct Header {
    magic: U16<NativeEndian>,
    version: u8,
    flags: u8,
    header_len: U32<NativeEndian>,
    types_offset: U32<NativeEndian>,
    types_len: U32<NativeEndian>,
    strings_offset: U32<NativeEndian>,
    strings_len: U32<NativeEndian>,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
struct TypeHeader {
    name: U32<NativeEndian>,
    /// Bits 0–15 count the elements, 24–28 are the kind, 31 says that members may be bit fields.
    info: U32<NativeEndian>,
    size_or_type: U32<NativeEndian>,
}

impl TypeHeader {
    fn kind(&self) -> u32 {
        self.info.get() >> 24 & 31
    }

    fn elements(&self) -> usize {
        (self.info.get() & 0xffff) as usize
    }
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
struct Member {
    name: U32<NativeEndian>,
    type_id: U32<NativeEndian>,
    offset: U32<NativeEndian>,
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// A kernel's types.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where type `id` begins in `types`; type 0 is void.
    starts: Vec<u32>,
}

impl<'a> Btf<'a> {
    /// Parses a kernel's BTF. Takes about 10 ms for 5 MB.
    ///
    /// # Errors
    /// [`BtfError::Header`], [`BtfError::Type`].
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let (header, _) = Header::ref_from_prefix(bytes).map_err(|_| BtfError::Header)?;
        if header.magic.get() != MAGIC || header.version != 1 {
            return Err(BtfError::Header);
        }
        let section = |offset: u32, len: u32| {
            let start = u64::from(header.header_len.get()) + u64::from(offset);
            let range =
                usize::try_from(start).ok()?..usize::try_from(start + u64::from(len)).ok()?;
            bytes.get(range)
        };
        let types = section(header.types_offset.get(), header.types_len.get());
        let strings = section(header.strings_offset.get(), header.strings_len.get());
        let (Some(types), Some(strings)) = (types, strings) else {
            return Err(BtfError::Header);
        };
        let starts = index_types(types)?;
        Ok(Self {
            types,
            strings,
            starts,
        })
    }

    /// Offset in bytes of `member` in `struct structure`. Members of structures and unions without
    /// a name count as members of what holds them.
    ///
    /// # Errors
    /// [`BtfError::NoMember`], also for a bit field; [`BtfError::Type`].
    pub(super) fn member_offset_bytes(
        &self,
        structure: &'static str,
        member: &'static str,
    ) -> Result<u32, BtfError> {
        match self.member_offset_bits(structure, member)? {
            bits if bits % 8 == 0 => Ok(bits / 8),
            _ => Err(BtfError::NoMember { structure, member }),
        }
    }

    /// As [`member_offset_bytes`](Self::member_offset_bytes), in bits: also for a bit field.
    ///
    /// # Errors
    /// [`BtfError::NoMember`], [`BtfError::Type`].
    pub(super) fn member_offset_bits(
        &self,
        structure: &'static str,
        member: &'static str,
    ) -> Result<u32, BtfError> {
        for id in 1..self.starts.len() as u32 {
            let header = self.header(id)?;
            if header.kind() == KIND_STRUCT
                && self.is_named(header.name.get(), structure)
                && let Some(bits) = self.find_member(id, member, 0)?
            {
                return Ok(bits);
            }
        }
        Err(BtfError::NoMember { structure, member })
    }

    /// Offset in bits of `member` in type `id`.
    fn find_member(&self, id: u32, member: &str, depth: u32) -> Result<Option<u32>, BtfError> {
        let header = self.header(id)?;
        if !matches!(header.kind(), KIND_STRUCT | KIND_UNION) || depth > MAX_DEPTH {
            return Ok(None);
        }
        let has_bit_fields = header.info.get() >> 31 != 0;
        for found in self.members(id, header)? {
            let offset = found.offset.get();
            let offset = if has_bit_fields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            if self.is_named(found.name.get(), member) {
                return Ok(Some(offset));
            }
            if found.name.get() == 0
                && let Some(inner) = self.find_member(found.type_id.get(), member, depth + 1)?
            {
                return Ok(offset.checked_add(inner));
            }
        }
        Ok(None)
    }

    fn header(&self, id: u32) -> Result<&'a TypeHeader, BtfError> {
        let error = BtfError::Type { id };
        let start = *self.starts.get(id as usize).ok_or_else(|| error.clone())?;
        let bytes = self
            .types
            .get(start as usize..)
            .ok_or_else(|| error.clone())?;
        // Type 0 has no description.
        if id == 0 {
            return Err(error);
        }
        TypeHeader::ref_from_prefix(bytes)
            .map(|(header, _)| header)
            .map_err(|_| error)
    }

    fn members(&self, id: u32, header: &TypeHeader) -> Result<&'a [Member], BtfError> {
        let start = self.starts.get(id as usize).copied().unwrap_or(0) as usize;
        let bytes = self
            .types
            .get(start + size_of::<TypeHeader>()..)
            .unwrap_or(&[]);
        <[Member]>::ref_from_prefix_with_elems(bytes, header.elements())
            .map(|(members, _)| members)
            .map_err(|_| BtfError::Type { id })
    }

    fn is_named(&self, name: u32, expected: &str) -> bool {
        let name = self.strings.get(name as usize..).unwrap_or(&[]);
        name.strip_prefix(expected.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Where every type begins.
fn index_types(types: &[u8]) -> Result<Vec<u32>, BtfError> {
    let mut starts = vec![0];
    let mut start = 0;
    while start < types.len() {
        let error = BtfError::Type {
            id: starts.len() as u32,
        };
        let (header, _) =
            TypeHeader::ref_from_prefix(&types[start..]).map_err(|_| error.clone())?;
        let elements = header.elements();
        let behind = match header.kind() {
            // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
            2 | 7..=12 | 16 | 18 => 0,
            // Integer, variable, declaration tag.
            1 | 14 | 17 => 4,
            // Array.
            3 => 12,
            KIND_STRUCT | KIND_UNION | 15 | 19 => elements * 12,
            // Enumeration, function prototype.
            6 | 13 => elements * 8,
            _ => return Err(error),
        };
        starts.push(u32::try_from(start).map_err(|_| error)?);
        start += size_of::<TypeHeader>() + behind;
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct file { struct { u32 :3; inner *f_inode @ 64 }; int flag:1 }` and friends.
    fn sample() -> Vec<u8> {
        let strings = b"\0file\0f_inode\0flag\0other\0";
        let word = |words: &[u32]| {
            words
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect::<Vec<_>>()
        };
        let types = [
            word(&[0, 1 << 24, 4, 32]),            // 1: int
            word(&[0, 2 << 24, 1]),                // 2: int *
            word(&[0, 4 << 24 | 1, 16, 6, 2, 64]), // 3: { f_inode }
            word(&[1, 7 << 24, 0]),                // 4: fwd file
            word(&[1, 4 << 24 | 1 << 31 | 2, 32, 14, 1, 1 << 24 | 3, 0, 3, 128]), // 5: file
            word(&[19, 4 << 24 | 1, 4, 0, 6, 0]),  // 6: other, recursive
        ]
        .concat();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend(word(&[
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ]));
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_unnamed_structures() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member_offset_bytes("file", "f_inode"), Ok(24));
        let missing = |structure, member| {
            let error = BtfError::NoMember { structure, member };
            assert_eq!(btf.member_offset_bytes(structure, member), Err(error));
        };
        missing("file", "flag");
        missing("file", "f_ino");
        missing("fil", "f_inode");
        missing("other", "f_inode");
    }

    #[test]
    fn cut_or_foreign_bytes_are_errors() {
        let bytes = sample();
        assert_eq!(Btf::parse(&[]).unwrap_err(), BtfError::Header);
        assert_eq!(Btf::parse(&bytes[2..]).unwrap_err(), BtfError::Header);
        for len in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn the_running_kernel_is_understood() {
        let bytes = match std::fs::read("/sys/kernel/btf/vmlinux") {
            Ok(bytes) => bytes,
            Err(error) => {
                use std::io::Write;
                let mut stderr = std::io::stderr();
                let test = "the_running_kernel_is_understood";
                writeln!(stderr, "skipped: {test}: kernel BTF: {error}").unwrap();
                return;
            }
        };
        let btf = Btf::parse(&bytes).unwrap();
        assert!(btf.member_offset_bytes("task_struct", "files").unwrap() > 0);
        assert!(btf.member_offset_bytes("mm_struct", "exe_file").unwrap() > 0);
    }

    proptest::proptest! {
        #[test]
        fn no_damage_panics(position in 0_usize..240, value: u8) {
            let mut bytes = sample();
            let position = position % bytes.len();
            bytes[position] = value;
            if let Ok(btf) = Btf::parse(&bytes) {
                let _ = btf.member_offset_bytes("file", "f_inode");
                let _ = btf.member_offset_bytes("other", "f_inode");
            }
        }
    }
}
