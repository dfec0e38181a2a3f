//! What a reflink aggregate asks of its file system: shared blocks, holes and reservations.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
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

/// Gives an empty file the content of another one, at this moment: both share the blocks until one of them writes. The
/// space of a thick one is reserved at once.
pub(super) fn share_content(from: &Path, to: &File, provision: Provision) -> io::Result<()> {
    let source = File::open(from)?;
    match clone(&source, to) {
        // The directories of the tests are on whatever file system there is.
        #[cfg(test)]
        Err(_) => fs::copy(from, format!("/proc/self/fd/{}", to.as_raw_fd())).map(drop)?,
        result => result?,
    }
    if provision == Provision::Thick {
        let size = i64::try_from(to.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let unshared = fallocate(to, FallocateFlags::FALLOC_FL_UNSHARE_RANGE, 0, size);
        #[cfg(test)]
        let unshared = unshared.or(Ok::<(), nix::Error>(()));
        unshared?;
    }
    Ok(())
}

/// The ioctl FICLONE: writes back what the source has in memory first, then shares all of its blocks.
#[allow(unsafe_code)]
fn clone(source: &File, target: &File) -> io::Result<()> {
    // include/uapi/linux/fs.h
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    let source = u64::try_from(source.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: FICLONE takes a file descriptor as its argument; both files are open here.
    unsafe { ficlone(target.as_raw_fd(), source) }?;
    Ok(())
}

#[cfg_attr(test, allow(dead_code))]
fn clone_probe(path: &Path) -> io::Result<()> {
    let (from, to) = (
        path.join(".storagelink-probe-a"),
        path.join(".storagelink-probe-b"),
    );
    let probe = || -> io::Result<()> {
        fs::write(&from, [1u8; 4096])?;
        let (source, target) = (File::open(&from)?, File::create(&to)?);
        source.sync_all()?;
        clone(&source, &target)
    };
    let result = probe();
    files::remove_file_if_there(&from)?;
    files::remove_file_if_there(&to)?;
    result
}
