//! CreateVolume. The volume's id derives from its name, so a repeated call finds what an earlier one made before it
//! chooses anything.

use storagelink_proto::csi::v1::{CreateVolumeRequest, CreateVolumeResponse, Volume as CsiVolume};
use storagelink_proto::storagelink::v1::{Aggregate, CreateVolumeRequest as Make, ProvisionType, Volume};
use tonic::Code;

use super::CommonError;
use super::capability::Capability;
use super::list::volume_context;
use super::offers::{describe, describe_aggregates, describe_offers, offers};
use super::source::{Found, Source, SourceError};
use super::topology::reach;
use crate::codes::{Coded, Rpc};
use crate::fabrics::Unreachable;
use crate::fields::{self, FieldError, MAX_STRING_BYTES, Range, human};
use crate::gateway::{Client, GatewayError, Gateways};
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
struct Wanted {
    name: String,
    range: Range,
    parameters: Parameters,
    source: Option<Source>,
    /// The least size that the source allows, when none is asked for.
    source_size: u64,
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
        Ok(Self {
            name: request.name.clone(),
            range,
            parameters,
            source: Source::parse(request)?,
            source_size: 0,
        })
    }

    /// What is asked for before any rounding.
    fn size(&self) -> u64 {
        let default = self
            .range
            .limit
            .map_or(DEFAULT_SIZE, |limit| limit.min(DEFAULT_SIZE));
        self.range.required.unwrap_or(default.max(self.source_size))
    }

    /// Whether an existing volume is what this request made or would make.
    fn accepts(&self, volume: &Volume, system: &str, choice: &AggregateChoice) -> Result<(), CreateError> {
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
        volume_context: volume_context(&id, &volume),
        volume_id: id.to_string(),
        content_source: wanted.source.as_ref().map(Source::to_csi),
        accessible_topology,
    };
    Ok(CreateVolumeResponse { volume: Some(volume) })
}

/// Where the class wants its volumes. A class that does not say gets the list of what it could say.
async fn place<'a>(
    client: &Client,
    parameters: &'a Parameters,
) -> Result<(&'a str, &'a AggregateChoice), CreateError> {
    let (field, system) = match (&parameters.system, &parameters.aggregate) {
        (Some(system), Some(choice)) => return Ok((system, choice)),
        (None, _) => ("parameters[system]", None),
        (Some(system), None) => ("parameters[aggregate]", Some(system)),
    };
    if let Some(system) = system {
        let aggregates = aggregates(client, system).await?;
        let list = describe_aggregates(&aggregates);
        let problem = format!(
            "is required; system {system} of gateway {} offers {list}",
            client.endpoint()
        );
        return Err(FieldError::new(field, problem).into());
    }
    let list = describe_offers(&offers(client, None).await?);
    Err(FieldError::new(
        field,
        format!("is required; gateway {} offers {list}", client.endpoint()),
    )
    .into())
}

/// The aggregates of a system that may be misspelt: then the answer is the list of those that exist.
async fn aggregates(client: &Client, system: &str) -> Result<Vec<Aggregate>, CreateError> {
    match offers(client, Some(system)).await?.pop() {
        Some(offer) => Ok(offer.aggregates),
        None => Err(unknown_system(client, system).await?.into()),
    }
}

/// What is said to a system that does not exist: those that do.
async fn unknown_system(client: &Client, system: &str) -> Result<FieldError, GatewayError> {
    let list = describe_offers(&offers(client, None).await?);
    let problem = format!(
        "{system:?} is unknown; gateway {} offers {list}",
        client.endpoint()
    );
    Ok(FieldError::new("parameters[system]", problem))
}

/// Makes the volume in the first candidate that takes it.
async fn make(
    client: &Client,
    id: &VolumeId,
    wanted: &Wanted,
    system: &str,
    choice: &AggregateChoice,
    source: Option<&Found>,
) -> Result<Volume, CreateError> {
    let aggregates = aggregates(client, system).await?;
    // A copy is made where its source is: that much of the choice is made already.
    let there = source.map(|found| AggregateChoice::Named(found.aggregate.clone()));
    let candidates = candidates(
        client,
        &aggregates,
        wanted,
        system,
        there.as_ref().unwrap_or(choice),
    )?;
    let (source_volume_id, source_snapshot_id) = wanted.source.as_ref().map(Source::ids).unwrap_or_default();
    for (aggregate, size) in &candidates {
        let request = Make {
            id: id.uuid().to_string(),
            system: system.to_owned(),
            aggregate: aggregate.name.clone(),
            name: wanted.name.clone(),
            size_bytes: *size,
            provision_type: wanted.parameters.provision_type.into(),
            attributes: wanted.parameters.claim.clone().into_iter().collect(),
            limit_bytes: wanted.range.limit.unwrap_or(0),
            source_volume_id: source_volume_id.clone(),
            source_snapshot_id: source_snapshot_id.clone(),
        };
        match client.create(id.uuid(), request).await {
            Ok(volume) => {
                wanted.accepts(&volume, system, choice)?;
                return Ok(volume);
            }
            // Somebody else took the space since it was looked at: the next candidate, if the class names more.
            Err(GatewayError::Refused {
                code: Code::ResourceExhausted,
                ..
            }) if aggregate.name != candidates[candidates.len() - 1].0.name => {}
            // An earlier call of the same name has just ended, perhaps in another aggregate.
            Err(
                error @ GatewayError::Refused {
                    code: Code::AlreadyExists,
                    ..
                },
            ) => {
                let Some(volume) = client.volume(id.uuid()).await? else {
                    return Err(error.into());
                };
                wanted.accepts(&volume, system, choice)?;
                return Ok(volume);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(full(wanted, system, &aggregates))
}

/// The aggregates in which the volume fits now, in the order in which they are tried, each with the rounded size.
fn candidates<'a>(
    client: &Client,
    aggregates: &'a [Aggregate],
    wanted: &Wanted,
    system: &str,
    choice: &AggregateChoice,
) -> Result<Vec<(&'a Aggregate, u64)>, CreateError> {
    let mut named: Vec<&Aggregate> = Vec::new();
    for name in choice.names() {
        match aggregates.iter().find(|aggregate| aggregate.name == *name) {
            Some(aggregate) => named.push(aggregate),
            None => {
                let list = describe_aggregates(aggregates);
                let problem = format!(
                    "{name:?} is unknown; system {system} of gateway {} offers {list}",
                    client.endpoint()
                );
                return Err(FieldError::new("parameters[aggregate]", problem).into());
            }
        }
    }
    if *choice == AggregateChoice::Auto {
        named.extend(aggregates);
        // Ties are broken by name, so that a repeated call tries the same order.
        named.sort_by(|a, b| b.free_bytes.cmp(&a.free_bytes).then_with(|| a.name.cmp(&b.name)));
    }
    let kind = wanted.parameters.provision_type;
    let able: Vec<&Aggregate> = named
        .iter()
        .copied()
        .filter(|aggregate| provides(aggregate, kind))
        .collect();
    if able.is_empty() && !named.is_empty() {
        let names: Vec<&str> = named.iter().map(|aggregate| aggregate.name.as_str()).collect();
        let problem = format!(
            "{} is not offered by {}",
            provision_type_name(kind),
            names.join(", ")
        );
        return Err(FieldError::new("parameters[provisionType]", problem).into());
    }
    let mut candidates = Vec::new();
    let mut steps = None;
    for aggregate in &able {
        let size = match rounded(wanted.size(), wanted.range, aggregate, system) {
            Ok(size) => size,
            Err(error) => {
                steps = Some(error);
                continue;
            }
        };
        if aggregate.unavailable_reason.is_empty() && size <= aggregate.maximum_volume_bytes {
            candidates.push((*aggregate, size));
        }
    }
    match (candidates.is_empty(), steps) {
        (false, _) => Ok(candidates),
        (true, Some(error)) => Err(error),
        (true, None) => {
            let looked_at: Vec<Aggregate> = able.into_iter().cloned().collect();
            Err(full(wanted, system, &looked_at))
        }
    }
}

/// Rounds up to the aggregate's steps, within the limit.
fn rounded(size: u64, range: Range, aggregate: &Aggregate, system: &str) -> Result<u64, CreateError> {
    let granularity = aggregate.granularity_bytes.max(1);
    let up = size.max(1).checked_next_multiple_of(granularity);
    // A default size is nobody's wish: it may also be rounded down into the limit.
    let down = range
        .limit
        .filter(|_| range.required.is_none())
        .map(|limit| limit - limit % granularity);
    let largest = range.limit.unwrap_or(i64::MAX as u64).min(i64::MAX as u64);
    match (up, down) {
        (Some(up), _) if up <= largest => Ok(up),
        (_, Some(down)) if down > 0 => Ok(down),
        _ => Err(CreateError::Steps {
            size,
            limit: largest,
            system: system.to_owned(),
            aggregate: aggregate.name.clone(),
            granularity,
        }),
    }
}

/// An aggregate that names no provision type is taken at its word when it refuses.
pub(super) fn provides(aggregate: &Aggregate, kind: ProvisionType) -> bool {
    aggregate.provision_types.is_empty() || aggregate.provision_types().any(|provided| provided == kind)
}

fn full(wanted: &Wanted, system: &str, aggregates: &[Aggregate]) -> CreateError {
    let largest = |aggregate: &Aggregate| {
        format!(
            "{}, largest volume now {}",
            describe(aggregate),
            human(aggregate.maximum_volume_bytes)
        )
    };
    CreateError::Full {
        size: wanted.size(),
        system: system.to_owned(),
        aggregates: match aggregates.len() {
            0 => "it has no aggregate".to_owned(),
            _ => aggregates
                .iter()
                .take(20)
                .map(largest)
                .collect::<Vec<_>>()
                .join("; "),
        },
    }
}
