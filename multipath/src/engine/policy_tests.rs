//! Per-volume policies and path groups on the simulated kernel.

use super::{tests::*, *};
use crate::{
    policy::{NoPathRetry, PathGrouping, PathSelector, QueueMode},
    table::MultipathTable,
};

const OPTIMIZED: u8 = 0;
const NON_OPTIMIZED: u8 = 1;
const STANDBY: u8 = 2;

/// A device with a target port group for each of its two portals, in these states.
async fn asymmetric(states: [u8; 2]) -> Lab {
    let lab = lab(2).await;
    for ((session, state), id) in lab.sessions.iter().zip(states).zip(1..) {
        lab.kernel.set_port_group(*session, id, state);
    }
    lab
}

fn table(lab: &Lab) -> MultipathTable {
    let lines = lab
        .kernel
        .host()
        .dm
        .table(&crate::names::Names::default().map_name(VOLUME))
        .unwrap();
    lines[0].params.parse().unwrap()
}

/// SCSI hosts of each group's paths: they have the numbers of their sessions.
fn hosts(map: &Map) -> Vec<Vec<u32>> {
    let host = |path: &PathView| path.hctl.parse::<Hctl>().unwrap().host;
    let group = |group: &GroupView| group.paths.iter().map(host).collect();
    map.groups.iter().map(group).collect()
}

fn of_policy(policy: Policy) -> MapSpec {
    MapSpec { policy, ..spec() }
}

#[tokio::test]
async fn paths_are_grouped_by_what_the_device_reports_best_first_and_the_array_is_told_of_a_change() {
    let lab = asymmetric([STANDBY, OPTIMIZED]).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    assert_eq!(hosts(&map), [[lab.sessions[1]], [lab.sessions[0]]]);
    assert_eq!(map.current_group, 1);
    assert_eq!(table(&lab).hardware_handler, ["alua"]);
}

#[tokio::test]
async fn one_state_is_one_group_and_needs_no_handler() {
    let lab = asymmetric([OPTIMIZED, OPTIMIZED]).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    assert_eq!(map.groups.len(), 1);
    assert!(table(&lab).hardware_handler.is_empty());
}

#[tokio::test]
async fn a_late_path_joins_the_group_of_its_state() {
    let lab = asymmetric([OPTIMIZED, NON_OPTIMIZED]).await;
    let third = lab.kernel.login(TARGET, "192.0.2.9", 3260);
    lab.kernel.set_port_group(third, 1, OPTIMIZED);
    scsi_device::scan(&lab.kernel.host(), &hctl(third), SHORT)
        .await
        .unwrap();
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let late = lab.engine.prove(hctl(third), &wwid(), SHORT).await.unwrap();
    let map = lab.engine.join(&wwid(), late).await.unwrap();
    assert_eq!(hosts(&map), [vec![lab.sessions[0], third], vec![lab.sessions[1]]]);
}

#[tokio::test]
async fn the_map_follows_an_array_that_changes_its_mind() {
    let lab = asymmetric([OPTIMIZED, NON_OPTIMIZED]).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.set_port_group(lab.sessions[0], 1, NON_OPTIMIZED);
    lab.kernel.set_port_group(lab.sessions[1], 2, OPTIMIZED);
    let begun = std::time::Instant::now();
    lab.watch("the other path is the first", |map| {
        hosts(map) == [[lab.sessions[1]], [lab.sessions[0]]]
    })
    .await;
    // The group in use still took reads and writes: no hurry.
    assert!(begun.elapsed() >= port_groups::SETTLED, "too early");
}

#[tokio::test]
async fn a_group_that_takes_no_io_any_more_is_left_without_waiting() {
    let lab = asymmetric([OPTIMIZED, NON_OPTIMIZED]).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.set_port_group(lab.sessions[0], 1, STANDBY);
    lab.watch("the path in standby is the last", |map| {
        hosts(map) == [[lab.sessions[1]], [lab.sessions[0]]]
    })
    .await;
}

#[tokio::test]
async fn a_path_that_the_kernel_failed_for_its_standby_goes_behind_the_others() {
    let lab = asymmetric([OPTIMIZED, STANDBY]).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.set_port_group(lab.sessions[1], 2, OPTIMIZED);
    lab.kernel.set_port_group(lab.sessions[0], 1, STANDBY);
    let failed = format!("fail_path {}", map.groups[0].paths[0].devno);
    lab.kernel.host().dm.message(&map.name, &failed).unwrap();
    lab.watch("it is the last, and well", |map| {
        hosts(map) == [[lab.sessions[1]], [lab.sessions[0]]] && map.paths().all(|path| path.active)
    })
    .await;
}

#[tokio::test]
async fn a_better_group_that_is_back_is_used_again_after_a_while() {
    let lab = asymmetric([OPTIMIZED, NON_OPTIMIZED]).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    lab.watch("the second group is used", |map| map.current_group == 2)
        .await;
    lab.kernel.heal(lab.sessions[0]);
    let begun = std::time::Instant::now();
    lab.watch("the first is used again", |map| map.current_group == 1)
        .await;
    assert!(begun.elapsed() >= port_groups::SETTLED, "too early");
}

#[tokio::test]
async fn a_lost_path_in_standby_is_well_again_when_its_port_answers_and_takes_no_io() {
    let lab = asymmetric([OPTIMIZED, STANDBY]).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[1], "transport-offline");
    lab.watch("it is out", |map| map.paths().any(|path| !path.active))
        .await;
    lab.kernel.heal(lab.sessions[1]);
    lab.watch("it stands by", |map| map.paths().all(|path| path.active))
        .await;
    assert_eq!(lab.map().await.current_group, 1);
}

/// Builds the map, and loses both paths; the second one comes back.
async fn lose_all_but_standby(lab: &Lab) {
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    for session in &lab.sessions {
        lab.kernel.cut(*session, "transport-offline");
    }
    lab.watch("none is usable", |map| map.paths().all(|path| !path.active))
        .await;
    lab.kernel.heal(lab.sessions[1]);
}

#[tokio::test]
async fn the_last_path_in_standby_is_used_where_the_kernel_tells_the_array() {
    let lab = asymmetric([OPTIMIZED, STANDBY]).await;
    lose_all_but_standby(&lab).await;
    lab.watch("the one that is back is", |map| {
        map.paths().any(PathView::is_usable)
    })
    .await;
}

#[tokio::test]
async fn a_path_that_is_in_standby_when_the_others_of_its_group_are_lost_gets_a_group_of_its_own() {
    let lab = asymmetric([OPTIMIZED, OPTIMIZED]).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    assert_eq!(map.groups.len(), 1);
    lab.kernel.set_port_group(lab.sessions[1], 2, STANDBY);
    let of_second = map.paths().find(|path| path.session == Some(lab.sessions[1]));
    let failed = format!("fail_path {}", of_second.unwrap().devno);
    lab.kernel.host().dm.message(&map.name, &failed).unwrap();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    lab.watch("it is used, and the array is told", |map| {
        hosts(map) == [[lab.sessions[1]], [lab.sessions[0]]]
            && map.hardware_handler == "alua"
            && map.groups[0].paths[0].is_usable()
    })
    .await;
}

#[tokio::test]
async fn the_last_path_in_standby_is_not_taken_for_a_usable_one_where_nobody_tells_the_array() {
    let lab = asymmetric([OPTIMIZED, STANDBY]).await;
    // No scsi_dh_alua.
    lab.kernel.fail_next("TABLE_LOAD", nix::libc::EINVAL);
    lose_all_but_standby(&lab).await;
    lab.engine.monitor(tokio::time::sleep(SHORT)).await;
    assert!(lab.map().await.paths().all(|path| !path.active));
    // The array makes it the active one.
    lab.kernel.set_port_group(lab.sessions[1], 2, OPTIMIZED);
    lab.watch("it carries I/O", |map| map.paths().any(PathView::is_usable))
        .await;
}

#[tokio::test]
async fn a_policy_decides_selector_groups_and_queue_mode_and_a_join_keeps_them() {
    let lab = lab(3).await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    let policy = Policy {
        selector: PathSelector::ServiceTime,
        grouping: PathGrouping::Failover,
        queue_mode: QueueMode::Bio,
        no_path_retry: NoPathRetry::Fail,
        min_paths: 1,
    };
    let map = lab.engine.build(of_policy(policy), paths).await.unwrap();
    assert_eq!(
        (map.groups.len(), map.selector.as_str(), map.queue_if_no_path),
        (2, "service-time", false)
    );
    assert_eq!(table(&lab).queue_mode(), QueueMode::Bio);
    // An engine that was not told keeps what cannot change.
    let map = Engine::new(lab.kernel.host()).join(&wwid(), late).await.unwrap();
    assert_eq!(map.paths().count(), 3);
    assert_eq!(table(&lab).queue_mode(), QueueMode::Bio);
}

#[tokio::test]
async fn a_selector_or_handler_that_the_kernel_does_not_have_is_done_without() {
    let lab = asymmetric([OPTIMIZED, STANDBY]).await;
    for _ in 0..2 {
        lab.kernel.fail_next("TABLE_LOAD", nix::libc::EINVAL);
    }
    let policy = Policy {
        selector: PathSelector::QueueLength,
        ..Policy::default()
    };
    let map = lab
        .engine
        .build(of_policy(policy), lab.proven().await)
        .await
        .unwrap();
    assert_eq!((map.selector.as_str(), map.groups.len()), ("round-robin", 2));
    assert!(table(&lab).hardware_handler.is_empty());
}

#[tokio::test]
async fn io_without_a_path_fails_at_once_or_never_if_the_policy_says_so() {
    for (retry, queues) in [(NoPathRetry::Fail, false), (NoPathRetry::Queue, true)] {
        let lab = lab(1).await;
        let policy = Policy {
            no_path_retry: retry,
            ..Policy::default()
        };
        lab.engine
            .build(of_policy(policy), lab.proven().await)
            .await
            .unwrap();
        lab.kernel.cut(lab.sessions[0], "transport-offline");
        lab.engine.monitor(tokio::time::sleep(2 * SHORT)).await;
        assert_eq!(lab.map().await.queue_if_no_path, queues);
        lab.kernel.heal(lab.sessions[0]);
        lab.watch("the path is back", |map| map.paths().all(PathView::is_usable))
            .await;
        assert_eq!(lab.map().await.queue_if_no_path, queues);
    }
}

#[tokio::test]
async fn a_path_that_comes_and_goes_is_held_down_and_the_only_one_is_not() {
    // The third stays lost: as long as a path is not well the monitor looks, without any event.
    let lab = lab(3).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[2], "transport-offline");
    let usable = |map: &Map| map.paths().filter(|path| path.is_usable()).count();
    let script = async {
        let until = async |wanted: usize| {
            while usable(&lab.map().await) != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        for loss in 1..=3 {
            until(2).await;
            lab.kernel.cut(lab.sessions[0], "transport-offline");
            until(1).await;
            // A look later the loss, or the return, is on record.
            tokio::time::sleep(SHORT).await;
            lab.kernel.heal(lab.sessions[0]);
            let back = tokio::time::timeout(2 * SHORT, until(2)).await;
            assert_eq!(back.is_ok(), loss < 3, "loss {loss}");
            tokio::time::sleep(SHORT).await;
        }
        // Its fellow is lost: there is no other any more.
        lab.kernel.cut(lab.sessions[1], "transport-offline");
        while !lab.map().await.paths().next().unwrap().is_usable() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = lab.engine.monitor(std::future::pending()) => unreachable!("it is never stopped"),
        done = tokio::time::timeout(Duration::from_secs(10), script) => done.expect("in time"),
    }
}

#[tokio::test]
async fn a_path_that_fails_whatever_it_is_given_is_tried_less_and_less_often() {
    let lab = lab(1).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let host = lab.kernel.host();
    let mut tries = 0;
    let script = async {
        loop {
            let map = lab.map().await;
            if let Some(path) = map.paths().find(|path| path.is_usable()) {
                tries += 1;
                host.dm
                    .message(&map.name, &format!("fail_path {}", path.devno))
                    .unwrap();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        () = lab.engine.monitor(tokio::time::sleep(Duration::from_secs(3))) => {}
        () = script => {}
    }
    // After 0.1, 0.2, 0.4, 0.8 and 1.6 s; with a pause that does not grow they are thirty.
    assert!((3..=8).contains(&tries), "{tries}");
}

#[tokio::test]
async fn a_path_that_slept_through_a_resize_joins_with_the_new_size() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let mut notices = lab.engine.listen();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    lab.kernel.set_lun(TARGET, LUN, &wwid(), 2 * GIB);
    assert_eq!(lab.engine.resize(&wwid(), SHORT).await.unwrap(), 2 * GIB);
    assert_eq!(
        (lab.map().await.size_bytes, lab.map().await.paths().count()),
        (2 * GIB, 1)
    );
    let told = notices.recv().await.unwrap();
    assert_eq!((told.change, told.usable), (Change::LeftOut, 1));
    lab.kernel.heal(lab.sessions[0]);
    let late = lab
        .engine
        .prove(hctl(lab.sessions[0]), &wwid(), SHORT)
        .await
        .unwrap();
    assert_eq!(late.disk().size_bytes, GIB, "the kernel has not looked");
    assert_eq!(lab.engine.join(&wwid(), late).await.unwrap().paths().count(), 2);
}
