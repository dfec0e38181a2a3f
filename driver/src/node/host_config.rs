//! What keeps others on this host away from our paths and maps, installed only on request (`--install-host-config`): udev rules and a part of
//! multipath's configuration, in the host's own directories.
//!
//! A path of ours is known to udev by its identity: before a volume is brought up, a file with its WWID is put below the host's `/run`, and the rules
//! look for it. So nothing depends on the array's vendor, and a LUN of somebody else on the same array is left to everybody.
//! Files are written whole or not at all, begin with a mark, and one without the mark is somebody's own: it is never changed or removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The first line of each file of ours.
const MARK: &str = "# Installed by storagelink-csi (--install-host-config); removed when that is switched off. Changes are lost.";
/// Where the WWIDs of the volumes on this host are, as file names.
const OURS: &str = "run/storagelink-csi/wwid";

/// Each file below the host's root, and its text.
///
/// - 11: before 13-dm-disk.rules looks for content on a map (lvm2, udev/13-dm-disk.rules.in; its flags are of 10-dm.rules).
/// - 59: before 60-multipath.rules asks multipath about a disk (multipath-tools, multipath/multipath.rules).
/// - 61: after 60-multipath.rules and 60-persistent-storage.rules have set these; LVM (69-dm-lvm.rules) and udisks (80-udisks2.rules) leave a disk with
///   `DM_MULTIPATH_DEVICE_PATH` alone, systemd (99-systemd.rules) one that is not ready.
/// - multipath: a property by which a device is left alone (multipath.conf(5), blacklist section). Its name must come before `ID_WWN` in the alphabet:
///   the properties are gone through in that order, and `ID_WWN`, which every disk has, is an exception by default (libmultipath/blacklist.c,
///   filter_property).
const FILES: [(&str, &str); 4] = [
    (
        "etc/udev/rules.d/11-dm-storagelink-csi.rules",
        r#"# Maps: nobody looks for file systems, volume groups or partitions on them.
SUBSYSTEM=="block", KERNEL=="dm-*", ENV{DM_UUID}=="storagelink-?*", ENV{DM_NOSCAN}="1", ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", ENV{UDISKS_IGNORE}="1", OPTIONS+="nowatch"
"#,
    ),
    (
        "etc/udev/rules.d/59-storagelink-csi.rules",
        r#"# Paths: disks with the identity of a volume that is used here.
SUBSYSTEM=="block", ENV{DEVTYPE}=="disk", KERNEL=="sd*", ATTRS{wwid}=="naa.*", TEST=="/run/storagelink-csi/wwid/$attr{wwid}", ENV{CSI_STORAGELINK}="1"
"#,
    ),
    (
        "etc/udev/rules.d/61-storagelink-csi.rules",
        r#"# Paths: for LVM, udisks and systemd they are parts of something else.
SUBSYSTEM=="block", ENV{CSI_STORAGELINK}=="1", ENV{DM_MULTIPATH_DEVICE_PATH}="1", ENV{ID_FS_TYPE}="mpath_member", ENV{UDISKS_IGNORE}="1", ENV{SYSTEMD_READY}="0", OPTIONS+="nowatch"
"#,
    ),
    (
        "etc/multipath/conf.d/storagelink-csi.conf",
        r#"blacklist {
    property "CSI_STORAGELINK"
}
"#,
    ),
];

/// A file that could not be put where it belongs.
#[derive(Debug, thiserror::Error)]
pub enum HostConfigError {
    /// Somebody else's.
    #[error("host configuration {}: a file that is not of storagelink-csi is there; it is left as it is", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("host configuration {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The host's directories.
#[derive(Clone, Debug)]
pub(super) struct HostConfig {
    root: PathBuf,
    wanted: bool,
    /// Other nodes share the host: it is left as it is.
    shared: bool,
}

impl HostConfig {
    /// `root`: where the host's root is seen.
    pub(super) fn new(root: Option<&Path>, wanted: bool) -> Self {
        Self {
            root: root.unwrap_or(Path::new("/")).to_owned(),
            wanted,
            shared: false,
        }
    }

    /// For a host that this node shares with others: nothing is installed, nor removed, nor marked. One node would take away what another needs.
    pub(super) fn of_shared_host() -> Self {
        Self {
            root: PathBuf::new(),
            wanted: false,
            shared: true,
        }
    }

    /// It is to be installed.
    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    /// Installs what is wanted, or removes what an earlier one installed. Each file for itself: what could not be done is answered. Blocking.
    pub(super) fn apply(&self) -> Vec<HostConfigError> {
        let mut errors = Vec::new();
        if self.shared {
            return errors;
        }
        for (name, text) in FILES {
            let path = self.root.join(name);
            let done = match self.wanted {
                true => install(&path, text),
                false => remove(&path),
            };
            errors.extend(done.err());
        }
        if !self.wanted {
            // Volumes that are used here stay marked for nobody.
            drop(fs::remove_dir_all(self.root.join(OURS)));
        }
        errors
    }

    /// A volume with this identity is about to be used here: its disks are ours. Blocking.
    pub(super) fn mark(&self, wwid: &str) -> Result<(), HostConfigError> {
        if !self.wanted {
            return Ok(());
        }
        let path = self.root.join(OURS).join(wwid);
        let made = fs::create_dir_all(self.root.join(OURS)).and_then(|()| fs::write(&path, ""));
        made.map_err(|source| HostConfigError::Io { path, source })
    }

    /// It is not used here any more. Blocking.
    pub(super) fn unmark(&self, wwid: &str) -> Result<(), HostConfigError> {
        if self.shared {
            return Ok(());
        }
        let path = self.root.join(OURS).join(wwid);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(HostConfigError::Io { path, source })
            }
            _ => Ok(()),
        }
    }
}

impl super::Inner {
    /// Tells the host's udev that disks with this identity are ours. Without it everything works, only less apart from others.
    pub(super) async fn mark(&self, wwid: &str) {
        let (config, wwid) = (self.host_config.clone(), wwid.to_owned());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || config.mark(&wwid)).await {
            tracing::warn!(
                error = crate::codes::chain(&error),
                "cannot mark a volume for the host's udev"
            );
        }
    }

    /// Tells it that they are not any more.
    pub(super) async fn unmark(&self, wwid: &str) {
        let (config, wwid) = (self.host_config.clone(), wwid.to_owned());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || config.unmark(&wwid)).await {
            tracing::warn!(
                error = crate::codes::chain(&error),
                "cannot take back a volume's mark for the host's udev"
            );
        }
    }
}

/// True when the file is there and ours; false when it is not there.
fn is_ours(path: &Path) -> Result<bool, HostConfigError> {
    match fs::read(path) {
        Ok(content) if content.starts_with(MARK.as_bytes()) => Ok(true),
        Ok(_) => Err(HostConfigError::NotOurs {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(HostConfigError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

fn install(path: &Path, text: &str) -> Result<(), HostConfigError> {
    is_ours(path)?;
    let whole = format!("{MARK}\n{text}");
    // Another name than udev and multipath read.
    let new = path.with_extension("storagelink-new");
    let write = || {
        if fs::read(path).is_ok_and(|now| now == whole.as_bytes()) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(&new, &whole)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| HostConfigError::Io {
        path: path.to_owned(),
        source,
    })
}

fn remove(path: &Path) -> Result<(), HostConfigError> {
    match is_ours(path) {
        Ok(false) | Err(HostConfigError::NotOurs { .. }) => Ok(()),
        Ok(true) => fs::remove_file(path).map_err(|source| HostConfigError::Io {
            path: path.to_owned(),
            source,
        }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &Path) -> Vec<String> {
        let all = FILES.map(|(name, _)| name).into_iter();
        all.filter(|name| root.join(name).exists())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn it_comes_and_goes_whole_and_leaves_others_files_alone() {
        let root = tempfile::tempdir().expect("temporary directory");
        let on = HostConfig::new(Some(root.path()), true);
        let off = HostConfig::new(Some(root.path()), false);
        assert!(
            off.apply().is_empty() && files(root.path()).is_empty(),
            "nothing to remove"
        );
        assert!(on.apply().is_empty() && on.apply().is_empty(), "twice is as once");
        assert_eq!(files(root.path()).len(), FILES.len());
        let directory = root.path().join("etc/udev/rules.d");
        assert_eq!(
            fs::read_dir(&directory).expect("a directory").count(),
            3,
            "nothing else is left"
        );

        // An administrator's own, by the same name.
        let own = root.path().join(FILES[3].0);
        fs::write(&own, "defaults {}\n").expect("writes");
        let errors = on.apply();
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].to_string().contains("conf.d/storagelink-csi.conf"),
            "{}",
            errors[0]
        );
        assert!(off.apply().is_empty());
        assert_eq!(files(root.path()), [FILES[3].0]);
        assert_eq!(fs::read_to_string(&own).expect("reads"), "defaults {}\n");
    }

    #[test]
    fn a_volume_is_marked_while_it_is_used_and_only_on_request() {
        let root = tempfile::tempdir().expect("temporary directory");
        let on = HostConfig::new(Some(root.path()), true);
        let wwid = "naa.6001405123456789abc4def812345678";
        let file = root.path().join(OURS).join(wwid);
        HostConfig::new(Some(root.path()), false)
            .mark(wwid)
            .expect("nothing to do");
        assert!(!file.exists());
        on.mark(wwid).expect("marks");
        assert!(file.exists() && FILES[1].1.contains("/run/storagelink-csi/wwid/$attr{wwid}"));
        on.unmark(wwid).expect("unmarks");
        on.unmark(wwid).expect("it is gone");
        assert!(!file.exists());
    }
}
