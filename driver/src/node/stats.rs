//! NodeGetVolumeStats: how full a volume is, and whether its paths are in order.
//!
//! It must never wait for a dead disk longer than its time limit, and never report another volume's numbers because of
//! a path alone.

use std::{path::PathBuf, time::SystemTime};

use storagelink_multipath::{Map, PathView};
use storagelink_proto::csi::v1::{
    NodeGetVolumeStatsResponse, VolumeCondition, VolumeUsage, volume_usage::Unit,
};
use tonic::Code;
use uuid::Uuid;

use super::{
    Inner,
    fault::Fault,
    held::Held,
    single::Single,
    view::{Top, Use},
};
use crate::{codes::Coded, ids::VolumeId, mount::MountError};

/// Why there are no numbers.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// It is not on this node.
    #[error("volume {volume} is not staged on this node")]
    NotHere {
        /// Which volume.
        volume: Uuid,
    },
    /// The path does not show it.
    #[error("volume_path {}: volume {volume} is not there", path.display())]
    NotAtPath {
        /// Which volume.
        volume: Uuid,
        /// The path.
        path: PathBuf,
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
    /// The mount table or the file system.
    #[error("volume {volume}")]
    Mount {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: MountError,
    },
}

impl Coded for StatsError {
    fn code(&self) -> Code {
        match self {
            Self::NotHere { .. } | Self::NotAtPath { .. } => Code::NotFound,
            Self::Mount {
                source: MountError::Overdue { .. },
                ..
            } => Code::DeadlineExceeded,
            Self::Engine { source, .. } => source.code,
            Self::Mount { .. } => Code::Internal,
        }
    }
}

impl Inner {
    /// Measures a volume at one of its paths.
    pub(super) async fn stats(
        &self,
        id: &VolumeId,
        path: PathBuf,
    ) -> Result<NodeGetVolumeStatsResponse, StatsError> {
        let volume = id.uuid();
        let mount = |source| StatsError::Mount { volume, source };
        let held = self
            .held(volume)
            .await
            .map_err(|source| StatsError::Engine { volume, source })?;
        let held = held.ok_or(StatsError::NotHere { volume })?;
        let path = self.mounter.resolve(&path).await.map_err(mount)?;
        let disk = self.disk(volume, &held).await.map_err(mount)?;
        let seen = self.look(Some(&disk)).await.map_err(mount)?;
        let Top::Ours(here) = seen.at(&path) else {
            return Err(StatsError::NotAtPath { volume, path });
        };
        let usage = if here.block {
            vec![VolumeUsage {
                total: signed(held.size_bytes()),
                unit: Unit::Bytes.into(),
                ..VolumeUsage::default()
            }]
        } else {
            let usage = self.mounter.usage(&path).await.map_err(mount)?;
            let bytes = VolumeUsage {
                available: signed(usage.available_bytes),
                total: signed(usage.total_bytes),
                used: signed(usage.used_bytes),
                unit: Unit::Bytes.into(),
            };
            // btrfs has no fixed number of inodes: nothing to tell.
            let inodes = (usage.total_inodes > 0).then(|| VolumeUsage {
                available: signed(usage.free_inodes),
                total: signed(usage.total_inodes),
                used: signed(usage.total_inodes.saturating_sub(usage.free_inodes)),
                unit: Unit::Inodes.into(),
            });
            std::iter::once(bytes).chain(inodes).collect()
        };
        Ok(NodeGetVolumeStatsResponse {
            usage,
            volume_condition: Some(self.condition(&held, here)),
        })
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Inner {
    /// What the kernel says of the volume's paths and of its file system.
    fn condition(&self, held: &Held, here: &Use) -> VolumeCondition {
        let paths = match held {
            Held::Map(map) => {
                let failed = self
                    .engine
                    .ledger()
                    .of(&map.volume)
                    .and_then(|known| known.failed_io);
                of_map(map, failed.and_then(|(_, until)| until))
            }
            Held::Single(single) => of_single(single),
        };
        let remounted = !here.block && !held.read_only() && here.mount.stopped();
        let (abnormal, message) = match paths {
            // Without a path nothing else matters.
            paths if !held.is_usable() => paths,
            _ if remounted => (true, "the file system went read-only after an error".to_owned()),
            paths => paths,
        };
        VolumeCondition { abnormal, message }
    }
}

/// `failed_until`: when I/O that had failed for want of a path went through again.
fn of_map(map: &Map, failed_until: Option<SystemTime>) -> (bool, String) {
    let total = map.paths().count();
    let down: Vec<String> = map.paths().filter(|p| !p.is_usable()).map(label).collect();
    if map.suspended {
        (true, "the multipath map is suspended: I/O waits".to_owned())
    } else if down.len() == total {
        let what = if map.queue_if_no_path {
            "I/O waits"
        } else {
            "I/O fails (EIO): none was usable for too long"
        };
        (true, format!("none of {total} paths is usable: {what}"))
    } else if !down.is_empty() {
        (
            true,
            format!("{} of {total} paths are down: {}", down.len(), down.join(", ")),
        )
    } else if failed_until.is_some() {
        (
            false,
            format!("{total} of {total} paths are usable; I/O had failed for want of a path before"),
        )
    } else {
        (false, format!("{total} of {total} paths are usable"))
    }
}

fn of_single(single: &Single) -> (bool, String) {
    let Some(disk) = &single.disk else {
        return (true, "its only path is gone: I/O fails".to_owned());
    };
    let what = match disk.state.as_str() {
        "running" => {
            return (
                false,
                "its only path is usable; it is staged without multipathing".to_owned(),
            );
        }
        _ if disk.is_blocked() => "I/O waits",
        _ => "I/O fails",
    };
    (
        true,
        format!(
            "its only path, {} at {}, is {}: {what}",
            disk.name, disk.hctl, disk.state
        ),
    )
}

/// A path in words: its portal when it has one, its address, its kernel name.
fn label(path: &PathView) -> String {
    if path.hctl.is_empty() {
        return format!("a disk that is gone (was {})", path.devno);
    }
    let through = if path.portal.is_empty() {
        String::new()
    } else {
        format!(" through {}", path.portal)
    };
    format!("{} at {}{through} ({})", path.name, path.hctl, path.device_state)
}
