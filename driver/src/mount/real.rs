//! The real mount table, through system calls: no mount(8), no umount(8).
//!
//! `unsafe` is needed for the three calls of the newer mount interface, which no crate of this workspace wraps. It must
//! never force an unmount and never detach lazily: both leave a disk in use that looks free.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    libc,
    mount::{MntFlags, mount, umount2},
    sys::{
        stat::{major, minor},
        statvfs::statvfs,
    },
};
use storagelink_multipath::host::DevNo;

use super::{Kind, MountPoint, Mounts, Request, Usage, mountinfo};

/// The mount table of this process's mount namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostMounts;

impl Mounts for HostMounts {
    fn list(&self) -> io::Result<Vec<MountPoint>> {
        mountinfo::parse(&fs::read("/proc/thread-self/mountinfo")?).map_err(io::Error::other)
    }

    fn mount(&self, request: &Request) -> io::Result<()> {
        let data = (!request.data.is_empty()).then_some(request.data.as_str());
        mount(
            Some(&request.node),
            &request.target,
            Some(request.fs.name()),
            request.flags,
            data,
        )?;
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> io::Result<()> {
        // A bind by mount(2) starts writable and is remounted: killed in between, it would stay writable. Here the copy
        // is not in the tree before it is complete. Linux 5.2, and 5.12 for the attribute.
        let tree = open_tree(from)?;
        if read_only {
            set_read_only(&tree)?;
        }
        move_mount(&tree, to)
    }

    fn unmount(&self, path: &Path) -> io::Result<()> {
        umount2(path, MntFlags::UMOUNT_NOFOLLOW)?;
        Ok(())
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) if missing(&error) => return Ok(Kind::Missing),
            Err(error) => return Err(error),
        };
        let of = meta.file_type();
        Ok(if of.is_dir() {
            Kind::Directory
        } else if of.is_file() {
            Kind::File
        } else if of.is_block_device() {
            let number = |part: u64| u32::try_from(part).map_err(io::Error::other);
            Kind::Block(DevNo {
                major: number(major(meta.rdev()))?,
                minor: number(minor(meta.rdev()))?,
            })
        } else {
            Kind::Other
        })
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(path.to_owned());
        };
        match fs::canonicalize(parent) {
            Ok(parent) => Ok(parent.join(name)),
            Err(error) if missing(&error) => Ok(self.resolve(parent)?.join(name)),
            Err(error) => Err(error),
        }
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn make_file(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        match options.open(path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.kind(path)? == Kind::File => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = match self.kind(path)? {
            Kind::Missing => return Ok(()),
            Kind::Directory => fs::remove_dir(path),
            _ => fs::remove_file(path),
        };
        removed.or_else(|e| if missing(&e) { Ok(()) } else { Err(e) })
    }

    fn usage(&self, path: &Path) -> io::Result<Usage> {
        let stat = statvfs(path)?;
        let fragment = stat.fragment_size();
        let bytes = |blocks: libc::fsblkcnt_t| blocks.saturating_mul(fragment);
        Ok(Usage {
            total_bytes: bytes(stat.blocks()),
            available_bytes: bytes(stat.blocks_available()),
            used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
            total_inodes: stat.files(),
            free_inodes: stat.files_free(),
        })
    }
}

fn missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// A copy of the mount at `from`, not attached anywhere; it disappears with the descriptor.
fn open_tree(from: &Path) -> io::Result<OwnedFd> {
    let from = c_path(from)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
    // SAFETY: `from` is a NUL terminated string that outlives the call; the kernel reads nothing else of ours.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, from.as_ptr(), flags) };
    let fd = i32::try_from(check(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_read_only(tree: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty NUL terminated string, as AT_EMPTY_PATH wants it, and `attributes` is a live
    // mount_attr whose size is passed along; the kernel only reads it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(done).map(drop)
}

fn move_mount(tree: &OwnedFd, to: &Path) -> io::Result<()> {
    let to = c_path(to)?;
    // SAFETY: both paths are NUL terminated strings that outlive the call, and `tree` is an open descriptor.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(done).map(drop)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_up_to_the_last_name_and_need_not_exist() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let base = fs::canonicalize(dir.path()).expect("exists");
        fs::create_dir(base.join("real")).expect("made");
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).expect("linked");
        let resolved = HostMounts.resolve(&base.join("link/a/b")).expect("resolves");
        assert_eq!(resolved, base.join("real/a/b"));
        assert_eq!(
            HostMounts.resolve(&base.join("link")).expect("resolves"),
            base.join("link")
        );
    }

    #[test]
    fn files_and_directories_come_and_go_idempotently() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (file, sub) = (dir.path().join("a/b/file"), dir.path().join("x/y"));
        for _ in 0..2 {
            HostMounts.make_file(&file).expect("made");
            HostMounts.make_directory(&sub).expect("made");
        }
        assert_eq!(HostMounts.kind(&file).expect("is there"), Kind::File);
        assert_eq!(HostMounts.kind(&sub).expect("is there"), Kind::Directory);
        assert!(HostMounts.make_file(&sub).is_err(), "a directory is not a file");
        assert!(HostMounts.remove(&dir.path().join("x")).is_err(), "not empty");
        for _ in 0..2 {
            HostMounts.remove(&file).expect("removed");
            HostMounts.remove(&sub).expect("removed");
        }
        assert_eq!(
            HostMounts.kind(&file.join("below")).expect("looked"),
            Kind::Missing
        );
    }

    #[test]
    fn this_hosts_own_table_is_understood() {
        let mounts = HostMounts.list().expect("parses");
        assert!(mountinfo::top(&mounts, Path::new("/proc")).is_some_and(|m| m.fs_type == "proc"));
        assert!(HostMounts.usage(Path::new("/")).expect("answers").total_bytes > 0);
        assert!(HostMounts.unmount(Path::new("/nowhere")).is_err());
    }

    /// In a mount namespace of its own, so that the host sees nothing of it.
    #[test]
    #[ignore = "needs root"]
    fn root_binds_are_read_only_from_the_start_and_go_away_one_by_one() {
        use nix::{
            mount::MsFlags,
            sched::{CloneFlags, unshare},
        };
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("a mount namespace; are you root?");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
        let dir = tempfile::tempdir().expect("temporary directory");
        let base = fs::canonicalize(dir.path()).expect("exists");
        let [staging, target, file, node] = ["staging", "target", "file", "node"].map(|name| base.join(name));
        HostMounts.make_directory(&staging).expect("made");
        HostMounts.make_directory(&target).expect("made");
        let shared = MsFlags::MS_NOSUID;
        mount(Some("t"), &staging, Some("tmpfs"), shared, Some("size=1m")).expect("mounted");

        HostMounts.bind(&staging, &target, true).expect("bound");
        let table = HostMounts.list().expect("parses");
        let bound = mountinfo::top(&table, &target).expect("is there");
        assert!(bound.read_only() && bound.options.contains("nosuid"), "{bound:?}");
        assert_eq!(
            bound.devno,
            mountinfo::top(&table, &staging).expect("is there").devno
        );
        let refused = fs::write(target.join("x"), "x").expect_err("read-only");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        fs::write(staging.join("x"), "x").expect("the original stays writable");
        HostMounts.bind(&staging, &target, false).expect("bound on top");
        fs::write(target.join("y"), "y").expect("writable");

        // A file onto a file, as a block volume's node is.
        fs::write(&node, "n").expect("written");
        HostMounts.make_file(&file).expect("made");
        HostMounts.bind(&node, &file, false).expect("bound");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "n");
        let table = HostMounts.list().expect("parses");
        assert_eq!(
            mountinfo::top(&table, &file).expect("is there").root.file_name(),
            node.file_name()
        );
        assert!(HostMounts.remove(&file).is_err(), "in use");

        let open = fs::File::open(staging.join("x")).expect("opens");
        assert_eq!(
            HostMounts.unmount(&staging).expect_err("busy").raw_os_error(),
            Some(libc::EBUSY)
        );
        drop(open);
        for path in [&file, &target, &target, &staging] {
            HostMounts.unmount(path).expect("unmounted");
        }
        assert_eq!(
            HostMounts.unmount(&target).expect_err("gone").raw_os_error(),
            Some(libc::EINVAL)
        );
        HostMounts.remove(&file).expect("removed");
    }
}
