//! The paths that a stage did not wait for: one task per volume brings them up and puts them into the map.
//!
//! A task must have ended before its volume is taken apart, or a device would appear behind the back of Unstage:
//! [`Joins::stop`] asks and waits. A task never makes a map: when the map is gone, its work is done.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use storagelink_multipath::{Engine, Wwid};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::transport::Transport;
use crate::{
    codes::chain,
    publish_context::{Portal, PublishContext},
};

/// Pause after the first round that left a portal out; it doubles up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_secs(2);
/// Longest pause between two rounds.
const LONGEST: Duration = Duration::from_secs(60);
/// How long [`Joins::stop`] waits: a little more than one path may take.
const STOP: Duration = Duration::from_secs(20);

struct Task {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

/// The running tasks, by volume. Clones share them.
#[derive(Clone, Default)]
pub struct Joins(Arc<Mutex<HashMap<Uuid, Task>>>);

/// A path is still being brought up and cannot be interrupted.
#[derive(Debug, thiserror::Error)]
#[error("volume {0}: a path is still being brought up in the background")]
pub struct StillJoining(pub Uuid);

impl Joins {
    /// Starts the task of a volume, unless one runs.
    pub fn start(
        &self,
        volume: Uuid,
        wwid: Wwid,
        context: PublishContext,
        missing: Vec<Portal>,
        transport: Arc<dyn Transport>,
        engine: Engine,
    ) {
        if missing.is_empty() {
            return;
        }
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|_, task| !task.handle.is_finished());
        tasks.entry(volume).or_insert_with(|| {
            let stop = CancellationToken::new();
            let work = Work {
                volume,
                wwid,
                context,
                transport,
                engine,
                stop: stop.clone(),
            };
            Task {
                stop,
                handle: tokio::spawn(work.run(missing)),
            }
        });
    }

    /// Stops the task of a volume and waits for its end. No task is success.
    pub async fn stop(&self, volume: Uuid) -> Result<(), StillJoining> {
        let task = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&volume);
        let Some(mut task) = task else { return Ok(()) };
        task.stop.cancel();
        if tokio::time::timeout(STOP, &mut task.handle).await.is_ok() {
            return Ok(());
        }
        // It stays known, so that the next call waits for the same one.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(volume)
            .or_insert(task);
        Err(StillJoining(volume))
    }

    /// How many tasks run.
    #[must_use]
    pub fn running(&self) -> usize {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.values().filter(|task| !task.handle.is_finished()).count()
    }
}

struct Work {
    volume: Uuid,
    wwid: Wwid,
    context: PublishContext,
    transport: Arc<dyn Transport>,
    engine: Engine,
    stop: CancellationToken,
}

impl Work {
    async fn run(self, mut missing: Vec<Portal>) {
        let mut pause = SHORTEST;
        while !missing.is_empty() && !self.stop.is_cancelled() {
            match self.engine.find(&self.wwid).await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(volume.id = %self.volume, error = chain(&error), "cannot look at its map");
                }
            }
            let mut left = Vec::new();
            // One after the other: nobody waits for them, and the map is changed once per path anyway.
            for portal in missing {
                if self.stop.is_cancelled() {
                    return;
                }
                match self.one(&portal).await {
                    Ok(()) => tracing::info!(volume.id = %self.volume, %portal, "late path joined"),
                    Err(error) => {
                        tracing::warn!(volume.id = %self.volume, %portal, error, "path is still missing");
                        left.push(portal);
                    }
                }
            }
            missing = left;
            if missing.is_empty() {
                return;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    async fn one(&self, portal: &Portal) -> Result<(), String> {
        let proven = self
            .transport
            .attach_one(portal, &self.context)
            .await
            .map_err(|e| chain(&e))?;
        self.engine
            .join(&self.wwid, proven)
            .await
            .map_err(|e| chain(&e))?;
        Ok(())
    }
}
