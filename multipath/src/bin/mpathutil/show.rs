//! How all volumes look to people and to programs.

use std::fmt::Write;

use serde::Serialize;
use storagelink_multipath::{Map, PathView, engine::Requests, names::Names, told::Volume};

/// A volume of this host.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Shown<'a> {
    /// Over a map.
    Map {
        /// As the kernel shows it.
        #[serde(flatten)]
        map: &'a Map,
        /// The node's setting is another one now.
        pending_restage: bool,
    },
    /// Without multipathing, over one disk.
    Single {
        /// Name, as that of a map.
        name: String,
        /// As the node plugin told.
        #[serde(flatten)]
        volume: &'a Volume,
    },
}

/// Volumes that are told of and have no map.
pub(crate) fn singles<'a>(maps: &[Map], told: &'a [Volume]) -> Vec<&'a Volume> {
    let mapped = |volume: &Volume| maps.iter().any(|map| map.volume == volume.volume);
    told.iter()
        .filter(|volume| volume.disk.is_some() && !mapped(volume))
        .collect()
}

fn pending(map: &Map, told: &[Volume]) -> bool {
    told.iter()
        .any(|volume| volume.volume == map.volume && volume.pending_restage)
}

/// Everything, for programs.
pub(crate) fn all<'a>(names: &Names, maps: &'a [Map], told: &'a [Volume]) -> Vec<Shown<'a>> {
    let maps_shown = maps.iter().map(|map| Shown::Map {
        map,
        pending_restage: pending(map, told),
    });
    let singles = singles(maps, told).into_iter().map(|volume| Shown::Single {
        name: names.map_name(&volume.volume),
        volume,
    });
    maps_shown.chain(singles).collect()
}

fn mark(pending: bool) -> &'static str {
    if pending { "  pending restage" } else { "" }
}

/// `<name>  <wwid>`, one volume a line, and what is out of the ordinary with it.
pub(crate) fn list(names: &Names, maps: &[Map], told: &[Volume]) -> String {
    let mut text = maps.iter().fold(String::new(), |mut text, map| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {}{}", map.name, map.wwid, mark(pending(map, told)));
        text
    });
    for volume in singles(maps, told) {
        let (name, pending) = (names.map_name(&volume.volume), mark(volume.pending_restage));
        let _ = writeln!(text, "{name}  {}  without multipathing{pending}", volume.wwid);
    }
    text
}

/// Each map with its groups and paths, the paths in columns.
pub(crate) fn status(names: &Names, maps: &[Map], told: &[Volume]) -> String {
    let mut text = String::new();
    for map in maps {
        let usable = map.paths().filter(|path| path.is_usable()).count();
        let all = map.paths().count();
        let mut marks = Vec::new();
        if map.read_only {
            marks.push("read-only");
        }
        if map.queue_if_no_path {
            marks.push("queue_if_no_path");
        }
        if map.suspended {
            marks.push("SUSPENDED");
        }
        if !map.live_table {
            marks.push("NO TABLE");
        }
        if pending(map, told) {
            marks.push("pending restage");
        }
        let _ = writeln!(text, "{}  {}", map.name, map.wwid);
        let _ = writeln!(
            text,
            "  dm-{}  {}  open {}  {usable} of {all} paths usable  {}",
            map.devno.minor,
            size(map.size_bytes),
            map.open_count,
            marks.join(" ")
        );
        for group in &map.groups {
            let _ = writeln!(text, "  group {}  {}", group.state, map.selector);
            text.push_str(&columns(&group.paths));
        }
    }
    for volume in singles(maps, told) {
        let Some(disk) = &volume.disk else { continue };
        let (name, pending) = (names.map_name(&volume.volume), mark(volume.pending_restage));
        let _ = writeln!(text, "{name}  {}", volume.wwid);
        let _ = writeln!(text, "  without multipathing{pending}");
        let _ = writeln!(
            text,
            "    {}  {}  {}  {}  {}",
            disk.hctl,
            disk.device,
            disk.devno,
            disk.state,
            or_dash(&disk.portal)
        );
    }
    text
}

fn columns(paths: &[PathView]) -> String {
    let rows: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let Requests { reads, writes } = path.requests.unwrap_or_default();
            vec![
                or_dash(&path.hctl),
                or_dash(&path.name),
                path.devno.to_string(),
                if path.active { "active" } else { "failed" }.to_owned(),
                path.device_state.clone(),
                or_dash(&path.portal),
                format!("failures {}", path.fail_count),
                format!("reads {reads}"),
                format!("writes {writes}"),
            ]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    rows.iter().fold(String::new(), |mut text, row| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "    {}", cells.join("  ").trim_end());
        text
    })
}

pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

/// Binary units, as storage administrators count LUNs.
pub(crate) fn size(bytes: u64) -> String {
    let units = [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match units.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        #[allow(clippy::cast_precision_loss)]
        Some((name, unit)) => format!("{:.2} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use storagelink_multipath::{engine::GroupView, host::DevNo};

    pub(crate) fn map() -> Map {
        let path = |minor: u32, active: bool| PathView {
            devno: DevNo { major: 8, minor },
            name: format!("sd{}", if minor == 0 { "a" } else { "b" }),
            hctl: format!("{}:0:0:1", 2 + minor / 16),
            active,
            fail_count: u32::from(!active),
            device_state: if active { "running" } else { "transport-offline" }.to_owned(),
            portal: format!("198.18.{}.1:3260", minor / 16),
            session: Some(1 + minor / 16),
            remote_port: None,
            requests: Some(Requests {
                reads: 10,
                writes: 200,
            }),
        };
        Map {
            name: "storagelink-v".to_owned(),
            uuid: "storagelink-naa.6001405123456789abc4def812345678".to_owned(),
            wwid: "naa.6001405123456789abc4def812345678".parse().unwrap(),
            volume: "v".to_owned(),
            devno: DevNo { major: 253, minor: 3 },
            size_bytes: 3 << 29,
            read_only: false,
            suspended: false,
            live_table: true,
            inactive_table: false,
            queue_if_no_path: true,
            open_count: 1,
            selector: "round-robin".to_owned(),
            hardware_handler: String::new(),
            current_group: 1,
            groups: vec![GroupView {
                state: "active",
                paths: vec![path(0, true), path(16, false)],
            }],
        }
    }

    #[test]
    fn an_administrator_reads_state_and_counters_of_each_path() {
        assert_eq!(
            status(&Names::default(), &[map()], &[]),
            "storagelink-v  naa.6001405123456789abc4def812345678\n  \
               dm-3  1.50 GiB  open 1  1 of 2 paths usable  queue_if_no_path\n  \
               group active  round-robin\n    \
                 2:0:0:1  sda  8:0   active  running            198.18.0.1:3260  failures 0  reads 10  writes 200\n    \
                 3:0:0:1  sdb  8:16  failed  transport-offline  198.18.1.1:3260  failures 1  reads 10  writes 200\n"
        );
        assert_eq!(
            list(&Names::default(), &[map()], &[]),
            "storagelink-v  naa.6001405123456789abc4def812345678\n"
        );
        assert_eq!(status(&Names::default(), &[], &[]), "");
    }

    pub(crate) fn single(name: &str) -> Volume {
        Volume {
            volume_id: format!("{name}@array"),
            volume: name.to_owned(),
            wwid: "naa.6001405ffffffffffffffffffffffff0".to_owned(),
            multipathing: false,
            pending_restage: true,
            disk: Some(storagelink_multipath::told::Disk {
                device: "sdc".to_owned(),
                hctl: "4:0:0:2".to_owned(),
                devno: "8:32".to_owned(),
                diskseq: 9,
                portal: "198.18.0.1:3260".to_owned(),
                state: "running".to_owned(),
                since_ms: 0,
            }),
            map: None,
        }
    }

    #[test]
    fn what_is_staged_otherwise_than_wanted_is_pending() {
        let mapped = Volume {
            disk: None,
            multipathing: true,
            ..single("v")
        };
        let told = [mapped, single("w")];
        assert_eq!(
            list(&Names::default(), &[map()], &told),
            "storagelink-v  naa.6001405123456789abc4def812345678  pending restage\n\
             storagelink-w  naa.6001405ffffffffffffffffffffffff0  without multipathing  pending restage\n"
        );
        let status = status(&Names::default(), &[map()], &told);
        assert!(status.contains("queue_if_no_path pending restage\n"), "{status}");
        assert!(
            status.contains("    4:0:0:2  sdc  8:32  running  198.18.0.1:3260\n"),
            "{status}"
        );
        let json = serde_json::to_value(all(&Names::default(), &[map()], &told)).unwrap();
        assert_eq!(json[0]["pending_restage"], true);
        assert_eq!(json[1]["disk"]["device"], "sdc");
        // A volume that has a map is shown by the kernel, whatever an old file says.
        assert_eq!(
            list(&Names::default(), &[map()], &[single("v")]).lines().count(),
            1
        );
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let maps = [map()];
        let json = serde_json::to_value(all(&Names::default(), &maps, &[])).unwrap();
        assert_eq!(json[0]["groups"][0]["paths"][1]["active"], false);
        assert_eq!(json[0]["devno"], "253:3");
        assert_eq!(json[0]["wwid"], "naa.6001405123456789abc4def812345678");
    }
}
