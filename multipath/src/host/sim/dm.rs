//! Simulated device-mapper, as far as multipath maps need it.

use std::{collections::BTreeMap, io};

use nix::libc::{EBUSY, EINVAL, ENXIO};

use super::{Loaded, MapState, SimKernel, State};
use crate::{
    host::{DevNo, DeviceMapper, DmError, DmInfo, TargetLine},
    status::{GroupState, GroupStatus, MultipathStatus, PathStatus},
    table::Feature,
};

/// Major number of device-mapper devices here.
pub(super) fn devno(minor: u32) -> DevNo {
    DevNo { major: 253, minor }
}

impl MapState {
    /// The map sends I/O to this path.
    pub(super) fn uses(&self, path: DevNo) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| {
            live.table.paths().any(|known| known == path) && !live.failed.contains_key(&path)
        })
    }
}

/// The target fails a path, if it is one of the map's.
pub(super) fn fail(map: &mut MapState, path: DevNo, moment: u64) {
    map.marks.lost = moment;
    if let Some(live) = &mut map.live
        && live.table.paths().any(|known| known == path)
        && !live.failed.contains_key(&path)
    {
        live.failed.insert(path, 1);
        live.current_group = current_group(live);
    }
}

fn error(operation: &'static str, device: &str, source: io::Error) -> DmError {
    DmError {
        operation,
        device: device.to_owned(),
        source,
    }
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn info(name: &str, map: &MapState) -> DmInfo {
    DmInfo {
        name: name.to_owned(),
        uuid: map.uuid.clone(),
        devno: devno(map.minor),
        suspended: map.suspended,
        read_only: map.read_only,
        live_table: map.live.is_some(),
        inactive_table: map.inactive.is_some(),
        deferred_remove: false,
        open_count: map.open_count,
        event_nr: 0,
    }
}

/// The kernel compares a table with its paths when it is swapped in, not when it is loaded.
fn fits(state: &State, loaded: &Loaded) -> bool {
    loaded.table.paths().all(|path| {
        state
            .disk_by_devno(path)
            .is_none_or(|(_, disk)| disk.size_bytes >= loaded.length * 512)
    })
}

impl SimKernel {
    fn with_map<T>(
        &self,
        operation: &'static str,
        name: &str,
        f: impl FnOnce(&mut MapState) -> io::Result<T>,
    ) -> Result<T, DmError> {
        let mut state = self.state();
        let map = state
            .maps
            .get_mut(name)
            .ok_or_else(|| error(operation, name, errno(ENXIO)))?;
        f(map).map_err(|source| error(operation, name, source))
    }

    /// A swap waits for the I/O of the table that it replaces.
    fn finish_io(&self, name: &str) -> io::Result<()> {
        let process = self.process;
        self.sleep_while(|state| {
            let map = state.maps.get(name).filter(|map| map.inactive.is_some());
            let stuck = map.and_then(|map| map.live.as_ref()).is_some_and(|live| {
                let mut disks = live.table.paths().filter_map(|path| state.disk_by_devno(path));
                disks.any(|(_, disk)| disk.stuck)
            });
            stuck && state.process == process
        });
        match self.state().process == process {
            true => Ok(()),
            false => Err(super::killed()),
        }
    }

    fn changing(&self, operation: &'static str, name: &str) -> Result<(), DmError> {
        self.change(operation)
            .map_err(|source| error(operation, name, source))
    }
}

impl DeviceMapper for SimKernel {
    fn list(&self) -> Result<Vec<DmInfo>, DmError> {
        Ok(self
            .state()
            .maps
            .iter()
            .map(|(name, map)| info(name, map))
            .collect())
    }

    fn create(&self, name: &str, uuid: &str) -> Result<DmInfo, DmError> {
        self.changing("DEV_CREATE", name)?;
        let mut state = self.state();
        if state.maps.contains_key(name) || state.maps.values().any(|map| map.uuid == uuid) {
            return Err(error("DEV_CREATE", name, errno(EBUSY)));
        }
        let minor = state.number();
        let map = MapState::new(uuid, minor, None);
        let answer = info(name, &map);
        state.maps.insert(name.to_owned(), map);
        Ok(answer)
    }

    fn load(&self, name: &str, table: &[TargetLine], read_only: bool) -> Result<(), DmError> {
        self.changing("TABLE_LOAD", name)?;
        let bad = || error("TABLE_LOAD", name, errno(EINVAL));
        let [line] = table else { return Err(bad()) };
        let parsed: crate::table::MultipathTable = line.params.parse().map_err(|_| bad())?;
        if line.target != "multipath"
            || parsed
                .paths()
                .any(|path| self.state().disk_by_devno(path).is_none())
        {
            return Err(bad());
        }
        self.with_map("TABLE_LOAD", name, |map| {
            map.inactive = Some(Loaded {
                length: line.length,
                current_group: parsed.initial_group,
                table: parsed,
                failed: BTreeMap::new(),
            });
            map.read_only = read_only;
            Ok(())
        })
    }

    fn clear(&self, name: &str) -> Result<(), DmError> {
        self.changing("TABLE_CLEAR", name)?;
        self.with_map("TABLE_CLEAR", name, |map| {
            map.inactive = None;
            Ok(())
        })
    }

    fn resume(&self, name: &str, _flush: bool) -> Result<(), DmError> {
        self.judge_swap(name);
        self.hangs("RESUME");
        if let Err(error) = self.changing("RESUME", name) {
            if let (Some(_), Some(map)) = (error.source.raw_os_error(), self.state().maps.get_mut(name)) {
                map.suspended = map.live.is_some();
            }
            return Err(error);
        }
        self.finish_io(name)
            .map_err(|source| error("RESUME", name, source))?;
        let mut state = self.state();
        let next = state
            .maps
            .get(name)
            .ok_or_else(|| error("RESUME", name, errno(ENXIO)))?
            .inactive
            .clone();
        let fits = next.as_ref().is_none_or(|next| fits(&state, next));
        let map = state
            .maps
            .get_mut(name)
            .ok_or_else(|| error("RESUME", name, errno(ENXIO)))?;
        match next {
            Some(_) if !fits => {
                map.suspended = true;
                map.inactive = None;
                return Err(error("RESUME", name, errno(EINVAL)));
            }
            Some(next) => {
                map.owe_marks(&next);
                map.live = Some(next);
                map.inactive = None;
            }
            None => {}
        }
        map.suspended = false;
        Ok(())
    }

    fn info(&self, name: &str) -> Result<Option<DmInfo>, DmError> {
        Ok(self.state().maps.get(name).map(|map| info(name, map)))
    }

    fn table(&self, name: &str) -> Result<Vec<TargetLine>, DmError> {
        self.with_map("TABLE_STATUS (table)", name, |map| {
            Ok(map
                .live
                .iter()
                .map(|live| line(live.length, live.table.to_string()))
                .collect())
        })
    }

    fn status(&self, name: &str) -> Result<Vec<TargetLine>, DmError> {
        self.with_map("TABLE_STATUS", name, |map| {
            Ok(map
                .live
                .iter()
                .map(|live| line(live.length, status(live).to_string()))
                .collect())
        })
    }

    fn message(&self, name: &str, message: &str) -> Result<(), DmError> {
        self.judge_message(name, message);
        self.changing("TARGET_MSG", name)?;
        self.with_map("TARGET_MSG", name, |map| {
            if map.suspended {
                return Err(errno(EBUSY));
            }
            let live = map.live.as_mut().ok_or_else(|| errno(EINVAL))?;
            let queues = |feature: &Feature| *feature == Feature::QueueIfNoPath;
            match message {
                "fail_if_no_path" => live.table.features.retain(|feature| !queues(feature)),
                "queue_if_no_path" if live.table.queues_if_no_path() => {}
                "queue_if_no_path" => live.table.features.push(Feature::QueueIfNoPath),
                _ if message.starts_with("switch_group ") => {
                    let number = message.rsplit(' ').next().and_then(|word| word.parse().ok());
                    let groups = u32::try_from(live.table.groups.len()).unwrap_or(0);
                    live.current_group = number
                        .filter(|number| (1..=groups).contains(number))
                        .ok_or_else(|| errno(EINVAL))?;
                }
                _ => return path_message(live, message),
            }
            Ok(())
        })?;
        self.wake();
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DmError> {
        self.judge_removal(name);
        self.changing("DEV_REMOVE", name)?;
        self.with_map("DEV_REMOVE", name, |map| {
            if map.open_count > 0 {
                Err(errno(EBUSY))
            } else {
                Ok(())
            }
        })?;
        self.state().maps.remove(name);
        Ok(())
    }
}

/// `fail_path` and `reinstate_path`.
fn path_message(live: &mut Loaded, message: &str) -> io::Result<()> {
    let (verb, path) = message.split_once(' ').ok_or_else(|| errno(EINVAL))?;
    let path: DevNo = path.parse().map_err(|_| errno(EINVAL))?;
    if !live.table.paths().any(|known| known == path) {
        return Err(errno(EINVAL));
    }
    match verb {
        "fail_path" => {
            live.failed.entry(path).or_insert(1);
            live.current_group = current_group(live);
        }
        "reinstate_path" => {
            live.failed.remove(&path);
        }
        _ => return Err(errno(EINVAL)),
    }
    Ok(())
}

fn line(length: u64, params: String) -> TargetLine {
    TargetLine {
        start: 0,
        length,
        target: "multipath".to_owned(),
        params,
    }
}

/// The group in use: left only when it has no path that is not failed (dm-mpath.c, choose_pgpath).
fn current_group(live: &Loaded) -> u32 {
    let works = |group: &crate::table::PathGroup| {
        group
            .paths
            .iter()
            .any(|path| !live.failed.contains_key(&path.devno))
    };
    let numbered = || live.table.groups.iter().zip(1u32..);
    let stays = numbered().any(|(group, number)| number == live.current_group && works(group));
    let other = numbered()
        .find(|(group, _)| works(group))
        .map(|(_, number)| number);
    if stays {
        live.current_group
    } else {
        other.unwrap_or(live.current_group)
    }
}

fn status(live: &Loaded) -> MultipathStatus {
    let path = |devno: DevNo| PathStatus {
        devno,
        active: !live.failed.contains_key(&devno),
        fail_count: live.failed.get(&devno).copied().unwrap_or(0),
        info: vec![],
    };
    let groups: Vec<GroupStatus> = live
        .table
        .groups
        .iter()
        .map(|group| GroupStatus {
            state: GroupState::Active,
            selector_info: vec![],
            paths: group.paths.iter().map(|p| path(p.devno)).collect(),
        })
        .collect();
    MultipathStatus {
        queue_io: false,
        pg_init_count: 0,
        current_group: current_group(live),
        groups,
    }
}
