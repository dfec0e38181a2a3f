//! The node on the simulated host, through its gRPC service: what a caller gets, and what is on the host afterwards.

mod blank;
mod crash;
mod host;
mod publishing;
mod single;
mod staging;
mod transport;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
};

use storagelink_multipath::{
    Engine, Map,
    host::{BlockDevices as _, sim::SimKernel},
};
use storagelink_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
    node_server::Node as _,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Status};

use super::{Config, Node, NodeService, Outside};
use crate::{
    mount::{FsType, sim::SimMounts, superblock},
    programs::{
        Program,
        sim::{SimPrograms, exits},
    },
};
use host::{Content, Fuse};
use transport::SimTransport;

const MIB: u64 = 1 << 20;
/// Small enough to be looked at in one piece, so that the tests that kill at every call have fewer calls to kill at.
const SIZE: u64 = 2 * MIB;
const TARGET: &str = "iqn.2026-11.com.example:t";
const LUN: u64 = 7;
const VOLUME: &str = "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
const WWID: &str = "naa.6001405123456789abc4def812345678";
const OTHER: &str = "naa.6001405ffffffffffffffffffffffff0";
const STAGING: &str = "/k/staging";
const PODS: [&str; 2] = ["/k/pod-a/mount", "/k/pod-b/mount"];

/// A host with two portals to one volume, and a node plugin on it.
struct Lab {
    kernel: SimKernel,
    content: Content,
    fuse: Fuse,
    mounts: SimMounts,
    programs: SimPrograms,
    transport: SimTransport,
    ran: Arc<Mutex<Vec<Program>>>,
    state: tempfile::TempDir,
    node: Node,
    service: NodeService,
}

impl Lab {
    fn new() -> Self {
        let kernel = SimKernel::new();
        let content = Content::new(kernel.clone());
        let fuse = Fuse::new();
        kernel.set_lun(TARGET, LUN, &WWID.parse().unwrap(), SIZE);
        let gate = fuse.clone();
        let mounts = SimMounts::new(kernel.clone(), Arc::new(content.clone()), move || gate.spend());
        let host = host::fused(&kernel, &content, &fuse);
        let transport = SimTransport {
            kernel: kernel.clone(),
            host,
            fuse: fuse.clone(),
            dead: Arc::default(),
            crowd: Arc::new(Semaphore::new(32)),
        };
        let programs = SimPrograms::new();
        let state = tempfile::tempdir().unwrap();
        let ran = Arc::default();
        let node = plugin(
            &kernel,
            &content,
            &fuse,
            &mounts,
            &programs,
            &transport,
            state.path(),
        );
        let service = NodeService::new(node.clone());
        let lab = Self {
            kernel,
            content,
            fuse,
            mounts,
            programs,
            transport,
            ran,
            state,
            node,
            service,
        };
        lab.install();
        lab
    }

    /// A new process on the same host.
    fn restart(&mut self) {
        self.fuse.mend();
        let (kernel, content, fuse) = (&self.kernel, &self.content, &self.fuse);
        self.node = plugin(
            kernel,
            content,
            fuse,
            &self.mounts,
            &self.programs,
            &self.transport,
            self.state.path(),
        );
        self.service = NodeService::new(self.node.clone());
    }

    /// Programs that do to the simulated disks what the real ones do to real disks.
    fn install(&self) {
        for (program, fs) in [
            (Program::MkfsExt4, FsType::Ext4),
            (Program::MkfsXfs, FsType::Xfs),
            (Program::MkfsBtrfs, FsType::Btrfs),
        ] {
            self.program(program, move |lab, node| {
                let wwid = lab.content.wwid_of(node).unwrap();
                // In two steps, with a chance of being killed between them: a maker writes its superblock last.
                lab.content.write(&wwid, 1_500_000, b"half made");
                if lab.fuse.spend().is_err() {
                    return exits(program, 1, "killed");
                }
                lab.content.write(&wwid, 0, &superblock::sample(fs, SIZE));
                exits(program, 0, "")
            });
        }
        self.program(Program::Blkid, |lab, node| {
            let disk = lab.content.snapshot(&lab.content.wwid_of(node).unwrap());
            let starts = |at: u64, text: &[u8]| (at..).zip(text).all(|(a, b)| disk.get(&a) == Some(b));
            if starts(0, b"LUKS") {
                exits(Program::Blkid, 0, "TYPE=crypto_LUKS\n")
            } else {
                exits(Program::Blkid, 2, "")
            }
        });
        self.program(Program::E2fsck, |_, _| exits(Program::E2fsck, 1, "repaired"));
        self.program(Program::Resize2fs, |lab, node| {
            let wwid = lab.content.wwid_of(node).unwrap();
            let table = lab.kernel.host().dm.table(&format!("storagelink-{VOLUME}"));
            let size = match table {
                Ok(table) => table[0].length * 512,
                Err(_) => {
                    let (devno, _) = lab.kernel.own_device(node.as_ref()).unwrap();
                    lab.kernel.size_bytes(devno, "").unwrap()
                }
            };
            lab.content
                .write(&wwid, 0, &superblock::sample(FsType::Ext4, size));
            exits(Program::Resize2fs, 0, "")
        });
    }

    fn program(
        &self,
        program: Program,
        f: impl Fn(&Parts, &str) -> crate::programs::sim::Answer + Send + Sync + 'static,
    ) {
        let parts = Parts {
            kernel: self.kernel.clone(),
            content: self.content.clone(),
            fuse: self.fuse.clone(),
        };
        let ran = Arc::clone(&self.ran);
        self.programs.install(program, move |invocation| {
            if parts.fuse.spend().is_err() {
                return exits(program, 1, "killed");
            }
            ran.lock().unwrap().push(program);
            f(&parts, invocation.args.last().unwrap())
        });
    }

    fn ran(&self) -> Vec<Program> {
        self.ran.lock().unwrap().clone()
    }

    async fn map(&self) -> Option<Map> {
        Engine::new(self.kernel.host())
            .find_by_volume(VOLUME)
            .await
            .unwrap()
    }

    fn is_mounted(&self, path: &str) -> bool {
        self.mounts.mounts().iter().any(|m| m.path == Path::new(path))
    }

    /// Nothing of any volume is left on the host.
    fn assert_clean(&self, when: &str) {
        assert_eq!(self.kernel.maps(), Vec::<String>::new(), "maps {when}");
        assert_eq!(self.kernel.disks(), vec![], "SCSI devices {when}");
        assert_eq!(self.kernel.session_count(), 0, "sessions {when}");
        assert_eq!(self.mounts.mounts(), vec![], "mounts {when}");
        let records = std::fs::read_dir(self.state.path().join("volumes"))
            .unwrap()
            .count();
        assert_eq!(records, 0, "records {when}");
        let told = storagelink_multipath::told::read(self.state.path());
        assert_eq!(told, [], "told {when}");
        assert_eq!(self.node.0.joins.running(), 0, "background tasks {when}");
    }

    async fn stage(&self, capability: VolumeCapability) -> Result<(), Status> {
        self.stage_with(capability, |_| {}).await
    }

    async fn stage_with(
        &self,
        capability: VolumeCapability,
        change: impl FnOnce(&mut NodeStageVolumeRequest),
    ) -> Result<(), Status> {
        let mut request = NodeStageVolumeRequest {
            volume_id: VOLUME.into(),
            publish_context: context(),
            staging_target_path: STAGING.into(),
            volume_capability: Some(capability),
            ..NodeStageVolumeRequest::default()
        };
        change(&mut request);
        self.service
            .node_stage_volume(Request::new(request))
            .await
            .map(drop)
    }

    async fn unstage(&self) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: STAGING.into(),
        };
        self.service
            .node_unstage_volume(Request::new(request))
            .await
            .map(drop)
    }

    async fn publish(
        &self,
        target: &str,
        capability: VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: VOLUME.into(),
            staging_target_path: STAGING.into(),
            target_path: target.into(),
            volume_capability: Some(capability),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        self.service
            .node_publish_volume(Request::new(request))
            .await
            .map(drop)
    }

    async fn unpublish(&self, target: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: VOLUME.into(),
            target_path: target.into(),
        };
        self.service
            .node_unpublish_volume(Request::new(request))
            .await
            .map(drop)
    }

    async fn stats(&self, path: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: VOLUME.into(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        self.service
            .node_get_volume_stats(Request::new(request))
            .await
            .map(tonic::Response::into_inner)
    }

    async fn expand(&self, path: &str, required_bytes: u64) -> Result<u64, Status> {
        let range = storagelink_proto::csi::v1::CapacityRange {
            required_bytes: i64::try_from(required_bytes).unwrap(),
            limit_bytes: 0,
        };
        let request = NodeExpandVolumeRequest {
            volume_id: VOLUME.into(),
            volume_path: path.into(),
            capacity_range: Some(range),
            ..NodeExpandVolumeRequest::default()
        };
        let answer = self.service.node_expand_volume(Request::new(request)).await?;
        Ok(u64::try_from(answer.into_inner().capacity_bytes).unwrap())
    }
}

/// What a simulated program can reach.
struct Parts {
    kernel: SimKernel,
    content: Content,
    fuse: Fuse,
}

fn plugin(
    kernel: &SimKernel,
    content: &Content,
    fuse: &Fuse,
    mounts: &SimMounts,
    programs: &SimPrograms,
    transport: &SimTransport,
    state: &Path,
) -> Node {
    let host = host::fused(kernel, content, fuse);
    let config = Config {
        fabrics: Default::default(),
        node_name: "n1".into(),
        initiator_name_file: "/nowhere".into(),
        state_dir: state.to_owned(),
        multipathing: true,
        backstop: None,
        host_config: false,
        host_root: None,
    };
    let outside = Outside {
        engine: Engine::new(host.clone()),
        host,
        mounts: Arc::new(mounts.clone()),
        programs: Arc::new(programs.clone()),
        transport: Arc::new(transport.clone()),
    };
    Node::new(config, outside).unwrap()
}

fn context() -> HashMap<String, String> {
    let portals = format!("192.0.2.1:3260,1,{TARGET} 192.0.2.2:3260,1,{TARGET}");
    let (lun, size) = (LUN.to_string(), SIZE.to_string());
    let pairs = [
        ("protocol", "iscsi"),
        ("portals", &portals),
        ("lun", &lun),
        ("wwid", WWID),
        ("sizeBytes", &size),
        ("readOnly", "false"),
    ];
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn mounted(fs: &str, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs.to_owned(),
            ..MountVolume::default()
        })),
    }
}

fn ext4() -> VolumeCapability {
    mounted("ext4", Mode::SingleNodeWriter)
}

fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>, text: &str) -> Code {
    let status = result.expect_err(text);
    assert!(
        status.message().contains(text),
        "{status:?} does not say {text:?}"
    );
    status.code()
}
