//! Asymmetric logical unit access (SPC-6 5.18): what a device says of its target port groups, and the path groups that follow from it.
//!
//! Pure. Never guesses a state: a path whose state is not known stays where it is, or goes behind all others.

use std::fmt;

use crate::{host::DevNo, policy::PathGrouping};

/// Asymmetric access state of a target port group (SPC-6 table 308).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessState {
    /// Active/optimized.
    Optimized,
    /// Active/non-optimized.
    NonOptimized,
    /// Standby: takes no reads and writes.
    Standby,
    /// Unavailable: takes hardly any command.
    Unavailable,
    /// Depends on the logical block.
    LbaDependent,
    /// Offline: the ports cannot be reached.
    Offline,
    /// On its way to another state.
    Transitioning,
    /// A code that the standard does not name.
    Reserved(u8),
}

impl AccessState {
    fn of_code(code: u8) -> Self {
        match code {
            0x0 => Self::Optimized,
            0x1 => Self::NonOptimized,
            0x2 => Self::Standby,
            0x3 => Self::Unavailable,
            0x4 => Self::LbaDependent,
            0xe => Self::Offline,
            0xf => Self::Transitioning,
            other => Self::Reserved(other),
        }
    }

    /// Reads and writes are taken.
    #[must_use]
    pub fn carries_io(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized | Self::LbaDependent)
    }
}

impl fmt::Display for AccessState {
    /// As sysfs spells it (`access_state`, drivers/scsi/scsi_sysfs.c).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Optimized => "active/optimized",
            Self::NonOptimized => "active/non-optimized",
            Self::Standby => "standby",
            Self::Unavailable => "unavailable",
            Self::LbaDependent => "lba-dependent",
            Self::Offline => "offline",
            Self::Transitioning => "transitioning",
            Self::Reserved(_) => "invalid",
        })
    }
}

/// A target port group as REPORT TARGET PORT GROUPS shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPortGroup {
    /// Its identifier.
    pub id: u16,
    /// Its state.
    pub state: AccessState,
    /// PREF: the array would like it to be used.
    pub preferred: bool,
}

/// An answer to REPORT TARGET PORT GROUPS that is cut short.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("REPORT TARGET PORT GROUPS: the answer is cut short at byte {0}")]
pub struct AluaError(pub usize);

/// Bytes that an answer says it has, its own length field with it (SPC-6 6.36).
#[must_use]
pub fn report_length(data: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(data.get(..4)?.try_into().ok()?);
    usize::try_from(length).ok()?.checked_add(4)
}

/// The groups of an answer to REPORT TARGET PORT GROUPS, with either header format (SPC-6 6.36, tables 207 and 208).
///
/// # Errors
/// Bytes are missing.
pub fn parse_report(data: &[u8]) -> Result<Vec<TargetPortGroup>, AluaError> {
    let cut = || AluaError(data.len());
    let end = report_length(data)
        .filter(|end| *end <= data.len())
        .ok_or_else(cut)?;
    // Extended header: format type 001b in bits 6:4 of byte 4, eight bytes long. A descriptor has the state in the low bits there, and 001b is
    // reserved in it (bits 6:4 of a descriptor's first byte).
    let mut at = if end > 4 && data[4] & 0x70 == 0x10 { 8 } else { 4 };
    let mut groups = Vec::new();
    while at < end {
        let descriptor = data.get(at..at + 8).filter(|_| at + 8 <= end).ok_or_else(cut)?;
        groups.push(TargetPortGroup {
            id: u16::from_be_bytes([descriptor[2], descriptor[3]]),
            state: AccessState::of_code(descriptor[0] & 0x0f),
            preferred: descriptor[0] & 0x80 != 0,
        });
        at += 8 + 4 * usize::from(descriptor[7]);
    }
    if at == end { Ok(groups) } else { Err(cut()) }
}

/// What is known of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The path.
    pub devno: DevNo,
    /// State of its target port group; `None`: the device reports none, or was not asked.
    pub group: Option<TargetPortGroup>,
}

/// The order of groups: what comes first is used first. A preferred group that is not optimized goes before one that is not preferred.
fn rank(group: TargetPortGroup) -> u8 {
    match (group.state, group.preferred) {
        (AccessState::Optimized, _) => 0,
        (AccessState::NonOptimized, true) => 1,
        (AccessState::NonOptimized, false) => 2,
        (AccessState::LbaDependent, _) => 3,
        (AccessState::Standby, true) => 4,
        (AccessState::Standby, false) => 5,
        // They cannot be used.
        _ => 6,
    }
}

/// The path groups of a map, best first. `before`: the groups that it has.
///
/// While any group is transitioning, paths that have a place keep it.
#[must_use]
pub fn arrange(grouping: PathGrouping, members: &[Member], before: &[Vec<DevNo>]) -> Vec<Vec<DevNo>> {
    let all = || members.iter().map(|member| member.devno).collect();
    let unknown = members.iter().all(|member| member.group.is_none());
    let transitioning = |member: &Member| {
        let state = member.group.map(|group| group.state);
        state == Some(AccessState::Transitioning)
    };
    if members.is_empty() {
        return Vec::new();
    }
    match grouping {
        PathGrouping::Multibus => vec![all()],
        PathGrouping::Auto | PathGrouping::Alua if unknown || members.iter().any(transitioning) => {
            keep(members, before)
        }
        PathGrouping::Auto | PathGrouping::Alua => by_state(members, before),
        PathGrouping::Failover => {
            let mut order: Vec<&Member> = members.iter().collect();
            order.sort_by_key(|member| member.group.map_or(0, rank));
            order.into_iter().map(|member| vec![member.devno]).collect()
        }
    }
}

/// Groups by rank. Paths of which nothing is known, and nothing of those beside them, keep their place before whatever came after them: a
/// controller that does not answer now is not the worse one for that. New ones of which nothing is known come last. The only group is divided
/// when no port that answers takes I/O: by another group the array can be told to change that.
fn by_state(members: &[Member], before: &[Vec<DevNo>]) -> Vec<Vec<DevNo>> {
    let mut ranked: Vec<(u8, Vec<DevNo>)> = Vec::new();
    let mut unknown: Vec<DevNo> = Vec::new();
    let states = || {
        members
            .iter()
            .filter_map(|member| member.group)
            .map(|group| group.state)
    };
    let divided = before.len() == 1 && !states().any(AccessState::carries_io);
    for member in members {
        let rank = match member.group {
            None if divided => None,
            _ => rank_of(member, members, before),
        };
        match rank {
            None => unknown.push(member.devno),
            Some(rank) => match ranked.iter_mut().find(|(other, _)| *other == rank) {
                Some((_, paths)) => paths.push(member.devno),
                None => ranked.push((rank, vec![member.devno])),
            },
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut groups: Vec<Vec<DevNo>> = ranked.into_iter().map(|(_, paths)| paths).collect();
    // From the end: what came after is placed already.
    for (index, paths) in before.iter().enumerate().rev() {
        let kept: Vec<DevNo> = paths
            .iter()
            .copied()
            .filter(|path| unknown.contains(path))
            .collect();
        if kept.is_empty() {
            continue;
        }
        unknown.retain(|path| !kept.contains(path));
        let mut after = before[index + 1..].iter().flatten();
        let next = after.find_map(|path| groups.iter().position(|group| group.contains(path)));
        groups.insert(next.unwrap_or(groups.len()), kept);
    }
    if !unknown.is_empty() {
        groups.push(unknown);
    }
    groups
}

/// Its own rank; without a known state that of its group so far.
fn rank_of(member: &Member, members: &[Member], before: &[Vec<DevNo>]) -> Option<u8> {
    if let Some(group) = member.group {
        return Some(rank(group));
    }
    let beside = before.iter().find(|paths| paths.contains(&member.devno))?;
    let fellows = members.iter().filter(|other| beside.contains(&other.devno));
    fellows.filter_map(|other| other.group).map(rank).min()
}

/// The groups as they are, without paths that are no more; new paths join the first.
fn keep(members: &[Member], before: &[Vec<DevNo>]) -> Vec<Vec<DevNo>> {
    let is_member = |path: &DevNo| members.iter().any(|member| member.devno == *path);
    let mut groups: Vec<Vec<DevNo>> = before
        .iter()
        .map(|paths| paths.iter().copied().filter(is_member).collect())
        .filter(|paths: &Vec<DevNo>| !paths.is_empty())
        .collect();
    let placed: Vec<DevNo> = groups.iter().flatten().copied().collect();
    let new = members
        .iter()
        .map(|member| member.devno)
        .filter(|path| !placed.contains(path));
    match groups.first_mut() {
        Some(first) => first.extend(new),
        None => groups.push(new.collect()),
    }
    groups
}

#[cfg(test)]
#[path = "alua_tests.rs"]
mod tests;
