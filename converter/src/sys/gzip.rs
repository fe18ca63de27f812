//! One gzip member at a time by libdeflate, with the number of compressed bytes that it took, which
//! the crate libdeflater does not tell (`libdeflate_gzip_decompress_ex`, libdeflate 1.26).
#![allow(unsafe_code)]

use std::ptr::NonNull;

use libdeflate_sys::{
    libdeflate_alloc_decompressor, libdeflate_decompressor, libdeflate_free_decompressor,
    libdeflate_gzip_decompress_ex, libdeflate_result_LIBDEFLATE_INSUFFICIENT_SPACE,
    libdeflate_result_LIBDEFLATE_SUCCESS,
};

/// Inflates members; one for each thread.
#[derive(Debug)]
pub struct MemberInflater(NonNull<libdeflate_decompressor>);

/// What a member took and gave, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflatedMember {
    /// Compressed bytes, header and trailer included.
    pub gzip_bytes: usize,
    /// Uncompressed bytes.
    pub raw_bytes: usize,
}

/// Why a member could not be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The member is damaged or cut off, or its checksum is wrong.
    #[error("corrupt gzip data")]
    Corrupt,
    /// The output buffer is too small.
    #[error("longer than the buffer")]
    OutputFull,
}

impl Default for MemberInflater {
    fn default() -> Self {
        // SAFETY: the function takes nothing; it returns null when memory is short.
        let state = NonNull::new(unsafe { libdeflate_alloc_decompressor() });
        // As the standard library does, an allocation of a few KiB that fails ends the program.
        Self(state.unwrap_or_else(|| {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u64; 2048]>())
        }))
    }
}

impl Drop for MemberInflater {
    fn drop(&mut self) {
        // SAFETY: the pointer is from libdeflate_alloc_decompressor and is freed once.
        unsafe { libdeflate_free_decompressor(self.0.as_ptr()) }
    }
}

// SAFETY: the decompressor is plain memory that only `&mut self` reaches.
unsafe impl Send for MemberInflater {}

impl MemberInflater {
    /// Inflates the member at the start of `gzip` to the start of `raw`. Bytes behind the member are
    /// not looked at.
    ///
    /// # Errors
    /// [`MemberError`]; what `raw` holds then is not defined.
    pub fn member(&mut self, gzip: &[u8], raw: &mut [u8]) -> Result<InflatedMember, MemberError> {
        let (mut gzip_bytes, mut raw_bytes) = (0, 0);
        // SAFETY: both pointers are valid for the lengths that are given with them, the two slices do
        // not overlap (one is borrowed mutably), and the results are written to live variables.
        let result = unsafe {
            libdeflate_gzip_decompress_ex(
                self.0.as_ptr(),
                gzip.as_ptr().cast(),
                gzip.len(),
                raw.as_mut_ptr().cast(),
                raw.len(),
                &raw mut gzip_bytes,
                &raw mut raw_bytes,
            )
        };
        match result {
            code if code == libdeflate_result_LIBDEFLATE_SUCCESS => Ok(InflatedMember {
                gzip_bytes,
                raw_bytes,
            }),
            code if code == libdeflate_result_LIBDEFLATE_INSUFFICIENT_SPACE => {
                Err(MemberError::OutputFull)
            }
            _ => Err(MemberError::Corrupt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::footer::footer;

    #[test]
    fn members_are_measured() {
        let text = [b'x'; 5000];
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut gzip = vec![0; compressor.gzip_compress_bound(text.len())];
        let len = compressor.gzip_compress(&text, &mut gzip).unwrap();
        gzip.truncate(len);
        gzip.extend_from_slice(&footer(7));
        let mut inflater = MemberInflater::default();
        let mut raw = vec![0; text.len()];
        let found = inflater.member(&gzip, &mut raw).unwrap();
        assert_eq!((found.gzip_bytes, found.raw_bytes), (len, text.len()));
        assert_eq!(raw, text);
        let behind = inflater.member(&gzip[len..], &mut raw).unwrap();
        assert_eq!((behind.gzip_bytes, behind.raw_bytes), (51, 0));
        assert_eq!(
            inflater.member(&gzip, &mut raw[..4999]),
            Err(MemberError::OutputFull)
        );
        for cut in 0..len {
            assert!(inflater.member(&gzip[..cut], &mut raw).is_err(), "{cut}");
        }
        gzip[len - 5] ^= 1;
        assert_eq!(inflater.member(&gzip, &mut raw), Err(MemberError::Corrupt));
    }
}
