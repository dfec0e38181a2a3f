//! What the kernel tells by netlink multicast, as a wake-up: something happened to a device-mapper device, a disk or an iSCSI session; a
//! link lost its carrier.
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

/// What in a uevent concerns paths.
const OF_INTEREST: [&[u8]; 4] = [
    b"DM_ACTION=",
    b"SDEV_UA=",
    b"SUBSYSTEM=iscsi_",
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
        Self::open(
            &host.network.namespace(),
            SockProtocol::NetlinkKObjectUEvent,
            UEVENTS,
            concerns_paths,
        )
    }

    /// Hears of devices that may have become others, or be reached otherwise, from now on.
    pub(super) fn of_unit_attentions(host: &Host) -> io::Result<Self> {
        Self::open(
            &host.network.namespace(),
            SockProtocol::NetlinkKObjectUEvent,
            UEVENTS,
            may_be_another,
        )
    }

    /// Hears of iSCSI connections that failed, and of sessions that are made, logged in or gone, from now on. Only the initial network namespace
    /// is told: the host's network must be of it.
    pub(super) fn of_sessions(host: &Host) -> io::Result<Self> {
        Self::open(
            &host.network.namespace(),
            SockProtocol::NetlinkISCSI,
            SESSIONS,
            session_changed,
        )
    }

    /// Hears of links that have no carrier from now on, whatever changed of them.
    pub(super) fn of_links(host: &Host) -> io::Result<Self> {
        Self::open(
            &host.network.namespace(),
            SockProtocol::NetlinkRoute,
            LINKS,
            link_without_carrier,
        )
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

/// `struct nlmsghdr` (16 bytes; length first, type at 4), `struct ifinfomsg` (flags at 8), per message.
fn link_without_carrier(mut messages: &[u8]) -> bool {
    let word = |data: &[u8], at: usize| {
        let word = data.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map(u32::from_ne_bytes)
    };
    while let Some(length) = word(messages, 0).and_then(|length| usize::try_from(length).ok()) {
        if length < 16 || length > messages.len() {
            return false;
        }
        let kind = u16::from_ne_bytes([messages[4], messages[5]]);
        let flags = word(&messages[16..length], 8);
        let running = |flags: u32| flags & IFF_RUNNING.cast_unsigned() != 0;
        if kind == RTM_NEWLINK && flags.is_some_and(|flags| !running(flags)) {
            return true;
        }
        messages = &messages[length.next_multiple_of(4).min(messages.len())..];
    }
    false
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_failed_path_wakes_and_a_network_card_does_not() {
        let path = b"change@/devices/virtual/block/dm-0\0ACTION=change\0DM_ACTION=PATH_FAILED\0DM_PATH=8:0\0";
        assert!(concerns_paths(path));
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
        }
    }
}
