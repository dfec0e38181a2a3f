//! The engine on the simulated kernel.

use std::time::Duration;

use super::*;
use crate::{host::sim::SimKernel, policy::NoPathRetry};

pub(super) const GIB: u64 = 1 << 30;
pub(super) const TARGET: &str = "iqn.2026-11.com.example:t";
pub(super) const LUN: u64 = 7;
pub(super) const SHORT: Duration = Duration::from_millis(300);
pub(super) const VOLUME: &str = "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";

pub(super) fn wwid() -> Wwid {
    "naa.6001405123456789abc4def812345678".parse().unwrap()
}

pub(super) fn other() -> Wwid {
    "naa.6001405ffffffffffffffffffffffff0".parse().unwrap()
}

pub(super) fn spec() -> MapSpec {
    MapSpec {
        volume: VOLUME.to_owned(),
        wwid: wwid(),
        read_only: false,
        policy: Policy {
            no_path_retry: NoPathRetry::For(SHORT),
            ..Policy::default()
        },
    }
}

pub(super) struct Lab {
    pub(super) kernel: SimKernel,
    pub(super) engine: Engine,
    pub(super) sessions: Vec<u32>,
}

/// A host with this many sessions to the volume's target, its LUN scanned on each.
pub(super) async fn lab(paths: u16) -> Lab {
    let kernel = SimKernel::new();
    kernel.set_lun(TARGET, LUN, &wwid(), GIB);
    let sessions: Vec<u32> = (0..paths)
        .map(|n| kernel.login(TARGET, &format!("192.0.2.{n}"), 3260))
        .collect();
    for session in &sessions {
        scsi_device::scan(&kernel.host(), &hctl(*session), SHORT)
            .await
            .unwrap();
    }
    Lab {
        engine: Engine::new(kernel.host()),
        kernel,
        sessions,
    }
}

pub(super) fn hctl(session: u32) -> Hctl {
    Hctl {
        host: session,
        channel: 0,
        target: 0,
        lun: LUN,
    }
}

impl Lab {
    pub(super) async fn proven(&self) -> Vec<ProvenPath> {
        let mut paths = Vec::new();
        for session in &self.sessions {
            paths.push(self.engine.prove(hctl(*session), &wwid(), SHORT).await.unwrap());
        }
        paths
    }

    pub(super) async fn map(&self) -> Map {
        self.engine
            .find(&wwid())
            .await
            .unwrap()
            .expect("the map is there")
    }

    /// Runs the monitor until the map looks as wanted.
    pub(super) async fn watch(&self, what: &str, wanted: impl Fn(&Map) -> bool) {
        let monitor = self.engine.monitor(std::future::pending());
        let seen = async {
            loop {
                if wanted(&self.map().await) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = monitor => unreachable!("it is never stopped"),
            seen = tokio::time::timeout(Duration::from_secs(10), seen) => seen.unwrap_or_else(|_| panic!("never: {what}")),
        }
    }
}

#[tokio::test]
async fn a_map_is_built_over_all_paths_and_removed_whole() {
    let lab = lab(2).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    assert_eq!(
        (map.size_bytes, map.paths().count(), map.queue_if_no_path),
        (GIB, 2, true)
    );
    assert_eq!(map.uuid, format!("storagelink-{}", wwid()));
    assert_eq!(lab.engine.find_by_volume(VOLUME).await.unwrap().unwrap(), map);
    let again = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    assert_eq!(again, map, "building again changes nothing");
    let disks = lab.engine.remove(&wwid(), SHORT).await.unwrap();
    assert_eq!(disks.len(), 2);
    assert!(lab.kernel.maps().is_empty());
    assert_eq!(
        lab.engine.remove(&wwid(), SHORT).await.unwrap(),
        [],
        "removing again is success"
    );
}

#[tokio::test]
async fn another_disk_at_the_address_is_refused() {
    let lab = lab(1).await;
    lab.kernel.set_lun(TARGET, LUN, &other(), GIB);
    let error = lab
        .engine
        .prove(hctl(lab.sessions[0]), &wwid(), SHORT)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ProveError::Mismatch { found, .. } if *found == other().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_path_joins_later_and_failed_marks_survive() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    lab.engine.build(spec(), paths).await.unwrap();
    let before = lab.map().await;
    let failed = before.paths().next().unwrap().devno;
    lab.kernel
        .host()
        .dm
        .message(&before.name, &format!("fail_path {failed}"))
        .unwrap();
    let map = lab.engine.join(&wwid(), late).await.unwrap();
    assert_eq!(map.paths().count(), 3);
    let marked: Vec<_> = map
        .paths()
        .filter(|path| !path.active)
        .map(|path| path.devno)
        .collect();
    assert_eq!(marked, [failed]);
}

#[tokio::test]
async fn no_table_is_exchanged_while_a_path_holds_io() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    lab.engine.build(spec(), paths).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "blocked");
    let error = lab.engine.join(&wwid(), late).await.unwrap_err();
    assert!(matches!(error, BuildError::PathBlocked { .. }), "{error}");
    assert_eq!(lab.map().await.paths().count(), 2);
}

#[tokio::test]
async fn a_disk_that_multipathd_took_is_refused_and_named() {
    let lab = lab(1).await;
    lab.kernel
        .foreign_map("mpatha", "mpath-36001405", hctl(lab.sessions[0]));
    let error = lab.engine.build(spec(), lab.proven().await).await.unwrap_err();
    assert!(error.to_string().contains("multipathd took it"), "{error}");
    assert_eq!(lab.kernel.maps(), ["mpatha"]);
}

#[tokio::test]
async fn a_refused_table_leaves_no_map_behind() {
    for operation in ["DEV_CREATE", "TABLE_LOAD", "RESUME"] {
        let lab = lab(2).await;
        lab.kernel.fail_next(operation, nix::libc::EINVAL);
        assert!(lab.engine.build(spec(), lab.proven().await).await.is_err());
        assert!(lab.kernel.maps().is_empty(), "{operation}");
    }
}

#[tokio::test]
async fn a_refused_swap_keeps_the_old_table_running() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    lab.engine.build(spec(), paths).await.unwrap();
    lab.kernel.fail_next("RESUME", nix::libc::EINVAL);
    assert!(lab.engine.join(&wwid(), late).await.is_err());
    let map = lab.map().await;
    assert_eq!((map.suspended, map.live_table), (false, true));
}

#[tokio::test]
async fn killed_at_any_call_the_next_process_finishes_and_nothing_is_left() {
    for calls in 0.. {
        let lab = lab(2).await;
        let proven = lab.proven().await;
        let before = lab.kernel.changes();
        lab.kernel.kill_after(calls);
        let finished =
            lab.engine.build(spec(), proven).await.is_ok() && lab.engine.remove(&wwid(), SHORT).await.is_ok();
        lab.kernel.restart();
        let engine = Engine::new(lab.kernel.host());
        engine.adopt().await.unwrap();
        if finished {
            assert_eq!(
                lab.kernel.changes() - before,
                calls,
                "the last round is the whole life"
            );
            assert!(calls >= 5, "create, load, resume, flush, remove");
            return;
        }
        let map = engine.build(spec(), lab.proven().await).await.unwrap();
        assert_eq!(
            (map.paths().count(), map.suspended),
            (2, false),
            "killed after {calls} calls"
        );
        engine.remove(&wwid(), SHORT).await.unwrap();
        assert!(lab.kernel.maps().is_empty());
    }
}

#[tokio::test]
async fn an_open_map_is_not_removed_until_it_is_closed() {
    let lab = lab(1).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.set_open_count(&map.name, 1);
    let error = lab.engine.remove(&wwid(), SHORT).await.unwrap_err();
    assert!(
        matches!(error, RemoveError::Busy { open_count: 1, .. }),
        "{error}"
    );
    let (kernel, name) = (lab.kernel.clone(), map.name.clone());
    let closing = async move {
        tokio::time::sleep(Duration::from_millis(80)).await;
        kernel.set_open_count(&name, 0);
    };
    let wwid = wwid();
    let (removed, ()) = tokio::join!(lab.engine.remove(&wwid, Duration::from_secs(5)), closing);
    assert_eq!(removed.unwrap().len(), 1);
}

#[tokio::test]
async fn a_volume_grows_when_all_its_paths_have() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
    assert_eq!(lab.map().await.size_bytes, 2 * GIB);
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
}

#[tokio::test]
async fn a_lost_path_comes_back_by_itself() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    assert_eq!(lab.map().await.paths().filter(|path| path.active).count(), 1);
    lab.kernel.heal(lab.sessions[0]);
    lab.watch("both paths are active", |map| {
        map.paths().all(PathView::is_usable)
    })
    .await;
}

#[tokio::test]
async fn a_blocked_path_is_failed_but_never_the_last_one() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "blocked");
    lab.watch("the blocked path is failed", |map| {
        map.paths().filter(|path| path.active).count() == 1
    })
    .await;
    lab.kernel.cut(lab.sessions[1], "blocked");
    let monitor = lab.engine.monitor(tokio::time::sleep(Duration::from_millis(400)));
    monitor.await;
    assert_eq!(
        lab.map().await.paths().filter(|path| path.active).count(),
        1,
        "the last path stays"
    );
}

#[tokio::test]
async fn a_path_that_came_back_as_another_disk_stays_failed() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    lab.kernel.set_lun(TARGET, LUN, &other(), GIB);
    lab.kernel.heal(lab.sessions[0]);
    lab.engine
        .monitor(tokio::time::sleep(Duration::from_millis(800)))
        .await;
    // The other path, to the same target, did not fail; it leads elsewhere all the same.
    assert_eq!(lab.map().await.paths().filter(|path| path.active).count(), 0);
}

#[tokio::test]
async fn a_map_without_a_path_holds_io_for_a_while_and_again_when_one_is_back() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    for session in &lab.sessions {
        lab.kernel.cut(*session, "transport-offline");
    }
    let begun = std::time::Instant::now();
    lab.watch("it fails its I/O", |map| !map.queue_if_no_path).await;
    assert!(begun.elapsed() >= SHORT, "too early");
    lab.kernel.heal(lab.sessions[1]);
    lab.watch("it holds its I/O again", |map| map.queue_if_no_path)
        .await;
    // One path of two: nothing is failed, however long it lasts.
    lab.engine.monitor(tokio::time::sleep(3 * SHORT)).await;
    assert!(lab.map().await.queue_if_no_path);
}

#[tokio::test]
async fn a_listener_hears_of_a_lost_path_once_and_of_its_return_once() {
    use crate::engine::Change;
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let mut notices = lab.engine.listen();
    // Before the monitor's first look: the simulated kernel sends no events that would cause another.
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    let script = async {
        let lost = notices.recv().await.unwrap();
        assert_eq!((lost.change, lost.usable, lost.paths), (Change::Lost, 1, 2));
        assert_eq!(lost.volume, VOLUME);
        assert!(!lost.portal.is_empty());
        lab.kernel.heal(lab.sessions[0]);
        let back = notices.recv().await.unwrap();
        assert_eq!((back.change, back.usable), (Change::Back, 2));
        assert_eq!((back.device, back.portal), (lost.device, lost.portal));
        let more = tokio::time::timeout(Duration::from_millis(300), notices.recv()).await;
        assert!(more.is_err(), "{more:?}");
    };
    tokio::select! {
        () = lab.engine.monitor(std::future::pending()) => unreachable!("it is never stopped"),
        done = tokio::time::timeout(Duration::from_secs(10), script) => done.expect("in time"),
    }
}
