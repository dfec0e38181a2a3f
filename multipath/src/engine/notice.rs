//! Tells whoever listens when a path of a map is lost or back. The monitor finds it; nobody is waited for, and a listener that
//! is too slow loses the oldest.

use std::collections::hash_map::Entry;

use tokio::sync::broadcast;

use super::{Engine, Map, PathView, monitor::Shared};
use crate::Wwid;

/// Notices that a slow listener may be behind.
pub(super) const BACKLOG: usize = 256;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It carries no I/O any more.
    Lost,
    /// It carries I/O again.
    Back,
}

/// A path that was lost or is back.
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
    /// Address and port of its portal; empty when the device is gone, or has none.
    pub portal: String,
    /// Usable paths of the map now.
    pub usable: usize,
    /// All paths of the map.
    pub paths: usize,
}

impl Engine {
    /// Hears of lost paths from now on. A path that is not well when the monitor first sees it counts as lost.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    pub(super) fn notice(&self, map: &Map, memory: &Shared) {
        let usable = map.paths().filter(|path| path.is_usable()).count();
        let notice = |path: &PathView, change, (device, portal): (String, String)| Notice {
            volume: map.volume.clone(),
            wwid: map.wwid.clone(),
            change,
            device: if path.name.is_empty() {
                device
            } else {
                path.name.clone()
            },
            portal: if path.portal.is_empty() {
                portal
            } else {
                path.portal.clone()
            },
            usable,
            paths: map.paths().count(),
        };
        for path in map.paths() {
            let mut memory = memory.get();
            let told = match (path.is_usable(), memory.lost.entry(path.devno)) {
                (false, Entry::Vacant(entry)) => {
                    entry.insert((path.name.clone(), path.portal.clone()));
                    Some(notice(path, Change::Lost, Default::default()))
                }
                (true, Entry::Occupied(entry)) => Some(notice(path, Change::Back, entry.remove())),
                _ => None,
            };
            if let Some(told) = told {
                // An error: nobody listens.
                let _ = self.notices.send(told);
            }
        }
    }
}
