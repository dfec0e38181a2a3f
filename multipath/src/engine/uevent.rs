//! The kernel's uevents, as a wake-up: something happened to a device-mapper device, a disk or an iSCSI session.
//!
//! Only says that it is time to look; what happened is then read from the kernel. A lost event (the socket's buffer overran) is a wake-up too.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

/// Multicast group of the kernel's own events; 2 is udev's (lib/kobject_uevent.c).
const KERNEL_GROUP: u32 = 1;

/// What in an event concerns paths.
const OF_INTEREST: [&[u8]; 4] = [
    b"DM_ACTION=",
    b"SDEV_UA=",
    b"SUBSYSTEM=iscsi_",
    b"DEVTYPE=scsi_device",
];

/// A listener.
pub(super) struct Uevents {
    socket: AsyncFd<OwnedFd>,
}

impl Uevents {
    /// Listens from now on. Fails where netlink is not to be had.
    pub(super) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        // SAFETY: the OwnedFd moves into the AsyncFd, which closes it only after it took it off the poller.
        let socket = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { socket })
    }

    /// Waits for an event of interest; those that are there already count as one.
    pub(super) async fn next(&self) -> io::Result<()> {
        let mut buffer = [0u8; 8192];
        loop {
            let mut ready = self.socket.readable().await?;
            let mut of_interest = false;
            loop {
                match recv(ready.get_inner().as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => of_interest |= is_of_interest(&buffer[..length]),
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

fn is_of_interest(event: &[u8]) -> bool {
    OF_INTEREST
        .iter()
        .any(|mark| event.windows(mark.len()).any(|part| part == *mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_path_wakes_and_a_network_card_does_not() {
        let path = b"change@/devices/virtual/block/dm-0\0ACTION=change\0DM_ACTION=PATH_FAILED\0DM_PATH=8:0\0";
        assert!(is_of_interest(path));
        assert!(!is_of_interest(
            b"add@/devices/virtual/net/veth0\0ACTION=add\0SUBSYSTEM=net\0"
        ));
    }
}
