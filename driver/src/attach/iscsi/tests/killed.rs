//! What a plugin that was killed leaves is found and ended by the next one.

use super::*;

/// Runs an attach whose plugin is killed when iscsiadm, or the scan, is at a certain step.
fn killed_at(world: &World, step: &'static str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let a = portal("192.0.2.1:3260");
    world.state().freeze = (step != "device").then_some(step);
    let hold = (step == "device").then(|| world.kernel.hold_scans());
    let initiator = world.initiator();
    runtime.spawn(async move { initiator.attach(&volume(&[&a]), LONG).await });
    let deadline = Instant::now() + Duration::from_secs(20);
    let reached = || match step {
        "device" => world.kernel.scans() > 0,
        "-l" => world.left().0 == 1,
        "-o new" => world.left().2 == 1,
        _ => world.state().calls.iter().any(|(_, c)| c.contains(step)),
    };
    while !reached() {
        assert!(Instant::now() < deadline, "never reached {step}");
        std::thread::yield_now();
    }
    runtime.shutdown_background();
    drop(hold);
    world.state().freeze = None;
}

#[test]
fn killed_at_any_step_the_sweep_or_the_next_attach_finds_everything() {
    for step in ["-o new", "-o update", "-l", "device"] {
        for again in [false, true] {
            let a = portal("192.0.2.1:3260");
            let world = World::new(&[&a]);
            killed_at(&world, step);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                if step == "device" {
                    until("the scan that was under way ends", || world.left().1 == 1).await;
                }
                assert_eq!(
                    world.left().3,
                    1,
                    "{step}: the record is there before anything else"
                );
                let initiator = world.initiator();
                if again {
                    initiator
                        .attach(&volume(&[&a]), LONG)
                        .await
                        .unwrap_or_else(|e| panic!("{step}: {}", chain(&e)));
                    assert_eq!(world.left(), (1, 1, 1, 1), "{step}");
                }
                if again || step == "device" {
                    initiator
                        .detach(&[], Some(&volume(&[&a])))
                        .await
                        .expect("detaches");
                } else {
                    initiator.sweep().await.expect("sweeps");
                }
                assert_eq!(world.left(), (0, 0, 0, 0), "{step}, again: {again}");
            });
        }
    }
}

#[tokio::test]
async fn a_logout_that_was_cut_off_is_finished_by_the_sweep() {
    for step in ["-u", "-o delete"] {
        let a = portal("192.0.2.1:3260");
        let world = World::new(&[&a]);
        let initiator = world.initiator();
        initiator.attach(&volume(&[&a]), LONG).await.expect("attaches");
        world.state().freeze = Some(step);
        let detach = tokio::spawn(async move {
            initiator
                .detach(&[], Some(&volume(&[&portal("192.0.2.1:3260")])))
                .await
        });
        until("the step is done", || {
            if step == "-u" {
                world.left().0 == 0
            } else {
                world.left().2 == 0
            }
        })
        .await;
        detach.abort();
        world.state().freeze = None;
        assert_eq!(world.left().3, 1);
        world.initiator().sweep().await.expect("sweeps");
        assert_eq!(world.left(), (0, 0, 0, 0), "{step}");
    }
}

/// Seen in the lab: a fabric was cut, iscsid was exchanged for another, and the volume could not be unstaged any more.
#[tokio::test]
async fn a_session_that_cannot_be_ended_keeps_no_volume_and_ends_when_it_can() {
    let (a, b) = (portal("192.0.2.1:3260"), portal("192.0.2.2:3260"));
    let world = World::new(&[&a, &b]);
    let initiator = world.initiator();
    initiator
        .attach(&volume(&[&a, &b]), LONG)
        .await
        .expect("attaches");
    world.state().unconnected = true;
    initiator
        .detach(&[], Some(&volume(&[&a, &b])))
        .await
        .expect("the volume is let go of");
    let (sessions, devices, ..) = world.left();
    assert_eq!((sessions, devices), (2, 0));
    initiator.sweep().await.expect("nothing to complain about");
    world.state().unconnected = false;
    initiator.sweep().await.expect("sweeps");
    assert_eq!(world.left(), (0, 0, 0, 0));
}

#[test]
fn a_session_that_iscsid_opens_after_everybody_was_killed_is_still_ours() {
    let a = portal("192.0.2.1:3260");
    let world = World::new(&[&a]);
    killed_at(&world, "-o update");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        // The plugin starts again while iscsid is still busy: there is no session yet.
        let mut patient = world.config();
        patient.login_settles = LONG;
        world.initiator_with(patient).sweep().await.expect("sweeps");
        assert_eq!(world.left().3, 1, "the intention is not forgotten");
        world.kernel.log_in(&a);
        world.initiator().sweep().await.expect("sweeps");
        assert_eq!(world.left(), (0, 0, 0, 0), "the late session is logged out");
    });
}
