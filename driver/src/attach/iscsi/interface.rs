//! The open-iscsi interface of a node that shares its kernel with others: a name of its own, under which this node's initiator name is kept.
//!
//! It is made before the first login and removed when no session of ours is on record any more: the database is the host's, and a node that goes
//! away for good leaves nothing in it. It must never touch another interface.

use std::{path::PathBuf, sync::Arc};

use storagelink_multipath::worker;

use super::{
    error::PortalError,
    initiator::{Initiator, LOOK},
    iscsiadm::{DATABASE_TIMEOUT, Iscsiadm, LOCK_WAIT, exit},
    session,
};
use crate::{
    codes::chain,
    programs::{Finished, Invocation, Program, ProgramError},
    publish_context::Portal,
};

/// What one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name in open-iscsi's database.
    pub name: String,
    /// The initiator name of its sessions.
    pub initiator: String,
}

/// The node's interface in open-iscsi's database.
#[derive(Clone)]
pub(super) struct OwnInterface {
    pub(super) interface: Interface,
    /// Where its file may be: the place is a build option of open-iscsi.
    files: Vec<PathBuf>,
    /// Held while it is made or removed.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    No,
    /// Without our initiator name.
    Unnamed,
    Yes,
}

impl OwnInterface {
    /// `databases`: directories of open-iscsi's database.
    pub(super) fn new(interface: Interface, databases: &[PathBuf]) -> Self {
        let file = |database: &PathBuf| database.join("ifaces").join(&interface.name);
        Self {
            files: databases.iter().map(file).collect(),
            interface,
            gate: Arc::default(),
        }
    }

    /// Reads files.
    fn there(&self) -> There {
        let wanted = self.interface.initiator.as_str();
        let mut there = There::No;
        for text in self
            .files
            .iter()
            .filter_map(|file| std::fs::read_to_string(file).ok())
        {
            let named = text.lines().any(|line| {
                line.split_once('=')
                    .is_some_and(|(key, value)| key.trim() == "iface.initiatorname" && value.trim() == wanted)
            });
            if named {
                return There::Yes;
            }
            there = There::Unnamed;
        }
        there
    }
}

impl Iscsiadm {
    async fn interface(&self, name: &str, rest: &[&str]) -> Result<Finished, ProgramError> {
        let args = ["-m", "iface", "-I", name]
            .into_iter()
            .chain(rest.iter().copied());
        self.run(Invocation::new(
            Program::Iscsiadm,
            args,
            LOCK_WAIT + DATABASE_TIMEOUT,
        ))
        .await
    }
}

impl Initiator {
    /// Makes the node's interface, or puts it right, when it has one. The caller has a record of a session already: so it is not removed again.
    pub(super) async fn prepare_interface(&self, portal: &Portal) -> Result<(), PortalError> {
        let Some(own) = self.0.iscsiadm.own.clone() else {
            return Ok(());
        };
        let _gate = own.gate.lock().await;
        let look = own.clone();
        let there = self
            .look(portal, "look for its interface", move || look.there())
            .await?;
        if there == There::Yes {
            return Ok(());
        }
        let step = "cannot make this node's interface in open-iscsi's database";
        let Interface { name, initiator } = &own.interface;
        let iscsiadm = &self.0.iscsiadm;
        if there == There::No {
            // Its transport is tcp when nothing else is said.
            let new = iscsiadm.interface(name, &["-o", "new"]).await;
            iscsiadm.checked(portal, step, new)?;
        }
        // One setting a call: iscsiadm takes several for nodes only.
        let rest = ["-o", "update", "-n", "iface.initiatorname", "-v", initiator];
        let update = iscsiadm.interface(name, &rest).await;
        iscsiadm.checked(portal, step, update).map(drop)
    }

    /// Removes the node's interface when nothing of it is in use. What stays is tried again by the next sweep.
    pub(super) async fn remove_unused_interface(&self) {
        let Some(own) = self.0.iscsiadm.own.clone() else {
            return;
        };
        let _gate = own.gate.lock().await;
        // A login has its record before it asks for the interface.
        match self.records().await {
            Ok((records, unreadable)) if records.is_empty() && unreadable.is_empty() => {}
            _ => return,
        }
        let (host, look) = (self.0.host.clone(), own.clone());
        let unused = worker::run("iscsi", LOOK, move || {
            let ours =
                |session: &session::Session| session.initiator.as_ref() == Some(&look.interface.initiator);
            // Somebody may have used it by hand.
            let sessions = session::list(host.sysfs.as_ref()).unwrap_or_default();
            look.there() != There::No && !sessions.iter().any(ours)
        });
        if !matches!(unused.await, Ok(true)) {
            return;
        }
        let name = &own.interface.name;
        let removed = self.0.iscsiadm.interface(name, &["-o", "delete"]).await;
        match removed.and_then(|done| match done.code() {
            Some(exit::NO_OBJS_FOUND) => Ok(done),
            _ => done.ok(),
        }) {
            Ok(_) => tracing::debug!(interface = name, "removed this node's interface: nothing uses it"),
            Err(error) => tracing::warn!(
                interface = name,
                error = chain(&error),
                "cannot remove this node's interface from open-iscsi's database"
            ),
        }
    }
}
