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
mod border;
mod check;
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
mod resume;
mod section;
mod tokens;
mod walk;

pub use border::{Border, BorderKind};
pub use check::Reread;
pub use decode::{Container, Decoded, decode};
pub use emit::{Emitted, MIN_RUN_BYTES, Run, Source, Transcoder};
pub use error::{DecodeError, Fault, TranscodeError};
pub use huffman::BadLengths;
pub use index::Index;
pub(in crate::layer) use index::Known;
pub use output::{Block, Resume, Sink};
pub use resume::{Scratch, decode_from};
pub use section::{Begin, Joiner, Section, decode_section};

#[doc(hidden)]
pub use fuzz::fuzz_one;

#[cfg(test)]
mod tests;
