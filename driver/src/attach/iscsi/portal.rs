//! What a portal is called in iscsiadm's arguments and in its database, and when two of them are the same path.

use std::net::IpAddr;

use crate::publish_context::Portal;

/// Target, address and port: the identity of a path. The portal group tag is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PortalKey {
    target: String,
    address: IpAddr,
    port: u16,
}

impl std::fmt::Display for PortalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.target, self.address, self.port)
    }
}

/// What tells this portal's path from others. iSCSI names compare without regard to case (RFC 7143 4.2.7.2).
pub(super) fn key(portal: &Portal) -> PortalKey {
    PortalKey {
        target: portal.target.to_ascii_lowercase(),
        address: portal.address.ip(),
        port: portal.address.port(),
    }
}

/// The portal as iscsiadm takes it: `192.0.2.1:3260,1` or `[2001:db8::1]:3260,1`.
pub(super) fn argument(portal: &Portal) -> String {
    format!("{},{}", portal.address, portal.group_tag)
}

/// True when a session of this target, address and port is this portal's.
pub(super) fn matches(portal: &Portal, target: &str, address: IpAddr, port: u16) -> bool {
    portal.target.eq_ignore_ascii_case(target)
        && portal.address.ip() == address
        && portal.address.port() == port
}

/// Parses an address as sysfs and node records spell it: with or without brackets, perhaps with a zone.
pub(super) fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text.trim().trim_start_matches('[').trim_end_matches(']');
    bare.split('%').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_address_families_are_spelt_as_iscsiadm_wants_them_and_recognised_in_sysfs() {
        let portal: Portal = "192.0.2.7:3260,1,iqn.2026-11.com.example:t1"
            .parse()
            .expect("a portal");
        assert_eq!(argument(&portal), "192.0.2.7:3260,1");
        let portal: Portal = "[2001:DB8:0::7]:3260,2,iqn.2026-11.com.example:t1"
            .parse()
            .expect("a portal");
        assert_eq!(argument(&portal), "[2001:db8::7]:3260,2");
        let address = parse_address("[2001:0db8::7]").expect("an address");
        assert!(matches(&portal, "IQN.2026-11.com.example:t1", address, 3260));
        assert!(!matches(&portal, "iqn.2026-11.com.example:t1", address, 3261));
        assert!(!matches(&portal, "iqn.2026-11.com.example:t10", address, 3260));
        assert_eq!(parse_address("fe80::1%eth0"), "fe80::1".parse().ok());
        assert_eq!(parse_address("(null)"), None);
        assert_eq!(parse_address(""), None);
    }
}
