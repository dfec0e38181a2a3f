//! Bounded queueing: a map without a usable path holds I/O for as long as its policy says, then fails it, so that what waits for it can
//! end: a file system is told, a container can be stopped, a node that was cut off from the array gives up by itself. With
//! a path back the map holds I/O again, as it did before.

use tokio::time::Instant;

use super::{Engine, Map, monitor::Shared};
use crate::policy::NoPathRetry;

impl Engine {
    /// Fails what has been held for too long, or lets a map with a path hold again.
    pub(super) fn bound_queueing(&self, map: &Map, memory: &Shared) {
        let usable = map.has_usable_path();
        let retry = self.policy(&map.wwid).no_path_retry;
        let now = Instant::now();
        let since = match usable {
            true => {
                memory.get().pathless.remove(&map.name);
                now
            }
            false => *memory.get().pathless.entry(map.name.clone()).or_insert(now),
        };
        let hold = match retry {
            NoPathRetry::Fail => false,
            NoPathRetry::Queue => true,
            NoPathRetry::For(time) => usable || now < since + time,
        };
        // Held I/O is given up once; a map that failed it holds again only with a path, when nothing has to be given up a second time.
        let due = if hold {
            usable && !map.queue_if_no_path
        } else {
            map.queue_if_no_path
        };
        if !due {
            return;
        }
        let Some(busy) = memory.claim(map.devno) else {
            return;
        };
        let message = if hold {
            "queue_if_no_path"
        } else {
            "fail_if_no_path"
        };
        if hold {
            tracing::info!(dm.name = map.name, wwid = %map.wwid, "a path is usable: the map holds I/O again when none is");
        } else if usable {
            tracing::info!(dm.name = map.name, wwid = %map.wwid, "the map fails I/O as soon as no path is usable");
        } else {
            tracing::error!(dm.name = map.name, wwid = %map.wwid, no_path_retry = %retry, "no path is usable: I/O of this map fails now");
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
