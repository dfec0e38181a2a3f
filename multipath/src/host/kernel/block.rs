//! Block devices by number: nodes that need no udev, sizes, flushing, reading.
#![allow(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::PathBuf,
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::stat::{Mode, SFlag, makedev, mknod},
};

use crate::host::{BlockDevices, DevNo, length};

// include/uapi/linux/fs.h
nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
nix::ioctl_none!(blkflsbuf, 0x12, 97);
nix::ioctl_write_ptr_bad!(blkroset, nix::request_code_none!(0x12, 93), i32);

/// Devices of this machine; nodes that /dev lacks are made in a directory of the plugin's own.
#[derive(Clone, Debug)]
pub struct KernelBlockDevices {
    directory: PathBuf,
    /// Where sysfs has a link for each block device, by its number.
    devices: PathBuf,
}

impl KernelBlockDevices {
    /// Makes missing nodes in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            devices: "/sys/dev/block".into(),
        }
    }

    /// Makes, or puts right, the node of this name in the plugin's own directory.
    fn make(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.directory)?;
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o700))?;
        let own = self.directory.join(name);
        if !is_node_of(&own, devno) {
            match fs::remove_file(&own) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let number = makedev(devno.major.into(), devno.minor.into());
            match mknod(&own, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(own)
    }

    fn open(&self, devno: DevNo, kernel_name: &str, write: bool, flags: i32) -> io::Result<File> {
        let node = self.node(devno, kernel_name)?;
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags | nix::libc::O_CLOEXEC)
            .open(node)
    }
}

fn is_node_of(path: &std::path::Path, devno: DevNo) -> bool {
    fs::metadata(path).is_ok_and(|meta| {
        meta.file_type().is_block_device() && meta.rdev() == makedev(devno.major.into(), devno.minor.into())
    })
}

impl BlockDevices for KernelBlockDevices {
    fn node(&self, devno: DevNo, kernel_name: &str) -> io::Result<PathBuf> {
        let usual = PathBuf::from("/dev").join(kernel_name);
        if is_node_of(&usual, devno) {
            return Ok(usual);
        }
        // One of a device that is gone would only be litter.
        if !self.devices.join(devno.to_string()).exists() {
            return Err(io::Error::from_raw_os_error(nix::libc::ENXIO));
        }
        self.make(devno, &format!("{}-{}", devno.major, devno.minor))
    }

    fn own_path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn own_node(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        self.make(devno, name)
    }

    fn remove_stale_nodes(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let numbers = name.to_str().and_then(|name| name.split_once('-'));
            let devno = numbers.and_then(|(major, minor)| format!("{major}:{minor}").parse::<DevNo>().ok());
            if devno.is_some_and(|devno| !self.devices.join(devno.to_string()).exists()) {
                self.remove_own_node(&name.to_string_lossy())?;
            }
        }
        Ok(())
    }

    fn remove_own_node(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.own_path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn set_read_only(&self, devno: DevNo, kernel_name: &str, read_only: bool) -> io::Result<()> {
        let file = self.open(devno, kernel_name, false, nix::libc::O_NONBLOCK)?;
        let value = i32::from(read_only);
        // SAFETY: BLKROSET reads one int from the place given.
        unsafe { blkroset(file.as_raw_fd(), &raw const value) }?;
        Ok(())
    }

    fn size_bytes(&self, devno: DevNo, kernel_name: &str) -> io::Result<u64> {
        let file = self.open(devno, kernel_name, false, nix::libc::O_NONBLOCK)?;
        let mut size = 0u64;
        // SAFETY: BLKGETSIZE64 writes one u64 to the place given.
        unsafe { blkgetsize64(file.as_raw_fd(), &raw mut size) }?;
        Ok(size)
    }

    fn flush(&self, devno: DevNo, kernel_name: &str) -> io::Result<()> {
        // Read only: a second writer would count as one, and fsync of a block device does not ask for write access.
        let file = self.open(devno, kernel_name, false, 0)?;
        file.sync_all()?;
        // SAFETY: BLKFLSBUF takes no argument.
        unsafe { blkflsbuf(file.as_raw_fd()) }?;
        Ok(())
    }

    fn read_at(&self, devno: DevNo, kernel_name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = self.open(devno, kernel_name, false, 0)?;
        let mut data = vec![0; length];
        file.read_exact_at(&mut data, offset)?;
        Ok(data)
    }

    fn read_places(
        &self,
        devno: DevNo,
        kernel_name: &str,
        places: &[Range<u64>],
        more: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> io::Result<()> {
        let file = self.open(devno, kernel_name, false, 0)?;
        // Nothing in between, then all that is wanted: each place alone would cost the way to the array and back.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
        for place in places {
            let offset = place.start.try_into().map_err(io::Error::other)?;
            let bytes = length(place)?.try_into().map_err(io::Error::other)?;
            posix_fadvise(&file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
        }
        let mut data = Vec::new();
        for place in places {
            data.resize(length(place)?, 0);
            file.read_exact_at(&mut data, place.start)?;
            if !more(place.start, &data) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_of_devices_that_are_gone_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let block = KernelBlockDevices {
            directory: dir.path().join("nodes"),
            devices: dir.path().join("devices"),
        };
        block.remove_stale_nodes().unwrap();
        fs::create_dir_all(dir.path().join("devices/8:16")).unwrap();
        fs::create_dir(&block.directory).unwrap();
        for name in ["8-0", "8-16", "storagelink-1-2", "253-x"] {
            fs::write(block.directory.join(name), "").unwrap();
        }
        block.remove_stale_nodes().unwrap();
        let mut left: Vec<_> = fs::read_dir(&block.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["253-x", "8-16", "storagelink-1-2"]);
    }
}
