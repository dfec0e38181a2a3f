//! Mounts and file systems of this host: the seam to the mount table, and what is decided from a disk's content.
//!
//! It owns mounting, binding, unmounting, formatting and checking of a device that it is told of. It must never choose a
//! device, and never format one that it has not found blank.
//!
//! Every call of [`Mounts`] blocks for as long as a dead disk pleases: an unmount over a map without paths sleeps in the
//! kernel and ignores signals. [`Mounter`] is the way to call it: each call on its own thread, with a deadline.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::mount::MsFlags;
use storagelink_multipath::{
    host::DevNo,
    worker::{self, WorkerError},
};

pub mod blank;
pub mod filesystem;
pub mod mountinfo;
mod real;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod superblock;

pub use filesystem::{FsType, MountOptions};
pub use mountinfo::MountPoint;
pub use real::HostMounts;

/// What is at a path, without following a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Missing,
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A block device node.
    Block(DevNo),
    /// Something else.
    Other,
}

/// How full a file system is (statvfs(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that an unprivileged process can still write.
    pub available_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Inodes in all; 0 for a file system that makes them as needed (btrfs).
    pub total_inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

/// A file system to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Node of the block device.
    pub node: PathBuf,
    /// An existing directory.
    pub target: PathBuf,
    /// File system type.
    pub fs: FsType,
    /// Generic flags, with [`MsFlags::MS_RDONLY`] when wanted.
    pub flags: MsFlags,
    /// Options of the file system, joined by commas.
    pub data: String,
}

/// The mount table of this process's mount namespace, and the few path operations that go with it.
pub trait Mounts: Send + Sync {
    /// The mount table.
    fn list(&self) -> io::Result<Vec<MountPoint>>;
    /// mount(2) of a file system.
    fn mount(&self, request: &Request) -> io::Result<()>;
    /// Shows `from` (a directory, file or device node) at `to` as well; in one step also when read-only, so that no
    /// moment and no crash leaves a writable mount where a read-only one was asked for.
    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> io::Result<()>;
    /// umount2(2) without force and without following a link: fails with EBUSY while it is in use, with EINVAL when
    /// nothing is mounted there.
    fn unmount(&self, path: &Path) -> io::Result<()>;
    /// What is there.
    fn kind(&self, path: &Path) -> io::Result<Kind>;
    /// The path with the links of all its directories followed, as the mount table spells it. The last name is taken
    /// as it is, and so is everything below the first directory that does not exist.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;
    /// Makes a directory and its parents; existing ones are fine.
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes an empty file and its parent directories; an existing file is fine.
    fn make_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory, a file or a device node; a missing one is fine.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// How full the file system at a path is.
    fn usage(&self, path: &Path) -> io::Result<Usage>;
}

/// A call that failed or did not come back.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was asked, as a verb.
        operation: &'static str,
        /// Of which path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It did not come back in time. It may still take effect.
    #[error("{operation} {}", path.display())]
    Overdue {
        /// What was asked.
        operation: &'static str,
        /// Of which path.
        path: PathBuf,
        /// How long it was waited for.
        #[source]
        source: WorkerError,
    },
}

impl MountError {
    /// The kernel's error number, if it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            Self::Overdue { .. } => None,
        }
    }
}

/// Time limit of what only looks at, or changes, names: no disk is waited for.
const QUICK: Duration = Duration::from_secs(10);
/// Time limit of a mount: it replays a journal.
const MOUNT: Duration = Duration::from_secs(90);
/// Time limit of an unmount: it writes what is dirty.
const UNMOUNT: Duration = Duration::from_secs(60);

/// [`Mounts`], each call on its own thread with a deadline.
#[derive(Clone)]
pub struct Mounter(Arc<dyn Mounts>);

impl Mounter {
    /// Over the real or a simulated host.
    pub fn new(mounts: Arc<dyn Mounts>) -> Self {
        Self(mounts)
    }

    /// `keep` lives until the call is really over, also when nobody waits for it any more: a guard that keeps the
    /// next operation on the same volume out.
    async fn call<T: Send + 'static, K: Send + 'static>(
        &self,
        operation: &'static str,
        path: &Path,
        limit: Duration,
        keep: K,
        f: impl FnOnce(&dyn Mounts, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, MountError> {
        let (mounts, at) = (self.0.clone(), path.to_owned());
        let done = worker::run("mount", limit, move || {
            let result = f(mounts.as_ref(), &at);
            drop(keep);
            result
        });
        match done.await {
            Ok(result) => result.map_err(|source| MountError::Io {
                operation,
                path: path.to_owned(),
                source,
            }),
            Err(source) => Err(MountError::Overdue {
                operation,
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The mount table.
    pub async fn list(&self) -> Result<Vec<MountPoint>, MountError> {
        self.call(
            "read",
            Path::new("/proc/thread-self/mountinfo"),
            QUICK,
            (),
            |m, _| m.list(),
        )
        .await
    }

    /// Mounts a file system.
    pub async fn mount<K: Send + 'static>(&self, request: Request, keep: K) -> Result<(), MountError> {
        let target = request.target.clone();
        self.call("mount", &target, MOUNT, keep, move |m, _| m.mount(&request))
            .await
    }

    /// See [`Mounts::bind`].
    pub async fn bind<K: Send + 'static>(
        &self,
        from: PathBuf,
        to: &Path,
        read_only: bool,
        keep: K,
    ) -> Result<(), MountError> {
        self.call("bind onto", to, QUICK, keep, move |m, to| {
            m.bind(&from, to, read_only)
        })
        .await
    }

    /// Unmounts what is on top at a path. `Ok(false)`: nothing was.
    pub async fn unmount<K: Send + 'static>(&self, path: &Path, keep: K) -> Result<bool, MountError> {
        match self
            .call("unmount", path, UNMOUNT, keep, |m, at| m.unmount(at))
            .await
        {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(nix::libc::EINVAL | nix::libc::ENOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// See [`Mounts::kind`].
    pub async fn kind(&self, path: &Path) -> Result<Kind, MountError> {
        self.call("look at", path, QUICK, (), |m, at| m.kind(at)).await
    }

    /// See [`Mounts::resolve`].
    pub async fn resolve(&self, path: &Path) -> Result<PathBuf, MountError> {
        self.call("resolve", path, QUICK, (), |m, at| m.resolve(at)).await
    }

    /// See [`Mounts::make_directory`].
    pub async fn make_directory(&self, path: &Path) -> Result<(), MountError> {
        self.call("make directory", path, QUICK, (), |m, at| m.make_directory(at))
            .await
    }

    /// See [`Mounts::make_file`].
    pub async fn make_file(&self, path: &Path) -> Result<(), MountError> {
        self.call("make file", path, QUICK, (), |m, at| m.make_file(at))
            .await
    }

    /// See [`Mounts::remove`].
    pub async fn remove(&self, path: &Path) -> Result<(), MountError> {
        self.call("remove", path, QUICK, (), |m, at| m.remove(at)).await
    }

    /// See [`Mounts::usage`].
    pub async fn usage(&self, path: &Path) -> Result<Usage, MountError> {
        self.call("ask for the usage of", path, QUICK, (), |m, at| m.usage(at))
            .await
    }
}
