//! Whether a cut's tokens make the run's bytes, told without decoding all of them.
//!
//! A block that is copied as a whole was decoded when the source was scanned, and its compressed bytes are the
//! same ones: they have the checksum of then. What the scan did not see like that is walked and compared with the
//! bytes: a block of which only a part is copied, and every token near enough to the start to reach back before it.

use std::ops::{ControlFlow, Range};

use libdeflater::Crc;

use super::{Block, Border, Cutter, Loaded};
use crate::layer::deflate::error::Fault;
use crate::layer::deflate::output::WINDOW_BYTES;
use crate::layer::deflate::walk::{Stretch, Token};

/// Walking is several times slower than inflating: besides the window, at most this part of a cut is walked.
const MAX_WALKED_PART: u64 = 6;

/// What of a block is copied.
struct Copied {
    block: Block,
    bytes: Range<u64>,
    /// The checksum of the whole block, if all of it is copied and it has one.
    crc: Option<u32>,
    /// Up to where its tokens are walked, as uncompressed offset.
    walk_end: u64,
}

impl Cutter {
    /// Whether the tokens from `start` to `end` are known to make what stands there in `bytes`, those of a run
    /// that begins at `run_start`. False as well where telling would take longer than to inflate them.
    ///
    /// # Errors
    /// [`Fault`] when the source is not what it was.
    pub(super) fn prove(
        &mut self,
        loaded: &Loaded,
        (start, end): (Border, Border),
        run_start: u64,
        bytes: &[u8],
    ) -> Result<bool, Fault> {
        let window_end = start.output_bytes + WINDOW_BYTES as u64;
        let copied: Vec<Copied> = self.blocks[start.block..=end.block]
            .iter()
            .map(|block| {
                let from = block.start_bytes.max(start.output_bytes);
                let to = block.end_bytes.min(end.output_bytes).max(from);
                let is_whole = from == block.start_bytes && to == block.end_bytes;
                let crc = block.crc.filter(|_| is_whole);
                let walk_end = match (block.is_stored, crc) {
                    (true, _) => from,
                    (false, None) => to,
                    (false, Some(_)) => window_end.clamp(from, to),
                };
                Copied {
                    block: *block,
                    bytes: from..to,
                    crc,
                    walk_end,
                }
            })
            .collect();
        let walked_bytes: u64 = copied.iter().map(|c| c.walk_end - c.bytes.start).sum();
        let cut_bytes = end.output_bytes - start.output_bytes;
        if walked_bytes > 2 * WINDOW_BYTES as u64 + cut_bytes / MAX_WALKED_PART {
            return Ok(false);
        }
        for copied in &copied {
            if let Some(crc) = copied.crc {
                self.compare_checksum(&copied.block, crc)?;
            }
            if copied.walk_end > copied.bytes.start
                && !self.walk(loaded, (start, end), copied, run_start, bytes)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compare_checksum(&self, block: &Block, crc: u32) -> Result<(), Fault> {
        let byte = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
        let range = byte(block.header_bits / 8)..byte(block.end_bits.div_ceil(8));
        let mut found = Crc::new();
        found.update(self.compressed.get(range).ok_or(Fault::Length)?);
        match found.sum() == crc {
            true => Ok(()),
            false => Err(Fault::Crc),
        }
    }

    /// Whether the tokens of a block that are walked make their bytes, and end where those that are copied do.
    fn walk(
        &mut self,
        loaded: &Loaded,
        (start, end): (Border, Border),
        copied: &Copied,
        run_start: u64,
        bytes: &[u8],
    ) -> Result<bool, Fault> {
        let place = self.open(loaded, &copied.block)?;
        let from_bits = match copied.bytes.start > copied.block.start_bytes {
            true => start.position_bits,
            false => place.body_bits,
        };
        let to_bits = match copied.bytes.end < copied.block.end_bytes {
            true => end.position_bits,
            false => copied.block.end_bits - u64::from(place.end_of_block.count),
        };
        let mut at = copied.bytes.start;
        let mut at_bits = from_bits;
        let mut is_same = true;
        Stretch::new(&self.compressed, loaded.len_bytes).tokens(
            &self.tables,
            from_bits,
            |token| {
                is_same = makes(&token, bytes, at - run_start);
                at += token.len_bytes;
                at_bits = token.end_bits;
                match is_same && at < copied.walk_end {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            },
        )?;
        // Where not all is walked, the checksum has told the rest.
        let is_whole = at == copied.bytes.end && at_bits == to_bits;
        let is_known = copied.crc.is_some() && at >= copied.walk_end;
        Ok(is_same && (is_whole || is_known))
    }
}

/// Whether `token` makes what stands at `at` in `bytes`, out of what stands before.
fn makes(token: &Token, bytes: &[u8], at: u64) -> bool {
    let range = |at: u64| {
        let start = usize::try_from(at).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(token.len_bytes).ok()?)?)
    };
    let Some(made) = range(at) else {
        return false;
    };
    match token.back_bytes {
        0 => made == [token.byte],
        back => at.checked_sub(back).and_then(range) == Some(made),
    }
}
