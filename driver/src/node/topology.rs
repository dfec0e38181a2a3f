//! Which fabrics this node reaches: from its addresses and its routes as they are now.
//!
//! A fabric is reached when an interface that is up has an address in one of its networks, or when a route other than
//! a default one covers one of them: a default route leads everywhere and proves nothing. Nothing is sent to find out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use storagelink_proto::csi::v1::Topology;

use crate::fabrics::{Cidr, Fabric, Fabrics};

/// Flags of a route (linux/route.h): it is in use; it says that there is no way.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;

/// What the node knows of its networks.
pub trait HostNetwork: Send + Sync {
    /// The addresses of the interfaces that are up.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;
    /// The destinations of the routes in use, default routes among them.
    fn routes(&self) -> io::Result<Vec<Cidr>>;
}

/// The network namespace of this process: the host's, for the plugin runs with `hostNetwork`.
pub struct KernelNetwork;

impl HostNetwork for KernelNetwork {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let address = |storage: nix::sys::socket::SockaddrStorage| {
            let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        Ok(getifaddrs()?
            .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
            .filter_map(|interface| address(interface.address?))
            .collect())
    }

    fn routes(&self) -> io::Result<Vec<Cidr>> {
        let mut routes = parse_v4(&std::fs::read_to_string("/proc/net/route")?);
        let v6 = Path::new("/proc/net/ipv6_route");
        match std::fs::read_to_string(v6) {
            Ok(text) => routes.extend(parse_v6(&text)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(routes)
    }
}

/// `/proc/net/route`: after a heading, `interface destination gateway flags … mask …`, addresses as the hexadecimal
/// number that their bytes are in this machine's order.
fn parse_v4(text: &str) -> Vec<Cidr> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
        let (destination, flags, mask) = (number(1)?, number(3)?, number(7)?);
        let address = Ipv4Addr::from(destination.to_ne_bytes());
        let prefix = u8::try_from(mask.count_ones()).ok()?;
        in_use(flags).then(|| Cidr::of(address.into(), prefix))?
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `/proc/net/ipv6_route`: `destination prefix source prefix gateway metric references use flags interface`, all
/// hexadecimal.
fn parse_v6(text: &str) -> Vec<Cidr> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let destination = fields.first().filter(|text| text.len() == 32)?;
        let destination = u128::from_str_radix(destination, 16).ok()?;
        let prefix = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        in_use(flags).then(|| Cidr::of(Ipv6Addr::from(destination).into(), prefix))?
    };
    text.lines().filter_map(line).collect()
}

fn in_use(flags: u32) -> bool {
    flags & RTF_UP != 0 && flags & RTF_REJECT == 0
}

/// The node's topology: one segment for each fabric, so that every node has the same keys. None without fabrics.
pub fn topology(fabrics: &Fabrics, network: &dyn HostNetwork) -> io::Result<Option<Topology>> {
    if fabrics.is_empty() {
        return Ok(None);
    }
    let (addresses, routes) = (network.addresses()?, network.routes()?);
    let reaches = |fabric: &Fabric| {
        fabric.networks().iter().any(|network| {
            let route = |route: &Cidr| !route.is_everything() && route.covers(network);
            addresses.iter().any(|address| network.holds(*address)) || routes.iter().any(route)
        })
    };
    let segment = |fabric: &Fabric| (fabric.key(), reaches(fabric).to_string());
    Ok(Some(Topology {
        segments: fabrics.iter().map(segment).collect(),
    }))
}

#[cfg(test)]
pub(crate) mod sim {
    use super::*;

    /// A network that a test describes.
    #[derive(Default)]
    pub(crate) struct SimNetwork {
        pub(crate) addresses: Vec<IpAddr>,
        pub(crate) routes: Vec<Cidr>,
        pub(crate) broken: bool,
    }

    impl HostNetwork for SimNetwork {
        fn addresses(&self) -> io::Result<Vec<IpAddr>> {
            match self.broken {
                true => Err(io::Error::from_raw_os_error(5)),
                false => Ok(self.addresses.clone()),
            }
        }

        fn routes(&self) -> io::Result<Vec<Cidr>> {
            Ok(self.routes.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::sim::SimNetwork;
    use super::*;

    fn route(text: &str) -> Cidr {
        let (address, prefix) = text.split_once('/').unwrap();
        Cidr::of(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
    }

    #[test]
    fn an_address_or_a_route_of_its_own_reaches_a_fabric_and_a_default_route_does_not() {
        let texts = [
            "a=10.1.0.0/24",
            "b=10.2.0.0/24,fd00:2::/64",
            "c=10.3.0.0/16",
            "d=10.4.0.0/24",
        ];
        let fabrics = Fabrics::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap();
        let network = SimNetwork {
            addresses: vec!["10.1.0.9".parse().unwrap(), "fd00:2::9".parse().unwrap()],
            routes: ["0.0.0.0/0", "::/0", "10.3.4.0/24", "10.4.0.0/20"]
                .map(route)
                .into(),
            broken: false,
        };
        let found: BTreeMap<String, String> = topology(&fabrics, &network)
            .unwrap()
            .unwrap()
            .segments
            .into_iter()
            .collect();
        let expected = [("a", "true"), ("b", "true"), ("c", "false"), ("d", "true")]
            .map(|(name, value)| (format!("fabric.storagelink.io/{name}"), value.to_owned()));
        assert_eq!(found, expected.into());
        assert_eq!(topology(&Fabrics::default(), &network).unwrap(), None);
    }

    #[test]
    fn the_kernels_tables() {
        // The kernel prints the bytes in the machine's order; this text is a little-endian machine's.
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth1\t0000010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            *\t0000020A\t00000000\t0201\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            short\n";
        if cfg!(target_endian = "little") {
            assert_eq!(parse_v4(v4), ["0.0.0.0/0", "10.1.0.0/24"].map(route));
        }
        let v6 = "\
            fd000002000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1\n\
            00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n\
            x 40\n";
        assert_eq!(parse_v6(v6), [route("fd00:2::/64")]);
        // This machine's own: whatever they are, they can be read.
        KernelNetwork.addresses().unwrap();
        KernelNetwork.routes().unwrap();
    }
}
