//! What mpathutil says of a volume's paths, read from its JSON.

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// One path of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Path {
    /// Kernel name of the disk.
    pub name: String,
    /// The map sends I/O to it.
    pub active: bool,
    /// State of the SCSI device.
    pub device_state: String,
    /// `address:port` of its portal.
    pub portal: String,
    /// Requests completed.
    reads: u64,
    /// Requests completed.
    writes: u64,
}

#[derive(Debug, Deserialize)]
struct Map {
    #[serde(default)]
    volume: String,
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    paths: Vec<Path>,
}

impl Path {
    /// Reads and writes completed since the disk appeared.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.reads + self.writes
    }

    /// I/O goes over it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.active && self.device_state == "running"
    }
}

/// The paths of a volume, ordered by portal; none when it has no map here.
///
/// # Errors
/// `json` is not what mpathutil prints.
pub fn of(json: &str, volume: &str) -> Result<Vec<Path>> {
    let maps: Vec<Map> = serde_json::from_str(json).context("the output of mpathutil")?;
    let uuid = volume.split('@').next().unwrap_or_default();
    let groups = maps
        .into_iter()
        .filter(|map| map.volume == uuid)
        .flat_map(|map| map.groups);
    let mut paths: Vec<Path> = groups.flat_map(|group| group.paths).collect();
    paths.sort_by(|one, other| one.portal.cmp(&other.portal));
    Ok(paths)
}

/// Requests of each path, by its portal, between two looks.
#[must_use]
pub fn requests(before: &[Path], after: &[Path]) -> Vec<u64> {
    let earlier = |path: &Path| {
        let same = |other: &&Path| other.portal == path.portal && other.name == path.name;
        before.iter().find(same).map_or(0, Path::requests)
    };
    after
        .iter()
        .map(|path| path.requests().saturating_sub(earlier(path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{of, requests};

    fn json(reads: u64, state: &str) -> String {
        format!(
            r#"[{{"name":"storagelink-v","volume":"v","pending_restage":false,"groups":[{{"state":"active","paths":[
                 {{"devno":"8:16","name":"sdb","hctl":"1:0:0:1","active":true,"fail_count":0,"device_state":"{state}",
                   "portal":"198.18.101.2:3260","session":2,"reads":{reads},"writes":5}},
                 {{"devno":"8:0","name":"sda","hctl":"0:0:0:1","active":true,"fail_count":0,"device_state":"running",
                   "portal":"198.18.100.2:3260","session":1,"reads":7,"writes":0}}]}}]}},
               {{"name":"storagelink-w","volume":"w","groups":[]}},
               {{"name":"storagelink-s","volume_id":"s@array","pending_restage":false}}]"#
        )
    }

    #[test]
    fn paths_are_those_of_the_volume_by_portal() {
        let paths = of(&json(3, "transport-offline"), "v@array").unwrap();
        let portals: Vec<_> = paths.iter().map(|path| path.portal.as_str()).collect();
        assert_eq!(portals, ["198.18.100.2:3260", "198.18.101.2:3260"]);
        assert!(paths[0].is_usable() && !paths[1].is_usable());
        assert!(of(&json(3, "running"), "x@array").unwrap().is_empty());
        assert!(of("no map", "v").is_err());
    }

    #[test]
    fn requests_are_those_in_between_and_a_new_disk_begins_at_none() {
        let before = of(&json(3, "running"), "v").unwrap();
        let after = of(&json(10, "running"), "v").unwrap();
        assert_eq!(requests(&before, &after), [0, 7]);
        let renamed = of(&json(10, "running").replace("sdb", "sdc"), "v").unwrap();
        assert_eq!(requests(&before, &renamed), [0, 15]);
    }
}
