//! ControllerGetCapabilities: exactly what works.

use storagelink_proto::csi::v1::controller_service_capability::{Rpc, Type, rpc};
use storagelink_proto::csi::v1::{ControllerGetCapabilitiesResponse, ControllerServiceCapability};

/// What the controller can do. Every entry is driven by a test.
pub const CAPABILITIES: [rpc::Type; 14] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::PublishReadonly,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::GetCapacity,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::GetSnapshot,
    rpc::Type::CloneVolume,
];

pub(super) fn answer() -> ControllerGetCapabilitiesResponse {
    let capability = |kind: rpc::Type| ControllerServiceCapability {
        r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
    };
    ControllerGetCapabilitiesResponse {
        capabilities: CAPABILITIES.map(capability).into(),
    }
}
