//! Secrets never print: every message with a field marked `csi_secret`, found in the descriptors, is filled and printed.

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};
use storagelink_proto::csi::v1;

const SECRET_KEYS: [&str; 2] = ["chap-user", "chap-word"];
const SECRET_VALUE: &str = "hunter2";
const NUMBER: i64 = 4711;

fn pool() -> DescriptorPool {
    DescriptorPool::decode(storagelink_proto::DESCRIPTORS).expect("descriptors decode")
}

fn secret_fields(message: &MessageDescriptor) -> Vec<FieldDescriptor> {
    let pool = message.parent_pool();
    let mark = pool
        .get_extension_by_name("csi.v1.csi_secret")
        .expect("csi_secret is declared");
    message
        .fields()
        .filter(|field| field.options().get_extension(&mark).as_bool() == Some(true))
        .collect()
}

/// A value for a field that is not secret, and the text by which it shows in Debug output.
fn visible(field: &FieldDescriptor) -> (Value, String) {
    let name = field.name();
    let text = format!("visible-{name}");
    let shown = format!("{text:?}");
    if field.is_map() {
        let pair = (MapKey::String("key".into()), Value::String(text));
        return (Value::Map([pair].into_iter().collect()), shown);
    }
    let (value, shown) = match field.kind() {
        Kind::String => (Value::String(text), shown),
        Kind::Bool => (Value::Bool(true), format!("{name}: true")),
        Kind::Int32 => (Value::I32(NUMBER as i32), format!("{name}: {NUMBER}")),
        Kind::Int64 => (Value::I64(NUMBER), format!("{name}: {NUMBER}")),
        Kind::Message(of) if field.is_list() => {
            (Value::Message(DynamicMessage::new(of)), format!("{name}: ["))
        }
        Kind::Message(of) => (Value::Message(DynamicMessage::new(of)), format!("{name}: Some(")),
        other => panic!("{}: no example for {other:?}", field.full_name()),
    };
    let value = if field.is_list() {
        Value::List(vec![value])
    } else {
        value
    };
    (value, shown)
}

/// `message` with every field set, encoded, and the texts that its Debug must hold.
fn filled(message: &MessageDescriptor) -> (Vec<u8>, Vec<String>) {
    let secret = secret_fields(message);
    let mut example = DynamicMessage::new(message.clone());
    let mut shown = Vec::new();
    for field in message.fields() {
        if secret.contains(&field) {
            let pairs =
                SECRET_KEYS.map(|key| (MapKey::String(key.into()), Value::String(SECRET_VALUE.into())));
            example.set_field(&field, Value::Map(pairs.into_iter().collect()));
            shown.push(format!("{}: <redacted: 2 keys>", field.name()));
        } else {
            let (value, text) = visible(&field);
            example.set_field(&field, value);
            shown.push(text);
        }
    }
    (example.encode_to_vec(), shown)
}

/// The plain and the indented Debug output of the message called `name`.
fn printed(name: &str, bytes: &[u8]) -> [String; 2] {
    macro_rules! one_of {
        ($($t:ident),* $(,)?) => {
            match name {
                $(stringify!($t) => {
                    let message = v1::$t::decode(bytes).expect("the generated type decodes it");
                    assert_eq!(message.secrets.len(), SECRET_KEYS.len(), "{name} was not filled");
                    [format!("{message:?}"), format!("{message:#?}")]
                })*
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
    let mut seen = 0;
    for message in pool().all_messages() {
        if secret_fields(&message).is_empty() {
            continue;
        }
        seen += 1;
        let (bytes, shown) = filled(&message);
        for text in printed(message.name(), &bytes) {
            for hidden in SECRET_KEYS.iter().chain([&SECRET_VALUE]) {
                assert!(!text.contains(hidden), "{hidden} in {text}");
            }
            for part in &shown {
                assert!(text.contains(part), "no {part} in {text}");
            }
        }
    }
    assert_eq!(seen, 19, "CSI 1.12 marks secrets in 19 messages");
}

/// The mark is what the build script goes by, so a secret without it would print.
#[test]
fn whatever_is_named_like_a_secret_is_marked() {
    for message in pool().all_messages() {
        let marked = secret_fields(&message);
        for field in message.fields() {
            let name = field.name();
            if name.contains("secret") || name.contains("password") {
                // The extension's own declaration is no field of a message, and map entries have only key and value.
                assert!(marked.contains(&field), "{} is not marked", field.full_name());
            }
        }
    }
}

#[test]
fn an_empty_and_a_single_secret_count_right() {
    let mut request = v1::DeleteVolumeRequest::default();
    assert!(format!("{request:?}").contains("secrets: <redacted: 0 keys>"));
    request.secrets.insert(SECRET_KEYS[0].into(), SECRET_VALUE.into());
    assert_eq!(
        format!("{request:?}"),
        r#"DeleteVolumeRequest { volume_id: "", secrets: <redacted: 1 key> }"#
    );
}
