//! What became of each map and path since this process looks at them: its state, since when, why, and how often.
//!
//! The kernel keeps none of this: it says that a path is failed, not why, nor since when. The ledger learns from what the monitor sees and does
//! and decides nothing. It is a memory only: without it everything works, and a new process starts a new one. It holds entries of maps that exist,
//! and of each map only paths that were in it since it exists.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

use super::{Map, PathView};
use crate::{Host, Wwid, fc_remote_port::is_port_name, host::DevNo, iscsi_session};

/// Upper bounds of the buckets in which the times without a usable path are counted, in seconds: from what a looped-through failover takes to
/// twice the usual time that I/O is held.
pub const STALL_BOUNDS: [f64; 10] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Sessions whose connection was ended, remembered until their paths are seen lost.
const ENDED: usize = 256;

/// How a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapState {
    /// Every path carries I/O.
    Well,
    /// Some paths carry I/O.
    Degraded,
    /// No path carries I/O; it is held.
    Holding,
    /// No path carries I/O; it fails (EIO).
    Failing,
    /// The map is suspended.
    Suspended,
}

impl MapState {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Well,
        Self::Degraded,
        Self::Holding,
        Self::Failing,
        Self::Suspended,
    ];

    /// The state of a map as the kernel shows it.
    #[must_use]
    pub fn of(map: &Map) -> Self {
        let usable = map.paths().filter(|path| path.is_usable()).count();
        match (map.suspended, usable) {
            (true, _) => Self::Suspended,
            (false, 0) if map.queue_if_no_path => Self::Holding,
            (false, 0) => Self::Failing,
            (false, usable) if usable < map.paths().count() => Self::Degraded,
            (false, _) => Self::Well,
        }
    }

    /// As metrics and `mpathutil` name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Degraded => "degraded",
            Self::Holding => "holding",
            Self::Failing => "failing",
            Self::Suspended => "suspended",
        }
    }
}

/// What is known of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRecord {
    /// Block device number, of the disk that it is now or was last.
    pub devno: DevNo,
    /// Kernel name.
    pub device: String,
    /// SCSI address.
    pub hctl: String,
    /// Address and port of the portal, or the WWPN of the remote port; empty when it has neither.
    pub portal: String,
    /// It carries I/O.
    pub usable: bool,
    /// Why it is as it is.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// How often it was lost.
    pub losses: u64,
    /// How often it was put back to work.
    pub reinstatements: u64,
    /// How often the kernel failed it, over all tables.
    pub failures: u64,
    /// Checks of it while it was lost.
    pub checks: u64,
    /// What the last check found, when it was in vain.
    pub last_check: Option<String>,
    /// `failures` of the table that was seen last.
    counted: u32,
}

impl PathRecord {
    /// What stays the same when its device comes anew: the portal, or without one the address. A Fibre Channel port keeps its address, and is
    /// reached through more than one host bus adapter.
    #[must_use]
    pub fn label(&self) -> &str {
        if self.portal.is_empty() || is_port_name(&self.portal) {
            &self.hctl
        } else {
            &self.portal
        }
    }
}

/// What is known of one map.
#[derive(Clone, Debug)]
pub struct MapRecord {
    /// The volume; the UUID part of the CSI volume id.
    pub volume: String,
    /// Its identity.
    pub wwid: Wwid,
    /// How it is.
    pub state: MapState,
    /// Since when.
    pub since: SystemTime,
    /// When its I/O was last failed for want of a path, and until when; `None` as the end: it still is.
    pub failed_io: Option<(SystemTime, Option<SystemTime>)>,
    /// For how long in all it held I/O without a usable path.
    pub held: Duration,
    /// Times without a usable path that have ended: how many up to each of [`STALL_BOUNDS`] (not cumulated), and longer ones last.
    pub stalls: [u64; STALL_BOUNDS.len() + 1],
    /// The sum of those times.
    pub stalled: Duration,
    /// How often a path led to another disk.
    pub mismatches: u64,
    /// Its paths.
    pub paths: Vec<PathRecord>,
    /// Since when no path is usable.
    pathless: Option<Instant>,
    /// When it was last seen to hold I/O.
    holding: Option<Instant>,
}

impl MapRecord {
    fn new(map: &Map) -> Self {
        Self {
            volume: map.volume.clone(),
            wwid: map.wwid.clone(),
            state: MapState::of(map),
            since: SystemTime::now(),
            failed_io: None,
            held: Duration::ZERO,
            stalls: Default::default(),
            stalled: Duration::ZERO,
            mismatches: 0,
            paths: Vec::new(),
            pathless: None,
            holding: None,
        }
    }

    /// The record of the path with this device; a device that came anew takes over the record of its portal.
    fn path(&mut self, path: &PathView, map: &Map) -> Option<&mut PathRecord> {
        let there = |devno| {
            map.paths()
                .any(|other| other.devno == devno && !other.hctl.is_empty())
        };
        let label = |record: &PathRecord| {
            let same =
                record.portal == path.portal && (path.remote_port.is_none() || record.hctl == path.hctl);
            !path.portal.is_empty() && same && !there(record.devno)
        };
        let at = self
            .paths
            .iter()
            .position(|record| record.devno == path.devno)
            .or_else(|| self.paths.iter().position(label));
        let at = match at {
            Some(at) => at,
            // A device that was gone before anybody looked: nothing is known of it but its number.
            None => {
                self.paths.push(PathRecord {
                    devno: path.devno,
                    device: String::new(),
                    hctl: String::new(),
                    portal: String::new(),
                    usable: true,
                    reason: "it carries I/O since it was first seen".to_owned(),
                    since: SystemTime::now(),
                    losses: 0,
                    reinstatements: 0,
                    failures: 0,
                    checks: 0,
                    last_check: None,
                    counted: 0,
                });
                self.paths.len() - 1
            }
        };
        self.paths.get_mut(at)
    }
}

#[derive(Default)]
struct Book {
    maps: BTreeMap<String, MapRecord>,
    /// Sessions whose connection the plugin ends, and why.
    ended: HashMap<u32, String>,
}

/// The ledger. Clones are the same one.
#[derive(Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<u64>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            book: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Ledger {
    /// Everything that is known now.
    #[must_use]
    pub fn maps(&self) -> Vec<MapRecord> {
        let now = Instant::now();
        let mut maps: Vec<MapRecord> = self.book().maps.values().cloned().collect();
        for map in &mut maps {
            map.held += map.holding.map_or(Duration::ZERO, |since| now - since);
        }
        maps
    }

    /// What is known of one volume's map.
    #[must_use]
    pub fn of(&self, volume: &str) -> Option<MapRecord> {
        self.maps().into_iter().find(|map| map.volume == volume)
    }

    /// Wakes whenever a state or a reason has changed; counters alone do not wake.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Notes how a map looks now. Answers the state that it had before, when it is another one.
    pub(super) fn saw(&self, host: &Host, map: &Map) -> Option<(MapState, MapState)> {
        let mut book = self.book();
        let Book { maps, ended } = &mut *book;
        let first = !maps.contains_key(&map.name);
        let record = maps
            .entry(map.name.clone())
            .or_insert_with(|| MapRecord::new(map));
        let mut changed = first;
        // The same number is not always the same disk: the same path has one record, of the device that is there.
        for path in map.paths() {
            let gone = path.hctl.is_empty();
            if gone && !record.paths.iter().any(|known| known.devno == path.devno) && !first {
                continue;
            }
            let Some(known) = record.path(path, map) else {
                continue;
            };
            changed |= note(host, known, path, ended, first);
        }
        if record.paths.len() > map.paths().count() {
            let of_map = |known: &PathRecord| map.paths().any(|path| path.devno == known.devno);
            record.paths.retain(of_map);
            changed = true;
        }
        let before = record.state;
        times(record, map);
        drop(book);
        let now = MapState::of(map);
        if changed || before != now {
            self.change();
        }
        (before != now).then_some((before, now))
    }

    /// Drops maps that are no more.
    pub fn forget(&self, maps: &[Map]) {
        let mut book = self.book();
        let before = book.maps.len();
        book.maps
            .retain(|name, _| maps.iter().any(|map| map.name == *name));
        let gone = book.maps.len() != before;
        drop(book);
        if gone {
            self.change();
        }
    }

    /// A lost path was checked; the text says why it stays lost.
    pub(super) fn checked(&self, map: &Map, path: &PathView, outcome: Result<(), String>) {
        self.found(map, path, 1, outcome.err());
    }

    /// A lost path is not checked, for this reason.
    pub(super) fn waits(&self, map: &Map, path: &PathView, why: &str) {
        self.found(map, path, 0, Some(why.to_owned()));
    }

    fn found(&self, map: &Map, path: &PathView, checks: u64, news: Option<String>) {
        let mut book = self.book();
        let Some(record) = book.maps.get_mut(&map.name) else {
            return;
        };
        let Some(known) = record.path(path, map) else {
            return;
        };
        known.checks += checks;
        let changed = known.last_check != news;
        known.last_check = news;
        drop(book);
        if changed {
            self.change();
        }
    }

    /// A path leads to another disk.
    pub(super) fn misled(&self, map: &Map, path: &PathView, what: &str) {
        let mut book = self.book();
        let record = book
            .maps
            .entry(map.name.clone())
            .or_insert_with(|| MapRecord::new(map));
        record.mismatches += 1;
        if let Some(known) = record.path(path, map) {
            known.losses += u64::from(known.usable);
            known.usable = false;
            known.since = SystemTime::now();
            known.reason = format!("it leads to another disk: {what}");
        }
        drop(book);
        self.change();
    }

    /// The plugin ends the connection of a session.
    pub(super) fn ended(&self, session: u32, why: &str) {
        let mut book = self.book();
        if book.ended.len() >= ENDED {
            book.ended.clear();
        }
        book.ended.insert(session, why.to_owned());
    }
}

/// Notes one path; true when its state changed.
fn note(
    host: &Host,
    known: &mut PathRecord,
    path: &PathView,
    ended: &mut HashMap<u32, String>,
    first: bool,
) -> bool {
    if known.devno != path.devno {
        known.counted = 0;
    }
    known.devno = path.devno;
    for (known, now) in [
        (&mut known.device, &path.name),
        (&mut known.hctl, &path.hctl),
        (&mut known.portal, &path.portal),
    ] {
        if !now.is_empty() {
            known.clone_from(now);
        }
    }
    // A new table counts from nothing.
    known.failures += u64::from(match path.fail_count.checked_sub(known.counted) {
        Some(more) => more,
        None => path.fail_count,
    });
    known.counted = path.fail_count;
    match (known.usable, path.is_usable()) {
        (true, false) => {
            known.usable = false;
            known.losses += 1;
            known.since = SystemTime::now();
            let by_us = path.session.and_then(|session| ended.remove(&session));
            known.reason = why(host, path, by_us);
            if first {
                known.reason.push_str(" (it was so when it was first seen)");
            }
            known.last_check = None;
            true
        }
        (false, true) => {
            known.usable = true;
            known.reinstatements += 1;
            known.since = SystemTime::now();
            known.reason = "its device is running and proved the volume's identity again".to_owned();
            known.last_check = None;
            true
        }
        _ => false,
    }
}

/// Why a path carries no I/O, as far as it can be seen at the moment of its loss.
fn why(host: &Host, path: &PathView, ended: Option<String>) -> String {
    if path.device_state == "gone" {
        return "its SCSI device is gone from this host".to_owned();
    }
    let session = path.session.map(|session| {
        let state = iscsi_session::state(host, session).unwrap_or_else(|| "gone".to_owned());
        format!(" (iSCSI session {session}: {state})")
    });
    let port = path.remote_port.map(|port| {
        let state = port.port_state(host).unwrap_or_else(|| "gone".to_owned());
        format!(" (Fibre Channel port {}: {state})", path.portal)
    });
    let session = session.or(port).unwrap_or_default();
    match (ended, path.device_state.as_str()) {
        (Some(ended), _) => format!("{ended}{session}"),
        (None, "running") => format!("an I/O over it failed{session}"),
        (None, state) => format!("its SCSI device is {state}{session}"),
    }
}

/// Keeps the times of a map without a usable path.
fn times(record: &mut MapRecord, map: &Map) {
    let (state, now, clock) = (MapState::of(map), Instant::now(), SystemTime::now());
    if let Some(since) = record.holding.take() {
        record.held += now - since;
    }
    match state {
        MapState::Holding => {
            record.pathless.get_or_insert(now);
            record.holding = Some(now);
        }
        MapState::Failing => {
            record.pathless.get_or_insert(now);
            match record.failed_io {
                Some((_, None)) => {}
                _ => record.failed_io = Some((clock, None)),
            }
        }
        // It says nothing of its paths.
        MapState::Suspended => {}
        MapState::Well | MapState::Degraded => {
            if let Some(since) = record.pathless.take() {
                let stall = now - since;
                let seconds = stall.as_secs_f64();
                let bucket = STALL_BOUNDS.iter().position(|bound| seconds <= *bound);
                record.stalls[bucket.unwrap_or(STALL_BOUNDS.len())] += 1;
                record.stalled += stall;
            }
            if let Some((_, end @ None)) = &mut record.failed_io {
                *end = Some(clock);
            }
        }
    }
    if record.state != state {
        (record.state, record.since) = (state, clock);
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
