//! The real kernel behind the [`Host`](super::Host) traits.

mod block;
mod dm;
mod dm_control;
mod dm_ioctl;
mod inet_diag;
mod netns;
mod network;
mod scsi;
mod sysfs;

use std::{path::PathBuf, sync::Arc};

#[cfg(fuzzing)]
pub(crate) use inet_diag::fuzz as fuzz_inet_diag;

pub use block::KernelBlockDevices;
pub use dm::KernelDeviceMapper;
pub use netns::{NetNamespace, NetNamespaceError};
pub use network::KernelNetwork;
pub use scsi::KernelScsi;
pub use sysfs::KernelSysfs;

use super::Host;
use crate::names::Names;

impl Host {
    /// The kernel of this machine. `node_directory` is where device nodes are made that `/dev` does not have.
    #[must_use]
    pub fn kernel(node_directory: impl Into<PathBuf>) -> Self {
        let block = Arc::new(KernelBlockDevices::new(node_directory));
        Self {
            dm: Arc::new(KernelDeviceMapper::default()),
            scsi: Arc::new(KernelScsi::new(block.clone())),
            sysfs: Arc::new(KernelSysfs::new("/sys")),
            block,
            network: Arc::new(KernelNetwork::default()),
            names: Names::default(),
        }
    }

    /// The same with the TCP connections, links and iSCSI events of another network namespace than that of this process.
    #[must_use]
    pub fn in_network(self, namespace: NetNamespace) -> Self {
        Self {
            network: Arc::new(KernelNetwork::new(namespace)),
            ..self
        }
    }
}
