//! The file of a LUN that somebody else made becomes the data of a volume, without a byte of it being moved.
//!
//! Until the volume is ready the file has two names (a hard link): undoing takes ours away, and the owner mark with it. A file that
//! anybody else may be using, or that is not whole, is never taken.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::{
    ReflinkPool, filesystem,
    reflink::{DATA, GRANULARITY, MARK, MAXIMUM, VOLUMES, mark},
    snapshots::SNAPSHOTS,
};
use crate::{adapter::AdapterError, files, records::VolumeRecord};

impl ReflinkPool {
    /// Looks at the file of a LUN of `size_bytes`.
    ///
    /// # Errors
    /// What stands against its becoming a volume's data, in words.
    pub fn check_adoptable(&self, file: &Path, size_bytes: u64) -> Result<(), String> {
        self.checked().map_err(|error| error.to_string())?;
        let shown = file.display();
        let failed = |error: io::Error| format!("{shown}: {error}");
        let meta = fs::symlink_metadata(file).map_err(failed)?;
        let home = self.config.path.canonicalize().map_err(failed)?;
        let real = file.canonicalize().map_err(failed)?;
        let ours = [VOLUMES, SNAPSHOTS].map(|kind| home.join(kind));
        if !real.starts_with(&home) || ours.iter().any(|ours| real.starts_with(ours)) {
            return Err(format!(
                "its file {shown} is not below {}, the directory of the aggregate",
                home.display()
            ));
        }
        if !meta.is_file() {
            return Err(format!("{shown} is not a file"));
        }
        if meta.nlink() != 1 {
            return Err(format!("{shown} has {} names (hard links)", meta.nlink()));
        }
        if let Some(found) = xattr::get(file, MARK).map_err(failed)? {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(format!(
                "{shown} has the owner mark `{found}`; if nobody needs it: setfattr -x {MARK} {shown}"
            ));
        }
        if let Some(device) = loop_device(&real) {
            return Err(format!("{shown} is used by {device} (losetup -d it first)"));
        }
        if meta.len() != size_bytes {
            return Err(format!(
                "{shown} has {} bytes, the LUN {size_bytes}: what lies behind its end is unknown",
                meta.len()
            ));
        }
        if size_bytes == 0 || !size_bytes.is_multiple_of(GRANULARITY) || size_bytes > MAXIMUM {
            return Err(format!(
                "it has {size_bytes} bytes; volumes have multiples of {GRANULARITY} bytes, at most {MAXIMUM}"
            ));
        }
        Ok(())
    }

    /// Gives the file a second name, which is the volume's, and the owner mark.
    ///
    /// # Errors
    /// No space (a thick volume's is reserved now), or the file system refused; only the old name is there then.
    pub fn adopt_data(&self, record: &VolumeRecord, file: &Path) -> Result<(), AdapterError> {
        let id = self.checked()?;
        let path = self.data(&record.id);
        let adopt = || -> io::Result<()> {
            give_back(&path)?;
            fs::hard_link(file, &path)?;
            let data = OpenOptions::new().read(true).write(true).open(&path)?;
            filesystem::set_length(&data, record.size_bytes, record.provision)?;
            xattr::FileExt::set_xattr(&data, MARK, mark(id, &record.id).as_bytes())?;
            data.sync_all()?;
            files::sync_directory(&self.home(VOLUMES).join(&record.id))
        };
        adopt().map_err(|source| {
            let _ = give_back(&path);
            self.space_or_io(
                "adopt",
                file.to_owned(),
                (record.size_bytes, record.provision),
                source,
            )
        })
    }

    /// Takes away the old name of the file that is the volume's data now; success when it is gone, or of another file.
    ///
    /// # Errors
    /// The file system refused.
    pub fn drop_former_name(&self, record: &VolumeRecord, former: &Path) -> Result<(), AdapterError> {
        self.check_data(record)?;
        let drop = || -> io::Result<()> {
            let data = fs::metadata(self.data(&record.id))?;
            match fs::symlink_metadata(former) {
                Ok(meta) if (meta.dev(), meta.ino()) == (data.dev(), data.ino()) => {
                    files::remove_file_if_there(former)?;
                    former.parent().map_or(Ok(()), files::sync_directory)
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        drop().map_err(|source| AdapterError::Io {
            action: "remove",
            path: former.to_owned(),
            source,
        })
    }
}

/// Removes a data file. One that has another name, too, is somebody's: it loses our mark and keeps its content.
pub(super) fn give_back(data: &Path) -> io::Result<()> {
    debug_assert!(data.ends_with(DATA), "{}", data.display());
    if fs::symlink_metadata(data).is_ok_and(|meta| meta.nlink() > 1) {
        match xattr::remove(data, MARK) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ENODATA) => return Err(error),
            _ => {}
        }
    }
    files::remove_file_if_there(data)
}

/// The loop device that reads a file (Documentation/ABI/testing/sysfs-block-loop).
fn loop_device(file: &Path) -> Option<String> {
    let devices = fs::read_dir("/sys/block").ok()?;
    devices.flatten().find_map(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(backing.trim_end_matches('\n')) == file)
            .then(|| format!("/dev/{}", device.file_name().to_string_lossy()))
    })
}
