//! Secrets never print: every message with a field marked `csi_secret`, found in the descriptors, is filled and printed.

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, Value};
use storagelink_proto::csi::v1;

const SECRET: &str = "hunter2";

fn pool() -> DescriptorPool {
    DescriptorPool::decode(storagelink_proto::DESCRIPTORS).expect("descriptors decode")
}

/// A message with "visible" in its first plain string and the secret in every secret map.
fn filled(message: &MessageDescriptor, secret_fields: &[String]) -> Vec<u8> {
    let mut example = DynamicMessage::new(message.clone());
    for field in message.fields() {
        if secret_fields.iter().any(|name| name == field.name()) {
            let pair = [(
                MapKey::String("password".to_owned()),
                Value::String(SECRET.into()),
            )];
            example.set_field(&field, Value::Map(pair.into_iter().collect()));
        } else if field.kind() == prost_reflect::Kind::String && !field.is_list() && !field.is_map() {
            example.set_field(&field, Value::String("visible".into()));
        }
    }
    example.encode_to_vec()
}

fn printed(name: &str, bytes: &[u8]) -> String {
    macro_rules! one_of {
        ($($t:ident),* $(,)?) => {
            match name {
                $(stringify!($t) => format!("{:?} {:#?}", v1::$t::decode(bytes).unwrap(), v1::$t::decode(bytes).unwrap()),)*
                other => panic!("{other} holds a secret and is not tested: add it here"),
            }
        };
    }
    one_of!(
        CreateVolumeRequest,
        DeleteVolumeRequest,
        ControllerPublishVolumeRequest,
        ControllerUnpublishVolumeRequest,
        ValidateVolumeCapabilitiesRequest,
        ControllerModifyVolumeRequest,
        CreateSnapshotRequest,
        DeleteSnapshotRequest,
        ListSnapshotsRequest,
        GetSnapshotRequest,
        ControllerExpandVolumeRequest,
        NodeStageVolumeRequest,
        NodePublishVolumeRequest,
        NodeExpandVolumeRequest,
        CreateVolumeGroupSnapshotRequest,
        DeleteVolumeGroupSnapshotRequest,
        GetVolumeGroupSnapshotRequest,
        GetMetadataAllocatedRequest,
        GetMetadataDeltaRequest,
    )
}

#[test]
fn no_message_prints_its_secrets() {
    let pool = pool();
    let mark = pool.get_extension_by_name("csi.v1.csi_secret").unwrap();
    let mut seen = 0;
    for message in pool.all_messages() {
        let secret: Vec<String> = message
            .fields()
            .filter(|field| field.options().get_extension(&mark).as_bool() == Some(true))
            .map(|field| field.name().to_owned())
            .collect();
        if secret.is_empty() {
            continue;
        }
        seen += 1;
        let text = printed(message.name(), &filled(&message, &secret));
        assert!(!text.contains(SECRET) && !text.contains("password"), "{text}");
        assert!(text.contains("<redacted: 1 entries>"), "{text}");
        assert!(
            text.contains("visible") || message.fields().len() == secret.len(),
            "{text}"
        );
    }
    assert_eq!(seen, 19, "CSI 1.12 marks secrets in 19 messages");
}

#[test]
fn the_services_are_those_of_csi_1_12() {
    let pool = pool();
    let methods = |service: &str| -> Vec<String> {
        let service = pool
            .get_service_by_name(service)
            .unwrap_or_else(|| panic!("no {service}"));
        service.methods().map(|method| method.name().to_owned()).collect()
    };
    assert_eq!(
        methods("csi.v1.Identity"),
        ["GetPluginInfo", "GetPluginCapabilities", "Probe"]
    );
    assert_eq!(methods("csi.v1.Controller").len(), 15);
    assert_eq!(methods("csi.v1.Node").len(), 8);
    assert_eq!(
        methods("csi.v1.GroupController"),
        [
            "GroupControllerGetCapabilities",
            "CreateVolumeGroupSnapshot",
            "DeleteVolumeGroupSnapshot",
            "GetVolumeGroupSnapshot"
        ]
    );
    assert_eq!(
        methods("csi.v1.SnapshotMetadata"),
        ["GetMetadataAllocated", "GetMetadataDelta"]
    );
}

#[test]
fn numbers_on_the_wire_are_the_specifications() {
    let pool = pool();
    for (field, number) in [
        ("CreateVolumeRequest.parameters", 4),
        ("CreateVolumeRequest.mutable_parameters", 8),
        ("Volume.capacity_bytes", 1),
        ("Volume.volume_id", 2),
        ("ControllerPublishVolumeRequest.readonly", 4),
        ("ListVolumesResponse.VolumeStatus.published_node_ids", 1),
        ("NodeStageVolumeRequest.publish_context", 2),
        ("NodeStageVolumeRequest.secrets", 5),
        ("NodePublishVolumeRequest.readonly", 6),
        ("NodeGetVolumeStatsRequest.staging_target_path", 3),
        ("NodeExpandVolumeRequest.volume_capability", 5),
        ("NodeGetInfoResponse.accessible_topology", 3),
        ("VolumeCapability.MountVolume.volume_mount_group", 3),
        ("VolumeUsage.unit", 4),
    ] {
        let (message, name) = field.rsplit_once('.').unwrap();
        let message = pool
            .get_message_by_name(&format!("csi.v1.{message}"))
            .unwrap_or_else(|| panic!("no {field}"));
        let descriptor = message
            .get_field_by_name(name)
            .unwrap_or_else(|| panic!("no {field}"));
        assert_eq!(descriptor.number(), number, "{field}");
    }
}
