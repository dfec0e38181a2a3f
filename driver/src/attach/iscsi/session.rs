//! The kernel's iSCSI sessions, read from sysfs.
//!
//! Source of the names: drivers/scsi/scsi_transport_iscsi.c. Nothing here writes, and no program is asked.

use std::{io, net::IpAddr};

use storagelink_multipath::host::Sysfs;

use super::portal::{matches, parse_address};
use crate::publish_context::Portal;

/// Directory of sessions, relative to the sysfs root.
const SESSIONS: &str = "class/iscsi_session";
/// Directory of connections.
const CONNECTIONS: &str = "class/iscsi_connection";
/// Directory with one name per SCSI device, `H:C:T:L`.
const SCSI_DEVICES: &str = "class/scsi_device";

/// The state of a session that can carry I/O.
const LOGGED_IN: &str = "LOGGED_IN";

/// One session, as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// Session number of the kernel.
    pub(super) id: u32,
    /// Name of the target.
    pub(super) target: String,
    /// Address of the portal that was asked for; a redirect does not change it.
    pub(super) address: IpAddr,
    /// Port of the portal that was asked for.
    pub(super) port: u16,
    /// `LOGGED_IN`, `FAILED` or `FREE`.
    pub(super) state: String,
    /// The initiator's name, where the kernel tells it.
    pub(super) initiator: Option<String>,
    /// Number of its SCSI host: each session of software iSCSI has its own.
    pub(super) host: u32,
}

impl Session {
    /// True when it can carry I/O.
    pub(super) fn logged_in(&self) -> bool {
        self.state == LOGGED_IN
    }
}

/// Every session of the host that has a connection. One that goes away while it is read is left out.
pub(super) fn list(sysfs: &dyn Sysfs) -> io::Result<Vec<Session>> {
    let names = match sysfs.list(SESSIONS) {
        Ok(names) => names,
        // The transport module is not loaded: no session.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut sessions: Vec<_> = names.iter().filter_map(|name| read(sysfs, name)).collect();
    sessions.sort_by_key(|s| s.id);
    Ok(sessions)
}

fn read(sysfs: &dyn Sysfs, name: &str) -> Option<Session> {
    let id: u32 = name.strip_prefix("session")?.parse().ok()?;
    let session = format!("{SESSIONS}/{name}");
    let attribute = |path: String| sysfs.read(&path).ok().map(|text| text.trim().to_owned());
    // MC/S is not done by open-iscsi: connection 0 is the only one.
    let connection = format!("{CONNECTIONS}/connection{id}:0");
    let real = sysfs.canonical(&session).ok()?;
    let host = real
        .split('/')
        .find_map(|part| part.strip_prefix("host")?.parse().ok())?;
    Some(Session {
        id,
        target: attribute(format!("{session}/targetname"))?,
        address: parse_address(&attribute(format!("{connection}/persistent_address"))?)?,
        port: attribute(format!("{connection}/persistent_port"))?.parse().ok()?,
        state: attribute(format!("{session}/state"))?,
        initiator: attribute(format!("{session}/initiatorname")).filter(|s| !s.is_empty() && s != "(null)"),
        host,
    })
}

/// Which sessions count, by their initiator name. Those of another one are somebody else's view of the target.
#[derive(Clone, Debug)]
pub(super) enum Ours {
    /// All of them: this node's name is not known.
    All,
    /// Those that are not known to have another name than this.
    Named(String),
    /// Those that are known to have this name: other nodes are on the same kernel.
    Only(String),
}

impl Ours {
    fn has(&self, session: &Session) -> bool {
        match (self, &session.initiator) {
            (Self::All, _) | (Self::Named(_), None) => true,
            (Self::Only(_), None) => false,
            (Self::Named(wanted) | Self::Only(wanted), Some(has)) => wanted.eq_ignore_ascii_case(has),
        }
    }
}

/// The sessions of one path.
pub(super) fn of_portal(sysfs: &dyn Sysfs, portal: &Portal, ours: &Ours) -> io::Result<Vec<Session>> {
    let mut sessions = list(sysfs)?;
    sessions.retain(|s| ours.has(s) && matches(portal, &s.target, s.address, s.port));
    Ok(sessions)
}

/// The SCSI devices of a host, as `H:C:T:L`, whatever their type.
pub(super) fn devices_of_host(sysfs: &dyn Sysfs, host: u32) -> io::Result<Vec<String>> {
    let prefix = format!("{host}:");
    match sysfs.list(SCSI_DEVICES) {
        Ok(names) => Ok(names.into_iter().filter(|n| n.starts_with(&prefix)).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
