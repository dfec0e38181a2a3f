//! Names and uuids of our device-mapper devices, made and parsed in this one place.
//!
//! The uuid prefix keeps everybody else's tools off our maps (multipathd adopts only `mpath-`), and us off theirs. Where several nodes share a
//! kernel, name and uuid say whose map it is: a node never takes another's for its own, nor does a node that has its kernel to itself.

use std::sync::Arc;

use crate::Wwid;

/// Every map of ours has a name and a uuid that start so.
pub const UUID_PREFIX: &str = "storagelink-";

/// Ends the node in a name or uuid. No node name has it, and no volume's UUID.
const NODE_END: char = '@';

/// Longest node name in bytes: a dm uuid has at most 128 (include/uapi/linux/dm-ioctl.h, DM_UUID_LEN, without its end), a WWID of
/// an array's own numbering 36, and a T10 one is left room for.
pub const MAX_NODE_BYTES: usize = 40;

/// A node name that cannot be part of a map's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// Too long for a dm uuid.
    #[error(
        "node name {name:?} has {} bytes, and at most {MAX_NODE_BYTES} fit into the uuid of a map (--shared-kernel)",
        name.len()
    )]
    TooLong {
        /// The name.
        name: String,
    },
    /// Something else than Kubernetes allows, or what reads as an identity.
    #[error(
        "node name {name:?} cannot be part of a map's name: it must be lower-case letters, digits, '-' and '.', and not begin with \"t10.\" (--shared-kernel)"
    )]
    Form {
        /// The name.
        name: String,
    },
}

/// Whose maps: those of the one node of this kernel (the default), or those of one node among several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    node: Option<Arc<str>>,
}

impl Names {
    /// Those of this node, which shares its kernel with others.
    ///
    /// # Errors
    /// The name does not fit.
    pub fn of_node(node: &str) -> Result<Self, NodeNameError> {
        let name = || node.to_owned();
        if node.len() > MAX_NODE_BYTES {
            return Err(NodeNameError::TooLong { name: name() });
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        // `t10.a@naa.…` would be an identity of its own.
        if node.is_empty() || !node.bytes().all(allowed) || node.starts_with("t10.") {
            return Err(NodeNameError::Form { name: name() });
        }
        Ok(Self {
            node: Some(node.into()),
        })
    }

    /// The node, when it shares its kernel.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Name of a volume's map. `volume` is the UUID part of the CSI volume id.
    #[must_use]
    pub fn map_name(&self, volume: &str) -> String {
        self.make(volume)
    }

    /// Uuid of the map over the LUN with this identity.
    #[must_use]
    pub fn map_uuid(&self, wwid: &Wwid) -> String {
        self.make(wwid.as_str())
    }

    /// The volume whose map has this name; `None` for a name that is not ours.
    #[must_use]
    pub fn volume_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        self.rest(name)
            .filter(|rest| !rest.is_empty() && !rest.contains(NODE_END))
    }

    /// The identity in a map's uuid; `None` for a uuid that is not ours.
    #[must_use]
    pub fn wwid_of(&self, uuid: &str) -> Option<Wwid> {
        // Without a node: one with a node is no identity, see `of_node`.
        self.rest(uuid)?.parse().ok()
    }

    fn make(&self, rest: &str) -> String {
        match self.node() {
            Some(node) => format!("{UUID_PREFIX}{node}{NODE_END}{rest}"),
            None => format!("{UUID_PREFIX}{rest}"),
        }
    }

    /// What follows the prefix, and the node if there is one.
    fn rest<'a>(&self, text: &'a str) -> Option<&'a str> {
        let rest = text.strip_prefix(UUID_PREFIX)?;
        match self.node() {
            Some(node) => rest.strip_prefix(node)?.strip_prefix(NODE_END),
            None => Some(rest),
        }
    }
}

/// The identity in a map's uuid, whichever node's it is.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn wwid_of_any(uuid: &str) -> Option<Wwid> {
    Names::default().wwid_of(uuid).or_else(|| {
        let (_, wwid) = uuid.strip_prefix(UUID_PREFIX)?.split_once(NODE_END)?;
        wwid.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wwid() -> Wwid {
        "naa.6001405123456789abc4def812345678".parse().unwrap()
    }

    #[test]
    fn names_round_trip_and_foreign_ones_are_not_ours() {
        let names = Names::default();
        assert_eq!(names.wwid_of(&names.map_uuid(&wwid())), Some(wwid()));
        assert_eq!(names.map_name("5d1c"), "storagelink-5d1c");
        assert_eq!(names.volume_of("storagelink-5d1c"), Some("5d1c"));
        assert_eq!(names.wwid_of("mpath-36001405123456789abc4def812345678"), None);
        assert_eq!(names.volume_of("vg0-root"), None);
        assert_eq!(names.volume_of("storagelink-"), None);
    }

    #[test]
    fn a_node_is_part_of_the_names_where_the_kernel_is_shared() {
        let names = Names::of_node("kind-worker").unwrap();
        assert_eq!(names.map_name("5d1c"), "storagelink-kind-worker@5d1c");
        assert_eq!(
            names.map_uuid(&wwid()),
            "storagelink-kind-worker@naa.6001405123456789abc4def812345678"
        );
        assert_eq!(names.volume_of("storagelink-kind-worker@"), None);
        assert_eq!(names.volume_of("storagelink-kind-worker2@5d1c"), None);
        assert_eq!(names.volume_of("storagelink-5d1c"), None);
        assert_eq!(wwid_of_any(&names.map_uuid(&wwid())), Some(wwid()));
    }

    #[test]
    fn a_node_name_that_does_not_fit_is_refused_by_the_flags_name() {
        let longest = "a".repeat(MAX_NODE_BYTES);
        let names = Names::of_node(&longest).unwrap();
        assert!(names.map_uuid(&wwid()).len() <= 128);
        for name in [&format!("{longest}a"), "", "a@b", "N1", "a/b", "t10.acme"] {
            let error = Names::of_node(name).unwrap_err().to_string();
            assert!(error.contains("--shared-kernel"), "{error}");
        }
    }

    fn any_names() -> impl Strategy<Value = Names> {
        let node = proptest::option::of("[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?");
        node.prop_map(|node| {
            node.and_then(|node| Names::of_node(&node).ok())
                .unwrap_or_default()
        })
    }

    fn any_wwid() -> impl Strategy<Value = Wwid> {
        "(naa|eui)\\.[0-9a-f]{16}|t10\\.[a-z@.-]{1,20}(@naa\\.[0-9a-f]{16})?"
            .prop_map(|text| text.parse().unwrap())
    }

    proptest! {
        #[test]
        fn each_reads_its_own_and_nobody_elses(
            one in any_names(), other in any_names(), wwid in any_wwid(), volume in "[0-9a-f-]{1,36}",
        ) {
            let (name, uuid) = (one.map_name(&volume), one.map_uuid(&wwid));
            prop_assert_eq!(one.volume_of(&name), Some(volume.as_str()));
            prop_assert_eq!(one.wwid_of(&uuid), Some(wwid));
            prop_assert!(name.starts_with(UUID_PREFIX) && uuid.starts_with(UUID_PREFIX));
            if one != other {
                prop_assert_eq!(other.volume_of(&name), None);
                prop_assert_eq!(other.wwid_of(&uuid), None);
            }
        }

        #[test]
        fn whatever_is_read_is_made_again(names in any_names(), text in "(storagelink-)?[a-z0-9@.-]{0,40}") {
            if let Some(volume) = names.volume_of(&text) {
                prop_assert_eq!(names.map_name(volume), text.clone());
            }
            if let Some(wwid) = names.wwid_of(&text) {
                prop_assert_eq!(names.map_uuid(&wwid), text);
            }
        }
    }
}
