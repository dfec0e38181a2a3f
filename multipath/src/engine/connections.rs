//! Watches the TCP connections of iSCSI sessions, and ends those whose other end is gone while another path can carry the I/O: the
//! kernel then gives back what was in flight, and each map sends it over another path, long before the session's own timers would notice.
//!
//! A connection counts as dead when its segments are sent again and again without an answer for [`SILENT`], or when the interface with its
//! address has lost its carrier. One is ended only if all that its session carries are paths of ours, and every map of these has a usable path
//! over a connection that is not dead: a session that somebody else uses, or that carries a map's last path, is left to its own timers.
//! Sends nothing to a target. Asks the kernel about each connection every [`LOOK`]; how many volumes there are does not matter.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};

use super::{Engine, KERNEL_DEADLINE, Map, full, kernel_events::KernelEvents, view};
use crate::{
    Host,
    host::{Connection, DevNo},
    iscsi_session, scsi_device, worker,
};

/// How often the connections are asked for. A silent one is noticed after [`SILENT`] and at most this much.
const LOOK: Duration = Duration::from_millis(200);
/// How often sessions are looked for whose connection is not known: they are new, or were logged in again.
#[cfg(not(test))]
const SEARCH: Duration = Duration::from_secs(2);
#[cfg(test)]
const SEARCH: Duration = Duration::from_millis(50);
/// Without an acknowledgement for so long, and sent again so often, a connection is dead. TCP sends again after 0.2, 0.6 and 1.4 s on a
/// local network (RFC 6298 with Linux's minimum of 0.2 s): the second time is no chance loss, and an idle other end is never sent to again.
const SILENT: Duration = Duration::from_secs(1);
const RETRANSMITS: u8 = 2;

/// The sessions whose connection is known.
type Known = BTreeMap<u32, Connection>;

impl Engine {
    /// Watches without end.
    pub(super) async fn watch_connections(&self) {
        let links = KernelEvents::of_links()
            .inspect_err(|error| tracing::warn!(%error, "no events of links here: a lost carrier is noticed by its silence"))
            .ok();
        let mut known = Known::new();
        let mut search = Instant::now();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = async {
                match &links {
                    Some(links) => links.next().await,
                    None => std::future::pending().await,
                }
            };
            let links_changed = tokio::select! {
                _ = look.tick() => false,
                event = event => match event {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(%error, "reading events of links");
                        // A socket that is always ready with an error must not spin.
                        tokio::time::sleep(LOOK).await;
                        true
                    }
                },
            };
            let searching = search <= Instant::now();
            if searching {
                search = Instant::now() + SEARCH;
            }
            let (host, before) = (self.host.clone(), std::mem::take(&mut known));
            let looked = worker::run("connections", KERNEL_DEADLINE, move || {
                let known = if searching { find(&host, before) } else { before };
                let looked = dead(&host, known, searching || links_changed);
                if let Ok((known, dead)) = looked.as_ref()
                    && !dead.is_empty()
                {
                    end(&host, known, dead);
                }
                looked
            })
            .await;
            match looked {
                Ok(Ok((now, dead))) => {
                    known = now;
                    // What was ended is found again once it is logged in again.
                    known.retain(|session, _| !dead.contains(session));
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "cannot ask for connections");
                    search = search.max(Instant::now() + SEARCH);
                }
                // Logged by the worker.
                Err(_) => {}
            }
        }
    }
}

/// Finds the connections of sessions that are logged in and have none yet. Blocking.
fn find(host: &Host, mut known: Known) -> Known {
    let sessions = iscsi_session::logged_in(host);
    known.retain(|session, _| sessions.contains(session));
    let unknown = sessions
        .into_iter()
        .filter(|session| !known.contains_key(session));
    let ends: Vec<(u32, (IpAddr, SocketAddr))> = unknown
        .filter_map(|session| Some((session, iscsi_session::ends(host, session)?)))
        .collect();
    let ports: BTreeSet<u16> = ends.iter().map(|(_, (_, peer))| peer.port()).collect();
    for port in ports {
        let all = host.network.connections(port).unwrap_or_else(|error| {
            tracing::debug!(%error, port, "cannot list connections");
            Vec::new()
        });
        for (session, (local, peer)) in &ends {
            let mut between = all
                .iter()
                .filter(|connection| connection.peer == *peer && connection.local.ip() == *local);
            // Two between the same ends: it cannot be told which is the session's.
            if let (Some(connection), None) = (between.next(), between.next()) {
                known.insert(*session, *connection);
            }
        }
    }
    known
}

/// The connections that are still there, and the sessions of those that are dead. Blocking.
fn dead(host: &Host, known: Known, look_at_links: bool) -> io::Result<(Known, BTreeSet<u32>)> {
    let mut without_carrier = Vec::new();
    if look_at_links && !known.is_empty() {
        let locals = host.network.local_addresses()?;
        without_carrier.extend(locals.into_iter().filter(|local| !local.carrier));
    }
    let (mut now, mut dead) = (Known::new(), BTreeSet::new());
    for (session, connection) in known {
        let Some(answers) = host.network.answers(&connection)? else {
            continue;
        };
        now.insert(session, connection);
        let cut = without_carrier
            .iter()
            .any(|local| local.address == connection.local.ip());
        if cut || (answers.retransmits >= RETRANSMITS && answers.last >= SILENT) {
            dead.insert(session);
        }
    }
    Ok((now, dead))
}

/// Ends the dead connections that may be ended. Blocking.
fn end(host: &Host, known: &Known, dead: &BTreeSet<u32>) {
    let maps = match view::maps(host) {
        Ok(maps) => maps,
        Err(error) => {
            tracing::warn!(
                error = full(&error),
                "cannot read the maps over a dead connection"
            );
            return;
        }
    };
    for session in dead {
        let disks: Vec<DevNo> = iscsi_session::devices(host, *session)
            .iter()
            .filter_map(|hctl| Some(scsi_device::find(host, hctl)?.devno))
            .collect();
        let (Some(connection), true) = (known.get(session), may_end(&maps, *session, &disks, dead)) else {
            continue;
        };
        let portal = connection.peer;
        match host.network.destroy(connection) {
            Ok(()) => {
                tracing::warn!(session, %portal, "the portal does not answer: connection ended, other paths carry the I/O")
            }
            Err(error) => {
                tracing::warn!(session, %portal, %error, "the portal does not answer, and its connection cannot be ended: its I/O waits for the session's timers");
            }
        }
    }
}

/// Whether the I/O of a dead session has somewhere else to go, and is all ours. `disks`: all disks of the session.
fn may_end(maps: &[Map], session: u32, disks: &[DevNo], dead: &BTreeSet<u32>) -> bool {
    let over = |map: &Map| map.paths().any(|path| path.session == Some(session));
    let elsewhere = |map: &Map| {
        map.paths()
            .any(|path| path.is_usable() && path.session.is_none_or(|session| !dead.contains(&session)))
    };
    let ours: BTreeSet<DevNo> = maps.iter().flat_map(Map::paths).map(|path| path.devno).collect();
    !disks.is_empty()
        && disks.iter().all(|disk| ours.contains(disk))
        && maps.iter().filter(|map| over(map)).all(elsewhere)
}
