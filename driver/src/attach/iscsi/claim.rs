//! Whether a disk that is not ours is in use by anybody on this host.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt};

use nix::libc;
use storagelink_multipath::{host::Host, scsi_device::ScsiDisk};

/// Who holds the disk; `None` when nobody does. Blocks like any open of a device.
///
/// Holders (device-mapper, md) are named by sysfs. Mounts, swap and claims of a partition are known to the kernel alone,
/// in whatever mount namespace they are: it refuses an exclusive open of the whole disk then (block/bdev.c,
/// bd_may_claim).
pub(super) fn used_by(host: &Host, disk: &ScsiDisk) -> io::Result<Option<String>> {
    if !disk.holders.is_empty() {
        return Ok(Some(format!("held by {}", disk.holders.join(", "))));
    }
    let node = host.block.node(disk.devno, &disk.name)?;
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    match OpenOptions::new().read(true).custom_flags(flags).open(node) {
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(Some("mounted or claimed".to_owned())),
        // A disk that is gone is used by nobody.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}
