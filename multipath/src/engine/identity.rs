//! Proves the paths in use again and again: a LUN that an array exchanged under a path that never failed is noticed here, and nowhere else.
//!
//! Every [`CYCLE`], and as soon as a device tells of a change that can mean it (a unit attention), each usable path is asked for VPD page 0x83,
//! live. One that names another disk is failed at once, even if it is the last: held I/O is better than I/O to somebody else's data. Then it
//! leaves the table and its SCSI device goes, unless it is the only path: that one stays, failed, and comes back when it leads to the volume
//! again. A path that gives no answer is the monitor's business.

use std::{collections::HashMap, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{
    Change, Engine, KERNEL_DEADLINE, Map, PathView, ProveError, ProvenPath, full,
    kernel_events::{KernelEvents, next_of},
    monitor::{Busy, CHECK, Shared},
    port_groups::{Pending, SETTLED},
};
use crate::{Hctl, Wwid, scsi_device, worker};

/// How often each path is asked without a reason: one command of 1 KiB at most.
#[cfg(not(test))]
const CYCLE: Duration = Duration::from_secs(30);
#[cfg(test)]
const CYCLE: Duration = Duration::from_millis(100);
/// Pause after a cycle, however many unit attentions there are: an array that restarts has one for each path.
const REST: Duration = Duration::from_secs(1);
/// Paths that are asked at the same time.
const AT_ONCE: usize = 8;

impl Engine {
    /// Watches without end.
    pub(super) async fn watch_identities(&self) {
        let events = KernelEvents::of_unit_attentions()
            .inspect_err(
                |error| tracing::warn!(%error, "no kernel events here: paths are proved on a timer only"),
            )
            .ok();
        let memory = Shared::default();
        let mut pending = Pending::new();
        let mut next = Instant::now() + CYCLE;
        let mut rest = Instant::now();
        loop {
            let event = next_of(events.as_ref());
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    let unsettled = self.prove_again(&memory, &mut pending).await;
                    rest = Instant::now() + REST;
                    next = Instant::now() + if unsettled { CYCLE.min(SETTLED) } else { CYCLE };
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

    /// Asks every usable path, and has each map follow its array. Ends when all have answered or run into their deadline. Answers whether
    /// something waits to settle.
    async fn prove_again(&self, memory: &Shared, pending: &mut Pending) -> bool {
        let maps = match self.maps().await {
            Ok(maps) => maps,
            Err(error) => {
                tracing::warn!(error = full(&error), "cannot read the maps");
                return false;
            }
        };
        let mut asked = JoinSet::new();
        let mut proven: HashMap<Wwid, Vec<ProvenPath>> = HashMap::new();
        let mut keep = |answer: Result<Option<ProvenPath>, JoinError>| {
            if let Ok(Some(path)) = answer {
                proven.entry(path.wwid.clone()).or_default().push(path);
            }
        };
        for map in maps.iter().filter(|map| !map.suspended) {
            for path in map.paths().filter(|path| path.is_usable()) {
                // The last one asked still hangs.
                let Some(busy) = memory.claim(path.devno) else {
                    continue;
                };
                if asked.len() >= AT_ONCE
                    && let Some(answer) = asked.join_next().await
                {
                    keep(answer);
                }
                let (engine, map, path) = (self.clone(), map.clone(), path.clone());
                asked.spawn(async move { engine.prove_path_again(&map, &path, busy).await });
            }
        }
        while let Some(answer) = asked.join_next().await {
            keep(answer);
        }
        pending.retain(|name, _| maps.iter().any(|map| map.name == *name));
        let mut unsettled = false;
        for map in &maps {
            if let Some(paths) = proven.remove(&map.wwid) {
                unsettled |= self.follow_array(map, paths, pending).await;
            }
        }
        unsettled
    }

    /// The path, if it has proved itself.
    async fn prove_path_again(&self, map: &Map, path: &PathView, busy: Busy) -> Option<ProvenPath> {
        let hctl = path.hctl.parse::<Hctl>().ok()?;
        let (host, wwid) = (self.host.clone(), map.wwid.clone());
        let proven = worker::run("prove-again", CHECK, move || {
            (super::prove(&host, hctl, &wwid), busy)
        })
        .await;
        match proven {
            // The map holds the disk with this number; another one at the address proves nothing about it.
            Ok((Ok(proven), _)) => return Some(proven).filter(|proven| proven.disk.devno == path.devno),
            Ok((Err(error @ ProveError::Mismatch { .. }), busy)) => {
                self.misled(map, path, &error, busy).await;
            }
            Ok((Err(error), _)) => {
                tracing::debug!(dm.name = map.name, path = %path.devno, error = full(&error), "path did not say what it is");
            }
            // Logged by the worker.
            Err(_) => {}
        }
        None
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
        let (host, wwid, policy) = (self.host.clone(), map.wwid.clone(), self.policy(&map.wwid));
        worker::run("shed-paths", KERNEL_DEADLINE, move || {
            let _held = guard;
            for disk in super::build::shed(&host, &wwid, policy)? {
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
