//! What a reflink aggregate asks of its file system: shared blocks, holes and reservations.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statfs::statfs,
};

use crate::{files, records::Provision};

/// Gives a file its length: at once on the disk when thick, as a hole when thin.
pub(super) fn set_length(file: &File, size: u64, provision: Provision) -> io::Result<()> {
    match provision {
        Provision::Thin => file.set_len(size),
        Provision::Thick => {
            let size = i64::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
            Ok(fallocate(file, FallocateFlags::empty(), 0, size)?)
        }
    }
}

#[cfg_attr(test, allow(dead_code))]
/// Whether files in this directory can share blocks: XFS (reflink=1) or btrfs, tried with two files.
pub(super) fn supports_reflink(path: &Path) -> Result<(), String> {
    // include/uapi/linux/magic.h
    const BTRFS: i64 = 0x9123_683e;
    const XFS: i64 = 0x5846_5342;
    let shown = path.display();
    let kind = statfs(path)
        .map_err(|error| format!("{shown}: {error}"))?
        .filesystem_type()
        .0;
    if kind != BTRFS && kind != XFS {
        return Err(format!(
            "{shown} is on a file system of type {kind:#x}; a reflink aggregate needs XFS or btrfs"
        ));
    }
    clone_probe(path)
        .map_err(|error| format!("{shown}: files cannot share blocks here (XFS needs reflink=1): {error}"))
}

#[allow(unsafe_code)]
#[cfg_attr(test, allow(dead_code))]
fn clone_probe(path: &Path) -> io::Result<()> {
    // include/uapi/linux/fs.h
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    let (from, to) = (
        path.join(".storagelink-probe-a"),
        path.join(".storagelink-probe-b"),
    );
    let probe = || -> io::Result<()> {
        fs::write(&from, [1u8; 4096])?;
        let (source, target) = (File::open(&from)?, File::create(&to)?);
        source.sync_all()?;
        let source = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&source)).map_err(io::Error::other)?;
        // SAFETY: FICLONE takes a file descriptor as its argument; both files are open here.
        unsafe { ficlone(std::os::fd::AsRawFd::as_raw_fd(&target), source) }?;
        Ok(())
    };
    let result = probe();
    files::remove_file_if_there(&from)?;
    files::remove_file_if_there(&to)?;
    result
}
