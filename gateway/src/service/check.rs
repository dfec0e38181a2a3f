//! What a request must look like. Texts name the field and what is allowed; nothing has been changed when one is refused.

use storagelink_proto::storagelink::v1;
use tonic::Status;

use crate::{ids, records::Source};

fn bad(field: &str, allowed: &str) -> Status {
    Status::invalid_argument(format!("{field}: {allowed}"))
}

/// Bytes of a CSI volume name (CSI 1.12, general size limits).
const NAME: usize = 128;
/// Attributes: number, bytes of a key, bytes of a value.
const ATTRIBUTES: (usize, usize, usize) = (64, 128, 1024);

pub(super) fn volume_id(id: &str) -> Result<(), Status> {
    uuid("id", id)
}

fn uuid(field: &str, id: &str) -> Result<(), Status> {
    if ids::is_volume_id(id) {
        Ok(())
    } else {
        Err(bad(field, "must be a UUID, lower case, hyphenated"))
    }
}

fn name(name: &str) -> Result<(), Status> {
    if name.is_empty() || name.len() > NAME || name.chars().any(char::is_control) {
        return Err(bad("name", "must be 1 to 128 bytes without control characters"));
    }
    Ok(())
}

pub(super) fn snapshot(request: &v1::CreateSnapshotRequest) -> Result<(), Status> {
    uuid("id", &request.id)?;
    uuid("volume_id", &request.volume_id)?;
    name(&request.name)
}

/// What a volume is made from.
pub(super) fn source(request: &v1::CreateVolumeRequest) -> Result<Option<Source>, Status> {
    let given: Vec<(&str, &String)> = [
        ("source_volume_id", &request.source_volume_id),
        ("source_snapshot_id", &request.source_snapshot_id),
        ("source_lun", &request.source_lun),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .collect();
    match given[..] {
        [] => Ok(None),
        [(field @ "source_volume_id", id)] => uuid(field, id).map(|()| Some(Source::Volume(id.clone()))),
        [(field @ "source_snapshot_id", id)] => uuid(field, id).map(|()| Some(Source::Snapshot(id.clone()))),
        [(field, lun)] => lun_name(field, lun).map(|()| Some(Source::Lun(lun.clone()))),
        [(first, _), (second, _), ..] => Err(bad(second, &format!("excludes {first}"))),
    }
}

/// A name as targetcli gives it: one directory name in configfs.
fn lun_name(field: &str, lun: &str) -> Result<(), Status> {
    let allowed = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    if lun.len() > NAME || lun.starts_with('.') || !lun.chars().all(allowed) {
        return Err(bad(
            field,
            "must be 1 to 128 bytes without blanks, slashes and control characters, and not begin with a dot",
        ));
    }
    Ok(())
}

pub(super) fn protocol(value: i32) -> Result<v1::Protocol, Status> {
    v1::Protocol::try_from(value).map_err(|_| bad("protocol", "is not known"))
}

pub(super) fn create(request: &v1::CreateVolumeRequest) -> Result<(), Status> {
    volume_id(&request.id)?;
    if request.aggregate.is_empty() {
        return Err(bad("aggregate", "is missing"));
    }
    name(&request.name)?;
    if request.size_bytes == 0 {
        return Err(bad("size_bytes", "must be at least 1"));
    }
    if request.limit_bytes > 0 && request.limit_bytes < request.size_bytes {
        return Err(bad("limit_bytes", "must not be below size_bytes"));
    }
    if v1::ProvisionType::try_from(request.provision_type).is_err() {
        return Err(bad("provision_type", "must be thin or thick"));
    }
    let (number, key, value) = ATTRIBUTES;
    if request.attributes.len() > number
        || request
            .attributes
            .iter()
            .any(|(k, v)| k.len() > key || v.len() > value)
    {
        return Err(bad(
            "attributes",
            "at most 64 pairs, keys of 128 bytes and values of 1024",
        ));
    }
    Ok(())
}

pub(super) fn expand(request: &v1::ExpandVolumeRequest) -> Result<(), Status> {
    volume_id(&request.id)?;
    if request.size_bytes == 0 {
        return Err(bad("size_bytes", "must be at least 1"));
    }
    if request.limit_bytes > 0 && request.limit_bytes < request.size_bytes {
        return Err(bad("limit_bytes", "must not be below size_bytes"));
    }
    Ok(())
}

pub(super) fn map(request: &v1::MapVolumeRequest) -> Result<&v1::Host, Status> {
    volume_id(&request.id)?;
    if protocol(request.protocol)? == v1::Protocol::Fc {
        return Err(bad("protocol", "this system serves iscsi only"));
    }
    let host = request.host.as_ref().ok_or_else(|| bad("host", "is missing"))?;
    // RFC 1123, as Kubernetes names nodes.
    let name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if host.name.is_empty() || host.name.len() > 253 || !host.name.bytes().all(name_byte) {
        return Err(bad(
            "host.name",
            "must be 1 to 253 lower-case letters, digits, hyphens or dots",
        ));
    }
    if !is_initiator(&host.iscsi_initiator) {
        return Err(bad(
            "host.iscsi_initiator",
            "must be an iSCSI name: iqn., eui. or naa., at most 223 bytes, lower case",
        ));
    }
    Ok(host)
}

/// RFC 7143 4.2.7; also what configfs takes as one directory name, and rtslib lists.
fn is_initiator(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':');
    let kind = ["iqn.", "eui.", "naa."]
        .iter()
        .any(|kind| name.strip_prefix(kind).is_some_and(|rest| !rest.is_empty()));
    kind && name.len() <= 223 && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<(), Status>, field: &str) {
        let status = result.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }

    #[test]
    fn each_bad_field_of_a_creation_is_named() {
        let good = v1::CreateVolumeRequest {
            id: "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e".into(),
            aggregate: "a".into(),
            name: "pvc-1".into(),
            size_bytes: 1,
            ..Default::default()
        };
        assert!(create(&good).is_ok());
        refused(
            create(&v1::CreateVolumeRequest {
                id: "x".into(),
                ..good.clone()
            }),
            "id",
        );
        refused(
            create(&v1::CreateVolumeRequest {
                aggregate: String::new(),
                ..good.clone()
            }),
            "aggregate",
        );
        refused(
            create(&v1::CreateVolumeRequest {
                name: "n".repeat(129),
                ..good.clone()
            }),
            "name",
        );
        refused(
            create(&v1::CreateVolumeRequest {
                name: "a\nb".into(),
                ..good.clone()
            }),
            "name",
        );
        refused(
            create(&v1::CreateVolumeRequest {
                size_bytes: 0,
                ..good.clone()
            }),
            "size_bytes",
        );
        refused(
            create(&v1::CreateVolumeRequest {
                size_bytes: 9,
                limit_bytes: 8,
                ..good.clone()
            }),
            "limit_bytes",
        );
        refused(
            create(&v1::CreateVolumeRequest {
                provision_type: 9,
                ..good
            }),
            "provision_type",
        );
    }

    #[test]
    fn each_bad_field_of_a_mapping_is_named() {
        let host = v1::Host {
            name: "node1".into(),
            iscsi_initiator: "iqn.2026-11.com.example:node1".into(),
            fc_initiators: vec![],
        };
        let good = v1::MapVolumeRequest {
            id: "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e".into(),
            host: Some(host.clone()),
            protocol: v1::Protocol::Iscsi.into(),
            ..Default::default()
        };
        let map = |request: &v1::MapVolumeRequest| map(request).map(drop);
        assert!(map(&good).is_ok());
        let with = |change: fn(&mut v1::Host)| {
            let mut host = host.clone();
            change(&mut host);
            v1::MapVolumeRequest {
                host: Some(host),
                ..good.clone()
            }
        };
        refused(
            map(&v1::MapVolumeRequest {
                host: None,
                ..good.clone()
            }),
            "host",
        );
        refused(
            map(&v1::MapVolumeRequest {
                protocol: 2,
                ..good.clone()
            }),
            "protocol",
        );
        refused(map(&with(|host| host.name = "a/b".into())), "host.name");
        for name in [
            "",
            "iqn.",
            "../../x",
            "iqn.2026-11.com.example:a/b",
            "iqn.2026-11.com.example:A",
        ] {
            let mut bad = with(|_| {});
            if let Some(host) = &mut bad.host {
                name.clone_into(&mut host.iscsi_initiator);
            }
            refused(map(&bad), "host.iscsi_initiator");
        }
    }
}
