//! The seam to the host's kernel: device-mapper, SCSI generic, sysfs, block devices and TCP connections, each as a small trait.
//!
//! Everything here is *blocking*: a call may sleep for as long as a dead path pleases (an SG_IO to a blocked device
//! ignores its own timeout and SIGKILL). Call it only through [`crate::worker`], never on an async worker thread.
//! The real side lives in [`kernel`], the simulated one in [`sim`] (feature `sim`).

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use crate::{names::Names, sense::Sense};
use kernel::NetNamespace;

pub mod kernel;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

/// A block device number. Displays as `major:minor`, the form of sysfs `dev` attributes and of dm tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevNo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for DevNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Text that is not `major:minor` in decimal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a device number of the form major:minor")]
pub struct DevNoError(pub String);

impl FromStr for DevNo {
    type Err = DevNoError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = |t: &str| {
            t.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| t.parse().ok())
                .flatten()
        };
        s.split_once(':')
            .and_then(|(a, b)| {
                Some(Self {
                    major: parse(a)?,
                    minor: parse(b)?,
                })
            })
            .ok_or_else(|| DevNoError(s.to_owned()))
    }
}

/// One line of a device-mapper table or status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetLine {
    /// First sector, in units of 512 bytes.
    pub start: u64,
    /// Length in sectors of 512 bytes.
    pub length: u64,
    /// Target type, for example `multipath`.
    pub target: String,
    /// The target's own parameters or status.
    pub params: String,
}

/// What the kernel says of one device-mapper device (DM_DEV_STATUS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmInfo {
    /// Device name.
    pub name: String,
    /// Device uuid; empty when it has none.
    pub uuid: String,
    /// Its block device number.
    pub devno: DevNo,
    /// I/O is suspended.
    pub suspended: bool,
    /// Opened read-only.
    pub read_only: bool,
    /// A live table is present.
    pub live_table: bool,
    /// A loaded table waits for a resume.
    pub inactive_table: bool,
    /// A deferred remove is pending.
    pub deferred_remove: bool,
    /// How many times it is open.
    pub open_count: u32,
    /// Event counter.
    pub event_nr: u32,
}

/// A refused device-mapper call.
#[derive(Debug, thiserror::Error)]
#[error("device-mapper {operation} on {device}")]
pub struct DmError {
    /// What was asked, as dm-ioctl.h spells it without the prefix: `TABLE_LOAD`.
    pub operation: &'static str,
    /// Name of the device.
    pub device: String,
    /// The kernel's answer; `raw_os_error` is set when it came from the ioctl.
    #[source]
    pub source: io::Error,
}

impl DmError {
    /// True when the kernel said that there is no such device.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::ENXIO)
    }
    /// True when the kernel refused what it was given.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::EINVAL)
    }
    /// True when the device is held open or suspended.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::EBUSY)
    }
}

/// Device-mapper: the low-level calls that a map's life needs. Devices are addressed by name.
pub trait DeviceMapper: Send + Sync {
    /// All devices: DM_LIST_DEVICES, then their uuid and state.
    fn list(&self) -> Result<Vec<DmInfo>, DmError>;
    /// DM_DEV_CREATE: a device without a table.
    fn create(&self, name: &str, uuid: &str) -> Result<DmInfo, DmError>;
    /// DM_TABLE_LOAD into the inactive slot.
    fn load(&self, name: &str, table: &[TargetLine], read_only: bool) -> Result<(), DmError>;
    /// DM_TABLE_CLEAR of the inactive slot.
    fn clear(&self, name: &str) -> Result<(), DmError>;
    /// DM_DEV_SUSPEND without DM_SUSPEND: swaps an inactive table in and runs I/O. `flush` false: NOFLUSH, SKIP_LOCKFS.
    fn resume(&self, name: &str, flush: bool) -> Result<(), DmError>;
    /// DM_DEV_STATUS; `None` when there is no such device.
    fn info(&self, name: &str) -> Result<Option<DmInfo>, DmError>;
    /// DM_TABLE_STATUS with DM_STATUS_TABLE: the live table.
    fn table(&self, name: &str) -> Result<Vec<TargetLine>, DmError>;
    /// DM_TABLE_STATUS: the live status.
    fn status(&self, name: &str) -> Result<Vec<TargetLine>, DmError>;
    /// DM_TARGET_MSG to sector 0.
    fn message(&self, name: &str, message: &str) -> Result<(), DmError>;
    /// DM_DEV_REMOVE.
    fn remove(&self, name: &str) -> Result<(), DmError>;
}

/// A SCSI command that gave no data.
#[derive(Debug, thiserror::Error)]
pub enum ScsiError {
    /// The ioctl or the open failed.
    #[error("SG_IO to {device}")]
    Io {
        /// Kernel name of the device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command came back with a bad status.
    #[error("{device}: status {status:#04x}, host {host:#06x}, driver {driver:#06x}, sense {}", Shown(*sense))]
    Status {
        /// Kernel name of the device.
        device: String,
        /// SAM status byte.
        status: u8,
        /// `DID_*` of scsi_status.h.
        host: u16,
        /// Driver status.
        driver: u16,
        /// Sense data, if there were any.
        sense: Option<Sense>,
    },
}

struct Shown(Option<Sense>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(sense) => sense.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl ScsiError {
    /// The device only says that something changed; the command may be sent again.
    #[must_use]
    pub fn is_unit_attention(&self) -> bool {
        matches!(self, Self::Status { sense: Some(sense), .. } if sense.is_unit_attention())
    }

    /// There is no device of that name to be opened: it is gone, or not made yet.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        use nix::libc::{ENODEV, ENOENT, ENXIO};
        let errno = match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Status { .. } => None,
        };
        matches!(errno, Some(ENXIO | ENODEV | ENOENT))
    }

    /// The path works; its target port takes no reads and writes now.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        matches!(self, Self::Status { sense: Some(sense), .. } if sense.is_standby())
    }

    /// The path works; another initiator has reserved the LUN (SAM-5 5.3.1: RESERVATION CONFLICT).
    #[must_use]
    pub fn is_reservation_conflict(&self) -> bool {
        matches!(self, Self::Status { status: 0x18, .. })
    }
}

/// SCSI pass-through to one `sd` device (SG_IO), by its block device number and kernel name.
pub trait Scsi: Send + Sync {
    /// INQUIRY with EVPD: the whole page with its header (SPC-6 6.7.2).
    fn inquiry_vpd(&self, devno: DevNo, device: &str, page: u8) -> Result<Vec<u8>, ScsiError>;
    /// INQUIRY without EVPD: the standard data, at least the first 6 bytes (SPC-6 6.7.1).
    fn inquiry_standard(&self, devno: DevNo, device: &str) -> Result<Vec<u8>, ScsiError>;
    /// REPORT TARGET PORT GROUPS (SPC-6 6.36): the whole answer with its header.
    fn report_target_port_groups(&self, devno: DevNo, device: &str) -> Result<Vec<u8>, ScsiError>;
    /// TEST UNIT READY (SPC-6 6.53). Unit attentions are returned, not swallowed.
    fn test_unit_ready(&self, devno: DevNo, device: &str) -> Result<(), ScsiError>;
}

/// sysfs, by paths relative to its root (`/sys`).
pub trait Sysfs: Send + Sync {
    /// An attribute's text without the trailing newline.
    fn read(&self, path: &str) -> io::Result<String>;
    /// Writes an attribute.
    fn write(&self, path: &str, value: &str) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Where a link (or a path through links) ends, relative to the sysfs root.
    fn canonical(&self, path: &str) -> io::Result<String>;
    /// [`Sysfs::canonical`] by a single look, for a link whose own directory is reached through no link.
    fn link(&self, path: &str) -> io::Result<String> {
        self.canonical(path)
    }
    /// True when the path exists, following links.
    fn exists(&self, path: &str) -> bool;
}

/// Block devices by number, through nodes that need no udev. A simulation that only reads may leave out what changes something: it is refused then.
pub trait BlockDevices: Send + Sync {
    /// A path of a device node for this number that this process (and the programs it starts) can open. It makes the
    /// node in the plugin's own directory when `/dev` has none.
    fn node(&self, devno: DevNo, kernel_name: &str) -> io::Result<std::path::PathBuf>;
    /// Where a node of this name is, or would be, in the plugin's own directory.
    fn own_path(&self, name: &str) -> std::path::PathBuf {
        name.into()
    }
    /// Makes the node of this name in the plugin's own directory lead to this number.
    fn own_node(&self, _devno: DevNo, _name: &str) -> io::Result<std::path::PathBuf> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Removes nodes in the plugin's own directory, made by [`BlockDevices::node`], whose device is gone.
    fn remove_stale_nodes(&self) -> io::Result<()> {
        Ok(())
    }
    /// Removes the node of this name from the plugin's own directory; a missing one is fine.
    fn remove_own_node(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Refuses writes to the whole device, or allows them (BLKROSET).
    fn set_read_only(&self, _devno: DevNo, _kernel_name: &str, _read_only: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Size in bytes (BLKGETSIZE64).
    fn size_bytes(&self, devno: DevNo, kernel_name: &str) -> io::Result<u64>;
    /// Writes dirty pages and drops the cache (fsync and BLKFLSBUF).
    fn flush(&self, devno: DevNo, kernel_name: &str) -> io::Result<()>;
    /// Reads `length` bytes at `offset`, past the page cache where that is possible.
    fn read_at(&self, devno: DevNo, kernel_name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Reads these places in turn, until `more` says no to what was read at an offset. A real disk is asked for all of them at once.
    fn read_places(
        &self,
        devno: DevNo,
        kernel_name: &str,
        places: &[Range<u64>],
        more: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> io::Result<()> {
        for place in places {
            let data = self.read_at(devno, kernel_name, place.start, length(place)?)?;
            if !more(place.start, &data) {
                break;
            }
        }
        Ok(())
    }
}

/// Bytes of a place.
fn length(place: &Range<u64>) -> io::Result<usize> {
    usize::try_from(place.end.saturating_sub(place.start)).map_err(io::Error::other)
}

/// One TCP connection of the host's network namespace, as the kernel knows it among all that ever were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection {
    /// Address and port of this host.
    pub local: SocketAddr,
    /// Address and port of the other end.
    pub peer: SocketAddr,
    /// The kernel's own number of the socket (`sock_gen_cookie`): never used twice.
    pub cookie: u64,
}

/// What TCP knows of a connection's other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Something was sent that is not acknowledged (`tcpi_unacked`).
    pub waiting: bool,
    /// How often in a row the oldest unacknowledged segment was sent again (`tcpi_retransmits`).
    pub retransmits: u8,
    /// Time since the other end acknowledged anything (`tcpi_last_ack_recv`).
    pub last: Duration,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// Its interface is up and has carrier (`IFF_RUNNING`).
    pub carrier: bool,
}

/// TCP connections, and the links below them. None of this waits for another host.
pub trait Network: Send + Sync {
    /// Established connections to this port, anywhere.
    fn connections(&self, peer_port: u16) -> io::Result<Vec<Connection>>;
    /// How the other end of a connection answers; `None` when the connection is no longer established.
    fn answers(&self, connection: &Connection) -> io::Result<Option<Answers>>;
    /// Ends a connection at once, as a reset from the other end would (`SOCK_DESTROY`); one that is gone is success.
    fn destroy(&self, connection: &Connection) -> io::Result<()>;
    /// All addresses of this host.
    fn local_addresses(&self) -> io::Result<Vec<LocalAddress>>;
    /// The network namespace that all of this is of: whoever listens to its events makes the socket in there.
    fn namespace(&self) -> NetNamespace {
        NetNamespace::default()
    }
}

/// The host's kernel, as far as multipathing needs it.
#[derive(Clone)]
pub struct Host {
    /// Device-mapper.
    pub dm: Arc<dyn DeviceMapper>,
    /// SCSI pass-through.
    pub scsi: Arc<dyn Scsi>,
    /// sysfs.
    pub sysfs: Arc<dyn Sysfs>,
    /// Block devices.
    pub block: Arc<dyn BlockDevices>,
    /// TCP connections and links.
    pub network: Arc<dyn Network>,
    /// Whose maps on this kernel are ours.
    pub names: Names,
}
