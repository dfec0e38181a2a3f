//! Fibre Channel in software inside one guest: two fabrics (FCoE in VN2VN mode, each over a bridge), the kernel's target (tcm_fc) at one end of
//! each, and the guest's own initiator at the other. Everything above the wire is what a host bus adapter has: fc_host, remote ports, their timers.
//!
//! What tcm_fc does not stand is a link lost while it waits for the data of a write: it keeps the command for ever, and with it whoever takes its session
//! down (6.1: ft_prlo, target_wait_for_cmds), on the one queue of libfc (fc_rport_eq) that the initiator in the same kernel needs, too. So only the
//! initiator's end loses its link, and [`cut`] holds the writer for the moment before: what is in flight on the lost link was sent after it was lost, and
//! never reached the target. A target gives a silent port up after two and a half beacons of 8 s (libfcoe, FIP_VN_BEACON_INT): a cut is to be shorter.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{guest::Guest, wait};

/// What the guest loads for it.
pub const MODULES: [&str; 10] = [
    "bridge",
    "veth",
    "scsi_transport_fc",
    "libfc",
    "libfcoe",
    "fcoe",
    "target_core_mod",
    "target_core_file",
    "tcm_fc",
    "scsi_dh_alua",
];
/// Size of the LUN in MiB.
const SIZE: u32 = 64;
/// An emulated processor needs a second for each log-in.
const LIMIT: Duration = Duration::from_secs(60);
const TARGET: &str = "/sys/kernel/config/target";

/// One fabric: a wire between two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fabric {
    /// Its name in steps.
    pub name: &'static str,
    /// Interface, and last byte of the address, of the initiator's end.
    initiator: (&'static str, u8),
    /// The same of the array's end.
    target: (&'static str, u8),
}

/// Both.
pub const FABRICS: [Fabric; 2] = [
    Fabric {
        name: "a",
        initiator: ("fca0", 0x01),
        target: ("fca1", 0x02),
    },
    Fabric {
        name: "b",
        initiator: ("fcb0", 0x11),
        target: ("fcb1", 0x12),
    },
];

fn mac(end: u8) -> String {
    format!("02:00:00:00:00:{end:02x}")
}

/// As configfs wants it: libfcoe makes a WWPN of 2000 and the interface's address.
fn wwpn(end: u8) -> String {
    format!("20:00:{}", mac(end))
}

impl Fabric {
    /// Name of the array's port on it, as the kernel writes it.
    #[must_use]
    pub fn port_name(&self) -> String {
        format!("0x{}", wwpn(self.target.1).replace(':', ""))
    }

    /// The other end of an interface's wire: the bridge's port.
    fn bridge_port(interface: &str) -> String {
        format!("{interface}-wire")
    }

    /// Ends [`cut`].
    pub async fn heal(&self, guest: &Guest) -> Result<()> {
        let wire = Self::bridge_port(self.initiator.0);
        guest.exec(&["ip", "link", "set", &wire, "up"]).await.map(drop)
    }

    /// Makes the bridge, and an interface on it for each end.
    async fn make(&self, guest: &Guest) -> Result<()> {
        let bridge = format!("fc{}", self.name);
        let mut script = format!("ip link add {bridge} type bridge; ip link set {bridge} up\n");
        for (interface, end) in [self.initiator, self.target] {
            let (mac, wire) = (mac(end), Self::bridge_port(interface));
            script += &format!(
                "ip link add {interface} address {mac} type veth peer name {wire}
                 ip link set {wire} master {bridge} up; ip link set {interface} up\n"
            );
        }
        guest.shell(&script).await.map(drop)
    }
}

/// The initiator's ends of these fabrics lose their carrier under `lab-writer`, when one runs. It is stopped until nothing is in flight on any map, and
/// goes on at once after the cut.
pub async fn cut(guest: &Guest, fabrics: &[Fabric]) -> Result<()> {
    let down = fabrics.iter().fold(String::new(), |down, fabric| {
        down + &format!("ip link set {} down\n", Fabric::bridge_port(fabric.initiator.0))
    });
    let script = format!(
        "writer=$(pgrep -x lab-writer || true); [ -z \"$writer\" ] || kill -STOP $writer
         for map in /sys/block/dm-*; do
           until read -r reads writes < $map/inflight; [ $((reads + writes)) = 0 ]; do :; done
         done
         {down}[ -z \"$writer\" ] || kill -CONT $writer"
    );
    guest.shell(&script).await.map(drop)
}

/// Makes both fabrics and shows one LUN through both; returns when the guest has a disk by each.
pub async fn prepare(guest: &Guest) -> Result<()> {
    let lun = format!(
        "mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
         mkdir -p /var/target {TARGET}/core/fileio_0/lun {TARGET}/fc
         truncate -s {SIZE}M /var/target/lun
         echo fd_dev_name=/var/target/lun,fd_dev_size=$(({SIZE} << 20)) > {TARGET}/core/fileio_0/lun/control
         echo 1 > {TARGET}/core/fileio_0/lun/enable
         echo 0123456789abcdef > {TARGET}/core/fileio_0/lun/wwn/vpd_unit_serial"
    );
    guest.shell(&lun).await?;
    for fabric in FABRICS {
        let (near, far) = (fabric.initiator, fabric.target);
        // The target first: an initiator that logs in to a port without one finds no target, and does not ask again.
        let group = format!("{TARGET}/fc/{}/tpgt_1", wwpn(far.1));
        let script = format!(
            "mkdir -p {group}/lun/lun_0; ln -s {TARGET}/core/fileio_0/lun {group}/lun/lun_0/lun
             mkdir -p {group}/acls/{initiator}/lun_0; ln -s {group}/lun/lun_0 {group}/acls/{initiator}/lun_0/lun",
            initiator = wwpn(near.1),
        );
        guest.shell(&script).await?;
        fabric.make(guest).await?;
        for end in [far, near] {
            log_in(guest, end.0).await?;
        }
    }
    wait::until("a disk through each fabric", LIMIT, async || {
        let disks = guest
            .shell("shopt -s nullglob; set -- /sys/block/sd*; echo $#")
            .await?;
        Ok(disks == FABRICS.len().to_string())
    })
    .await
    .map(drop)
}

/// Makes an interface a port, and waits until it has logged in.
async fn log_in(guest: &Guest, interface: &str) -> Result<()> {
    guest
        .write("/sys/module/libfcoe/parameters/create_vn2vn", interface, 0o200)
        .await?;
    wait::until(&format!("{interface} is online"), LIMIT, async || {
        let state = format!("cat /sys/devices/virtual/net/{interface}/ctlr_*/host*/fc_host/host*/port_state");
        let state = guest.shell(&state).await?;
        ensure!(state == "Online", "{state}");
        Ok(true)
    })
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_port_is_named_after_its_interface() {
        assert_eq!(super::FABRICS[0].port_name(), "0x2000020000000002");
        assert_eq!(super::wwpn(0x12), "20:00:02:00:00:00:00:12");
    }
}
