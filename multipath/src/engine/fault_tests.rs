//! The engine on the simulated kernel when calls fail, hang or are cut short.

use super::{tests::*, *};
use crate::host::sim::SimKernel;

/// Enough for a look of the monitor and what it starts.
const LOOKS: Duration = Duration::from_millis(800);

#[tokio::test]
async fn a_swap_that_was_interrupted_does_not_leave_the_new_table_behind() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    lab.engine.build(spec(), paths).await.unwrap();
    lab.kernel.fail_next("RESUME", nix::libc::EINTR);
    assert!(lab.engine.join(&wwid(), late.clone()).await.is_err());
    let map = lab.map().await;
    assert_eq!(
        (map.suspended, map.inactive_table, map.paths().count()),
        (false, false, 2)
    );
    assert_eq!(
        lab.engine.join(&wwid(), late).await.unwrap().paths().count(),
        3,
        "and the next try works"
    );
}

#[tokio::test]
async fn a_refused_table_that_comes_in_all_the_same_does_not_revive_failed_paths() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    let map = lab.engine.build(spec(), paths).await.unwrap();
    let failed = map.paths().next().unwrap().devno;
    let message = format!("fail_path {failed}");
    lab.kernel.host().dm.message(&map.name, &message).unwrap();
    // The swap is refused, its table cannot be cleared, and the resume that brings the old one back brings in the new one.
    lab.kernel.fail_next("RESUME", nix::libc::EINTR);
    lab.kernel.fail_next("TABLE_CLEAR", nix::libc::ENOMEM);
    assert!(lab.engine.join(&wwid(), late).await.is_err());
    let map = lab.map().await;
    assert_eq!((map.suspended, map.paths().count()), (false, 3));
    let failed_now: Vec<_> = map.paths().filter(|path| !path.active).collect();
    assert_eq!(failed_now.len(), 1);
    assert_eq!(failed_now[0].devno, failed);
}

#[tokio::test]
async fn a_volume_without_any_disk_does_not_grow_by_a_word() {
    let lab = lab(1).await;
    let paths = lab.proven().await;
    lab.engine.build(spec(), paths.clone()).await.unwrap();
    scsi_device::delete(lab.engine.host(), paths[0].disk()).unwrap();
    let error = lab.engine.resize(&wwid(), SHORT).await.unwrap_err();
    assert!(matches!(error, BuildError::NoPath { .. }), "{error}");
}

#[tokio::test]
async fn a_map_that_is_there_is_built_again_over_paths_of_which_one_knows_the_new_size() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    rescan(&lab, 1);
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    assert_eq!((map.size_bytes, map.paths().count()), (GIB, 2));
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
}

#[tokio::test]
async fn killed_at_any_call_of_a_join_the_map_goes_on_and_the_path_joins() {
    for calls in 0.. {
        let lab = lab(3).await;
        let mut paths = lab.proven().await;
        let late = paths.pop().unwrap();
        lab.engine.build(spec(), paths).await.unwrap();
        lab.kernel.kill_after(calls);
        let finished = lab.engine.join(&wwid(), late).await.is_ok();
        lab.kernel.restart();
        let engine = Engine::new(lab.kernel.host());
        let adopted = engine.adopt().await.unwrap();
        assert_eq!(
            (adopted[0].suspended, adopted[0].inactive_table),
            (false, false),
            "killed after {calls} calls"
        );
        let late = engine.prove(hctl(lab.sessions[2]), &wwid(), SHORT).await.unwrap();
        assert_eq!(engine.join(&wwid(), late).await.unwrap().paths().count(), 3);
        if finished {
            assert!(calls >= 2, "load, resume");
            return;
        }
    }
}

#[tokio::test]
async fn a_disk_that_was_replaced_after_its_proof_is_not_used() {
    let lab = lab(1).await;
    let proven = lab.proven().await;
    scsi_device::delete(lab.engine.host(), proven[0].disk()).unwrap();
    scsi_device::scan(lab.engine.host(), &hctl(lab.sessions[0]), SHORT)
        .await
        .unwrap();
    let error = lab.engine.build(spec(), proven).await.unwrap_err();
    assert!(matches!(error, BuildError::Gone { .. }), "{error}");
    assert!(lab.kernel.maps().is_empty());
}

#[tokio::test]
async fn a_path_that_is_shorter_than_the_map_is_refused_a_longer_one_waits_for_the_resize() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let (longer, _) = (paths.pop().unwrap(), paths.pop().unwrap());
    lab.engine.build(spec(), paths).await.unwrap();

    lab.kernel.set_lun(TARGET, LUN, &wwid(), GIB / 2);
    rescan(&lab, 1);
    let shorter = lab
        .engine
        .prove(hctl(lab.sessions[1]), &wwid(), SHORT)
        .await
        .unwrap();
    let error = lab.engine.join(&wwid(), shorter).await.unwrap_err();
    assert!(matches!(error, BuildError::Sizes { .. }), "{error}");

    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    rescan(&lab, 2);
    let map = lab.engine.join(&wwid(), longer).await.unwrap();
    assert_eq!((map.size_bytes, map.paths().count()), (GIB, 2));
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
}

fn rescan(lab: &Lab, session: usize) {
    let path = format!("class/scsi_device/{}/device/rescan", hctl(lab.sessions[session]));
    lab.engine.host().sysfs.write(&path, "1").unwrap();
}

#[tokio::test]
async fn a_volume_grows_past_a_disk_that_is_gone() {
    let lab = lab(2).await;
    let paths = lab.proven().await;
    lab.engine.build(spec(), paths.clone()).await.unwrap();
    scsi_device::delete(lab.engine.host(), paths[0].disk()).unwrap();
    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
    assert_eq!(lab.map().await.paths().count(), 1);
}

#[tokio::test]
async fn a_volume_does_not_grow_while_a_path_holds_io_and_does_afterwards() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "blocked");
    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    let error = lab.engine.resize(&wwid(), SHORT).await.unwrap_err();
    assert!(error.to_string().contains("is blocked"), "{error}");
    assert_eq!(lab.map().await.size_bytes, GIB);
    lab.kernel.heal(lab.sessions[0]);
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
}

#[tokio::test]
async fn a_map_is_made_writable_when_it_is_wanted_so() {
    let lab = lab(1).await;
    let read_only = MapSpec {
        read_only: true,
        ..spec()
    };
    assert!(
        lab.engine
            .build(read_only, lab.proven().await)
            .await
            .unwrap()
            .read_only
    );
    assert!(
        !lab.engine
            .build(spec(), lab.proven().await)
            .await
            .unwrap()
            .read_only
    );
}

#[tokio::test]
async fn a_hanging_change_of_one_map_keeps_nobody_for_ever() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let late = lab.proven().await.pop().unwrap();
    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    lab.kernel.hang("RESUME");
    let error = lab.engine.resize(&wwid(), SHORT).await.unwrap_err();
    assert!(
        matches!(error, BuildError::Worker(WorkerError::Deadline { .. })),
        "{error}"
    );
    let error = lab.engine.remove(&wwid(), SHORT).await.unwrap_err();
    assert!(
        error.to_string().contains("an earlier change of this map"),
        "{error}"
    );
    assert!(
        lab.engine.find(&wwid()).await.unwrap().is_some(),
        "looking is free"
    );
    assert_eq!(lab.kernel.release("RESUME"), 1);
    lab.engine.join(&wwid(), late).await.unwrap();
    assert_eq!(lab.map().await.size_bytes, 2 * GIB);
}

#[tokio::test]
async fn a_map_without_paths_is_removed_without_waiting_for_one() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    for session in &lab.sessions {
        lab.kernel.cut(*session, "transport-offline");
    }
    assert_eq!(lab.engine.remove(&wwid(), SHORT).await.unwrap().len(), 2);
    assert!(lab.kernel.maps().is_empty());
}

#[tokio::test]
async fn a_flush_that_loses_its_last_path_ends_and_the_map_queues_again() {
    let lab = lab(1).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    // The device says nothing of it yet: only the target has failed the path between the look and the flush.
    let map = lab.map().await;
    let devno = map.paths().next().unwrap().devno;
    let (kernel, name) = (lab.kernel.clone(), map.name.clone());
    kernel.hang("FLUSH");
    let failing = async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let message = format!("fail_path {devno}");
        kernel.host().dm.message(&name, &message).unwrap();
        kernel.release("FLUSH");
    };
    let wwid = wwid();
    let (removed, ()) = tokio::join!(lab.engine.remove(&wwid, SHORT), failing);
    let error = removed.unwrap_err();
    assert!(
        matches!(error, RemoveError::Worker(WorkerError::Deadline { .. })),
        "{error}"
    );
    assert!(lab.map().await.queue_if_no_path);
    assert_eq!(
        lab.engine.remove(&wwid, SHORT).await.unwrap().len(),
        1,
        "and the next try ends it"
    );
}

#[tokio::test]
async fn one_hanging_check_is_all_that_a_path_gets() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    lab.kernel.heal(lab.sessions[0]);
    lab.kernel.hang("SG_IO");
    lab.engine.monitor(tokio::time::sleep(2 * LOOKS)).await;
    // The failed path's check, and the other's proof of its identity.
    assert_eq!(lab.kernel.release("SG_IO"), 2);
    lab.watch("both paths are active", |map| {
        map.paths().all(PathView::is_usable)
    })
    .await;
}

#[tokio::test]
async fn a_path_is_failed_although_a_change_of_its_map_hangs_on_another() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    let map = lab.engine.build(spec(), paths.clone()).await.unwrap();
    // The join asks the paths of the map what they are, and one gives no answer.
    let silent = paths[1].disk().name.clone();
    lab.kernel.hang(&format!("SG_IO {silent}"));
    let (engine, identity) = (lab.engine.clone(), wwid());
    let joining = tokio::spawn(async move { engine.join(&identity, late).await });
    lab.kernel.cut(lab.sessions[0], "blocked");
    let blocked = map.paths().next().unwrap().devno;
    lab.watch("the blocked path is failed", |map| {
        map.paths().any(|path| path.devno == blocked && !path.active)
    })
    .await;
    lab.kernel.release(&format!("SG_IO {silent}"));
    // Its table is exchanged when nothing is stuck any more.
    lab.kernel.heal(lab.sessions[0]);
    drop(joining.await);
}

#[test]
fn a_path_that_was_exchanged_while_it_waited_for_its_turn_is_not_used() {
    const ELSEWHERE: &str = "iqn.2026-11.com.example:u";
    crate::worker::virtual_time::run(async {
        let lab = lab(2).await;
        let mut paths = lab.proven().await;
        let second = paths.pop().unwrap();
        lab.engine.build(spec(), paths).await.unwrap();
        lab.kernel.set_lun(ELSEWHERE, LUN, &wwid(), GIB);
        let session = lab.kernel.login(ELSEWHERE, "192.0.2.9", 3260);
        scsi_device::scan(&lab.kernel.host(), &hctl(session), SHORT)
            .await
            .unwrap();
        let third = lab.engine.prove(hctl(session), &wwid(), SHORT).await.unwrap();

        lab.kernel.hang("RESUME");
        let join = |path: ProvenPath| {
            let engine = lab.engine.clone();
            tokio::spawn(async move { engine.join(&wwid(), path).await })
        };
        let (first, waiting) = (join(second), join(third));
        tokio::time::sleep(Duration::from_secs(3)).await;
        lab.kernel.set_lun(ELSEWHERE, LUN, &other(), GIB);
        lab.kernel.tick();
        lab.kernel.release("RESUME");
        first.await.unwrap().unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert!(matches!(error, BuildError::Gone { .. }), "{error}");
        assert_eq!(lab.map().await.paths().count(), 2);
        assert!(
            lab.kernel.violations().is_empty(),
            "{:?}",
            lab.kernel.violations()
        );
    });
}

#[tokio::test]
async fn a_path_whose_disk_is_gone_is_failed() {
    let lab = lab(2).await;
    let paths = lab.proven().await;
    lab.engine.build(spec(), paths.clone()).await.unwrap();
    scsi_device::delete(lab.engine.host(), paths[0].disk()).unwrap();
    lab.watch("the path is failed", |map| {
        map.paths()
            .any(|path| path.device_state == "gone" && !path.active)
    })
    .await;
}

#[tokio::test]
async fn the_connection_of_a_portal_that_does_not_answer_is_ended_and_its_paths_come_back() {
    for fault in [SimKernel::silence, SimKernel::unplug] {
        let lab = lab(2).await;
        lab.engine.build(spec(), lab.proven().await).await.unwrap();
        fault(&lab.kernel, lab.sessions[0]);
        lab.watch("the path of the dead connection is out", |map| {
            map.paths().filter(|path| path.is_usable()).count() == 1
        })
        .await;
        assert_eq!(lab.engine.connections_ended(), 1);
        lab.kernel.heal(lab.sessions[0]);
        lab.watch("both paths are active", |map| {
            map.paths().all(PathView::is_usable)
        })
        .await;
    }
}

#[tokio::test]
async fn a_connection_is_not_ended_that_carries_the_last_path_or_what_is_not_ours() {
    // Both portals are silent: it may be this host that is slow.
    let both = lab(2).await;
    both.engine.build(spec(), both.proven().await).await.unwrap();
    both.sessions
        .iter()
        .for_each(|session| both.kernel.silence(*session));

    // The other path is failed already.
    let last = lab(2).await;
    let map = last.engine.build(spec(), last.proven().await).await.unwrap();
    let failed = map.paths().next().unwrap().devno;
    let dm = last.kernel.host().dm;
    last.kernel.cut(last.sessions[0], "transport-offline");
    last.kernel.silence(last.sessions[1]);
    assert!(dm.message(&map.name, &format!("fail_path {failed}")).is_ok());

    // A disk of the session is in no map of ours.
    let shared = lab(2).await;
    shared.engine.build(spec(), shared.proven().await).await.unwrap();
    shared.kernel.set_lun(TARGET, 99, &other(), GIB);
    let foreign = Hctl {
        lun: 99,
        ..hctl(shared.sessions[0])
    };
    scsi_device::scan(&shared.kernel.host(), &foreign, SHORT)
        .await
        .unwrap();
    shared.kernel.silence(shared.sessions[0]);

    for (lab, usable) in [(both, 2), (last, 1), (shared, 2)] {
        lab.engine.monitor(tokio::time::sleep(LOOKS)).await;
        assert_eq!(
            lab.map().await.paths().filter(|path| path.is_usable()).count(),
            usable
        );
    }
}

#[tokio::test]
async fn a_lun_that_was_exchanged_under_a_path_that_never_failed_gets_no_io() {
    let lab = lab(2).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let mut notices = lab.engine.listen();
    // Both paths lead to one target: both lead elsewhere.
    lab.kernel.set_lun(TARGET, LUN, &other(), GIB);
    lab.watch("no path is usable", |map| map.paths().all(|path| !path.active))
        .await;
    assert_eq!(
        notices.recv().await.unwrap().change,
        crate::engine::Change::Misled
    );
    assert!(map.queue_if_no_path);
    lab.kernel.set_lun(TARGET, LUN, &wwid(), GIB);
    lab.watch("both are the volume's again", |map| {
        map.paths().filter(|path| path.is_usable()).count() == map.paths().count()
    })
    .await;
}

#[tokio::test]
async fn one_exchanged_path_of_two_leaves_the_map_and_its_device_goes() {
    const ELSEWHERE: &str = "iqn.2026-11.com.example:u";
    let lab = lab(1).await;
    lab.kernel.set_lun(ELSEWHERE, LUN, &wwid(), GIB);
    let second = lab.kernel.login(ELSEWHERE, "192.0.2.9", 3260);
    scsi_device::scan(&lab.kernel.host(), &hctl(second), SHORT)
        .await
        .unwrap();
    let mut paths = lab.proven().await;
    paths.push(lab.engine.prove(hctl(second), &wwid(), SHORT).await.unwrap());
    lab.engine.build(spec(), paths).await.unwrap();
    lab.kernel.set_lun(ELSEWHERE, LUN, &other(), GIB);
    lab.watch("one path is left", |map| {
        map.paths().count() == 1 && map.paths().all(PathView::is_usable)
    })
    .await;
    // The swap is done, the device goes next.
    lab.watch("its device is gone", |_| {
        !lab.kernel.disks().contains(&hctl(second))
    })
    .await;
}

#[tokio::test]
async fn io_that_a_session_would_hold_for_minutes_is_freed_and_the_path_joins_again() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let mut notices = lab.engine.listen();
    lab.kernel.cut(lab.sessions[0], "blocked");
    lab.watch("its device is gone", |map| {
        map.paths()
            .any(|path| path.device_state == "gone" && !path.active)
    })
    .await;
    while notices.recv().await.unwrap().change != Change::LeftOut {}
    lab.kernel.heal(lab.sessions[0]);
    scsi_device::scan(lab.engine.host(), &hctl(lab.sessions[0]), SHORT)
        .await
        .unwrap();
    let again = lab
        .engine
        .prove(hctl(lab.sessions[0]), &wwid(), SHORT)
        .await
        .unwrap();
    let map = lab.engine.join(&wwid(), again).await.unwrap();
    assert!(map.paths().count() == 2 && map.paths().all(PathView::is_usable));
}

#[tokio::test]
async fn the_only_path_is_not_freed_of_its_io() {
    let lab = lab(1).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "blocked");
    lab.engine.monitor(tokio::time::sleep(3 * SHORT)).await;
    assert_eq!(lab.map().await.paths().next().unwrap().device_state, "blocked");
}

#[tokio::test]
async fn a_disk_that_cannot_be_opened_yet_is_waited_for() {
    let lab = lab(1).await;
    let session = lab.kernel.login(TARGET, "192.0.2.9", 3260);
    for _ in 0..3 {
        lab.kernel.fail_next("SG_IO", nix::libc::ENXIO);
    }
    let found = lab.engine.scan(hctl(session), &wwid(), SHORT).await.unwrap();
    assert_eq!(found.disk.hctl, hctl(session));
    assert_eq!(found.proof.unwrap().disk(), &found.disk);
}
