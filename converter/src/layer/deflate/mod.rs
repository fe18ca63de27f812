//! Transcode: a deflate stream cut at other places, without compressing it again.
//!
//! Enters: a compressed layer. [`decode()`] turns it into bytes in one pass and leaves an [`Index`] of
//! its blocks. Later, when the plan is known, a [`Transcoder`] makes gzip members of any runs of these
//! bytes: it copies the tokens of the source as bits, and compresses again only what lies at the
//! borders. `docs/transcode.md` has the method.
//!
//! Nothing here starts threads, opens files or depends on time; any input gives bytes or an error.

mod bit_copy;
mod bits;
mod block;
mod cut;
mod decode;
mod emit;
mod error;
mod fuzz;
mod gzip;
mod huffman;
mod index;
mod input;
mod output;
mod tokens;
mod walk;

pub use decode::{Container, Decoded, Scratch, decode, decode_from};
pub use emit::{Emitted, MIN_RUN_BYTES, Run, Source, Transcoder};
pub use error::{DecodeError, Fault, TranscodeError};
pub use huffman::BadLengths;
pub use index::Index;
pub(in crate::layer) use index::Known;
pub use output::{Block, Resume, Sink};

#[doc(hidden)]
pub use fuzz::fuzz_one;

#[cfg(test)]
mod tests;
