//! Publish, unpublish and stats.

use super::*;
use crate::node::tell::Before;

#[tokio::test]
async fn a_staged_volume_is_shown_to_pods_and_taken_away() {
    let lab = Lab::new();
    assert_eq!(
        code(lab.publish(PODS[0], ext4(), false).await, "is not staged"),
        Code::FailedPrecondition
    );
    lab.stage(ext4()).await.expect("stages");
    for _ in 0..3 {
        lab.publish(PODS[0], ext4(), false).await.expect("publishes");
        lab.publish(PODS[1], ext4(), true)
            .await
            .expect("publishes read-only");
    }
    assert_eq!(lab.mounts.mounts().len(), 3);
    let reader = lab
        .mounts
        .mounts()
        .into_iter()
        .find(|m| m.path == Path::new(PODS[1]))
        .expect("mounted");
    assert!(reader.read_only());
    assert_eq!(
        code(lab.publish(PODS[0], ext4(), true).await, "writable"),
        Code::AlreadyExists
    );
    assert_eq!(
        code(lab.publish(PODS[1], ext4(), false).await, "read-only"),
        Code::AlreadyExists
    );
    assert_eq!(
        code(lab.unstage().await, "still in use at /k/pod-"),
        Code::FailedPrecondition
    );
    for pod in PODS {
        for _ in 0..3 {
            lab.unpublish(pod).await.expect("unpublishes");
        }
        assert!(!lab.mounts.paths().contains(&pod.into()), "the target is removed");
    }
    lab.unstage().await.expect("unstages");
    lab.assert_clean("at the end");
}

#[tokio::test]
async fn a_block_volume_is_a_device_node_at_the_target() {
    let lab = Lab::new();
    let writer = block(Mode::SingleNodeWriter);
    lab.stage(writer.clone()).await.expect("stages");
    for _ in 0..2 {
        lab.publish(PODS[0], writer.clone(), false)
            .await
            .expect("publishes");
    }
    let stats = lab.stats(PODS[0]).await.expect("stats");
    assert_eq!(stats.usage.len(), 1);
    assert_eq!(stats.usage[0].total, i64::try_from(SIZE).unwrap());
    assert_eq!(
        code(lab.unstage().await, "still in use"),
        Code::FailedPrecondition
    );
    assert_eq!(lab.expand(PODS[0], SIZE).await.expect("is as large"), SIZE);
    assert_eq!(lab.ran(), vec![]);
    lab.unpublish(PODS[0]).await.expect("unpublishes");
    assert!(!lab.mounts.paths().contains(&PODS[0].into()));
    lab.unstage().await.expect("unstages");
    lab.assert_clean("at the end");
}

#[tokio::test]
async fn a_node_of_a_device_that_is_gone_can_be_unpublished() {
    let lab = Lab::new();
    lab.stage(block(Mode::SingleNodeWriter)).await.expect("stages");
    lab.publish(PODS[0], block(Mode::SingleNodeWriter), false)
        .await
        .expect("publishes");
    let name = lab.map().await.expect("a map").name;
    lab.kernel.host().dm.remove(&name).expect("somebody removed it");
    lab.unpublish(PODS[0]).await.expect("unpublishes");
    lab.unstage().await.expect("unstages");
    lab.assert_clean("at the end");
}

#[tokio::test]
async fn a_single_writer_has_one_target_and_others_have_many() {
    let lab = Lab::new();
    let single = mounted("ext4", Mode::SingleNodeSingleWriter);
    lab.stage(single.clone()).await.expect("stages");
    lab.publish(PODS[0], single.clone(), false)
        .await
        .expect("publishes");
    lab.publish(PODS[0], single.clone(), false)
        .await
        .expect("the same again");
    assert_eq!(
        code(lab.publish(PODS[1], single.clone(), false).await, PODS[0]),
        Code::FailedPrecondition
    );
    assert!(!lab.is_mounted(PODS[1]));
    lab.unpublish(PODS[0]).await.expect("unpublishes");
    lab.publish(PODS[1], single, false).await.expect("now it is free");
}

#[tokio::test]
async fn what_is_in_the_way_stays_and_is_told() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    lab.mounts.foreign(PODS[0]);
    assert_eq!(
        code(lab.publish(PODS[0], ext4(), false).await, "in the way"),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(lab.unpublish(PODS[0]).await, "is not volume"),
        Code::FailedPrecondition
    );
    assert!(lab.is_mounted(PODS[0]));
    lab.publish(PODS[1], ext4(), false).await.expect("publishes");
    lab.mounts.set_busy(PODS[1], true);
    assert_eq!(
        code(lab.unpublish(PODS[1]).await, "is busy"),
        Code::FailedPrecondition
    );
    let as_block = lab.publish("/k/c", block(Mode::SingleNodeWriter), false).await;
    assert_eq!(code(as_block, "staged as ext4"), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_failed_bind_leaves_no_target() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    lab.mounts.fail_next("bind", nix::libc::EPERM);
    assert_eq!(
        code(lab.publish(PODS[0], ext4(), false).await, PODS[0]),
        Code::Internal
    );
    assert!(!lab.mounts.paths().contains(&PODS[0].into()));
}

#[tokio::test]
async fn a_read_only_staging_is_not_published_writable() {
    let lab = Lab::new();
    lab.content.write(WWID, 0, &superblock::sample(FsType::Xfs, SIZE));
    lab.stage(mounted("xfs", Mode::SingleNodeReaderOnly))
        .await
        .expect("stages");
    let writer = mounted("xfs", Mode::SingleNodeWriter);
    assert_eq!(
        code(lab.publish(PODS[0], writer, false).await, "read-only"),
        Code::FailedPrecondition
    );
    lab.publish(PODS[0], mounted("xfs", Mode::SingleNodeReaderOnly), false)
        .await
        .expect("publishes");
}

#[tokio::test]
async fn stats_tell_bytes_inodes_and_the_state_of_the_paths() {
    let lab = Lab::new();
    assert_eq!(code(lab.stats(STAGING).await, "is not staged"), Code::NotFound);
    lab.stage(ext4()).await.expect("stages");
    lab.publish(PODS[0], ext4(), false).await.expect("publishes");
    assert_eq!(
        code(lab.stats("/k/elsewhere").await, "is not there"),
        Code::NotFound
    );
    let stats = lab.stats(PODS[0]).await.expect("stats");
    let total = i64::try_from(SIZE).unwrap();
    assert_eq!(
        (
            stats.usage[0].total,
            stats.usage[0].available,
            stats.usage[0].used
        ),
        (total, total / 2, total / 4)
    );
    assert_eq!(
        (
            stats.usage[1].total,
            stats.usage[1].available,
            stats.usage[1].used
        ),
        (1000, 500, 500)
    );
    let condition = |stats: NodeGetVolumeStatsResponse| stats.volume_condition.expect("a condition");
    let well = condition(stats);
    assert!(!well.abnormal && well.message.contains("2 of 2"), "{well:?}");

    let first = lab.kernel.sessions(TARGET, "192.0.2.1", 3260)[0];
    let metrics = crate::metrics::Metrics::of_node(
        lab.node.0.engine.clone(),
        lab.node.told(),
        lab.node.multipathing(),
    );
    let paths = async |usable: usize, failed: usize| {
        let text = metrics.text().await.expect("metrics");
        for (state, number) in [("usable", usable), ("failed", failed)] {
            let line = format!("state=\"{state}\"}} {number}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    };
    paths(2, 0).await;
    lab.kernel.cut(first, "transport-offline");
    paths(1, 1).await;
    let degraded = condition(lab.stats(PODS[0]).await.expect("stats"));
    assert!(
        degraded.abnormal && degraded.message.contains("1 of 2 paths are down"),
        "{degraded:?}"
    );
    assert!(
        degraded.message.contains("192.0.2.1"),
        "names the portal: {degraded:?}"
    );

    lab.kernel.heal(first);
    lab.kernel
        .host()
        .dm
        .message(
            &lab.map().await.unwrap().name,
            &format!(
                "reinstate_path {}",
                lab.map().await.unwrap().paths().next().unwrap().devno
            ),
        )
        .expect("reinstated");
    lab.mounts.remount_read_only(PODS[0]);
    let stopped = condition(lab.stats(PODS[0]).await.expect("stats"));
    assert!(
        stopped.abnormal && stopped.message.contains("read-only after an error"),
        "{stopped:?}"
    );
}

#[tokio::test]
async fn a_file_system_that_the_kernel_made_read_only_is_told_once() {
    let lab = Lab::new();
    let mut remarks = lab.node.0.remarks.subscribe();
    lab.stage(ext4()).await.expect("stages");
    lab.publish(PODS[0], ext4(), false).await.expect("publishes");
    lab.publish(PODS[1], ext4(), true).await.expect("publishes");
    let engine = lab.node.0.engine.clone();
    let mut seen = engine.ledger().changes();
    tokio::select! {
        () = engine.monitor(std::future::pending()) => unreachable!(),
        end = seen.changed() => end.expect("the map is seen"),
    }
    let mut before = Before::default();
    lab.node.0.tell(&mut before).await;
    remarks
        .try_recv()
        .expect_err("a pod that may only read is nothing to tell");
    lab.mounts.remount_read_only(PODS[0]);
    lab.node.0.tell(&mut before).await;
    let remark = remarks.try_recv().expect("a remark");
    assert_eq!(remark.reason, "ReadOnly");
    assert!(remark.note.contains(VOLUME), "{remark:?}");
    lab.node.0.tell(&mut before).await;
    remarks.try_recv().expect_err("it was told");
}

#[tokio::test]
async fn btrfs_reports_no_inodes() {
    let lab = Lab::new();
    let btrfs = mounted("btrfs", Mode::SingleNodeWriter);
    lab.stage(btrfs.clone()).await.expect("stages");
    lab.publish(PODS[0], btrfs, false).await.expect("publishes");
    assert_eq!(lab.stats(PODS[0]).await.expect("stats").usage.len(), 1);
}

#[tokio::test]
async fn unknown_volumes_are_not_found_and_missing_fields_are_named() {
    let lab = Lab::new();
    let stats = |id: &str, path: &str| {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..Default::default()
        };
        lab.service.node_get_volume_stats(Request::new(request))
    };
    assert_eq!(code(stats("", "/p").await, "volume_id"), Code::InvalidArgument);
    assert_eq!(code(stats("x", "").await, "volume_path"), Code::InvalidArgument);
    assert_eq!(code(stats("x", "/p").await, "does not exist"), Code::NotFound);
    let unstage = |id: &str, path: &str| {
        let request = NodeUnstageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: path.into(),
        };
        lab.service.node_unstage_volume(Request::new(request))
    };
    assert_eq!(code(unstage("", "/p").await, "volume_id"), Code::InvalidArgument);
    assert_eq!(
        code(unstage("x", "").await, "staging_target_path"),
        Code::InvalidArgument
    );
    let unpublish = |id: &str, path: &str| {
        let request = NodeUnpublishVolumeRequest {
            volume_id: id.into(),
            target_path: path.into(),
        };
        lab.service.node_unpublish_volume(Request::new(request))
    };
    assert_eq!(
        code(unpublish("", "/p").await, "volume_id"),
        Code::InvalidArgument
    );
    assert_eq!(
        code(unpublish("x", "a/b").await, "target_path"),
        Code::InvalidArgument
    );
    let expand = |id: &str, path: &str, range| {
        let request = NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            capacity_range: range,
            ..Default::default()
        };
        lab.service.node_expand_volume(Request::new(request))
    };
    let negative = storagelink_proto::csi::v1::CapacityRange {
        required_bytes: -1,
        limit_bytes: 0,
    };
    assert_eq!(
        code(expand("", "/p", None).await, "volume_id"),
        Code::InvalidArgument
    );
    assert_eq!(
        code(expand("x", "", None).await, "volume_path"),
        Code::InvalidArgument
    );
    assert_eq!(
        code(expand("x", "/p", Some(negative)).await, "required_bytes"),
        Code::InvalidArgument
    );
    assert_eq!(
        code(expand("x", "/p", None).await, "does not exist"),
        Code::NotFound
    );
    assert_eq!(lab.kernel.changes(), 0, "nothing was touched");
}

#[tokio::test]
async fn metrics_name_each_path_by_its_portal_and_end_with_their_volume() {
    let lab = Lab::new();
    lab.stage(ext4()).await.expect("stages");
    let engine = lab.node.0.engine.clone();
    let metrics = crate::metrics::Metrics::of_node(engine.clone(), lab.node.told(), lab.node.multipathing());
    let first = lab.kernel.sessions(TARGET, "192.0.2.1", 3260)[0];
    // The monitor looks until `line` is there.
    let shows = async |lines: &[String]| {
        let look = async {
            loop {
                let text = metrics.text().await.expect("metrics");
                if lines.iter().all(|line| text.contains(line.as_str())) {
                    return text;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            text = look => text,
            () = engine.monitor(std::future::pending()) => unreachable!(),
            () = tokio::time::sleep(std::time::Duration::from_secs(20)) => {
                panic!("{lines:?} is not in\n{}", metrics.text().await.expect("metrics"))
            }
        }
    };
    let of_path = |name: &str, value: u32| {
        format!("storagelink_{name}{{volume=\"{VOLUME}\",path=\"192.0.2.1:3260\"}} {value}\n")
    };
    let state = |state: &str, value: u32| {
        format!("storagelink_map_state{{volume=\"{VOLUME}\",state=\"{state}\"}} {value}\n")
    };
    let text = shows(&[of_path("path_usable", 1), state("well", 1)]).await;
    assert!(text.contains("storagelink_multipathing 1\n"), "{text}");
    assert!(text.contains("storagelink_volumes_pending_restage 0\n"), "{text}");
    lab.kernel.cut(first, "transport-offline");
    shows(&[
        of_path("path_usable", 0),
        of_path("path_losses_total", 1),
        state("degraded", 1),
        state("well", 0),
    ])
    .await;
    lab.kernel.heal(first);
    let text = shows(&[of_path("path_reinstatements_total", 1), state("well", 1)]).await;
    assert!(
        text.contains(&format!(
            "storagelink_no_path_seconds_count{{volume=\"{VOLUME}\"}} 0\n"
        )),
        "{text}"
    );
    lab.unstage().await.expect("unstages");
    engine.ledger().forget(&[]);
    let text = metrics.text().await.expect("metrics");
    assert!(!text.contains(VOLUME), "{text}");
}
