//! Target port groups of a map's paths: asks for them, and has the map follow what the array says.
//!
//! One REPORT TARGET PORT GROUPS answers for all paths of a volume. A map goes to a worse group by itself, as soon as the better one has no path;
//! here it learns which groups there are and in which order. It goes back to a better one only when that has been the better one for [`SETTLED`]:
//! an array whose controllers come and go must not be followed to and fro. The kernel's own cache (`access_state` in sysfs) is not looked at: it
//! stays at `standby` until somebody sends a command. Never swaps a table while a path holds I/O.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Engine, KERNEL_DEADLINE, Map, ProvenPath, full, monitor::CHECK};
use crate::{
    Host,
    alua::{Member, TargetPortGroup, arrange, parse_report},
    host::DevNo,
    scsi_device, worker,
};

/// How long an order of groups must last before a map that can go on as it is follows it.
#[cfg(not(test))]
pub(super) const SETTLED: Duration = Duration::from_secs(10);
#[cfg(test)]
pub(super) const SETTLED: Duration = Duration::from_millis(300);

/// Orders of groups that have not lasted long enough, by the map's name.
pub(super) type Pending = HashMap<String, (Vec<Vec<DevNo>>, Instant)>;

/// A path that has just proved that it leads to the volume.
#[derive(Clone)]
pub(super) struct Port {
    pub(super) path: DevNo,
    /// Kernel name of its disk.
    pub(super) device: String,
    /// Target port group of the port that it leads through, where the device names one.
    pub(super) group: Option<u16>,
}

impl From<&ProvenPath> for Port {
    fn from(path: &ProvenPath) -> Self {
        Self {
            path: path.disk.devno,
            device: path.disk.name.clone(),
            group: path.port_group,
        }
    }
}

/// These paths, of which nothing is known.
pub(super) fn unknown(paths: &[DevNo]) -> Vec<Member> {
    let member = |devno: &DevNo| Member {
        devno: *devno,
        group: None,
    };
    paths.iter().map(member).collect()
}

/// These paths with the state of their target port groups: one port reports all groups of an array; a port whose group was not in it is asked, too.
/// Blocking.
pub(super) fn members(host: &Host, paths: &[DevNo], ports: &[Port]) -> Vec<Member> {
    let mut groups: Vec<TargetPortGroup> = Vec::new();
    for port in ports.iter().filter(|port| port.group.is_some()) {
        if !groups.iter().any(|group| Some(group.id) == port.group) {
            groups.extend(report(host, port).unwrap_or_default());
        }
    }
    let group_of = |path: DevNo| {
        let port = ports.iter().find(|port| port.path == path)?;
        groups.iter().find(|group| Some(group.id) == port.group).copied()
    };
    let mut members = unknown(paths);
    for member in &mut members {
        member.group = group_of(member.devno);
    }
    members
}

/// What a device reports of all its target port groups; `None` when it does not, or cannot now.
fn report(host: &Host, port: &Port) -> Option<Vec<TargetPortGroup>> {
    for _ in 0..super::UNIT_ATTENTIONS {
        match host.scsi.report_target_port_groups(port.path, &port.device) {
            Ok(answer) => match parse_report(&answer) {
                Ok(groups) => return Some(groups),
                Err(error) => {
                    tracing::warn!(device = port.device, %error, "the device's target port groups are not understood");
                    return None;
                }
            },
            Err(error) if error.is_unit_attention() => {}
            Err(error) => {
                tracing::debug!(
                    device = port.device,
                    error = full(&error),
                    "no target port groups"
                );
                return None;
            }
        }
    }
    None
}

/// The array wants to be told which group is used (TPGS 10b or 11b in byte 5 of the standard INQUIRY data, SPC-6 6.7.2). Blocking.
pub(super) fn is_explicit(host: &Host, path: DevNo) -> bool {
    let Some(disk) = scsi_device::find_by_devno(host, path).filter(crate::ScsiDisk::is_running) else {
        return false;
    };
    let data = host
        .scsi
        .inquiry_standard(disk.devno, &disk.name)
        .unwrap_or_default();
    data.get(5).is_some_and(|byte| byte & 0x20 != 0)
}

impl Engine {
    /// Has these maps follow their arrays. `of_maps`: what their paths lead through. Answers whether an order waits to settle.
    pub(super) async fn follow_arrays(
        &self,
        of_maps: &[(Arc<Map>, Vec<Port>)],
        pending: &mut Pending,
    ) -> bool {
        let mut unsettled = false;
        for (map, members) in self.states(of_maps).await {
            unsettled |= self.follow_array(&map, members, pending).await;
        }
        unsettled
    }

    /// The paths of these maps with the states of their target port groups; without maps that did not answer in time.
    async fn states(&self, of_maps: &[(Arc<Map>, Vec<Port>)]) -> Vec<(Arc<Map>, Vec<Member>)> {
        let (host, asked) = (self.host.clone(), of_maps.to_vec());
        let ask = move || {
            let states = |(map, ports): (Arc<Map>, Vec<Port>)| {
                let members = members(&host, &map.layout().concat(), &ports);
                (map, members)
            };
            asked.into_iter().map(states).collect()
        };
        match worker::run("port-groups", CHECK, ask).await {
            Ok(states) => states,
            // One hangs, which must not keep the others from following theirs for ever: each for itself.
            Err(_) if of_maps.len() > 1 => {
                let mut states = Vec::new();
                for of_map in of_maps {
                    states.extend(Box::pin(self.states(std::slice::from_ref(of_map))).await);
                }
                states
            }
            // Logged by the worker.
            Err(_) => Vec::new(),
        }
    }

    async fn follow_array(&self, map: &Map, members: Vec<Member>, pending: &mut Pending) -> bool {
        let (policy, before) = (self.policy(&map.wwid), map.layout());
        let groups = arrange(policy.grouping, &members, &before);
        if groups == before {
            pending.remove(&map.name);
            return false;
        }
        let now = Instant::now();
        let since = match pending.get(&map.name) {
            Some((same, since)) if *same == groups => *since,
            _ => {
                pending.insert(map.name.clone(), (groups.clone(), now));
                now
            }
        };
        if works(map, &members) && now < since + SETTLED {
            return true;
        }
        let guard = match self.lock(&map.wwid, CHECK).await {
            Ok(guard) => guard,
            Err(error) => {
                tracing::warn!(
                    dm.name = map.name,
                    error = full(&error),
                    "the map's paths cannot be regrouped yet"
                );
                return true;
            }
        };
        let (host, wwid) = (self.host.clone(), map.wwid.clone());
        let regrouped = worker::run("regroup-map", KERNEL_DEADLINE, move || {
            let _held = guard;
            super::build::regroup(&host, &wwid, policy, &groups)
        })
        .await;
        match regrouped.map_err(Into::into).flatten() {
            Ok(done) => {
                pending.remove(&map.name);
                if done {
                    let states = show(&members);
                    tracing::info!(dm.name = map.name, wwid = %map.wwid, states, "path groups follow the array's access states");
                }
                false
            }
            Err(error) => {
                tracing::warn!(
                    dm.name = map.name,
                    error = full(&error),
                    "the map's paths cannot be regrouped yet"
                );
                true
            }
        }
    }
}

/// The group in use has a usable path that takes reads and writes: there is time.
fn works(map: &Map, members: &[Member]) -> bool {
    let current = usize::try_from(map.current_group).unwrap_or(0).checked_sub(1);
    let Some(group) = current.and_then(|index| map.groups.get(index)) else {
        return false;
    };
    group.paths.iter().filter(|path| path.is_usable()).any(|path| {
        let member = members.iter().find(|member| member.devno == path.devno);
        member
            .and_then(|member| member.group)
            .is_some_and(|group| group.state.carries_io())
    })
}

fn show(members: &[Member]) -> String {
    let show = |member: &Member| match member.group {
        Some(group) => format!("{} {}", member.devno, group.state),
        None => format!("{} unknown", member.devno),
    };
    members.iter().map(show).collect::<Vec<_>>().join(", ")
}
