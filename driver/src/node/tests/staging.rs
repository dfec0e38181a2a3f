//! Stage, unstage and expand.

use storagelink_multipath::scsi_device;

use super::*;

#[tokio::test]
async fn a_blank_volume_is_formatted_mounted_and_goes_without_a_trace() {
    for fs in FsType::ALL {
        let lab = Lab::new();
        let wanted = mounted(fs.name(), Mode::SingleNodeWriter);
        for _ in 0..3 {
            lab.stage(wanted.clone()).await.expect("stages");
        }
        assert!(lab.is_mounted(STAGING));
        let map = lab.map().await.expect("a map");
        assert_eq!(
            (map.wwid.to_string(), map.paths().count()),
            (WWID.to_owned(), 2),
            "{fs}"
        );
        assert_eq!(
            lab.ran().len(),
            2,
            "one probe and one mkfs in all: {:?}",
            lab.ran()
        );
        for _ in 0..3 {
            lab.unstage().await.expect("unstages");
        }
        lab.assert_clean("after unstage");
        // The second time it holds its file system: no program at all.
        lab.stage(wanted).await.expect("stages again");
        assert_eq!(lab.ran().len(), 2);
        lab.unstage().await.expect("unstages");
        lab.assert_clean("at the end");
    }
}

#[tokio::test]
async fn a_block_volume_has_a_map_and_no_mount() {
    let lab = Lab::new();
    for _ in 0..2 {
        lab.stage(block(Mode::MultiNodeMultiWriter))
            .await
            .expect("stages");
    }
    assert!(lab.map().await.is_some());
    assert_eq!(lab.mounts.mounts(), vec![]);
    assert_eq!(lab.ran(), vec![], "nobody looks at what is on it");
    assert_eq!(
        code(lab.stage(ext4()).await, "already staged as block"),
        Code::AlreadyExists
    );
    assert_eq!(
        code(
            lab.stage(block(Mode::MultiNodeReaderOnly)).await,
            "already staged writable"
        ),
        Code::AlreadyExists
    );
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn staged_otherwise_is_a_conflict_that_changes_nothing() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    let before = (lab.mounts.mounts(), lab.map().await);
    let xfs = mounted("xfs", Mode::SingleNodeWriter);
    assert_eq!(code(lab.stage(xfs).await, "as ext4"), Code::AlreadyExists);
    let reader = mounted("ext4", Mode::SingleNodeReaderOnly);
    assert_eq!(code(lab.stage(reader).await, "writable"), Code::AlreadyExists);
    assert_eq!(
        code(lab.stage(block(Mode::SingleNodeWriter)).await, "as ext4"),
        Code::AlreadyExists
    );
    let elsewhere = lab
        .stage_with(ext4(), |r| r.staging_target_path = "/k/other".into())
        .await;
    assert_eq!(code(elsewhere, "at /k/staging"), Code::AlreadyExists);
    let identity = lab
        .stage_with(ext4(), |r| {
            drop(r.publish_context.insert("wwid".into(), OTHER.into()));
        })
        .await;
    assert_eq!(code(identity, OTHER), Code::AlreadyExists);
    assert_eq!((lab.mounts.mounts(), lab.map().await), before);
}

#[tokio::test]
async fn a_lun_with_another_identity_is_refused_and_nothing_stays() {
    let lab = Lab::new();
    lab.kernel.set_lun(TARGET, LUN, &OTHER.parse().unwrap(), SIZE);
    assert_eq!(code(lab.stage(ext4()).await, OTHER), Code::FailedPrecondition);
    lab.assert_clean("after the refusal");
    assert!(lab.content.snapshot(OTHER).is_empty(), "not a byte was written");
}

#[tokio::test]
async fn a_disk_smaller_than_the_volume_is_refused() {
    let lab = Lab::new();
    lab.kernel.set_lun(TARGET, LUN, &WWID.parse().unwrap(), SIZE / 2);
    assert_eq!(
        code(lab.stage(ext4()).await, "sizeBytes"),
        Code::FailedPrecondition
    );
    lab.assert_clean("after the refusal");
}

#[tokio::test]
async fn one_dead_portal_is_joined_later_and_none_at_all_is_unavailable() {
    let lab = Lab::new();
    let dead = lab.transport.dead.clone();
    dead.lock()
        .unwrap()
        .extend(["192.0.2.1".to_owned(), "192.0.2.2".to_owned()]);
    assert_eq!(code(lab.stage(ext4()).await, "unreachable"), Code::Unavailable);
    lab.assert_clean("after the failure");
    dead.lock().unwrap().remove("192.0.2.1");
    lab.stage(ext4()).await.expect("one path is enough");
    assert_eq!(lab.map().await.expect("a map").paths().count(), 1);
    dead.lock().unwrap().clear();
    let joined = async {
        while lab.map().await.expect("a map").paths().count() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), joined)
        .await
        .expect("the late path joins");
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn a_path_whose_device_somebody_deleted_is_brought_up_again_but_not_under_another_call() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    let host = lab.kernel.host();
    let disk = scsi_device::find(&host, &lab.kernel.disks()[0]).expect("a disk");
    scsi_device::delete(&host, &disk).expect("deletes");
    let volume = VOLUME.parse().expect("a UUID");
    let busy = lab.node.0.guards.take(volume).expect("nobody works on it");
    lab.node.go_on().await;
    assert_eq!(lab.node.0.joins.running(), 0, "somebody may be taking it apart");
    drop(busy);
    lab.node.go_on().await;
    let joined = async {
        let there = |map: &Map| map.paths().filter(|path| !path.name.is_empty()).count();
        while there(&lab.map().await.expect("a map")) < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), joined)
        .await
        .expect("the path is there again");
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn a_volume_with_fewer_paths_than_portals_is_remarked_upon() {
    let lab = Lab::new();
    let mut remarks = lab.node.0.remarks.subscribe();
    lab.transport.dead.lock().unwrap().insert("192.0.2.2".to_owned());
    lab.stage(ext4()).await.expect("one path is enough");
    let remark = remarks.try_recv().expect("a remark");
    assert!(
        remark.note.contains(VOLUME) && remark.note.contains("1 of 2 paths"),
        "{remark:?}"
    );
    lab.transport.dead.lock().unwrap().clear();
    lab.unstage().await.expect("unstages");
    lab.stage(ext4()).await.expect("stages");
    remarks.try_recv().expect_err("both paths are there");
}

#[tokio::test]
async fn an_unstage_stops_the_search_for_late_paths() {
    let lab = Lab::new();
    lab.transport.dead.lock().unwrap().insert("192.0.2.2".to_owned());
    lab.stage(ext4()).await.expect("stages");
    assert_eq!(lab.node.0.joins.running(), 1);
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn a_new_process_brings_up_missing_paths() {
    let mut lab = Lab::new();
    lab.transport.dead.lock().unwrap().insert("192.0.2.2".to_owned());
    lab.stage(ext4()).await.expect("stages");
    lab.node
        .0
        .joins
        .stop(VOLUME.parse().unwrap())
        .await
        .expect("stops");
    lab.transport.dead.lock().unwrap().clear();
    lab.restart();
    lab.node.go_on().await;
    let joined = async {
        while lab.map().await.expect("a map").paths().count() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), joined)
        .await
        .expect("the missing path joins");
}

#[tokio::test]
async fn a_second_caller_is_told_aborted() {
    let lab = Lab::new();
    let guard = lab.node.0.guards.take(VOLUME.parse().unwrap()).expect("free");
    assert_eq!(code(lab.stage(ext4()).await, "another operation"), Code::Aborted);
    assert_eq!(code(lab.unstage().await, "another operation"), Code::Aborted);
    drop(guard);
    let (a, b) = tokio::join!(lab.stage(ext4()), lab.stage(ext4()));
    let results = [a, b];
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    assert!(
        results
            .iter()
            .any(|r| r.as_ref().is_err_and(|s| s.code() == Code::Aborted)),
        "{results:?}"
    );
}

#[tokio::test]
async fn an_operation_goes_on_when_its_caller_goes_away() {
    let lab = Lab::new();
    drop(tokio::time::timeout(std::time::Duration::ZERO, lab.stage(ext4())).await);
    let staged = async {
        while !lab.is_mounted(STAGING) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), staged)
        .await
        .expect("it came to its end");
}

#[tokio::test]
async fn what_is_not_ours_is_neither_covered_nor_unmounted() {
    let lab = Lab::new();
    lab.mounts.foreign(STAGING);
    assert_eq!(
        code(lab.stage(ext4()).await, "something that is not volume"),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(lab.unstage().await, "is not volume"),
        Code::FailedPrecondition
    );
    assert_eq!(lab.mounts.mounts().len(), 1);
    assert_eq!(lab.kernel.session_count(), 0);
}

#[tokio::test]
async fn an_unmount_that_could_only_hang_is_not_begun() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    let sessions: Vec<u32> = ["192.0.2.1", "192.0.2.2"]
        .iter()
        .flat_map(|a| lab.kernel.sessions(TARGET, a, 3260))
        .collect();
    for session in &sessions {
        lab.kernel.cut(*session, "blocked");
    }
    assert_eq!(code(lab.unstage().await, "no usable path"), Code::Unavailable);
    assert!(lab.is_mounted(STAGING));
    for session in sessions {
        lab.kernel.heal(session);
    }
    lab.unstage().await.expect("a path is back");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn a_busy_mount_stays_and_is_told() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    lab.mounts.set_busy(STAGING, true);
    assert_eq!(code(lab.unstage().await, "is busy"), Code::FailedPrecondition);
    lab.mounts.set_busy(STAGING, false);
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn without_its_record_a_volume_is_found_in_the_kernel() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    let record = lab.state.path().join("volumes").join(format!("{VOLUME}.json"));
    std::fs::remove_file(&record).expect("there");
    lab.stage(ext4()).await.expect("is staged");
    assert!(record.exists(), "the record is written again");
    std::fs::remove_file(&record).expect("there");
    lab.unstage().await.expect("unstages");
    lab.assert_clean("after unstage");
}

#[tokio::test]
async fn read_only_staging_formats_nothing_and_replays_nothing() {
    let lab = Lab::new();
    let reader = mounted("ext4", Mode::MultiNodeReaderOnly);
    assert_eq!(
        code(lab.stage(reader.clone()).await, "is blank"),
        Code::FailedPrecondition
    );
    lab.assert_clean("after the refusal");
    // A journal that waits for its replay: INCOMPAT_RECOVER at byte 0x60 of the superblock.
    lab.content
        .write(WWID, 0, &superblock::sample(FsType::Ext4, SIZE));
    lab.content.write(WWID, 1024 + 0x60, &[4]);
    let before = lab.content.snapshot(WWID);
    lab.stage(reader).await.expect("stages");
    assert!(lab.map().await.expect("a map").read_only);
    assert_eq!(lab.content.snapshot(WWID), before);
    assert_eq!(lab.ran(), vec![Program::Blkid], "the look at the blank one only");
    lab.unstage().await.expect("unstages");
}

#[tokio::test]
async fn an_ext4_with_errors_is_checked_and_one_beyond_repair_is_refused() {
    let lab = Lab::new();
    lab.content
        .write(WWID, 0, &superblock::sample(FsType::Ext4, SIZE));
    lab.content.write(WWID, 1024 + 0x3a, &[3]);
    lab.stage(ext4()).await.expect("stages");
    assert_eq!(lab.ran(), vec![Program::E2fsck]);
    lab.unstage().await.expect("unstages");
    lab.program(Program::E2fsck, |_, _| {
        exits(Program::E2fsck, 4, "UNEXPECTED INCONSISTENCY")
    });
    assert_eq!(
        code(lab.stage(ext4()).await, "run e2fsck by hand"),
        Code::FailedPrecondition
    );
    lab.assert_clean("after the refusal");
}

#[tokio::test]
async fn a_clone_of_a_mounted_xfs_is_mounted_beside_it() {
    let lab = Lab::new();
    let xfs = mounted("xfs", Mode::SingleNodeWriter);
    lab.stage(xfs.clone()).await.expect("stages");
    lab.kernel.set_lun(TARGET, 8, &OTHER.parse().unwrap(), SIZE);
    lab.content
        .write(OTHER, 0, &superblock::sample(FsType::Xfs, SIZE));
    lab.stage_with(xfs, |r| {
        r.volume_id = "0b6a6b2e-6a0f-5d3c-9a51-000000000000".into();
        r.staging_target_path = "/k/clone".into();
        r.publish_context.insert("lun".into(), "8".into());
        r.publish_context.insert("wwid".into(), OTHER.into());
    })
    .await
    .expect("the clone stages");
    let mounts = lab.mounts.mounts();
    assert!(
        mounts
            .iter()
            .any(|m| m.path == Path::new("/k/clone") && m.super_options.contains("nouuid"))
    );
    assert!(
        mounts
            .iter()
            .any(|m| m.path == Path::new(STAGING) && !m.super_options.contains("nouuid"))
    );
    lab.unstage().await.expect("unstages");
    assert_eq!(lab.kernel.session_count(), 2, "the clone's sessions are in use");
}

#[tokio::test]
async fn a_grown_volume_grows_on_the_node_and_its_file_system_too() {
    let lab = Lab::new();
    assert_eq!(
        code(lab.expand(STAGING, SIZE).await, "is not staged"),
        Code::NotFound
    );
    lab.stage(ext4()).await.expect("stages");
    assert_eq!(
        code(
            lab.expand(STAGING, 2 * SIZE).await,
            "must grow on the array first"
        ),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(lab.expand("/k/elsewhere", SIZE).await, "is not there"),
        Code::NotFound
    );
    lab.kernel.set_lun(TARGET, LUN, &WWID.parse().unwrap(), 2 * SIZE);
    for _ in 0..2 {
        assert_eq!(lab.expand(STAGING, 2 * SIZE).await.expect("grows"), 2 * SIZE);
    }
    let total = lab.stats(STAGING).await.expect("stats").usage[0].total;
    assert_eq!(total, i64::try_from(2 * SIZE).unwrap());
}

/// Forty at once on a node of one emulated processor ran into their deadlines together, were repeated together, and only a
/// few came up in six minutes.
#[tokio::test]
async fn more_volumes_at_once_than_the_host_can_take_all_come_up_in_their_turns() {
    const COUNT: u64 = 40;
    let lab = Lab::new();
    let mut stages = tokio::task::JoinSet::new();
    for number in 0..COUNT {
        let (service, lun) = (lab.service.clone(), LUN + 1 + number);
        let wwid = format!("naa.6001405{number:025x}");
        lab.kernel.set_lun(TARGET, lun, &wwid.parse().unwrap(), SIZE);
        let mut publish_context = context();
        publish_context.extend([("lun".to_owned(), lun.to_string()), ("wwid".to_owned(), wwid)]);
        let request = NodeStageVolumeRequest {
            volume_id: uuid::Uuid::from_u128(u128::from(number) + 1).to_string(),
            publish_context,
            staging_target_path: format!("{STAGING}-{number}"),
            volume_capability: Some(block(Mode::SingleNodeWriter)),
            ..NodeStageVolumeRequest::default()
        };
        stages.spawn(async move { service.node_stage_volume(Request::new(request)).await.map(drop) });
    }
    let outcomes = stages.join_all().await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(lab.kernel.maps().len(), usize::try_from(COUNT).unwrap());
}

#[tokio::test]
async fn with_fewer_paths_than_its_class_asks_for_a_volume_is_not_staged_and_nothing_is_left() {
    let lab = Lab::new();
    let stage = || {
        lab.stage_with(ext4(), |request| {
            request.publish_context.insert("minPaths".into(), "2".into());
        })
    };
    lab.transport.dead.lock().unwrap().insert("192.0.2.2".to_owned());
    let error = stage().await.expect_err("one path is not enough");
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().contains("minPaths"), "{error}");
    lab.assert_clean("after the refusal");
    lab.transport.dead.lock().unwrap().clear();
    stage().await.expect("both paths are there");
}

#[tokio::test]
async fn the_policy_of_a_class_reaches_the_map_and_a_restarted_plugin_remembers_it() {
    let mut lab = Lab::new();
    let policy = |request: &mut NodeStageVolumeRequest| {
        for (key, value) in [("pathSelector", "queue-length"), ("noPathRetry", "fail")] {
            request.publish_context.insert(key.into(), value.into());
        }
    };
    lab.stage_with(ext4(), policy).await.expect("stages");
    let map = lab.map().await.expect("a map");
    assert_eq!(
        (map.selector.as_str(), map.queue_if_no_path),
        ("queue-length", false)
    );
    lab.restart();
    lab.node.recall_policies().await.expect("reads the records");
    let policy = lab.node.0.engine.policy(&map.wwid);
    assert_eq!(
        policy.no_path_retry,
        storagelink_multipath::policy::NoPathRetry::Fail
    );
}
