//! Members that share gzip members: a group of the plan's in, gzip members of a minimum size out.

use crate::image::Digest;
use crate::layer::encode::{EncodeError, Encoder, read_member};
use crate::layer::plan::{Group, LayerPlan};
use crate::layer::spool::ReadAt;

/// A finished group.
#[derive(Debug)]
pub struct EncodedGroup {
    /// The uncompressed bytes, for the DiffID.
    pub raw: Vec<u8>,
    /// The gzip members, one behind the other.
    pub gzip: Vec<u8>,
    /// Where the plan's members came to lie, one for each.
    pub parts: Vec<Part>,
}

/// A planned member inside a gzip member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where its gzip member starts in [`EncodedGroup::gzip`].
    pub gzip_offset_bytes: u64,
    /// Uncompressed bytes before it in the gzip member.
    pub inner_bytes: u64,
    /// Digest of the chunk at its start; `None` if it holds headers alone.
    pub chunk_digest: Option<Digest>,
}

impl Encoder<'_> {
    /// Memory that [`Encoder::encode_group`] takes for `group` until its result is dropped.
    pub fn group_cost_bytes(group: &Group) -> u64 {
        // As for members; every gzip member has some bytes of its own, and every part a place.
        2 * group.len_bytes + group.len_bytes / 1024 + 256 * group.members.len() as u64 + 4096
    }

    /// Reads, hashes and compresses the members of one group. A gzip member ends as soon as it has
    /// [`LayerPlan::min_chunk_bytes`] compressed bytes, as far as the last one's ratio foretells
    /// where that is, and at the group's end.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn encode_group<R: ReadAt>(
        &mut self,
        plan: &LayerPlan,
        group: &Group,
        spool: &R,
    ) -> Result<EncodedGroup, EncodeError> {
        let members = &plan.members[group.members.clone()];
        let mut raw = Vec::new();
        let mut starts = Vec::with_capacity(members.len() + 1);
        let mut parts = Vec::with_capacity(members.len());
        let mut buffer = Vec::new();
        for member in members {
            read_member(plan, member, spool, &mut buffer)?;
            let chunk = &buffer[..member.chunk_bytes as usize];
            starts.push(raw.len());
            parts.push(Part {
                gzip_offset_bytes: 0,
                inner_bytes: 0,
                chunk_digest: (!chunk.is_empty()).then(|| Digest::of(chunk)),
            });
            raw.extend_from_slice(&buffer);
        }
        starts.push(raw.len());

        let min_bytes = plan.min_chunk_bytes as usize;
        let mut gzip = Vec::new();
        let mut first = 0;
        // Uncompressed bytes that are expected to give the minimum.
        let mut wanted_bytes = min_bytes;
        while first < parts.len() {
            let member_start = gzip.len();
            let (end, compressed_bytes) = loop {
                let reached =
                    starts[first + 1..].partition_point(|&at| at < starts[first] + wanted_bytes);
                let end = (first + 1 + reached).min(parts.len());
                gzip.truncate(member_start);
                self.append(&raw[starts[first]..starts[end]], &mut gzip);
                let compressed_bytes = gzip.len() - member_start;
                if compressed_bytes >= min_bytes || end == parts.len() {
                    break (end, compressed_bytes);
                }
                // By the ratio seen so far, and at least one part more.
                let raw_bytes = starts[end] - starts[first];
                wanted_bytes = scaled(raw_bytes, min_bytes, compressed_bytes).max(raw_bytes + 1);
            };
            for (part, start) in parts[first..end].iter_mut().zip(&starts[first..end]) {
                part.gzip_offset_bytes = member_start as u64;
                part.inner_bytes = (start - starts[first]) as u64;
            }
            wanted_bytes = scaled(starts[end] - starts[first], min_bytes, compressed_bytes);
            first = end;
        }
        Ok(EncodedGroup { raw, gzip, parts })
    }

    /// Appends one gzip member.
    fn append(&mut self, raw: &[u8], gzip: &mut Vec<u8>) {
        let start = gzip.len();
        gzip.resize(start + self.compressor.gzip_compress_bound(raw.len()), 0);
        let len = self
            .compressor
            .gzip_compress(raw, &mut gzip[start..])
            .expect("the buffer has the size that libdeflate asks for");
        gzip.truncate(start + len);
    }
}

/// `bytes * wanted / found`, which is not 0: a gzip member has a header.
fn scaled(bytes: usize, wanted: usize, found: usize) -> usize {
    (bytes as u128 * wanted as u128 / found.max(1) as u128)
        .try_into()
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use crate::cancel::Cancel;
    use crate::layer::encode::Level;
    use crate::layer::plan::{PlanOptions, plan_layer};
    use crate::layer::scan::tests::scan_bytes;
    use crate::layer::verify::{parse_toc, read_toc, verify_layer};
    use crate::layer::{ConvertOptions, Parallel, convert_layer};

    /// Files of up to 3 KB and one of three chunks, some of them prefetched.
    #[test]
    fn small_chunks_share_members_whatever_the_threads() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut contents = Vec::new();
        for n in 0..400_u32 {
            contents.clear();
            let len = if n == 200 { 25_000 } else { (n * 37) % 3000 };
            contents.extend((0..len).map(|at| (at * at / 7 + n) as u8));
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, format!("file{n}"), &*contents)
                .unwrap();
        }
        let layer = scan_bytes(&builder.into_inner().unwrap()).unwrap();
        let mut blobs = Vec::new();
        for (min_chunk_bytes, threads) in [(0, 1), (4000, 1), (4000, 2), (4000, 7)] {
            let options = PlanOptions {
                chunk_bytes: 10_000,
                min_chunk_bytes,
            };
            let plan = plan_layer(&layer, &[7, 300, 5], options).unwrap();
            let parallel = Parallel {
                threads,
                memory_bytes: 1 << 20,
            };
            let level = Level::default();
            let mut blob = Vec::new();
            let options = ConvertOptions { level, parallel };
            let finished =
                convert_layer(&layer, &plan, options, &mut blob, &Cancel::default()).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&blob).unwrap();
            verify_layer(&file, parallel, &Cancel::default())
                .unwrap()
                .must_equal(&finished)
                .unwrap();
            if threads == 1 && min_chunk_bytes > 0 {
                let (json, toc_offset) = read_toc(&file).unwrap();
                let toc = parse_toc(&json, toc_offset).unwrap();
                let landmark = toc.entries.iter().find(|row| row.name.contains("landmark"));
                assert_eq!(landmark.map(|row| row.inner_offset), Some(0));
                assert!(toc.entries.iter().any(|row| row.inner_offset > 0));
                let mut offsets: Vec<u64> = toc.entries.iter().map(|row| row.offset).collect();
                offsets.retain(|&offset| offset > 0);
                offsets.push(toc_offset);
                offsets.dedup();
                // All but the last before the landmark and the last of all have the minimum.
                let small = offsets.windows(2).filter(|pair| pair[1] - pair[0] < 4000);
                assert!(small.count() <= 2, "{offsets:?}");
                assert!(offsets.len() > 10, "{offsets:?}");
            }
            blobs.push((finished.members, blob));
        }
        assert!(blobs[0].0 > 4 * blobs[1].0, "{} {}", blobs[0].0, blobs[1].0);
        assert!(blobs[0].1.len() > blobs[1].1.len());
        assert!(blobs[1..].windows(2).all(|pair| pair[0] == pair[1]));
    }
}
