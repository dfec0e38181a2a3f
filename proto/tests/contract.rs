//! The contract on the wire: services, numbers, names and types of CSI 1.12, as the specification's csi.proto (tag v1.12.0) has them.
//!
//! A wrong number here would still pass every test in which this crate talks to itself.

use prost_reflect::{DescriptorPool, EnumDescriptor, MessageDescriptor};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(storagelink_proto::DESCRIPTORS).expect("descriptors decode")
}

/// `name = number: type` of every field, in the order of the numbers.
fn fields(message: &MessageDescriptor) -> Vec<String> {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(prost_reflect::FieldDescriptor::number);
    fields
        .iter()
        .map(|field| {
            let kind = if field.is_map() {
                "map".to_owned()
            } else if field.is_list() {
                format!("[{:?}]", field.kind())
            } else {
                format!("{:?}", field.kind())
            };
            let oneof = field
                .containing_oneof()
                .map_or(String::new(), |oneof| format!(" of {}", oneof.name()));
            format!("{} = {}: {kind}{oneof}", field.name(), field.number())
        })
        .collect()
}

#[test]
fn the_services_are_those_of_csi_1_12() {
    let pool = pool();
    let services: [(&str, &[&str]); 5] = [
        ("Identity", &["GetPluginInfo", "GetPluginCapabilities", "Probe"]),
        (
            "Controller",
            &[
                "CreateVolume",
                "DeleteVolume",
                "ControllerPublishVolume",
                "ControllerUnpublishVolume",
                "ValidateVolumeCapabilities",
                "ListVolumes",
                "GetCapacity",
                "ControllerGetCapabilities",
                "CreateSnapshot",
                "DeleteSnapshot",
                "ListSnapshots",
                "GetSnapshot",
                "ControllerExpandVolume",
                "ControllerGetVolume",
                "ControllerModifyVolume",
            ],
        ),
        (
            "GroupController",
            &[
                "GroupControllerGetCapabilities",
                "CreateVolumeGroupSnapshot",
                "DeleteVolumeGroupSnapshot",
                "GetVolumeGroupSnapshot",
            ],
        ),
        ("SnapshotMetadata", &["GetMetadataAllocated", "GetMetadataDelta"]),
        (
            "Node",
            &[
                "NodeStageVolume",
                "NodeUnstageVolume",
                "NodePublishVolume",
                "NodeUnpublishVolume",
                "NodeGetVolumeStats",
                "NodeExpandVolume",
                "NodeGetCapabilities",
                "NodeGetInfo",
            ],
        ),
    ];
    let csi: Vec<_> = pool.services().filter(|s| s.package_name() == "csi.v1").collect();
    assert_eq!(csi.len(), services.len());
    for (name, expected) in services {
        let service = csi
            .iter()
            .find(|s| s.name() == name)
            .unwrap_or_else(|| panic!("no service {name}"));
        let mut methods = Vec::new();
        for method in service.methods() {
            // Every call of CSI takes <name>Request and answers <name>Response; only the metadata calls stream.
            assert_eq!(method.input().name(), format!("{}Request", method.name()));
            assert_eq!(method.output().name(), format!("{}Response", method.name()));
            assert!(!method.is_client_streaming(), "{}", method.full_name());
            assert_eq!(method.is_server_streaming(), name == "SnapshotMetadata");
            methods.push(method.name().to_owned());
        }
        assert_eq!(methods, expected, "{name}");
    }
}

#[test]
fn fields_are_the_specifications() {
    let pool = pool();
    let table: [(&str, &[&str]); 14] = [
        ("ProbeResponse", &["ready = 1: google.protobuf.BoolValue"]),
        (
            "CreateVolumeRequest",
            &[
                "name = 1: string",
                "capacity_range = 2: csi.v1.CapacityRange",
                "volume_capabilities = 3: [csi.v1.VolumeCapability]",
                "parameters = 4: map",
                "secrets = 5: map",
                "volume_content_source = 6: csi.v1.VolumeContentSource",
                "accessibility_requirements = 7: csi.v1.TopologyRequirement",
                "mutable_parameters = 8: map",
            ],
        ),
        (
            "Volume",
            &[
                "capacity_bytes = 1: int64",
                "volume_id = 2: string",
                "volume_context = 3: map",
                "content_source = 4: csi.v1.VolumeContentSource",
                "accessible_topology = 5: [csi.v1.Topology]",
            ],
        ),
        (
            "VolumeCapability",
            &[
                "block = 1: csi.v1.VolumeCapability.BlockVolume of access_type",
                "mount = 2: csi.v1.VolumeCapability.MountVolume of access_type",
                "access_mode = 3: csi.v1.VolumeCapability.AccessMode",
            ],
        ),
        (
            "VolumeCapability.MountVolume",
            &[
                "fs_type = 1: string",
                "mount_flags = 2: [string]",
                "volume_mount_group = 3: string",
            ],
        ),
        (
            "ControllerPublishVolumeRequest",
            &[
                "volume_id = 1: string",
                "node_id = 2: string",
                "volume_capability = 3: csi.v1.VolumeCapability",
                "readonly = 4: bool",
                "secrets = 5: map",
                "volume_context = 6: map",
            ],
        ),
        (
            "ControllerGetVolumeResponse",
            &[
                "volume = 1: csi.v1.Volume",
                "status = 2: csi.v1.ControllerGetVolumeResponse.VolumeStatus",
            ],
        ),
        (
            "ControllerGetVolumeResponse.VolumeStatus",
            &[
                "published_node_ids = 1: [string]",
                "volume_condition = 2: csi.v1.VolumeCondition",
            ],
        ),
        (
            "GetCapacityResponse",
            &[
                "available_capacity = 1: int64",
                "maximum_volume_size = 2: google.protobuf.Int64Value",
                "minimum_volume_size = 3: google.protobuf.Int64Value",
            ],
        ),
        (
            "Snapshot",
            &[
                "size_bytes = 1: int64",
                "snapshot_id = 2: string",
                "source_volume_id = 3: string",
                "creation_time = 4: google.protobuf.Timestamp",
                "ready_to_use = 5: bool",
                "group_snapshot_id = 6: string",
            ],
        ),
        (
            "NodeStageVolumeRequest",
            &[
                "volume_id = 1: string",
                "publish_context = 2: map",
                "staging_target_path = 3: string",
                "volume_capability = 4: csi.v1.VolumeCapability",
                "secrets = 5: map",
                "volume_context = 6: map",
            ],
        ),
        (
            "NodePublishVolumeRequest",
            &[
                "volume_id = 1: string",
                "publish_context = 2: map",
                "staging_target_path = 3: string",
                "target_path = 4: string",
                "volume_capability = 5: csi.v1.VolumeCapability",
                "readonly = 6: bool",
                "secrets = 7: map",
                "volume_context = 8: map",
            ],
        ),
        (
            "NodeExpandVolumeRequest",
            &[
                "volume_id = 1: string",
                "volume_path = 2: string",
                "capacity_range = 3: csi.v1.CapacityRange",
                "staging_target_path = 4: string",
                "volume_capability = 5: csi.v1.VolumeCapability",
                "secrets = 6: map",
            ],
        ),
        (
            "NodeGetInfoResponse",
            &[
                "node_id = 1: string",
                "max_volumes_per_node = 2: int64",
                "accessible_topology = 3: csi.v1.Topology",
            ],
        ),
    ];
    for (name, expected) in table {
        let message = pool
            .get_message_by_name(&format!("csi.v1.{name}"))
            .unwrap_or_else(|| panic!("no message {name}"));
        assert_eq!(fields(&message), expected, "{name}");
    }
}

#[test]
fn enumerations_are_the_specifications() {
    let pool = pool();
    let values = |name: &str| -> Vec<String> {
        let descriptor: EnumDescriptor = pool
            .get_enum_by_name(&format!("csi.v1.{name}"))
            .unwrap_or_else(|| panic!("no enumeration {name}"));
        // All of them count from 0 without a gap, so the place is the number.
        for (place, value) in descriptor.values().enumerate() {
            assert_eq!(i32::try_from(place).ok(), Some(value.number()), "{name}");
        }
        descriptor.values().map(|value| value.name().to_owned()).collect()
    };
    assert_eq!(
        values("VolumeCapability.AccessMode.Mode"),
        [
            "UNKNOWN",
            "SINGLE_NODE_WRITER",
            "SINGLE_NODE_READER_ONLY",
            "MULTI_NODE_READER_ONLY",
            "MULTI_NODE_SINGLE_WRITER",
            "MULTI_NODE_MULTI_WRITER",
            "SINGLE_NODE_SINGLE_WRITER",
            "SINGLE_NODE_MULTI_WRITER",
        ]
    );
    assert_eq!(
        values("ControllerServiceCapability.RPC.Type"),
        [
            "UNKNOWN",
            "CREATE_DELETE_VOLUME",
            "PUBLISH_UNPUBLISH_VOLUME",
            "LIST_VOLUMES",
            "GET_CAPACITY",
            "CREATE_DELETE_SNAPSHOT",
            "LIST_SNAPSHOTS",
            "CLONE_VOLUME",
            "PUBLISH_READONLY",
            "EXPAND_VOLUME",
            "LIST_VOLUMES_PUBLISHED_NODES",
            "VOLUME_CONDITION",
            "GET_VOLUME",
            "SINGLE_NODE_MULTI_WRITER",
            "MODIFY_VOLUME",
            "GET_SNAPSHOT",
        ]
    );
    assert_eq!(
        values("NodeServiceCapability.RPC.Type"),
        [
            "UNKNOWN",
            "STAGE_UNSTAGE_VOLUME",
            "GET_VOLUME_STATS",
            "EXPAND_VOLUME",
            "VOLUME_CONDITION",
            "SINGLE_NODE_MULTI_WRITER",
            "VOLUME_MOUNT_GROUP",
        ]
    );
    assert_eq!(
        values("PluginCapability.Service.Type"),
        [
            "UNKNOWN",
            "CONTROLLER_SERVICE",
            "VOLUME_ACCESSIBILITY_CONSTRAINTS",
            "GROUP_CONTROLLER_SERVICE",
            "SNAPSHOT_METADATA_SERVICE",
        ]
    );
    assert_eq!(values("VolumeUsage.Unit"), ["UNKNOWN", "BYTES", "INODES"]);
}

#[test]
fn options_have_the_specifications_numbers() {
    let pool = pool();
    let extensions: Vec<(String, u32)> = pool
        .all_extensions()
        .filter(|extension| extension.package_name() == "csi.v1")
        .map(|extension| (extension.name().to_owned(), extension.number()))
        .collect();
    assert_eq!(extensions.len(), 7);
    for (name, number) in extensions {
        let expected = if name == "csi_secret" { 1059 } else { 1060 };
        assert_eq!(number, expected, "{name}");
    }
}
