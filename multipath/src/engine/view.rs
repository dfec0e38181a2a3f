//! What the kernel says of our maps. Reads only; the plugin, the monitor and mpathutil all look through here.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    Host, RemotePort, Wwid,
    host::{DevNo, DmError, DmInfo},
    iscsi_session,
    scsi_device::Place,
    status::{GroupState, MultipathStatus, PathStatus},
    table::MultipathTable,
};

/// One map of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Map {
    /// Device-mapper name.
    pub name: String,
    /// Device-mapper uuid.
    pub uuid: String,
    /// Identity of the volume.
    #[serde(serialize_with = "as_text")]
    pub wwid: Wwid,
    /// The volume that the name says; the UUID part of the CSI volume id.
    pub volume: String,
    /// Block device number.
    #[serde(serialize_with = "as_text")]
    pub devno: DevNo,
    /// Size in bytes; 0 without a table.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// I/O is suspended.
    pub suspended: bool,
    /// A live table is there.
    pub live_table: bool,
    /// A table was loaded and never swapped in.
    pub inactive_table: bool,
    /// I/O is held while no path is usable.
    pub queue_if_no_path: bool,
    /// How often it is open.
    pub open_count: u32,
    /// Path selector of the first group; empty without paths.
    pub selector: String,
    /// Hardware handler, by which the kernel tells the array which group it uses; empty without one.
    pub hardware_handler: String,
    /// Number of the group in use, or to be used next, counted from 1; 0 without paths.
    pub current_group: u32,
    /// Path groups in the order of the table.
    pub groups: Vec<GroupView>,
}

/// One path group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupView {
    /// `active`, `enabled` or `disabled`.
    pub state: &'static str,
    /// Its paths.
    pub paths: Vec<PathView>,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathView {
    /// Block device number.
    #[serde(serialize_with = "as_text")]
    pub devno: DevNo,
    /// Kernel name; empty when the disk is gone.
    pub name: String,
    /// SCSI address; empty when the disk is gone.
    pub hctl: String,
    /// The map sends I/O to it.
    pub active: bool,
    /// How often the map failed it since the table was loaded.
    pub fail_count: u32,
    /// SCSI device state; `gone` when the disk is gone.
    pub device_state: String,
    /// Where it leads: iSCSI: address and port of the portal; Fibre Channel: name (WWPN) of the remote port; otherwise empty.
    pub portal: String,
    /// iSCSI: number of the session that the disk came by.
    pub session: Option<u32>,
    /// Fibre Channel: the remote port that the disk came by.
    #[serde(serialize_with = "as_text_or_none")]
    pub remote_port: Option<RemotePort>,
    /// What it has done; only after [`count_requests`].
    #[serde(flatten)]
    pub requests: Option<Requests>,
}

/// Requests completed since a disk appeared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

impl Map {
    /// Kernel name of the map's block device.
    #[must_use]
    pub fn kernel_name(&self) -> String {
        format!("dm-{}", self.devno.minor)
    }

    /// The paths of each group.
    #[must_use]
    pub(super) fn layout(&self) -> Vec<Vec<DevNo>> {
        let group = |group: &GroupView| group.paths.iter().map(|path| path.devno).collect();
        self.groups.iter().map(group).collect()
    }

    /// A path whose port is in standby does no harm in the map: it is in a group behind the one in use, and that one has a usable path. Or
    /// it is what is left: no path is usable, and the kernel tells the array by the map's handler to take I/O through it.
    pub(super) fn may_stand_by(&self, path: DevNo) -> bool {
        if !self.has_usable_path() {
            return !self.hardware_handler.is_empty();
        }
        let numbered = || self.groups.iter().zip(1u32..);
        let behind = numbered().any(|(group, number)| {
            number > self.current_group && group.paths.iter().any(|other| other.devno == path)
        });
        let works = numbered().any(|(group, number)| {
            number == self.current_group && group.paths.iter().any(PathView::is_usable)
        });
        behind && works
    }

    /// I/O has somewhere to go, once the map is not suspended.
    #[must_use]
    pub fn has_usable_path(&self) -> bool {
        self.paths().any(PathView::is_usable)
    }

    /// All paths in the order of the table.
    pub fn paths(&self) -> impl Iterator<Item = &PathView> {
        self.groups.iter().flat_map(|group| group.paths.iter())
    }
}

impl PathView {
    /// The map uses it and its device takes commands.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.active && self.device_state == "running"
    }
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_text_or_none<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// All maps of ours, by name. Blocking.
///
/// # Errors
/// The kernel refused; without the device-mapper module that is `NotFound`.
pub fn maps(host: &Host) -> Result<Vec<Map>, DmError> {
    those(host, |_| true)
}

/// The maps of ours that are wanted, by name.
pub(super) fn those(host: &Host, wanted: impl Fn(&DmInfo) -> bool) -> Result<Vec<Map>, DmError> {
    let (mut maps, mut portals) = (Vec::new(), Portals::default());
    for info in host.dm.list()?.into_iter().filter(wanted) {
        maps.extend(map(host, info, &mut portals)?);
    }
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(maps)
}

/// The maps of ours with these names, without a look at any other device.
pub(super) fn named(host: &Host, names: &[String]) -> Result<Vec<Map>, DmError> {
    let (mut maps, mut portals) = (Vec::new(), Portals::default());
    for name in names {
        if let Some(info) = host.dm.info(name)? {
            maps.extend(map(host, info, &mut portals)?);
        }
    }
    Ok(maps)
}

/// The portal of each session and the name of each remote port that a look has met: many maps share a few of them.
#[derive(Default)]
struct Portals {
    of_sessions: BTreeMap<u32, String>,
    of_remote_ports: BTreeMap<RemotePort, String>,
}

impl Portals {
    /// Where a disk leads that came so.
    fn of(&mut self, host: &Host, session: Option<u32>, remote_port: Option<RemotePort>) -> String {
        let known = match (session, remote_port) {
            (Some(session), _) => {
                let portal = || iscsi_session::portal(host, session).unwrap_or_default();
                self.of_sessions.entry(session).or_insert_with(portal)
            }
            (None, Some(port)) => {
                let name = || port.port_name(host).unwrap_or_default();
                self.of_remote_ports.entry(port).or_insert_with(name)
            }
            (None, None) => return String::new(),
        };
        known.clone()
    }
}

/// The map that `info` names; `None` when it is not ours, or gone meanwhile.
fn map(host: &Host, info: DmInfo, portals: &mut Portals) -> Result<Option<Map>, DmError> {
    let names = &host.names;
    let (Some(wwid), Some(volume)) = (names.wwid_of(&info.uuid), names.volume_of(&info.name)) else {
        return Ok(None);
    };
    let volume = volume.to_owned();
    let (table, status) = match (host.dm.table(&info.name), host.dm.status(&info.name)) {
        (Ok(table), Ok(status)) => (table, status),
        (Err(error), _) | (_, Err(error)) if error.is_missing() => return Ok(None),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let size_bytes = table.iter().map(|line| line.length * 512).sum();
    let parsed = table
        .first()
        .and_then(|line| line.params.parse::<MultipathTable>().ok())
        .unwrap_or_default();
    let status = status
        .first()
        .and_then(|line| line.params.parse::<MultipathStatus>().ok())
        .unwrap_or_default();
    let groups = status
        .groups
        .iter()
        .map(|group| GroupView {
            state: match group.state {
                GroupState::Active => "active",
                GroupState::Enabled => "enabled",
                GroupState::Disabled => "disabled",
            },
            paths: group.paths.iter().map(|p| path(host, p, portals)).collect(),
        })
        .collect();
    Ok(Some(Map {
        wwid,
        volume,
        devno: info.devno,
        size_bytes,
        read_only: info.read_only,
        suspended: info.suspended,
        live_table: info.live_table,
        inactive_table: info.inactive_table,
        queue_if_no_path: parsed.queues_if_no_path(),
        open_count: info.open_count,
        selector: parsed
            .groups
            .first()
            .map(|group| group.selector.clone())
            .unwrap_or_default(),
        hardware_handler: parsed.hardware_handler.first().cloned().unwrap_or_default(),
        current_group: status.current_group,
        groups,
        name: info.name,
        uuid: info.uuid,
    }))
}

/// A few looks at sysfs for each path, whatever else it has to say of a disk: there may be thousands.
fn path(host: &Host, status: &PathStatus, portals: &mut Portals) -> PathView {
    let place = Place::of(host, status.devno);
    let found = place.and_then(|place| Some((place.state(host)?, place)));
    let (device_state, place) = found.map_or_else(
        || ("gone".to_owned(), None),
        |(state, place)| (state, Some(place)),
    );
    let session = place.as_ref().and_then(|place| place.session);
    let remote_port = place.as_ref().and_then(|place| place.remote_port);
    let (name, hctl) = place.map_or_else(Default::default, |place| (place.name, place.hctl.to_string()));
    PathView {
        devno: status.devno,
        name,
        hctl,
        active: status.active,
        fail_count: status.fail_count,
        device_state,
        portal: portals.of(host, session, remote_port),
        session,
        remote_port,
        requests: None,
    }
}

/// Reads what each path of these maps has done, for somebody who wants to see it; nothing here decides by it. Blocking.
pub fn count_requests(host: &Host, maps: &mut [Map]) {
    let groups = maps.iter_mut().flat_map(|map| &mut map.groups);
    for path in groups.flat_map(|group| &mut group.paths) {
        path.requests = Some(completed(host, &path.name));
    }
}

/// Fields 1 and 5 of Documentation/block/stat.rst; zeros for a disk that is gone.
fn completed(host: &Host, disk: &str) -> Requests {
    let text = host.sysfs.read(&format!("block/{disk}/stat")).unwrap_or_default();
    let fields: Vec<u64> = text
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let field = |number: usize| fields.get(number).copied().unwrap_or(0);
    Requests {
        reads: field(0),
        writes: field(4),
    }
}
