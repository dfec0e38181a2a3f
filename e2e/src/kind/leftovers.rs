//! What the walk could leave in the host's kernel and in open-iscsi: seen by the names that only the walk uses, and removed.
//!
//! Sessions to [`TARGET`], maps whose name carries a node of [`CLUSTER`], records of both, backstores and target of the array, the handle of
//! the network namespace. What carries other names is never touched.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use storagelink_multipath::{Host, host::DmInfo};

use super::{
    settings::{CLUSTER, HANDLE, HANDLES, Settings, TARGET},
    target,
    tool::{self, SHORT},
};
use crate::wait;

const SESSIONS: &str = "/sys/class/iscsi_session";
/// Where open-iscsi keeps what it knows, as Debian has it and as others do.
const DATABASES: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];

/// One thing that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// A map, by its name.
    Map(String),
    /// A session to the array, by its number.
    Session(u32),
    /// open-iscsi's record of the target.
    Record(PathBuf),
    /// open-iscsi's record of a node's interface, by its name.
    Interface(String),
    /// Something of the array in the kernel's target.
    Target(PathBuf),
    /// The handle of the host's network namespace.
    Handle(PathBuf),
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(name) => write!(f, "map {name}"),
            Self::Session(number) => write!(f, "session {number} to {TARGET}"),
            Self::Record(path) => write!(f, "record {}", path.display()),
            Self::Interface(name) => write!(f, "open-iscsi interface {name}"),
            Self::Target(path) => write!(f, "{}", path.display()),
            Self::Handle(path) => write!(f, "mount {}", path.display()),
        }
    }
}

/// The handle.
#[must_use]
pub fn handle() -> PathBuf {
    Path::new(HANDLES).join(HANDLE)
}

/// Everything that is there now, in the order in which it can be removed.
pub fn look() -> Vec<Left> {
    let mut left = volumes();
    left.extend(target::own().left().into_iter().map(Left::Target));
    let handle = handle();
    if is_mounted(
        &fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
        &handle,
    ) {
        left.push(Left::Handle(handle));
    }
    left
}

/// What volumes in use consist of on the host: maps, sessions, and what open-iscsi has in its database for them. All of it goes with a
/// node's last volume.
#[must_use]
pub fn volumes() -> Vec<Left> {
    // A kernel without device-mapper has no maps.
    let maps = host().dm.list().unwrap_or_default();
    let mut left = own_maps(&maps);
    left.extend(
        sessions(Path::new(SESSIONS), TARGET)
            .into_iter()
            .map(Left::Session),
    );
    let records = DATABASES.map(|directory| Path::new(directory).join("nodes").join(TARGET));
    left.extend(records.into_iter().filter(|path| path.exists()).map(Left::Record));
    for directory in DATABASES {
        let ifaces = Path::new(directory).join("ifaces");
        left.extend(
            names(&ifaces)
                .into_iter()
                .filter(|name| is_interface(name))
                .map(Left::Interface),
        );
    }
    left
}

fn host() -> Host {
    Host::kernel("/run/storagelink/nodes")
}

fn own_maps(maps: &[DmInfo]) -> Vec<Left> {
    // multipath's names: `storagelink-<node>@<volume>`.
    let prefix = format!("storagelink-{CLUSTER}-");
    let own = maps
        .iter()
        .filter(|map| map.name.starts_with(&prefix) && map.name.contains('@'));
    own.map(|map| Left::Map(map.name.clone())).collect()
}

/// Numbers of the sessions to a target.
fn sessions(class: &Path, target: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = names(class)
        .into_iter()
        .filter(|name| {
            let of = fs::read_to_string(class.join(name).join("targetname"));
            of.is_ok_and(|of| of.trim_end() == target)
        })
        .filter_map(|name| name.strip_prefix("session")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Whether an open-iscsi interface is that of one of the cluster's nodes: `storagelink-<node>`.
fn is_interface(name: &str) -> bool {
    name.starts_with(&format!("storagelink-{CLUSTER}-"))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn is_mounted(mounts: &str, path: &Path) -> bool {
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1).map(Path::new) == Some(path))
}

/// Binds the handle of the host's network namespace to where the nodes look for it.
///
/// # Errors
/// The kernel refused it.
pub fn bind_handle() -> Result<()> {
    let handle = handle();
    fs::create_dir_all(HANDLES).with_context(|| format!("make {HANDLES}"))?;
    fs::File::create(&handle).with_context(|| format!("make {}", handle.display()))?;
    mount(
        Some("/proc/1/ns/net"),
        &handle,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("bind the host's network namespace to {}", handle.display()))
}

/// Removes what [`volumes`] shows, once no node uses it any more: while the array answers, so that what is still to be written is.
///
/// # Errors
/// Something is held: it is named.
pub async fn remove_volumes(settings: &Settings) -> Result<()> {
    for left in volumes() {
        let step = remove_one(settings, &left).await;
        step.with_context(|| format!("cannot remove {left}"))?;
    }
    Ok(())
}

/// Removes what [`look`] shows, once no node and no container uses it any more.
///
/// # Errors
/// Something is held: it is named.
pub async fn remove(settings: &Settings) -> Result<()> {
    for left in look() {
        let step = remove_one(settings, &left).await;
        step.with_context(|| format!("cannot remove {left}"))?;
    }
    // Not the walk's alone when somebody put more into it.
    let _ = fs::remove_dir(HANDLES);
    let left = look();
    ensure!(left.is_empty(), "left on the host: {}", spelled(&left));
    Ok(())
}

/// One text of several.
#[must_use]
pub fn spelled(left: &[Left]) -> String {
    let names: Vec<String> = left.iter().map(ToString::to_string).collect();
    names.join(", ")
}

async fn remove_one(settings: &Settings, left: &Left) -> Result<()> {
    match left {
        Left::Map(name) => {
            // What waits for a path must fail now, or nobody can close the map.
            let _ = host().dm.message(name, "fail_if_no_path");
            wait::until("the map is closed", settings.limit(30), async || {
                match host().dm.remove(name) {
                    Ok(()) => Ok(true),
                    Err(error) if error.is_missing() => Ok(true),
                    Err(error) => Err(error.into()),
                }
            })
            .await
            .map(drop)
        }
        Left::Session(number) => {
            let number = number.to_string();
            tool::run(&["iscsiadm", "-m", "session", "-r", &number, "-u"], SHORT)
                .await
                .map(drop)
        }
        Left::Record(_) => tool::run(&["iscsiadm", "-m", "node", "-T", TARGET, "-o", "delete"], SHORT)
            .await
            .map(drop),
        Left::Interface(name) => tool::run(&["iscsiadm", "-m", "iface", "-I", name, "-o", "delete"], SHORT)
            .await
            .map(drop),
        // The first of them takes the others with it.
        Left::Target(_) => Ok(target::own().remove()?),
        Left::Handle(path) => {
            umount2(path, MntFlags::MNT_DETACH).context("umount")?;
            fs::remove_file(path).context("remove the file")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use storagelink_multipath::host::{DevNo, DmInfo};

    use super::{Left, is_interface, is_mounted, own_maps, sessions};

    fn map(name: &str) -> DmInfo {
        DmInfo {
            name: name.to_owned(),
            uuid: String::new(),
            devno: DevNo { major: 254, minor: 0 },
            suspended: false,
            read_only: false,
            live_table: true,
            inactive_table: false,
            deferred_remove: false,
            open_count: 0,
            event_nr: 0,
        }
    }

    #[test]
    fn only_maps_of_the_clusters_nodes_are_its_own() {
        let maps = [
            "storagelink-storagelink-e2e-worker2@5d1c",
            "storagelink-5d1c",
            "storagelink-node1@5d1c",
            "vg0-root",
            "storagelink-storagelink-e2e-x",
        ]
        .map(map);
        assert_eq!(
            own_maps(&maps),
            [Left::Map("storagelink-storagelink-e2e-worker2@5d1c".to_owned())]
        );
    }

    #[test]
    fn only_sessions_to_the_target_are_its_own() {
        let class = tempfile::tempdir().unwrap();
        for (session, target) in [
            ("session10", "iqn.a:x\n"),
            ("session2", "iqn.a:x"),
            ("session3", "iqn.a:xy\n"),
        ] {
            fs::create_dir(class.path().join(session)).unwrap();
            fs::write(class.path().join(session).join("targetname"), target).unwrap();
        }
        assert_eq!(sessions(class.path(), "iqn.a:x"), [2, 10]);
        assert!(sessions(Path::new("/nowhere"), "iqn.a:x").is_empty());
    }

    #[test]
    fn interfaces_and_mounts_are_known_by_their_whole_name() {
        assert!(is_interface("storagelink-storagelink-e2e-worker"));
        assert!(!is_interface("default") && !is_interface("storagelink-node1"));
        let mounts = "nsfs /run/storagelink/host-netns nsfs rw 0 0\n";
        assert!(is_mounted(mounts, Path::new("/run/storagelink/host-netns")));
        assert!(!is_mounted(mounts, Path::new("/run/storagelink")));
    }
}
