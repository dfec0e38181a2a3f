//! Removing a map: flush, remove the device, and say which disks were its paths.
//!
//! Never suspends first: a removal that is refused after a suspend would leave a suspended map behind. Never deletes a SCSI device: whoever attached
//! them detaches them.

use std::time::Duration;

use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior},
};

use super::{Engine, Held, Map, RemoveError, view};
use crate::{
    Host, ScsiDisk, Wwid,
    host::{DmError, DmInfo},
    scsi_device,
    worker::{self, WorkerError},
};

/// How often a busy map is tried again. A udev that looks at the device holds it for some milliseconds.
const RETRY: Duration = Duration::from_millis(50);
/// Time for one call that only asks or tells device-mapper something.
const CALL: Duration = Duration::from_secs(5);
/// How long a flush may take to come back after its I/O was given up.
const GIVEN_UP: Duration = Duration::from_secs(2);

impl Engine {
    /// Removes the volume's map. Answers the disks that were its paths; none when there was no map.
    ///
    /// The device must not be open any more. What a last close wrote out is on the array already; the flush here makes a volatile cache of
    /// the array follow. Without a usable path there is nothing to flush to, and nothing waits.
    ///
    /// # Errors
    /// See [`RemoveError`]; the map is whole then.
    pub async fn remove(&self, wwid: &Wwid, deadline: Duration) -> Result<Vec<ScsiDisk>, RemoveError> {
        let disks = self.remove_map(wwid, deadline).await?;
        self.policies().remove(wwid);
        Ok(disks)
    }

    async fn remove_map(&self, wwid: &Wwid, deadline: Duration) -> Result<Vec<ScsiDisk>, RemoveError> {
        let until = Instant::now() + deadline;
        let left = || until.saturating_duration_since(Instant::now());
        let held = self.lock(wwid, deadline).await?;
        let uuid = self.host.names.map_uuid(wwid);
        let wanted = uuid.clone();
        let found = under(&held, &self.host, "find-map", CALL, move |host| {
            let maps = view::those(host, |info| info.uuid == wanted)?;
            Ok::<_, DmError>(maps.into_iter().next().map(|map| (paths(host, &map), map)))
        })
        .await?
        .map_err(|source| RemoveError::Kernel { name: uuid, source })?;
        let Some((disks, map)) = found else {
            return Ok(vec![]);
        };
        let kernel = |source| RemoveError::Kernel {
            name: map.name.clone(),
            source,
        };

        let mut flushed = !map.live_table || map.suspended;
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            retry.tick().await;
            let open_count = match self.state(&map, &held).await?.map_err(kernel)? {
                None => return Ok(disks),
                Some(info) if info.open_count > 0 => info.open_count,
                Some(_) => {
                    if !flushed {
                        self.flush(&map, left(), &held).await?;
                        flushed = true;
                    }
                    let name = map.name.clone();
                    let removed = under(&held, &self.host, "remove-map", left().max(RETRY), move |host| {
                        host.dm.remove(&name)
                    });
                    match removed.await? {
                        Ok(()) => return Ok(disks),
                        Err(error) if error.is_missing() => return Ok(disks),
                        // Opened since the look.
                        Err(error) if error.is_busy() => 1,
                        Err(error) => return Err(kernel(error)),
                    }
                }
            };
            if left() < RETRY {
                return Err(RemoveError::Busy {
                    name: map.name,
                    open_count,
                    waited: deadline,
                });
            }
        }
    }

    async fn state(&self, map: &Map, held: &Held) -> Result<Result<Option<DmInfo>, DmError>, WorkerError> {
        let name = map.name.clone();
        under(held, &self.host, "look-at-map", CALL, move |host| {
            host.dm.info(&name)
        })
        .await
    }

    async fn flush(&self, map: &Map, deadline: Duration, held: &Held) -> Result<(), RemoveError> {
        if !map.paths().any(super::PathView::is_usable) {
            tracing::warn!(dm.name = map.name, wwid = %map.wwid, "no usable path: the map is removed without a flush");
            return Ok(());
        }
        let (devno, kernel_name) = (map.devno, map.kernel_name());
        let (returned, back) = oneshot::channel::<()>();
        let flush = under(held, &self.host, "flush-map", deadline, move |host| {
            let _returned = returned;
            host.block.flush(devno, &kernel_name)
        });
        match flush.await {
            Ok(result) => result.map_err(|source| RemoveError::Flush {
                name: map.name.clone(),
                source,
            }),
            Err(error) => {
                if matches!(error, WorkerError::Deadline { .. }) {
                    self.give_up(map, held, back).await;
                }
                Err(error.into())
            }
        }
    }

    /// Ends a flush that waits for a path: its I/O fails, the map then queues again as before.
    async fn give_up(&self, map: &Map, held: &Held, back: oneshot::Receiver<()>) {
        let tell = |message: &'static str| {
            let name = map.name.clone();
            under(held, &self.host, "message-map", CALL, move |host| {
                host.dm.message(&name, message)
            })
        };
        if let Ok(Err(error)) = tell("fail_if_no_path").await {
            tracing::warn!(dm.name = map.name, %error, "cannot end the flush");
        }
        // An error is the end of the flush: it drops the sender.
        let _ = tokio::time::timeout(GIVEN_UP, back).await;
        if let Ok(Err(error)) = tell("queue_if_no_path").await {
            tracing::warn!(dm.name = map.name, %error, "the map does not queue any more");
        }
    }
}

/// Runs a kernel call on its own thread, which keeps the volume's lock as long as the call takes.
async fn under<T: Send + 'static>(
    held: &Held,
    host: &Host,
    name: &'static str,
    deadline: Duration,
    f: impl FnOnce(&Host) -> T + Send + 'static,
) -> Result<T, WorkerError> {
    let (held, host) = (held.clone(), host.clone());
    worker::run(name, deadline, move || {
        let _held = held;
        f(&host)
    })
    .await
}

fn paths(host: &Host, map: &Map) -> Vec<ScsiDisk> {
    map.paths()
        .filter_map(|path| scsi_device::find_by_devno(host, path.devno))
        .collect()
}
