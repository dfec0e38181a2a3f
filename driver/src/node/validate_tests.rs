use std::collections::HashMap;

use storagelink_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

use super::*;

const ID: &str = "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";

fn mount(fs: &str, flags: &[&str], mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs.to_owned(),
            mount_flags: flags.iter().map(|&f| f.to_owned()).collect(),
            volume_mount_group: String::new(),
        })),
    }
}

fn context() -> HashMap<String, String> {
    let pairs = [
        ("protocol", "iscsi"),
        ("portals", "192.0.2.1:3260,1,iqn.2026-11.com.example:t"),
        ("lun", "7"),
        ("wwid", "naa.6001405123456789abc4def812345678"),
        ("sizeBytes", "1048576"),
        ("readOnly", "false"),
    ];
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

fn good() -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: ID.to_owned(),
        publish_context: context(),
        staging_target_path: "/var/lib//kubelet/staging/".to_owned(),
        volume_capability: Some(mount("", &[], Mode::SingleNodeWriter)),
        ..NodeStageVolumeRequest::default()
    }
}

type Change<T> = fn(&mut T);

#[test]
fn a_good_stage_is_typed() {
    let stage = stage(&good()).expect("good");
    assert_eq!(stage.staging, Path::new("/var/lib/kubelet/staging"));
    assert_eq!(stage.capability.access.name(), "ext4");
    assert!(!stage.read_only());
}

#[test]
fn every_bad_field_of_stage_is_named() {
    let cases: [(&str, Change<NodeStageVolumeRequest>); 22] = [
        ("volume_id", |r| r.volume_id.clear()),
        ("volume_id", |r| r.volume_id = "x".repeat(129)),
        ("volume_id", |r| r.volume_id.push('\n')),
        ("staging_target_path", |r| r.staging_target_path.clear()),
        ("staging_target_path", |r| r.staging_target_path = "a/b".into()),
        ("staging_target_path", |r| {
            r.staging_target_path = "/a/../b".into();
        }),
        ("staging_target_path", |r| r.staging_target_path = "/a/./b".into()),
        ("staging_target_path", |r| r.staging_target_path = "//".into()),
        ("staging_target_path", |r| r.staging_target_path = "/a\0b".into()),
        ("staging_target_path", |r| {
            r.staging_target_path = format!("/{}", "a".repeat(4095));
        }),
        ("volume_capability", |r| r.volume_capability = None),
        ("access_type", |r| {
            r.volume_capability.as_mut().unwrap().access_type = None;
        }),
        ("access_mode", |r| {
            r.volume_capability.as_mut().unwrap().access_mode = None;
        }),
        ("access_mode", |r| {
            r.volume_capability = Some(mount("", &[], Mode::Unknown));
        }),
        ("MULTI_NODE_MULTI_WRITER", |r| {
            r.volume_capability = Some(mount("", &[], Mode::MultiNodeMultiWriter));
        }),
        ("MULTI_NODE_SINGLE_WRITER", |r| {
            r.volume_capability = Some(mount("", &[], Mode::MultiNodeSingleWriter));
        }),
        ("fs_type", |r| {
            r.volume_capability = Some(mount("ntfs", &[], Mode::SingleNodeWriter));
        }),
        ("mount_flags", |r| {
            r.volume_capability = Some(mount("", &["remount"], Mode::SingleNodeWriter));
        }),
        ("volume_mount_group", |r| {
            let Some(AccessType::Mount(m)) = &mut r.volume_capability.as_mut().unwrap().access_type else {
                panic!()
            };
            m.volume_mount_group = "5".into();
        }),
        ("publish_context", |r| r.publish_context.clear()),
        ("wwid", |r| {
            drop(r.publish_context.insert("wwid".into(), "naa.1".into()));
        }),
        ("publish_context", |r| {
            drop(r.publish_context.insert("x".into(), "y".repeat(5000)));
        }),
    ];
    for (i, (field, change)) in cases.into_iter().enumerate() {
        let mut request = good();
        change(&mut request);
        let refusal = stage(&request).expect_err(field);
        assert_eq!(refusal.code(), Code::InvalidArgument, "case {i}: {refusal}");
        assert!(refusal.to_string().contains(field), "case {i}: {refusal}");
    }
}

#[test]
fn an_id_of_somebody_else_is_not_found_but_missing_fields_come_first() {
    let mut request = good();
    request.volume_id = "pvc-1".into();
    assert_eq!(stage(&request).expect_err("not ours").code(), Code::NotFound);
    request.volume_capability = None;
    assert_eq!(
        stage(&request).expect_err("missing").code(),
        Code::InvalidArgument
    );
}

#[test]
fn every_bad_field_of_publish_is_named() {
    let good = NodePublishVolumeRequest {
        volume_id: ID.to_owned(),
        staging_target_path: "/s".into(),
        target_path: "/t".into(),
        volume_capability: Some(mount("xfs", &["noatime"], Mode::SingleNodeReaderOnly)),
        ..NodePublishVolumeRequest::default()
    };
    assert!(publish(&good).expect("good").read_only, "a reader's mode");
    let cases: [(&str, Change<NodePublishVolumeRequest>); 6] = [
        ("volume_id", |r| r.volume_id.clear()),
        ("target_path", |r| r.target_path.clear()),
        ("target_path", |r| r.target_path = "relative".into()),
        ("target_path", |r| r.target_path = "/s/".into()),
        ("staging_target_path", |r| r.staging_target_path.clear()),
        ("volume_capability", |r| r.volume_capability = None),
    ];
    for (field, change) in cases {
        let mut request = good.clone();
        change(&mut request);
        let refusal = publish(&request).expect_err(field);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
        assert!(refusal.to_string().contains(field), "{refusal}");
    }
}

#[test]
fn what_forbids_writing_is_seen() {
    let of = |c: VolumeCapability| capability(Some(&c)).expect("good").read_only();
    assert!(of(mount("", &["ro"], Mode::SingleNodeWriter)));
    assert!(of(mount("", &[], Mode::MultiNodeReaderOnly)));
    assert!(!of(mount("", &[], Mode::SingleNodeMultiWriter)));
    let block = VolumeCapability {
        access_mode: Some(AccessMode {
            mode: Mode::MultiNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    };
    assert!(!of(block), "many writers are fine for a block volume");
}
