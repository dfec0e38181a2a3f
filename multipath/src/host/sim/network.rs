//! Simulated connections: each session that is logged in has one, over an interface of its own.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{Session, SimKernel};
use crate::host::{Answers, Connection, LocalAddress, Network};

/// This host's address towards a session's portal.
pub(super) fn local_address(session: u32) -> IpAddr {
    // TEST-NET-2 (RFC 5737), an address a session.
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 51, 100, 0)) + session).into()
}

/// The connection of a session; `None` when it is not logged in, or its portal has no address.
fn connection(id: u32, session: &Session) -> Option<Connection> {
    let peer = SocketAddr::new(session.address.parse().ok()?, session.port);
    (session.state == "LOGGED_IN").then_some(Connection {
        local: SocketAddr::new(local_address(id), 40_000),
        peer,
        cookie: u64::from(id) << 32 | u64::from(session.logins),
    })
}

impl SimKernel {
    /// The other end of a session answers no more; nobody is told, and commands to it hang.
    pub fn silence(&self, session: u32) {
        if let Some(session) = self.state().sessions.get_mut(&session) {
            session.silent = true;
        }
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
        all.find(|(id, session)| connection(**id, session) == Some(*wanted))
            .map(|(id, session)| (*id, session.clone()))
    }
}

impl Network for SimKernel {
    fn connections(&self, peer_port: u16) -> io::Result<Vec<Connection>> {
        let state = self.state();
        let all = state
            .sessions
            .iter()
            .filter_map(|(id, session)| connection(*id, session));
        Ok(all
            .filter(|connection| connection.peer.port() == peer_port)
            .collect())
    }

    fn answers(&self, connection: &Connection) -> io::Result<Option<Answers>> {
        Ok(self
            .session_of(connection)
            .map(|(_, session)| match session.silent {
                true => Answers {
                    retransmits: 3,
                    last: Duration::from_millis(1400),
                },
                false => Answers {
                    retransmits: 0,
                    last: Duration::from_millis(3),
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
            address: local_address(*id),
            carrier: !session.unplugged,
        });
        Ok(all.collect())
    }
}
