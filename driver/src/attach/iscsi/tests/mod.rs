//! What a node's administrator and its pods would see of attach and detach, on a simulated node.

mod kernel;
mod killed;
mod shared;
mod world;

use std::time::{Duration, Instant};

use storagelink_multipath::{
    Hctl, ProvenPath,
    engine::PROOF,
    scsi_device::{self, ScsiDisk},
};
use tonic::Code;

use super::{AttachError, Attached, PortalError};
use crate::{codes::chain, publish_context::Portal};
use kernel::SIZE;
use world::{Login, OTHER, WWID, World, other_volume, portal, until, volume};

const LONG: Duration = Duration::from_secs(30);

/// What the paths lead to.
fn disks(attached: &Attached) -> Vec<ScsiDisk> {
    let disk = |path: &ProvenPath| path.disk().clone();
    attached.paths.iter().map(disk).collect()
}

#[tokio::test]
async fn two_portals_are_logged_in_to_at_once_and_taken_away_again() {
    let (a, b) = (portal("192.0.2.1:3260"), portal("[2001:db8::1]:3260"));
    let world = World::new(&[&a, &b]);
    for p in [&a, &b] {
        world
            .state()
            .portals
            .insert(p.address, Login::After(Duration::from_millis(200)));
    }
    let initiator = world.initiator();
    let attached = initiator
        .attach(&volume(&[&a, &b]), LONG)
        .await
        .expect("attaches");
    assert_eq!((attached.paths.len(), attached.missing.len()), (2, 0));
    assert_eq!(world.state().logging_in.1, 2, "the logins ran side by side");
    assert_eq!(world.left(), (2, 2, 2, 2));

    // Once more: everything is there, and no program is started.
    let before = world.state().calls.len();
    assert_eq!(
        initiator
            .attach(&volume(&[&a, &b]), LONG)
            .await
            .expect("attaches")
            .paths
            .len(),
        2
    );
    assert_eq!((world.state().calls.len(), world.left()), (before, (2, 2, 2, 2)));

    let disks = disks(&attached);
    initiator.detach(&disks, None).await.expect("detaches");
    assert_eq!(world.left(), (0, 0, 0, 0));
    initiator
        .detach(&disks, Some(&volume(&[&a, &b])))
        .await
        .expect("is gone already");
}

#[tokio::test]
async fn a_dead_portal_costs_a_path_and_no_time() {
    let (a, dead) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&a]);
    let attached = world
        .initiator()
        .attach(&volume(&[&a, &dead]), LONG)
        .await
        .expect("attaches");
    assert_eq!(attached.paths.len(), 1);
    let (missing, error) = &attached.missing[0];
    assert_eq!(*missing, dead);
    assert!(matches!(error, PortalError::Unreachable { .. }), "{error}");
    assert_eq!(world.left(), (1, 1, 1, 1));
    assert_eq!(world.calls(&dead, ""), 0, "open-iscsi never hears of it");
}

#[tokio::test]
async fn without_any_portal_the_error_names_each_and_nothing_is_left() {
    let (closed, refuses) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&refuses]);
    world.state().portals.insert(refuses.address, Login::Fails(24));
    let error = world
        .initiator()
        .attach(&volume(&[&closed, &refuses]), LONG)
        .await
        .expect_err("no path");
    let text = error.to_string();
    for part in [
        WWID,
        "LUN 0",
        "192.0.2.1:3260",
        "unreachable",
        "192.0.2.2:3260",
        "authorize",
        "exit code 24: why",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(error.code(), Code::Unavailable, "the closed portal may come back");
    assert_eq!(world.left(), (0, 0, 0, 0));
    let error = world
        .initiator()
        .attach(&volume(&[&refuses]), LONG)
        .await
        .expect_err("no path");
    assert_eq!(error.code(), Code::Unauthenticated);
    let error = world
        .initiator()
        .attach(&volume(&[]), LONG)
        .await
        .expect_err("no portal");
    assert!(matches!(error, AttachError::NoPortals));
}

#[tokio::test]
async fn a_target_without_the_lun_is_told_and_let_go_of() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    world.kernel.sim.remove_lun(world::TARGET, 0);
    let error = world
        .initiator()
        .attach(&volume(&[&a]), LONG)
        .await
        .expect_err("no LUN");
    assert!(error.to_string().contains("presents no LUN 0"), "{error}");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(world.left(), (0, 0, 0, 0));
}

#[tokio::test]
async fn another_disk_at_the_lun_is_refused_and_not_kept() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    world.kernel.present(0, OTHER, SIZE);
    let error = world
        .initiator()
        .attach(&volume(&[&a]), LONG)
        .await
        .expect_err("wrong disk");
    let text = error.to_string();
    assert!(text.contains(WWID) && text.contains(OTHER), "{text}");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(world.left(), (0, 0, 0, 0));
}

#[tokio::test]
async fn the_administrators_session_is_used_and_left_alone() {
    let (a, b) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&a, &b]);
    world.administrator(&a);
    let initiator = world.initiator();
    let attached = initiator
        .attach(&volume(&[&a, &b]), LONG)
        .await
        .expect("attaches");
    assert_eq!(attached.paths.len(), 2);
    initiator
        .detach(&[], Some(&volume(&[&a, &b])))
        .await
        .expect("detaches");
    initiator.sweep().await.expect("sweeps");
    assert_eq!(world.calls(&a, ""), 0, "nothing was asked of open-iscsi for it");
    assert_eq!(
        world.left(),
        (1, 0, 1, 0),
        "the administrator's session and entry"
    );
    assert!(world.kernel.session_of(&a, None).is_some());
}

#[tokio::test]
async fn an_entry_of_the_administrator_is_logged_in_with_and_kept() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    world.administrator(&a);
    world
        .kernel
        .sim
        .logout(world.kernel.session_of(&a, None).expect("a session"));
    let initiator = world.initiator();
    initiator.attach(&volume(&[&a]), LONG).await.expect("attaches");
    assert_eq!((world.calls(&a, "-o"), world.calls(&a, "-l")), (0, 1));
    initiator
        .detach(&[], Some(&volume(&[&a])))
        .await
        .expect("detaches");
    assert_eq!(world.left(), (0, 0, 1, 0));
}

#[tokio::test]
async fn a_shared_session_outlives_the_volume_that_leaves_first() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    let initiator = world.initiator();
    initiator.attach(&volume(&[&a]), LONG).await.expect("attaches");
    // The other volume is in the middle of its scan, so its device is not there yet, while the first one leaves.
    let hold = world.kernel.hold_scans();
    let staging = tokio::spawn({
        let (initiator, context) = (initiator.clone(), other_volume(&[&a]));
        async move { initiator.attach(&context, LONG).await }
    });
    until("the scan begins", || world.kernel.scans() == 2).await;
    initiator
        .detach(&[], Some(&volume(&[&a])))
        .await
        .expect("detaches");
    assert_eq!(world.left(), (1, 0, 1, 1));
    drop(hold);
    let attached = staging.await.expect("no panic").expect("attaches");
    assert_eq!(disks(&attached)[0].hctl.lun, 1);
    initiator
        .detach(&[], Some(&other_volume(&[&a])))
        .await
        .expect("detaches");
    assert_eq!(world.left(), (0, 0, 0, 0));
}

/// Leaves a device of [`OTHER`] behind at the address of LUN 0.
async fn leftover(world: &World, a: &Portal) -> ScsiDisk {
    world.administrator(a);
    let host = world.kernel.session_of(a, None).expect("a session");
    world.kernel.present(0, OTHER, 4 * SIZE);
    let hctl = Hctl {
        host,
        channel: 0,
        target: 0,
        lun: 0,
    };
    scsi_device::scan(&world.kernel.host(), &hctl, LONG)
        .await
        .expect("a device")
}

#[tokio::test]
async fn a_device_of_another_volume_at_the_address_is_kept_only_while_it_is_held() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    let old = leftover(&world, &a).await;
    world.kernel.sim.foreign_map("other", "mpath-other", old.hctl);
    let error = world
        .initiator()
        .attach(&volume(&[&a]), LONG)
        .await
        .expect_err("in use");
    let text = error.to_string();
    assert!(text.contains("held by dm-") && text.contains(OTHER), "{text}");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(world.kernel.disk(&old.hctl).diskseq, old.diskseq, "untouched");

    sim_remove(&world, "other");
    let error = world
        .initiator()
        .attach(&volume(&[&a]), LONG)
        .await
        .expect_err("still another disk");
    assert!(error.to_string().contains(OTHER), "{error}");
    assert_eq!(world.left().1, 0, "neither the old device nor a new one");
}

#[tokio::test]
async fn a_device_that_the_array_turned_into_our_volume_is_made_anew() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    let old = leftover(&world, &a).await;
    // The LUN is reused: the old device leads to the volume now, with the size of the other one.
    world.kernel.present(0, WWID, SIZE);
    assert_eq!(world.kernel.disk(&old.hctl).size_bytes, 4 * SIZE);
    world
        .initiator()
        .attach(&volume(&[&a]), LONG)
        .await
        .expect("attaches");
    let now = world.kernel.disk(&old.hctl);
    assert_ne!(now.diskseq, old.diskseq);
    assert_eq!(now.size_bytes, SIZE);
}

/// Removes a map of somebody else.
fn sim_remove(world: &World, name: &str) {
    world.kernel.sim.host().dm.remove(name).expect("removes");
}

#[tokio::test]
async fn an_iscsiadm_that_never_answers_does_not_keep_a_path_away() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    world.state().portals.insert(a.address, Login::Unanswered);
    let begun = Instant::now();
    let attached = world
        .initiator()
        .attach(&volume(&[&a]), LONG)
        .await
        .expect("attaches");
    assert_eq!(attached.paths.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_session_that_is_down_is_waited_for_but_not_logged_in_again() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    world.administrator(&a);
    let host = world.kernel.session_of(&a, None).expect("a session");
    world.kernel.sim.cut(host, "blocked");
    let mut config = world.config();
    config.portal_budget = Duration::from_secs(2);
    let error = world
        .initiator_with(config)
        .attach(&volume(&[&a]), LONG)
        .await
        .expect_err("down");
    assert!(error.to_string().contains("state FAILED"), "{error}");
    assert_eq!(error.code(), Code::Unavailable);

    let initiator = world.initiator();
    let attach = tokio::spawn(async move {
        initiator
            .attach(&volume(&[&portal("192.0.2.1:3260")]), LONG)
            .await
    });
    tokio::time::sleep(Duration::from_millis(120)).await;
    world.kernel.sim.heal(host);
    assert_eq!(attach.await.expect("no panic").expect("attaches").paths.len(), 1);
    assert_eq!(world.calls(&a, ""), 0);
}

#[tokio::test]
async fn a_path_that_waited_for_the_others_proves_itself_again() {
    let (a, slow) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&a, &slow]);
    world
        .state()
        .portals
        .insert(slow.address, Login::After(2 * PROOF));
    let mut config = world.config();
    config.grace = 5 * PROOF;
    let initiator = world.initiator_with(config);
    let attach = tokio::spawn(async move { initiator.attach(&volume(&[&a, &slow]), LONG).await });
    until("the first path is there", || world.kernel.scans() == 1).await;
    until("it is proven", || !world.kernel.sim.disks().is_empty()).await;
    tokio::time::sleep(PROOF / 2).await;
    world.kernel.present(0, OTHER, SIZE);
    let error = attach.await.expect("no panic").expect_err("both lead elsewhere");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(error.to_string().matches(OTHER).count(), 2, "{error}");
    assert!(world.kernel.sim.disks().is_empty(), "nothing is left");
}

#[tokio::test]
async fn a_path_that_comes_too_late_leaves_nothing_unless_somebody_joins_it() {
    let (a, slow) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&a, &slow]);
    world
        .state()
        .portals
        .insert(slow.address, Login::After(Duration::from_millis(700)));
    let mut config = world.config();
    config.grace = Duration::from_millis(100);
    let initiator = world.initiator_with(config);
    let context = volume(&[&a, &slow]);
    let attached = initiator.attach(&context, LONG).await.expect("attaches");
    assert_eq!((attached.paths.len(), attached.missing[0].0 == slow), (1, true));
    until("the late session was there and is gone", || {
        world.calls(&slow, "-u") == 1
    })
    .await;
    until("its entry is gone", || world.left() == (1, 1, 1, 1)).await;

    // This time the late path is wanted: it takes over the login that is under way.
    initiator.attach(&context, LONG).await.expect("attaches");
    initiator.attach_one(&slow, &context).await.expect("joins");
    assert_eq!(world.left(), (2, 2, 2, 2));
    assert_eq!(world.calls(&slow, "-l"), 2, "one login for each attach");
}
