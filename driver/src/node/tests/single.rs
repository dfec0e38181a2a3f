//! Without multipathing: one disk, no map; and the way there and back.

use std::{collections::BTreeMap, time::Duration};

use storagelink_multipath::{Hctl, scsi_device};

use super::*;
use crate::node::switch::MULTIPATHING;

fn annotated(value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(MULTIPATHING.to_owned(), value.to_owned())])
}

impl Lab {
    fn multipathing(&self, value: &str) {
        self.node.0.switch.apply(&annotated(value));
    }

    /// Who had it, and on whom: what is told of the one volume.
    async fn told(&self) -> Vec<storagelink_multipath::told::Volume> {
        let task = tokio::spawn(self.node.clone().keep_telling());
        let mut seen = Vec::new();
        for _ in 0..100 {
            seen = storagelink_multipath::told::read(self.state.path());
            if !seen.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        task.abort();
        seen
    }
}

#[tokio::test]
async fn a_volume_without_multipathing_lives_on_one_disk_and_goes_without_a_trace() {
    for fs in FsType::ALL {
        let lab = Lab::new();
        lab.multipathing("false");
        let wanted = mounted(fs.name(), Mode::SingleNodeWriter);
        for _ in 0..3 {
            lab.stage(wanted.clone()).await.expect("stages");
        }
        assert!(lab.is_mounted(STAGING));
        assert_eq!(lab.kernel.maps(), Vec::<String>::new(), "{fs}: no map");
        assert_eq!(
            (lab.kernel.disks().len(), lab.kernel.session_count()),
            (1, 1),
            "{fs}"
        );
        assert_eq!(lab.ran().len(), 2, "one probe and one mkfs: {:?}", lab.ran());
        let session = lab.kernel.disks()[0].host;
        assert_eq!(
            lab.kernel.recovery_tmo(session),
            Some(120),
            "it has no other path"
        );
        let other = another_lun(&lab, session).await;
        for pod in PODS {
            lab.publish(pod, wanted.clone(), false).await.expect("publishes");
        }
        let stats = lab.stats(PODS[0]).await.expect("stats");
        let well = stats.volume_condition.expect("a condition");
        assert!(
            !well.abnormal && well.message.contains("without multipathing"),
            "{well:?}"
        );
        assert_eq!(
            code(lab.unstage().await, "still in use"),
            Code::FailedPrecondition
        );
        for pod in PODS {
            lab.unpublish(pod).await.expect("unpublishes");
        }
        for _ in 0..3 {
            lab.unstage().await.expect("unstages");
        }
        assert_eq!(lab.kernel.disks(), [other], "others' disks stay");
        assert_eq!(
            lab.kernel.recovery_tmo(session),
            Some(0),
            "whatever else is on the session has other paths"
        );
        lab.kernel.logout(session);
        lab.assert_clean("after unstage");
    }
}

/// Another LUN on a session, which keeps it.
async fn another_lun(lab: &Lab, session: u32) -> Hctl {
    let hctl = Hctl {
        host: session,
        channel: 0,
        target: 0,
        lun: LUN + 1,
    };
    lab.kernel.set_lun(TARGET, LUN + 1, &OTHER.parse().unwrap(), SIZE);
    scsi_device::scan(&lab.kernel.host(), &hctl, Duration::from_secs(1))
        .await
        .unwrap();
    hctl
}

#[tokio::test]
async fn what_is_staged_stays_as_it_is_until_its_next_stage() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    let map = lab.map().await.expect("a map");
    lab.multipathing("false");
    lab.stage(ext4()).await.expect("is staged already");
    assert_eq!(
        lab.map().await.map(|m| m.devno),
        Some(map.devno),
        "and not touched"
    );
    lab.unstage().await.expect("unstages");
    lab.stage(ext4()).await.expect("stages");
    assert!(lab.map().await.is_none() && lab.is_mounted(STAGING));
    lab.multipathing("true");
    lab.stage(ext4()).await.expect("is staged already");
    assert!(lab.map().await.is_none());
    let told = lab.told().await;
    assert!(!told[0].multipathing && told[0].pending_restage, "{told:?}");
    assert_eq!(
        told[0].disk.as_ref().map(|disk| disk.state.as_str()),
        Some("running")
    );
    lab.unstage().await.expect("unstages");
    lab.stage(ext4()).await.expect("stages");
    assert_eq!(lab.map().await.expect("a map again").paths().count(), 2);
    lab.unstage().await.expect("unstages");
    lab.assert_clean("at the end");
    assert_eq!(lab.ran().len(), 2, "it was formatted once");
}

#[tokio::test]
async fn a_new_process_finds_it_in_the_kernel_with_and_without_its_record() {
    for lost in [false, true] {
        let mut lab = Lab::new();
        lab.multipathing("false");
        lab.stage(ext4()).await.expect("stages");
        lab.publish(PODS[0], ext4(), false).await.expect("publishes");
        if lost {
            std::fs::remove_file(lab.state.path().join(format!("volumes/{VOLUME}.json"))).unwrap();
        }
        lab.restart();
        lab.stage(ext4()).await.expect("is staged already");
        lab.publish(PODS[1], ext4(), false).await.expect("publishes");
        assert!(lab.stats(PODS[1]).await.is_ok());
        for pod in PODS {
            lab.unpublish(pod).await.expect("unpublishes");
        }
        lab.unstage().await.expect("unstages");
        lab.assert_clean(if lost {
            "without a record"
        } else {
            "with its record"
        });
    }
}

#[tokio::test]
async fn a_dead_portal_is_passed_over_and_none_is_unavailable() {
    let lab = Lab::new();
    lab.multipathing("false");
    let dead = lab.transport.dead.clone();
    dead.lock()
        .unwrap()
        .extend(["192.0.2.1".to_owned(), "192.0.2.2".to_owned()]);
    let refused = code(lab.stage(ext4()).await, "192.0.2.2:3260");
    assert_eq!(refused, Code::Unavailable);
    lab.assert_clean("after the failure");
    for alive in ["192.0.2.1", "192.0.2.2"] {
        dead.lock().unwrap().remove(alive);
        lab.stage(ext4()).await.expect("one portal is enough");
        lab.unstage().await.expect("unstages");
        dead.lock().unwrap().insert(alive.to_owned());
    }
    lab.assert_clean("at the end");
}

#[tokio::test]
async fn another_disk_is_never_used_and_never_deleted() {
    let lab = Lab::new();
    lab.multipathing("false");
    lab.kernel.set_lun(TARGET, LUN, &OTHER.parse().unwrap(), SIZE);
    assert_eq!(code(lab.stage(ext4()).await, OTHER), Code::FailedPrecondition);
    lab.assert_clean("after the refusal");
    assert!(lab.content.snapshot(OTHER).is_empty(), "not a byte was written");

    lab.kernel.set_lun(TARGET, LUN, &WWID.parse().unwrap(), SIZE);
    lab.stage(ext4()).await.expect("stages");
    lab.kernel.set_lun(TARGET, LUN, &OTHER.parse().unwrap(), SIZE);
    assert_eq!(code(lab.stage(ext4()).await, OTHER), Code::FailedPrecondition);
    let held = lab.node.0.held(VOLUME.parse().unwrap()).await.unwrap();
    let Some(crate::node::held::Held::Single(single)) = held else {
        panic!("{held:?}")
    };
    let entry = lab.node.0.journal.get(VOLUME.parse().unwrap()).await.unwrap();
    let freed = lab
        .node
        .0
        .let_go(VOLUME.parse().unwrap(), &single, entry.as_ref())
        .await;
    assert!(
        freed.expect("no error").is_none(),
        "it says that it is another disk"
    );
}

#[tokio::test]
async fn a_disk_is_never_taken_away_under_a_mount() {
    let lab = Lab::new();
    lab.multipathing("false");
    lab.stage(ext4()).await.expect("stages");
    let (volume, node) = (VOLUME.parse().unwrap(), &lab.node.0);
    let held = node.held(volume).await.unwrap();
    let entry = node.journal.get(volume).await.unwrap();
    // As after a stage that failed behind its mount.
    let refused = node.tear_down(volume, held, entry.as_ref()).await;
    let text = refused
        .map_err(|error| crate::codes::chain(&error))
        .expect_err("it is mounted");
    assert!(text.contains("busy") && text.contains(STAGING), "{text}");
    assert_eq!(lab.kernel.disks().len(), 1);
    assert!(lab.stats(STAGING).await.is_ok());
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn what_the_array_took_away_is_let_go_of_and_what_is_there_is_written_first() {
    let lab = Lab::new();
    lab.multipathing("false");
    lab.stage(ext4()).await.expect("stages");
    lab.kernel.fail_next("FLUSH", nix::libc::EIO);
    assert_eq!(code(lab.unstage().await, "flush its disk"), Code::Unavailable);
    assert_eq!(lab.kernel.disks().len(), 1, "the next try may succeed");
    // The mapping is gone: nothing takes the data any more.
    lab.kernel.remove_lun(TARGET, LUN);
    lab.kernel.fail_next("FLUSH", nix::libc::EIO);
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn a_lost_path_waits_then_fails_and_never_hangs_an_unstage() {
    let lab = Lab::new();
    lab.multipathing("false");
    lab.stage(ext4()).await.expect("stages");
    lab.publish(PODS[0], ext4(), false).await.expect("publishes");
    let session = lab.kernel.disks()[0].host;
    lab.kernel.cut(session, "blocked");
    let condition = |stats: NodeGetVolumeStatsResponse| stats.volume_condition.expect("a condition");
    let waits = condition(lab.stats(PODS[0]).await.expect("stats"));
    assert!(waits.abnormal && waits.message.contains("I/O waits"), "{waits:?}");
    assert_eq!(code(lab.stage(ext4()).await, "blocked"), Code::Unavailable);
    lab.unpublish(PODS[0]).await.expect("unpublishes");
    assert_eq!(code(lab.unstage().await, "no usable path"), Code::Unavailable);
    // The session's time is over: what was waiting failed, and nothing waits any more.
    lab.kernel.cut(session, "transport-offline");
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn it_grows_and_is_read_only_when_it_is_to_be() {
    let lab = Lab::new();
    lab.multipathing("false");
    lab.stage(ext4()).await.expect("stages");
    lab.publish(PODS[0], ext4(), false).await.expect("publishes");
    lab.kernel.set_lun(TARGET, LUN, &WWID.parse().unwrap(), 2 * SIZE);
    assert_eq!(lab.expand(PODS[0], 2 * SIZE).await.expect("grows"), 2 * SIZE);
    assert!(lab.ran().contains(&Program::Resize2fs));
    lab.unpublish(PODS[0]).await.expect("unpublishes");
    lab.unstage().await.expect("unstages");

    let reader = mounted("ext4", Mode::SingleNodeReaderOnly);
    lab.stage(reader.clone()).await.expect("stages");
    let own = lab.kernel.own_path(&format!("storagelink-{VOLUME}"));
    assert_eq!(
        lab.kernel.own_device(&own).map(|(_, ro)| ro),
        Some(true),
        "the disk itself"
    );
    assert_eq!(code(lab.stage(ext4()).await, "read-only"), Code::AlreadyExists);
    assert_eq!(
        code(lab.publish(PODS[0], ext4(), false).await, "staged read-only"),
        Code::FailedPrecondition
    );
    lab.unstage().await.expect("unstages");
    lab.assert_clean("at the end");
}

#[tokio::test]
async fn a_raw_block_volume_is_known_by_its_record_and_its_bound_node() {
    let mut lab = Lab::new();
    lab.multipathing("false");
    let raw = block(Mode::SingleNodeWriter);
    for _ in 0..2 {
        lab.stage(raw.clone()).await.expect("stages");
    }
    assert_eq!(lab.mounts.mounts(), vec![]);
    assert_eq!(code(lab.stage(ext4()).await, "as block"), Code::AlreadyExists);
    lab.restart();
    lab.publish("/k/block-a", raw.clone(), false)
        .await
        .expect("publishes");
    lab.restart();
    assert!(lab.stats("/k/block-a").await.is_ok());
    lab.unpublish("/k/block-a").await.expect("unpublishes");
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn a_disk_that_somebody_holds_is_refused_with_what_to_do() {
    let lab = Lab::new();
    // As multipathd does when it sees the disk first.
    for (multipathing, session) in [("true", 0), ("false", 1)] {
        lab.multipathing(multipathing);
        let id = lab
            .kernel
            .login(TARGET, &format!("192.0.2.{}", session + 1), 3260);
        let hctl = Hctl {
            host: id,
            channel: 0,
            target: 0,
            lun: LUN,
        };
        let host = lab.kernel.host();
        let scan = scsi_device::scan(&host, &hctl, Duration::from_secs(1));
        scan.await.unwrap();
        lab.kernel.foreign_map(
            &format!("mpatha{session}"),
            "mpath-36001405123456789abc4def812345678",
            hctl,
        );
        if multipathing == "false" {
            // Only this portal leads anywhere.
            lab.transport.dead.lock().unwrap().insert("192.0.2.1".to_owned());
        }
        let refused = lab.stage(ext4()).await;
        let text = "multipathd took it; ";
        assert_eq!(code(refused, text), Code::FailedPrecondition, "{multipathing}");
    }
    assert_eq!(lab.mounts.mounts(), vec![]);
}

/// Kills the process after 0, 1, 2, … calls of `what`.
#[tokio::test]
async fn killed_anywhere_a_stage_is_finished_by_the_next_or_unstaged() {
    for finish in [true, false] {
        for calls in 0.. {
            let mut lab = Lab::new();
            lab.multipathing("false");
            lab.fuse.burn_after(calls);
            let result = lab.stage(ext4()).await;
            let killed = lab.fuse.burnt();
            lab.restart();
            if finish {
                lab.stage(ext4())
                    .await
                    .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
                assert_eq!(lab.mounts.mounts().len(), 1, "killed after {calls}");
                assert!(lab.map().await.is_none(), "killed after {calls}");
            }
            lab.unstage()
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            let records = lab.state.path().join(format!("volumes/{VOLUME}.json"));
            if finish {
                lab.assert_clean(&format!("killed after {calls}"));
            } else {
                // A format that was begun is remembered.
                drop(std::fs::remove_file(records));
                lab.assert_clean(&format!("killed after {calls}"));
            }
            if !killed {
                result.expect("nothing was in its way");
                break;
            }
        }
    }
}
