//! Fibre Channel in software inside one guest: two fabrics (FCoE in VN2VN mode, each over a veth pair), the kernel's target (tcm_fc) at one end of
//! each, and the guest's own initiator at the other. Everything above the wire is what a host bus adapter has: fc_host, remote ports, their timers.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{guest::Guest, wait};

/// What the guest loads for it.
pub const MODULES: [&str; 9] = [
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

    /// The array's end of the wire loses its carrier, and with it the initiator's.
    pub async fn cut(&self, guest: &Guest) -> Result<()> {
        guest
            .exec(&["ip", "link", "set", self.target.0, "down"])
            .await
            .map(drop)
    }

    /// Ends [`Fabric::cut`].
    pub async fn heal(&self, guest: &Guest) -> Result<()> {
        guest
            .exec(&["ip", "link", "set", self.target.0, "up"])
            .await
            .map(drop)
    }
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
            "ip link add {near} address {near_mac} type veth peer name {far} address {far_mac}
             ip link set {near} up; ip link set {far} up
             mkdir -p {group}/lun/lun_0; ln -s {TARGET}/core/fileio_0/lun {group}/lun/lun_0/lun
             mkdir -p {group}/acls/{initiator}/lun_0; ln -s {group}/lun/lun_0 {group}/acls/{initiator}/lun_0/lun",
            near = near.0,
            near_mac = mac(near.1),
            far = far.0,
            far_mac = mac(far.1),
            initiator = wwpn(near.1),
        );
        guest.shell(&script).await?;
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
