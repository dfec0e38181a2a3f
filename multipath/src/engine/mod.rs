//! Proves paths, builds and changes maps, watches and removes them.
//!
//! Owns every map whose uuid starts with `storagelink-` and is this node's ([`crate::names::Names`]), one per volume. The kernel is the truth: the engine keeps nothing that it could not
//! read again, so a new one adopts what an old one left. Never blocks an async worker: kernel calls run on threads with deadlines, and a
//! volume's lock is held until the thread that works on it has really ended.

mod build;
mod change;
mod connections;
mod error;
mod failback;
mod flapping;
mod identity;
mod kernel_events;
mod ledger;
mod monitor;
mod no_path;
mod notice;
mod port_groups;
mod remove;
mod stuck;
mod view;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

#[cfg(fuzzing)]
pub(crate) use kernel_events::fuzz as fuzz_kernel_event;

pub use error::{BuildError, ProveError, RemoveError};
pub use ledger::{Ledger, MapRecord, MapState, PathRecord, STALL_BOUNDS};
pub use monitor::REPAIR_LOOK;
pub use notice::{Change, Notice};
pub use view::{GroupView, Map, PathView, Requests, count_requests, maps};

use crate::{
    Hctl, Host, Policy, ScsiDisk, Wwid,
    host::{DmError, DmInfo},
    scsi_device::{self, ScanError},
    worker::{self, WorkerError},
    wwid::{parse_vpd_83, target_port_group},
};

/// Time for device-mapper calls on a map whose paths are well; measured at 0.1 s on an emulated machine.
const KERNEL_DEADLINE: Duration = Duration::from_secs(20);
/// How old the proof of a path may get before the path is used: while it waits for other paths, or for an earlier change of the map.
pub const PROOF: Duration = Duration::from_secs(1);
/// Unit attentions that are passed over before an answer counts: after a reset a device has a few of them to tell.
const UNIT_ATTENTIONS: usize = 5;

/// A disk that has just proved, by a live INQUIRY, that it is the volume.
#[derive(Clone, Debug)]
pub struct ProvenPath {
    disk: ScsiDisk,
    wwid: Wwid,
    /// Target port group of the port that it leads through, where the device names one.
    port_group: Option<u16>,
}

impl ProvenPath {
    /// The disk as it was when it proved itself.
    #[must_use]
    pub fn disk(&self) -> &ScsiDisk {
        &self.disk
    }
    /// What it proved to be.
    #[must_use]
    pub fn wwid(&self) -> &Wwid {
        &self.wwid
    }
}

/// What a scan brought.
#[derive(Debug)]
pub struct Scanned {
    /// The disk that is there now.
    pub disk: ScsiDisk,
    /// Whether it is the volume.
    pub proof: Result<ProvenPath, ProveError>,
}

/// What map is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// UUID part of the CSI volume id: becomes the map's name.
    pub volume: String,
    /// Identity of the volume: becomes the map's uuid.
    pub wwid: Wwid,
    /// Refuse writes.
    pub read_only: bool,
    /// How it is laid out and behaves.
    pub policy: Policy,
}

/// Why the maps could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The kernel refused.
    #[error("reading the device-mapper devices")]
    Kernel(#[source] DmError),
    /// The kernel did not answer in time.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

type Lock = Arc<AsyncMutex<()>>;
/// A volume's lock, held; shared with the threads that work under it.
type Held = Arc<OwnedMutexGuard<()>>;

/// The engine. Clones share their locks.
#[derive(Clone)]
pub struct Engine {
    host: Host,
    locks: Arc<Mutex<HashMap<Wwid, Weak<AsyncMutex<()>>>>>,
    notices: tokio::sync::broadcast::Sender<Notice>,
    connections_ended: Arc<AtomicU64>,
    /// By identity; a map without one has the defaults.
    policies: Arc<Mutex<HashMap<Wwid, Policy>>>,
    ledger: Ledger,
    /// A map has no path but those in standby: how its array is, is asked at once.
    only_standby: Arc<tokio::sync::Notify>,
}

impl Engine {
    /// An engine on this host.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self {
            host,
            locks: Arc::default(),
            notices: tokio::sync::broadcast::Sender::new(notice::BACKLOG),
            connections_ended: Arc::default(),
            policies: Arc::default(),
            ledger: Ledger::default(),
            only_standby: Arc::default(),
        }
    }

    /// The host that it works on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// How many connections of silent portals the monitor has ended.
    #[must_use]
    pub fn connections_ended(&self) -> u64 {
        self.connections_ended.load(Ordering::Relaxed)
    }

    /// Sets the policy of a volume: from now on for what the monitor decides, from the next change of its map on for its layout. An engine
    /// that adopts maps is told before it watches.
    pub fn set_policy(&self, wwid: &Wwid, policy: Policy) {
        self.policies().insert(wwid.clone(), policy);
    }

    /// The policy of a volume.
    #[must_use]
    pub fn policy(&self, wwid: &Wwid) -> Policy {
        self.policies().get(wwid).copied().unwrap_or_default()
    }

    fn policies(&self) -> MutexGuard<'_, HashMap<Wwid, Policy>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of the maps and paths since this process watches them.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn lock_of(&self, wwid: &Wwid) -> Lock {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        locks.get(wwid).and_then(Weak::upgrade).unwrap_or_else(|| {
            let lock = Lock::default();
            locks.insert(wwid.clone(), Arc::downgrade(&lock));
            lock
        })
    }

    /// One change of a volume's map at a time. An earlier one may hang in the kernel: it is not waited for without end.
    async fn lock(&self, wwid: &Wwid, deadline: Duration) -> Result<Held, WorkerError> {
        tokio::time::timeout(deadline, self.lock_of(wwid).lock_owned())
            .await
            .map(Arc::new)
            .map_err(|_| WorkerError::Deadline {
                name: "an earlier change of this map",
                deadline,
            })
    }

    /// The volume's lock for a change of its paths, and whether it was waited for so long that their proofs are too old.
    async fn turn(&self, wwid: &Wwid) -> Result<(Held, bool), WorkerError> {
        let asked = Instant::now();
        let held = self.lock(wwid, KERNEL_DEADLINE).await?;
        Ok((held, asked.elapsed() > PROOF))
    }

    /// The volume's lock, unless something holds it.
    fn try_lock(&self, wwid: &Wwid) -> Option<Held> {
        self.lock_of(wwid).try_lock_owned().ok().map(Arc::new)
    }

    /// Asks the disk at this address, live, whether it is the volume.
    ///
    /// # Errors
    /// See [`ProveError`]; a device that is not running is not asked.
    pub async fn prove(&self, hctl: Hctl, wwid: &Wwid, deadline: Duration) -> Result<ProvenPath, ProveError> {
        let (host, wwid) = (self.host.clone(), wwid.clone());
        worker::run("prove-path", deadline, move || prove(&host, hctl, &wwid)).await?
    }

    /// Scans this address, and asks the disk there, live, whether it is the volume, as soon as it can be asked.
    ///
    /// # Errors
    /// See [`ScanError`]; with a disk there, [`Scanned`] says more.
    pub async fn scan(&self, hctl: Hctl, wwid: &Wwid, deadline: Duration) -> Result<Scanned, ScanError> {
        let wwid = wwid.clone();
        let ready = move |host: &Host, disk: ScsiDisk| match prove_disk(host, disk.clone(), &wwid) {
            // It is in sysfs a moment before it can be opened (block/genhd.c, device_add_disk: ENXIO until bdev_add).
            Err(ProveError::Inquiry { source, .. }) if source.is_missing() => None,
            proof => Some(Scanned { disk, proof }),
        };
        scsi_device::scan_until(&self.host, hctl, deadline, ready).await
    }

    /// Builds the volume's map over these paths, or finishes and extends the one that exists. Repeating it is harmless.
    ///
    /// # Errors
    /// See [`BuildError`]; a map that did not exist before does not exist after an error.
    pub async fn build(&self, spec: MapSpec, paths: Vec<ProvenPath>) -> Result<Map, BuildError> {
        let (guard, late) = self.turn(&spec.wwid).await?;
        self.set_policy(&spec.wwid, spec.policy);
        let host = self.host.clone();
        worker::run("build-map", KERNEL_DEADLINE, move || {
            let _held = guard;
            let paths = if late { prove_anew(&host, paths)? } else { paths };
            build::build(&host, &spec, &paths)
        })
        .await?
    }

    /// Adds one path to the volume's map; a path that is there already is success.
    ///
    /// # Errors
    /// See [`BuildError`]; [`BuildError::PathBlocked`] passes by itself: try again.
    pub async fn join(&self, wwid: &Wwid, path: ProvenPath) -> Result<Map, BuildError> {
        let (guard, late) = self.turn(wwid).await?;
        let (host, wwid, policy) = (self.host.clone(), wwid.clone(), self.policy(wwid));
        worker::run("join-path", KERNEL_DEADLINE, move || {
            let _held = guard;
            let mut paths = vec![path];
            if late {
                paths = prove_anew(&host, paths)?;
            }
            build::join(&host, &wwid, &paths[0], policy)
        })
        .await?
    }

    /// Reads the size of every path again and gives the map the new one. Answers the map's size in bytes.
    ///
    /// A path that is down keeps its old size and would hold the volume back: it leaves the map, and joins again when it is back
    /// ([`Change::LeftOut`]).
    ///
    /// # Errors
    /// See [`BuildError`]; the map keeps its old size then.
    pub async fn resize(&self, wwid: &Wwid, deadline: Duration) -> Result<u64, BuildError> {
        let guard = self.lock(wwid, deadline).await?;
        let (host, identity, policy) = (self.host.clone(), wwid.clone(), self.policy(wwid));
        let before = self.find(wwid).await.ok().flatten();
        let resized = worker::run("resize-map", deadline, move || {
            let _held = guard;
            build::resize(&host, &identity, policy)
        })
        .await??;
        for path in before.iter().flat_map(Map::paths) {
            if let (Some(map), true) = (
                &before,
                resized.left_out.iter().any(|disk| disk.devno == path.devno),
            ) {
                tracing::warn!(dm.name = map.name, %wwid, path = %path.devno, device = path.name, portal = path.portal,
                    "path is down and does not know the new size: it is out of the map until it is back");
                self.tell(map, path, Change::LeftOut);
            }
        }
        Ok(resized.size_bytes)
    }

    /// Makes the maps usable that a killed process left half made: suspended ones run again, loaded tables that were never swapped in go.
    ///
    /// # Errors
    /// The maps could not be read. What cannot be repaired is logged and left.
    pub async fn adopt(&self) -> Result<Vec<Map>, ViewError> {
        for map in self.maps().await? {
            if !map.suspended && !map.inactive_table {
                continue;
            }
            match self.settle(&map).await {
                Ok(()) => tracing::info!(dm.name = map.name, wwid = %map.wwid, "adopted a half-made map"),
                Err(error) => {
                    tracing::warn!(dm.name = map.name, wwid = %map.wwid, error = full(&error), "cannot settle a half-made map");
                }
            }
        }
        let maps = self.maps().await?;
        let (host, adopted) = (self.host.clone(), maps.clone());
        let ports = move || adopted.iter().for_each(|map| build::give_back_soon(&host, map));
        // An error was logged by the worker.
        drop(worker::run("adopt-ports", KERNEL_DEADLINE, ports).await);
        Ok(maps)
    }

    async fn settle(&self, map: &Map) -> Result<(), BuildError> {
        let guard = self.lock(&map.wwid, KERNEL_DEADLINE).await?;
        let (host, name) = (self.host.clone(), map.name.clone());
        worker::run("settle-map", KERNEL_DEADLINE, move || {
            let _held = guard;
            build::settle(&host, &name)
        })
        .await?
    }

    /// All maps of ours.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn maps(&self) -> Result<Vec<Map>, ViewError> {
        let host = self.host.clone();
        worker::run("list-maps", KERNEL_DEADLINE, move || view::maps(&host))
            .await?
            .map_err(ViewError::Kernel)
    }

    /// The map of this identity.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn find(&self, wwid: &Wwid) -> Result<Option<Map>, ViewError> {
        let uuid = self.host.names.map_uuid(wwid);
        self.first(move |info| info.uuid == uuid).await
    }

    /// The map of this volume; `volume` is the UUID part of the CSI volume id.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn find_by_volume(&self, volume: &str) -> Result<Option<Map>, ViewError> {
        let name = self.host.names.map_name(volume);
        self.first(move |info| info.name == name).await
    }

    async fn first(
        &self,
        wanted: impl Fn(&DmInfo) -> bool + Send + 'static,
    ) -> Result<Option<Map>, ViewError> {
        let host = self.host.clone();
        worker::run("find-map", KERNEL_DEADLINE, move || {
            view::those(&host, wanted).map(|maps| maps.into_iter().next())
        })
        .await?
        .map_err(ViewError::Kernel)
    }
}

/// An error and its causes in one line.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Asks paths again that have waited since their proof. Blocking.
fn prove_anew(host: &Host, paths: Vec<ProvenPath>) -> Result<Vec<ProvenPath>, BuildError> {
    let again = |path: ProvenPath| {
        prove(host, path.disk.hctl, &path.wwid).map_err(|error| {
            tracing::warn!(device = path.disk.name, hctl = %path.disk.hctl, wwid = %path.wwid, error = full(&error),
                "the path does not prove itself any more");
            BuildError::Gone {
                device: path.disk.name,
                hctl: path.disk.hctl,
            }
        })
    };
    paths.into_iter().map(again).collect()
}

/// Asks one disk for its identity and compares.
fn prove(host: &Host, hctl: Hctl, wwid: &Wwid) -> Result<ProvenPath, ProveError> {
    let disk = scsi_device::find(host, &hctl).ok_or(ProveError::Missing { hctl })?;
    prove_disk(host, disk, wwid)
}

/// Asks this disk for its identity and compares.
fn prove_disk(host: &Host, disk: ScsiDisk, wwid: &Wwid) -> Result<ProvenPath, ProveError> {
    let (hctl, device) = (disk.hctl, || disk.name.clone());
    if !disk.is_running() {
        return Err(ProveError::NotRunning {
            hctl,
            device: device(),
            state: disk.state,
        });
    }
    let mut attempt = 0;
    let page = loop {
        attempt += 1;
        match host.scsi.inquiry_vpd(disk.devno, &disk.name, 0x83) {
            Ok(page) => break page,
            Err(error) if error.is_unit_attention() && attempt <= UNIT_ATTENTIONS => {}
            Err(source) => {
                return Err(ProveError::Inquiry {
                    hctl,
                    device: device(),
                    source,
                });
            }
        }
    };
    let found = parse_vpd_83(&page).map_err(|source| ProveError::Page {
        hctl,
        device: device(),
        source,
    })?;
    if !found.contains(wwid) {
        let found = if found.is_empty() {
            "no identity".to_owned()
        } else {
            found.iter().map(Wwid::as_str).collect::<Vec<_>>().join(" ")
        };
        return Err(ProveError::Mismatch {
            hctl,
            device: device(),
            expected: wwid.clone(),
            found,
        });
    }
    // Names are used again: what answered must still be the disk that was found.
    match scsi_device::find(host, &hctl) {
        Some(now) if now.is_same(&disk) => Ok(ProvenPath {
            disk: now,
            wwid: wwid.clone(),
            port_group: target_port_group(&page),
        }),
        _ => Err(ProveError::Missing { hctl }),
    }
}

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod fibre_channel_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
