//! What the array's gateway makes in the kernel's target: found and removed by the walk's own names.
//!
//! The container does it when it ends and before it starts, for what a crashed one left; the walk does it from the host when there is no
//! container any more. Never touches a target or a backstore of another name. The order is the kernel's
//! (Documentation/target/tcm_mod_builder.rst): links before the directories that hold them, a target before its backstores. Blocking.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Where the kernel shows its target.
pub const TARGETS: &str = "/sys/kernel/config/target";

/// What the kernel refused to remove.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {path}")]
pub struct Refused {
    /// The object.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The kernel's target, seen from one array's names.
#[derive(Debug, Clone)]
pub struct Own {
    root: PathBuf,
    target: PathBuf,
    /// How the names of its backstores begin.
    prefix: String,
}

impl Own {
    /// Below `root`: the target `iqn`, and the backstores of `system` as the gateway names them.
    #[must_use]
    pub fn new(root: &Path, iqn: &str, system: &str) -> Self {
        Self {
            root: root.to_owned(),
            target: root.join("iscsi").join(iqn),
            prefix: format!("storagelink.{system}."),
        }
    }

    /// The target if it is there, and the backstores.
    #[must_use]
    pub fn left(&self) -> Vec<PathBuf> {
        let target = self.target.is_dir().then(|| self.target.clone());
        target.into_iter().chain(self.backstores()).collect()
    }

    /// What it has of volumes: backstores, LUNs and access control entries.
    #[must_use]
    pub fn volumes(&self) -> Vec<PathBuf> {
        let groups = directories(&self.target).into_iter();
        let of_groups = groups.flat_map(|group| {
            let mut found = directories(&group.join("lun"));
            found.extend(directories(&group.join("acls")));
            found
        });
        of_groups.chain(self.backstores()).collect()
    }

    /// Portals whose sockets the kernel holds for the target: `address:port`.
    #[must_use]
    pub fn portals(&self) -> Vec<String> {
        let groups = directories(&self.target).into_iter();
        let portals = groups.flat_map(|group| directories(&group.join("np")));
        portals.map(|portal| name(&portal)).collect()
    }

    fn backstores(&self) -> Vec<PathBuf> {
        let hbas = directories(&self.root.join("core")).into_iter();
        hbas.flat_map(|hba| directories(&hba))
            .filter(|backstore| name(backstore).starts_with(&self.prefix))
            .collect()
    }

    /// Removes all of it; success when nothing is there.
    ///
    /// # Errors
    /// The first thing that the kernel refused to remove, after everything was tried.
    pub fn remove(&self) -> Result<(), Refused> {
        self.remove_by(&|path| fs::remove_dir(path))
    }

    fn remove_by(&self, remove: &dyn Fn(&Path) -> io::Result<()>) -> Result<(), Refused> {
        let rmdir = |path: &Path| match remove(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Refused {
                path: path.to_owned(),
                source,
            }),
            _ => Ok(()),
        };
        let mut first = Ok(());
        let mut step = |result: Result<(), Refused>| {
            if first.is_ok() {
                first = result;
            }
        };
        if self.target.is_dir() {
            for group in directories(&self.target)
                .iter()
                .filter(|group| name(group).starts_with("tpgt_"))
            {
                // Ends the sessions. A group that was never opened refuses it.
                let enable = fs::File::options().write(true).open(group.join("enable"));
                let _ = enable.and_then(|mut enable| enable.write_all(b"0"));
                for acl in directories(&group.join("acls")) {
                    for lun in directories(&acl)
                        .iter()
                        .filter(|lun| name(lun).starts_with("lun_"))
                    {
                        step(unlink_all(lun).and_then(|()| rmdir(lun)));
                    }
                    step(rmdir(&acl));
                }
                for lun in directories(&group.join("lun")) {
                    step(unlink_all(&lun).and_then(|()| rmdir(&lun)));
                }
                for portal in directories(&group.join("np")) {
                    step(rmdir(&portal));
                }
                step(rmdir(group));
            }
            step(rmdir(&self.target));
            // Somebody else's targets, or none at all: then the kernel keeps it.
            let _ = rmdir(&self.root.join("iscsi"));
        }
        for backstore in self.backstores() {
            step(rmdir(&backstore));
            // One that others' backstores are in stays.
            let _ = backstore.parent().map(rmdir);
        }
        first
    }
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Directories in a directory, sorted, without links; none when it is not there.
fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn unlink_all(directory: &Path) -> Result<(), Refused> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink())) {
        fs::remove_file(entry.path()).map_err(|source| Refused {
            path: entry.path(),
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
    };

    use super::{Own, name};

    const IQN: &str = "iqn.2026-11.io.storagelink:test";

    /// A tree such as the kernel's, without attributes: those go with their directory there.
    fn tree(root: &Path, iqn: &str, backstore: &str, hba: &str) -> PathBuf {
        let backstore = root.join("core").join(hba).join(backstore);
        fs::create_dir_all(&backstore).unwrap();
        let group = root.join("iscsi").join(iqn).join("tpgt_1");
        for directory in ["np/198.18.0.1:3260", "lun/lun_0", "acls/iqn.x:node/lun_0"] {
            fs::create_dir_all(group.join(directory)).unwrap();
        }
        let link = format!("to-{hba}");
        symlink(&backstore, group.join("lun/lun_0").join(&link)).unwrap();
        symlink(
            group.join("lun/lun_0"),
            group.join("acls/iqn.x:node/lun_0").join(&link),
        )
        .unwrap();
        backstore
    }

    /// rmdir as configfs does it: the kernel's own directories go with a portal group, and a backstore that a LUN leads to is busy.
    fn kernel(root: &Path) -> impl Fn(&Path) -> io::Result<()> {
        let targets = root.join("iscsi");
        move |path| {
            if name(path).starts_with("tpgt_") {
                for own in ["np", "lun", "acls"] {
                    fs::remove_dir(path.join(own))?;
                }
            }
            if name(path).starts_with("storagelink.") && targets.join(IQN).exists() {
                return Err(io::Error::from(io::ErrorKind::ResourceBusy));
            }
            fs::remove_dir(path)
        }
    }

    #[test]
    fn own_objects_go_and_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        tree(root, IQN, "storagelink.test.v1", "fileio_0");
        let foreign = tree(
            root,
            "iqn.2003-01.org.example:x",
            "storagelink.test2.v1",
            "fileio_1",
        );
        fs::create_dir_all(root.join("core/alua/lu_gps")).unwrap();
        let own = Own::new(root, IQN, "test");
        assert_eq!(own.portals(), ["198.18.0.1:3260"]);
        assert_eq!(own.left().len(), 2, "{:?}", own.left());
        assert_eq!(own.volumes().len(), 3, "{:?}", own.volumes());

        own.remove_by(&kernel(root)).unwrap();
        assert!(own.left().is_empty() && !root.join("core/fileio_0").exists());
        assert!(foreign.is_dir() && root.join("core/alua/lu_gps").is_dir());
        let other = root.join("iscsi/iqn.2003-01.org.example:x/tpgt_1");
        assert!(other.join("acls/iqn.x:node/lun_0/to-fileio_1").is_symlink());
        assert!(other.join("np/198.18.0.1:3260").is_dir());
    }

    #[test]
    fn nothing_there_is_success() {
        let root = tempfile::tempdir().unwrap();
        let own = Own::new(root.path(), IQN, "test");
        own.remove().unwrap();
        assert!(own.left().is_empty() && own.portals().is_empty());
    }

    #[test]
    fn what_the_kernel_holds_is_named_and_the_rest_goes() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let backstore = tree(root, IQN, "storagelink.test.v1", "fileio_0");
        let free = tree(root, IQN, "storagelink.test.v2", "fileio_1");
        fs::create_dir(backstore.join("held")).unwrap();
        let own = Own::new(root, IQN, "test");
        let error = own.remove_by(&kernel(root)).unwrap_err();
        assert_eq!(error.path, backstore);
        assert!(!free.exists());
        assert_eq!(own.left(), [backstore]);
    }
}
