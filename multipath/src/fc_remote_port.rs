//! Fibre Channel remote ports as sysfs shows them: the ports of an array that disks come by, each seen through one host bus adapter.
//!
//! Reads, and sets one thing: the time after which the kernel gives back the I/O of a lost port ([`RemotePort::give_back_soon`]). It never touches
//! `dev_loss_tmo`, which decides when the disks of a lost port are removed, and never scans or resets anything.

use std::{fmt, str::FromStr, time::Duration};

use crate::{Host, ScsiDisk};

/// The longest `fast_io_fail_tmo` of a port that carries a path of ours, in seconds. In flight when a port is lost, I/O stays with it for this
/// long and then goes over another path; a map without another holds it ([`crate::policy::NoPathRetry`]), so nothing is lost by being quick.
/// One second is what a silent iSCSI portal gets, too. Not 0: a port that is gone for a moment only, as a change in its fabric may look, keeps what it
/// has taken.
pub const FAST_IO_FAIL: Duration = Duration::from_secs(1);

/// A remote port. Displays as the kernel names it: `rport-H:B-R`, of SCSI host, channel, and a number (drivers/scsi/scsi_transport_fc.c,
/// fc_remote_port_create).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemotePort {
    host: u32,
    channel: u32,
    number: u32,
}

impl fmt::Display for RemotePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rport-{}:{}-{}", self.host, self.channel, self.number)
    }
}

/// Text that is not `rport-H:B-R` in decimal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a remote port of the form rport-H:B-R")]
pub struct RemotePortError(pub String);

impl FromStr for RemotePort {
    type Err = RemotePortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let decimal = digits.bytes().all(|byte| byte.is_ascii_digit());
            decimal.then(|| digits.parse().ok()).flatten()
        };
        let parse = || {
            let (host, rest) = text.strip_prefix("rport-")?.split_once(':')?;
            let (channel, last) = rest.split_once('-')?;
            Some(Self {
                host: number(host)?,
                channel: number(channel)?,
                number: number(last)?,
            })
        };
        parse().ok_or_else(|| RemotePortError(text.to_owned()))
    }
}

impl RemotePort {
    /// The port that a disk came by; `None` for other transports.
    #[must_use]
    pub fn of_disk(host: &Host, disk: &ScsiDisk) -> Option<Self> {
        let device = format!("class/scsi_device/{}/device", disk.hctl);
        let path = host.sysfs.canonical(&device).ok()?;
        path.split('/').find_map(|part| part.parse().ok())
    }

    fn read(self, host: &Host, attribute: &str) -> Option<String> {
        let path = format!("class/fc_remote_ports/{self}/{attribute}");
        host.sysfs.read(&path).ok()
    }

    /// Its worldwide port name (WWPN) as the kernel writes it: `0x` and 16 digits.
    #[must_use]
    pub fn port_name(self, host: &Host) -> Option<String> {
        self.read(host, "port_name")
    }

    /// `Online`, `Blocked`, `Not Present`, … (drivers/scsi/scsi_transport_fc.c, fc_port_state_names).
    #[must_use]
    pub fn port_state(self, host: &Host) -> Option<String> {
        self.read(host, "port_state")
    }

    /// Time after the loss of the port until its I/O is given back; `None` when that is off, or the port is gone.
    #[must_use]
    pub fn fast_io_fail(self, host: &Host) -> Option<Duration> {
        seconds(&self.read(host, "fast_io_fail_tmo")?)
    }

    /// Time after the loss of the port until its disks are removed.
    #[must_use]
    pub fn dev_loss(self, host: &Host) -> Option<Duration> {
        seconds(&self.read(host, "dev_loss_tmo")?)
    }

    /// Sets the time after which a lost port gives its I/O back to [`FAST_IO_FAIL`], unless it is as short already. It stays so as long as the kernel
    /// keeps the port. A refusal is logged and no more: the path works without it, its I/O only waits longer.
    ///
    /// The kernel takes no time that is not shorter than `dev_loss_tmo`, and none for a port that is lost at the moment (drivers/scsi/
    /// scsi_transport_fc.c, fc_rport_set_fast_io_fail_tmo: EINVAL, EBUSY). A port that loses its disks within [`FAST_IO_FAIL`] gives their
    /// I/O back by that, and is left as it is.
    pub fn give_back_soon(self, host: &Host) {
        let Some(before) = self.read(host, "fast_io_fail_tmo") else {
            return;
        };
        let soon = |time: Option<Duration>| time.is_some_and(|time| time <= FAST_IO_FAIL);
        if soon(seconds(&before)) || soon(self.dev_loss(host)) {
            return;
        }
        let (name, after) = (
            self.port_name(host).unwrap_or_default(),
            FAST_IO_FAIL.as_secs().to_string(),
        );
        let path = format!("class/fc_remote_ports/{self}/fast_io_fail_tmo");
        match host.sysfs.write(&path, &after) {
            Ok(()) => {
                tracing::info!(port = %self, wwpn = name, before, after, "the port gives its I/O back sooner when it is lost");
            }
            Err(error) => {
                tracing::warn!(port = %self, wwpn = name, fast_io_fail_tmo = before, %error,
                    "the port cannot be made to give its I/O back sooner when it is lost");
            }
        }
    }
}

/// A timer of sysfs: whole seconds, or `off`.
fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_secs)
}

/// True for a WWPN as [`RemotePort::port_name`] gives it, which no portal's `address:port` looks like.
#[must_use]
pub fn is_port_name(text: &str) -> bool {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::sim::SimKernel, scsi_device};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(host: u32, channel: u32, number: u32) {
            let port = RemotePort { host, channel, number };
            prop_assert_eq!(port.to_string().parse::<RemotePort>().unwrap(), port);
        }

        #[test]
        fn never_panics(text in "(rport-)?.{0,20}") {
            let _ = text.parse::<RemotePort>();
        }
    }

    #[test]
    fn other_names_are_no_remote_ports() {
        for text in [
            "",
            "rport-",
            "rport-1:0",
            "rport-1:0-",
            "rport-+1:0-0",
            "session1",
            "target1:0:0",
        ] {
            assert!(text.parse::<RemotePort>().is_err(), "{text}");
        }
        assert!(is_port_name("0x2000020000000002"));
        for portal in [
            "",
            "198.18.0.1:3260",
            "[fd00::1]:3260",
            "0x20000200:3260",
            "0x200002000000000g",
        ] {
            assert!(!is_port_name(portal), "{portal}");
        }
    }

    const WWPN: &str = "0x2000020000000002";

    async fn port(kernel: &SimKernel) -> RemotePort {
        kernel.set_lun(
            WWPN,
            1,
            &"naa.6001405123456789abc4def812345678".parse().unwrap(),
            1 << 20,
        );
        let number = kernel.log_in_to_port(WWPN);
        let hctl = format!("{number}:0:0:1").parse().unwrap();
        let disk = scsi_device::scan(&kernel.host(), &hctl, Duration::from_secs(5))
            .await
            .unwrap();
        RemotePort::of_disk(&kernel.host(), &disk).unwrap()
    }

    #[tokio::test]
    async fn a_port_of_a_disk_is_read() {
        let kernel = SimKernel::new();
        let (port, host) = (port(&kernel).await, kernel.host());
        assert_eq!(port.port_name(&host).as_deref(), Some(WWPN));
        assert_eq!(port.port_state(&host).as_deref(), Some("Online"));
        assert_eq!(port.fast_io_fail(&host), None);
        assert_eq!(port.dev_loss(&host), Some(Duration::from_secs(60)));
        let portal = kernel.login("iqn.2026-11.com.example:t", "192.0.2.1", 3260);
        kernel.set_lun(
            "iqn.2026-11.com.example:t",
            1,
            &"naa.6001405123456789abc4def812345678".parse().unwrap(),
            1 << 20,
        );
        let hctl = format!("{portal}:0:0:1").parse().unwrap();
        let disk = scsi_device::scan(&host, &hctl, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(RemotePort::of_disk(&host, &disk), None);
    }

    #[tokio::test]
    async fn a_longer_time_is_shortened_a_shorter_one_stays_and_a_refusal_is_no_error() {
        for (timers, left) in [
            (("off", "60"), "1"),
            (("5", "60"), "1"),
            (("0", "60"), "0"),
            (("1", "60"), "1"),
            (("off", "2"), "1"),
            (("off", "1"), "off"),
        ] {
            let kernel = SimKernel::new();
            let (port, host) = (port(&kernel).await, kernel.host());
            let file = |attribute: &str| format!("class/fc_remote_ports/{port}/{attribute}");
            host.sysfs.write(&file("fast_io_fail_tmo"), timers.0).unwrap();
            host.sysfs.write(&file("dev_loss_tmo"), timers.1).unwrap();
            port.give_back_soon(&host);
            assert_eq!(
                host.sysfs.read(&file("fast_io_fail_tmo")).unwrap(),
                left,
                "{timers:?}"
            );
        }
        let kernel = SimKernel::new();
        let (port, host) = (port(&kernel).await, kernel.host());
        kernel.cut(kernel.sessions(WWPN, "", 0)[0], "blocked");
        port.give_back_soon(&host);
        assert_eq!(port.fast_io_fail(&host), None, "a lost port takes none");
    }
}
