//! What no process may ask of a kernel, noted when one does: the rules that the engine must keep whatever happens around it.
//!
//! A rule is judged by what was so before the present moment ([`SimKernel::tick`]): nobody can know of what happens between a look and the call
//! that follows it.

use std::collections::BTreeSet;

use super::{Loaded, MapState, SimKernel, State};
use crate::{Hctl, Wwid, host::DevNo, names};

/// What is remembered of a map for the rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// Paths that were failed when a swap was asked for.
    failed: BTreeSet<DevNo>,
    /// Those that are in the new table, and were not marked since.
    pub(super) owed: BTreeSet<DevNo>,
    /// The moment at which the target itself failed a path last.
    pub(super) lost: u64,
    /// The moment at which it was opened, while it is open.
    pub(super) opened: Option<u64>,
}

impl MapState {
    /// A swap makes every path active: who swaps has to mark the failed ones again.
    pub(super) fn owe_marks(&mut self, next: &Loaded) {
        // One that fails while the swap waits is not known to whoever asked for it.
        let failed = std::mem::take(&mut self.marks.failed).into_iter();
        self.marks.owed = failed
            .filter(|devno| next.table.paths().any(|path| path == *devno))
            .collect();
    }
}

impl State {
    pub(super) fn disks_of(&self, session: u32) -> Vec<(Hctl, DevNo)> {
        let disks = self.disks.iter().filter(|(hctl, _)| hctl.host == session);
        disks.map(|(hctl, disk)| (*hctl, disk.devno)).collect()
    }

    fn violated(&mut self, rule: String) {
        self.violations.push(rule);
    }

    /// The path leads to another disk than this, and did so before this moment.
    fn leads_elsewhere(&self, path: DevNo, wwid: &Wwid) -> bool {
        let lun = self.disk_by_devno(path).and_then(|(hctl, _)| self.lun_of(*hctl));
        lun.is_some_and(|lun| lun.wwid != *wwid && lun.since < self.moment)
    }
}

impl SimKernel {
    /// A moment is over: what happens from here on happens later.
    pub fn tick(&self) {
        let mut state = self.state();
        state.moment += 1;
        let owed: Vec<String> = state
            .maps
            .iter_mut()
            .flat_map(|(name, map)| {
                let owed = std::mem::take(&mut map.marks.owed);
                owed.into_iter()
                    .map(move |path| format!("{path} of {name} was failed, and is not after a swap"))
            })
            .collect();
        state.violations.extend(owed);
    }

    /// What was asked that may not be, so far.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Identity of the LUN that an address leads to now.
    #[must_use]
    pub fn identity_at(&self, hctl: Hctl) -> Option<Wwid> {
        self.state().lun_of(hctl).map(|lun| lun.wwid.clone())
    }

    /// Before a resume: what a swap may bring in, and when.
    pub(super) fn judge_swap(&self, name: &str) {
        let mut state = self.state();
        if state.process != self.process {
            return;
        }
        let Some(map) = state.maps.get_mut(name) else {
            return;
        };
        map.marks.failed = map
            .live
            .iter()
            .flat_map(|live| live.failed.keys().copied())
            .collect();
        let map = map.clone();
        let (Some(next), Some(wwid)) = (&map.inactive, names::wwid_of_any(&map.uuid)) else {
            return;
        };
        let old: Vec<DevNo> = map.live.iter().flat_map(|live| live.table.paths()).collect();
        for path in &old {
            let moment = state.moment;
            let stuck = |disk: &super::Disk| disk.stuck && disk.blocked.is_some_and(|since| since < moment);
            if state.disk_by_devno(*path).is_some_and(|(_, disk)| stuck(disk)) {
                state.violated(format!("{name} swaps tables while I/O is stuck on {path}"));
            }
        }
        for path in next.table.paths() {
            let running = state
                .disk_by_devno(path)
                .is_some_and(|(_, disk)| disk.state == "running");
            let carried = old.contains(&path) && map.uses(path);
            // Who carries I/O already is found by the search for such paths.
            if running && !carried && state.leads_elsewhere(path, &wwid) {
                state.violated(format!(
                    "{path} leads to another disk, and a swap of {name} sends I/O to it"
                ));
            }
        }
    }

    /// Before a message: the last path of a map that fails its I/O is not to be failed, unless it leads elsewhere.
    pub(super) fn judge_message(&self, name: &str, message: &str) {
        let mut state = self.state();
        let Some(path) = message
            .strip_prefix("fail_path ")
            .and_then(|path| path.parse().ok())
        else {
            return;
        };
        let Some(map) = state.maps.get_mut(name) else {
            return;
        };
        if map.marks.owed.remove(&path) {
            // It was failed before a swap.
            return;
        }
        let map = map.clone();
        let (Some(live), Some(wwid)) = (&map.live, names::wwid_of_any(&map.uuid)) else {
            return;
        };
        let last = map.uses(path) && live.table.paths().filter(|path| map.uses(*path)).count() == 1;
        let elsewhere = state
            .disk_by_devno(path)
            .and_then(|(hctl, _)| state.lun_of(*hctl))
            .is_some_and(|lun| lun.wwid != wwid);
        if last && !elsewhere && !live.table.queues_if_no_path() && map.marks.lost < state.moment {
            state.violated(format!(
                "{path}, the last path of {name}, is failed, and its I/O with it"
            ));
        }
    }

    /// Before a command: none goes to a device on which it would sleep.
    pub(super) fn judge_command(&self, device: &str) {
        let mut state = self.state();
        let blocked = state.disk_by_name(device).and_then(|(_, disk)| disk.blocked);
        if blocked.is_some_and(|since| since < state.moment) {
            state.violated(format!("a command goes to {device}, which is blocked"));
        }
    }

    /// Before a SCSI device is deleted: a path that a map sends I/O to keeps its device unless another can take the I/O.
    pub(super) fn judge_deletion(&self, attribute: &str) {
        let hctl = attribute
            .strip_prefix("class/scsi_device/")
            .and_then(|rest| rest.strip_suffix("/device/delete")?.parse::<Hctl>().ok());
        let mut state = self.state();
        let Some(devno) = hctl
            .and_then(|hctl| state.disks.get(&hctl))
            .map(|disk| disk.devno)
        else {
            return;
        };
        let moment = state.moment;
        let stranded = state.maps.iter().find(|(_, map)| {
            let others = map.live.iter().flat_map(|live| live.table.paths());
            let usable = |path: DevNo| {
                map.uses(path)
                    && state
                        .disk_by_devno(path)
                        .is_some_and(|(_, disk)| disk.state == "running" || disk.blocked == Some(moment))
            };
            let is_member = map
                .live
                .iter()
                .any(|live| live.table.paths().any(|path| path == devno));
            let left = others.filter(|path| *path != devno).any(usable);
            is_member && !left && map.marks.lost < moment
        });
        if let Some(name) = stranded.map(|(name, _)| name.clone()) {
            state.violated(format!(
                "the device of {devno} is deleted, and {name} has no other path"
            ));
        }
    }

    /// Before a removal: what somebody has open stays.
    pub(super) fn judge_removal(&self, name: &str) {
        let mut state = self.state();
        let opened = state.maps.get(name).and_then(|map| map.marks.opened);
        if opened.is_some_and(|since| since < state.moment) {
            state.violated(format!("{name} is to be removed while it is open"));
        }
    }
}
