//! Which processes were of the watched cgroup, for who learns of something that they did when they are gone.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use esgz_ebpf_abi::PID_WORDS;

use crate::atomic::Word;
use crate::record::{ENDED, is_in_cgroup};

/// A thread ends; its process may go on, and is of the same cgroup.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn ended(_: RawTracePointContext) -> i32 {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(word) = ENDED.get_ptr_mut(process / 64 % PID_WORDS) else {
        return 0;
    };
    // SAFETY: an array's element lives as long as the program and is aligned to 8 bytes; everyone accesses it
    // atomically.
    let word = unsafe { Word::new(word) };
    let bit = 1 << (process % 64);
    let was = word.load() & bit != 0;
    if is_in_cgroup() {
        if !was {
            word.fetch_or(bit);
        }
    } else if was {
        // Somebody else has the number now.
        word.fetch_and(!bit);
    }
    0
}
