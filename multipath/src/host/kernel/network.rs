//! TCP connections by NETLINK_SOCK_DIAG, addresses by getifaddrs. Answers come from the kernel at once; nothing here waits for
//! another host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    libc::{ENOENT, ESTALE},
    net::if_::InterfaceFlags,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, recv,
        sendto, socket,
    },
};

use super::{
    NetNamespace,
    inet_diag::{self, ESTABLISHED, Reply},
};
use crate::host::{Answers, Connection, LocalAddress, Network};

/// The network namespace of this process, or another one.
#[derive(Clone, Debug, Default)]
pub struct KernelNetwork {
    namespace: NetNamespace,
}

impl KernelNetwork {
    /// That of `namespace`.
    #[must_use]
    pub fn new(namespace: NetNamespace) -> Self {
        Self { namespace }
    }
}

/// What the kernel sends at once at most: NLMSG_GOODSIZE is 8 KiB, dumps use up to 32 (net/netlink/af_netlink.c).
const BUFFER: usize = 32 << 10;

/// Sends one request and reads to the end of its answer: the sockets in it, and the errno at its end.
fn ask(namespace: &NetNamespace, request: &[u8], dump: bool) -> io::Result<(Vec<Reply>, i32)> {
    let socket: OwnedFd = namespace.run(|| {
        socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
    })??;
    sendto(
        socket.as_raw_fd(),
        request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut buffer = vec![0; BUFFER];
    let mut sockets = Vec::new();
    loop {
        // The kernel has put the answer there before sendto returned, or goes on with it at each read.
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for reply in inet_diag::replies(&buffer[..length])? {
            match reply {
                Reply::End(errno) => return Ok((sockets, errno)),
                Reply::Socket(..) => sockets.push(reply),
                Reply::Other => {}
            }
        }
        if !dump && !sockets.is_empty() {
            return Ok((sockets, 0));
        }
    }
}

fn refused(errno: i32) -> io::Result<()> {
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

impl Network for KernelNetwork {
    fn connections(&self, peer_port: u16) -> io::Result<Vec<Connection>> {
        let mut all = Vec::new();
        for ipv6 in [false, true] {
            let (sockets, errno) = ask(&self.namespace, &inet_diag::all_to(ipv6, peer_port), true)?;
            // A kernel without IPv6 has none.
            if !(ipv6 && errno == ENOENT) {
                refused(errno)?;
            }
            all.extend(sockets.into_iter().filter_map(|reply| match reply {
                Reply::Socket(connection, ESTABLISHED, _) => Some(connection),
                _ => None,
            }));
        }
        Ok(all)
    }

    fn answers(&self, connection: &Connection) -> io::Result<Option<Answers>> {
        let (sockets, errno) = ask(&self.namespace, &inet_diag::one(connection), false)?;
        match errno {
            // Gone, or another socket between the same ends.
            ENOENT | ESTALE => return Ok(None),
            errno => refused(errno)?,
        }
        Ok(sockets.into_iter().find_map(|reply| match reply {
            Reply::Socket(_, ESTABLISHED, answers) => answers,
            _ => None,
        }))
    }

    fn destroy(&self, connection: &Connection) -> io::Result<()> {
        match ask(&self.namespace, &inet_diag::destroy(connection), false)?.1 {
            ENOENT | ESTALE => Ok(()),
            errno => refused(errno),
        }
    }

    fn local_addresses(&self) -> io::Result<Vec<LocalAddress>> {
        let local = |interface: InterfaceAddress| {
            Some(LocalAddress {
                address: ip(&interface.address?)?,
                carrier: interface
                    .flags
                    .contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
            })
        };
        // It makes a socket of its own.
        let all = self
            .namespace
            .run(|| getifaddrs().map(|all| all.filter_map(local).collect()))?;
        Ok(all?)
    }

    fn namespace(&self) -> NetNamespace {
        self.namespace.clone()
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from(std::net::SocketAddrV4::from(*v4)));
    let v6 = || {
        address
            .as_sockaddr_in6()
            .map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6)))
    };
    v4.or_else(v6).map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    /// On the kernel of this machine: its connections on the loopback are found and asked; without the right to destroy, or
    /// where the kernel was built without it, that is said.
    #[test]
    fn a_connection_of_this_machine_is_found_asked_and_destroyed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = KernelNetwork::default();
        let all = match network.connections(port) {
            Ok(all) => all,
            // A kernel without sock_diag.
            Err(error) if error.raw_os_error() == Some(ENOENT) => return,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].local, stream.local_addr().unwrap());
        let answers = network.answers(&all[0]).unwrap().expect("it is established");
        assert_eq!(answers.retransmits, 0);
        let other = Connection {
            cookie: all[0].cookie ^ 1,
            ..all[0]
        };
        assert_eq!(
            network.answers(&other).unwrap(),
            None,
            "another socket between the same ends"
        );
        if network.destroy(&all[0]).is_ok() {
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(network.answers(&all[0]).unwrap(), None);
        }
    }

    #[test]
    fn the_loopback_address_has_carrier() {
        let all = KernelNetwork::default().local_addresses().unwrap();
        let loopback = all.iter().find(|local| local.address.is_loopback());
        assert!(loopback.is_none_or(|local| local.carrier), "{all:?}");
    }
}
