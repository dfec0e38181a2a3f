//! What the kernel shows of one volume: its map, and every mount of it. Read afresh for each operation.
//!
//! It must never take a mount for the volume's because of its path or of a record: only the device number decides.

use std::{
    io,
    path::{Path, PathBuf},
};

use storagelink_multipath::{
    Map,
    host::{DevNo, Host},
    worker,
};

use super::prepare::Disk;
use crate::mount::{FsType, Kind, MountError, MountPoint, Mounter, mountinfo};

/// One place where a volume is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The mount.
    pub mount: MountPoint,
    /// Its device node, bound onto a file; otherwise its file system.
    pub block: bool,
}

impl Use {
    /// `block` or the file system type.
    #[must_use]
    pub fn form(&self) -> &str {
        if self.block { "block" } else { &self.mount.fs_type }
    }
    /// The file system type, when it is one of ours.
    #[must_use]
    pub fn fs(&self) -> Option<FsType> {
        FsType::ALL.into_iter().find(|fs| fs.name() == self.form())
    }
}

/// Time limit of making or finding a device node.
const NODE: std::time::Duration = std::time::Duration::from_secs(10);

/// A node of this name, by whatever makes or finds it.
pub(super) async fn node(
    name: &str,
    make: impl FnOnce() -> io::Result<PathBuf> + Send + 'static,
) -> Result<PathBuf, MountError> {
    let (operation, path) = ("make a node for", PathBuf::from(name));
    match worker::run("node", NODE, make).await {
        Ok(Ok(node)) => Ok(node),
        Ok(Err(source)) => Err(MountError::Io {
            operation,
            path,
            source,
        }),
        Err(source) => Err(MountError::Overdue {
            operation,
            path,
            source,
        }),
    }
}

/// The disk of a map, with a node to open it by.
pub async fn disk(host: &Host, map: &Map) -> Result<Disk, MountError> {
    let name = kernel_name(map.devno);
    let (block, devno, kernel) = (host.block.clone(), map.devno, name.clone());
    Ok(Disk {
        devno,
        map: map.name.clone(),
        node: node(&name, move || block.node(devno, &kernel)).await?,
        name,
        size: map.size_bytes,
    })
}

/// The mount table, and which of its mounts show the volume.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All mounts.
    pub mounts: Vec<MountPoint>,
    /// Those of the volume.
    pub uses: Vec<Use>,
}

/// What is on top at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top<'a> {
    /// Nothing is mounted there.
    Free,
    /// The volume.
    Ours(&'a Use),
    /// Something else.
    Foreign(&'a MountPoint),
}

impl Seen {
    /// What a look at `path` ends in.
    #[must_use]
    pub fn at(&self, path: &Path) -> Top<'_> {
        match mountinfo::top(&self.mounts, path) {
            None => Top::Free,
            Some(top) => match self.uses.iter().find(|u| u.mount.id == top.id) {
                Some(found) => Top::Ours(found),
                None => Top::Foreign(top),
            },
        }
    }

    /// The paths, other than these, at which the volume is to be seen.
    #[must_use]
    pub fn besides(&self, paths: &[&Path]) -> Vec<&Path> {
        self.uses
            .iter()
            .map(|u| u.mount.path.as_path())
            .filter(|p| !paths.contains(p))
            .collect()
    }
}

/// Reads the mount table and finds every mount of a disk; without one, of nothing. Below `elsewhere`, where a container
/// sees the host's own tree, the same mounts are seen a second time: they are left out.
pub async fn look(
    mounter: &Mounter,
    disk: Option<&Disk>,
    elsewhere: Option<&Path>,
) -> Result<Seen, MountError> {
    let mut mounts = mounter.list().await?;
    mounts.retain(|mount| !elsewhere.is_some_and(|root| mount.path.starts_with(root)));
    let mut uses = Vec::new();
    if let Some(disk) = disk {
        for mount in &mounts {
            let block = if mount.devno == disk.devno {
                false
            } else if mount.devno.major == 0 && mount.fs_type == FsType::Btrfs.name() {
                // btrfs shows an anonymous number. Its source is the node that it was mounted by, or what udev has
                // told it since: the link in /dev/mapper (64-btrfs-dm.rules).
                let link = Path::new("/dev/mapper").join(&disk.map);
                let ours = mount.source == disk.node || mount.source == link;
                if !ours && mounter.kind(&mount.source).await? != Kind::Block(disk.devno) {
                    continue;
                }
                false
            } else if is_node_name(mount, disk) {
                // Perhaps a node that is bound somewhere: the mount is then that of the nodes' own file system.
                if mounter.kind(&mount.path).await? != Kind::Block(disk.devno) {
                    continue;
                }
                true
            } else {
                continue;
            };
            uses.push(Use {
                mount: mount.clone(),
                block,
            });
        }
    }
    Ok(Seen { mounts, uses })
}

/// True when the file that is shown there is named like a node of the disk: in `/dev`, or in the plugin's own directory.
fn is_node_name(mount: &MountPoint, disk: &Disk) -> bool {
    let own = format!("{}-{}", disk.devno.major, disk.devno.minor);
    let name = mount.root.file_name();
    name.is_some_and(|name| {
        Some(name) == disk.node.file_name() || name == disk.name.as_str() || name == own.as_str()
    })
}

fn kernel_name(devno: DevNo) -> String {
    format!("dm-{}", devno.minor)
}
