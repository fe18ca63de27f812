//! Atomic read-modify-write operations: the target has them (v3), core's atomic types do not offer
//! them there.

use core::intrinsics::{self, AtomicOrdering};

/// The only ordering that the instruction set has for them.
const SEQ_CST: AtomicOrdering = AtomicOrdering::SeqCst;

/// A word in a map that programs on several CPUs change at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Word<T>(*mut T);

impl<T: Copy> Word<T> {
    /// # Safety
    /// `word` is aligned, lives as long as the program, and nobody accesses it but atomically.
    #[inline(always)]
    pub(crate) unsafe fn new(word: *mut T) -> Self {
        Self(word)
    }

    #[inline(always)]
    pub(crate) fn load(self) -> T {
        // SAFETY: see `new`. A relaxed load is a plain load for this target.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store(self, value: T) {
        // SAFETY: as `load`.
        unsafe { self.0.write_volatile(value) };
    }

    /// Sets the bits of `value`; the result is the word before.
    #[inline(always)]
    pub(crate) fn fetch_or(self, value: T) -> T {
        // SAFETY: see `new`.
        unsafe { intrinsics::atomic_or::<T, T, { SEQ_CST }>(self.0, value) }
    }

    /// Clears the bits that `value` lacks; the result is the word before.
    #[inline(always)]
    pub(crate) fn fetch_and(self, value: T) -> T {
        // SAFETY: see `new`.
        unsafe { intrinsics::atomic_and::<T, T, { SEQ_CST }>(self.0, value) }
    }

    /// Adds `value`; the result is the word before.
    #[inline(always)]
    pub(crate) fn fetch_add(self, value: T) -> T {
        // SAFETY: see `new`.
        unsafe { intrinsics::atomic_xadd::<T, T, { SEQ_CST }>(self.0, value) }
    }

    /// Replaces `old` by `new`; false if the word was something else.
    #[inline(always)]
    pub(crate) fn replace(self, old: T, new: T) -> bool {
        // SAFETY: see `new`.
        unsafe { intrinsics::atomic_cxchg::<T, { SEQ_CST }, { SEQ_CST }>(self.0, old, new).1 }
    }
}
