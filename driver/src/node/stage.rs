//! NodeStageVolume: from a publish context to a map, and to a mounted file system for volumes with access type mount.
//!
//! Order: look at the kernel; note the intention; bring up paths; prove each; build the map; look at what is on it;
//! mount. It must never let a path in whose live identity is not the volume's, and never answer before at least one
//! path carries I/O. A refusal takes back what this call, or a stage before it that did not end, has set up.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use storagelink_multipath::{
    Hctl, Map, MapSpec, PathView, ProvenPath, Wwid, engine::ProveError, scsi_device,
};
use tonic::Code;
use uuid::Uuid;

use super::{
    Inner,
    guard::Guard,
    journal::{Entry, JournalError},
    prepare::{Disk, PrepareError, Preparer, mount_request},
    transport::{Attached, TransportError},
    unstage::UnstageError,
    validate::{Access, Stage},
    view::{self, Seen, Top},
};
use crate::{
    codes::{Coded, chain},
    mount::{FsType, MountError, Request, filesystem, superblock::Superblock},
};

/// How long the first path may take: a login with a retry, and a scan.
const ATTACH: Duration = Duration::from_secs(45);
/// Time limit of the identity check of one path.
const PROVE: Duration = Duration::from_secs(10);
/// Time limit of asking every path for its size again.
const RESIZE: Duration = Duration::from_secs(30);
/// A file system that is this much smaller than its disk is grown when it is mounted: makers leave less unused.
const UNUSED: u64 = 64 << 20;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a volume is not staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// It is staged already, but not like this.
    #[error("volume {volume} is already staged {how}")]
    Conflict {
        /// Which volume.
        volume: Uuid,
        /// How it is staged.
        how: String,
    },
    /// Something else is mounted at the staging path.
    #[error("staging_target_path {}: something that is not volume {volume} is mounted there ({source_name})", path.display())]
    Occupied {
        /// Which volume.
        volume: Uuid,
        /// The staging path.
        path: PathBuf,
        /// What.
        source_name: String,
    },
    /// No device has the volume's identity.
    #[error("volume {volume}: no path leads to {wwid}: {found}")]
    WrongIdentity {
        /// Which volume.
        volume: Uuid,
        /// The published identity.
        wwid: String,
        /// What the paths answered.
        found: String,
    },
    /// Devices were found but none answered.
    #[error("volume {volume}: no path to {wwid} answers: {errors}")]
    NoPath {
        /// Which volume.
        volume: Uuid,
        /// The published identity.
        wwid: String,
        /// Each with its error.
        errors: String,
    },
    /// The disk is smaller than the volume.
    #[error("volume {volume}: its disk has {actual} bytes, publish_context.sizeBytes says {published}")]
    TooSmall {
        /// Which volume.
        volume: Uuid,
        /// Bytes of the map.
        actual: u64,
        /// Bytes of the volume.
        published: u64,
    },
    /// The multipath engine.
    #[error("volume {volume}: {step}")]
    Engine {
        /// Which volume.
        volume: Uuid,
        /// What was being done.
        step: &'static str,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The transport.
    #[error("volume {volume}")]
    Transport {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: TransportError,
    },
    /// The file system.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The mount table.
    #[error("volume {volume}")]
    Mount {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: MountError,
    },
    /// A stage before it did not end and could not be taken back.
    #[error("volume {volume}: clean up an unfinished stage")]
    Leftover {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: Box<UnstageError>,
    },
    /// The intention could not be noted.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Coded for StageError {
    fn code(&self) -> Code {
        match self {
            Self::Conflict { .. } => Code::AlreadyExists,
            Self::Occupied { .. } | Self::WrongIdentity { .. } | Self::TooSmall { .. } => {
                Code::FailedPrecondition
            }
            Self::NoPath { .. } => Code::Unavailable,
            Self::Engine { .. } | Self::Journal(_) => Code::Internal,
            Self::Transport { source, .. } => source.code,
            Self::Prepare(error) => error.code(),
            Self::Mount {
                source: MountError::Overdue { .. },
                ..
            } => Code::DeadlineExceeded,
            Self::Mount { .. } => Code::Internal,
            Self::Leftover { source, .. } => source.code(),
        }
    }
}

impl StageError {
    /// True when a kernel call that was given up on may still take effect: then nothing is taken back under it.
    fn in_flight(&self) -> bool {
        self.code() == Code::DeadlineExceeded
    }
}

impl Inner {
    /// Stages a volume. Repeating it changes nothing.
    pub(super) async fn stage(&self, request: Stage, guard: Guard) -> Result<(), StageError> {
        let volume = request.volume.uuid();
        let path = self
            .mounter
            .resolve(&request.staging)
            .await
            .map_err(|source| StageError::Mount { volume, source })?;
        let work = Work {
            node: self,
            volume,
            request: &request,
            staging: &path,
            guard,
        };
        let before = work.before().await?;
        if let Before::Done(map) = &before {
            // A crash between the mount and the record, or a lost record.
            let noted = self
                .journal
                .get(volume)
                .await?
                .filter(|e| e.staged && e.staging_path == path);
            if noted.is_none() {
                let done = Entry {
                    staged: true,
                    formatting: None,
                    ..work.entry(&before)
                };
                self.journal.put(volume, &done).await?;
            }
            // Paths that are missing, since a restart or since ever, are brought up again.
            if map.paths().filter(|p| !p.name.is_empty()).count() < request.context.portals.len() {
                work.join(request.context.portals.clone());
            }
            return Ok(());
        }
        let mut entry = work.entry(&before);
        self.journal.put(volume, &entry).await?;
        match work.build_up(&mut entry).await {
            Ok(missing) => {
                work.join(missing);
                Ok(())
            }
            Err(error) => {
                if !error.in_flight() && !matches!(before, Before::Staged(_)) {
                    work.take_back().await;
                }
                Err(error)
            }
        }
    }
}

/// What the kernel and the journal show before anything is done.
enum Before {
    /// It is staged as asked for.
    Done(Box<Map>),
    /// It is staged as asked for, but no path of it is usable: they are brought up again.
    Staged(Entry),
    /// It is not staged, or a stage of it did not end.
    New(Option<Entry>),
}

struct Work<'a> {
    node: &'a Inner,
    volume: Uuid,
    request: &'a Stage,
    staging: &'a Path,
    guard: Guard,
}

impl Work<'_> {
    async fn before(&self) -> Result<Before, StageError> {
        let found = self.node.engine.find_by_volume(&self.volume.to_string()).await;
        let map = found.map_err(|e| self.engine("look for its map", e))?;
        let entry = self.node.journal.get(self.volume).await?;
        let Some(map) = map else {
            // Another's mount at the staging path must not be covered.
            self.free(&self.look(None).await?)?;
            return Ok(Before::New(entry));
        };
        if map.wwid.to_string() != self.request.context.wwid {
            return Err(self.conflict(format!(
                "with identity {}, not {}",
                map.wwid, self.request.context.wwid
            )));
        }
        let disk = view::disk(&self.node.host, &map)
            .await
            .map_err(|e| self.mount(e))?;
        let seen = self.look(Some(&disk)).await?;
        let how = match seen.at(self.staging) {
            Top::Foreign(_) => return self.free(&seen).map(|()| Before::New(None)),
            Top::Ours(here) => Some(here.form().to_owned()),
            Top::Free => match seen.uses.iter().find(|u| !u.block).or(seen.uses.first()) {
                Some(other) if !other.block => {
                    return Err(self.conflict(format!("at {}", other.mount.path.display())));
                }
                Some(other) => Some(other.form().to_owned()),
                // Only a volume that was staged as a block device has no mount; the journal alone knows.
                None => entry
                    .as_ref()
                    .filter(|e| e.staged && e.access == Access::Block.name())
                    .map(|e| e.access.clone()),
            },
        };
        let Some(how) = how else {
            return self.rebuild(map, entry).await;
        };
        if how != self.request.capability.access.name() {
            return Err(self.conflict(format!("as {how}")));
        }
        // A file system that went read-only after an error is still what was staged: the map tells.
        if map.read_only != self.request.read_only() {
            return Err(self.conflict(writable(!map.read_only).to_owned()));
        }
        let usable = !map.suspended && map.paths().any(PathView::is_usable);
        Ok(if usable {
            Before::Done(Box::new(map))
        } else {
            Before::Staged(self.merge(entry))
        })
    }

    /// Nobody uses the map. It is taken over as it is, unless it was built for another way of use.
    async fn rebuild(&self, map: Map, entry: Option<Entry>) -> Result<Before, StageError> {
        if map.read_only != self.request.read_only() {
            let down = self.node.tear_down(self.volume, Some(map), entry.as_ref()).await;
            down.map_err(|e| StageError::Leftover {
                volume: self.volume,
                source: Box::new(e),
            })?;
        }
        Ok(Before::New(entry))
    }

    fn entry(&self, before: &Before) -> Entry {
        match before {
            Before::Staged(entry) => entry.clone(),
            Before::Done(_) => self.merge(None),
            Before::New(entry) => Entry {
                staged: false,
                ..self.merge(entry.clone())
            },
        }
    }

    /// This request's intention; from an entry of the same disk, that a format of it was begun.
    fn merge(&self, entry: Option<Entry>) -> Entry {
        let context = self.request.context.to_map();
        let same = entry.filter(|e| e.publish_context.get("wwid") == context.get("wwid"));
        // A disk that is handed out raw may come back with anything on it.
        let kept = same
            .as_ref()
            .filter(|_| self.request.capability.access != Access::Block);
        Entry {
            volume_id: self.request.volume.to_string(),
            staging_path: self.staging.to_owned(),
            access: self.request.capability.access.name().to_owned(),
            publish_context: context,
            staged: same.as_ref().is_some_and(|e| e.staged),
            formatting: kept.and_then(|e| e.formatting),
        }
    }

    /// Paths, map, file system. Returns the portals that are still missing.
    async fn build_up(&self, entry: &mut Entry) -> Result<Vec<crate::publish_context::Portal>, StageError> {
        let volume = self.volume;
        let wwid: Wwid = self
            .request
            .context
            .wwid
            .parse()
            .map_err(|e| self.engine("read publish_context.wwid", e))?;
        let attached = self.node.transport.attach(&self.request.context, ATTACH).await;
        let Attached { paths, missing } =
            attached.map_err(|source| StageError::Transport { volume, source })?;
        for (portal, error) in &missing {
            tracing::warn!(volume.id = %volume, %portal, error, "path is missing, it is brought up in the background");
        }
        let proven = self.prove(paths, &wwid).await?;
        let spec = MapSpec {
            volume: volume.to_string(),
            wwid: wwid.clone(),
            read_only: self.request.read_only(),
        };
        let map = self
            .node
            .engine
            .build(spec, proven)
            .await
            .map_err(|e| self.engine("build its map", e))?;
        let map = self.sized(map, &wwid).await?;
        if let Access::Mount { fs, .. } = self.request.capability.access {
            let disk = view::disk(&self.node.host, &map)
                .await
                .map_err(|e| self.mount(e))?;
            // After a restart of paths alone it is mounted already.
            if matches!(self.look(Some(&disk)).await?.at(self.staging), Top::Free) {
                self.mount_it(&disk, fs, entry).await?;
            }
        }
        entry.staged = true;
        entry.formatting = None;
        self.node.journal.put(volume, entry).await?;
        Ok(missing.into_iter().map(|(portal, _)| portal).collect())
    }

    /// Every path's identity, read from it now, all at once. A path that does not prove it is taken away.
    async fn prove(&self, paths: Vec<Hctl>, wwid: &Wwid) -> Result<Vec<ProvenPath>, StageError> {
        let checks: Vec<_> = paths
            .into_iter()
            .map(|hctl| {
                let (engine, wwid) = (self.node.engine.clone(), wwid.clone());
                let label = hctl.to_string();
                (
                    hctl,
                    label,
                    tokio::spawn(async move { engine.prove(hctl, &wwid, PROVE).await }),
                )
            })
            .collect();
        let (mut proven, mut wrong, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (hctl, label, check) in checks {
            match check
                .await
                .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
            {
                Ok(path) => proven.push(path),
                Err(error) => {
                    let text = format!("{label}: {}", chain(&error));
                    tracing::warn!(volume.id = %self.volume, path = label, error = text, "path is left out");
                    if matches!(error, ProveError::Mismatch { .. }) {
                        wrong.push(text);
                    } else {
                        errors.push(text);
                    }
                    self.drop_device(hctl).await;
                }
            }
        }
        let (volume, wwid) = (self.volume, wwid.to_string());
        match (proven.is_empty(), wrong.is_empty()) {
            (false, _) => Ok(proven),
            (true, false) => Err(StageError::WrongIdentity {
                volume,
                wwid,
                found: wrong.join("; "),
            }),
            (true, true) => Err(StageError::NoPath {
                volume,
                wwid,
                errors: errors.join("; "),
            }),
        }
    }

    /// Deletes the device of a path that was left out, so that nothing on this host takes it for the volume.
    async fn drop_device(&self, hctl: Hctl) {
        let host = self.node.host.clone();
        let found =
            storagelink_multipath::worker::run("find-path", PROVE, move || scsi_device::find(&host, &hctl))
                .await;
        if let Ok(Some(disk)) = found
            && let Err(error) = self.node.transport.detach(&[disk], None).await
        {
            tracing::warn!(volume.id = %self.volume, error = chain(&error), "cannot delete the device of a wrong path");
        }
    }

    /// A map with the volume's size. A session that was there before may remember an older size.
    async fn sized(&self, map: Map, wwid: &Wwid) -> Result<Map, StageError> {
        let published = self.request.context.size_bytes;
        if map.size_bytes >= published {
            return Ok(map);
        }
        let resized = self.node.engine.resize(wwid, RESIZE).await;
        let actual = resized.map_err(|e| self.engine("ask its paths for their size", e))?;
        if actual < published {
            return Err(StageError::TooSmall {
                volume: self.volume,
                actual,
                published,
            });
        }
        Ok(Map {
            size_bytes: actual,
            ..map
        })
    }

    async fn mount_it(&self, disk: &Disk, fs: FsType, entry: &mut Entry) -> Result<(), StageError> {
        let Access::Mount { options, .. } = &self.request.capability.access else {
            return Ok(());
        };
        let read_only = self.request.read_only();
        let preparer = Preparer {
            block: self.node.host.block.clone(),
            programs: self.node.programs.as_ref(),
            journal: &self.node.journal,
            volume: self.volume,
        };
        let found = preparer.prepare(disk, fs, read_only, entry).await?;
        self.node
            .mounter
            .make_directory(self.staging)
            .await
            .map_err(|e| self.mount(e))?;
        let request = mount_request(disk, found, options, read_only, self.staging.to_owned());
        self.mount_request(request).await?;
        if !read_only && found.size_bytes.saturating_add(UNUSED) <= disk.size {
            self.grow(disk, found).await;
        }
        Ok(())
    }

    async fn mount_request(&self, mut request: Request) -> Result<(), StageError> {
        let Err(error) = self.node.mounter.mount(request.clone(), self.guard.clone()).await else {
            return Ok(());
        };
        // XFS refuses a second file system of the same UUID: a clone of a volume that is mounted on this node too.
        let nouuid = request.fs == FsType::Xfs
            && error.errno() == Some(nix::libc::EINVAL)
            && !request.data.split(',').any(|o| o == "nouuid");
        if !nouuid {
            return Err(self.mount(error));
        }
        request.data = if request.data.is_empty() {
            "nouuid".to_owned()
        } else {
            format!("{},nouuid", request.data)
        };
        // The first refusal is the one to tell: without a twin the option changes nothing.
        self.node
            .mounter
            .mount(request, self.guard.clone())
            .await
            .map_err(|_| self.mount(error))
    }

    /// A volume made from a smaller one has a file system smaller than itself, and nobody else grows it. It is of use
    /// without that too.
    async fn grow(&self, disk: &Disk, found: Superblock) {
        let grown = filesystem::grow(self.node.programs.as_ref(), found.fs, &disk.node, self.staging).await;
        if let Err(error) = grown {
            tracing::warn!(volume.id = %self.volume, error = chain(&error), "cannot grow its file system to its size");
        }
    }

    /// After a refusal: nothing stays. What cannot be taken back is on record for the next stage or unstage.
    async fn take_back(&self) {
        let found = self.node.engine.find_by_volume(&self.volume.to_string()).await;
        let entry = self.node.journal.get(self.volume).await;
        let done = match (found, entry) {
            (Ok(map), Ok(entry)) => self
                .node
                .tear_down(self.volume, map, entry.as_ref())
                .await
                .map_err(|e| chain(&e)),
            (Err(error), _) => Err(chain(&error)),
            (_, Err(error)) => Err(chain(&error)),
        };
        match done {
            Ok(()) => {
                if let Err(error) = self.node.journal.remove(self.volume).await {
                    tracing::warn!(volume.id = %self.volume, error = chain(&error), "cannot remove its record");
                }
            }
            Err(error) => {
                tracing::warn!(volume.id = %self.volume, error, "a failed stage is not taken back entirely");
            }
        }
    }

    fn join(&self, missing: Vec<crate::publish_context::Portal>) {
        let Ok(wwid) = self.request.context.wwid.parse() else {
            return;
        };
        let (transport, engine) = (self.node.transport.clone(), self.node.engine.clone());
        self.node.joins.start(
            self.volume,
            wwid,
            self.request.context.clone(),
            missing,
            transport,
            engine,
        );
    }

    async fn look(&self, disk: Option<&Disk>) -> Result<Seen, StageError> {
        let elsewhere = self.node.config.host_root.as_deref();
        view::look(&self.node.mounter, disk, elsewhere)
            .await
            .map_err(|e| self.mount(e))
    }

    fn free(&self, seen: &Seen) -> Result<(), StageError> {
        match seen.at(self.staging) {
            Top::Foreign(other) => Err(StageError::Occupied {
                volume: self.volume,
                path: self.staging.to_owned(),
                source_name: other.source.display().to_string(),
            }),
            Top::Free | Top::Ours(_) => Ok(()),
        }
    }

    fn conflict(&self, how: String) -> StageError {
        StageError::Conflict {
            volume: self.volume,
            how,
        }
    }

    fn mount(&self, source: MountError) -> StageError {
        StageError::Mount {
            volume: self.volume,
            source,
        }
    }

    fn engine(&self, step: &'static str, source: impl Into<Cause>) -> StageError {
        StageError::Engine {
            volume: self.volume,
            step,
            source: source.into(),
        }
    }
}

/// For a text.
fn writable(yes: bool) -> &'static str {
    if yes { "writable" } else { "read-only" }
}
