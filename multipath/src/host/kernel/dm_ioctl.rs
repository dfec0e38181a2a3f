//! The two device-mapper calls that tell udev something, resume and remove, without waiting for udev.
//!
//! The `devicemapper` crate waits after them, without a time limit, on a SysV semaphore that udev must see too: in a container with /run/udev but
//! without the host's IPC namespace that is for ever. And without /run/udev it drops the flags that keep udev's rules off the device. Here
//! the flags go out always and nothing waits: the plugin finds its devices by number, not by the links that udev makes.
#![allow(unsafe_code)]

use std::{fs::OpenOptions, io, os::fd::AsRawFd};

/// Interface version that both calls need (include/uapi/linux/dm-ioctl.h; the major must match, newer minors are compatible).
const VERSION: [u32; 3] = [4, 0, 0];
/// The low 16 bits of `event_nr` are a semaphore's id, none here; the high ones are flags for udev (libdevmapper.h, DM_UDEV_FLAGS_SHIFT).
const UDEV_FLAGS_SHIFT: u32 = 16;
/// The event comes from the owner of the device: without it 10-dm.rules takes the flags from its database (libdevmapper.h).
const PRIMARY_SOURCE: u32 = 0x40;

/// `struct dm_ioctl` of include/uapi/linux/dm-ioctl.h.
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// The kernel's size of the structure; it is part of the request number.
const SIZE: u32 = 312;
const _: () = assert!(size_of::<DmIoctl>() == SIZE as usize);

// DM_IOCTL 0xfd; DM_DEV_REMOVE_CMD 4, DM_DEV_SUSPEND_CMD 6.
nix::ioctl_readwrite!(dev_remove, 0xfd, 4, DmIoctl);
nix::ioctl_readwrite!(dev_suspend, 0xfd, 6, DmIoctl);

fn header(name: &str, flags: u32, udev_flags: u32) -> io::Result<DmIoctl> {
    let mut header = DmIoctl {
        version: VERSION,
        data_size: SIZE,
        data_start: SIZE,
        target_count: 0,
        open_count: 0,
        flags,
        event_nr: (udev_flags | PRIMARY_SOURCE) << UDEV_FLAGS_SHIFT,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    // One byte stays zero: the end of the string.
    if name.is_empty() || name.len() >= header.name.len() || name.contains('\0') {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    header.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(header)
}

/// DM_DEV_SUSPEND without DM_SUSPEND: swaps an inactive table in and runs I/O.
pub(super) fn resume(control: &str, name: &str, flags: u32, udev_flags: u32) -> io::Result<()> {
    let mut header = header(name, flags, udev_flags)?;
    let file = OpenOptions::new().read(true).write(true).open(control)?;
    // SAFETY: the structure has the layout and the size that the request number states, and no data follow it.
    unsafe { dev_suspend(file.as_raw_fd(), &raw mut header) }?;
    Ok(())
}

/// DM_DEV_REMOVE.
pub(super) fn remove(control: &str, name: &str, udev_flags: u32) -> io::Result<()> {
    let mut header = header(name, 0, udev_flags)?;
    let file = OpenOptions::new().read(true).write(true).open(control)?;
    // SAFETY: as in `resume`.
    unsafe { dev_remove(file.as_raw_fd(), &raw mut header) }?;
    Ok(())
}
