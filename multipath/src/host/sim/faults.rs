//! What goes wrong on the simulated machine: connections, calls, processes, other managers.

use super::{Loaded, MapState, SimKernel, dm};
use std::collections::BTreeMap;

use crate::Hctl;

impl SimKernel {
    /// The connection is lost: the session fails and its devices take this state (`blocked`, then `transport-offline`).
    pub fn cut(&self, session: u32, device_state: &str) {
        let mut state = self.state();
        if let Some(session) = state.sessions.get_mut(&session) {
            session.state = "FAILED";
        }
        let moment = state.moment;
        for (hctl, devno) in state.disks_of(session) {
            state.set_device_state(hctl, device_state);
            if device_state != "blocked" {
                // The I/O in flight comes back with an error, and the target fails the path.
                for map in state.maps.values_mut() {
                    dm::fail(map, devno, moment);
                }
            }
        }
        drop(state);
        self.wake();
    }

    /// The connection is back.
    pub fn heal(&self, session: u32) {
        let mut state = self.state();
        if let Some(session) = state.sessions.get_mut(&session) {
            session.state = "LOGGED_IN";
            session.logins += 1;
            (session.silent, session.unplugged) = (false, false);
        }
        for (hctl, _) in state.disks_of(session) {
            state.set_device_state(hctl, "running");
        }
        drop(state);
        self.wake();
    }

    /// The next call of this kind fails with this errno: `TABLE_LOAD`, `DEV_CREATE`, `RESUME`, `DEV_REMOVE`, `TARGET_MSG`, `SG_IO`, `WRITE`, `FLUSH`.
    /// A `RESUME` that fails so leaves the map suspended and its new table loaded, as a wait that was interrupted does.
    pub fn fail_next(&self, operation: &str, errno: i32) {
        self.state().faults.push((operation.to_owned(), errno));
    }

    /// After so many more changing calls nothing works any more, as if the process had been killed there.
    pub fn kill_after(&self, calls: usize) {
        self.state().fuse = Some(calls);
    }

    /// Calls work again that [`SimKernel::kill_after`] ended.
    pub fn restart(&self) {
        self.state().fuse = None;
    }

    /// The process is killed: what it still has under way does nothing more, and hosts that were handed out are dead.
    /// [`SimKernel::host`] gives the next process its own.
    pub fn kill(&self) {
        let mut state = self.state();
        state.fuse = None;
        state.process += 1;
        state.maps.values_mut().for_each(|map| map.marks.owed.clear());
        drop(state);
        self.wake();
    }

    /// No fault is to come any more.
    pub fn forget_faults(&self) {
        self.state().faults.clear();
    }

    /// A process that is not ours is killed between suspend and resume.
    pub fn suspend(&self, map: &str) {
        if let Some(map) = self.state().maps.get_mut(map) {
            map.suspended = map.live.is_some();
        }
    }

    /// An administrator deletes a SCSI device.
    pub fn delete(&self, hctl: Hctl) {
        // An error: there is none.
        let _ = self
            .state()
            .write(&format!("class/scsi_device/{hctl}/device/delete"), "1");
        self.wake();
    }

    /// The next commands to the disks of a session meet so many unit attentions (29/00).
    pub fn reset(&self, session: u32, attentions: u32) {
        let mut state = self.state();
        let disks = state.disks.iter_mut().filter(|(hctl, _)| hctl.host == session);
        disks.for_each(|(_, disk)| disk.attentions = attentions);
    }

    /// Changing calls so far.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.state().changes
    }

    /// Puts a device-mapper device of somebody else over a disk, as a second manager would.
    pub fn foreign_map(&self, name: &str, uuid: &str, over: Hctl) {
        let mut state = self.state();
        let Some(disk) = state.disks.get(&over).cloned() else {
            return;
        };
        let minor = state.number();
        let table = crate::table::MultipathTable::round_robin([disk.devno]);
        let live = Loaded {
            length: disk.size_bytes / 512,
            current_group: table.initial_group,
            table,
            failed: BTreeMap::new(),
        };
        state
            .maps
            .insert(name.to_owned(), MapState::new(uuid, minor, Some(live)));
    }
}
