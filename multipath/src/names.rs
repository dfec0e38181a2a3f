//! Names and uuids of our device-mapper devices, made and parsed in this one place.
//!
//! The uuid prefix keeps everybody else's tools off our maps (multipathd adopts only `mpath-`), and us off theirs.

use crate::Wwid;

/// Every map of ours has a uuid that starts so, followed by the WWID.
pub const UUID_PREFIX: &str = "storagelink-";

/// Name of a volume's map. `volume` is the UUID part of the CSI volume id.
#[must_use]
pub fn map_name(volume: &str) -> String {
    format!("{UUID_PREFIX}{volume}")
}

/// Uuid of the map over the LUN with this identity.
#[must_use]
pub fn map_uuid(wwid: &Wwid) -> String {
    format!("{UUID_PREFIX}{wwid}")
}

/// The volume whose map has this name; `None` for a name that is not ours.
#[must_use]
pub fn volume_of(name: &str) -> Option<&str> {
    name.strip_prefix(UUID_PREFIX).filter(|rest| !rest.is_empty())
}

/// The identity in a map's uuid; `None` for a uuid that is not ours.
#[must_use]
pub fn wwid_of(uuid: &str) -> Option<Wwid> {
    uuid.strip_prefix(UUID_PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_foreign_ones_are_not_ours() {
        let wwid: Wwid = "naa.6001405123456789abc4def812345678".parse().unwrap();
        assert_eq!(wwid_of(&map_uuid(&wwid)), Some(wwid));
        assert_eq!(volume_of(&map_name("5d1c")), Some("5d1c"));
        assert_eq!(wwid_of("mpath-36001405123456789abc4def812345678"), None);
        assert_eq!(volume_of("vg0-root"), None);
        assert_eq!(volume_of("storagelink-"), None);
    }
}
