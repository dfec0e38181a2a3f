//! How many volumes of one target are brought up at the same time.
//!
//! All of a node's pods may come at once. Their scans wait for each other in the kernel (one at a time per SCSI host,
//! drivers/scsi/scsi_scan.c, `scan_mutex`) while each has a deadline: without turns, forty of them on a small machine run into it
//! together, and again when they are repeated. Whoever waits its turn is served in order. Volumes of another target never wait: theirs
//! may be the array that still answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::available_parallelism,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns for each processor: a volume waits for its array more than it computes.
const PER_PROCESSOR: usize = 2;
/// At least, and at most, of one target.
const LEAST: usize = 4;
const MOST: usize = 32;

/// The turns of every target.
pub(super) struct Turns {
    limit: usize,
    targets: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A turn; it ends when dropped.
pub(super) struct Turn {
    _held: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self::new((PER_PROCESSOR * processors).clamp(LEAST, MOST))
    }
}

impl Turns {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            targets: Mutex::default(),
        }
    }

    /// Waits for a turn of a target, in the order of asking.
    pub(super) async fn take(&self, target: &str) -> Turn {
        let turns = self.of(target);
        Turn {
            _held: turns.acquire_owned().await.expect("nobody closes it"),
        }
    }

    /// What nobody uses any more is forgotten here: targets come and go with their arrays.
    fn of(&self, target: &str) -> Arc<Semaphore> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|_, turns| turns.strong_count() > 0);
        if let Some(turns) = targets.get(target).and_then(Weak::upgrade) {
            return turns;
        }
        let turns = Arc::new(Semaphore::new(self.limit));
        targets.insert(target.to_owned(), Arc::downgrade(&turns));
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a future has now, without waiting for it.
    async fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn one_target_has_so_many_turns_and_another_does_not_wait_for_it() {
        let turns = Turns::new(2);
        let first = turns.take("a").await;
        let _second = turns.take("a").await;
        let mut third = Box::pin(turns.take("a"));
        assert!(now(third.as_mut()).await.is_none(), "two are under way");
        let _other = now(turns.take("b")).await.expect("another target is free");
        drop(first);
        let _third = now(third).await.expect("its turn");
    }

    #[tokio::test]
    async fn a_target_that_nobody_uses_is_forgotten() {
        let turns = Turns::default();
        assert!((LEAST..=MOST).contains(&turns.limit));
        drop(turns.take("a").await);
        let _b = turns.take("b").await;
        assert_eq!(turns.targets.lock().unwrap().len(), 1);
    }
}
