//! Transcode: deflate streams are cut at other places without compressing them again.
pub mod error;
mod bits;
mod block;
pub mod decode;
mod gzip;
mod huffman;
pub mod index;
mod tokens;
