//! Every call with every field missing, too long or malformed: the code, the field's name, and nothing has changed.

use std::collections::HashMap;

use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
use storagelink_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use storagelink_proto::csi::v1::*;
use tonic::{Code, Request, Status};

use crate::publish::{NODE_A, publish_request};
use crate::{Lab, create_request, inner, mount, refused, strings};

const UNKNOWN: &str = "0f1e2d3c-4b5a-5678-9abc-def012345678";

/// Runs one table: each change is made to a request that is right otherwise.
macro_rules! table {
    ($lab:ident, $call:ident, $good:expr, [$($change:expr => $code:ident $texts:expr),* $(,)?]) => {
        $({
            let mut request = $good;
            let change: &dyn Fn(&mut _) = &$change;
            change(&mut request);
            let result: Result<(), Status> = inner($lab.controller.$call(Request::new(request)).await).map(drop);
            refused(result, Code::$code, &$texts);
        })*
    };
}

fn large() -> HashMap<String, String> {
    strings(&[("k", &"v".repeat(5000))])
}

fn multi_writer() -> VolumeCapability {
    mount(Mode::MultiNodeMultiWriter)
}

fn no_type() -> VolumeCapability {
    VolumeCapability {
        access_type: None,
        access_mode: Some(AccessMode { mode: 1 }),
    }
}

fn no_mode() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: None,
    }
}

fn fs(fs_type: &str) -> VolumeCapability {
    let mount = MountVolume {
        fs_type: fs_type.to_owned(),
        ..Default::default()
    };
    VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: 1 }),
    }
}

#[tokio::test]
async fn create_volume() {
    let lab = Lab::new().await;
    let content = |source| Some(VolumeContentSource { r#type: Some(source) });
    use volume_content_source::{SnapshotSource, Type, VolumeSource};
    table!(lab, create_volume, create_request("pvc-1"), [
        |r: &mut CreateVolumeRequest| r.name.clear() => InvalidArgument ["name: is required"],
        |r: &mut CreateVolumeRequest| r.name = "x".repeat(129) => InvalidArgument ["name: has 129 bytes", "128"],
        |r: &mut CreateVolumeRequest| r.name = "a\u{7}b".into() => InvalidArgument ["name: holds a control"],
        |r: &mut CreateVolumeRequest| r.volume_capabilities.clear() => InvalidArgument ["volume_capabilities"],
        |r: &mut CreateVolumeRequest| r.volume_capabilities.push(no_type()) => InvalidArgument ["access_type"],
        |r: &mut CreateVolumeRequest| r.volume_capabilities.push(no_mode()) => InvalidArgument ["access_mode"],
        |r: &mut CreateVolumeRequest| r.volume_capabilities.push(fs("zfs")) => InvalidArgument ["fs_type", "ext4"],
        |r: &mut CreateVolumeRequest| r.volume_capabilities.push(multi_writer())
            => InvalidArgument ["MULTI_NODE_MULTI_WRITER", "destroyed", "block volume"],
        |r: &mut CreateVolumeRequest| r.capacity_range = Some(CapacityRange::default())
            => InvalidArgument ["capacity_range"],
        |r: &mut CreateVolumeRequest| r.capacity_range = Some(CapacityRange { required_bytes: -1, limit_bytes: 0 })
            => InvalidArgument ["required_bytes"],
        |r: &mut CreateVolumeRequest| r.capacity_range = Some(CapacityRange { required_bytes: 2, limit_bytes: 1 })
            => InvalidArgument ["limit_bytes"],
        |r: &mut CreateVolumeRequest| drop(r.parameters.insert("agregate".into(), "x".into()))
            => InvalidArgument ["agregate", "aggregate"],
        |r: &mut CreateVolumeRequest| r.parameters.extend(large()) => InvalidArgument ["parameters", "4096"],
        |r: &mut CreateVolumeRequest| drop(r.parameters.insert("target".into(), "a b".into()))
            => InvalidArgument ["parameters[target]"],
        |r: &mut CreateVolumeRequest| drop(r.parameters.insert("target".into(), format!("{0}.{0}", "a".repeat(60))))
            => InvalidArgument ["parameters[target]", "128"],
        |r: &mut CreateVolumeRequest| drop(r.parameters.insert("port".into(), "0".into()))
            => InvalidArgument ["parameters[port]"],
        |r: &mut CreateVolumeRequest| drop(r.parameters.insert("protocol".into(), "fc".into()))
            => InvalidArgument ["parameters[protocol]", "iscsi"],
        |r: &mut CreateVolumeRequest| drop(r.parameters.insert("provisionType".into(), "x".into()))
            => InvalidArgument ["parameters[provisionType]", "thin or thick"],
        |r: &mut CreateVolumeRequest| r.secrets = large() => InvalidArgument ["secrets", "4096"],
        |r: &mut CreateVolumeRequest| r.mutable_parameters = strings(&[("iops", "1")])
            => InvalidArgument ["mutable_parameters"],
        |r: &mut CreateVolumeRequest| r.accessibility_requirements = Some(TopologyRequirement::default())
            => InvalidArgument ["accessibility_requirements"],
        |r: &mut CreateVolumeRequest| r.volume_content_source = content(Type::Snapshot(SnapshotSource::default()))
            => InvalidArgument ["volume_content_source"],
        |r: &mut CreateVolumeRequest| r.volume_content_source = content(Type::Volume(VolumeSource::default()))
            => InvalidArgument ["volume_content_source"],
    ]);
    assert!(
        lab.fake.array().calls.is_empty(),
        "bad input never reaches the array"
    );
}

#[tokio::test]
async fn calls_about_a_volume() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let before = lab.fake.array().volumes.clone();

    let delete = DeleteVolumeRequest {
        volume_id: id.clone(),
        ..Default::default()
    };
    table!(lab, delete_volume, delete.clone(), [
        |r: &mut DeleteVolumeRequest| r.volume_id.clear() => InvalidArgument ["volume_id: is required"],
        |r: &mut DeleteVolumeRequest| r.volume_id = "x".repeat(129) => InvalidArgument ["volume_id", "128"],
        |r: &mut DeleteVolumeRequest| r.secrets = large() => InvalidArgument ["secrets"],
    ]);
    for unknown in [UNKNOWN, "not-one-of-ours", "../etc/passwd"] {
        let request = DeleteVolumeRequest {
            volume_id: unknown.to_owned(),
            ..Default::default()
        };
        lab.controller.delete_volume(Request::new(request)).await.unwrap();
    }

    let publish = || publish_request(&id, NODE_A, mount(Mode::SingleNodeWriter));
    table!(lab, controller_publish_volume, publish(), [
        |r: &mut ControllerPublishVolumeRequest| r.volume_id.clear() => InvalidArgument ["volume_id"],
        |r: &mut ControllerPublishVolumeRequest| r.volume_id = "x".repeat(129) => InvalidArgument ["volume_id"],
        |r: &mut ControllerPublishVolumeRequest| r.volume_id = UNKNOWN.into() => NotFound [UNKNOWN],
        |r: &mut ControllerPublishVolumeRequest| r.node_id.clear() => InvalidArgument ["node_id"],
        |r: &mut ControllerPublishVolumeRequest| r.node_id = "x".repeat(257) => InvalidArgument ["node_id", "256"],
        |r: &mut ControllerPublishVolumeRequest| r.node_id = "a/b".into() => NotFound ["node a/b"],
        |r: &mut ControllerPublishVolumeRequest| r.volume_capability = None => InvalidArgument ["volume_capability"],
        |r: &mut ControllerPublishVolumeRequest| r.volume_capability = Some(no_mode())
            => InvalidArgument ["access_mode"],
        |r: &mut ControllerPublishVolumeRequest| r.volume_capability = Some(multi_writer())
            => InvalidArgument ["access_mode"],
        |r: &mut ControllerPublishVolumeRequest| r.volume_context = large() => InvalidArgument ["volume_context"],
        |r: &mut ControllerPublishVolumeRequest| r.secrets = large() => InvalidArgument ["secrets"],
    ]);

    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: id.clone(),
        node_id: NODE_A.into(),
        ..Default::default()
    };
    table!(lab, controller_unpublish_volume, unpublish.clone(), [
        |r: &mut ControllerUnpublishVolumeRequest| r.volume_id.clear() => InvalidArgument ["volume_id"],
        |r: &mut ControllerUnpublishVolumeRequest| r.volume_id = "x".repeat(129) => InvalidArgument ["volume_id"],
        |r: &mut ControllerUnpublishVolumeRequest| r.node_id = "x".repeat(257) => InvalidArgument ["node_id"],
        |r: &mut ControllerUnpublishVolumeRequest| r.secrets = large() => InvalidArgument ["secrets"],
    ]);

    let range = |required_bytes, limit_bytes| {
        Some(CapacityRange {
            required_bytes,
            limit_bytes,
        })
    };
    let expand = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: range(1 << 31, 0),
        ..Default::default()
    };
    table!(lab, controller_expand_volume, expand.clone(), [
        |r: &mut ControllerExpandVolumeRequest| r.volume_id.clear() => InvalidArgument ["volume_id"],
        |r: &mut ControllerExpandVolumeRequest| r.volume_id = "x".repeat(129) => InvalidArgument ["volume_id"],
        |r: &mut ControllerExpandVolumeRequest| r.volume_id = UNKNOWN.into() => NotFound [UNKNOWN],
        |r: &mut ControllerExpandVolumeRequest| r.capacity_range = None => InvalidArgument ["capacity_range"],
        |r: &mut ControllerExpandVolumeRequest| r.capacity_range = range(0, 0) => InvalidArgument ["capacity_range"],
        |r: &mut ControllerExpandVolumeRequest| r.capacity_range = range(-1, 0) => InvalidArgument ["required_bytes"],
        |r: &mut ControllerExpandVolumeRequest| r.capacity_range = range(0, 1) => OutOfRange ["limit_bytes"],
        |r: &mut ControllerExpandVolumeRequest| r.volume_capability = Some(no_type())
            => InvalidArgument ["access_type"],
        |r: &mut ControllerExpandVolumeRequest| r.secrets = large() => InvalidArgument ["secrets"],
    ]);

    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![mount(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    table!(lab, validate_volume_capabilities, validate.clone(), [
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_id.clear() => InvalidArgument ["volume_id"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_id = "x".repeat(129) => InvalidArgument ["volume_id"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_id = UNKNOWN.into() => NotFound [UNKNOWN],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_id = "unknown".into() => NotFound ["unknown"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_capabilities.clear()
            => InvalidArgument ["volume_capabilities"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_capabilities.push(no_type())
            => InvalidArgument ["access_type"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.volume_context = large() => InvalidArgument ["volume_context"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.parameters = large() => InvalidArgument ["parameters"],
        |r: &mut ValidateVolumeCapabilitiesRequest| r.secrets = large() => InvalidArgument ["secrets"],
    ]);

    let get = ControllerGetVolumeRequest {
        volume_id: id.clone(),
    };
    table!(lab, controller_get_volume, get.clone(), [
        |r: &mut ControllerGetVolumeRequest| r.volume_id.clear() => InvalidArgument ["volume_id"],
        |r: &mut ControllerGetVolumeRequest| r.volume_id = "x".repeat(129) => InvalidArgument ["volume_id"],
        |r: &mut ControllerGetVolumeRequest| r.volume_id = UNKNOWN.into() => NotFound [UNKNOWN],
    ]);
    assert_eq!(lab.fake.array().volumes, before, "bad input changes nothing");
}

#[tokio::test]
async fn lists_and_capacity() {
    let lab = Lab::new().await;
    table!(lab, list_volumes, ListVolumesRequest::default(), [
        |r: &mut ListVolumesRequest| r.max_entries = -1 => InvalidArgument ["max_entries"],
        |r: &mut ListVolumesRequest| r.starting_token = "x".repeat(5000) => InvalidArgument ["starting_token"],
        |r: &mut ListVolumesRequest| r.starting_token = "x".into() => Aborted ["page_token"],
    ]);
    let topology = || {
        Some(Topology {
            segments: strings(&[("zone", "a")]),
        })
    };
    table!(lab, get_capacity, GetCapacityRequest::default(), [
        |r: &mut GetCapacityRequest| r.parameters = large() => InvalidArgument ["parameters"],
        |r: &mut GetCapacityRequest| r.parameters = strings(&[("typo", "x")]) => InvalidArgument ["typo"],
        |r: &mut GetCapacityRequest| r.volume_capabilities.push(no_mode()) => InvalidArgument ["access_mode"],
        |r: &mut GetCapacityRequest| r.accessible_topology = topology() => InvalidArgument ["accessible_topology"],
    ]);
}
