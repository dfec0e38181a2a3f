//! Removing a map: flush, remove the device, and say which disks were its paths.
//!
//! Never suspends first: a removal that is refused after a suspend would leave a suspended map behind. Never deletes a SCSI device: whoever attached
//! them detaches them.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::{Engine, Map, RemoveError};
use crate::{Host, ScsiDisk, Wwid, host::DmError, scsi_device, worker};

/// How often a busy map is tried again. A udev that looks at the device holds it for some milliseconds.
const RETRY: Duration = Duration::from_millis(50);

impl Engine {
    /// Removes the volume's map. Answers the disks that were its paths; none when there was no map.
    ///
    /// The device must not be open any more. What a last close wrote out is on the array already; the flush here makes a volatile cache of
    /// the array follow. Without a usable path there is nothing to flush to, and nothing waits.
    ///
    /// # Errors
    /// See [`RemoveError`]; the map is whole then.
    pub async fn remove(&self, wwid: &Wwid, deadline: Duration) -> Result<Vec<ScsiDisk>, RemoveError> {
        let until = Instant::now() + deadline;
        let guard = self.lock(wwid).await;
        let (host, wanted) = (self.host.clone(), wwid.clone());
        let held = guard.clone();
        let found = worker::run("find-map", deadline, move || {
            let _held = held;
            let maps = super::view::maps(&host)?;
            let map = maps.into_iter().find(|map| map.wwid == wanted);
            Ok::<_, DmError>(map.map(|map| (paths(&host, &map), map)))
        })
        .await?
        .map_err(|source| RemoveError::Kernel {
            name: crate::names::map_uuid(wwid),
            source,
        })?;
        let Some((disks, map)) = found else {
            return Ok(vec![]);
        };

        if map.open_count == 0 && map.live_table && !map.suspended {
            self.flush(
                &map,
                until.saturating_duration_since(Instant::now()),
                guard.clone(),
            )
            .await?;
        }
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            retry.tick().await;
            let left = until.saturating_duration_since(Instant::now());
            let (host, name, held) = (self.host.clone(), map.name.clone(), guard.clone());
            let removed = worker::run("remove-map", left.max(RETRY), move || {
                let _held = held;
                match host.dm.info(&name)? {
                    None => Ok(None),
                    Some(info) if info.open_count > 0 => Ok(Some(info.open_count)),
                    Some(_) => host.dm.remove(&name).map(|()| None),
                }
            })
            .await?;
            let open_count = match removed {
                Ok(None) => return Ok(disks),
                Ok(Some(open_count)) => open_count,
                Err(error) if error.is_missing() => return Ok(disks),
                Err(error) if error.is_busy() => 1,
                Err(source) => {
                    return Err(RemoveError::Kernel {
                        name: map.name,
                        source,
                    });
                }
            };
            if Instant::now() + RETRY > until {
                return Err(RemoveError::Busy {
                    name: map.name,
                    open_count,
                    waited: deadline,
                });
            }
        }
    }

    async fn flush(
        &self,
        map: &Map,
        deadline: Duration,
        held: std::sync::Arc<tokio::sync::OwnedMutexGuard<()>>,
    ) -> Result<(), RemoveError> {
        if !map.paths().any(super::PathView::is_usable) {
            tracing::warn!(dm.name = map.name, wwid = %map.wwid, "no usable path: the map is removed without a flush");
            return Ok(());
        }
        let (host, devno, kernel_name) = (self.host.clone(), map.devno, map.kernel_name());
        worker::run("flush-map", deadline, move || {
            let _held = held;
            host.block.flush(devno, &kernel_name)
        })
        .await?
        .map_err(|source| RemoveError::Flush {
            name: map.name.clone(),
            source,
        })
    }
}

fn paths(host: &Host, map: &Map) -> Vec<ScsiDisk> {
    map.paths()
        .filter_map(|path| scsi_device::find_by_devno(host, path.devno))
        .collect()
}
