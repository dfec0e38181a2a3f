//! Watches the TCP connections of iSCSI sessions, and ends those whose other end is gone while another path can carry the I/O: the
//! kernel then gives back what was in flight, and each map sends it over another path, long before the session's own timers would notice.
//!
//! A connection counts as dead when a segment was sent again and nothing was answered for [`SILENT`], or when the interface with its
//! address has lost its carrier. One is ended only if all that its session carries are paths of ours, and every map of these has a usable path
//! over a connection that was answered within [`SILENT`]: a session that somebody else uses, or that carries a map's last path, is left to its
//! own timers, and an array or a host that stands still for a second loses nothing.
//! Sends nothing to a target. Asks the kernel about the connections when one can be dead at the earliest: once a second while all are
//! answered, every [`LOOK`] while one is not; how many volumes there are does not matter.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Engine, KERNEL_DEADLINE, Ledger, Map, full,
    kernel_events::{KernelEvents, next_of},
    view,
};
use crate::{
    Host,
    host::{Answers, Connection, DevNo},
    iscsi_session::{self, Ends},
    scsi_device, worker,
};

/// How often the connections are asked for at most. A silent one is noticed after [`SILENT`] and at most this much.
const LOOK: Duration = Duration::from_millis(200);
/// How often sessions are looked for where there are none, a connection that was not found when its session was first seen, and the links without an
/// event.
#[cfg(not(test))]
const SEARCH: Duration = Duration::from_secs(2);
#[cfg(test)]
const SEARCH: Duration = Duration::from_millis(50);
/// Without an acknowledgement for so long, and after a segment was sent again in vain, a connection is dead. TCP sends again after 0.2 s on a
/// local network, later where answers take longer (RFC 6298, with Linux's minimum of 0.2 s); an idle connection has nothing to send again.
const SILENT: Duration = Duration::from_secs(1);

/// Connections by session.
type Known = BTreeMap<u32, Connection>;

impl Engine {
    /// Watches without end.
    pub(super) async fn watch_connections(&self) {
        let links = KernelEvents::of_links(&self.host)
            .inspect_err(|error| tracing::warn!(%error, "no events of links here: a lost carrier is noticed by its silence"))
            .ok();
        let mut before = Look::default();
        let mut search = Instant::now();
        let mut next = Instant::now();
        loop {
            let event = next_of(links.as_ref());
            let links_changed = tokio::select! {
                () = tokio::time::sleep_until(next) => false,
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
            let (host, last) = (self.host.clone(), std::mem::take(&mut before));
            let (ended, ledger) = (self.connections_ended.clone(), self.ledger().clone());
            let looked = worker::run("connections", KERNEL_DEADLINE, move || {
                let look = Look::at(&host, last, searching, searching || links_changed)?;
                if !look.dead.is_empty() {
                    ended.fetch_add(end(&host, &look, &ledger), Ordering::Relaxed);
                }
                io::Result::Ok(look)
            })
            .await;
            next = Instant::now() + LOOK;
            match looked {
                // One that was not ended is judged again at the next look: the other connections may be idle, and answer only then.
                Ok(Ok(look)) => {
                    next = Instant::now() + look.rest.unwrap_or(SEARCH);
                    before = look;
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

/// Finds the connections of those of these sessions that have none yet. Blocking.
fn find(host: &Host, sessions: &BTreeSet<u32>, known: &mut Known) {
    let unknown = sessions.iter().filter(|session| !known.contains_key(session));
    let ends: Vec<(u32, Ends)> = unknown
        .filter_map(|session| Some((*session, iscsi_session::ends(host, *session)?)))
        .collect();
    let ports: BTreeSet<u16> = ends.iter().map(|(_, ends)| ends.peer.port()).collect();
    for port in ports {
        let all = host.network.connections(port).unwrap_or_else(|error| {
            tracing::debug!(%error, port, "cannot list connections");
            Vec::new()
        });
        for (session, ends) in &ends {
            let mut between = all.iter().filter(|connection| {
                let port = ends.local_port.is_none_or(|port| port == connection.local.port());
                port && connection.peer == ends.peer && connection.local.ip() == ends.local
            });
            // Two between the same ends: it cannot be told which is the session's.
            if let (Some(connection), None) = (between.next(), between.next()) {
                known.insert(*session, *connection);
            }
        }
    }
}

/// What was found at one time.
#[derive(Default)]
struct Look {
    /// Sessions that are logged in, or have an established connection.
    sessions: BTreeSet<u32>,
    /// The connections of those where they are known.
    known: Known,
    /// Sessions whose other end is gone.
    dead: BTreeSet<u32>,
    /// Those of them whose interface has no carrier.
    cut: BTreeSet<u32>,
    /// Sessions whose other end has answered just now.
    answered: BTreeSet<u32>,
    /// Until a connection can be dead at the earliest; `None` without one.
    rest: Option<Duration>,
}

impl Look {
    /// Asks for each connection, and looks for those of sessions that were not there before, or of all when `searching`. Blocking.
    fn at(host: &Host, before: Self, searching: bool, look_at_links: bool) -> io::Result<Self> {
        let mut sessions: BTreeSet<u32> = iscsi_session::all(host).into_iter().collect();
        let mut known = before.known;
        known.retain(|session, _| sessions.contains(session));
        // Of one whose connection is known TCP tells whether it is up.
        sessions.retain(|session| known.contains_key(session) || iscsi_session::is_logged_in(host, *session));
        if searching || !sessions.is_subset(&before.sessions) {
            find(host, &sessions, &mut known);
        }
        let mut without_carrier = Vec::new();
        if look_at_links && !known.is_empty() {
            let locals = host.network.local_addresses()?;
            without_carrier.extend(locals.into_iter().filter(|local| !local.carrier));
        }
        let mut look = Self {
            sessions,
            ..Self::default()
        };
        for (session, connection) in known {
            let Some(answers) = host.network.answers(&connection)? else {
                // It may have another one at the next look.
                look.sessions.remove(&session);
                continue;
            };
            look.known.insert(session, connection);
            let cut = without_carrier
                .iter()
                .any(|local| local.address == connection.local.ip());
            if cut {
                look.cut.insert(session);
            }
            let dead = cut || (answers.retransmits > 0 && answers.last >= SILENT);
            if dead {
                look.dead.insert(session);
            } else if answers.last < SILENT {
                look.answered.insert(session);
            }
            let rest = rest(dead, &answers);
            look.rest = Some(look.rest.map_or(rest, |least| least.min(rest)));
        }
        Ok(look)
    }
}

/// Until a connection can be dead at the earliest, or ended.
fn rest(dead: bool, answers: &Answers) -> Duration {
    match SILENT.checked_sub(answers.last) {
        // It may be ended as soon as another one answers.
        _ if dead => LOOK,
        Some(left) => left.max(LOOK),
        // It is dead as soon as something is sent again.
        None if answers.waiting => LOOK,
        // Nothing is sent: what is sent from now on has its time.
        None => SILENT,
    }
}

/// Ends the dead connections that may be ended; how many those were. Blocking.
fn end(host: &Host, look: &Look, ledger: &Ledger) -> u64 {
    let maps = match view::maps(host) {
        Ok(maps) => maps,
        Err(error) => {
            tracing::warn!(
                error = full(&error),
                "cannot read the maps over a dead connection"
            );
            return 0;
        }
    };
    let mut ended = 0;
    for session in &look.dead {
        let disks: Vec<DevNo> = iscsi_session::devices(host, *session)
            .iter()
            .filter_map(|hctl| Some(scsi_device::find(host, hctl)?.devno))
            .collect();
        let (Some(connection), true) = (
            look.known.get(session),
            may_end(&maps, *session, &disks, &look.answered),
        ) else {
            continue;
        };
        let portal = connection.peer;
        // Before its paths are seen lost.
        ledger.ended(
            *session,
            if look.cut.contains(session) {
                "its interface lost its carrier"
            } else {
                "its portal did not answer for a second"
            },
        );
        match host.network.destroy(connection) {
            Ok(()) => {
                ended += 1;
                tracing::warn!(session, %portal, "the portal does not answer: its connection is ended, other paths carry the I/O");
            }
            Err(error) => {
                tracing::warn!(session, %portal, %error, "the portal does not answer, and its connection cannot be ended: its I/O waits for the session's timers");
            }
        }
    }
    ended
}

/// Whether the I/O of a dead session has somewhere else to go, and is all ours. `disks`: all disks of the session; `answered`: sessions that
/// are known to work.
fn may_end(maps: &[Map], session: u32, disks: &[DevNo], answered: &BTreeSet<u32>) -> bool {
    let over = |map: &Map| map.paths().any(|path| path.session == Some(session));
    let elsewhere = |map: &Map| {
        map.paths()
            .any(|path| path.is_usable() && path.session.is_none_or(|session| answered.contains(&session)))
    };
    let ours: BTreeSet<DevNo> = maps.iter().flat_map(Map::paths).map(|path| path.devno).collect();
    !disks.is_empty()
        && disks.iter().all(|disk| ours.contains(disk))
        && maps.iter().filter(|map| over(map)).all(elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_asked_again_when_it_can_be_dead_at_the_earliest() {
        let answers = |waiting, millis| Answers {
            waiting,
            retransmits: 0,
            last: Duration::from_millis(millis),
        };
        for (dead, answers, millis) in [
            (false, answers(true, 10), 990),
            (false, answers(false, 10), 990),
            (false, answers(true, 950), 200),
            (false, answers(false, 4000), 1000),
            (false, answers(true, 4000), 200),
            (true, answers(true, 10), 200),
        ] {
            assert_eq!(rest(dead, &answers).as_millis(), millis, "{dead} {answers:?}");
        }
    }
}
