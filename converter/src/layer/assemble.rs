//! Assemble: finished members in order, a whole eStargz blob out.
//!
//! Hashes the new uncompressed stream (DiffID), every file and the blob while the members are
//! written; nothing is inflated again. Ends with the TOC and the footer.

use std::collections::HashMap;
use std::io::{self, Write};

use libdeflater::Compressor;

use crate::image::{Digest, Hasher};
use crate::layer::encode::Encoded;
use crate::layer::entry::{EntryKind, ScannedLayer};
use crate::layer::footer::footer;
use crate::layer::header;
use crate::layer::plan::{LayerPlan, RowSource, TOC_NAME};
use crate::layer::scan::tar::BLOCK_BYTES;
use crate::layer::toc::{OwnerNames, TocEntry, entry_row};

/// A written eStargz layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size_bytes: u64,
    /// Digest of the whole uncompressed stream, the TOC's tar entry included.
    pub diff_id: Digest,
    /// Digest of the TOC's JSON.
    pub toc_digest: Digest,
    /// Length of the whole uncompressed stream, the TOC's tar entry included.
    pub uncompressed_bytes: u64,
    /// Where the TOC member starts.
    pub toc_offset_bytes: u64,
    /// Where the prefetch landmark's member starts: a reader prefetches all before it.
    pub prefetch_bytes: u64,
    /// Gzip members, without TOC and footer.
    pub members: u64,
}

/// Why a blob could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The blob could not be written.
    #[error("writing at offset {offset_bytes}")]
    Write {
        /// Offset in the blob.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where a member came to lie.
struct Placed {
    offset_bytes: u64,
    chunk_digest: Option<Digest>,
}

/// Takes members in order, then writes the rest.
pub struct Assembler<'a, W> {
    layer: &'a ScannedLayer,
    plan: &'a LayerPlan,
    out: W,
    blob: Hasher,
    diff_id: Hasher,
    offset_bytes: u64,
    placed: Vec<Placed>,
    /// The row whose chunks are being written.
    row: usize,
    file: Hasher,
    /// Digests of the files that have more than one chunk, by row.
    file_digests: HashMap<usize, Digest>,
}

impl<'a, W: Write> Assembler<'a, W> {
    /// Starts the blob that `plan` describes.
    pub fn new(layer: &'a ScannedLayer, plan: &'a LayerPlan, out: W) -> Self {
        Self {
            layer,
            plan,
            out,
            blob: Hasher::default(),
            diff_id: Hasher::default(),
            offset_bytes: 0,
            placed: Vec::with_capacity(plan.members.len()),
            row: 0,
            file: Hasher::default(),
            file_digests: HashMap::new(),
        }
    }

    /// Writes the next member of the plan.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn member(&mut self, encoded: &Encoded) -> Result<(), AssembleError> {
        let index = self.placed.len();
        let chunk_bytes = self.plan.members[index].chunk_bytes as usize;
        self.placed.push(Placed {
            offset_bytes: self.offset_bytes,
            chunk_digest: encoded.chunk_digest,
        });
        self.diff_id.update(&encoded.raw);
        if chunk_bytes > 0 {
            self.hash_file(index, &encoded.raw[..chunk_bytes]);
        }
        self.write(encoded.gzip())
    }

    /// A file of one chunk has the chunk's digest; only longer ones are hashed apart.
    fn hash_file(&mut self, member: usize, chunk: &[u8]) {
        let holds = |row: usize| {
            self.plan.rows.get(row).map(|row| {
                let first = row.first_member as usize;
                first..first + row.chunks as usize
            })
        };
        while holds(self.row).is_some_and(|members| members.end <= member || members.is_empty()) {
            self.row += 1;
        }
        let Some(members) = holds(self.row).filter(|members| members.contains(&member)) else {
            return;
        };
        if members.len() > 1 {
            self.file.update(chunk);
            if member + 1 == members.end {
                let digest = std::mem::take(&mut self.file).finish();
                self.file_digests.insert(self.row, digest);
            }
        }
    }

    /// Writes TOC and footer. The TOC is compressed with `compressor`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn finish(mut self, compressor: &mut Compressor) -> Result<FinishedLayer, AssembleError> {
        debug_assert_eq!(self.placed.len(), self.plan.members.len());
        let toc_offset_bytes = self.offset_bytes;
        let json = self.toc_json();
        let toc_digest = Digest::of(&json);

        let mut tail = header::plain_file(TOC_NAME, json.len() as u64);
        tail.extend_from_slice(&json);
        drop(json);
        let padded = tail.len().next_multiple_of(BLOCK_BYTES as usize);
        tail.resize(padded + 2 * BLOCK_BYTES as usize, 0);
        self.diff_id.update(&tail);
        let mut gzip = vec![0; compressor.gzip_compress_bound(tail.len())];
        let len = compressor
            .gzip_compress(&tail, &mut gzip)
            .expect("the buffer has the size that libdeflate asks for");
        self.write(&gzip[..len])?;
        self.write(&footer(toc_offset_bytes))?;
        let offset_bytes = self.offset_bytes;
        self.out.flush().map_err(|source| AssembleError::Write {
            offset_bytes,
            source,
        })?;

        let landmark = self.plan.rows.iter().find_map(|row| match row.source {
            RowSource::Landmark(".prefetch.landmark") => Some(row.first_member as usize),
            _ => None,
        });
        Ok(FinishedLayer {
            digest: self.blob.finish(),
            size_bytes: self.offset_bytes,
            diff_id: self.diff_id.finish(),
            toc_digest,
            uncompressed_bytes: self.plan.tar_bytes + tail.len() as u64,
            toc_offset_bytes,
            prefetch_bytes: landmark.map_or(0, |member| self.placed[member].offset_bytes),
            members: self.placed.len() as u64,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), AssembleError> {
        let offset_bytes = self.offset_bytes;
        self.out
            .write_all(bytes)
            .map_err(|source| AssembleError::Write {
                offset_bytes,
                source,
            })?;
        self.blob.update(bytes);
        self.offset_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Written row by row: the rows of a large layer are never in memory together.
    fn toc_json(&self) -> Vec<u8> {
        let mut json = br#"{"version":1,"entries":["#.to_vec();
        let mut names = OwnerNames::default();
        for (index, row) in self.plan.rows.iter().enumerate() {
            let mut first = match row.source {
                RowSource::Entry(entry) => {
                    entry_row(&self.layer.entries[entry as usize], &mut names)
                }
                RowSource::Landmark(name) => TocEntry {
                    name: name.into(),
                    kind: "reg".into(),
                    size: 1,
                    ..TocEntry::default()
                },
            };
            let is_regular = match row.source {
                RowSource::Entry(entry) => {
                    self.layer.entries[entry as usize].kind == EntryKind::Regular
                }
                RowSource::Landmark(_) => true,
            };
            let (name, size) = (first.name.clone(), first.size);
            let members = row.first_member as usize..(row.first_member + row.chunks) as usize;
            if is_regular {
                first.digest = Some(match members.len() {
                    0 => Digest::of(b""),
                    1 => self.placed[members.start]
                        .chunk_digest
                        .unwrap_or(Digest::of(b"")),
                    _ => self.file_digests[&index],
                });
            }
            let mut next = first;
            let mut chunk_offset = 0;
            if members.is_empty() {
                push_row(&mut json, &next);
                continue;
            }
            for member in members.clone() {
                let placed = &self.placed[member];
                let len = u64::from(self.plan.members[member].chunk_bytes);
                next.offset = placed.offset_bytes;
                next.chunk_offset = chunk_offset;
                // A reader takes a missing size as "to the file's end".
                next.chunk_size = if len == u64::from(self.plan.chunk_bytes) {
                    len
                } else {
                    0
                };
                next.chunk_digest = placed.chunk_digest;
                push_row(&mut json, &next);
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
        json
    }
}

fn push_row(json: &mut Vec<u8>, row: &TocEntry<'_>) {
    if json.last() == Some(&b'}') {
        json.push(b',');
    }
    serde_json::to_writer(&mut *json, row).expect("a row of text and numbers is valid JSON");
}
