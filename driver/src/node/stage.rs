//! NodeStageVolume: from a publish context to a map, and to a mounted file system for volumes with access type mount.
//!
//! Order: look at the kernel; note the intention; bring up paths; prove each; build the map; look at what is on it;
//! mount. It must never let a path in whose live identity is not the volume's, and never answer before at least one
//! path carries I/O. A refusal takes back what this call, or a stage before it that did not end, has set up.

use std::path::{Path, PathBuf};

use storagelink_multipath::engine::ProveError;
use tonic::Code;
use uuid::Uuid;

use super::{
    Inner,
    fault::Fault,
    guard::Guard,
    held::Held,
    journal::{Entry, JournalError},
    prepare::{Disk, PrepareError},
    single::{PROVE, Single, SingleDisk},
    transport::TransportError,
    unstage::UnstageError,
    validate::{Access, Stage},
    view::{self, Seen, Top},
};
use crate::{
    codes::{Coded, chain},
    mount::MountError,
    publish_context::{ContextError, Portal},
};

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
    /// Fewer paths than `minPaths` are usable.
    #[error("volume {volume}: {found} usable paths, its class asks for {wanted} (minPaths)")]
    FewPaths {
        /// Which volume.
        volume: Uuid,
        /// Paths that proved themselves.
        found: usize,
        /// Paths that are asked for.
        wanted: u32,
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
    #[error("volume {volume}")]
    Engine {
        /// Which volume.
        volume: Uuid,
        /// Which step, and why.
        #[source]
        source: Fault,
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
    /// The published identity.
    #[error(transparent)]
    Context(ContextError),
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
            Self::NoPath { .. } | Self::FewPaths { .. } => Code::Unavailable,
            Self::Engine { source, .. } => source.code,
            Self::Context(_) => Code::InvalidArgument,
            Self::Journal(_) => Code::Internal,
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
        if let Before::Done(held) = &before {
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
            if let Held::Map(map) = held
                && map.paths().filter(|p| !p.name.is_empty()).count() < request.context.portals.len()
            {
                work.join(request.context.portals.clone());
            }
            return Ok(());
        }
        let target = request
            .context
            .portals
            .first()
            .map_or("", |portal| &portal.target);
        let _turn = self.turns.take(target).await;
        let mut entry = work.entry(&before);
        self.journal.put(volume, &entry).await?;
        self.mark(&request.context.wwid).await;
        // One that is staged keeps what it has: only then is it not new.
        let multipath = matches!(before, Before::Staged(_)) || self.switch.multipathing();
        let built = match multipath {
            true => work.build_up(&mut entry).await,
            false => work.build_single(&mut entry).await.map(|()| Vec::new()),
        };
        self.staged.notify_one();
        match built {
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
    Done(Held),
    /// It is staged as asked for, but no path of it is usable: they are brought up again.
    Staged(Entry),
    /// It is not staged, or a stage of it did not end.
    New(Option<Entry>),
}

/// One stage under way.
pub(super) struct Work<'a> {
    pub(super) node: &'a Inner,
    pub(super) volume: Uuid,
    pub(super) request: &'a Stage,
    pub(super) staging: &'a Path,
    pub(super) guard: Guard,
}

impl Work<'_> {
    async fn before(&self) -> Result<Before, StageError> {
        let held = self.node.held(self.volume).await.map_err(|e| self.engine(e))?;
        let entry = self.node.journal.get(self.volume).await?;
        let Some(held) = held else {
            // Another's mount at the staging path must not be covered.
            self.free(&self.look(None).await?)?;
            return Ok(Before::New(entry));
        };
        let of_record = || {
            entry
                .as_ref()
                .and_then(|e| e.publish_context.get("wwid").cloned())
        };
        let wwid = match &held {
            Held::Map(map) => Some(map.wwid.to_string()),
            Held::Single(_) => of_record(),
        };
        if let Some(wwid) = wwid.filter(|wwid| *wwid != self.request.context.wwid) {
            return Err(self.conflict(format!("with identity {wwid}, not {}", self.request.context.wwid)));
        }
        let disk = self
            .node
            .disk(self.volume, &held)
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
            return self.rebuild(held, entry).await;
        };
        if how != self.request.capability.access.name() {
            return Err(self.conflict(format!("as {how}")));
        }
        // A file system that went read-only after an error is still what was staged: the device tells.
        if held.read_only() != self.request.read_only() {
            return Err(self.conflict(writable(!held.read_only()).to_owned()));
        }
        if let Held::Single(single) = &held {
            self.still_leads_here(single).await?;
            return Ok(Before::Done(held));
        }
        Ok(if held.is_usable() {
            Before::Done(held)
        } else {
            Before::Staged(self.merge(entry))
        })
    }

    /// Nobody uses what is there. It is taken over as it is, unless it was built for another way of use.
    async fn rebuild(&self, held: Held, entry: Option<Entry>) -> Result<Before, StageError> {
        let other_way = held.is_multipath() != self.node.switch.multipathing();
        if other_way || held.read_only() != self.request.read_only() {
            let down = self.node.tear_down(self.volume, Some(held), entry.as_ref()).await;
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
            Before::Done(held) => Entry {
                single: self.record_of(held),
                ..self.merge(None)
            },
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
            single: None,
        }
    }

    fn record_of(&self, held: &Held) -> Option<SingleDisk> {
        let Held::Single(single) = held else { return None };
        let disk = single.disk.as_ref()?;
        // What its session's time was before is lost with the record: it keeps what it has.
        Some(SingleDisk::new(disk, &self.node.boot))
    }

    /// The one disk of a volume that is staged without multipathing, asked again. One that does not answer cannot be exchanged under a mount.
    async fn still_leads_here(&self, single: &Single) -> Result<(), StageError> {
        let (volume, wwid) = (self.volume, self.wwid()?);
        let no_path = |errors: String| StageError::NoPath {
            volume,
            wwid: wwid.to_string(),
            errors,
        };
        let Some(disk) = &single.disk else {
            return Err(no_path(
                "its disk is gone; delete the pods that have it, so that it is staged anew".to_owned(),
            ));
        };
        match self.node.engine.prove(disk.hctl, &wwid, PROVE).await {
            Ok(_) => Ok(()),
            Err(error @ ProveError::Mismatch { .. }) => Err(StageError::WrongIdentity {
                volume,
                wwid: wwid.to_string(),
                found: chain(&error),
            }),
            Err(error) => Err(no_path(chain(&error))),
        }
    }

    fn join(&self, missing: Vec<Portal>) {
        let Ok(wwid) = self.wwid() else { return };
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

    pub(super) async fn look(&self, disk: Option<&Disk>) -> Result<Seen, StageError> {
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

    pub(super) fn conflict(&self, how: String) -> StageError {
        StageError::Conflict {
            volume: self.volume,
            how,
        }
    }

    pub(super) fn mount(&self, source: MountError) -> StageError {
        StageError::Mount {
            volume: self.volume,
            source,
        }
    }

    pub(super) fn engine(&self, source: Fault) -> StageError {
        StageError::Engine {
            volume: self.volume,
            source,
        }
    }
}

/// For a text.
fn writable(yes: bool) -> &'static str {
    if yes { "writable" } else { "read-only" }
}
