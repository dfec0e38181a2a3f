//! The messages of NETLINK_SOCK_DIAG about TCP connections, both ways. Pure (include/uapi/linux/{netlink,sock_diag,inet_diag,tcp}.h).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP};

use crate::host::{Answers, Connection};

// netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
// sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
// inet_diag.h
const INET_DIAG_INFO: u16 = 2;
/// `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;
/// `struct inet_diag_msg`: family, state, timer, retrans; the socket's id; five numbers.
const MESSAGE: usize = 4 + SOCKET_ID + 20;
/// `INET_DIAG_NOCOOKIE`: whatever socket it is.
const ANY: u64 = u64::MAX;
/// `TCP_ESTABLISHED` (include/net/tcp_states.h).
pub(super) const ESTABLISHED: u8 = 1;

/// What a message of the kernel says.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    /// A connection, its state, and what TCP knows of its other end when that was asked for.
    Socket(Connection, u8, Option<Answers>),
    /// The request is answered: well, or with this errno.
    End(i32),
    /// Something that concerns nobody here.
    Other,
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    // Both are small numbers.
    u8::try_from(family).unwrap_or_default()
}

fn request(kind: u16, flags: u16, family: u8, extensions: u8, states: u32, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut body = vec![
        family,
        u8::try_from(IPPROTO_TCP).unwrap_or_default(),
        extensions,
        0,
    ];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    let length = u32::try_from(HEADER + body.len()).unwrap_or_default();
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of its own.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn socket_id(
    local: Option<SocketAddr>,
    peer: Option<IpAddr>,
    peer_port: u16,
    cookie: u64,
) -> [u8; SOCKET_ID] {
    let mut id = [0; SOCKET_ID];
    let mut address = |at: usize, address: Option<IpAddr>| match address {
        Some(IpAddr::V4(v4)) => id[at..at + 4].copy_from_slice(&v4.octets()),
        Some(IpAddr::V6(v6)) => id[at..at + 16].copy_from_slice(&v6.octets()),
        None => {}
    };
    address(4, local.map(|local| local.ip()));
    address(20, peer);
    id[..2].copy_from_slice(&local.map_or(0, |local| local.port()).to_be_bytes());
    id[2..4].copy_from_slice(&peer_port.to_be_bytes());
    // Two words, the low one first (net/core/sock_diag.c, sock_diag_save_cookie).
    let (low, high) = (cookie & u64::from(u32::MAX), cookie >> 32);
    for (at, word) in [(40, low), (44, high)] {
        id[at..at + 4].copy_from_slice(&u32::try_from(word).unwrap_or_default().to_ne_bytes());
    }
    id
}

/// Asks for all established connections of an address family to this port.
pub(super) fn all_to(ipv6: bool, peer_port: u16) -> Vec<u8> {
    let family = family(if ipv6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    });
    let id = socket_id(None, None, peer_port, ANY);
    request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, 0, 1 << ESTABLISHED, &id)
}

fn id_of(connection: &Connection) -> [u8; SOCKET_ID] {
    let (local, peer) = (connection.local, connection.peer);
    socket_id(Some(local), Some(peer.ip()), peer.port(), connection.cookie)
}

/// Asks for one connection, with what TCP knows of its other end.
pub(super) fn one(connection: &Connection) -> Vec<u8> {
    let info = 1 << (INET_DIAG_INFO - 1);
    request(
        SOCK_DIAG_BY_FAMILY,
        0,
        family(connection.peer.ip()),
        info,
        u32::MAX,
        &id_of(connection),
    )
}

/// Tells the kernel to end one connection; it answers.
pub(super) fn destroy(connection: &Connection) -> Vec<u8> {
    request(
        SOCK_DESTROY,
        NLM_F_ACK,
        family(connection.peer.ip()),
        0,
        u32::MAX,
        &id_of(connection),
    )
}

/// The messages in what was read from the socket.
///
/// # Errors
/// A length does not fit.
pub(super) fn replies(mut data: &[u8]) -> io::Result<Vec<Reply>> {
    let mut all = Vec::new();
    while data.len() >= HEADER {
        let length = usize::try_from(u32_at(data, 0)?).unwrap_or(usize::MAX);
        if length < HEADER || length > data.len() {
            return Err(garbled());
        }
        let body = &data[HEADER..length];
        all.push(match u16::from_ne_bytes([data[4], data[5]]) {
            NLMSG_ERROR => Reply::End(i32::from_ne_bytes(u32_at(body, 0)?.to_ne_bytes()).saturating_neg()),
            NLMSG_DONE => Reply::End(0),
            SOCK_DIAG_BY_FAMILY => socket(body)?,
            _ => Reply::Other,
        });
        data = &data[length.next_multiple_of(4).min(data.len())..];
    }
    Ok(all)
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message of sock_diag does not fit")
}

fn u32_at(data: &[u8], at: usize) -> io::Result<u32> {
    let word = data.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_ne_bytes).ok_or_else(garbled)
}

fn socket(body: &[u8]) -> io::Result<Reply> {
    if body.len() < MESSAGE {
        return Err(garbled());
    }
    let ipv6 = i32::from(body[0]) == AF_INET6;
    let (state, id) = (body[1], &body[4..4 + SOCKET_ID]);
    let address = |at: usize, port: usize| {
        let port = u16::from_be_bytes([id[port], id[port + 1]]);
        let mut octets = [0; 16];
        octets.copy_from_slice(&id[at..at + 16]);
        let ip: IpAddr = if ipv6 {
            Ipv6Addr::from(octets).into()
        } else {
            Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
        };
        SocketAddr::new(ip, port)
    };
    let cookie = u64::from(u32_at(id, 40)?) | u64::from(u32_at(id, 44)?) << 32;
    let connection = Connection {
        local: address(4, 0),
        peer: address(20, 2),
        cookie,
    };
    Ok(Reply::Socket(connection, state, answers(&body[MESSAGE..])?))
}

/// `struct tcp_info` among the attributes of a socket.
fn answers(mut attributes: &[u8]) -> io::Result<Option<Answers>> {
    // tcp_info: eight bytes, of which the third is tcpi_retransmits, then numbers of four bytes; tcpi_unacked is the 5th, tcpi_last_ack_recv the
    // 13th.
    const RETRANSMITS: usize = 2;
    const UNACKED: usize = 8 + 4 * 4;
    const LAST_ACK_RECV: usize = 8 + 12 * 4;
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let Some(value) = attributes.get(4..length) else {
            return Err(garbled());
        };
        if kind == INET_DIAG_INFO {
            return Ok(Some(Answers {
                waiting: u32_at(value, UNACKED)? > 0,
                retransmits: *value.get(RETRANSMITS).ok_or_else(garbled)?,
                last: Duration::from_millis(u32_at(value, LAST_ACK_RECV)?.into()),
            }));
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    Ok(None)
}

/// A connection that was told of is asked for and ended by messages of the kernel's length.
#[cfg(fuzzing)]
pub(crate) fn fuzz(answer: &[u8]) {
    for reply in replies(answer).unwrap_or_default() {
        if let Reply::Socket(connection, ..) = reply {
            let (asked, ended) = (one(&connection), destroy(&connection));
            assert!(asked.len() == HEADER + 8 + SOCKET_ID && ended.len() == asked.len());
            assert_eq!(
                asked[HEADER + 8..],
                ended[HEADER + 8..],
                "both name the same socket"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn connection() -> Connection {
        Connection {
            local: "198.51.100.7:41000".parse().unwrap(),
            peer: "198.51.100.1:3260".parse().unwrap(),
            cookie: 0x1_0000_0005,
        }
    }

    /// A message of the kernel about this connection.
    fn told(connection: &Connection, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![family(connection.peer.ip()), ESTABLISHED, 1, 3];
        body.extend(id_of(connection));
        body.extend([0; 20]);
        body.extend(attributes);
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut all = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        all.extend(kind.to_ne_bytes());
        all.extend([0; 10]);
        all.extend(body);
        all
    }

    #[test]
    fn requests_have_the_kernels_lengths() {
        // nlmsghdr 16, inet_diag_req_v2 56.
        assert_eq!(
            [
                all_to(true, 3260).len(),
                one(&connection()).len(),
                destroy(&connection()).len()
            ],
            [72; 3]
        );
        assert_eq!(destroy(&connection())[4..8], [21, 0, 5, 0]);
    }

    #[test]
    fn a_socket_comes_back_as_it_was_asked_for() {
        for peer in ["198.51.100.1:3260", "[2001:db8::1]:3260"] {
            let peer: SocketAddr = peer.parse().unwrap();
            let local = if peer.is_ipv4() {
                "198.51.100.7:41000"
            } else {
                "[2001:db8::7]:41000"
            };
            let connection = Connection {
                peer,
                local: local.parse().unwrap(),
                ..connection()
            };
            let mut info = vec![0; 104];
            info[2] = 3;
            info[24] = 1;
            info[56..60].copy_from_slice(&1_250u32.to_ne_bytes());
            let mut attributes = vec![108, 0, 2, 0];
            attributes.extend(info);
            let answers = Answers {
                waiting: true,
                retransmits: 3,
                last: Duration::from_millis(1250),
            };
            let mut data = told(&connection, &attributes);
            data.extend(message(NLMSG_DONE, &[0; 4]));
            assert_eq!(
                replies(&data).unwrap(),
                [
                    Reply::Socket(connection, ESTABLISHED, Some(answers)),
                    Reply::End(0)
                ]
            );
        }
    }

    #[test]
    fn an_errno_is_the_end() {
        let mut body = (-nix::libc::ENOENT).to_ne_bytes().to_vec();
        body.extend([0; 16]);
        assert_eq!(
            replies(&message(NLMSG_ERROR, &body)).unwrap(),
            [Reply::End(nix::libc::ENOENT)]
        );
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_passed_over(kind in prop_oneof![Just(NLMSG_ERROR), Just(SOCK_DIAG_BY_FAMILY), any::<u16>()],
                                             body in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..216usize) {
            let all = message(kind, &body);
            let _ = replies(&all);
            let _ = replies(&all[..cut.min(all.len())]);
            let _ = replies(&body);
        }
    }
}
