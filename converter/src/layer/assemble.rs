//! Assemble: finished members in order, TOC and footer out.
//!
//! Hashes the members, unless that was done before; nothing is inflated again.

use libdeflater::Compressor;

use crate::image::{BlobId, Digest};
use crate::layer::digests::MemberDigests;
use crate::layer::encode::EncodedGroup;
use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::footer::footer;
use crate::layer::header;
use crate::layer::plan::{LayerPlan, RowSource, TOC_NAME};
use crate::layer::scan::tar::BLOCK_BYTES;
use crate::layer::toc::{OwnerNames, TocEntry, first_row};

/// A written layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// Digest of the whole uncompressed stream, the TOC's tar entry included.
    pub diff_id: Digest,
    /// Digest of the TOC's JSON; `None` for a plain tar, which has neither members nor landmark.
    pub toc_digest: Option<Digest>,
    /// Length of the whole uncompressed stream, the TOC's tar entry included.
    pub uncompressed_bytes: u64,
    /// Where the TOC member starts.
    pub toc_offset_bytes: u64,
    /// Where the prefetch landmark's member starts: a reader prefetches all before it.
    pub prefetch_bytes: u64,
    /// Gzip members, without TOC and footer.
    pub members: u64,
    /// Uncompressed bytes whose compressed form was copied from the source.
    pub copied_bytes: u64,
}

/// Where a member came to lie.
struct Placed {
    /// Of its gzip member.
    offset_bytes: u64,
    /// Uncompressed bytes before its chunk in that.
    inner_bytes: u64,
    chunk_digest: Option<Digest>,
}

/// Takes members in order, then makes the rest.
#[derive(Default)]
pub struct Assembler {
    offset_bytes: u64,
    placed: Vec<Placed>,
    gzip_members: u64,
    copied_bytes: u64,
    digests: MemberDigests,
}

/// What follows the members, and what is known of the layer without the blob's own digest.
pub struct Assembled {
    /// The TOC's gzip member and the footer.
    pub tail: Vec<u8>,
    layer: FinishedLayer,
}

impl Assembled {
    /// The layer, once its blob is written.
    pub fn finish(self, blob: BlobId) -> FinishedLayer {
        FinishedLayer {
            digest: blob.digest,
            size_bytes: blob.size_bytes,
            ..self.layer
        }
    }
}

impl Assembler {
    /// Takes the next members of the plan; their gzip members follow those before.
    pub fn group(&mut self, encoded: &EncodedGroup) {
        let mut rest = encoded.raw.as_slice();
        let parts = encoded.members.iter().zip(&encoded.parts);
        for (number, (member, part)) in parts.enumerate() {
            let (raw, behind) = rest.split_at(member.len_bytes as usize);
            rest = behind;
            let chunk_digest = match &encoded.chunk_digests {
                Some(digests) => digests[number],
                None => self.digests.member(raw, member),
            };
            self.placed.push(Placed {
                offset_bytes: self.offset_bytes + part.gzip_offset_bytes,
                inner_bytes: part.inner_bytes + u64::from(member.lead_bytes),
                chunk_digest,
            });
            self.gzip_members += u64::from(part.inner_bytes == 0);
        }
        self.offset_bytes += encoded.gzip_bytes as u64;
        self.copied_bytes += encoded.copied_bytes;
    }

    /// Takes the digests of members that were hashed before they came.
    pub(super) fn hashed(&mut self, digests: MemberDigests) {
        self.digests = digests;
    }

    /// Makes TOC and footer for `layer`, all members of whose `plan` have been taken. The TOC is
    /// compressed with `compressor`.
    pub fn finish(
        self,
        layer: &ScannedLayer,
        plan: &LayerPlan,
        compressor: &mut Compressor,
    ) -> Assembled {
        debug_assert_eq!(self.placed.len(), plan.members.len());
        let toc_offset_bytes = self.offset_bytes;
        // The header comes first and is known last: the JSON is in memory once.
        let mut raw = vec![0; BLOCK_BYTES as usize];
        self.toc_json(layer, plan, &mut raw);
        let (header, json) = raw.split_at_mut(BLOCK_BYTES as usize);
        let toc_digest = Digest::of(json);
        header.copy_from_slice(&header::plain_file(TOC_NAME, json.len() as u64));
        let padded = raw.len().next_multiple_of(BLOCK_BYTES as usize);
        raw.resize(padded + 2 * BLOCK_BYTES as usize, 0);
        let mut tail = vec![0; compressor.gzip_compress_bound(raw.len())];
        let len = compressor
            .gzip_compress(&raw, &mut tail)
            .expect("the buffer has the size that libdeflate asks for");
        tail.truncate(len);
        tail.extend_from_slice(&footer(toc_offset_bytes));

        let landmark = plan.rows.iter().find_map(|row| match row.source {
            RowSource::Landmark(".prefetch.landmark") => plan.members_of(row).next(),
            _ => None,
        });
        let blob = BlobId::of(b"");
        let layer = FinishedLayer {
            digest: blob.digest,
            size_bytes: blob.size_bytes,
            diff_id: self.digests.diff_id(&raw),
            toc_digest: Some(toc_digest),
            uncompressed_bytes: plan.tar_bytes + raw.len() as u64,
            toc_offset_bytes,
            prefetch_bytes: landmark.map_or(0, |member| self.placed[member].offset_bytes),
            members: self.gzip_members,
            copied_bytes: self.copied_bytes,
        };
        Assembled { tail, layer }
    }

    /// Written row by row: the rows of a large layer are never in memory together.
    fn toc_json(&self, layer: &ScannedLayer, plan: &LayerPlan, json: &mut Vec<u8>) {
        json.extend_from_slice(br#"{"version":1,"entries":["#);
        let mut names = OwnerNames::default();
        let mut file_digests = self.digests.files().iter().copied();
        for row in &plan.rows {
            let mut first = first_row(layer, row.source, &mut names);
            let is_regular = match row.source {
                RowSource::Entry(entry) => layer.entries[entry as usize].kind == EntryKind::Regular,
                RowSource::Landmark(_) => true,
            };
            let (name, size) = (first.name.clone(), first.size);
            let mut members = plan.members_of(row);
            if is_regular {
                let digest = match row.chunks {
                    0 => None,
                    1 => members
                        .clone()
                        .next()
                        .and_then(|member| self.placed[member].chunk_digest),
                    _ => file_digests.next(),
                };
                debug_assert!(row.chunks == 0 || digest.is_some());
                first.digest = Some(digest.unwrap_or(Digest::of(b"")));
            }
            let mut next = first;
            let mut chunk_offset = 0;
            if row.chunks == 0 {
                push_row(json, &next);
                continue;
            }
            while let Some(member) = members.next() {
                let placed = &self.placed[member];
                let len = u64::from(plan.members[member].chunk_bytes);
                next.offset = placed.offset_bytes;
                next.inner_offset = placed.inner_bytes;
                next.chunk_offset = chunk_offset;
                // A reader takes a missing size as "to the file's end".
                let is_last = members.len() == 0;
                next.chunk_size = if is_last && len < u64::from(plan.chunk_bytes) {
                    0
                } else {
                    len
                };
                next.chunk_digest = placed.chunk_digest;
                push_row(json, &next);
                chunk_offset += len;
                next = TocEntry {
                    name: name.clone(),
                    kind: "chunk".into(),
                    ..TocEntry::default()
                };
            }
            debug_assert_eq!(chunk_offset, size);
        }
        json.extend_from_slice(b"]}");
    }
}

fn push_row(json: &mut Vec<u8>, row: &TocEntry<'_>) {
    if json.last() == Some(&b'}') {
        json.push(b',');
    }
    serde_json::to_writer(&mut *json, row).expect("a row of text and numbers is valid JSON");
}
