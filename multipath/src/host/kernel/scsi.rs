//! SCSI pass-through by the SG_IO ioctl (include/scsi/sg.h, interface version 3) on a disk's own block device.
//!
//! A command to a blocked device sleeps beyond its own timeout, whatever is asked: callers look at sysfs first and hold a deadline.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    sync::Arc,
};

use nix::sys::stat::makedev;

use super::KernelBlockDevices;
use crate::{
    alua::report_length,
    host::{BlockDevices, DevNo, Scsi, ScsiError},
    sense::Sense,
};

/// SG_IO (include/scsi/sg.h).
const SG_IO: u16 = 0x2285;
const SG_DXFER_NONE: i32 = -1;
const SG_DXFER_FROM_DEV: i32 = -3;
/// Milliseconds for one command. Identity and readiness are answered at once or not at all.
const TIMEOUT_MS: u32 = 5_000;
/// SAM-5 5.3.1: GOOD.
const GOOD: u8 = 0;
/// `DRIVER_SENSE` (include/scsi/sg.h) only says that sense data are there.
const DRIVER_SENSE: u16 = 0x08;

/// `sg_io_hdr_t` of include/scsi/sg.h.
#[repr(C)]
struct SgIoHdr {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

nix::ioctl_readwrite_bad!(sg_io, SG_IO, SgIoHdr);

/// SG_IO on the disks of this machine.
#[derive(Clone, Debug)]
pub struct KernelScsi {
    block: Arc<KernelBlockDevices>,
}

impl KernelScsi {
    /// Opens the disks through the nodes of `block`.
    #[must_use]
    pub fn new(block: Arc<KernelBlockDevices>) -> Self {
        Self { block }
    }

    /// Opens the disk with this number, whatever lies in /dev under its name.
    fn open(&self, devno: DevNo, device: &str) -> io::Result<File> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            // O_NONBLOCK: opening must not wait for a medium.
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
            .open(self.block.node(devno, device)?)?;
        // The node may have been made anew between the look and the open.
        if file.metadata()?.rdev() != makedev(devno.major.into(), devno.minor.into()) {
            return Err(io::Error::other(format!("the node of {device} is not {devno}")));
        }
        Ok(file)
    }
}

/// Sends a command and returns how many bytes of `data` the device filled.
fn send(
    disks: &KernelScsi,
    (devno, device): (DevNo, &str),
    command: &[u8],
    data: &mut [u8],
) -> Result<usize, ScsiError> {
    let wrap = |source: io::Error| ScsiError::Io {
        device: device.to_owned(),
        source,
    };
    let file = disks.open(devno, device).map_err(wrap)?;
    let mut sense = [0u8; 64];
    let mut header = SgIoHdr {
        interface_id: i32::from(b'S'),
        dxfer_direction: if data.is_empty() {
            SG_DXFER_NONE
        } else {
            SG_DXFER_FROM_DEV
        },
        cmd_len: u8::try_from(command.len()).map_err(|_| wrap(io::ErrorKind::InvalidInput.into()))?,
        mx_sb_len: 64,
        iovec_count: 0,
        dxfer_len: u32::try_from(data.len()).map_err(|_| wrap(io::ErrorKind::InvalidInput.into()))?,
        dxferp: data.as_mut_ptr(),
        cmdp: command.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the header points at `command`, `data` and `sense`, which outlive the call and have the lengths that it states.
    unsafe { sg_io(file.as_raw_fd(), &raw mut header) }.map_err(|errno| wrap(errno.into()))?;
    let driver = header.driver_status & !DRIVER_SENSE;
    if header.status != GOOD || header.host_status != 0 || driver != 0 {
        let length = usize::from(header.sb_len_wr).min(sense.len());
        return Err(ScsiError::Status {
            device: device.to_owned(),
            status: header.status,
            host: header.host_status,
            driver: header.driver_status,
            sense: Sense::parse(&sense[..length]),
        });
    }
    let missing = usize::try_from(header.resid).unwrap_or(0);
    Ok(data.len().saturating_sub(missing))
}

impl Scsi for KernelScsi {
    fn inquiry_vpd(&self, devno: DevNo, device: &str, page: u8) -> Result<Vec<u8>, ScsiError> {
        let mut data = inquiry(self, (devno, device), page, FIRST_LENGTH)?;
        // The page says how long it is; what lies behind it is not the device's.
        if let [_, _, high, low, ..] = data[..] {
            let length = u16::from_be_bytes([high, low]).saturating_add(4);
            if length > FIRST_LENGTH {
                data = inquiry(self, (devno, device), page, length)?;
            }
            data.truncate(length.into());
        }
        Ok(data)
    }

    fn inquiry_standard(&self, devno: DevNo, device: &str) -> Result<Vec<u8>, ScsiError> {
        let mut data = vec![0; STANDARD_LENGTH.into()];
        let filled = send(
            self,
            (devno, device),
            &[0x12, 0, 0, 0, STANDARD_LENGTH, 0],
            &mut data,
        )?;
        data.truncate(filled);
        Ok(data)
    }

    fn report_target_port_groups(&self, devno: DevNo, device: &str) -> Result<Vec<u8>, ScsiError> {
        let data = report_target_port_groups(self, (devno, device), FIRST_LENGTH.into())?;
        match report_length(&data) {
            Some(length) if length > data.len() => {
                report_target_port_groups(self, (devno, device), length.min(LONGEST_REPORT))
            }
            _ => Ok(data),
        }
    }

    fn test_unit_ready(&self, devno: DevNo, device: &str) -> Result<(), ScsiError> {
        send(self, (devno, device), &[0; 6], &mut []).map(drop)
    }
}

/// Bytes that a page is first asked for: enough for the identities of every array that was looked at.
const FIRST_LENGTH: u16 = 1024;

/// Standard INQUIRY data up to the byte where every device has them (SPC-6 6.7.2).
const STANDARD_LENGTH: u8 = 36;
/// More target ports than any array has.
const LONGEST_REPORT: usize = 1 << 20;

/// MAINTENANCE IN with service action REPORT TARGET PORT GROUPS (SPC-6 6.36), length only header; allocation length in bytes 6 to 9.
fn report_target_port_groups(
    disks: &KernelScsi,
    device: (DevNo, &str),
    length: usize,
) -> Result<Vec<u8>, ScsiError> {
    let mut data = vec![0; length];
    let mut command = [0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // `length` is at most LONGEST_REPORT.
    command[6..10].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    let filled = send(disks, device, &command, &mut data)?;
    data.truncate(filled);
    // What lies behind the answer is not the device's.
    if let Some(length) = report_length(&data).filter(|length| *length < filled) {
        data.truncate(length);
    }
    Ok(data)
}

/// INQUIRY with EVPD set (SPC-6 6.7): page code in byte 2, allocation length in bytes 3 and 4.
fn inquiry(disks: &KernelScsi, device: (DevNo, &str), page: u8, length: u16) -> Result<Vec<u8>, ScsiError> {
    let mut data = vec![0; length.into()];
    let [high, low] = length.to_be_bytes();
    let filled = send(disks, device, &[0x12, 0x01, page, high, low, 0], &mut data)?;
    data.truncate(filled);
    Ok(data)
}
