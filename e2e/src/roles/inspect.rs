//! What a node's kernel says: maps, paths and their counters, and whatever a volume could leave behind.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::guest::Guest;

/// One path of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Kernel name of the SCSI disk.
    pub disk: String,
    /// Address of the portal its session goes to.
    pub portal: String,
    /// Requests completed since the disk came, reads and writes (kernel Documentation/block/stat.rst, fields 1 and 5).
    pub requests: u64,
    /// State of the SCSI device, `running` when well.
    pub state: String,
}

/// The paths of the map called `name`, ordered by portal.
pub async fn paths(node: &Guest, name: &str) -> Result<Vec<Path>> {
    Ok(paths_of_all(node).await?.remove(name).unwrap_or_default())
}

/// The paths of every map of a node, by its name. The shell starts no program: each start costs an emulated processor as
/// much as all of this.
pub async fn paths_of_all(node: &Guest) -> Result<BTreeMap<String, Vec<Path>>> {
    let script = r#"shopt -s nullglob
for dm in /sys/block/dm-*; do
  read -r name < $dm/dm/name
  for slave in $dm/slaves/*; do
    cd -P $slave/device; number=${PWD#*/session}; number=${number%%/*}
    read -r portal < /sys/class/iscsi_connection/connection$number:0/persistent_address
    read -r -a stat < $slave/stat
    read -r state < $slave/device/state
    echo "$name ${slave##*/} $portal $((stat[0] + stat[4])) $state"
  done
done"#;
    let text = node.shell(script).await?;
    let mut all: BTreeMap<String, Vec<Path>> = BTreeMap::new();
    for line in text.lines() {
        let (name, path) = line.split_once(' ').context("a map's name")?;
        all.entry(name.to_owned()).or_default().push(parse(path)?);
    }
    for paths in all.values_mut() {
        paths.sort_by(|one, other| one.portal.cmp(&other.portal));
    }
    Ok(all)
}

fn parse(line: &str) -> Result<Path> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [disk, portal, requests, state] = words[..] else {
        anyhow::bail!("{line:?} is no path")
    };
    Ok(Path {
        disk: disk.to_owned(),
        portal: portal.to_owned(),
        requests: requests
            .parse()
            .with_context(|| format!("requests of {line:?}"))?,
        state: state.to_owned(),
    })
}

/// Requests of each path between two readings, with its share of all of them in percent.
#[must_use]
pub fn shares(before: &[Path], after: &[Path]) -> Vec<(Path, u64, f64)> {
    let delta = |path: &Path| {
        let earlier = before
            .iter()
            .find(|other| other.disk == path.disk)
            .map_or(0, |other| other.requests);
        path.requests.saturating_sub(earlier)
    };
    let total: u64 = after.iter().map(delta).sum();
    #[allow(clippy::cast_precision_loss, reason = "a percentage")]
    let share = |count: u64| {
        if total == 0 {
            0.0
        } else {
            count as f64 * 100.0 / total as f64
        }
    };
    after
        .iter()
        .map(|path| (path.clone(), delta(path), share(delta(path))))
        .collect()
}

/// Everything of volumes on a node: SCSI disks, iSCSI sessions and records, dm maps, mounts below /var/lib/kubelet,
/// journal entries. Two of these are equal when nothing was left behind.
pub async fn snapshot(node: &Guest) -> Result<Vec<String>> {
    let script = format!(
        "shopt -s nullglob; \
         for d in /sys/block/sd* /sys/block/dm-* /sys/class/iscsi_session/*; do echo $d; done; \
         grep -o ' /var/lib/kubelet[^ ]*' /proc/mounts || true; \
         find /etc/iscsi/nodes /var/lib/iscsi/nodes {} -mindepth 1 2>/dev/null || true; \
         find /var/lib/kubelet -mindepth 1 2>/dev/null || true",
        super::node::STATE
    );
    let text = node.shell(&script).await?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// Fails with the lines that differ.
pub fn same(what: &str, before: &[String], after: &[String]) -> Result<()> {
    let extra: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    let lost: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
    anyhow::ensure!(
        extra.is_empty() && lost.is_empty(),
        "{what}: left behind {extra:?}, lost {lost:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Path, same, shares};

    #[test]
    fn shares_are_of_what_happened_in_between() {
        let path = |disk: &str, requests| Path {
            disk: disk.to_owned(),
            portal: String::new(),
            requests,
            state: "running".to_owned(),
        };
        let shares = shares(
            &[path("sda", 100), path("sdb", 5)],
            &[path("sda", 175), path("sdb", 30)],
        );
        let numbers: Vec<_> = shares
            .iter()
            .map(|(_, count, share)| (*count, share.round()))
            .collect();
        assert_eq!(numbers, [(75, 75.0), (25, 25.0)]);
    }

    #[test]
    fn a_leftover_is_named() {
        let lines = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert!(same("node", &lines(&["a"]), &lines(&["a"])).is_ok());
        let error = same("node", &lines(&["a"]), &lines(&["a", "/sys/block/sda"])).unwrap_err();
        assert!(error.to_string().contains("/sys/block/sda"), "{error}");
    }
}
