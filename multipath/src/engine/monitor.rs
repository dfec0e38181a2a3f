//! Watches the maps: fails paths whose device is not running, and puts paths back to work that can carry I/O again.
//!
//! Sleeps until the kernel tells of an event: of a device, or of a session whose connection failed or is back. While some path of a map is not well
//! it looks at that map every [`REPAIR_LOOK`]: the states of SCSI devices are told by no event. Healthy maps are only seen by the slow [`SWEEP`]. A path comes back only after a TEST UNIT
//! READY and a fresh proof of its identity; the last usable path is never failed on suspicion; a map without any fails its I/O after a while
//! ([`super::no_path`]). Never waits for one map's kernel calls before it
//! looks at the next, and never has more than one check of a path under way, however long that one hangs.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use super::{
    Engine, KERNEL_DEADLINE, Map, PathView, ProveError, ViewError,
    flapping::Losses,
    full,
    identity::leads_to,
    kernel_events::{KernelEvents, next_of},
    view,
};
use crate::{Hctl, Host, Wwid, host::DevNo, worker};

/// How often the devices of paths that are not well are looked at, at most: a path is to be used again within 0.1 s of its session's return.
pub const REPAIR_LOOK: Duration = Duration::from_millis(25);
/// How often everything is looked at without a reason. The look of the cycle of proofs counts, which comes first when all is well.
#[cfg(not(test))]
const SWEEP: Duration = Duration::from_secs(35);
/// The simulated kernel sends no events.
#[cfg(test)]
const SWEEP: Duration = Duration::from_secs(1);
/// After a look at everything, events start another only when it has rested so many times as long: forty volumes that come up at once
/// cause hundreds of events, and each look costs with all of them.
const REST: u32 = 4;
/// How often everything is looked at where the kernel sends no events, or could not be read.
const BLIND_SWEEP: Duration = Duration::from_secs(1);
/// Time for one check of a path. A device that answers at all answers in milliseconds.
pub(super) const CHECK: Duration = Duration::from_secs(5);
/// How long the failing of a path waits for an earlier change of its map.
const URGENT: Duration = Duration::from_millis(200);
/// Time from the start of a path's first check to the start of its next; it doubles with every check that fails.
const RECHECK: Duration = Duration::from_millis(100);
/// The doubling ends here: 3.2 s.
const RECHECK_DOUBLINGS: u32 = 5;
/// Checks that run at once, over all maps.
const CHECKS: usize = 32;
/// For so long after an event of a Fibre Channel host maps over such ports are looked at as if they were not well: the event may come before
/// what it announces, and the state of a port is told by none. E_D_TOV of a fabric is as long (FC-FS-5; 2 s by default).
const FABRIC: Duration = Duration::from_secs(2);
/// A map is suspended for moments while its table is exchanged; this long it is only by a fault.
const SUSPENDED: Duration = Duration::from_secs(5);

/// What the monitor remembers between looks. Losing it costs nothing but a repeated check or log line.
#[derive(Default)]
pub(super) struct Memory {
    /// Paths whose check or message has not come back from the kernel.
    busy: HashSet<DevNo>,
    /// Paths that were checked, in vain or to be failed again at once: how often, and until when they are left alone.
    checked: HashMap<DevNo, (u32, Instant)>,
    /// Since when a path holds I/O.
    pub(super) blocked: HashMap<DevNo, Instant>,
    /// Paths that lead to another disk, and were reported.
    misled: HashSet<DevNo>,
    /// Since when a map is suspended.
    suspended: HashMap<String, Instant>,
    /// Paths that were told to be lost, with the names of device and portal.
    pub(super) lost: HashMap<DevNo, (String, String)>,
    /// How often paths were lost of late.
    pub(super) losses: HashMap<DevNo, Losses>,
    /// Since when a map has no usable path.
    pub(super) pathless: HashMap<String, Instant>,
    /// Since when a map could use a better path group than it does.
    pub(super) worse: HashMap<String, Instant>,
}

impl Memory {
    /// A path is in use. True once it is so for as long as it would have been left alone after its last check; only then its checks are
    /// forgotten: a device that says it is well and fails what it is given (a port whose array refuses to take it into use) is not to be
    /// tried ten times a second.
    fn carries(&mut self, path: DevNo) -> bool {
        let now = Instant::now();
        let lasts = self.checked.get(&path).is_none_or(|(_, until)| *until <= now);
        if lasts {
            self.checked.remove(&path);
        }
        lasts
    }
}

#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Memory>>);

impl Shared {
    pub(super) fn get(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a path, or a map; `None` while an earlier call for it has not returned.
    pub(super) fn claim(&self, path: DevNo) -> Option<Busy> {
        let mut memory = self.get();
        (memory.busy.len() < CHECKS && memory.busy.insert(path)).then(|| Busy(self.clone(), path))
    }
}

/// A claimed path or map. It belongs to the thread that makes the kernel call, so a call that hangs keeps the claim.
pub(super) struct Busy(Shared, DevNo);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.get().busy.remove(&self.1);
    }
}

impl Engine {
    /// Watches until `stop` is done: the maps, the connections that their paths depend on, and where the paths lead.
    pub async fn monitor(&self, stop: impl Future<Output = ()> + Send) {
        let (looked, looks) = mpsc::channel(1);
        tokio::select! {
            () = self.watch_connections() => {}
            () = self.watch_identities(looked) => {}
            () = self.watch_maps(stop, looks) => {}
        }
    }

    /// `looks`: all maps, whenever somebody else has just read them.
    async fn watch_maps(&self, stop: impl Future<Output = ()> + Send, mut looks: mpsc::Receiver<Vec<Map>>) {
        let uevents = match KernelEvents::of_devices(&self.host) {
            Ok(uevents) => Some(uevents),
            Err(error) => {
                tracing::warn!(%error, "no kernel events here: paths are looked at on a timer only");
                None
            }
        };
        let sessions = KernelEvents::of_sessions(&self.host)
            .inspect_err(|error| tracing::warn!(%error, "no events of iSCSI sessions here"))
            .ok();
        let fabrics = KernelEvents::of_fibre_channel(&self.host)
            .inspect_err(|error| tracing::warn!(%error, "no events of Fibre Channel hosts here"))
            .ok();
        let mut unsettled = Instant::now();
        let memory = Shared::default();
        let mut unwell = Vec::new();
        let mut sweep = Instant::now();
        let mut rest = Instant::now();
        let mut given = None;
        tokio::pin!(stop);
        loop {
            let start = Instant::now();
            let all = given.is_some() || sweep <= start;
            if all {
                sweep = start + if uevents.is_some() { SWEEP } else { BLIND_SWEEP };
            }
            let seen = if let Some(maps) = given.take() {
                Ok(maps)
            } else if all {
                let maps = self.maps().await;
                rest = Instant::now() + start.elapsed() * REST;
                maps
            } else if unwell.is_empty() {
                Ok(Vec::new())
            } else {
                self.named(std::mem::take(&mut unwell)).await
            };
            match seen {
                Ok(maps) => {
                    if all {
                        forget(&memory, &maps);
                        self.ledger().forget(&maps);
                    }
                    unwell = self.tend(&maps, &memory);
                    if start < unsettled {
                        let over_fabrics = maps.into_iter().filter(is_over_fibre_channel);
                        unwell.extend(over_fabrics.map(|map| map.name));
                        unwell.sort_unstable();
                        unwell.dedup();
                    }
                }
                Err(error) => {
                    tracing::warn!(error = full(&error), "cannot read the maps");
                    sweep = sweep.min(Instant::now() + BLIND_SWEEP);
                }
            }
            // Hundreds of maps that lose a fabric must not keep a processor busy with looks.
            let pause = REPAIR_LOOK.max(start.elapsed() * REST);
            let next = if unwell.is_empty() {
                sweep
            } else {
                sweep.min(Instant::now() + pause)
            };
            let event = async {
                tokio::select! {
                    event = next_of(uevents.as_ref()) => event,
                    event = next_of(sessions.as_ref()) => event,
                    event = next_of(fabrics.as_ref()) => {
                        unsettled = Instant::now() + FABRIC;
                        event
                    }
                }
            };
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep_until(next) => {}
                Some(maps) = looks.recv() => given = Some(maps),
                event = event => match event {
                    Ok(()) => sweep = sweep.min(rest),
                    Err(error) => {
                        tracing::warn!(%error, "reading kernel events");
                        // A socket that is always ready with an error must not spin.
                        tokio::time::sleep(REPAIR_LOOK).await;
                    }
                }
            }
        }
    }

    async fn named(&self, names: Vec<String>) -> Result<Vec<Map>, ViewError> {
        let host = self.host.clone();
        worker::run("look-at-maps", KERNEL_DEADLINE, move || {
            view::named(&host, &names)
        })
        .await?
        .map_err(ViewError::Kernel)
    }

    /// Starts what these maps need. Answers the names of those that are not well.
    fn tend(&self, maps: &[Map], memory: &Shared) -> Vec<String> {
        let mut unwell = Vec::new();
        for map in maps {
            let mut well = !map.suspended;
            if map.suspended {
                self.ledger().saw(self.host(), map);
                self.suspended(map, memory);
            } else {
                memory.get().suspended.remove(&map.name);
                self.notice(map, memory);
                self.bound_queueing(map, memory);
                well &= !self.fail_back(map, memory);
                for path in map.paths() {
                    if path.device_state == "blocked" && others_than(map, path) {
                        self.free_stuck(map, path, memory);
                    } else {
                        memory.get().blocked.remove(&path.devno);
                    }
                    well &= match (path.active, path.device_state.as_str()) {
                        (true, "running") => memory.get().carries(path.devno),
                        (true, _) => {
                            self.suspect(map, path, memory);
                            false
                        }
                        (false, "running") => {
                            self.check(map, path, memory);
                            false
                        }
                        // Its device says when it is back; then it is checked at once.
                        (false, _) => {
                            memory.get().checked.remove(&path.devno);
                            false
                        }
                    };
                }
            }
            if !well {
                unwell.push(map.name.clone());
            }
        }
        unwell
    }

    /// Runs a map again that stays suspended although nothing works on it.
    fn suspended(&self, map: &Map, memory: &Shared) {
        let now = Instant::now();
        let since = *memory.get().suspended.entry(map.name.clone()).or_insert(now);
        if now < since + SUSPENDED {
            return;
        }
        let Some(held) = self.try_lock(&map.wwid) else {
            return;
        };
        memory.get().suspended.insert(map.name.clone(), now);
        tracing::warn!(dm.name = map.name, wwid = %map.wwid, "the map is suspended and nothing works on it: it is run again");
        let (host, map) = (self.host.clone(), map.clone());
        tokio::spawn(async move {
            let name = map.name.clone();
            let settled = worker::run("settle-map", KERNEL_DEADLINE, move || {
                let _held = held;
                super::build::settle(&host, &name)
            })
            .await;
            if let Err(error) = settled.map_err(Into::into).flatten() {
                tracing::error!(
                    dm.name = map.name,
                    error = full(&error),
                    "cannot run the suspended map"
                );
            }
        });
    }

    /// Keeps new I/O off a path whose device is not running, if another can take it.
    fn suspect(&self, map: &Map, path: &PathView, memory: &Shared) {
        if !others_than(map, path) {
            return;
        }
        let Some(busy) = memory.claim(path.devno) else {
            return;
        };
        tracing::warn!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
            portal = path.portal, state = path.device_state, "path is not running: failed");
        let (engine, map, devno) = (self.clone(), map.clone(), path.devno);
        tokio::spawn(async move {
            if let Err(error) = engine.message(&map, format!("fail_path {devno}"), busy).await {
                tracing::warn!(dm.name = map.name, path = %devno, error, "cannot fail the path");
            }
        });
    }

    /// Starts a check of a failed path whose device is running again, unless one runs or ran just now, or the path came and went too often and
    /// others can do without it.
    fn check(&self, map: &Map, path: &PathView, memory: &Shared) {
        let now = Instant::now();
        let held = memory
            .get()
            .losses
            .get(&path.devno)
            .map(|losses| losses.held_until());
        if held.is_some_and(|until| now < until) && map.has_usable_path() {
            self.ledger()
                .waits(map, path, "it comes and goes: held down for a while");
            return;
        }
        let (checks, not_before) = memory.get().checked.get(&path.devno).copied().unwrap_or((0, now));
        if now < not_before {
            return;
        }
        let Some(busy) = memory.claim(path.devno) else {
            return;
        };
        let pause = RECHECK * 2u32.pow(checks.min(RECHECK_DOUBLINGS));
        memory.get().checked.insert(path.devno, (checks + 1, now + pause));
        let (engine, map, path, memory) = (self.clone(), map.clone(), path.clone(), memory.clone());
        tokio::spawn(async move { engine.reinstate(&map, &path, &memory, busy).await });
    }

    /// Checks a path and puts it back to work. Both on one thread, unless something else changes the map just then: each hand-over costs as
    /// much as the check.
    async fn reinstate(&self, map: &Map, path: &PathView, memory: &Shared, busy: Busy) {
        let standby = map.may_stand_by(path.devno);
        let message = format!("reinstate_path {}", path.devno);
        let (engine, checked, of, at_once) = (self.clone(), path.clone(), map.clone(), message.clone());
        let checked = worker::run("check-path", CHECK, move || {
            let proven = proves_itself(&engine.host, &checked, &of.wwid, standby);
            let held = engine.try_lock(&of.wwid).filter(|_| proven.is_ok());
            let told = held.map(|_held| engine.host.dm.message(&of.name, &at_once));
            (proven, told, busy)
        })
        .await;
        let (told, busy) = match checked {
            Ok((Ok(()), told, busy)) => {
                self.ledger().checked(map, path, Ok(()));
                (told, busy)
            }
            Ok((Err(error @ ProveError::Mismatch { .. }), _, busy)) => {
                if memory.get().misled.insert(path.devno) {
                    self.misled(map, path, &error, busy).await;
                }
                return;
            }
            Ok((Err(error), ..)) => {
                if error.is_standby() && !map.has_usable_path() {
                    self.only_standby.notify_one();
                }
                self.ledger().checked(map, path, Err(full(&error)));
                tracing::debug!(dm.name = map.name, path = %path.devno, error = full(&error), "path is not ready");
                return;
            }
            // Logged by the worker.
            Err(error) => {
                self.ledger().checked(map, path, Err(full(&error)));
                return;
            }
        };
        memory.get().misled.remove(&path.devno);
        let told = match told {
            Some(told) => told.map_err(|error| full(&error)),
            None => self.message(map, message, busy).await,
        };
        match told {
            Ok(()) => {
                tracing::info!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
                    portal = path.portal, "path reinstated");
            }
            Err(error) => {
                tracing::warn!(dm.name = map.name, path = %path.devno, error, "cannot reinstate the path");
            }
        }
    }

    pub(super) async fn message(&self, map: &Map, message: String, busy: Busy) -> Result<(), String> {
        // A change of the map that hangs on one path must not keep I/O on another that is dead, or leads elsewhere. At worst a swap makes
        // the path active again, and the next look fails it once more.
        let (wait, urgent) = match message.starts_with("fail_path") {
            true => (URGENT, true),
            false => (CHECK, false),
        };
        let guard = match self.lock(&map.wwid, wait).await {
            Ok(guard) => Some(guard),
            Err(_) if urgent => None,
            Err(error) => return Err(full(&error)),
        };
        let (host, name) = (self.host.clone(), map.name.clone());
        worker::run("message-map", CHECK, move || {
            let _held = (guard, busy);
            host.dm.message(&name, &message)
        })
        .await
        .map_err(|error| full(&error))?
        .map_err(|error| full(&error))
    }
}

fn is_over_fibre_channel(map: &Map) -> bool {
    map.paths().any(|path| path.remote_port.is_some())
}

/// The map has another path that is usable.
fn others_than(map: &Map, path: &PathView) -> bool {
    map.paths()
        .any(|other| other.devno != path.devno && other.is_usable())
}

/// Drops what concerns paths and maps that are no more.
fn forget(memory: &Shared, maps: &[Map]) {
    let paths: HashSet<DevNo> = maps
        .iter()
        .flat_map(|map| map.paths().map(|path| path.devno))
        .collect();
    let mut memory = memory.get();
    memory.checked.retain(|path, _| paths.contains(path));
    memory.blocked.retain(|path, _| paths.contains(path));
    memory.misled.retain(|path| paths.contains(path));
    memory.lost.retain(|path, _| paths.contains(path));
    let now = Instant::now();
    memory
        .losses
        .retain(|path, losses| paths.contains(path) && !losses.is_forgotten(now));
    let known = |name: &String, _: &mut Instant| maps.iter().any(|map| map.name == *name);
    memory.suspended.retain(known);
    memory.pathless.retain(known);
    memory.worse.retain(known);
}

/// TEST UNIT READY, which also takes the unit attentions of a reset, then the identity. `standby`: a port in standby is well. Blocking.
fn proves_itself(host: &Host, path: &PathView, wwid: &Wwid, standby: bool) -> Result<(), ProveError> {
    let Ok(hctl) = path.hctl.parse::<Hctl>() else {
        return Err(ProveError::Gone { devno: path.devno });
    };
    // A port that was lost took no time, and one that was made anew has its own.
    if let Some(port) = path.remote_port {
        port.give_back_soon(host);
    }
    for _ in 0..super::UNIT_ATTENTIONS {
        match host.scsi.test_unit_ready(path.devno, &path.name) {
            Ok(()) => break,
            Err(error) if error.is_unit_attention() => {}
            Err(error) if error.is_reservation_conflict() || (standby && error.is_standby()) => break,
            Err(source) => {
                return Err(ProveError::NotReady {
                    hctl,
                    device: path.name.clone(),
                    source,
                });
            }
        }
    }
    leads_to(host, path, wwid).map(drop)
}
