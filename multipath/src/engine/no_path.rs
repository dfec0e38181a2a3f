//! Bounded queueing: a map without a usable path holds I/O for [`NO_PATH_RETRY`], then fails it, so that what waits for it can
//! end: a file system is told, a container can be stopped, a node that was cut off from the array gives up by itself. With
//! a path back the map holds I/O again, as it did before.

use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, Map, PathView, monitor::Shared};

/// How long I/O is held without a usable path.
#[cfg(not(test))]
pub const NO_PATH_RETRY: Duration = Duration::from_secs(60);
/// The same for tests.
#[cfg(test)]
pub const NO_PATH_RETRY: Duration = Duration::from_millis(300);

impl Engine {
    /// Fails what has been held for too long, or lets a map with a path hold again.
    pub(super) fn bound_queueing(&self, map: &Map, memory: &Shared) {
        let usable = map.paths().any(PathView::is_usable);
        let due = match usable {
            true => {
                memory.get().pathless.remove(&map.name);
                !map.queue_if_no_path
            }
            false => {
                let now = Instant::now();
                let since = *memory.get().pathless.entry(map.name.clone()).or_insert(now);
                map.queue_if_no_path && now >= since + NO_PATH_RETRY
            }
        };
        if !due {
            return;
        }
        let Some(busy) = memory.claim(map.devno) else {
            return;
        };
        let message = if usable {
            "queue_if_no_path"
        } else {
            "fail_if_no_path"
        };
        if usable {
            tracing::info!(dm.name = map.name, wwid = %map.wwid, "a path is usable: the map holds I/O again when none is");
        } else {
            tracing::error!(dm.name = map.name, wwid = %map.wwid, held = ?NO_PATH_RETRY, "no path is usable: I/O of this map fails now");
        }
        let (engine, map) = (self.clone(), map.clone());
        tokio::spawn(async move {
            if let Err(error) = engine.message(&map, message.to_owned(), busy).await {
                tracing::warn!(
                    dm.name = map.name,
                    message,
                    error,
                    "the map did not take the message"
                );
            }
        });
    }
}
