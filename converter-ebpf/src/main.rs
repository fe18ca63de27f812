//! BPF programs that record which pages of which files the tasks of one cgroup touch.
//!
//! Enters: the globals, the table of watched files and the phase word, all set by the loader.
//! Leaves: one bitmap of touched pages for every 2 MiB of a watched file, complete whatever else
//! happens; events in the ring buffer, one for the first touch, open or execution; counters of
//! everything that was dropped. A task outside the cgroup changes nothing.
//!
//! rustc emits no CO-RE relocations, so no kernel structure is compiled in: the loader reads every
//! offset from the running kernel.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features)]

mod atomic;
mod ended;
mod filemap;
mod kernel;
mod opens;
mod record;

/// The kernel grants its GPL-only helpers by this string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier rejects an endless loop: a program that can panic does not load.
    loop {}
}
