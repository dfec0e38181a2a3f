//! A simulated mount table over a simulated kernel: stateful, with faults.
//!
//! It behaves like Linux where the node depends on it: a mount needs the file system's magic on the device and holds the
//! device open; btrfs shows an anonymous device number; a bound device node does not hold its device; a read-only device
//! refuses a writable mount and a journal replay.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    libc::{EBUSY, EINVAL, EIO, ENOENT, ENOTDIR, ENOTEMPTY, EROFS},
    mount::MsFlags,
};
use storagelink_multipath::host::{BlockDevices, DevNo, sim::SimKernel};

use super::{
    FsType, Kind, MountPoint, Mounts, Request, Usage, mountinfo,
    superblock::{self, Content, HEAD_BYTES},
};

/// Number of the file system that holds the device nodes.
const DEVTMPFS: DevNo = DevNo { major: 0, minor: 5 };

#[derive(Default)]
struct State {
    mounts: Vec<MountPoint>,
    paths: BTreeMap<PathBuf, Kind>,
    busy: BTreeSet<PathBuf>,
    faults: Vec<(&'static str, i32)>,
    next: u64,
}

/// What a node leads to.
struct Device {
    devno: DevNo,
    read_only: bool,
}

type Gate = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The simulated mount table. Clones are the same one.
#[derive(Clone)]
pub struct SimMounts {
    kernel: SimKernel,
    block: Arc<dyn BlockDevices>,
    gate: Gate,
    state: Arc<Mutex<State>>,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl SimMounts {
    /// An empty table over this kernel; `block` gives the content of its devices. `gate` is asked before each call and
    /// may refuse it, as if the process had been killed.
    pub fn new(
        kernel: SimKernel,
        block: Arc<dyn BlockDevices>,
        gate: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            kernel,
            block,
            gate: Arc::new(gate),
            state: Arc::default(),
        }
    }

    /// The mount table, past the gate.
    #[must_use]
    pub fn mounts(&self) -> Vec<MountPoint> {
        self.state().mounts.clone()
    }

    /// All paths that were made and not removed.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().paths.keys().cloned().collect()
    }

    /// A file in this mount is open, or no longer.
    pub fn set_busy(&self, path: &str, busy: bool) {
        let mut state = self.state();
        if busy {
            state.busy.insert(path.into())
        } else {
            state.busy.remove(Path::new(path))
        };
    }

    /// The next call of this kind (`mount`, `bind`, `unmount`) fails.
    pub fn fail_next(&self, operation: &'static str, errno: i32) {
        self.state().faults.push((operation, errno));
    }

    /// Puts somebody else's mount at a path.
    pub fn foreign(&self, path: &str) {
        let mut state = self.state();
        let mount = MountPoint {
            id: 0,
            parent: 1,
            devno: DevNo { major: 0, minor: 99 },
            root: "/".into(),
            path: path.into(),
            options: "rw".into(),
            fs_type: "tmpfs".into(),
            source: "somebody".into(),
            super_options: "rw".into(),
        };
        state.paths.insert(path.into(), Kind::Directory);
        push(&mut state, mount);
    }

    /// The kernel found an error in the file system on this device and stopped writing to it.
    pub fn remount_read_only(&self, path: &str) {
        for mount in self
            .state()
            .mounts
            .iter_mut()
            .filter(|m| m.path == Path::new(path))
        {
            mount.super_options = "ro".into();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A map by its node in `/dev`, or a disk by a node of the plugin's own.
    fn device(&self, node: &Path) -> Option<Device> {
        if let Some((devno, read_only)) = self.kernel.own_device(node) {
            return Some(Device { devno, read_only });
        }
        let minor: u32 = node.to_str()?.strip_prefix("/dev/dm-")?.parse().ok()?;
        let maps = self.kernel.host().dm.list().ok()?;
        let map = maps.into_iter().find(|map| map.devno.minor == minor)?;
        Some(Device {
            devno: map.devno,
            read_only: map.read_only,
        })
    }

    fn enter(&self, operation: &'static str) -> io::Result<MutexGuard<'_, State>> {
        (self.gate)()?;
        let mut state = self.state();
        match state.faults.iter().position(|(name, _)| *name == operation) {
            Some(i) => Err(errno(state.faults.remove(i).1)),
            None => Ok(state),
        }
    }

    /// A device is open as long as a file system on it is mounted anywhere.
    fn count_opens(&self, state: &State) {
        for map in self.kernel.host().dm.list().unwrap_or_default() {
            let node = PathBuf::from(format!("/dev/dm-{}", map.devno.minor));
            let open = state.mounts.iter().any(|m| m.source == node);
            self.kernel.set_open_count(&map.name, u32::from(open));
        }
    }
}

fn push(state: &mut State, mut mount: MountPoint) {
    state.next += 1;
    mount.id = 100 + state.next;
    mount.parent = mountinfo::top(&state.mounts, &mount.path).map_or(1, |below| below.id);
    state.mounts.push(mount);
}

impl Mounts for SimMounts {
    fn list(&self) -> io::Result<Vec<MountPoint>> {
        Ok(self.enter("list")?.mounts.clone())
    }

    fn mount(&self, request: &Request) -> io::Result<()> {
        let mut state = self.enter("mount")?;
        if state.paths.get(&request.target) != Some(&Kind::Directory) {
            return Err(errno(ENOENT));
        }
        let map = self.device(&request.node).ok_or_else(|| errno(ENOENT))?;
        let head = self
            .block
            .read_at(map.devno, "", 0, HEAD_BYTES)
            .map_err(|_| errno(EIO))?;
        let Content::One(found) = superblock::detect(&head) else {
            return Err(errno(EINVAL));
        };
        let read_only = request.flags.contains(MsFlags::MS_RDONLY);
        let options: Vec<_> = request.data.split(',').collect();
        let no_replay = ["noload", "norecovery", "rescue=nologreplay"]
            .iter()
            .any(|o| options.contains(o));
        let twin = state
            .mounts
            .iter()
            .any(|m| m.fs_type == "xfs" && m.source != request.node);
        if found.fs != request.fs || (request.fs == FsType::Xfs && twin && !options.contains(&"nouuid")) {
            return Err(errno(EINVAL));
        }
        if map.read_only && (!read_only || (found.needs_replay && !no_replay)) {
            return Err(errno(EROFS));
        }
        if no_replay && !read_only {
            return Err(errno(EINVAL));
        }
        let option = if read_only { "ro" } else { "rw" };
        let anonymous = DevNo {
            major: 0,
            minor: map.devno.minor + 100,
        };
        let mount = MountPoint {
            id: 0,
            parent: 0,
            devno: if request.fs == FsType::Btrfs {
                anonymous
            } else {
                map.devno
            },
            root: "/".into(),
            path: request.target.clone(),
            options: option.into(),
            fs_type: request.fs.name().into(),
            source: request.node.clone(),
            super_options: if request.data.is_empty() {
                option.into()
            } else {
                format!("{option},{}", request.data)
            },
        };
        push(&mut state, mount);
        self.count_opens(&state);
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> io::Result<()> {
        let mut state = self.enter("bind")?;
        let options: String = if read_only { "ro" } else { "rw" }.into();
        let mount = if self.device(from).is_some() {
            if state.paths.get(to) != Some(&Kind::File) {
                return Err(errno(ENOTDIR));
            }
            MountPoint {
                id: 0,
                parent: 0,
                devno: DEVTMPFS,
                // Its root is where the node is in the file system that holds it.
                root: from
                    .strip_prefix("/dev")
                    .map_or_else(|_| from.to_owned(), |name| Path::new("/").join(name)),
                path: to.to_owned(),
                options,
                fs_type: "devtmpfs".into(),
                source: "devtmpfs".into(),
                super_options: "rw".into(),
            }
        } else {
            let below = mountinfo::top(&state.mounts, from)
                .cloned()
                .ok_or_else(|| errno(EINVAL))?;
            if state.paths.get(to) != Some(&Kind::Directory) {
                return Err(errno(ENOTDIR));
            }
            MountPoint {
                path: to.to_owned(),
                options,
                ..below
            }
        };
        push(&mut state, mount);
        self.count_opens(&state);
        Ok(())
    }

    fn unmount(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter("unmount")?;
        if state.busy.contains(path) {
            return Err(errno(EBUSY));
        }
        let top = mountinfo::top(&state.mounts, path)
            .map(|m| m.id)
            .ok_or_else(|| errno(EINVAL))?;
        state.mounts.retain(|m| m.id != top);
        self.count_opens(&state);
        Ok(())
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let state = self.enter("kind")?;
        if let Some(map) = self.device(path) {
            return Ok(Kind::Block(map.devno));
        }
        match mountinfo::top(&state.mounts, path) {
            // A bound node keeps its number also when the device is gone.
            Some(top) if top.fs_type == "devtmpfs" => {
                if let Some((devno, _)) = self.kernel.own_device(&top.root) {
                    return Ok(Kind::Block(devno));
                }
                let minor = top
                    .root
                    .to_str()
                    .and_then(|r| r.strip_prefix("/dm-")?.parse().ok())
                    .unwrap_or(0);
                Ok(Kind::Block(DevNo { major: 253, minor }))
            }
            Some(_) => Ok(Kind::Directory),
            None => Ok(state.paths.get(path).copied().unwrap_or(Kind::Missing)),
        }
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        drop(self.enter("resolve")?);
        Ok(path.to_owned())
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter("make")?;
        state.paths.entry(path.to_owned()).or_insert(Kind::Directory);
        Ok(())
    }

    fn make_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter("make")?;
        state.paths.entry(path.to_owned()).or_insert(Kind::File);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.enter("remove")?;
        if mountinfo::top(&state.mounts, path).is_some() {
            return Err(errno(EBUSY));
        }
        if state.paths.keys().any(|p| p != path && p.starts_with(path)) {
            return Err(errno(ENOTEMPTY));
        }
        state.paths.remove(path);
        Ok(())
    }

    fn usage(&self, path: &Path) -> io::Result<Usage> {
        let state = self.enter("usage")?;
        let mount = mountinfo::top(&state.mounts, path).ok_or_else(|| errno(ENOENT))?;
        let map = self.device(&mount.source).ok_or_else(|| errno(EIO))?;
        let head = self
            .block
            .read_at(map.devno, "", 0, HEAD_BYTES)
            .map_err(|_| errno(EIO))?;
        let Content::One(found) = superblock::detect(&head) else {
            return Err(errno(EIO));
        };
        let inodes = if found.fs == FsType::Btrfs { 0 } else { 1000 };
        Ok(Usage {
            total_bytes: found.size_bytes,
            available_bytes: found.size_bytes / 2,
            used_bytes: found.size_bytes / 4,
            total_inodes: inodes,
            free_inodes: inodes / 2,
        })
    }
}
