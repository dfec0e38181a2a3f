//! NodeUnstageVolume: from a mounted file system and a map to nothing.
//!
//! Order: see that no target still shows the volume; unmount; end the background joins; remove the map; delete its SCSI
//! devices and end the sessions that are ours and unused; remove the record. Nothing there is success at every step. It
//! must never ask the gateway or the API server, never unmount what is not the volume's, and never start an unmount
//! that cannot end: without a usable path it would sleep in the kernel until one is back.

use std::{path::PathBuf, time::Duration};

use storagelink_multipath::{engine::RemoveError, worker};
use tonic::Code;
use uuid::Uuid;

use super::{
    Inner,
    fault::Fault,
    guard::Guard,
    held::Held,
    joins::StillJoining,
    journal::{Entry, JournalError},
    transport::TransportError,
    view::{self, Top},
};
use crate::{codes::Coded, ids::VolumeId, mount::MountError, publish_context::PublishContext};

/// Time limit of flushing and removing the map. A udev that looks at it lets go within a second; a program that has it
/// open does not, and is told of.
const REMOVE: Duration = Duration::from_secs(15);
/// Time limit of removing a device node.
const NODE: Duration = Duration::from_secs(10);
/// More mounts than this on top of one another are not ours.
const STACK: usize = 16;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a volume is still there.
#[derive(Debug, thiserror::Error)]
pub enum UnstageError {
    /// A target still shows it.
    #[error("volume {volume} is still in use at {}", path.display())]
    Published {
        /// Which volume.
        volume: Uuid,
        /// Where.
        path: PathBuf,
    },
    /// Something else is mounted at the staging path.
    #[error("staging_target_path {}: what is mounted there is not volume {volume} ({source_name})", path.display())]
    Foreign {
        /// Which volume.
        volume: Uuid,
        /// The staging path.
        path: PathBuf,
        /// What.
        source_name: String,
    },
    /// An unmount would have to write and cannot.
    #[error(
        "volume {volume} has no usable path: unmounting it would wait for one; it is tried again when one is back"
    )]
    NoPath {
        /// Which volume.
        volume: Uuid,
    },
    /// A background join did not end.
    #[error(transparent)]
    Joining(#[from] StillJoining),
    /// A file in it, or the map, is open.
    #[error("volume {volume} is busy")]
    InUse {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The mount table.
    #[error("volume {volume}")]
    Mount {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: MountError,
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
    /// The record.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Coded for UnstageError {
    fn code(&self) -> Code {
        match self {
            Self::Published { .. } | Self::Foreign { .. } | Self::InUse { .. } => Code::FailedPrecondition,
            Self::NoPath { .. } | Self::Joining(_) => Code::Unavailable,
            Self::Mount {
                source: MountError::Overdue { .. },
                ..
            } => Code::DeadlineExceeded,
            Self::Engine { source, .. } => source.code,
            Self::Mount { .. } | Self::Journal(_) => Code::Internal,
            Self::Transport { source, .. } => source.code,
        }
    }
}

impl Inner {
    /// Unstages a volume. Repeating it changes nothing.
    pub(super) async fn unstage(
        &self,
        id: &VolumeId,
        staging: PathBuf,
        guard: Guard,
    ) -> Result<(), UnstageError> {
        let volume = id.uuid();
        let mount = |source| UnstageError::Mount { volume, source };
        let staging = self.mounter.resolve(&staging).await.map_err(mount)?;
        let entry = self.journal.get(volume).await?;
        let held = self
            .held(volume)
            .await
            .map_err(|source| UnstageError::Engine { volume, source })?;
        let disk = match &held {
            Some(held) => Some(self.disk(volume, held).await.map_err(mount)?),
            None => None,
        };
        for _ in 0..STACK {
            let seen = self.look(disk.as_ref()).await.map_err(mount)?;
            if let Some(path) = seen.besides(&[&staging]).first() {
                return Err(UnstageError::Published {
                    volume,
                    path: path.to_path_buf(),
                });
            }
            match seen.at(&staging) {
                Top::Free => break,
                Top::Foreign(other) => {
                    let source_name = other.source.display().to_string();
                    return Err(UnstageError::Foreign {
                        volume,
                        path: staging,
                        source_name,
                    });
                }
                Top::Ours(_) => {}
            }
            if held.as_ref().is_some_and(Held::would_wait) {
                return Err(UnstageError::NoPath { volume });
            }
            match self.mounter.unmount(&staging, guard.clone()).await {
                Ok(_) => {}
                Err(source) if source.errno() == Some(nix::libc::EBUSY) => {
                    return Err(UnstageError::InUse {
                        volume,
                        source: source.into(),
                    });
                }
                Err(source) => return Err(mount(source)),
            }
        }
        // Only now that nothing keeps the volume here: until then late paths are still of use.
        self.joins.stop(volume).await?;
        self.tear_down(volume, held, entry.as_ref()).await?;
        self.journal.settle(volume).await?;
        self.untell(volume).await;
        self.staged.notify_one();
        Ok(())
    }

    /// Removes the map, if there is one, the SCSI devices and the sessions of a volume that is mounted nowhere.
    pub(super) async fn tear_down(
        &self,
        volume: Uuid,
        held: Option<Held>,
        entry: Option<&Entry>,
    ) -> Result<(), UnstageError> {
        let mut disks = Vec::new();
        if let Some(Held::Single(single)) = &held {
            disks.extend(self.let_go(volume, single, entry).await?);
        }
        if let Some(Held::Map(map)) = held {
            disks = self
                .engine
                .remove(&map.wwid, REMOVE)
                .await
                .map_err(|error| match error {
                    RemoveError::Busy { .. } => UnstageError::InUse {
                        volume,
                        source: error.into(),
                    },
                    error => UnstageError::Engine {
                        volume,
                        source: Fault::remove(error),
                    },
                })?;
        }
        // What a crash left between scan and map is found by where the volume was published. An entry that cannot be
        // read does not keep the rest from being taken away.
        let context = entry.and_then(|e| PublishContext::from_map(&e.publish_context).ok());
        let done = self.transport.detach(&disks, context.as_ref()).await;
        done.map_err(|source| UnstageError::Transport { volume, source })?;
        let (block, name) = (
            self.host.block.clone(),
            self.host.names.map_name(&volume.to_string()),
        );
        if let Some(context) = context {
            self.unmark(&context.wwid).await;
        }
        let removed = worker::run("remove-node", NODE, move || {
            block.remove_own_node(&name)?;
            block.remove_stale_nodes()
        })
        .await;
        match removed {
            Ok(Ok(())) => {}
            // Of no harm: it is made anew before it is used.
            Ok(Err(error)) => tracing::warn!(volume.id = %volume, %error, "cannot remove its device node"),
            Err(error) => tracing::warn!(volume.id = %volume, %error, "cannot remove its device node"),
        }
        Ok(())
    }

    /// The mount table, and the volume's mounts in it.
    pub(super) async fn look(&self, disk: Option<&super::prepare::Disk>) -> Result<view::Seen, MountError> {
        view::look(&self.mounter, disk, self.config.host_root.as_deref()).await
    }
}
