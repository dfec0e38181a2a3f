//! What the kernel tells by netlink multicast, as a wake-up: something happened to a device-mapper device, a disk, an iSCSI session or a Fibre
//! Channel host; a link lost its carrier.
//!
//! Only says that it is time to look; what happened is then read from the kernel. A lost event (the socket's buffer overran) is a wake-up too.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc::{IFF_RUNNING, RTM_NEWLINK},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use tokio::io::unix::AsyncFd;

use crate::{Host, host::kernel::NetNamespace};

/// Multicast group of the kernel's own uevents; 2 is udev's (lib/kobject_uevent.c).
const UEVENTS: u32 = 1;
/// `ISCSI_NL_GRP_ISCSID` (include/scsi/iscsi_if.h): what iscsid hears, too.
const SESSIONS: u32 = 1;
/// `RTMGRP_LINK` (include/uapi/linux/rtnetlink.h).
const LINKS: u32 = 1;

/// Where Fibre Channel hosts tell of events: `SCSI_NL_GRP_FC_EVENTS` (include/scsi/scsi_netlink.h) is 4 and is used as the number of a group
/// (drivers/scsi/scsi_transport_fc.c, fc_host_post_fc_event), which is the fourth bit of this mask.
const FIBRE_CHANNEL: u32 = 1 << 3;

/// What in a uevent concerns paths.
const OF_INTEREST: [&[u8]; 5] = [
    b"DM_ACTION=",
    b"SDEV_UA=",
    b"SUBSYSTEM=iscsi_",
    b"SUBSYSTEM=fc_remote_ports",
    b"DEVTYPE=scsi_device",
];

/// Unit attentions after which a device may be another one, or be reached in another state (drivers/scsi/scsi_lib.c, scsi_evt_emit).
const OTHER_DEVICE: [&[u8]; 4] = [
    b"SDEV_UA=ASYMMETRIC_ACCESS_STATE_CHANGED",
    b"SDEV_UA=INQUIRY_DATA_HAS_CHANGED",
    b"SDEV_UA=REPORTED_LUNS_DATA_HAS_CHANGED",
    b"SDEV_UA=POWER_ON_RESET_OCCURRED",
];

/// A listener.
pub(super) struct KernelEvents {
    socket: AsyncFd<OwnedFd>,
    of_interest: fn(&[u8]) -> bool,
}

impl KernelEvents {
    /// Hears of uevents that concern paths from now on. Fails where netlink is not to be had.
    pub(super) fn of_devices(host: &Host) -> io::Result<Self> {
        Self::of(host, SockProtocol::NetlinkKObjectUEvent, UEVENTS, concerns_paths)
    }

    /// Hears of devices that may have become others, or be reached otherwise, from now on.
    pub(super) fn of_unit_attentions(host: &Host) -> io::Result<Self> {
        Self::of(host, SockProtocol::NetlinkKObjectUEvent, UEVENTS, may_be_another)
    }

    /// Hears of iSCSI connections that failed, and of sessions that are made, logged in or gone, from now on. Only the initial network namespace
    /// is told: the host's network must be of it.
    pub(super) fn of_sessions(host: &Host) -> io::Result<Self> {
        Self::of(host, SockProtocol::NetlinkISCSI, SESSIONS, session_changed)
    }

    /// Hears of Fibre Channel hosts whose link, or whose fabric, changed, from now on. Only the initial network namespace is told.
    ///
    /// It depends on the driver which events there are. libfc (software FCoE) tells `LIPRESET` just *before* it blocks the ports of a lost link, and
    /// nothing when the link is back (seen on 6.1); others tell `LINKDOWN`, `LINKUP` and `RSCN`. The state of a remote port itself is told by none.
    pub(super) fn of_fibre_channel(host: &Host) -> io::Result<Self> {
        Self::of(
            host,
            SockProtocol::NetlinkSCSITransport,
            FIBRE_CHANNEL,
            fabric_changed,
        )
    }

    /// Hears of links that have no carrier from now on, whatever changed of them.
    pub(super) fn of_links(host: &Host) -> io::Result<Self> {
        Self::of(host, SockProtocol::NetlinkRoute, LINKS, link_without_carrier)
    }

    fn of(
        host: &Host,
        protocol: SockProtocol,
        group: u32,
        of_interest: fn(&[u8]) -> bool,
    ) -> io::Result<Self> {
        Self::open(&host.network.namespace(), protocol, group, of_interest)
    }

    fn open(
        namespace: &NetNamespace,
        protocol: SockProtocol,
        group: u32,
        of_interest: fn(&[u8]) -> bool,
    ) -> io::Result<Self> {
        let fd = namespace.run(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Datagram,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                protocol,
            )
        })??;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, group))?;
        // SAFETY: the OwnedFd moves into the AsyncFd, which closes it only after it took it off the poller.
        let socket = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { socket, of_interest })
    }

    /// Waits for an event of interest; those that are there already count as one.
    async fn next(&self) -> io::Result<()> {
        let mut buffer = [0u8; 8192];
        loop {
            let mut ready = self.socket.readable().await?;
            let mut of_interest = false;
            loop {
                match recv(ready.get_inner().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => of_interest |= (self.of_interest)(&buffer[..length]),
                    Err(nix::errno::Errno::EAGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    // The kernel had to drop events: what they said has to be read from the devices.
                    Err(nix::errno::Errno::ENOBUFS) => of_interest = true,
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            if of_interest {
                return Ok(());
            }
        }
    }
}

/// The next event of a listener; without one, never.
pub(super) async fn next_of(events: Option<&KernelEvents>) -> io::Result<()> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

fn concerns_paths(event: &[u8]) -> bool {
    has_any(event, &OF_INTEREST)
}

fn may_be_another(event: &[u8]) -> bool {
    has_any(event, &OTHER_DEVICE)
}

fn has_any(event: &[u8], marks: &[&[u8]]) -> bool {
    marks
        .iter()
        .any(|mark| event.windows(mark.len()).any(|part| part == *mark))
}

/// `ISCSI_KEVENT_CONN_ERROR`, `_DESTROY_SESSION`, `_CREATE_SESSION`, `_CONN_LOGIN_STATE` (include/scsi/iscsi_if.h).
const SESSION_EVENTS: [u32; 4] = [102, 104, 106, 109];

/// `struct nlmsghdr` (16 bytes), then `struct iscsi_uevent`, which begins with its type.
fn session_changed(message: &[u8]) -> bool {
    let kind = message.get(16..20).and_then(|word| word.try_into().ok());
    kind.map(u32::from_ne_bytes)
        .is_some_and(|kind| SESSION_EVENTS.contains(&kind))
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let word = data.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_ne_bytes)
}

/// Type and content of each message that begins with a whole `struct nlmsghdr` (16 bytes; length first, type at 4).
fn messages(mut all: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(all, 0)?).ok()?;
        let message = all.get(..length).filter(|message| message.len() >= 16)?;
        all = &all[length.next_multiple_of(4).min(all.len())..];
        Some((u16::from_ne_bytes([message[4], message[5]]), &message[16..]))
    })
}

/// `struct ifinfomsg` (flags at 8), per message.
fn link_without_carrier(all: &[u8]) -> bool {
    let running = |flags: u32| flags & IFF_RUNNING.cast_unsigned() != 0;
    messages(all)
        .any(|(kind, content)| kind == RTM_NEWLINK && word(content, 8).is_some_and(|flags| !running(flags)))
}

/// `SCSI_TRANSPORT_MSG` (include/scsi/scsi_netlink.h).
const SCSI_TRANSPORT: u16 = 0x11;
/// `FC_NL_ASYNC_EVENT` (include/scsi/scsi_netlink_fc.h), and `SCSI_NL_TRANSPORT_FC`.
const FC_EVENT: (u8, [u8; 2]) = (1, 0x0100_u16.to_ne_bytes());
/// `FCH_EVT_LIP`, `_LINKUP`, `_LINKDOWN`, `_LIPRESET`, `_RSCN`, `_PORT_OFFLINE`, `_PORT_ONLINE` (include/scsi/scsi_transport_fc.h): after these a remote
/// port may be lost or back. Not those of single frames, of congestion, or of a vendor.
const FC_EVENTS: [u32; 7] = [1, 2, 3, 4, 5, 0x201, 0x202];

/// `struct fc_nl_event` per message: `struct scsi_nl_hdr` (transport at 1, message type at 4), event code at 32.
fn fabric_changed(all: &[u8]) -> bool {
    messages(all).any(|(kind, content)| {
        let header = content.get(1).copied().zip(content.get(4..6));
        kind == SCSI_TRANSPORT
            && header.is_some_and(|(transport, message)| transport == FC_EVENT.0 && message == FC_EVENT.1)
            && word(content, 32).is_some_and(|code| FC_EVENTS.contains(&code))
    })
}

/// Every question that is asked of a message.
#[cfg(fuzzing)]
pub(crate) fn fuzz(message: &[u8]) {
    let (paths, another) = (concerns_paths(message), may_be_another(message));
    assert!(paths || !another, "what may be another disk concerns paths");
    // What comes behind a message cannot hide it.
    if link_without_carrier(message) {
        assert!(link_without_carrier(&[message, message].concat()));
    }
    if fabric_changed(message) {
        assert!(fabric_changed(&[message, message].concat()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_failed_path_wakes_and_a_network_card_does_not() {
        let path = b"change@/devices/virtual/block/dm-0\0ACTION=change\0DM_ACTION=PATH_FAILED\0DM_PATH=8:0\0";
        assert!(concerns_paths(path));
        assert!(concerns_paths(
            b"add@/devices/x/rport-1:0-0\0ACTION=add\0SUBSYSTEM=fc_remote_ports\0"
        ));
        assert!(!concerns_paths(
            b"add@/devices/virtual/net/veth0\0ACTION=add\0SUBSYSTEM=net\0"
        ));
    }

    #[test]
    fn a_changed_capacity_is_no_other_device() {
        let event = |ua: &str| format!("change@/devices/x\0SUBSYSTEM=scsi\0SDEV_UA={ua}\0");
        assert!(may_be_another(event("REPORTED_LUNS_DATA_HAS_CHANGED").as_bytes()));
        assert!(may_be_another(
            event("ASYMMETRIC_ACCESS_STATE_CHANGED").as_bytes()
        ));
        assert!(!may_be_another(event("CAPACITY_DATA_HAS_CHANGED").as_bytes()));
    }

    fn link(kind: u16, flags: i32) -> Vec<u8> {
        let mut message = 32u32.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend([0; 8]);
        message.extend(flags.to_ne_bytes());
        message.extend([0; 4]);
        message
    }

    #[test]
    fn a_link_without_carrier_wakes_and_one_with_it_does_not() {
        let up = link(RTM_NEWLINK, IFF_RUNNING | nix::libc::IFF_UP);
        let down = link(RTM_NEWLINK, nix::libc::IFF_UP);
        assert!(!link_without_carrier(&up));
        assert!(link_without_carrier(&down));
        assert!(link_without_carrier(&[up, down].concat()), "the second of two");
        assert!(!link_without_carrier(&link(nix::libc::RTM_DELLINK, 0)));
    }

    #[test]
    fn a_connection_error_wakes_and_a_pdu_for_iscsid_does_not() {
        let event = |kind: u32| [&[0; 16][..], &kind.to_ne_bytes(), &[0; 20]].concat();
        assert!(session_changed(&event(102)));
        assert!(!session_changed(&event(101)));
        assert!(!session_changed(&[102; 10]));
    }

    /// As the kernel (6.1) sent it when libfc lost its link: `FCH_EVT_LIPRESET` of host 1.
    const LIP_RESET: [u8; 56] = [
        0x38, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0xb2, 0xa1, 0, 1, 0x28, 0, 0x84, 0x4d,
        0x0b, 0x6b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn a_fabric_that_changed_wakes_and_what_a_vendor_tells_does_not() {
        assert!(fabric_changed(&LIP_RESET));
        let event = |at: usize, byte: u8| {
            let mut event = LIP_RESET;
            event[at] = byte;
            event
        };
        assert!(fabric_changed(&event(48, 5)), "RSCN");
        assert!(!fabric_changed(&event(49, 0xff)), "another code");
        assert!(!fabric_changed(&event(17, 0)), "another transport");
        assert!(!fabric_changed(&event(21, 2)), "another message");
        assert!(!fabric_changed(&event(4, 0x12)), "another kind of message");
        assert!(!fabric_changed(&LIP_RESET[..50]), "cut off");
        let both = [event(49, 0xff), LIP_RESET].concat();
        assert!(fabric_changed(&both), "the second of two");
    }

    /// Needs the right to listen to a multicast group, as the driver has it.
    #[tokio::test]
    async fn events_that_the_kernel_had_to_drop_wake_although_none_was_of_interest() {
        use nix::sys::socket::{sendto, setsockopt, sockopt::RcvBuf};
        // Messages of user space, to a group of this number (linux/netlink.h, NETLINK_USERSOCK).
        const GROUP: u32 = 1;
        let nothing = |_: &[u8]| false;
        let events = match KernelEvents::open(
            &NetNamespace::default(),
            SockProtocol::NetlinkUserSock,
            GROUP,
            nothing,
        ) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            other => other.unwrap(),
        };
        setsockopt(events.socket.get_ref(), RcvBuf, &4096).unwrap();
        let sender = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkUserSock,
        )
        .unwrap();
        for _ in 0..64 {
            // An error tells the sender that somebody lost it.
            let _ = sendto(
                sender.as_raw_fd(),
                &[0; 512],
                &NetlinkAddr::new(0, GROUP),
                MsgFlags::empty(),
            );
        }
        let woken = tokio::time::timeout(std::time::Duration::from_secs(10), events.next()).await;
        woken.expect("an overrun wakes").unwrap();
    }

    proptest! {
        #[test]
        fn garbage_wakes_or_does_not(message in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = link_without_carrier(&message);
            let _ = fabric_changed(&message);
        }
    }
}
