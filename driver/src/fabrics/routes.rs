//! The networks that this host has routes into, as the kernel lists them. It only reads.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The route refuses packets (include/uapi/linux/route.h, RTF_REJECT).
const RTF_REJECT: u32 = 0x0200;

/// Why the routes cannot be known.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub struct RoutesError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// All routes but the default ones and those of the loopback. `net` is `/proc/net` of the host's network namespace.
///
/// # Errors
/// The kernel's list cannot be read; one for IPv6 that is not there means that the kernel has no IPv6.
pub fn read(net: &Path) -> Result<Vec<IpNet>, RoutesError> {
    let list = |name: &str| {
        let path = net.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(source) if source.kind() == io::ErrorKind::NotFound && name == "ipv6_route" => {
                Ok(String::new())
            }
            Err(source) => Err(RoutesError { path, source }),
        }
    };
    let v4 = list("route")?;
    let v6 = list("ipv6_route")?;
    let v4 = v4.lines().skip(1).filter_map(ipv4).map(IpNet::from);
    Ok(v4.chain(v6.lines().filter_map(ipv6).map(IpNet::from)).collect())
}

/// A line of `/proc/net/route` (net/ipv4/fib_trie.c, fib_route_seq_show): interface, destination, gateway, flags, reference
/// count, use, metric, mask; addresses as the hexadecimal form of the big-endian number in this machine's byte order.
fn ipv4(line: &str) -> Option<Ipv4Net> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
    if fields.first() == Some(&"lo") || number(3)? & RTF_REJECT != 0 {
        return None;
    }
    let address = |index| Some(Ipv4Addr::from(u32::from_be(number(index)?)));
    let network = Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?;
    (network.prefix_len() > 0).then_some(network)
}

/// A line of `/proc/net/ipv6_route` (net/ipv6/ip6_fib.c, ipv6_route_native_seq_show): destination, prefix length, source,
/// its prefix length, next hop, metric, reference count, use, flags, interface; all hexadecimal.
fn ipv6(line: &str) -> Option<Ipv6Net> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    if fields.get(9) == Some(&"lo") || flags & RTF_REJECT != 0 {
        return None;
    }
    let address = u128::from_str_radix(fields.first()?, 16).ok()?;
    let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let network = Ipv6Net::new(Ipv6Addr::from(address), length).ok()?;
    let everybody_has = network.addr().is_multicast() || network.addr().is_unicast_link_local();
    (length > 0 && !everybody_has).then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lists_without_defaults_and_loopback() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth1\t000012C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth2\t0000000A\t0102A8C0\t0203\t0\t0\t0\t000000FF\t0\t0\t0\n";
        std::fs::write(dir.path().join("route"), v4).expect("written");
        let only = |text: &str| -> Vec<IpNet> { vec![text.parse().expect("a network")] };
        assert_eq!(read(dir.path()).expect("read"), only("198.18.0.0/24"));
        std::fs::write(dir.path().join("route"), "header\n").expect("written");
        let zeros = "00000000000000000000000000000000";
        let v6 = format!(
            "20010db8000000000000000000000000 20 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 eth1\n\
             fe800000000000000000000000000000 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 eth1\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n\
             00000000000000000000000000000001 80 {zeros} 00 {zeros} 00000000 00000003 00000000 80200001 lo\n"
        );
        std::fs::write(dir.path().join("ipv6_route"), v6).expect("written");
        assert_eq!(read(dir.path()).expect("read"), only("2001:db8::/32"));
    }

    #[test]
    fn this_host_can_be_read_and_a_missing_list_is_named() {
        read(Path::new("/proc/net")).expect("this host's routes");
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = read(dir.path()).expect_err("nothing there").to_string();
        assert!(error.ends_with("/route"), "{error}");
    }
}
