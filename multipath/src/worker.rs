//! The threads on which blocking kernel calls live.
//!
//! A call to a dead path may never come back: SG_IO, a sysfs scan, an umount. Each has a thread to itself while it lasts ([`threads`]), the
//! caller waits for it with a deadline, and a thread that overruns is left behind and counted, never joined. Nothing here may block an async
//! worker.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

mod threads;
#[cfg(test)]
pub(crate) mod virtual_time;

/// How many left-behind threads may pile up before new work is refused: each holds a stack and a kernel call, and a host
/// that has this many stuck calls needs an administrator, not more threads.
pub const MAXIMUM_STUCK: usize = 256;

static STUCK: AtomicUsize = AtomicUsize::new(0);

/// Why blocking work gave no result.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The call did not return in time; its thread was left behind.
    #[error("{name} did not return within {deadline:?}")]
    Deadline {
        /// What was done.
        name: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// Too many calls hang already.
    #[error("{name} was not started: {stuck} kernel calls hang already")]
    TooManyStuck {
        /// What was to be done.
        name: &'static str,
        /// How many hang.
        stuck: usize,
    },
    /// The thread could not be started, or it panicked.
    #[error("the thread for {name} ended without a result")]
    Died {
        /// What was done.
        name: &'static str,
    },
}

/// Calls that overran their deadline and have not returned since.
#[must_use]
pub fn stuck() -> usize {
    STUCK.load(Ordering::Relaxed)
}

/// Runs `f` on a thread that does nothing else meanwhile, and waits for it until the deadline.
///
/// The work goes on when the deadline passes or the caller is dropped: a kernel call cannot be taken back.
pub async fn run<T: Send + 'static>(
    name: &'static str,
    deadline: Duration,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkerError> {
    let stuck = stuck();
    if stuck >= MAXIMUM_STUCK {
        return Err(WorkerError::TooManyStuck { name, stuck });
    }
    let (done, mut result) = oneshot::channel();
    let begun = Instant::now();
    #[cfg(test)]
    let hold = virtual_time::Hold::new();
    let call = move || {
        #[cfg(test)]
        let _hold = virtual_time::enter(hold);
        let value = f();
        // An error means that nobody waits any more.
        let _ = done.send(value);
    };
    threads::hand_over(name, call).map_err(|_| WorkerError::Died { name })?;
    match tokio::time::timeout(deadline, &mut result).await {
        Ok(Ok(value)) => {
            tracing::trace!(call = name, took = ?begun.elapsed(), "kernel call");
            Ok(value)
        }
        Ok(Err(_)) => Err(WorkerError::Died { name }),
        Err(_) => {
            STUCK.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                call = name,
                ?deadline,
                stuck = self::stuck(),
                "a kernel call hangs; its thread is left behind"
            );
            tokio::spawn(async move {
                let _ = result.await;
                STUCK.fetch_sub(1, Ordering::Relaxed);
            });
            Err(WorkerError::Deadline { name, deadline })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn an_overrun_is_reported_counted_and_forgotten_when_it_returns() {
        let (release, wait) = mpsc::channel::<()>();
        let (left, gone) = oneshot::channel();
        let error = run("hanging", Duration::from_millis(20), move || {
            let _ = wait.recv();
            let _ = left.send(());
        })
        .await
        .unwrap_err();
        assert!(
            matches!(error, WorkerError::Deadline { name: "hanging", .. }),
            "{error}"
        );
        assert!(stuck() >= 1);
        release.send(()).unwrap();
        gone.await.unwrap();
        assert_eq!(run("next", Duration::from_secs(5), || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let error = run("panicking", Duration::from_secs(5), || panic!("on purpose"))
            .await
            .unwrap_err();
        assert!(matches!(error, WorkerError::Died { .. }));
    }
}
