//! Time: a link and some cores that all who are at work share evenly.
//!
//! Enters: work, one piece an actor. Leaves: which actor is done, and when. Deterministic: what ends at the same
//! moment ends in the actors' order.

use std::collections::BTreeMap;

use crate::simulate::Link;

/// What an actor does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Work {
    /// Nothing, until a moment.
    Wait {
        /// Seconds since the beginning.
        until: f64,
    },
    /// A request and its answer.
    Transfer {
        /// Of the answer.
        bytes: u64,
        /// Before its first byte arrives.
        latency_seconds: f64,
        /// The request is given up after so long.
        timeout_seconds: f64,
    },
    /// Work of one core.
    Compute {
        /// If a whole core does it.
        seconds: f64,
    },
}

/// How work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// A transfer's time was over; so many bytes had arrived.
    TimedOut(u64),
}

#[derive(Clone, Copy, Debug)]
enum Job {
    Wait {
        until: f64,
    },
    Transfer {
        bytes: f64,
        left: f64,
        starts: f64,
        gives_up: f64,
    },
    Compute {
        left: f64,
    },
}

/// What happens to a job next.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Its answer begins to arrive.
    Arrives,
    Ends,
    GivesUp,
}

/// The clock, the link and the cores.
#[derive(Debug)]
pub(super) struct Machine<A: Ord> {
    now: f64,
    link: Link,
    cores: f64,
    jobs: BTreeMap<A, Job>,
}

impl<A: Ord + Copy> Machine<A> {
    pub(super) fn new(link: Link, cores: u32) -> Self {
        Self {
            now: 0.0,
            link,
            cores: f64::from(cores.max(1)),
            jobs: BTreeMap::new(),
        }
    }

    /// Seconds since the beginning.
    pub(super) fn now(&self) -> f64 {
        self.now
    }

    /// The link.
    pub(super) fn link(&self) -> Link {
        self.link
    }

    /// Gives `actor`, who does nothing, work.
    pub(super) fn start(&mut self, actor: A, work: Work) {
        let job = match work {
            Work::Wait { until } => Job::Wait { until },
            Work::Transfer {
                bytes,
                latency_seconds,
                timeout_seconds,
            } => Job::Transfer {
                bytes: bytes as f64,
                left: bytes as f64,
                starts: self.now + latency_seconds,
                gives_up: self.now + timeout_seconds,
            },
            Work::Compute { seconds } => Job::Compute { left: seconds },
        };
        let before = self.jobs.insert(actor, job);
        debug_assert!(before.is_none(), "an actor does one thing at a time");
    }

    /// Ends what `actor` does.
    pub(super) fn cancel(&mut self, actor: A) {
        self.jobs.remove(&actor);
    }

    /// Bytes that have arrived of what `actor` transfers; 0 if it transfers nothing.
    pub(super) fn arrived_bytes(&self, actor: A) -> u64 {
        match self.jobs.get(&actor) {
            Some(Job::Transfer { bytes, left, .. }) => (bytes - left).round() as u64,
            _ => 0,
        }
    }

    /// Bytes that have arrived of everything that is being transferred.
    pub(super) fn arriving(&self) -> impl Iterator<Item = (A, u64)> + '_ {
        let actors = self.jobs.keys();
        actors.map(|&actor| (actor, self.arrived_bytes(actor)))
    }

    /// Lets time pass until somebody is done; `None` if nobody does anything.
    pub(super) fn next(&mut self) -> Option<(A, Outcome)> {
        loop {
            let (bandwidth, speed) = self.shares();
            // When each job's state changes next, and how.
            let mut first: Option<(f64, A, Change)> = None;
            for (&actor, job) in &self.jobs {
                let (at, change) = match *job {
                    Job::Wait { until } => (until, Change::Ends),
                    Job::Compute { left } => (self.now + left / speed, Change::Ends),
                    Job::Transfer {
                        starts, gives_up, ..
                    } if starts > self.now => {
                        if gives_up < starts {
                            (gives_up, Change::GivesUp)
                        } else {
                            (starts, Change::Arrives)
                        }
                    }
                    Job::Transfer { left, gives_up, .. } => {
                        let arrives = self.now + left / bandwidth;
                        if gives_up < arrives {
                            (gives_up, Change::GivesUp)
                        } else {
                            (arrives, Change::Ends)
                        }
                    }
                };
                if first.is_none_or(|(time, ..)| at < time) {
                    first = Some((at, actor, change));
                }
            }
            let (at, actor, change) = first?;
            self.pass(at.max(self.now), bandwidth, speed);
            match change {
                Change::Ends => {
                    self.jobs.remove(&actor);
                    return Some((actor, Outcome::Done));
                }
                Change::GivesUp => {
                    let arrived = self.arrived_bytes(actor);
                    self.jobs.remove(&actor);
                    return Some((actor, Outcome::TimedOut(arrived)));
                }
                Change::Arrives => {
                    // Its answer begins to arrive, whatever rounding made of the time.
                    if let Some(Job::Transfer { starts, .. }) = self.jobs.get_mut(&actor) {
                        *starts = self.now;
                    }
                }
            }
        }
    }

    /// Bytes a second of each transfer, and how much of a core each computation has.
    fn shares(&self) -> (f64, f64) {
        let (mut transfers, mut computations) = (0.0_f64, 0.0_f64);
        for job in self.jobs.values() {
            match *job {
                Job::Transfer { starts, .. } if starts <= self.now => transfers += 1.0,
                Job::Compute { .. } => computations += 1.0,
                Job::Transfer { .. } | Job::Wait { .. } => {}
            }
        }
        let bandwidth = self.link.bytes_per_second / transfers.max(1.0);
        (bandwidth, (self.cores / computations.max(1.0)).min(1.0))
    }

    fn pass(&mut self, to: f64, bandwidth: f64, speed: f64) {
        let passed = to - self.now;
        for job in self.jobs.values_mut() {
            match job {
                Job::Transfer { left, starts, .. } if *starts <= self.now => {
                    *left = (*left - passed * bandwidth).max(0.0);
                }
                Job::Compute { left } => *left = (*left - passed * speed).max(0.0),
                Job::Transfer { .. } | Job::Wait { .. } => {}
            }
        }
        self.now = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link {
        bytes_per_second: 100.0,
        round_trip_seconds: 0.0,
    };

    fn transfer(bytes: u64, latency_seconds: f64) -> Work {
        Work::Transfer {
            bytes,
            latency_seconds,
            timeout_seconds: 30.0,
        }
    }

    /// Starts `work` at once, and says who ends when.
    fn ends(cores: u32, work: &[Work]) -> Vec<(u32, f64, Outcome)> {
        let mut machine = Machine::new(LINK, cores);
        for (actor, work) in (0..).zip(work) {
            machine.start(actor, *work);
        }
        let next = || {
            let (actor, outcome) = machine.next()?;
            let rounded = (machine.now() * 1e6).round() / 1e6;
            Some((actor, rounded, outcome))
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_link_is_shared_by_those_who_transfer() {
        use Outcome::{Done, TimedOut};
        let check = |work: &[Work], expected: &[(u32, f64, Outcome)]| {
            assert_eq!(ends(1, work), expected, "{work:?}");
        };
        check(&[transfer(200, 0.5)], &[(0, 2.5, Done)]);
        // 100 bytes each at 50 a second, then 100 alone.
        check(
            &[transfer(100, 0.0), transfer(200, 0.0)],
            &[(0, 2.0, Done), (1, 3.0, Done)],
        );
        // One second alone, then shared: who waits for an answer does not narrow the link.
        check(
            &[transfer(200, 0.0), transfer(100, 1.0)],
            &[(0, 3.0, Done), (1, 3.0, Done)],
        );
        check(&[transfer(0, 0.0)], &[(0, 0.0, Done)]);
        check(&[transfer(3001, 0.0)], &[(0, 30.0, TimedOut(3000))]);
        check(&[transfer(1, 31.0)], &[(0, 30.0, TimedOut(0))]);
        check(
            &[Work::Wait { until: 2.0 }, transfer(100, 0.0)],
            &[(1, 1.0, Done), (0, 2.0, Done)],
        );
    }

    #[test]
    fn cores_are_shared_by_those_who_compute() {
        let compute = |seconds| Work::Compute { seconds };
        let check = |cores, work: &[Work], expected: &[(u32, f64)]| {
            let ends = ends(cores, work);
            let ends: Vec<(u32, f64)> = ends.into_iter().map(|(who, at, _)| (who, at)).collect();
            assert_eq!(ends, expected, "{cores} {work:?}");
        };
        check(4, &[compute(3.0), compute(1.0)], &[(1, 1.0), (0, 3.0)]);
        // One second of each takes 1.5 s on two cores; then a core each.
        let three = [compute(1.0), compute(2.0), compute(3.0)];
        check(2, &three, &[(0, 1.5), (1, 2.5), (2, 3.5)]);
        check(0, &[compute(1.0)], &[(0, 1.0)]);
    }

    #[test]
    fn what_has_arrived_is_known_meanwhile() {
        let mut machine = Machine::new(LINK, 1);
        machine.start(1, transfer(1000, 1.0));
        machine.start(2, Work::Wait { until: 3.0 });
        assert_eq!(machine.next(), Some((2, Outcome::Done)));
        assert_eq!(machine.arrived_bytes(1), 200);
        machine.cancel(1);
        assert_eq!((machine.arrived_bytes(1), machine.next()), (0, None));
    }
}
