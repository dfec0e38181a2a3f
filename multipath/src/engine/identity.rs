//! Proves the paths in use again and again: a LUN that an array exchanged under a path that never failed is noticed here, and nowhere else.
//!
//! Every [`CYCLE`], as soon as a device tells of a change that can mean it (a unit attention), and when a map has nothing left but ports in
//! standby, each path is asked for VPD page 0x83, live. One that names another disk is failed at once, even if it is the last: held I/O is
//! better than I/O to somebody else's data. Then it leaves the table and its SCSI device goes, unless it is the only path: that one stays,
//! failed, and comes back when it leads to the volume again. A path that gives no answer is the monitor's business.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use super::{
    Change, Engine, KERNEL_DEADLINE, Map, PathView, ProveError, full,
    kernel_events::{KernelEvents, next_of},
    monitor::{Busy, CHECK, Shared},
    port_groups::{Pending, Port, SETTLED},
};
use crate::{
    Hctl, Host, Wwid,
    policy::PathGrouping,
    scsi_device::{self, Place},
    worker::{self, WorkerError},
    wwid::{parse_vpd_83, target_port_group},
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
/// Paths, or maps, that one thread asks, one after the other: to hand each of thousands to a thread would cost more than the question. A path that
/// hangs puts those behind it off to the next cycle, where it is left out.
const BATCH: usize = 32;

impl Engine {
    /// Watches without end; hands on what it reads of all maps.
    pub(super) async fn watch_identities(&self, looked: mpsc::Sender<Vec<Map>>) {
        let events = KernelEvents::of_unit_attentions(&self.host)
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
                    let unsettled = self.prove_again(&memory, &mut pending, &looked).await;
                    rest = Instant::now() + REST;
                    next = Instant::now() + if unsettled { CYCLE.min(SETTLED) } else { CYCLE };
                }
                () = self.only_standby.notified() => next = next.min(rest),
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

    /// Asks every path whose device takes commands, and has each map follow its array. Ends when all have answered or run into their deadline. Answers whether
    /// something waits to settle.
    async fn prove_again(
        &self,
        memory: &Shared,
        pending: &mut Pending,
        looked: &mpsc::Sender<Vec<Map>>,
    ) -> bool {
        let maps = match self.maps().await {
            Ok(maps) => maps,
            Err(error) => {
                tracing::warn!(error = full(&error), "cannot read the maps");
                return false;
            }
        };
        // One that is not taken yet is as good.
        let _ = looked.try_send(maps.clone());
        let maps: Vec<Arc<Map>> = maps
            .into_iter()
            .filter(|map| !map.suspended)
            .map(Arc::new)
            .collect();
        let mut paths = Vec::new();
        for map in &maps {
            // One that is failed is asked where it leads through: its port may be in standby.
            let answering = map.paths().filter(|path| path.device_state == "running");
            paths.extend(answering.map(|path| (map.clone(), path.clone())));
        }
        let mut ports: HashMap<String, Vec<Port>> = HashMap::new();
        let mut keep = |answers: Vec<(Arc<Map>, Port)>| {
            for (map, port) in answers {
                ports.entry(map.name.clone()).or_default().push(port);
            }
        };
        let mut asked = JoinSet::new();
        for batch in paths.chunks(BATCH) {
            if asked.len() >= AT_ONCE
                && let Some(Ok(Ok(answers))) = asked.join_next().await
            {
                keep(answers);
            }
            asked.spawn(self.clone().ask(batch.to_vec(), memory.clone()));
        }
        while let Some(answers) = asked.join_next().await {
            // Overruns are logged by the worker.
            keep(answers.ok().and_then(Result::ok).unwrap_or_default());
        }
        pending.retain(|name, _| maps.iter().any(|map| map.name == *name));
        let mut followers = Vec::new();
        for map in maps {
            if self.policy(&map.wwid).grouping != PathGrouping::Multibus
                && let Some(ports) = ports.remove(&map.name)
            {
                followers.push((map, ports));
            }
        }
        let mut unsettled = false;
        for batch in followers.chunks(BATCH) {
            unsettled |= self.follow_arrays(batch, pending).await;
        }
        unsettled
    }

    /// Asks these paths, one after the other. Answers those that lead to their volume through a port of a target port group.
    async fn ask(
        self,
        batch: Vec<(Arc<Map>, PathView)>,
        memory: Shared,
    ) -> Result<Vec<(Arc<Map>, Port)>, WorkerError> {
        let runtime = tokio::runtime::Handle::current();
        worker::run("prove-again", CHECK, move || {
            let mut ports = Vec::new();
            for (map, path) in batch {
                // The last one asked still hangs.
                let Some(busy) = memory.claim(path.devno) else {
                    continue;
                };
                match leads_to(&self.host, &path, &map.wwid) {
                    Ok(None) => {}
                    Ok(group) => ports.push((
                        map,
                        Port {
                            path: path.devno,
                            device: path.name,
                            group,
                        },
                    )),
                    // One that is failed is the monitor's business.
                    Err(error @ ProveError::Mismatch { .. }) if path.active => {
                        let engine = self.clone();
                        runtime.spawn(async move { engine.misled(&map, &path, &error, busy).await });
                    }
                    Err(error) => {
                        tracing::debug!(dm.name = map.name, path = %path.devno, error = full(&error), "path did not say what it is");
                    }
                }
            }
            ports
        })
        .await
    }

    /// Keeps I/O away from a path that leads to another disk, and tells of it.
    pub(super) async fn misled(&self, map: &Map, path: &PathView, error: &ProveError, busy: Busy) {
        tracing::error!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
            portal = path.portal, error = full(error), "the path leads to another disk: no I/O goes to it");
        self.ledger().misled(map, path, &full(error));
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

/// Asks a path whose device took commands just now for its identity; answers its target port group. Blocking. Most paths are what they are: only for
/// another answer than the expected one everything about the disk is read, which costs many times the question.
pub(super) fn leads_to(host: &Host, path: &PathView, wwid: &Wwid) -> Result<Option<u16>, ProveError> {
    let here = Place::of(host, path.devno)
        .filter(|place| place.name == path.name && place.state(host).as_deref() == Some("running"));
    let page = here.and_then(|place| host.scsi.inquiry_vpd(path.devno, &place.name, 0x83).ok());
    let expected = |page: &Vec<u8>| parse_vpd_83(page).is_ok_and(|found| found.contains(wwid));
    if let Some(page) = page.filter(expected) {
        return Ok(target_port_group(&page));
    }
    let gone = || ProveError::Gone { devno: path.devno };
    let hctl = path.hctl.parse::<Hctl>().map_err(|_| gone())?;
    let proven = super::prove(host, hctl, wwid)?;
    // The map holds the disk with this number; another one at the address proves nothing about it.
    (proven.disk.devno == path.devno)
        .then_some(proven.port_group)
        .ok_or_else(gone)
}
