//! Simulated connections: each session that is logged in has one, over an interface of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{Session, SimKernel, State};
use crate::host::{Answers, Connection, LocalAddress, Network};

impl State {
    /// This host's address towards a session's portal.
    pub(super) fn local_address(&self, session: u32) -> IpAddr {
        // TEST-NET-2 (RFC 5737), an address a session unless they share one.
        let last = if self.one_address { 1 } else { session };
        Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 51, 100, 0)) + last).into()
    }

    /// The connection of a session; `None` when it is not logged in, or its portal has no address.
    fn connection(&self, id: u32, session: &Session) -> Option<Connection> {
        let peer = SocketAddr::new(session.address.parse().ok()?, session.port);
        (session.state == "LOGGED_IN").then_some(Connection {
            local: SocketAddr::new(self.local_address(id), local_port(id)),
            peer,
            cookie: u64::from(id) << 32 | u64::from(session.logins),
        })
    }
}

/// This host's port of a session's connection.
pub(super) fn local_port(session: u32) -> u16 {
    40_000 + u16::try_from(session % 20_000).unwrap_or_default()
}

impl SimKernel {
    /// The other end of a session answers no more; nobody is told, and commands to it hang.
    pub fn silence(&self, session: u32) {
        if let Some(session) = self.state().sessions.get_mut(&session) {
            session.silent = true;
        }
    }

    /// All sessions are over one address of this host.
    pub fn share_address(&self) {
        self.state().one_address = true;
    }

    /// The interface of a session loses its carrier.
    pub fn unplug(&self, session: u32) {
        if let Some(session) = self.state().sessions.get_mut(&session) {
            session.unplugged = true;
        }
    }

    fn session_of(&self, wanted: &Connection) -> Option<(u32, Session)> {
        let state = self.state();
        let mut all = state.sessions.iter();
        all.find(|(id, session)| state.connection(**id, session) == Some(*wanted))
            .map(|(id, session)| (*id, session.clone()))
    }
}

impl Network for SimKernel {
    fn connections(&self, peer_port: u16) -> io::Result<Vec<Connection>> {
        let state = self.state();
        let all = state
            .sessions
            .iter()
            .filter_map(|(id, session)| state.connection(*id, session));
        Ok(all
            .filter(|connection| connection.peer.port() == peer_port)
            .collect())
    }

    fn answers(&self, connection: &Connection) -> io::Result<Option<Answers>> {
        Ok(self
            .session_of(connection)
            .map(|(_, session)| match session.silent {
                true => Answers {
                    waiting: true,
                    retransmits: 3,
                    last: Duration::from_millis(1400),
                },
                false => Answers {
                    waiting: false,
                    retransmits: 0,
                    // So long ago that it is asked again soon.
                    last: Duration::from_millis(900),
                },
            }))
    }

    fn destroy(&self, connection: &Connection) -> io::Result<()> {
        if let Some((id, _)) = self.session_of(connection) {
            self.change("SOCK_DESTROY")?;
            self.cut(id, "transport-offline");
        }
        Ok(())
    }

    fn local_addresses(&self) -> io::Result<Vec<LocalAddress>> {
        let state = self.state();
        let all = state.sessions.iter().map(|(id, session)| LocalAddress {
            address: state.local_address(*id),
            carrier: !session.unplugged,
        });
        Ok(all.collect())
    }
}
