//! One volume from its CSI id through the map and its path groups to each path: what the kernel says now, and what the node plugin has told.

use std::fmt::Write;

use serde::Serialize;
use storagelink_multipath::{
    Hctl, Host, Map, PathView, ScsiDisk,
    engine::Requests,
    fc_remote_port::is_port_name,
    scsi_device,
    told::{Disk, PathHistory, Volume},
};

use crate::{
    show::{or_dash, size},
    time::{ago, at, span},
};

/// A volume that was found.
#[derive(Serialize)]
pub(crate) struct Found<'a> {
    /// Its map, as the kernel shows it now.
    pub(crate) map: Option<&'a Map>,
    /// What the plugin has told.
    pub(crate) told: Option<&'a Volume>,
    /// State now of the disk of a volume without multipathing; `gone` when there is none, `null` with a map.
    pub(crate) disk_state: Option<String>,
}

/// The volume with this CSI id, UUID part, map name or identity.
pub(crate) fn find<'a>(
    host: &Host,
    maps: &'a [Map],
    told: &'a [Volume],
    wanted: &str,
) -> Result<Found<'a>, String> {
    let uuid = wanted.split('@').next().unwrap_or_default();
    let uuid = host.names.volume_of(uuid).unwrap_or(uuid);
    let same = |volume: &str, wwid: &str| {
        volume == uuid || wwid == wanted || wwid.strip_prefix("naa.") == Some(wanted)
    };
    let map = maps.iter().find(|map| same(&map.volume, map.wwid.as_str()));
    let volume = map.map_or_else(
        || told.iter().find(|told| same(&told.volume, &told.wwid)),
        |map| told.iter().find(|told| told.volume == map.volume),
    );
    // Without a map, a record only says something when the volume was staged without one.
    let volume = volume.filter(|volume| map.is_some() || volume.disk.is_some());
    if map.is_none() && volume.is_none() {
        return Err(format!(
            "no volume of this host is {wanted:?}: `mpathutil list` shows those that there are"
        ));
    }
    let disk = volume
        .and_then(|volume| volume.disk.as_ref())
        .filter(|_| map.is_none());
    let disk_state = disk.map(|disk| now(host, disk).map_or_else(|| "gone".to_owned(), |now| now.state));
    Ok(Found {
        map,
        told: volume,
        disk_state,
    })
}

/// The disk as it is now, when it is the same one.
fn now(host: &Host, disk: &Disk) -> Option<ScsiDisk> {
    let hctl: Hctl = disk.hctl.parse().ok()?;
    let found = scsi_device::find(host, &hctl)?;
    (found.diskseq == disk.diskseq && found.devno.to_string() == disk.devno).then_some(found)
}

/// For people. `now`: milliseconds since 1970.
pub(crate) fn text(found: &Found<'_>, now: u64) -> String {
    let mut text = String::new();
    let id = found.told.map(|told| told.volume_id.as_str());
    let id = id
        .or(found.map.map(|map| map.volume.as_str()))
        .unwrap_or_default();
    let wwid = found.map.map(|map| map.wwid.as_str());
    let wwid = wwid
        .or(found.told.map(|told| told.wwid.as_str()))
        .unwrap_or_default();
    let _ = writeln!(text, "volume {id}");
    let _ = writeln!(text, "  identity {}", or_dash(wwid));
    if found.told.is_some_and(|told| told.pending_restage) {
        let wanted = if found.map.is_some() { "without" } else { "with" };
        let _ = writeln!(
            text,
            "  pending restage: at its next stage it is staged {wanted} multipathing"
        );
    }
    if let Some(map) = found.map {
        of_map(&mut text, map, found.told, now);
    } else if let Some(disk) = found.told.and_then(|told| told.disk.as_ref()) {
        let state = found.disk_state.as_deref().unwrap_or_default();
        let _ = writeln!(text, "  without multipathing: one path, no device-mapper map");
        let _ = writeln!(
            text,
            "    path {}  {}  {}  {}  {}",
            disk.device,
            disk.hctl,
            disk.devno,
            state,
            leads_to(&or_dash(&disk.portal))
        );
        let _ = writeln!(
            text,
            "      {} when last looked at, since {}",
            disk.state,
            ago(disk.since_ms, now)
        );
    }
    text
}

fn of_map(text: &mut String, map: &Map, told: Option<&Volume>, now: u64) {
    let history = told.and_then(|told| told.map.as_ref());
    let usable = map.paths().filter(|path| path.is_usable()).count();
    let _ = writeln!(
        text,
        "  map {}  {}  {}  open {}  {usable} of {} paths usable{}{}",
        map.name,
        map.kernel_name(),
        size(map.size_bytes),
        map.open_count,
        map.paths().count(),
        if map.suspended { "  SUSPENDED" } else { "" },
        if map.queue_if_no_path {
            ""
        } else {
            "  I/O fails without a path"
        },
    );
    match history {
        None => {
            let _ = writeln!(
                text,
                "    no node plugin has told why, and since when, its paths are as they are"
            );
        }
        Some(history) => {
            let _ = writeln!(text, "    {} since {}", history.state, ago(history.since_ms, now));
            if history.stalls > 0 || history.held_ms > 0 {
                let _ = writeln!(
                    text,
                    "    {} times without a usable path; I/O was held {} in all",
                    history.stalls,
                    span(history.held_ms)
                );
            }
            match history.failed_io_ms {
                Some((from, None)) => {
                    let _ = writeln!(text, "    I/O fails (EIO) since {}", ago(from, now));
                }
                Some((from, Some(until))) => {
                    let _ = writeln!(
                        text,
                        "    I/O failed (EIO) from {} for {}",
                        at(from),
                        span(until.saturating_sub(from))
                    );
                }
                None => {}
            }
            if history.mismatches > 0 {
                let _ = writeln!(
                    text,
                    "    {} times a path led to another disk",
                    history.mismatches
                );
            }
        }
    }
    for (number, group) in map.groups.iter().enumerate() {
        let _ = writeln!(text, "  group {}  {}  {}", number + 1, group.state, map.selector);
        for path in &group.paths {
            let known = history.and_then(|h| h.paths.iter().find(|p| p.devno == path.devno.to_string()));
            of_path(text, path, known, now);
        }
    }
}

/// What a path leads to, by its kind.
fn leads_to(portal: &str) -> String {
    let name = portal.split(' ').next().unwrap_or_default();
    format!("{} {portal}", if is_port_name(name) { "WWPN" } else { "portal" })
}

fn of_path(text: &mut String, path: &PathView, known: Option<&PathHistory>, now: u64) {
    let or_known = |now: &String, known: Option<&String>| match (now.is_empty(), known) {
        (true, Some(known)) if !known.is_empty() => format!("{known} (gone)"),
        _ => or_dash(now),
    };
    let _ = writeln!(
        text,
        "    path {}  {}  {}  {}",
        or_known(&path.name, known.map(|k| &k.device)),
        or_dash(&path.hctl),
        path.devno,
        leads_to(&or_known(&path.portal, known.map(|k| &k.portal))),
    );
    let word = |usable: bool| if usable { "usable" } else { "lost" };
    let _ = writeln!(
        text,
        "      {} now: {} in the map, device {}",
        word(path.is_usable()),
        if path.active { "active" } else { "failed" },
        path.device_state
    );
    if let Some(known) = known {
        // The plugin may not run, or not have looked since.
        let _ = writeln!(
            text,
            "      {} since {}: {}",
            word(known.usable),
            ago(known.since_ms, now),
            known.reason
        );
        if let Some(check) = &known.last_check {
            let _ = writeln!(text, "      last check: {check}");
        }
    }
    let history = known.map(|known| {
        format!(
            "lost {}  put back {}  failures {}  ",
            known.losses, known.reinstatements, known.failures
        )
    });
    let history = history.unwrap_or_else(|| format!("failures {}  ", path.fail_count));
    let Requests { reads, writes } = path.requests.unwrap_or_default();
    let _ = writeln!(text, "      {history}reads {reads}  writes {writes}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::tests::{map, single};
    use storagelink_multipath::told::MapHistory;

    const NOW: u64 = 1_795_888_145_000;

    fn host() -> Host {
        Host::kernel("/nowhere")
    }

    fn told() -> Volume {
        let path = |devno: &str, usable: bool| PathHistory {
            devno: devno.to_owned(),
            device: "sdx".to_owned(),
            hctl: "2:0:0:1".to_owned(),
            portal: "198.18.0.1:3260".to_owned(),
            usable,
            reason: "its portal did not answer for a second".to_owned(),
            since_ms: NOW - 200_000,
            losses: 2,
            reinstatements: 1,
            failures: 5,
            last_check: (!usable).then(|| "TEST UNIT READY".to_owned()),
        };
        Volume {
            disk: None,
            multipathing: true,
            map: Some(MapHistory {
                state: "degraded".to_owned(),
                since_ms: NOW - 200_000,
                failed_io_ms: Some((NOW - 900_000, Some(NOW - 890_000))),
                held_ms: 60_000,
                stalls: 1,
                mismatches: 0,
                paths: vec![path("8:0", true), path("8:16", false)],
            }),
            ..single("v")
        }
    }

    #[test]
    fn a_volume_is_found_by_each_of_its_names() {
        let (maps, told) = ([map()], [told(), single("w")]);
        for name in [
            "v@array",
            "v",
            "storagelink-v",
            "naa.6001405123456789abc4def812345678",
            "6001405123456789abc4def812345678",
        ] {
            let found = find(&host(), &maps, &told, name).expect(name);
            assert_eq!(found.map.map(|map| map.volume.as_str()), Some("v"));
            assert_eq!(found.told.map(|told| told.volume_id.as_str()), Some("v@array"));
        }
        let found = find(&host(), &maps, &told, "w").expect("w");
        assert_eq!(
            found.disk_state.as_deref(),
            Some("gone"),
            "no such disk on this machine"
        );
        let error = find(&host(), &maps, &told, "x").err().expect("not there");
        assert!(
            error.contains("\"x\"") && error.contains("mpathutil list"),
            "{error}"
        );
        // A file about a map that is gone says nothing.
        assert!(find(&host(), &[], &told, "v").is_err());
    }

    #[test]
    fn a_fibre_channel_path_shows_the_name_of_its_port_also_when_it_is_gone() {
        let (mut map, mut told) = (map(), told());
        let portals = ["0x2000020000000002", ""];
        for (path, portal) in map.groups[0].paths.iter_mut().zip(portals) {
            portal.clone_into(&mut path.portal);
        }
        if let Some(map) = &mut told.map {
            map.paths[1].portal = "0x2000020000000012".to_owned();
        }
        let (maps, told) = ([map], [told]);
        let all = text(&find(&host(), &maps, &told, "v").expect("found"), NOW);
        assert!(
            all.contains("    path sda  2:0:0:1  8:0  WWPN 0x2000020000000002\n"),
            "{all}"
        );
        assert!(all.contains("  8:16  WWPN 0x2000020000000012 (gone)\n"), "{all}");
        assert!(!all.contains("  portal "), "{all}");
    }

    #[test]
    fn why_and_since_when_is_told_and_less_without_a_plugin() {
        let (maps, told) = ([map()], [told()]);
        let found = find(&host(), &maps, &told, "v").expect("found");
        let all = text(&found, NOW);
        for line in [
            "volume v@array\n",
            "  identity naa.6001405123456789abc4def812345678\n",
            "  pending restage: at its next stage it is staged without multipathing\n",
            "  map storagelink-v  dm-3  1.50 GiB  open 1  1 of 2 paths usable\n",
            "    degraded since 2026-11-28 17:45:45 UTC (3 min 20 s ago)\n",
            "    I/O failed (EIO) from 2026-11-28 17:34:05 UTC for 10 s\n",
            "  group 1  active  round-robin\n",
            "    path sdb  3:0:0:1  8:16  portal 198.18.1.1:3260\n",
            "      lost now: failed in the map, device transport-offline\n",
            "      lost since 2026-11-28 17:45:45 UTC (3 min 20 s ago): its portal did not answer for a second\n",
            "      last check: TEST UNIT READY\n",
            "      lost 2  put back 1  failures 5  reads 10  writes 200\n",
        ] {
            assert!(all.contains(line), "{line:?} is not in\n{all}");
        }
        let alone = find(&host(), &maps, &[], "v").expect("found");
        let less = text(&alone, NOW);
        assert!(less.contains("no node plugin has told why"), "{less}");
        assert!(less.contains("failures 1  reads 10  writes 200"), "{less}");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(
            json["told"]["map"]["paths"][1]["reason"],
            "its portal did not answer for a second"
        );
        assert_eq!(json["map"]["groups"][0]["paths"][1]["active"], false);
    }
}
