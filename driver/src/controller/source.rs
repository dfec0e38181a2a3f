//! What a new volume begins with: a snapshot or another volume, found before anything is made.

use storagelink_proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use storagelink_proto::csi::v1::{CreateVolumeRequest, VolumeContentSource};
use storagelink_proto::storagelink::v1::Volume;
use tonic::Code;

use crate::codes::{Coded, Rpc};
use crate::fields::{self, FieldError, MAX_STRING_BYTES};
use crate::gateway::error::CallError;
use crate::gateway::{Client, GatewayError};
use crate::ids::{Endpoint, VolumeId};
use crate::parameters::AggregateChoice;

#[derive(Debug, thiserror::Error)]
pub(super) enum SourceError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Gateway(#[from] CallError),
    #[error("volume_content_source: {0} does not exist")]
    Missing(String),
    #[error("capacity_range: {from} has {has} bytes, a volume made from it cannot have {wanted}")]
    TooSmall { from: String, has: u64, wanted: u64 },
}

impl Coded for SourceError {
    fn code(&self) -> Code {
        match self {
            Self::Field(error) => error.code(),
            Self::Gateway(error) => error.code(),
            Self::Missing(_) => Code::NotFound,
            Self::TooSmall { .. } => Code::OutOfRange,
        }
    }
}

impl From<GatewayError> for SourceError {
    fn from(error: GatewayError) -> Self {
        Self::Gateway(error.during(Rpc::Create))
    }
}

/// The kind of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Snapshot,
    Volume,
}

/// A source of a request, not yet looked for.
#[derive(Debug, Clone)]
pub(super) struct Source {
    kind: Kind,
    id: VolumeId,
}

/// What is known of a source that exists.
pub(super) struct Found {
    system: String,
    pub(super) aggregate: String,
    pub(super) size_bytes: u64,
}

impl Source {
    pub(super) fn parse(request: &CreateVolumeRequest) -> Result<Option<Self>, SourceError> {
        let Some(source) = &request.volume_content_source else {
            return Ok(None);
        };
        let (kind, field, id) = match &source.r#type {
            Some(Type::Snapshot(SnapshotSource { snapshot_id })) => (
                Kind::Snapshot,
                "volume_content_source.snapshot.snapshot_id",
                snapshot_id,
            ),
            Some(Type::Volume(VolumeSource { volume_id })) => {
                (Kind::Volume, "volume_content_source.volume.volume_id", volume_id)
            }
            None => {
                let problem = "names neither a snapshot nor a volume";
                return Err(FieldError::new("volume_content_source", problem).into());
            }
        };
        fields::text(field, id, MAX_STRING_BYTES)?;
        let name = match kind {
            Kind::Snapshot => format!("snapshot {id}"),
            Kind::Volume => format!("volume {id}"),
        };
        // A text that cannot be one of our ids names what does not exist.
        let id = id.parse().map_err(|_| SourceError::Missing(name))?;
        Ok(Some(Self { kind, id }))
    }

    /// Looks for it on the gateway of the new volume.
    pub(super) async fn find(
        &self,
        client: &Client,
        endpoint: Option<&Endpoint>,
    ) -> Result<Found, SourceError> {
        if self.id.endpoint() != endpoint {
            let problem = format!("{self} is behind another gateway than the class names");
            return Err(FieldError::new("volume_content_source", problem).into());
        }
        let found = match self.kind {
            Kind::Snapshot => client.snapshot(self.id.uuid()).await?.map(|snapshot| Found {
                system: snapshot.system,
                aggregate: snapshot.aggregate,
                size_bytes: snapshot.size_bytes,
            }),
            Kind::Volume => client.volume(self.id.uuid()).await?.map(|volume| Found {
                system: volume.system,
                aggregate: volume.aggregate,
                size_bytes: volume.size_bytes,
            }),
        };
        found.ok_or_else(|| SourceError::Missing(self.to_string()))
    }

    /// Whether a volume was made from it.
    pub(super) fn made(&self, volume: &Volume) -> bool {
        let (theirs, other) = match self.kind {
            Kind::Snapshot => (&volume.source_snapshot_id, &volume.source_volume_id),
            Kind::Volume => (&volume.source_volume_id, &volume.source_snapshot_id),
        };
        *theirs == self.id.uuid().to_string() && other.is_empty()
    }

    /// Its ids for the gateway: of a volume, of a snapshot.
    pub(super) fn ids(&self) -> (String, String) {
        let id = self.id.uuid().to_string();
        match self.kind {
            Kind::Snapshot => (String::new(), id),
            Kind::Volume => (id, String::new()),
        }
    }

    /// As the answer shows it.
    pub(super) fn to_csi(&self) -> VolumeContentSource {
        let id = self.id.to_string();
        let kind = match self.kind {
            Kind::Snapshot => Type::Snapshot(SnapshotSource { snapshot_id: id }),
            Kind::Volume => Type::Volume(VolumeSource { volume_id: id }),
        };
        VolumeContentSource { r#type: Some(kind) }
    }
}

impl Found {
    /// Blocks are shared inside one aggregate: the class must allow the source's.
    pub(super) fn fits(
        &self,
        source: &Source,
        system: &str,
        choice: &AggregateChoice,
        size: u64,
    ) -> Result<(), SourceError> {
        if self.system != system {
            let problem = format!("is {system:?}, but {source} is on system {:?}", self.system);
            return Err(FieldError::new("parameters[system]", problem).into());
        }
        if !choice.allows(&self.aggregate) {
            let problem = format!("does not allow {:?}, where {source} is", self.aggregate);
            return Err(FieldError::new("parameters[aggregate]", problem).into());
        }
        if size < self.size_bytes {
            return Err(SourceError::TooSmall {
                from: source.to_string(),
                has: self.size_bytes,
                wanted: size,
            });
        }
        Ok(())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Snapshot => write!(f, "snapshot {}", self.id),
            Kind::Volume => write!(f, "volume {}", self.id),
        }
    }
}
