//! How the C library's allocator treats large blocks.

/// Blocks from this size on are the kernel's, and go back to it when they are freed.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: nix::libc::c_int = 1 << 20;

/// Gives large blocks back as soon as they are freed, for the whole process. Left to itself glibc raises the
/// limit to what was freed last, up to 32 MiB, and then keeps holes between small blocks. Nothing where there is
/// another C library.
#[allow(unsafe_code, reason = "see the module sys")]
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt(3)` takes two numbers and no pointers, locks the allocator's state itself, and fails
    // by its result, which leaves everything as it was.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}
