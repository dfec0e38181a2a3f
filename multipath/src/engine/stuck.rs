//! Frees I/O that a path holds without end: deletes its SCSI device.
//!
//! A session whose owner gave it a long replacement timeout keeps the I/O of a lost path for that time; new I/O goes elsewhere, what is in flight does
//! not come back. Deleting the device gives it back at once (measured: even with a timeout of 120 s). Only when another path of the map is usable,
//! and only after [`HELD`]: a session of ours gives its I/O back by itself before. So does a Fibre Channel port after its `fast_io_fail_tmo`, which is
//! waited for first. The path joins again when it is back ([`Change::LeftOut`]).

use std::time::Duration;

use tokio::time::Instant;

use super::{Change, Engine, Map, PathView, full, monitor::Shared};
use crate::{scsi_device, worker};

/// How long a path may hold I/O: twice what our own sessions need to notice a silent portal (NOP-Out interval and timeout, 1 s each).
#[cfg(not(test))]
const HELD: Duration = Duration::from_secs(4);
#[cfg(test)]
const HELD: Duration = Duration::from_millis(300);
/// Time for the deletion of a device that takes no commands.
const DELETE: Duration = Duration::from_secs(10);

impl Engine {
    /// Deletes the device of a path that is blocked for too long. The caller knows that another path is usable.
    pub(super) fn free_stuck(&self, map: &Map, path: &PathView, memory: &Shared) {
        let now = Instant::now();
        let since = *memory.get().blocked.entry(path.devno).or_insert(now);
        let by_itself = path.remote_port.and_then(|port| port.fast_io_fail(&self.host));
        if now < since + by_itself.unwrap_or_default() + HELD {
            return;
        }
        let Some(busy) = memory.claim(path.devno) else {
            return;
        };
        tracing::warn!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
            portal = path.portal, "path holds its I/O: its device is deleted, which gives it back");
        let (engine, map, path) = (self.clone(), map.clone(), path.clone());
        tokio::spawn(async move {
            let (host, devno) = (engine.host.clone(), path.devno);
            let deleted = worker::run("free-path", DELETE, move || {
                let _busy = busy;
                match scsi_device::find_by_devno(&host, devno) {
                    Some(disk) if disk.is_blocked() => scsi_device::delete(&host, &disk).map(|()| true),
                    _ => Ok(false),
                }
            })
            .await;
            match deleted {
                Ok(Ok(true)) => engine.tell(&map, &path, Change::LeftOut),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(dm.name = map.name, path = %path.devno, error = full(&error), "cannot delete the device");
                }
                // Logged by the worker.
                Err(_) => {}
            }
        });
    }
}
