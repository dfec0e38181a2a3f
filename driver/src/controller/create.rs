//! CreateVolume. The volume's id derives from its name, so a repeated call finds what an earlier one made before it
//! chooses anything.

use storagelink_proto::csi::v1::{CreateVolumeRequest, CreateVolumeResponse, Volume as CsiVolume};
use storagelink_proto::storagelink::v1::Volume;
use tonic::Code;

use super::CommonError;
use super::capability::Capability;
use super::list::volume_context;
use super::place::{make, place, unknown_system};
use super::source::{Source, SourceError};
use super::topology::reach;
use crate::codes::{Coded, Rpc};
use crate::fabrics::Unreachable;
use crate::fields::{self, FieldError, MAX_STRING_BYTES, Range, human};
use crate::gateway::{GatewayError, Gateways};
use crate::ids::VolumeId;
use crate::parameters::{AggregateChoice, Parameters, provision_type_name};
use crate::server::note_volume;

/// The size of a volume for which none is asked: 1 GiB.
const DEFAULT_SIZE: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    #[error(transparent)]
    Common(#[from] CommonError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("volume {name} exists and is not what is asked for: {difference}")]
    Differs { name: String, difference: String },
    #[error(
        "a volume of {size} bytes does not fit into the limit of {limit} bytes: {system}/{aggregate} has steps of {granularity} bytes"
    )]
    Steps {
        size: u64,
        limit: u64,
        system: String,
        aggregate: String,
        granularity: u64,
    },
    #[error("a volume of {} does not fit into system {system}: {aggregates}", human(*size))]
    Full {
        size: u64,
        system: String,
        aggregates: String,
    },
    #[error("a volume on system {system} cannot be reached")]
    Unreachable {
        system: String,
        #[source]
        source: Unreachable,
    },
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Common(error) => error.code(),
            Self::Source(error) => error.code(),
            Self::Differs { .. } => Code::AlreadyExists,
            Self::Steps { .. } => Code::OutOfRange,
            Self::Full { .. } | Self::Unreachable { .. } => Code::ResourceExhausted,
        }
    }
}

impl From<FieldError> for CreateError {
    fn from(error: FieldError) -> Self {
        Self::Common(error.into())
    }
}

impl From<GatewayError> for CreateError {
    fn from(error: GatewayError) -> Self {
        Self::Common(error.during(Rpc::Create).into())
    }
}

/// A request whose fields are all well formed.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) range: Range,
    pub(super) parameters: Parameters,
    pub(super) source: Option<Source>,
    /// The least size that the source allows, when none is asked for.
    pub(super) source_size: u64,
}

impl Wanted {
    fn parse(request: &CreateVolumeRequest, topology: bool) -> Result<Self, CreateError> {
        fields::text("name", &request.name, MAX_STRING_BYTES)?;
        for capability in Capability::parse_all(&request.volume_capabilities)? {
            capability.supported()?;
        }
        let range = request
            .capacity_range
            .map_or(Ok(Range::default()), Range::parse)?;
        let parameters = Parameters::parse(&request.parameters)?;
        if request.accessibility_requirements.is_some() && !topology {
            return Err(FieldError::new(
                "accessibility_requirements",
                "are not supported: the controller has no [fabrics]",
            )
            .into());
        }
        if !request.mutable_parameters.is_empty() {
            return Err(FieldError::new("mutable_parameters", "are not supported").into());
        }
        let source = Source::parse(request)?;
        if source.is_some() && parameters.adopt.is_some() {
            let problem = "excludes parameters[adopt]: an adopted LUN has its content already";
            return Err(FieldError::new("volume_content_source", problem).into());
        }
        Ok(Self {
            name: request.name.clone(),
            range,
            parameters,
            source,
            source_size: 0,
        })
    }

    /// What is asked for before any rounding.
    pub(super) fn size(&self) -> u64 {
        let default = self
            .range
            .limit
            .map_or(DEFAULT_SIZE, |limit| limit.min(DEFAULT_SIZE));
        self.range.required.unwrap_or(default.max(self.source_size))
    }

    /// Whether an existing volume is what this request made or would make.
    pub(super) fn accepts(
        &self,
        volume: &Volume,
        system: &str,
        choice: &AggregateChoice,
    ) -> Result<(), CreateError> {
        let differs = |difference: String| {
            Err(CreateError::Differs {
                name: self.name.clone(),
                difference,
            })
        };
        if volume.name != self.name {
            return differs(format!("its id belongs to volume {:?}", volume.name));
        }
        if !self.range.holds(volume.size_bytes) {
            return differs(format!("it has {} bytes", volume.size_bytes));
        }
        if volume.system != system {
            return differs(format!("it is on system {}", volume.system));
        }
        let same_source = match &self.source {
            Some(source) => source.made(volume),
            None => volume.source_volume_id.is_empty() && volume.source_snapshot_id.is_empty(),
        };
        if !same_source {
            return differs("it was made from another source".to_owned());
        }
        let lun = self.parameters.adopt.as_deref().unwrap_or_default();
        if volume.source_lun != lun {
            return differs(match volume.source_lun.as_str() {
                "" => "it is no adopted LUN".to_owned(),
                other => format!("it is the adopted LUN {other:?}"),
            });
        }
        if !choice.allows(&volume.aggregate) {
            return differs(format!("it is in aggregate {}", volume.aggregate));
        }
        let (is, wanted) = (
            provision_type_name(volume.provision_type()),
            provision_type_name(self.parameters.provision_type),
        );
        if is != wanted {
            return differs(format!("its provisionType is {is}"));
        }
        Ok(())
    }
}

pub(super) async fn create_volume(
    gateways: &Gateways,
    request: CreateVolumeRequest,
) -> Result<CreateVolumeResponse, CreateError> {
    let mut wanted = Wanted::parse(&request, !gateways.fabrics().is_empty())?;
    let (client, endpoint) = gateways
        .for_parameters(&wanted.parameters, &request.secrets)
        .await
        .map_err(CommonError::from)?;
    let mut id = VolumeId::from_name(&wanted.name);
    if let Some(endpoint) = &endpoint {
        id = id
            .at(endpoint.clone())
            .map_err(|error| fields::id_error("parameters[target]", &error))?;
    }
    note_volume(&id.to_string());

    let (system, choice) = place(&client, &wanted.parameters).await?;
    let requirement = request.accessibility_requirements.as_ref();
    let accessible_topology = match reach(gateways, &client, system).await {
        Ok(Some(reach)) => reach
            .accessible(requirement)
            .map_err(|source| CreateError::Unreachable {
                system: system.to_owned(),
                source,
            })?,
        Ok(None) => Vec::new(),
        // Misspelt, most likely: the answer is the list of those that exist.
        Err(GatewayError::Refused {
            code: Code::NotFound, ..
        }) => return Err(unknown_system(&client, system).await?.into()),
        Err(error) => return Err(error.into()),
    };
    let volume = match client.volume(id.uuid()).await? {
        Some(volume) => {
            wanted.accepts(&volume, system, choice)?;
            volume
        }
        None => {
            let found = match wanted.source.clone() {
                Some(source) => {
                    let found = source.find(&client, endpoint.as_ref()).await?;
                    wanted.source_size = found.size_bytes;
                    found.fits(&source, system, choice, wanted.size())?;
                    Some(found)
                }
                None => None,
            };
            make(&client, &id, &wanted, system, choice, found.as_ref()).await?
        }
    };
    let volume = CsiVolume {
        capacity_bytes: i64::try_from(volume.size_bytes).unwrap_or(i64::MAX),
        volume_context: volume_context(&id, &volume)
            .into_iter()
            .chain(wanted.parameters.policy.to_map())
            .collect(),
        volume_id: id.to_string(),
        content_source: wanted.source.as_ref().map(Source::to_csi),
        accessible_topology,
    };
    Ok(CreateVolumeResponse { volume: Some(volume) })
}
