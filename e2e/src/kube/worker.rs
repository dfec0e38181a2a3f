//! A worker guest: containerd over the disk of images, kubelet, open-iscsi; what an administrator installs on a node, and
//! nothing of the driver. The only Service is the API server's: one rule stands for kube-proxy, whose programs an emulated
//! processor takes 16 s to start.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{
    binaries::Binaries,
    control_plane::ControlPlane,
    images,
    pki::{API_PORT, API_SERVICE},
};
use crate::{
    agent::MACHINE,
    guest::Guest,
    net::Fabric,
    roles::{inspect, node},
    wait,
};

/// What a worker has loaded before the driver comes: containers, Service addresses, its disk; loop devices, by which the
/// kubelet pins raw block volumes.
pub const MODULES: [&str; 9] = [
    "loop",
    "virtio_blk",
    "overlay",
    "veth",
    "bridge",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
];
/// Process and log name of the host's iscsid.
pub const ISCSID: &str = "iscsid";
/// Process and log name of the kubelet.
pub const KUBELET: &str = "kubelet";
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);

/// Brings up everything but waits for nothing that needs the API server.
pub async fn start(guest: &Guest, control: &ControlPlane, binaries: &Binaries, udev: bool) -> Result<()> {
    let index = guest.index();
    guest
        .shell(&format!(
            "sysctl -qw net.ipv4.ip_forward=1; ip route add default via {MACHINE}; \
             mkdir -p /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; \
             mkdir -p /var/lib/containerd /var/lib/kubelet /var/log /etc/cni/net.d /var/lib/cni /opt; \
             mount /dev/vda /var/lib/containerd; \
             for d in /var/lib/kubelet /var/log /etc/cni/net.d /var/lib/cni; do mount -t tmpfs tmpfs $d; done; \
             mount --make-rshared /"
        ))
        .await
        .context("mounts of a worker")?;
    node::prepare(guest, udev).await?;
    let pods = format!("10.244.{index}.0/24");
    // One rule for all pods: `ipMasq` runs iptables a dozen times for each of them.
    let rules = format!(
        "table ip lab {{ \
           chain services {{ type nat hook prerouting priority dstnat; ip daddr {API_SERVICE} tcp dport 443 dnat to {MACHINE}:{API_PORT}; }}; \
           chain local {{ type nat hook output priority -100; ip daddr {API_SERVICE} tcp dport 443 dnat to {MACHINE}:{API_PORT}; }}; \
           chain pods {{ type nat hook postrouting priority srcnat; ip saddr {pods} oifname != \"cni0\" masquerade; }}; }}"
    );
    guest
        .exec(&["nft", &rules])
        .await
        .context("addresses of Services and pods")?;
    let network = serde_json::json!({
        "cniVersion": "1.0.0", "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": pods}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        ],
    });
    let address = guest.address(Fabric::Management);
    for (path, content) in [
        ("/etc/cni/net.d/10-lab.conflist", network.to_string()),
        ("/etc/lab/containerd.toml", containerd_configuration()),
        ("/etc/lab/kubelet.kubeconfig", control.access(guest.name())),
        ("/etc/lab/kubelet.json", kubelet_configuration()),
    ] {
        guest.write(path, content, 0o600).await?;
    }
    guest
        .spawn(
            "containerd",
            &["containerd", "-c", "/etc/lab/containerd.toml"],
            &[("GOGC", "400")],
        )
        .await?;
    wait::until("containerd", CONTAINERD_LIMIT, async || {
        Ok(guest.exec(&["ctr", "version"]).await.is_ok())
    })
    .await?;
    start_kubelet(guest, binaries, &address).await
}

/// Starts the kubelet (again).
pub async fn start_kubelet(guest: &Guest, binaries: &Binaries, address: &str) -> Result<()> {
    let program = binaries.kubernetes("kubelet");
    guest
        .spawn(
            KUBELET,
            &[
                &program.to_string_lossy(),
                "--config=/etc/lab/kubelet.json",
                "--kubeconfig=/etc/lab/kubelet.kubeconfig",
                &format!("--hostname-override={}", guest.name()),
                &format!("--node-ip={address}"),
                // Statistics of containers that nobody reads take a good part of an emulated processor.
                "--housekeeping-interval=5m",
                "--global-housekeeping-interval=15m",
                "-v=2",
            ],
            &[("GOGC", "400")],
        )
        .await
        .map(drop)
}

/// crun starts a container in a tenth of what an emulated processor needs for runc.
fn containerd_configuration() -> String {
    let pause = images::PAUSE;
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
  BinaryName = "crun"
"#
    )
}

fn kubelet_configuration() -> String {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDomain": "cluster.local",
        // Nothing answers there: pods reach what they need by address.
        "clusterDNS": [API_SERVICE],
        "nodeStatusUpdateFrequency": "5s",
        // Renewed every quarter of it: often enough for the controller manager's patience.
        "nodeLeaseDurationSeconds": 20,
        // A container that ended because what it needs was away is started again soon after that is back.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
        // A file system is grown when its pod is looked at again: every minute, if nobody says otherwise.
        "syncFrequency": "15s",
        // Pods have no cgroups of their own to be walked through every two seconds.
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        // Nothing is evicted, so nothing is measured for it. The root file system is the machine's own: how full it is
        // says nothing about the guest.
        "evictionHard": {
            "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
    })
    .to_string()
}

/// Everything of volumes on a worker, without what the kubelet keeps for itself.
pub async fn snapshot(guest: &Guest) -> Result<Vec<String>> {
    let mut lines = inspect::snapshot(guest).await?;
    // What an iscsid in the container keeps: the node's name, and directories that iscsiadm makes and never removes; entries in them
    // would be seen.
    let kept = format!("{}/iscsi", node::STATE);
    let kept =
        ["", "/initiatorname.iscsi", "/ifaces", "/nodes", "/static"].map(|below| format!("{kept}{below}"));
    lines.retain(|line| !kept.contains(line));
    lines.retain(|line| match line.split_once("/var/lib/kubelet/") {
        // Of the kubelet's directory only what is of one volume: below these, which it never removes.
        Some((_, below)) => [
            "csi.storagelink.io/",
            "volumeDevices/publish/",
            "volumeDevices/staging/",
        ]
        .iter()
        .any(|parent| below.contains(&format!("plugins/kubernetes.io/csi/{parent}"))),
        None => true,
    });
    Ok(lines)
}
