//! Parallel work whose results are consumed in order, under one bound on memory.
//!
//! Workers are scoped threads with a state of their own; jobs are made, and results consumed, on
//! the caller's thread, so that neither needs a lock. What is consumed, and in which order, does
//! not depend on the number of threads.

use std::collections::VecDeque;
use std::thread;

use crossbeam::channel::{bounded, unbounded};

use crate::cancel::{Cancel, Cancelled};

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub struct Parallel {
    /// Worker threads; at least one is used.
    pub threads: usize,
    /// Bound on the sum of the costs of all jobs that are handed out and not yet consumed. A job
    /// that alone costs more is admitted when nothing else is under way.
    pub memory_bytes: u64,
}

/// A job and what it costs in memory until its result is consumed.
pub(super) struct Costed<J> {
    /// What a worker is given.
    pub(super) job: J,
    /// Bytes of memory that the job and its result take.
    pub(super) cost_bytes: u64,
}

/// Runs `work` on every job, on worker threads, and `consume` on every result in the jobs' order,
/// on this thread.
///
/// # Errors
/// The first error in the jobs' order, or [`Cancelled`]. All workers have ended by then.
pub(super) fn in_order<J, R, S, E>(
    parallel: Parallel,
    cancel: &Cancel,
    jobs: impl IntoIterator<Item = Costed<J>>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, J) -> Result<R, E> + Sync,
    mut consume: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    J: Send,
    R: Send,
    E: Send + From<Cancelled>,
{
    let threads = parallel.threads.max(1);
    let (job_sender, job_receiver) = bounded::<(u64, J)>(threads);
    let (result_sender, result_receiver) = unbounded::<(u64, Result<R, E>)>();
    thread::scope(|scope| {
        for index in 0..threads {
            let (jobs, results) = (job_receiver.clone(), result_sender.clone());
            let (state, work) = (&state, &work);
            let worker = move || {
                let mut state = state();
                for (number, job) in jobs {
                    if cancel.is_cancelled()
                        || results.send((number, work(&mut state, job))).is_err()
                    {
                        break;
                    }
                }
            };
            let builder = thread::Builder::new().name(format!("layer-{index}"));
            if let Err(error) = builder.spawn_scoped(scope, worker) {
                // One worker is enough to go on.
                assert!(index > 0, "no thread can be started: {error}");
                break;
            }
        }
        drop((job_receiver, result_sender));
        // Moved in here: workers end when it is dropped, whichever way this closure is left.
        let job_sender = job_sender;

        let mut jobs = jobs.into_iter().fuse().peekable();
        // Costs and results of the jobs under way, the next one to be consumed first.
        let mut under_way: VecDeque<(u64, Option<Result<R, E>>)> = VecDeque::new();
        let (mut handed_out, mut consumed, mut used_bytes) = (0_u64, 0_u64, 0_u64);
        loop {
            cancel.check()?;
            while let Some(next) = jobs.peek() {
                let fits = used_bytes.saturating_add(next.cost_bytes) <= parallel.memory_bytes;
                // The queue is kept short, so that a failure stops the work at once.
                let queue_has_room = !job_sender.is_full();
                if !(queue_has_room && (fits || under_way.is_empty())) {
                    break;
                }
                let Some(Costed { job, cost_bytes }) = jobs.next() else {
                    break;
                };
                used_bytes += cost_bytes;
                under_way.push_back((cost_bytes, None));
                if job_sender.send((handed_out, job)).is_err() {
                    return Err(Cancelled.into());
                }
                handed_out += 1;
            }
            if under_way.is_empty() {
                return Ok(());
            }
            // Workers are gone only when they panicked or were cancelled; the scope passes a
            // panic on.
            let Ok((number, result)) = result_receiver.recv() else {
                return Err(Cancelled.into());
            };
            let place = usize::try_from(number - consumed).unwrap_or(usize::MAX);
            under_way[place].1 = Some(result);
            while matches!(under_way.front(), Some((_, Some(_)))) {
                if let Some((cost_bytes, Some(result))) = under_way.pop_front() {
                    used_bytes -= cost_bytes;
                    consumed += 1;
                    consume(result?)?;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Failure {
        Job(u64),
        Cancelled,
    }

    impl From<Cancelled> for Failure {
        fn from(_: Cancelled) -> Self {
            Self::Cancelled
        }
    }

    fn costed(job: u64) -> Costed<u64> {
        Costed {
            job,
            cost_bytes: 10,
        }
    }

    #[test]
    fn results_come_in_order_and_within_the_bound() {
        for (threads, memory_bytes) in [(1, 0), (3, 25), (7, 1000)] {
            let under_way = AtomicU64::new(0);
            let mut seen = Vec::new();
            let result = in_order(
                Parallel {
                    threads,
                    memory_bytes,
                },
                &Cancel::default(),
                (0..200).map(|job| {
                    // One job more than the bound: it is made before it is admitted.
                    let bound = (memory_bytes / 10).max(1) + 1;
                    assert!(under_way.fetch_add(1, Ordering::SeqCst) < bound);
                    costed(job)
                }),
                || (),
                |(), job| {
                    if job % 7 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    Ok::<_, Failure>(job)
                },
                |job| {
                    under_way.fetch_sub(1, Ordering::SeqCst);
                    seen.push(job);
                    Ok(())
                },
            );
            assert_eq!(result, Ok(()));
            assert_eq!(seen, (0..200).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_failure_in_order_is_reported() {
        for threads in [1, 4] {
            let result = in_order(
                Parallel {
                    threads,
                    memory_bytes: 1000,
                },
                &Cancel::default(),
                (0..100).map(costed),
                || (),
                |(), job| {
                    if job == 30 || job == 31 {
                        Err(Failure::Job(job))
                    } else {
                        Ok(job)
                    }
                },
                |_| Ok(()),
            );
            assert_eq!(result, Err(Failure::Job(30)));
        }
    }

    #[test]
    fn cancelling_ends_the_work() {
        let cancel = Cancel::default();
        let result = in_order(
            Parallel {
                threads: 2,
                memory_bytes: 1000,
            },
            &cancel,
            (0..).map(costed),
            || (),
            |(), job| Ok::<_, Failure>(job),
            |job| {
                if job == 50 {
                    cancel.cancel();
                }
                Ok(())
            },
        );
        assert_eq!(result, Err(Failure::Cancelled));
    }
}
