//! Keeps what is told of the volumes up to date: the files for `mpathutil`, the volumes for the metrics, and Events of what no path event says: a
//! file system that went read-only, a volume that waits for its next stage, the only path of a volume without multipathing.
//!
//! Looks when something has changed and every [`SLOW`]; while a volume is staged without multipathing also every [`OFTEN`], since the state of a SCSI
//! device is told by no event. Nothing waits for it, and nothing is decided here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use storagelink_multipath::{
    Host, ScsiDisk,
    engine::MapRecord,
    iscsi_session,
    told::{self, Disk, MapHistory, Volume},
    worker,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{Inner, Node, journal::Entry, remark::Remark};
use crate::{
    codes::chain,
    mount::{FsType, MountPoint},
};

/// How often everything is looked at without a reason.
const SLOW: Duration = Duration::from_secs(30);
/// How often the disks of volumes without multipathing are looked at.
const OFTEN: Duration = Duration::from_secs(1);
/// Changes of so long are told together.
const TOGETHER: Duration = Duration::from_millis(300);
/// Time limit of reading sysfs and writing small files.
const WRITE: Duration = Duration::from_secs(20);

/// What was last told, shared with the metrics.
#[derive(Clone, Debug, Default)]
pub struct Told {
    volumes: Arc<Mutex<Vec<Volume>>>,
    /// Held while files are written or removed.
    files: Arc<Mutex<()>>,
}

impl Told {
    /// The volumes on this node.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        self.volumes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What was told before, so that nothing is told twice.
#[derive(Default)]
pub(super) struct Before {
    written: BTreeMap<String, Volume>,
    pending: BTreeSet<String>,
    stopped: BTreeSet<String>,
}

impl Node {
    /// What is known of the volumes, for the metrics.
    #[must_use]
    pub fn told(&self) -> Told {
        self.0.told.clone()
    }

    /// Volumes are staged with multipathing, now and at each change, for the metrics.
    #[must_use]
    pub fn multipathing(&self) -> watch::Receiver<bool> {
        self.0.switch.changes()
    }

    /// Tells without end.
    pub(super) async fn keep_telling(self) {
        let mut maps = self.0.engine.ledger().changes();
        let mut setting = self.0.switch.changes();
        let mut before = Before::default();
        let mut slow = Instant::now();
        loop {
            let all = slow <= Instant::now();
            if all {
                slow = Instant::now() + SLOW;
            }
            self.0.tell(&mut before).await;
            let singles = before.written.values().any(|volume| volume.disk.is_some());
            let next = if singles {
                slow.min(Instant::now() + OFTEN)
            } else {
                slow
            };
            let news = async {
                tokio::select! {
                    _ = maps.changed() => {}
                    _ = setting.changed() => {}
                    () = self.0.staged.notified() => {}
                }
            };
            if timeout(next.saturating_duration_since(Instant::now()), news)
                .await
                .is_ok()
            {
                tokio::time::sleep(TOGETHER).await;
                maps.mark_unchanged();
                setting.mark_unchanged();
            }
        }
    }
}

impl Inner {
    /// One look at everything, and what is new of it.
    pub(super) async fn tell(&self, before: &mut Before) {
        let entries = match self.journal.list().await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot look at this node's records");
                return;
            }
        };
        let (host, maps, boot) = (self.host.clone(), self.engine.ledger().maps(), self.boot.clone());
        let (multipathing, known) = (self.switch.multipathing(), before.written.clone());
        let seen = worker::run("look-at-volumes", WRITE, move || {
            volumes(&host, &entries, &maps, &boot, multipathing, &known)
        });
        let Ok((volumes, disks)) = seen.await else { return };
        let mapped = match disks.is_empty() {
            true => BTreeSet::new(),
            false => self.mapped_sessions().await,
        };
        for (volume, disk, was) in &disks {
            // One that is being unstaged gets its session's time put back.
            if !self.guards.busy(*volume) {
                self.have_patience(disk, *was, &mapped).await;
            }
        }
        self.of_pending(&volumes, before);
        self.of_single_paths(&volumes, before);
        self.of_read_only(&volumes, before).await;
        self.write(volumes, before).await;
    }

    async fn write(&self, volumes: Vec<Volume>, before: &mut Before) {
        let known = std::mem::take(&mut before.written);
        let state_dir = self.config.state_dir.clone();
        let all: BTreeMap<String, Volume> = volumes.iter().map(|v| (v.volume.clone(), v.clone())).collect();
        let now = all.clone();
        let (files, journal) = (self.told.files.clone(), self.journal.clone());
        let written = worker::run("tell-volumes", WRITE, move || {
            let _one = files.lock().unwrap_or_else(PoisonError::into_inner);
            for volume in now.values() {
                // One without a record was unstaged since the look.
                let staged = Uuid::try_parse(&volume.volume).is_ok_and(|uuid| journal.path(uuid).exists());
                let as_before =
                    known.get(&volume.volume) == Some(volume) && told::is_told(&state_dir, &volume.volume);
                if staged && !as_before {
                    told::write(&state_dir, volume)?;
                }
            }
            let names: Vec<&str> = now.keys().map(String::as_str).collect();
            told::keep(&state_dir, &names)
        });
        match written.await {
            Ok(Ok(())) => before.written = all,
            Ok(Err(error)) => tracing::warn!(%error, "cannot write what mpathutil is told"),
            // Logged by the worker.
            Err(_) => {}
        }
        *self.told.volumes.lock().unwrap_or_else(PoisonError::into_inner) = volumes;
    }

    /// The volume is gone from this node: so is what is told of it, before anybody hears that it is gone.
    pub(super) async fn untell(&self, volume: Uuid) {
        let (files, state_dir) = (self.told.files.clone(), self.config.state_dir.clone());
        let removed = worker::run("untell-volume", WRITE, move || {
            let _one = files.lock().unwrap_or_else(PoisonError::into_inner);
            told::remove(&state_dir, &volume.to_string())
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(volume.id = %volume, %error, "cannot remove what mpathutil is told");
        }
    }

    fn say(&self, remark: Remark) {
        tracing::warn!(reason = remark.reason, "{}", remark.note);
        // An error: nobody listens.
        let _ = self.remarks.send(remark);
    }

    /// Volumes that wait for their next stage.
    fn of_pending(&self, volumes: &[Volume], before: &mut Before) {
        let pending: BTreeSet<String> = volumes
            .iter()
            .filter(|v| v.pending_restage)
            .map(|v| v.volume.clone())
            .collect();
        for volume in pending.difference(&before.pending) {
            let Ok(uuid) = Uuid::try_parse(volume) else {
                continue;
            };
            let (is, wanted) = match self.switch.multipathing() {
                true => ("without", "with"),
                false => ("with", "without"),
            };
            let note = format!(
                "node {}: pending restage: volume {volume} is staged {is} multipathing and will be staged {wanted} it once its pods here are gone and one comes again",
                self.config.node_name
            );
            let remark = Remark::of_volume("PendingRestage", uuid, note);
            self.say(Remark {
                warning: false,
                ..remark
            });
        }
        before.pending = pending;
    }

    /// The only path of volumes without multipathing, lost or back.
    fn of_single_paths(&self, volumes: &[Volume], before: &Before) {
        for volume in volumes {
            let (Some(disk), Some(old)) = (
                &volume.disk,
                before
                    .written
                    .get(&volume.volume)
                    .and_then(|old| old.disk.as_ref()),
            ) else {
                continue;
            };
            let Ok(uuid) = Uuid::try_parse(&volume.volume) else {
                continue;
            };
            let node = &self.config.node_name;
            let remark = match (old.state == "running", disk.state == "running") {
                (true, false) => Remark::of_volume(
                    "NoPath",
                    uuid,
                    format!(
                        "node {node}: the only path, over portal {}, is lost (its device is {}), and the volume is staged without multipathing",
                        old.portal, disk.state
                    ),
                ),
                (false, true) => Remark {
                    warning: false,
                    ..Remark::of_volume(
                        "PathBack",
                        uuid,
                        format!(
                            "node {node}: the only path, over portal {}, carries I/O again",
                            disk.portal
                        ),
                    )
                },
                _ => continue,
            };
            self.say(remark);
        }
    }

    /// File systems that the kernel made read-only.
    async fn of_read_only(&self, volumes: &[Volume], before: &mut Before) {
        let Ok(mounts) = self.mounter.list().await else {
            return;
        };
        if volumes.is_empty() || !mounts.iter().any(went_read_only) {
            before.stopped.clear();
            return;
        }
        let mut stopped = BTreeSet::new();
        for volume in volumes {
            let Ok(uuid) = Uuid::try_parse(&volume.volume) else {
                continue;
            };
            let Ok(Some(held)) = self.held(uuid).await else {
                continue;
            };
            if held.read_only() {
                continue;
            }
            let Ok(disk) = self.disk(uuid, &held).await else {
                continue;
            };
            let Ok(seen) = self.look(Some(&disk)).await else {
                continue;
            };
            if seen.uses.iter().any(|u| !u.block && went_read_only(&u.mount)) {
                stopped.insert(volume.volume.clone());
                if !before.stopped.contains(&volume.volume) {
                    let note = format!(
                        "node {}: the kernel made the file system of volume {uuid} read-only after an error: stop its pods, see why its I/O failed, check it",
                        self.config.node_name
                    );
                    self.say(Remark::of_volume("ReadOnly", uuid, note));
                }
            }
        }
        before.stopped = stopped;
    }
}

/// A file system of a kind that we mount, which the kernel does not write to any more.
fn went_read_only(mount: &MountPoint) -> bool {
    FsType::ALL.iter().any(|fs| fs.name() == mount.fs_type) && mount.stopped()
}

/// A volume without multipathing, its disk, and what the time of its session was.
type SingleOf = (Uuid, ScsiDisk, Option<u32>);

/// The volumes of this node, and the disks of those without multipathing with what their sessions' time was. Reads sysfs only.
fn volumes(
    host: &Host,
    entries: &[(Uuid, Entry)],
    maps: &[MapRecord],
    boot: &str,
    multipathing: bool,
    known: &BTreeMap<String, Volume>,
) -> (Vec<Volume>, Vec<SingleOf>) {
    let id_of = |volume: &str| {
        let entry = entries.iter().find(|(uuid, _)| uuid.to_string() == volume);
        entry.map_or_else(|| volume.to_owned(), |(_, entry)| entry.volume_id.clone())
    };
    let mut all: Vec<Volume> = maps
        .iter()
        .map(|map| Volume {
            volume_id: id_of(&map.volume),
            volume: map.volume.clone(),
            wwid: map.wwid.to_string(),
            multipathing: true,
            pending_restage: !multipathing,
            disk: None,
            map: Some(MapHistory::from(map)),
        })
        .collect();
    let mut disks = Vec::new();
    for (uuid, entry) in entries {
        let (volume, Some(noted)) = (uuid.to_string(), &entry.single) else {
            continue;
        };
        // A record of another boot is of a volume that is not staged any more.
        if !entry.staged || noted.boot != boot || all.iter().any(|v| v.volume == volume) {
            continue;
        }
        let found = noted.find(host, boot);
        let before = known.get(&volume).and_then(|v| v.disk.as_ref());
        let state = found
            .as_ref()
            .map_or_else(|| "gone".to_owned(), |disk| disk.state.clone());
        let portal = found
            .as_ref()
            .and_then(|disk| iscsi_session::of_disk(host, disk))
            .and_then(|session| iscsi_session::portal(host, session));
        let since_ms = before
            .filter(|before| before.state == state)
            .map_or_else(|| told::millis(SystemTime::now()), |before| before.since_ms);
        all.push(Volume {
            volume_id: entry.volume_id.clone(),
            volume,
            wwid: entry.publish_context.get("wwid").cloned().unwrap_or_default(),
            multipathing: false,
            pending_restage: multipathing,
            disk: Some(Disk {
                device: match (&found, before) {
                    (Some(disk), _) => disk.name.clone(),
                    (None, Some(before)) => before.device.clone(),
                    (None, None) => String::new(),
                },
                hctl: noted.hctl.clone(),
                devno: noted.devno.clone(),
                diskseq: noted.diskseq,
                portal: portal
                    .or_else(|| before.map(|before| before.portal.clone()))
                    .unwrap_or_default(),
                state,
                since_ms,
            }),
            map: None,
        });
        disks.extend(found.map(|disk| (*uuid, disk, noted.patience_was)));
    }
    (all, disks)
}
