//! iSCSI sessions as sysfs shows them. Reads only.

use std::net::{IpAddr, SocketAddr};

use crate::{Hctl, Host, ScsiDisk};

/// Numbers of all sessions, whatever their state.
#[must_use]
pub fn all(host: &Host) -> Vec<u32> {
    let names = host.sysfs.list("class/iscsi_session").unwrap_or_default();
    names
        .iter()
        .filter_map(|name| name.strip_prefix("session")?.parse().ok())
        .collect()
}

/// A session carries I/O.
#[must_use]
pub fn is_logged_in(host: &Host, session: u32) -> bool {
    state(host, session).is_some_and(|state| state == "LOGGED_IN")
}

/// The state of a session: `LOGGED_IN`, `FAILED` or `FREE` (drivers/scsi/scsi_transport_iscsi.c, iscsi_session_state_names).
#[must_use]
pub fn state(host: &Host, session: u32) -> Option<String> {
    host.sysfs
        .read(&format!("class/iscsi_session/session{session}/state"))
        .ok()
}

/// The session that a disk came by; `None` for other transports.
#[must_use]
pub fn of_disk(host: &Host, disk: &ScsiDisk) -> Option<u32> {
    let device = host
        .sysfs
        .canonical(&format!("class/scsi_device/{}/device", disk.hctl))
        .ok()?;
    device
        .split('/')
        .find_map(|part| part.strip_prefix("session")?.parse().ok())
}

/// Number of the SCSI host of a session: with iscsi_tcp each has one of its own.
fn scsi_host(host: &Host, session: u32) -> Option<u32> {
    let directory = host
        .sysfs
        .canonical(&format!("class/iscsi_session/session{session}"))
        .ok()?;
    directory
        .split('/')
        .find_map(|part| part.strip_prefix("host")?.parse().ok())
}

/// The addresses of all SCSI devices of a session.
#[must_use]
pub fn devices(host: &Host, session: u32) -> Vec<Hctl> {
    let Some(number) = scsi_host(host, session) else {
        return Vec::new();
    };
    let all = host.sysfs.list("class/scsi_device").unwrap_or_default();
    all.iter()
        .filter_map(|name| name.parse::<Hctl>().ok())
        .filter(|hctl| hctl.host == number)
        .collect()
}

/// Address and port of the portal that a session was made to.
#[must_use]
pub fn portal(host: &Host, session: u32) -> Option<String> {
    let connection = format!("class/iscsi_connection/connection{session}:0");
    let address = host
        .sysfs
        .read(&format!("{connection}/persistent_address"))
        .ok()?;
    let port = host.sysfs.read(&format!("{connection}/persistent_port")).ok()?;
    Some(if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    })
}

/// The two ends of a session's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// This host's address.
    pub local: IpAddr,
    /// This host's port, where the kernel tells it: nodes that share a kernel have connections between the same addresses.
    pub local_port: Option<u16>,
    /// Address and port of the target's.
    pub peer: SocketAddr,
}

/// The ends of a session's connection now. The kernel knows them only while it is logged in (drivers/scsi/iscsi_tcp.c,
/// iscsi_sw_tcp_conn_get_param and iscsi_sw_tcp_host_get_param).
#[must_use]
pub fn ends(host: &Host, session: u32) -> Option<Ends> {
    let read = |path: String| host.sysfs.read(&path).ok();
    let connection = format!("class/iscsi_connection/connection{session}:0");
    let peer: IpAddr = read(format!("{connection}/address"))?.parse().ok()?;
    let port: u16 = read(format!("{connection}/port"))?.parse().ok()?;
    let number = scsi_host(host, session)?;
    let local: IpAddr = read(format!("class/iscsi_host/host{number}/ipaddress"))?
        .parse()
        .ok()?;
    Some(Ends {
        local,
        local_port: read(format!("{connection}/local_port")).and_then(|port| port.parse().ok()),
        peer: SocketAddr::new(peer, port),
    })
}
