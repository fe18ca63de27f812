//! Digests: the uncompressed bytes of members in their order, each hashed in one pass for all that it
//! counts for: its chunk, its file, the layer, and the source where it stands there.

use crate::image::{Digest, Hasher};
use crate::layer::plan::{ChunkPlace, Member};

/// What is known of the members so far.
#[derive(Debug, Default)]
pub(super) struct MemberDigests {
    diff_id: Hasher,
    /// The chunk that is coming, and the file that it is of.
    chunk: Hasher,
    file: Hasher,
    /// Of the files that have more than one chunk, in order.
    files: Vec<Digest>,
}

impl MemberDigests {
    /// Takes all of `member`, and gives its chunk's digest.
    pub(super) fn member(&mut self, raw: &[u8], member: &Member) -> Option<Digest> {
        self.bytes(raw, member, 0, None);
        self.end(member)
    }

    /// Takes bytes of `member`, those behind the first `at`. They are the next ones of `source`, too, if
    /// that is given.
    pub(super) fn bytes(
        &mut self,
        bytes: &[u8],
        member: &Member,
        at: usize,
        source: Option<&mut Hasher>,
    ) {
        let lead = (member.lead_bytes as usize)
            .saturating_sub(at)
            .min(bytes.len());
        let (lead, bytes) = bytes.split_at(lead);
        let behind_lead = (at + lead.len()).saturating_sub(member.lead_bytes as usize);
        let of_chunk = (member.chunk_bytes as usize).saturating_sub(behind_lead);
        let (chunk, behind) = bytes.split_at(of_chunk.min(bytes.len()));
        let Self {
            diff_id,
            chunk: digest,
            file,
            ..
        } = self;
        // The digest of a file with one chunk is the chunk's; a copy's bytes count where they stand.
        let is_whole = matches!(member.place, ChunkPlace::Whole | ChunkPlace::Copy);
        match source {
            None => {
                diff_id.update(lead);
                if is_whole {
                    Hasher::update_all([diff_id, digest], chunk);
                } else {
                    Hasher::update_all([diff_id, digest, file], chunk);
                }
                diff_id.update(behind);
            }
            Some(source) => {
                Hasher::update_all([diff_id, source], lead);
                if is_whole {
                    Hasher::update_all([diff_id, digest, source], chunk);
                } else {
                    Hasher::update_all([diff_id, digest, source, file], chunk);
                }
                Hasher::update_all([diff_id, source], behind);
            }
        }
    }

    /// All of `member` was taken: the digest of its chunk, if it has one.
    pub(super) fn end(&mut self, member: &Member) -> Option<Digest> {
        if member.place == ChunkPlace::Last {
            self.files.push(std::mem::take(&mut self.file).finish());
        }
        let chunk = std::mem::take(&mut self.chunk);
        (member.chunk_bytes > 0).then(|| chunk.finish())
    }

    /// Those of the files that have more than one chunk, in order.
    pub(super) fn files(&self) -> &[Digest] {
        &self.files
    }

    /// The digest of all members and the bytes `behind` them.
    pub(super) fn diff_id(mut self, behind: &[u8]) -> Digest {
        self.diff_id.update(behind);
        self.diff_id.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(len_bytes: u32, chunk_bytes: u32, place: ChunkPlace) -> Member {
        Member {
            first_segment: 0,
            segments: 0,
            len_bytes,
            lead_bytes: u32::from(place == ChunkPlace::Copy),
            chunk_bytes,
            place,
        }
    }

    /// However the bytes come, with a source and without, at any alignment.
    #[test]
    fn each_byte_counts_for_its_chunk_file_and_streams() {
        let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n * n / 7) as u8).collect();
        let members = [
            member(1024, 0, ChunkPlace::Whole),
            member(3000, 2500, ChunkPlace::First),
            member(2500, 2500, ChunkPlace::Middle),
            member(700, 600, ChunkPlace::Copy),
            member(1537, 1, ChunkPlace::Last),
            member(8000, 7000, ChunkPlace::Whole),
        ];
        let chunks = [
            None,
            Some(1024..3524),
            Some(4024..6524),
            Some(6525..7125),
            Some(7224..7225),
            Some(8761..15761),
        ];
        let file = [&bytes[1024..3524], &bytes[4024..6524], &bytes[7224..7225]].concat();
        for step in [1, 64, 100, 4096, 20_000] {
            // The source lacks the first member and has something of its own in front.
            let mut source = Hasher::default();
            source.update(&bytes[..512]);
            let (mut pieces, mut whole) = (MemberDigests::default(), MemberDigests::default());
            let mut rest = bytes.as_slice();
            for (number, (member, chunk)) in members.iter().zip(&chunks).enumerate() {
                let (raw, behind) = rest.split_at(member.len_bytes as usize);
                rest = behind;
                for (piece, bytes) in raw.chunks(step).enumerate() {
                    let source = (number > 0).then_some(&mut source);
                    pieces.bytes(bytes, member, piece * step, source);
                }
                let expected = chunk.clone().map(|chunk| Digest::of(&bytes[chunk]));
                assert_eq!(pieces.end(member), expected, "{number} in steps of {step}");
                assert_eq!(whole.member(raw, member), expected, "{number}");
            }
            let end = bytes.len() - rest.len();
            assert_eq!(pieces.files(), [Digest::of(&file)]);
            assert_eq!(whole.files(), pieces.files());
            let all = [&bytes[..end], b"TOC"].concat();
            assert_eq!(pieces.diff_id(b"TOC"), Digest::of(&all));
            assert_eq!(whole.diff_id(b"TOC"), Digest::of(&all));
            let expected = [&bytes[..512], &bytes[1024..end]].concat();
            assert_eq!(source.finish(), Digest::of(&expected));
        }
    }
}
