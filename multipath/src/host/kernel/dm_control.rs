//! The node of device-mapper's control device, where /dev is not the kernel's own (a node that is a container): it is made there, as dmsetup
//! does (lvm2, libdm/ioctl/libdm-iface.c, _create_control). Nothing else is ever made in /dev.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    sys::stat::{Mode, SFlag, makedev, mknod},
};

/// Major number of misc devices (include/uapi/linux/major.h, MISC_MAJOR).
const MISC_MAJOR: u64 = 10;
/// Its name there (drivers/md/dm-ioctl.c, DM_NAME).
const NAME: &str = "device-mapper";

/// Sees that `control` is there. `misc` is `/proc/misc`.
///
/// # Errors
/// `NotFound` when the kernel has no device-mapper; otherwise /dev refused the node.
pub(super) fn ensure(control: &Path, misc: &Path) -> io::Result<()> {
    if control.exists() {
        return Ok(());
    }
    let shown = control.display();
    let Some(minor) = minor(&fs::read_to_string(misc)?) else {
        let text = format!("{shown} is missing: is the module dm_mod loaded?");
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    };
    make(control, minor).map_err(|error| {
        let text = format!("{shown} is missing and cannot be made ({error}): mount the host's /dev");
        io::Error::new(error.kind(), text)
    })
}

fn make(control: &Path, minor: u64) -> io::Result<()> {
    if let Some(directory) = control.parent() {
        fs::create_dir_all(directory)?;
    }
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match mknod(control, SFlag::S_IFCHR, mode, makedev(MISC_MAJOR, minor)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The minor number in the lines `<minor> <name>` of /proc/misc (drivers/char/misc.c, misc_seq_show).
fn minor(misc: &str) -> Option<u64> {
    misc.lines().find_map(|line| {
        let (minor, name) = line.trim().split_once(' ')?;
        (name == NAME).then(|| minor.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn it_is_made_where_it_is_missing_and_a_kernel_without_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (control, misc) = (dir.path().join("mapper/control"), dir.path().join("misc"));
        fs::write(&misc, "183 hw_random\n").unwrap();
        let error = ensure(&control, &misc).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("dm_mod"), "{error}");
        fs::write(&misc, "183 hw_random\n 61 device-mapper\n  1 psaux\n").unwrap();
        match ensure(&control, &misc) {
            Ok(()) => {
                let meta = fs::metadata(&control).unwrap();
                assert!(meta.file_type().is_char_device());
                assert_eq!(meta.rdev(), makedev(10, 61));
                ensure(&control, &misc).unwrap();
            }
            // Where this test may make no device nodes.
            Err(error) => assert!(error.to_string().contains("mount the host's /dev"), "{error}"),
        }
    }
}
