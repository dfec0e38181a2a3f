//! Watches the maps: fails paths whose device is blocked, and puts paths back to work that can carry I/O again.
//!
//! Sleeps until the kernel tells of an event. While some path is not well it looks at sysfs every [`REPAIR_LOOK`]: the states of SCSI
//! devices and iSCSI sessions are told by no event. Healthy paths are only seen by the slow [`SWEEP`]. A path comes back only after a TEST UNIT
//! READY and a fresh proof of its identity; the last usable path is never failed on suspicion.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{Engine, Map, PathView, ProveError, uevent::Uevents};
use crate::{Hctl, Wwid, host::DevNo, worker};

/// How often the devices of paths that are not well are looked at.
pub const REPAIR_LOOK: Duration = Duration::from_millis(100);
/// How often everything is looked at without a reason.
const SWEEP: Duration = Duration::from_secs(30);
/// Time for one check of a path. A device that answers at all answers in milliseconds.
const CHECK: Duration = Duration::from_secs(5);
/// How long a path that failed its check is left alone.
const RECHECK: Duration = Duration::from_millis(500);
/// Checks that run at once.
const CHECKS: usize = 32;

/// What the monitor remembers between looks. Losing it costs nothing but a repeated check or log line.
#[derive(Default)]
struct Memory {
    /// Paths whose check runs now.
    checking: HashSet<DevNo>,
    /// Paths that are left alone until then.
    not_before: HashMap<DevNo, Instant>,
}

type Shared = Arc<Mutex<Memory>>;

impl Engine {
    /// Watches until `stop` is done.
    pub async fn monitor(&self, stop: impl Future<Output = ()> + Send) {
        let uevents = match Uevents::open() {
            Ok(uevents) => Some(uevents),
            Err(error) => {
                tracing::warn!(%error, "no kernel events here: paths are looked at on a timer only");
                None
            }
        };
        let memory = Shared::default();
        tokio::pin!(stop);
        loop {
            let well = self.look(&memory).await;
            let pause = match (&uevents, well) {
                (_, false) => REPAIR_LOOK,
                (Some(_), true) => SWEEP,
                (None, true) => Duration::from_secs(1),
            };
            let event = async {
                match &uevents {
                    Some(uevents) => uevents.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(pause) => {}
                event = event => if let Err(error) = event {
                    tracing::warn!(%error, "reading kernel events");
                    // A socket that is always ready with an error must not spin.
                    tokio::time::sleep(REPAIR_LOOK).await;
                }
            }
        }
    }

    /// One look at all maps. True when every path of every map is well.
    async fn look(&self, memory: &Shared) -> bool {
        let maps = match self.maps().await {
            Ok(maps) => maps,
            Err(error) => {
                tracing::warn!(%error, "cannot read the maps");
                return true;
            }
        };
        let mut well = true;
        for map in maps.iter().filter(|map| !map.suspended) {
            for path in map.paths() {
                match (path.active, path.device_state.as_str()) {
                    (true, "running") => {}
                    (true, _) => {
                        well = false;
                        self.suspect(map, path).await;
                    }
                    (false, "running") => {
                        well = false;
                        self.check(map, path, memory);
                    }
                    // Its device says when it is back.
                    (false, _) => well = false,
                }
            }
        }
        well
    }

    /// Keeps new I/O off a path whose device is not running, if another can take it.
    async fn suspect(&self, map: &Map, path: &PathView) {
        let others = map
            .paths()
            .any(|other| other.devno != path.devno && other.is_usable());
        if !others {
            return;
        }
        tracing::warn!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
            portal = path.portal, state = path.device_state, "path is not running: failed");
        if let Err(error) = self.message(map, format!("fail_path {}", path.devno)).await {
            tracing::warn!(dm.name = map.name, path = %path.devno, error, "cannot fail the path");
        }
    }

    /// Starts a check of a failed path whose device is running again, unless one runs or failed just now.
    fn check(&self, map: &Map, path: &PathView, memory: &Shared) {
        {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            if memory
                .not_before
                .get(&path.devno)
                .is_some_and(|until| Instant::now() < *until)
                || memory.checking.len() >= CHECKS
                || !memory.checking.insert(path.devno)
            {
                return;
            }
        }
        let (engine, map, path, memory) = (self.clone(), map.clone(), path.clone(), memory.clone());
        tokio::spawn(async move {
            let reinstated = engine.reinstate(&map, &path).await;
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.checking.remove(&path.devno);
            if reinstated {
                memory.not_before.remove(&path.devno);
            } else {
                memory.not_before.insert(path.devno, Instant::now() + RECHECK);
            }
        });
    }

    /// True when the path carries I/O again.
    async fn reinstate(&self, map: &Map, path: &PathView) -> bool {
        match self.proves_itself(&map.wwid, path).await {
            Ok(()) => {}
            Err(error @ ProveError::Mismatch { .. }) => {
                tracing::error!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, %error,
                    "the path leads to another disk now: it stays failed");
                return false;
            }
            Err(error) => {
                tracing::debug!(dm.name = map.name, path = %path.devno, error = full(&error), "path is not ready");
                return false;
            }
        }
        match self.message(map, format!("reinstate_path {}", path.devno)).await {
            Ok(()) => {
                tracing::info!(dm.name = map.name, wwid = %map.wwid, path = %path.devno, device = path.name, hctl = path.hctl,
                    portal = path.portal, "path reinstated");
                true
            }
            Err(error) => {
                tracing::warn!(dm.name = map.name, path = %path.devno, error, "cannot reinstate the path");
                false
            }
        }
    }

    /// TEST UNIT READY, which also takes the unit attentions of a reset, then the identity.
    async fn proves_itself(&self, wwid: &Wwid, path: &PathView) -> Result<(), ProveError> {
        let Ok(hctl) = path.hctl.parse::<Hctl>() else {
            return Err(ProveError::Gone { devno: path.devno });
        };
        let (host, name) = (self.host.clone(), path.name.clone());
        worker::run("check-path", CHECK, move || {
            for _ in 0..super::UNIT_ATTENTIONS {
                match host.scsi.test_unit_ready(&name) {
                    Err(error) if error.is_unit_attention() => {}
                    other => return other,
                }
            }
            Ok(())
        })
        .await?
        .map_err(|source| ProveError::Inquiry {
            hctl,
            device: path.name.clone(),
            source,
        })?;
        self.prove(hctl, wwid, CHECK).await.map(drop)
    }

    async fn message(&self, map: &Map, message: String) -> Result<(), String> {
        let guard = self.lock(&map.wwid).await;
        let (host, name) = (self.host.clone(), map.name.clone());
        worker::run("message-map", CHECK, move || {
            let _held = guard;
            host.dm.message(&name, &message)
        })
        .await
        .map_err(|error| full(&error))?
        .map_err(|error| full(&error))
    }
}

/// An error and its causes in one line.
fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
