//! Proves the paths in use again and again: a LUN that an array exchanged under a path that never failed is noticed here, and nowhere else.
//!
//! Every [`CYCLE`], and as soon as a device tells of a change that can mean it (a unit attention), each usable path is asked for VPD page 0x83,
//! live. One that names another disk is failed at once, even if it is the last: held I/O is better than I/O to somebody else's data. Then it
//! leaves the table and its SCSI device goes, unless it is the only path: that one stays, failed, and comes back when it leads to the volume
//! again. A path that gives no answer is the monitor's business.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use super::{
    Change, Engine, KERNEL_DEADLINE, Map, PathView, ProveError, full,
    kernel_events::{KernelEvents, next_of},
    monitor::{Busy, CHECK, Shared},
};
use crate::{
    Hctl, Host, Wwid,
    scsi_device::{self, Place},
    worker,
    wwid::parse_vpd_83,
};

/// How often each path is asked without a reason: one command of 1 KiB at most.
#[cfg(not(test))]
const CYCLE: Duration = Duration::from_secs(30);
#[cfg(test)]
const CYCLE: Duration = Duration::from_millis(100);
/// Pause after a cycle, however many unit attentions there are: an array that restarts has one for each path.
const REST: Duration = Duration::from_secs(1);
/// Threads that ask at the same time.
const AT_ONCE: usize = 8;
/// Paths that one thread asks, one after the other: a thread for each of thousands would cost more than the question. One that hangs puts
/// those behind it off to the next cycle, where it is left out.
const BATCH: usize = 16;

impl Engine {
    /// Watches without end.
    pub(super) async fn watch_identities(&self) {
        let events = KernelEvents::of_unit_attentions()
            .inspect_err(
                |error| tracing::warn!(%error, "no kernel events here: paths are proved on a timer only"),
            )
            .ok();
        let memory = Shared::default();
        let mut next = Instant::now() + CYCLE;
        let mut rest = Instant::now();
        loop {
            let event = next_of(events.as_ref());
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    self.prove_again(&memory).await;
                    rest = Instant::now() + REST;
                    next = Instant::now() + CYCLE;
                }
                event = event => {
                    if let Err(error) = event {
                        tracing::warn!(%error, "reading kernel events");
                        // A socket that is always ready with an error must not spin.
                        tokio::time::sleep(REST).await;
                    }
                    next = next.min(rest);
                }
            }
        }
    }

    /// Asks every usable path. Ends when all have answered or run into their deadline.
    async fn prove_again(&self, memory: &Shared) {
        let maps = match self.maps().await {
            Ok(maps) => maps,
            Err(error) => {
                tracing::warn!(error = full(&error), "cannot read the maps");
                return;
            }
        };
        let mut paths = Vec::new();
        for map in maps.into_iter().filter(|map| !map.suspended).map(Arc::new) {
            let usable = map.paths().filter(|path| path.is_usable());
            paths.extend(usable.map(|path| (map.clone(), path.clone())));
        }
        let mut asked = JoinSet::new();
        for batch in paths.chunks(BATCH) {
            if asked.len() >= AT_ONCE {
                asked.join_next().await;
            }
            let (engine, memory, batch) = (self.clone(), memory.clone(), batch.to_vec());
            let runtime = tokio::runtime::Handle::current();
            asked.spawn(worker::run("prove-again", CHECK, move || {
                for (map, path) in batch {
                    // The last one asked still hangs.
                    let Some(busy) = memory.claim(path.devno) else {
                        continue;
                    };
                    let Err(error) = leads_to(&engine.host, &path, &map.wwid) else {
                        continue;
                    };
                    if matches!(error, ProveError::Mismatch { .. }) {
                        let engine = engine.clone();
                        runtime.spawn(async move { engine.misled(&map, &path, &error, busy).await });
                    } else {
                        tracing::debug!(dm.name = map.name, path = %path.devno, error = full(&error), "path did not say what it is");
                    }
                }
            }));
        }
        // Overruns are logged by the worker.
        while asked.join_next().await.is_some() {}
    }

    /// Keeps I/O away from a path that leads to another disk, and tells of it.
    pub(super) async fn misled(&self, map: &Map, path: &PathView, error: &ProveError, busy: Busy) {
        tracing::error!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
            portal = path.portal, error = full(error), "the path leads to another disk: no I/O goes to it");
        if path.active
            && let Err(error) = self.message(map, format!("fail_path {}", path.devno), busy).await
        {
            tracing::error!(dm.name = map.name, path = %path.devno, error, "cannot fail the path");
        }
        let shed = self.shed(map).await;
        self.tell(map, path, Change::Misled);
        if let Err(error) = shed {
            tracing::warn!(
                dm.name = map.name,
                error = full(&error),
                "cannot take the path out of the map yet: it stays failed"
            );
        }
    }

    /// Takes failed paths that lead to other disks out of the map, and their SCSI devices from the host.
    async fn shed(&self, map: &Map) -> Result<(), super::BuildError> {
        let guard = self.lock(&map.wwid, KERNEL_DEADLINE).await?;
        let (host, wwid) = (self.host.clone(), map.wwid.clone());
        worker::run("shed-paths", KERNEL_DEADLINE, move || {
            let _held = guard;
            for disk in super::build::shed(&host, &wwid)? {
                // It was found for this volume; whoever wants the other disk finds it anew.
                if let Err(error) = scsi_device::delete(&host, &disk) {
                    tracing::warn!(device = disk.name, hctl = %disk.hctl, %error, "cannot delete the device of another disk");
                }
            }
            Ok(())
        })
        .await?
    }
}

/// Asks a path that was usable just now for its identity. Blocking. Most paths are what they are: only for another answer than the expected
/// one everything about the disk is read, which costs many times the question.
fn leads_to(host: &Host, path: &PathView, wwid: &Wwid) -> Result<(), ProveError> {
    let here = Place::of(host, path.devno)
        .filter(|place| place.name == path.name && place.state(host).as_deref() == Some("running"));
    let page = here.and_then(|place| host.scsi.inquiry_vpd(&place.name, 0x83).ok());
    let found = page.and_then(|page| parse_vpd_83(&page).ok());
    if found.is_some_and(|found| found.contains(wwid)) {
        return Ok(());
    }
    let gone = ProveError::Gone { devno: path.devno };
    let hctl = path.hctl.parse::<Hctl>().map_err(|_| gone)?;
    super::prove(host, hctl, wwid).map(drop)
}
