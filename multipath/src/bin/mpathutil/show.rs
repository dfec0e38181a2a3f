//! How maps look to people.

use std::fmt::Write;

use storagelink_multipath::{Map, PathView};

/// `<name>  <wwid>`, one map a line.
pub(crate) fn list(maps: &[Map]) -> String {
    maps.iter().fold(String::new(), |mut text, map| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {}", map.name, map.wwid);
        text
    })
}

/// Each map with its groups and paths, the paths in columns.
pub(crate) fn status(maps: &[Map]) -> String {
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
    text
}

fn columns(paths: &[PathView]) -> String {
    let rows: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            vec![
                or_dash(&path.hctl),
                or_dash(&path.name),
                path.devno.to_string(),
                if path.active { "active" } else { "failed" }.to_owned(),
                path.device_state.clone(),
                or_dash(&path.portal),
                format!("failures {}", path.fail_count),
                format!("reads {}", path.reads),
                format!("writes {}", path.writes),
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

fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

/// Binary units, as storage administrators count LUNs.
fn size(bytes: u64) -> String {
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
mod tests {
    use super::*;
    use storagelink_multipath::{engine::GroupView, host::DevNo};

    fn map() -> Map {
        let path = |minor: u32, active: bool| PathView {
            devno: DevNo { major: 8, minor },
            name: format!("sd{}", if minor == 0 { "a" } else { "b" }),
            hctl: format!("{}:0:0:1", 2 + minor / 16),
            active,
            fail_count: u32::from(!active),
            device_state: if active { "running" } else { "transport-offline" }.to_owned(),
            portal: format!("198.18.{}.1:3260", minor / 16),
            session: Some(1 + minor / 16),
            reads: 10,
            writes: 200,
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
            status(&[map()]),
            "storagelink-v  naa.6001405123456789abc4def812345678\n  \
               dm-3  1.50 GiB  open 1  1 of 2 paths usable  queue_if_no_path\n  \
               group active  round-robin\n    \
                 2:0:0:1  sda  8:0   active  running            198.18.0.1:3260  failures 0  reads 10  writes 200\n    \
                 3:0:0:1  sdb  8:16  failed  transport-offline  198.18.1.1:3260  failures 1  reads 10  writes 200\n"
        );
        assert_eq!(
            list(&[map()]),
            "storagelink-v  naa.6001405123456789abc4def812345678\n"
        );
        assert_eq!(status(&[]), "");
    }

    #[test]
    fn programs_get_the_same_as_json() {
        let json = serde_json::to_value([map()]).unwrap();
        assert_eq!(json[0]["groups"][0]["paths"][1]["active"], false);
        assert_eq!(json[0]["devno"], "253:3");
        assert_eq!(json[0]["wwid"], "naa.6001405123456789abc4def812345678");
    }
}
