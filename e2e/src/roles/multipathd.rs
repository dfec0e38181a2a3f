//! The peer: multipathd and iscsiadm as an administrator sets them up, in a node guest with udev.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::inspect;
use crate::{guest::Guest, packages, wait};

/// Process and log name.
const PROCESS: &str = "multipathd";
/// Where its commands reach it (libmpathcmd/mpath_cmd.h, DEFAULT_SOCKET).
const SOCKET: &str = "@/org/kernel/linux/storage/multipathd";
const LIMIT: Duration = Duration::from_secs(60);

/// How it is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// In table heads and names.
    pub name: &'static str,
    /// /etc/multipath.conf.
    configuration: &'static str,
    /// What is changed in open-iscsi's records after discovery.
    records: &'static [(&'static str, &'static str)],
}

/// What a fresh installation does, but for the one line without which multipathd makes no map of a new disk.
pub const STOCK: Settings = Settings {
    name: "multipathd, stock",
    configuration: "defaults {\n  find_multipaths yes\n}\n",
    records: &[],
};

/// As quick as its options make it. It refuses a fast_io_fail_tmo below 1 for iSCSI. The login timeout is the one of our own sessions.
pub const TUNED: Settings = Settings {
    name: "multipathd, tuned",
    configuration: "defaults {\n  find_multipaths yes\n  polling_interval 1\n  max_polling_interval 1\n  checker_timeout 1\n}\n\
                    overrides {\n  path_checker tur\n  fast_io_fail_tmo 1\n  no_path_retry 60\n  failback immediate\n}\n",
    records: &[
        ("node.conn[0].timeo.noop_out_interval", "1"),
        ("node.conn[0].timeo.noop_out_timeout", "1"),
        ("node.conn[0].timeo.login_timeout", "5"),
        ("node.session.timeo.replacement_timeout", "1"),
    ],
};

/// The LUN as both hosts and arrays name it.
#[derive(Debug, Clone)]
pub struct Lun {
    /// Name that multipath-tools give its map.
    pub map: String,
    /// The target's iSCSI name.
    pub target: String,
    /// `address:port` of each portal.
    pub portals: Vec<String>,
}

impl Lun {
    /// From what ControllerPublishVolume answered.
    pub fn of(context: &std::collections::HashMap<String, String>) -> Result<Self> {
        let value = |key: &str| {
            context
                .get(key)
                .with_context(|| format!("no {key} in {context:?}"))
        };
        let naa = value("wwid")?
            .strip_prefix("naa.")
            .context("a WWID without NAA")?;
        let mut target = None;
        let mut portals = Vec::new();
        for portal in value("portals")?.split(' ') {
            let mut parts = portal.splitn(3, ',');
            portals.push(parts.next().context("a portal's address")?.to_owned());
            target = parts.nth(1);
        }
        Ok(Self {
            map: format!("3{naa}"),
            target: target.context("a portal's target")?.to_owned(),
            portals,
        })
    }

    /// Its block device.
    #[must_use]
    pub fn device(&self) -> String {
        format!("/dev/mapper/{}", self.map)
    }
}

/// The packages, fetched while there is a network.
pub fn fetch(cache: &Path) -> Result<PathBuf> {
    packages::unpacked(cache, "multipath-tools").context("multipath-tools for the guests")
}

/// Lays the packages over the guest's root; udev must not run there yet.
pub async fn install(guest: &Guest, tree: &Path) -> Result<()> {
    packages::lay(guest, tree).await.context("multipath-tools")
}

/// Starts it, with nothing remembered.
pub async fn start(guest: &Guest, settings: &Settings) -> Result<()> {
    guest
        .shell("rm -rf /etc/multipath; mkdir -p /etc/multipath")
        .await?;
    guest
        .write("/etc/multipath.conf", settings.configuration, 0o644)
        .await?;
    guest.spawn(PROCESS, &["multipathd", "-d", "-s"], &[]).await?;
    wait::until(PROCESS, LIMIT, async || {
        Ok(guest.read("/proc/net/unix").await?.contains(SOCKET))
    })
    .await
    .with_context(|| guest.log(PROCESS).unwrap_or_default())
    .map(drop)
}

/// Ends it; its maps must be gone.
pub async fn stop(guest: &Guest) -> Result<()> {
    guest.kill(PROCESS, 15).await?;
    guest.wait(PROCESS, LIMIT).await.map(drop)
}

/// Discovers and logs in, and waits until the map is there with a path by each portal.
pub async fn attach(guest: &Guest, settings: &Settings, lun: &Lun) -> Result<()> {
    discover(guest, settings, lun).await?;
    guest
        .exec(&["iscsiadm", "-m", "node", "-T", &lun.target, "--login"])
        .await?;
    wait::until(&lun.map, LIMIT, async || {
        let paths = inspect::paths(guest, &lun.map).await?;
        let running = paths.iter().filter(|path| path.state == "running").count();
        ensure!(running == lun.portals.len(), "{paths:?}");
        // By udev, later than the map.
        guest.exec(&["test", "-b", &lun.device()]).await?;
        Ok(true)
    })
    .await
    .map(drop)
}

/// Makes open-iscsi's records of the target.
pub async fn discover(guest: &Guest, settings: &Settings, lun: &Lun) -> Result<()> {
    let portal = lun.portals.first().context("a portal")?;
    guest
        .exec(&["iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal])
        .await?;
    // A target may have portals that do not lead to this LUN.
    for record in guest.exec(&["iscsiadm", "-m", "node"]).await?.lines() {
        let address = record.split(',').next().unwrap_or_default();
        if !lun.portals.iter().any(|portal| portal == address) {
            let argv = [
                "iscsiadm",
                "-m",
                "node",
                "-T",
                &lun.target,
                "-p",
                address,
                "-o",
                "delete",
            ];
            guest.exec(&argv).await?;
        }
    }
    for (name, value) in settings.records {
        let argv = [
            "iscsiadm",
            "-m",
            "node",
            "-T",
            &lun.target,
            "-o",
            "update",
            "-n",
            name,
            "-v",
            value,
        ];
        guest.exec(&argv).await?;
    }
    Ok(())
}

/// Flushes the map, logs out, forgets the target.
pub async fn detach(guest: &Guest, lun: &Lun) -> Result<()> {
    // udev may still have it open after the last close of a writer.
    wait::until("the map is flushed", LIMIT, async || {
        guest.exec(&["multipath", "-f", &lun.map]).await?;
        Ok(true)
    })
    .await?;
    guest
        .exec(&["iscsiadm", "-m", "node", "-T", &lun.target, "--logout"])
        .await?;
    guest
        .exec(&["iscsiadm", "-m", "node", "-T", &lun.target, "-o", "delete"])
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::Lun;

    #[test]
    fn a_lun_is_read_from_the_publish_context() {
        let context = [
            ("wwid", "naa.60014051234"),
            ("portals", "198.18.0.1:3260,1,iqn.a:b 198.18.1.1:3260,1,iqn.a:b"),
        ];
        let context = context
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let lun = Lun::of(&context).unwrap();
        assert_eq!(lun.device(), "/dev/mapper/360014051234");
        assert_eq!(lun.target, "iqn.a:b");
        assert_eq!(lun.portals, ["198.18.0.1:3260", "198.18.1.1:3260"]);
    }
}
