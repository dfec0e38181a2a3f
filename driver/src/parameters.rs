//! The parameters of a StorageClass: a closed set, checked before anything else happens.
//!
//! A key that is not known is refused by its name, so that a typing error never becomes a default.

use std::collections::{BTreeMap, HashMap};

use storagelink_multipath::policy::{self, Policy};
use storagelink_proto::storagelink::v1::ProvisionType;

use crate::fields::{self, FieldError, MAX_STRING_BYTES};

/// A key that a StorageClass may hold, for `docs/parameters.md`.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// The key.
    pub key: &'static str,
    /// What it may be.
    pub values: &'static str,
    /// What it is when it is not given.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// All of them, in the order of the documentation.
pub const PARAMETERS: [Parameter; 12] = [
    Parameter {
        key: "system",
        values: "a system's name",
        default: "none: required",
        meaning: "the storage system; without it CreateVolume answers INVALID_ARGUMENT and lists the systems",
    },
    Parameter {
        key: "aggregate",
        values: "a name, `auto`, or names in order, comma-separated",
        default: "none: required",
        meaning: "where the volume lives; without it CreateVolume answers INVALID_ARGUMENT and lists the aggregates with free space. \
                  `auto` (most free space) and a list are an explicit wish to have it chosen: the chosen one is in the volume context",
    },
    Parameter {
        key: "target",
        values: "host name or address",
        default: "the controller's configuration",
        meaning: "the StorageLink service",
    },
    Parameter {
        key: "port",
        values: "1 to 65535",
        default: "the controller's configuration, else 21605",
        meaning: "its port",
    },
    Parameter {
        key: "protocol",
        values: "`iscsi`, `auto`",
        default: "`auto`",
        meaning: "the transport",
    },
    Parameter {
        key: "provisionType",
        values: "`thin`, `thick`",
        default: "`thin`",
        meaning: "space taken when written, or reserved at creation",
    },
    Parameter {
        key: "adopt",
        values: "a LUN's name; `${pvc.namespace}` and `${pvc.name}` stand for the claim's",
        default: "none: a new volume",
        meaning: "the LUN with this name, which somebody else made in the aggregate, becomes the volume, with its size and content. \
                  Refused while anybody may still be using it; never formatted",
    },
    Parameter {
        key: policy::NO_PATH_RETRY,
        values: "1 to 86400, `fail`, `queue`",
        default: "60",
        meaning: "without a usable path I/O is held for so many seconds, then fails; `fail`: at once; `queue`: it is held without end",
    },
    Parameter {
        key: policy::PATH_SELECTOR,
        values: "`round-robin`, `queue-length`, `service-time`",
        default: "`round-robin`",
        meaning: "which path of a group takes the next request; one that the node's kernel does not have is round-robin there, with an Event",
    },
    Parameter {
        key: policy::PATH_GROUPING,
        values: "`auto`, `multibus`, `alua`, `failover`",
        default: "`auto`",
        meaning: "which paths are used together: all (`multibus`); those with the same ALUA state, the best state first (`alua`; a device that \
                  reports none is one group); one at a time (`failover`). `auto` is `alua` where the device reports states, else `multibus`",
    },
    Parameter {
        key: policy::MIN_PATHS,
        values: "1 to 32",
        default: "1",
        meaning: "with fewer usable paths a volume is not staged: NodeStageVolume answers UNAVAILABLE, and is tried again",
    },
    Parameter {
        key: policy::QUEUE_MODE,
        values: "`request`, `bio`",
        default: "`request`",
        meaning: "where the map takes I/O: after merging and scheduling, or before; a map keeps the one that it was made with",
    },
];

/// Their keys.
pub fn keys() -> impl Iterator<Item = &'static str> {
    PARAMETERS.iter().map(|parameter| parameter.key)
}
/// The keys that external-provisioner adds by itself (`--extra-create-metadata`, `--default-fstype`).
const PROVISIONER_KEYS: [&str; 4] = [
    "csi.storage.k8s.io/pvc/name",
    "csi.storage.k8s.io/pvc/namespace",
    "csi.storage.k8s.io/pv/name",
    "csi.storage.k8s.io/fstype",
];
const ADOPT: &str = "parameters[adopt]";
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// The file systems that the node can make.
pub const FS_TYPES: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Which aggregate a volume is made in. Choosing is only ever done on an explicit wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AggregateChoice {
    /// The one with this name.
    Named(String),
    /// The first in this order in which the volume fits.
    Ordered(Vec<String>),
    /// The one with the most free space in which the volume fits.
    Auto,
}

impl AggregateChoice {
    /// The names that are given.
    pub fn names(&self) -> &[String] {
        match self {
            Self::Named(name) => std::slice::from_ref(name),
            Self::Ordered(names) => names,
            Self::Auto => &[],
        }
    }

    /// Whether a volume in this aggregate is what was asked for.
    pub fn allows(&self, aggregate: &str) -> bool {
        *self == Self::Auto || self.names().iter().any(|name| name == aggregate)
    }
}

/// Checked parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// The gateway's host, when it is not the configured one.
    pub target: Option<String>,
    /// The gateway's port, when it is not the configured one.
    pub port: Option<u16>,
    /// The storage system.
    pub system: Option<String>,
    /// The aggregate.
    pub aggregate: Option<AggregateChoice>,
    /// Thin when not given.
    pub provision_type: ProvisionType,
    /// Name of the LUN that becomes the volume.
    pub adopt: Option<String>,
    /// How nodes use it.
    pub policy: Policy,
    /// What external-provisioner said about the claim; stored with the volume on the array, for people.
    pub claim: BTreeMap<String, String>,
}

impl Parameters {
    /// Checks the map.
    pub fn parse(map: &HashMap<String, String>) -> Result<Self, FieldError> {
        fields::map("parameters", map)?;
        let mut unknown: Vec<&str> = map
            .keys()
            .map(String::as_str)
            .filter(|key| keys().all(|known| known != *key) && !PROVISIONER_KEYS.contains(key))
            .collect();
        unknown.sort_unstable();
        if !unknown.is_empty() {
            let problem = format!(
                "unknown: {}; known are {}",
                unknown.join(", "),
                keys().collect::<Vec<_>>().join(", ")
            );
            return Err(FieldError::new("parameters", problem));
        }
        let get = |key: &'static str, field: &'static str| match map.get(key) {
            Some(value) => fields::text(field, value, MAX_STRING_BYTES).map(|()| Some(value.clone())),
            None => Ok(None),
        };
        let target = get("target", "parameters[target]")?;
        let port = match get("port", "parameters[port]")? {
            Some(text) => Some(port("parameters[port]", &text)?),
            None => None,
        };
        match get("protocol", "parameters[protocol]")?.as_deref() {
            None | Some("auto" | "iscsi") => {}
            Some(other) => {
                let problem = format!("{other:?} is not iscsi or auto (nodes attach over iSCSI only)");
                return Err(FieldError::new("parameters[protocol]", problem));
            }
        }
        let provision_type = match get("provisionType", "parameters[provisionType]")?.as_deref() {
            None | Some("thin") => ProvisionType::Thin,
            Some("thick") => ProvisionType::Thick,
            Some(other) => {
                let problem = format!("{other:?} is not thin or thick");
                return Err(FieldError::new("parameters[provisionType]", problem));
            }
        };
        if let Some(fs_type) = map.get(FS_TYPE) {
            check_fs_type("parameters[csi.storage.k8s.io/fstype]", fs_type)?;
        }
        let aggregate = map.get("aggregate").map(|text| aggregate(text)).transpose()?;
        let adopt = get("adopt", ADOPT)?
            .map(|text| lun_of_claim(&text, map))
            .transpose()?;
        if adopt.is_some() && !matches!(aggregate, None | Some(AggregateChoice::Named(_))) {
            let problem = "must be one aggregate: the one in which the LUN of `adopt` is";
            return Err(FieldError::new("parameters[aggregate]", problem));
        }
        let policy = policy_of("parameters", map)?;
        let claim = PROVISIONER_KEYS
            .iter()
            .filter(|key| **key != FS_TYPE)
            .filter_map(|key| map.get(*key).map(|value| ((*key).to_owned(), value.clone())))
            .collect();
        Ok(Self {
            target,
            port,
            system: get("system", "parameters[system]")?,
            // Its names have their own limit, so only the whole map bounds an order.
            aggregate,
            provision_type,
            adopt,
            policy,
            claim,
        })
    }
}

/// The multipath policy in the parameters, or in a volume context: CreateVolume wrote it there, or somebody who made a PersistentVolume by hand.
/// `field` names the map.
pub fn policy_of(field: &str, map: &HashMap<String, String>) -> Result<Policy, FieldError> {
    Policy::from_map(map)
        .map_err(|error| FieldError::new(format!("{field}[{}]", error.key), error.to_string()))
}

/// The name of a LUN, with the claim's names in their places.
fn lun_of_claim(template: &str, map: &HashMap<String, String>) -> Result<String, FieldError> {
    let mut name = template.to_owned();
    for (place, key) in [
        ("${pvc.namespace}", "csi.storage.k8s.io/pvc/namespace"),
        ("${pvc.name}", "csi.storage.k8s.io/pvc/name"),
    ] {
        if name.contains(place) {
            let value = map.get(key).ok_or_else(|| {
                let problem = format!(
                    "holds {place}, but {key} is missing (external-provisioner --extra-create-metadata)"
                );
                FieldError::new(ADOPT, problem)
            })?;
            name = name.replace(place, value);
        }
    }
    if name.contains("${") {
        return Err(FieldError::new(
            ADOPT,
            "only ${pvc.namespace} and ${pvc.name} can stand in it",
        ));
    }
    if name.starts_with('.') || name.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(FieldError::new(
            ADOPT,
            "is not a LUN's name: no blanks, no slashes, no dot at its beginning",
        ));
    }
    fields::text(ADOPT, &name, MAX_STRING_BYTES)?;
    Ok(name)
}

/// A port of 1 to 65535 in plain decimal.
pub fn port(field: &'static str, text: &str) -> Result<u16, FieldError> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(FieldError::new(field, "is not a port of 1 to 65535")),
    }
}

/// A file system that the node can make; empty leaves the choice to the node.
pub fn check_fs_type(field: &'static str, fs_type: &str) -> Result<(), FieldError> {
    if fs_type.is_empty() || FS_TYPES.contains(&fs_type) {
        return Ok(());
    }
    Err(FieldError::new(
        field,
        format!("{fs_type:?} is not one of {}", FS_TYPES.join(", ")),
    ))
}

/// How a provision type is written in parameters and in the volume context.
pub fn provision_type_name(provision_type: ProvisionType) -> &'static str {
    match provision_type {
        ProvisionType::Thick => "thick",
        ProvisionType::Thin | ProvisionType::Unspecified => "thin",
    }
}

fn aggregate(text: &str) -> Result<AggregateChoice, FieldError> {
    const FIELD: &str = "parameters[aggregate]";
    if text == "auto" {
        return Ok(AggregateChoice::Auto);
    }
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    for (i, name) in names.iter().enumerate() {
        fields::text(FIELD, name, MAX_STRING_BYTES)?;
        if names[..i].contains(name) {
            return Err(FieldError::new(FIELD, format!("names {name:?} twice")));
        }
        if name == "auto" {
            return Err(FieldError::new(FIELD, "auto stands alone"));
        }
    }
    Ok(match <[String; 1]>::try_from(names) {
        Ok([name]) => AggregateChoice::Named(name),
        Err(names) => AggregateChoice::Ordered(names),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, FieldError> {
        Parameters::parse(
            &pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn everything_that_is_known() {
        let parameters = parse(&[
            ("target", "array.example"),
            ("port", "1234"),
            ("system", "lab"),
            ("aggregate", "fast, slow"),
            ("protocol", "iscsi"),
            ("provisionType", "thick"),
            ("minPaths", "2"),
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/fstype", "xfs"),
        ])
        .unwrap();
        assert_eq!(parameters.target.as_deref(), Some("array.example"));
        assert_eq!(parameters.port, Some(1234));
        assert_eq!(parameters.system.as_deref(), Some("lab"));
        assert_eq!(
            parameters.aggregate,
            Some(AggregateChoice::Ordered(vec![
                "fast".to_owned(),
                "slow".to_owned()
            ]))
        );
        assert_eq!(parameters.provision_type, ProvisionType::Thick);
        assert_eq!(parameters.claim.len(), 1);
        assert_eq!(parameters.policy.min_paths, 2);
        let none = parse(&[]).unwrap();
        assert_eq!(
            (none.system, none.aggregate, none.provision_type),
            (None, None, ProvisionType::Thin)
        );
        let auto = parse(&[("aggregate", "auto")]).unwrap().aggregate.unwrap();
        assert!(auto.allows("any") && auto.names().is_empty());
        let named = parse(&[("aggregate", "fast")]).unwrap().aggregate.unwrap();
        assert!(named.allows("fast") && !named.allows("slow"));
    }

    #[test]
    fn a_lun_to_adopt_is_named_by_the_class_or_by_the_claim() {
        let adopt = |pairs: &[(&str, &str)]| parse(pairs).map(|parameters| parameters.adopt);
        let claim = [
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
        ];
        for (value, name) in [
            ("oracle-1", "oracle-1"),
            ("k8s.${pvc.namespace}.${pvc.name}", "k8s.shop.data"),
        ] {
            let pairs = [&claim[..], &[("adopt", value)]].concat();
            assert_eq!(adopt(&pairs).unwrap().as_deref(), Some(name));
        }
        for aggregate in ["auto", "a,b"] {
            let error = adopt(&[("adopt", "oracle-1"), ("aggregate", aggregate)]).unwrap_err();
            assert!(error.to_string().contains("parameters[aggregate]"), "{error}");
        }
    }

    #[test]
    fn every_refusal_names_its_key() {
        let long = "x".repeat(129);
        for (key, value) in [
            ("target", ""),
            ("target", &long),
            ("port", "0"),
            ("port", "65536"),
            ("port", "+1"),
            ("port", "iscsi"),
            ("system", ""),
            ("system", "a\tb"),
            ("system", &long),
            ("aggregate", ""),
            ("aggregate", "a,"),
            ("aggregate", "a,a"),
            ("aggregate", "a,auto"),
            ("aggregate", &long),
            ("protocol", "fc"),
            ("protocol", "ISCSI"),
            ("provisionType", "thickest"),
            ("noPathRetry", "0"),
            ("noPathRetry", "forever"),
            ("pathSelector", "historical-service-time"),
            ("pathGrouping", "group_by_prio"),
            ("minPaths", "0"),
            ("queueMode", "mq"),
            ("adopt", ""),
            ("adopt", "a b"),
            ("adopt", "../a"),
            ("adopt", "${pvc.name}"),
            ("adopt", "${pv.name}"),
            ("csi.storage.k8s.io/fstype", "ntfs"),
            ("agregate", "typo"),
            ("csi.storage.k8s.io/other", "x"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert!(error.to_string().contains(key), "{key}={value}: {error}");
        }
    }
}
