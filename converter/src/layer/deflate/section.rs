//! Sections: a stream in parts that are decoded apart from each other, and joined again.
//!
//! A section begins at a border that somebody says is one, with the history that he says stands before
//! it. [`Joiner`] takes a section only where what went before ended at exactly this border with exactly
//! this history. So whatever is said, what is joined is what decoding the stream from its start gives:
//! the same bytes, the same index, the same checks of every member.

use super::border::{Border, BorderKind};
use super::decode::{MemberStart, Trailer};
use super::error::{DecodeError, Fault};
use super::index::{Checkpoint, Index, MemberSpan, Observer, Span};
use super::output::{Resume, Sink};
use super::resume::Scratch;
use crate::blob::ReadAt;

impl Section {
    /// Whether the stream ends with it.
    pub fn is_to_the_end(&self) -> bool {
        self.end.is_none()
    }
}

/// Where a section begins.
#[derive(Clone, Copy, Debug)]
pub struct Begin<'a> {
    /// The border.
    pub border: Border,
    /// The bytes before it that matches may mean: at most 32 KiB, and none before a member.
    pub history: &'a [u8],
}

/// What was learned of a section. Uncompressed offsets count from the start of its history.
#[derive(Debug)]
pub struct Section {
    blocks: Vec<(Span, u64)>,
    checkpoints: Vec<(Checkpoint, u64)>,
    members: Vec<MemberSpan>,
    output_bytes: u64,
    head: Option<Trailer>,
    /// `None` at the stream's end.
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    border: Border,
    history: Vec<u8>,
    /// `None` if the member had begun before the section did.
    member: Option<MemberStart>,
    /// Checksum and length of its bytes, as far as they are in the section.
    crc: u32,
    len_bytes: u64,
}

/// A section ends early when it has so many blocks.
const MAX_BLOCKS: usize = 64 << 10;

/// Decodes from `begin` to the first border that is not before `until_bits`, or to the stream's end.
///
/// # Errors
/// [`DecodeError`], with uncompressed offsets that count from the start of the history. What was
/// decoded before has reached `sink`.
pub fn decode_section<R: ReadAt + ?Sized>(
    compressed: &R,
    begin: Begin<'_>,
    until_bits: u64,
    scratch: &mut Scratch,
    sink: &mut impl Sink,
) -> Result<Section, DecodeError> {
    let Border {
        position_bits,
        kind,
    } = begin.border;
    let output = (begin.history.len() as u64, begin.history);
    let observed = Observed::default();
    let mut decoder = scratch.decoder(compressed, position_bits, output, sink, observed);
    decoder.until_bits = until_bits;
    let made = decoder
        .start(position_bits % 8)
        .and_then(|()| decoder.members(kind))
        .and_then(|border| {
            let resume = border.map(|border| {
                let history = decoder.output.history(border.kind);
                Resume::at_border(border, decoder.output.offset_bytes(), history.len())
            });
            decoder.output.flush(decoder.sink, resume)?;
            Ok(border)
        })
        .map_err(|failure| decoder.error(failure));
    let end = made.map(|border| {
        border.map(|border| End {
            border,
            history: decoder.output.history(border.kind).to_vec(),
            member: decoder.member,
            crc: decoder.output.finish_crc(),
            len_bytes: decoder.output.member_bytes(),
        })
    });
    let (head, output_bytes) = (decoder.head, decoder.output.offset_bytes());
    let observed = scratch.take_back(decoder);
    Ok(Section {
        blocks: observed.blocks,
        checkpoints: observed.checkpoints,
        members: observed.members,
        output_bytes,
        head,
        end: end?,
    })
}

/// Notes everything, so that it can be learned again in order.
#[derive(Default)]
struct Observed {
    blocks: Vec<(Span, u64)>,
    checkpoints: Vec<(Checkpoint, u64)>,
    members: Vec<MemberSpan>,
}

impl Observer for Observed {
    fn block(&mut self, span: Span, end_bytes: u64) {
        if end_bytes > span.output_bytes {
            self.blocks.push((span, end_bytes));
        }
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint, block_bytes: u64) {
        self.checkpoints.push((checkpoint, block_bytes));
    }

    fn member(&mut self, member: MemberSpan) {
        if member.len_bytes > 0 {
            self.members.push(member);
        }
    }

    fn is_full(&self) -> bool {
        self.blocks.len() >= MAX_BLOCKS
    }
}

/// A stream as far as its sections were joined.
#[derive(Debug)]
pub struct Joiner {
    index: Index,
    border: Border,
    history: Vec<u8>,
    output_bytes: u64,
    has_ended: bool,
    /// The member that has begun.
    member: Option<MemberStart>,
    crc: u32,
    len_bytes: u64,
}

impl Default for Joiner {
    /// At the stream's start.
    fn default() -> Self {
        Self {
            index: Index::default(),
            border: Border::START,
            history: Vec::new(),
            output_bytes: 0,
            has_ended: false,
            member: None,
            crc: 0,
            len_bytes: 0,
        }
    }
}

impl Joiner {
    /// Where the next section must begin; `None` at the stream's end.
    pub fn next(&self) -> Option<Begin<'_>> {
        (!self.has_ended).then_some(Begin {
            border: self.border,
            history: &self.history,
        })
    }

    /// Uncompressed bytes of the stream before those that a section counts from here on.
    pub fn before_bytes(&self) -> u64 {
        self.output_bytes - self.history.len() as u64
    }

    /// Uncompressed bytes so far.
    pub fn output_bytes(&self) -> u64 {
        self.output_bytes
    }

    /// Whether a section that begins there is the next one.
    pub fn fits(&self, begin: &Begin<'_>) -> bool {
        self.next()
            .is_some_and(|next| next.border == begin.border && next.history == begin.history)
    }

    /// Appends the next section, one that [`Joiner::fits`].
    ///
    /// # Errors
    /// When a member that ends in it has not the checksum or length that it should.
    pub fn append(&mut self, section: Section) -> Result<(), DecodeError> {
        let before = self.before_bytes();
        for (mut span, end_bytes) in section.blocks {
            span.output_bytes += before;
            self.index.block(span, before + end_bytes);
        }
        for (mut checkpoint, block_bytes) in section.checkpoints {
            checkpoint.output_bytes += before;
            self.index.checkpoint(checkpoint, before + block_bytes);
        }
        if let Some(head) = section.head {
            self.end_member(&head, before)?;
        }
        for mut member in section.members {
            member.output_bytes += before;
            self.index.member(member);
        }
        self.output_bytes = before + section.output_bytes;
        let Some(end) = section.end else {
            self.has_ended = true;
            return Ok(());
        };
        self.border = end.border;
        self.history = end.history;
        if end.border.kind == BorderKind::Member {
            self.member = None;
            return Ok(());
        }
        match end.member {
            Some(start) => {
                self.member = Some(MemberStart {
                    output_bytes: before + start.output_bytes,
                    ..start
                });
                (self.crc, self.len_bytes) = (end.crc, end.len_bytes);
            }
            None => {
                self.crc = joined_crc(self.crc, end.crc, end.len_bytes);
                self.len_bytes += end.len_bytes;
            }
        }
        Ok(())
    }

    fn end_member(&mut self, end: &Trailer, before_bytes: u64) -> Result<(), DecodeError> {
        let crc = joined_crc(self.crc, end.crc, end.len_bytes);
        let len_bytes = self.len_bytes + end.len_bytes;
        end.check(crc, len_bytes)
            .map_err(|fault: Fault| DecodeError::Corrupt {
                fault,
                position_bits: end.end_bits,
                output_bytes: before_bytes + end.output_bytes,
            })?;
        if let Some(start) = self.member.take().filter(|_| len_bytes > 0) {
            self.index.member(MemberSpan {
                start_bytes: start.start_bytes,
                end_bytes: end.end_bits / 8,
                output_bytes: start.output_bytes,
                len_bytes,
            });
        }
        Ok(())
    }

    /// The index of what was joined so far.
    pub(in crate::layer) fn index(&self) -> &Index {
        &self.index
    }

    /// The whole stream's index.
    pub fn finish(self) -> Index {
        self.index
    }
}

/// The CRC-32 of bytes with the checksum `first` and `len_bytes` more with the checksum `second`.
fn joined_crc(first: u32, second: u32, len_bytes: u64) -> u32 {
    let mut joined = crc32fast::Hasher::new_with_initial(first);
    joined.combine(&crc32fast::Hasher::new_with_initial_len(second, len_bytes));
    joined.finalize()
}
