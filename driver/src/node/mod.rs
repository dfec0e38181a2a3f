//! The CSI Node service: stages, publishes, measures and grows volumes on this host.
//!
//! # Rules
//!
//! - The kernel is the truth: a volume's map is found by its name, its mounts by the map's device number. The journal
//!   is a hint.
//! - No call leads to the gateway or to the API server.
//! - One operation per volume at a time ([`guard`]); volumes never wait for one another.
//! - An operation that was begun goes on when its caller goes away, so that nothing is left half done without need. A
//!   process that is killed leaves what the next call, from the kernel's state, goes on from.
//!
//! # Layout
//!
//! [`service`] speaks gRPC; [`validate`] checks fields; [`stage`], [`unstage`], [`publish`], [`stats`], [`expand`] are
//! one operation each; [`held`] says what a volume lies on, a map or, without multipathing, a [`single`] disk; [`prepare`] decides about file
//! systems; [`view`] reads the mount table; [`joins`] brings up late paths; [`transport`] is the seam to iSCSI; [`switch`] is the node's setting,
//! read from its annotations; [`shared_kernel`] is about nodes that are containers; [`registration`] speaks with the kubelet, [`events`] tells the cluster, [`tell`] tells `mpathutil`; [`run`] is the program.

use std::{path::PathBuf, sync::Arc, time::Duration};

use storagelink_multipath::{Engine, host::Host};

use tokio::sync::{Notify, broadcast};

use crate::{
    fabrics::Fabrics,
    mount::{Mounter, Mounts},
    programs::Programs,
};

mod backstop;
mod build_single;
mod build_up;
mod events;
mod expand;
pub mod fault;
pub mod guard;
mod held;
pub mod host_config;
pub mod info;
mod iscsi;
pub mod iscsid;
pub mod joins;
pub mod journal;
pub mod prepare;
mod publish;
pub mod registration;
mod remark;
mod run;
mod service;
mod shared_kernel;
mod single;
mod stage;
mod stats;
pub mod switch;
pub mod tell;
pub mod transport;
mod turns;
mod unstage;
pub mod validate;
pub mod view;

#[cfg(test)]
mod tests;

pub use expand::ExpandError;
pub use publish::{PublishError, UnpublishError};
pub use run::{NodeArgs, run};
pub use service::NodeService;
pub use shared_kernel::{SharedKernelArgs, SharedKernelError};
pub use stage::StageError;
pub use stats::StatsError;
pub use unstage::UnstageError;

use guard::Guards;
use host_config::HostConfig;
use joins::Joins;
use journal::{Journal, JournalError};
use remark::Remark;
use switch::Switch;
use tell::Told;
use transport::Transport;
use turns::Turns;

/// Directory of device nodes below the state directory.
const NODES: &str = "dev";
/// Remarks that a slow listener may be behind.
const REMARKS: usize = 64;

/// Who and where this node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name in Kubernetes.
    pub node_name: String,
    /// The file with the line `InitiatorName=`.
    pub initiator_name_file: PathBuf,
    /// The networks of portals, when there is a topology.
    pub fabrics: Fabrics,
    /// The plugin's state directory.
    pub state_dir: PathBuf,
    /// Install what keeps others on this host away from our paths and maps.
    pub host_config: bool,
    /// When the kernel is to fail I/O without a path by itself, on this whole host.
    pub backstop: Option<Duration>,
    /// Volumes are staged with multipathing, as long as the Node does not say otherwise.
    pub multipathing: bool,
    /// Where a container sees the host's root; `None` when the plugin runs on the host itself.
    pub host_root: Option<PathBuf>,
}

/// The outside of the node: everything that it touches.
#[derive(Clone)]
pub struct Outside {
    /// The kernel's devices.
    pub host: Host,
    /// The multipath engine over them.
    pub engine: Engine,
    /// The mount table.
    pub mounts: Arc<dyn Mounts>,
    /// Programs.
    pub programs: Arc<dyn Programs>,
    /// Transports.
    pub transport: Arc<dyn Transport>,
}

/// The node. Clones share everything.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: Config,
    host: Host,
    engine: Engine,
    mounter: Mounter,
    programs: Arc<dyn Programs>,
    transport: Arc<dyn Transport>,
    journal: Journal,
    guards: Guards,
    joins: Joins,
    turns: Turns,
    /// What an administrator should know, in plain words; heard by whoever tells Events.
    remarks: broadcast::Sender<Remark>,
    /// With or without multipathing.
    switch: Switch,
    /// What keeps others away.
    host_config: HostConfig,
    /// A volume was staged or unstaged.
    staged: Notify,
    /// What was last told of the volumes.
    told: Told,
    /// This boot of the machine; sequence numbers of disks begin anew with each.
    boot: String,
}

impl Node {
    /// Opens the state directory. Nothing of the kernel is touched.
    pub fn new(config: Config, outside: Outside) -> Result<Self, JournalError> {
        let journal = Journal::open(&config.state_dir)?;
        let switch = Switch::new(&config.state_dir, config.multipathing);
        let host_config = match outside.host.names.node() {
            Some(_) => HostConfig::of_shared_host(),
            None => HostConfig::new(config.host_root.as_deref(), config.host_config),
        };
        // Made here, so that a volume's end leaves nothing that was not there before.
        for directory in [storagelink_multipath::told::DIRECTORY, NODES] {
            let path = config.state_dir.join(directory);
            std::fs::create_dir_all(&path).map_err(|source| JournalError { path, source })?;
        }
        // Without a boot id every record counts as this boot's.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            config,
            host: outside.host,
            engine: outside.engine,
            mounter: Mounter::new(outside.mounts),
            programs: outside.programs,
            transport: outside.transport,
            journal,
            guards: Guards::default(),
            joins: Joins::default(),
            turns: Turns::default(),
            remarks: broadcast::Sender::new(REMARKS),
            switch,
            host_config,
            staged: Notify::new(),
            told: Told::default(),
            boot: boot.trim().to_owned(),
        })))
    }
}
