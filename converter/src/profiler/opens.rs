//! Opens that fanotify told of, put among the events of the BPF programs. Pure.
//!
//! fanotify gives an order, and no times; the programs give both. A file is opened before it is touched, so an open
//! happened before the first touch of its own file, and before that of every file whose open came later. These bounds
//! are close: most files are read at once.

use std::collections::HashSet;

use super::Phase;
use super::drain::{EventLog, FirstSign};

/// A file was opened, and perhaps executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenSign {
    /// Its number.
    pub(super) file: u32,
    /// It happened after this, CLOCK_MONOTONIC.
    pub(super) after_ns: u64,
    /// And before this.
    pub(super) before_ns: u64,
    pub(super) phase: Phase,
    pub(super) opened: bool,
    pub(super) executed: bool,
}

/// Adds `opens`, which are in order, to `log`, and numbers all signs anew.
pub(super) fn place(log: &mut EventLog, opens: &[OpenSign]) {
    let times = times(log, opens);
    let mut touched: Vec<(u32, FirstSign)> = log.signs.drain().collect();
    touched.sort_unstable_by_key(|(_, sign)| sign.sequence);
    let sign = |(open, time_ns): (&OpenSign, u64)| {
        let sign = FirstSign {
            sequence: 0,
            time_ns,
            phase: open.phase,
            opened: open.opened,
            executed: open.executed,
        };
        (open.file, sign)
    };
    let mut opened = opens.iter().zip(times).map(sign).peekable();
    let mut all = Vec::with_capacity(touched.len() + opens.len());
    for (file, sign) in touched {
        while let Some(open) = opened.next_if(|(_, open)| open.time_ns <= sign.time_ns) {
            all.push(open);
        }
        all.push((file, sign));
    }
    all.extend(opened);
    for (sequence, (file, sign)) in (0..).zip(all) {
        log.note(file, FirstSign { sequence, ..sign });
    }
}

/// When each happened at the latest; ascending.
fn times(log: &EventLog, opens: &[OpenSign]) -> Vec<u64> {
    let mut seen = HashSet::with_capacity(opens.len());
    let mut times: Vec<u64> = opens
        .iter()
        .map(|open| {
            let sign = log.signs.get(&open.file).filter(|_| seen.insert(open.file));
            // Who had the file from before may have touched it before this open.
            let touched_ns = sign
                .map(|sign| sign.time_ns)
                .filter(|&at| at >= open.after_ns);
            touched_ns.map_or(open.before_ns, |at| at.min(open.before_ns))
        })
        .collect();
    let mut later = u64::MAX;
    for time in times.iter_mut().rev() {
        later = later.min(*time);
        *time = later;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(file: u32, after_ns: u64, before_ns: u64) -> OpenSign {
        OpenSign {
            file,
            after_ns,
            before_ns,
            phase: Phase::Run,
            opened: true,
            executed: false,
        }
    }

    fn log_of(touches: &[(u32, u64)]) -> EventLog {
        let mut log = EventLog::default();
        for (sequence, &(file, time_ns)) in (100..).zip(touches) {
            let sign = FirstSign {
                sequence,
                time_ns,
                phase: Phase::Setup,
                opened: false,
                executed: false,
            };
            log.note(file, sign);
        }
        log
    }

    /// Files in order, with times.
    fn placed(touches: &[(u32, u64)], opens: &[OpenSign]) -> Vec<(u32, u64, bool)> {
        let mut log = log_of(touches);
        place(&mut log, opens);
        let mut files: Vec<_> = log.signs.into_iter().collect();
        files.sort_unstable_by_key(|(_, sign)| sign.sequence);
        let row = |(file, sign): (u32, FirstSign)| (file, sign.time_ns, sign.opened);
        files.into_iter().map(row).collect()
    }

    #[test]
    fn an_open_lies_before_the_touches_of_later_opens() {
        // 1 is opened and read, 2 only opened, 3 opened and read late, 4 opened, read after that; 9 is touched alone.
        let touches = [(1, 20), (9, 25), (4, 30), (3, 40)];
        let opens = [1, 2, 3, 4].map(|file| open(file, 10, 100));
        let expected = [
            (1, 20, true),
            (9, 25, false),
            (2, 30, true),
            (3, 30, true),
            (4, 30, true),
        ];
        assert_eq!(placed(&touches, &opens), expected);
    }

    #[test]
    fn a_touch_from_before_is_no_bound() {
        let opens = [open(2, 50, 100), open(1, 50, 100)];
        let expected = [(1, 20, true), (2, 100, true)];
        assert_eq!(placed(&[(1, 20)], &opens), expected);
    }

    #[test]
    fn opens_alone_keep_their_order() {
        let opens = [open(3, 0, 10), open(1, 0, 9), open(2, 10, 20)];
        let expected = [(3, 9, true), (1, 9, true), (2, 20, true)];
        assert_eq!(placed(&[], &opens), expected);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost_and_opens_stay_in_order(
            touches in proptest::collection::vec((0_u32..20, 0_u64..100), 0..20),
            files in proptest::collection::vec(0_u32..20, 0..20),
        ) {
            let mut files = files;
            let mut seen = HashSet::new();
            files.retain(|file| seen.insert(*file));
            let opens: Vec<_> = files.iter().map(|&file| open(file, 0, 200)).collect();
            let found = placed(&touches, &opens);
            let all: HashSet<u32> = touches.iter().map(|(file, _)| *file).chain(files.clone()).collect();
            proptest::prop_assert_eq!(found.len(), all.len());
            let opened: Vec<u32> = found.iter().filter(|row| row.2).map(|row| row.0).collect();
            proptest::prop_assert_eq!(opened, files);
        }
    }
}
