//! One map being changed: its tables as they are and as they become, and the swap. Blocking; runs on a worker thread under the volume's lock.
//!
//! Rules of the kernel that decide the order here (drivers/md/dm-mpath.c, dm-ioctl.c; measured on 6.1 and 6.12):
//! - a table swap waits for the I/O of the old table: never swap while a path has I/O that does not come back;
//! - a swap that the kernel refuses leaves the map suspended; a second plain resume brings the old table back;
//! - every swap makes failed paths active again: their marks are sent again at once, and one that leads to another disk is not in the new table.

use super::{
    BuildError, ProveError, ProvenPath,
    port_groups::{self, Port},
};
use crate::{
    Host, Policy, ScsiDisk, Wwid,
    alua::arrange,
    host::{DevNo, DmError, TargetLine},
    policy::{PathGrouping, PathSelector, QueueMode},
    scsi_device,
    status::MultipathStatus,
    table::MultipathTable,
};

/// A map being changed.
pub(super) struct Change<'a> {
    pub(super) host: &'a Host,
    name: &'a str,
    policy: Policy,
}

/// What the paths of a table answered just now.
pub(super) struct Survey {
    /// Those that lead to the volume.
    pub(super) proven: Vec<ProvenPath>,
    /// Those that have been exchanged for another disk: in a new table they would take I/O again for a moment.
    pub(super) misled: Vec<ScsiDisk>,
}

impl Survey {
    pub(super) fn is_misled(&self, path: DevNo) -> bool {
        self.misled.iter().any(|disk| disk.devno == path)
    }
}

impl<'a> Change<'a> {
    /// Of the map with this name.
    pub(super) fn of(host: &'a Host, name: &'a str, policy: Policy) -> Self {
        Self { host, name, policy }
    }

    pub(super) fn kernel(&self) -> impl Fn(DmError) -> BuildError + '_ {
        |source| BuildError::Kernel {
            name: self.name.to_owned(),
            source,
        }
    }

    /// The live table; `None` without one.
    fn table(&self) -> Result<Option<MultipathTable>, BuildError> {
        let table = self.host.dm.table(self.name).map_err(self.kernel())?;
        let parsed = table.first().map(|line| line.params.parse()).transpose();
        parsed.map_err(|source| BuildError::Table {
            name: self.name.to_owned(),
            source,
        })
    }

    /// The path groups of the live table.
    pub(super) fn layout(&self) -> Result<Vec<Vec<DevNo>>, BuildError> {
        Ok(self.table()?.map(|table| table.layout()).unwrap_or_default())
    }

    /// Paths that the target has failed.
    fn failed(&self) -> Result<Vec<DevNo>, BuildError> {
        let status = self.host.dm.status(self.name).map_err(self.kernel())?;
        let Some(line) = status.first() else {
            return Ok(vec![]);
        };
        let status: MultipathStatus = line.params.parse().map_err(|source| BuildError::Table {
            name: self.name.to_owned(),
            source,
        })?;
        Ok(status
            .paths()
            .filter(|path| !path.active)
            .map(|path| path.devno)
            .collect())
    }

    /// Asks each of these paths that can be asked what it is.
    pub(super) fn survey(&self, wwid: &Wwid, paths: &[DevNo]) -> Survey {
        let mut survey = Survey {
            proven: Vec::new(),
            misled: Vec::new(),
        };
        let disks = paths
            .iter()
            .filter_map(|devno| scsi_device::find_by_devno(self.host, *devno))
            .filter(ScsiDisk::is_running);
        for disk in disks {
            match super::prove(self.host, disk.hctl, wwid) {
                Ok(path) if path.disk.is_same(&disk) => survey.proven.push(path),
                Err(ProveError::Mismatch { .. }) => survey.misled.push(disk),
                Ok(_) | Err(_) => {}
            }
        }
        survey
    }

    /// The groups of these paths as the policy and the device say. `before`: the groups of the live table.
    pub(super) fn arrange(
        &self,
        paths: &[DevNo],
        proven: &[ProvenPath],
        before: &[Vec<DevNo>],
    ) -> Vec<Vec<DevNo>> {
        let members = match self.policy.grouping {
            // Nobody has to be asked.
            PathGrouping::Multibus => port_groups::unknown(paths),
            _ => {
                let ports: Vec<Port> = proven.iter().map(Port::from).collect();
                port_groups::members(self.host, paths, &ports)
            }
        };
        arrange(self.policy.grouping, &members, before)
    }

    /// Loads a table over these groups. What this kernel does not know of it is left out: the hardware handler, then the path selector.
    pub(super) fn load(
        &self,
        size_bytes: u64,
        groups: &[Vec<DevNo>],
        read_only: bool,
    ) -> Result<(), BuildError> {
        let mut policy = self.policy;
        let mut handler = self.wants_handler(groups);
        loop {
            let mut table = MultipathTable::of_policy(&policy, groups);
            if handler {
                table.hardware_handler = vec!["alua".to_owned()];
            }
            let line = TargetLine {
                start: 0,
                length: size_bytes / 512,
                target: "multipath".to_owned(),
                params: table.to_string(),
            };
            match self.host.dm.load(self.name, &[line], read_only) {
                Err(error) if error.is_invalid() && handler => {
                    tracing::warn!(
                        dm.name = self.name,
                        error = super::full(&error),
                        "the kernel has no scsi_dh_alua: the array switches by itself only"
                    );
                    handler = false;
                }
                Err(error) if error.is_invalid() && policy.selector != PathSelector::RoundRobin => {
                    tracing::warn!(dm.name = self.name, selector = %policy.selector, error = super::full(&error), "the kernel does not take this path selector: round-robin");
                    policy.selector = PathSelector::RoundRobin;
                }
                other => return other.map_err(self.kernel()),
            }
        }
    }

    /// With a handler the kernel tells the array when it goes to another group, and holds the map's I/O meanwhile: only where there is
    /// another group, and the array wants to be told (SPC-6 5.18.3, explicit access). In bio mode there is none (dm-mpath.c, parse_path).
    fn wants_handler(&self, groups: &[Vec<DevNo>]) -> bool {
        let by_state = matches!(self.policy.grouping, PathGrouping::Auto | PathGrouping::Alua);
        let mut disks = groups.iter().flatten();
        groups.len() > 1
            && by_state
            && self.policy.queue_mode == QueueMode::Request
            && disks.any(|devno| port_groups::is_explicit(self.host, *devno))
    }

    /// Puts a new table in place of the live one, without flushing what is queued.
    pub(super) fn swap(
        &self,
        size_bytes: u64,
        groups: &[Vec<DevNo>],
        read_only: bool,
    ) -> Result<(), BuildError> {
        let failed = self.failed()?;
        // A map keeps its queue mode for life.
        let queue_mode = self
            .table()?
            .map_or(self.policy.queue_mode, |table| table.queue_mode());
        let policy = Policy {
            queue_mode,
            ..self.policy
        };
        Change { policy, ..*self }.load(size_bytes, groups, read_only)?;
        let swapped = self.host.dm.resume(self.name, false);
        if swapped.is_err() {
            // The old table is still there, suspended: run it again, whatever else fails. The new one goes first if the kernel kept it, or
            // the resume would try it once more.
            let cleared = self.host.dm.clear(self.name);
            let revived = self.host.dm.resume(self.name, false);
            if let Err(error) = revived.and(cleared) {
                tracing::error!(
                    dm.name = self.name,
                    error = super::full(&error),
                    "the map could not be brought back after a refused table"
                );
            }
        }
        // After a refusal, too: a table that could not be cleared was swapped in by the second resume.
        for devno in failed
            .into_iter()
            .filter(|devno| groups.iter().flatten().any(|path| path == devno))
        {
            if let Err(error) = self.host.dm.message(self.name, &format!("fail_path {devno}")) {
                tracing::warn!(dm.name = self.name, path = %devno, %error, "cannot mark the path as failed again");
            }
        }
        swapped.map_err(self.kernel())
    }

    /// Refuses while a path of the live table holds I/O. Answers the disks that are still there.
    pub(super) fn reloadable<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p DevNo>,
    ) -> Result<Vec<ScsiDisk>, BuildError> {
        let mut disks = Vec::new();
        for devno in paths {
            // A disk that is gone has given its I/O back.
            let Some(disk) = scsi_device::find_by_devno(self.host, *devno) else {
                continue;
            };
            if disk.is_blocked() {
                return Err(BuildError::PathBlocked {
                    name: self.name.to_owned(),
                    devno: disk.devno,
                    device: disk.name,
                    state: disk.state,
                });
            }
            disks.push(disk);
        }
        Ok(disks)
    }
}
