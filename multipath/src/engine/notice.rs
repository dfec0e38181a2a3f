//! Tells whoever listens when a path of a map is lost or back. The monitor finds it; nobody is waited for, and a listener that
//! is too slow loses the oldest.

use std::collections::hash_map::Entry;

use tokio::{sync::broadcast, time::Instant};

use super::{Engine, Map, MapState, PathView, flapping::Losses, monitor::Shared};
use crate::{Wwid, policy::NoPathRetry};

/// Notices that a slow listener may be behind.
pub(super) const BACKLOG: usize = 256;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It carries no I/O any more.
    Lost,
    /// It carries I/O again.
    Back,
    /// It leads to another disk; no I/O goes to it.
    Misled,
    /// It is down and out of the map, because it held the others up: I/O that it had taken, or the volume's growth.
    LeftOut,
    /// No path of the map was usable for too long: its I/O fails. Of the map, not of a path.
    Failing,
    /// The map carries I/O again after it had failed some. Of the map, not of a path.
    Recovered,
}

/// A path that was lost, is back, leads elsewhere, or was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The volume's id, as in the map's name.
    pub volume: String,
    /// Its identity.
    pub wwid: Wwid,
    /// What became of the path.
    pub change: Change,
    /// Kernel name of the path's device; empty when the device is gone.
    pub device: String,
    /// Address and port of its portal, or the WWPN of its remote port; empty when the device is gone, or has neither.
    pub portal: String,
    /// Usable paths of the map now.
    pub usable: usize,
    /// All paths of the map.
    pub paths: usize,
    /// What becomes of its I/O without a usable path.
    pub no_path_retry: NoPathRetry,
}

impl Engine {
    /// Hears of lost paths from now on. A path that is not well when the monitor first sees it counts as lost.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Tells of one path now.
    pub(super) fn tell(&self, map: &Map, path: &PathView, change: Change) {
        // An error: nobody listens.
        let _ = self.notices.send(self.of(map, path, change, Default::default()));
    }

    pub(super) fn notice(&self, map: &Map, memory: &Shared) {
        self.notice_map(map);
        for path in map.paths() {
            let now = Instant::now();
            let mut guard = memory.get();
            let memory = &mut *guard;
            let told = match (path.is_usable(), memory.lost.entry(path.devno)) {
                (false, Entry::Vacant(entry)) => {
                    entry.insert((path.name.clone(), path.portal.clone()));
                    let losses = memory.losses.get(&path.devno);
                    let losses = losses.map_or_else(|| Losses::first(now), |before| before.again(now));
                    memory.losses.insert(path.devno, losses);
                    Some(self.of(map, path, Change::Lost, Default::default()))
                }
                (true, Entry::Occupied(entry)) => Some(self.of(map, path, Change::Back, entry.remove())),
                _ => None,
            };
            if let Some(told) = told {
                // An error: nobody listens.
                let _ = self.notices.send(told);
            }
        }
    }

    /// Notes how the map is; tells when its I/O begins to fail, and when it no longer does.
    fn notice_map(&self, map: &Map) {
        let change = match self.ledger.saw(&self.host, map) {
            Some((_, MapState::Failing)) => Change::Failing,
            Some((MapState::Failing, MapState::Well | MapState::Degraded)) => Change::Recovered,
            _ => return,
        };
        // An error: nobody listens.
        let _ = self.notices.send(self.of_map(map, change));
    }

    /// What is told of the map itself, and of any of its paths.
    fn of_map(&self, map: &Map, change: Change) -> Notice {
        Notice {
            volume: map.volume.clone(),
            wwid: map.wwid.clone(),
            change,
            device: String::new(),
            portal: String::new(),
            usable: map.paths().filter(|path| path.is_usable()).count(),
            paths: map.paths().count(),
            no_path_retry: self.policy(&map.wwid).no_path_retry,
        }
    }

    /// `names`: of device and portal, where they are not known any more.
    fn of(&self, map: &Map, path: &PathView, change: Change, names: (String, String)) -> Notice {
        let or = |name: &String, known: String| if name.is_empty() { known } else { name.clone() };
        let out = matches!(change, Change::Misled | Change::LeftOut);
        let usable = |other: &&PathView| other.is_usable() && !(out && other.devno == path.devno);
        Notice {
            device: or(&path.name, names.0),
            portal: or(&path.portal, names.1),
            usable: map.paths().filter(usable).count(),
            ..self.of_map(map, change)
        }
    }
}
