//! The few things asked of open-iscsi: make an entry, log one path in, log it out, delete the entry.
//!
//! What exists is read from sysfs, never from here. Every call names target and portal in full, so that it cannot reach
//! another session. Exit codes are those of open-iscsi's include/iscsi_err.h.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    error::PortalError,
    interface::{Interface, OwnInterface},
    portal::{argument, parse_address},
};
use crate::{
    programs::{Finished, Invocation, Program, ProgramError, Programs},
    publish_context::Portal,
};

/// Exit codes of iscsiadm (ISCSI_ERR_*).
pub(super) mod exit {
    /// Trouble with the database.
    pub(in super::super) const IDBM: i32 = 6;
    /// Transport error.
    pub(in super::super) const TRANS: i32 = 4;
    /// Login failure.
    pub(in super::super) const LOGIN: i32 = 5;
    /// The connection did not come about in time.
    pub(in super::super) const TRANS_TIMEOUT: i32 = 8;
    /// The kernel has no such transport.
    pub(in super::super) const TRANS_NOT_FOUND: i32 = 12;
    /// There is such a session already.
    pub(in super::super) const SESS_EXISTS: i32 = 15;
    /// iscsid hung up.
    pub(in super::super) const ISCSID_COMM_ERR: i32 = 18;
    /// The target refused for good.
    pub(in super::super) const FATAL_LOGIN: i32 = 19;
    /// iscsid cannot be reached.
    pub(in super::super) const ISCSID_NOTCONN: i32 = 20;
    /// No such entry or session.
    pub(in super::super) const NO_OBJS_FOUND: i32 = 21;
    /// Credentials refused.
    pub(in super::super) const LOGIN_AUTH_FAILED: i32 = 24;
    /// The session is not connected: iscsid, started anew while its portal was away, waits for it.
    pub(in super::super) const SESSION_NOT_CONNECTED: i32 = 32;
}

/// Settings of a session that a multipath map lies over. In seconds, all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimers {
    /// Time after the loss of the connection until waiting I/O is failed to the map above. 0, at once: the map holds
    /// the other paths and queues when there is none, so nothing is won by holding I/O below it.
    pub replacement: u32,
    /// Idle time after which the connection is probed.
    pub noop_interval: u32,
    /// Time in which the probe must be answered. With 1 and 1 a silent loss is seen after 2 s; 5 and 5, open-iscsi's
    /// own values, take 10 s. A false alarm costs one path for a few seconds, and no error.
    pub noop_timeout: u32,
    /// Time for one connect and login, also of each try to log in again after a loss. A try sends SYNs after 0, 1 and
    /// 3 s, so that with 5 a returned portal is noticed within 2 s; open-iscsi's 15 wait up to 8 s between two SYNs.
    pub login: u32,
    /// Time for a logout.
    pub logout: u32,
}

impl Default for SessionTimers {
    fn default() -> Self {
        Self {
            replacement: 0,
            noop_interval: 1,
            noop_timeout: 1,
            login: 5,
            logout: 5,
        }
    }
}

/// How a login without error ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// iscsid made a session.
    Opened,
    /// Somebody had made one by then.
    Existed,
    /// iscsiadm did not answer in time: only the kernel knows whether there is a session.
    Unanswered,
}

/// open-iscsi on this host.
#[derive(Clone)]
pub(super) struct Iscsiadm {
    programs: Arc<dyn Programs>,
    /// Where the database may be: its place is a build option of open-iscsi.
    databases: Vec<PathBuf>,
    /// The node's own interface: every entry and session is of it then.
    pub(super) own: Option<OwnInterface>,
    timers: SessionTimers,
    /// Held for writing by deletions, which disturb every other walk over the same target's entries, and for reading
    /// by what else is done to the database. Logins do not take it: they may wait for a target.
    database: Arc<tokio::sync::RwLock<()>>,
}

/// Part of every time limit: how long iscsiadm waits for the lock of its database before it goes on without, and then
/// removes it (idbm.c, idbm_lock: 3000 pauses of 10 ms, 36 s on a slow machine). A lock that a killed iscsiadm left
/// behind is got rid of only by one that is given this time: killed earlier, each would fail like the one before.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(45);

/// For the work itself of a call that only touches files.
pub(super) const DATABASE_TIMEOUT: Duration = Duration::from_secs(8);

/// How often a call is repeated that found the database changing: iscsiadm walks all entries of a target and gives up
/// when another one deletes one of them meanwhile.
const DATABASE_TRIES: u32 = 6;

/// Pause before such a repetition.
const DATABASE_PAUSE: Duration = Duration::from_millis(20);

/// How much longer than iscsid's own time limit its answer is waited for.
const ANSWER_MARGIN: Duration = Duration::from_secs(3);

impl Iscsiadm {
    /// `root` is where the host's file system is seen. With an `interface` nothing but what is of it is touched.
    pub(super) fn new(
        programs: Arc<dyn Programs>,
        root: &Path,
        timers: SessionTimers,
        interface: Option<Interface>,
    ) -> Self {
        let databases: Vec<PathBuf> = ["etc/iscsi", "var/lib/iscsi"].map(|d| root.join(d)).into();
        Self {
            programs,
            own: interface.map(|interface| OwnInterface::new(interface, &databases)),
            databases,
            timers,
            database: Arc::default(),
        }
    }

    /// True when open-iscsi's database has an entry for this path. Reads directories: call it where that may block.
    pub(super) fn has_entry(&self, portal: &Portal) -> bool {
        self.databases.iter().any(|database| {
            // The target's name is a file name there; one that could leave the directory is none of open-iscsi's.
            if portal.target.contains('/') {
                return false;
            }
            let Ok(entries) = std::fs::read_dir(database.join("nodes").join(&portal.target)) else {
                return false;
            };
            entries.flatten().any(|entry| {
                let name = entry.file_name();
                let mut parts = name.to_str().unwrap_or_default().split(',');
                let address = parts.next().and_then(parse_address);
                let port = parts.next().and_then(|p| p.parse().ok());
                let of_interface = self
                    .own
                    .as_ref()
                    .is_none_or(|own| entry.path().join(&own.interface.name).exists());
                of_interface && address == Some(portal.address.ip()) && port == Some(portal.address.port())
            })
        })
    }

    /// Makes the entry of this path with the settings of a multipath session. An entry that exists is made anew.
    pub(super) async fn make_entry(&self, portal: &Portal) -> Result<(), PortalError> {
        let step = "cannot make its entry in open-iscsi's database";
        let _undisturbed = self.database.read().await;
        let new = self.node(portal, &["-o", "new"], DATABASE_TIMEOUT).await;
        self.checked(portal, step, new)?;
        let timers = self.timers;
        let settings = [
            ("node.startup", "manual".to_owned()),
            ("node.session.scan", "manual".to_owned()),
            ("node.session.initial_login_retry_max", "1".to_owned()),
            // The greater value of both ends counts (RFC 7143 13.15), and iscsid waits for it before it logs in again. An array that
            // needs a pause asks for it; iscsid's own two seconds would be added to every path's loss.
            ("node.session.iscsi.DefaultTime2Wait", "0".to_owned()),
            (
                "node.session.timeo.replacement_timeout",
                timers.replacement.to_string(),
            ),
            (
                "node.conn[0].timeo.noop_out_interval",
                timers.noop_interval.to_string(),
            ),
            (
                "node.conn[0].timeo.noop_out_timeout",
                timers.noop_timeout.to_string(),
            ),
            ("node.conn[0].timeo.login_timeout", timers.login.to_string()),
            ("node.conn[0].timeo.logout_timeout", timers.logout.to_string()),
        ];
        let mut args = vec!["-o", "update"];
        args.extend(
            settings
                .iter()
                .flat_map(|(name, value)| ["-n", name, "-v", value.as_str()]),
        );
        let update = self.node(portal, &args, DATABASE_TIMEOUT).await;
        self.checked(portal, step, update)?;
        Ok(())
    }

    /// Logs one path in, with whatever its entry says.
    pub(super) async fn login(&self, portal: &Portal) -> Result<Login, PortalError> {
        // One retry may follow the first try.
        let limit = Duration::from_secs(u64::from(self.timers.login)) * 2 + ANSWER_MARGIN;
        match self.node(portal, &["-l"], limit).await {
            Ok(finished) if finished.success() => Ok(Login::Opened),
            Ok(finished) if finished.code() == Some(exit::SESS_EXISTS) => Ok(Login::Existed),
            Err(ProgramError::Timeout { .. }) => Ok(Login::Unanswered),
            other => self
                .checked(portal, "cannot log in", other)
                .map(|_| Login::Opened),
        }
    }

    /// Logs one path out. No session is success; `false`: iscsid cannot end the session before its portal is back.
    pub(super) async fn logout(&self, portal: &Portal) -> Result<bool, PortalError> {
        let limit = Duration::from_secs(u64::from(self.timers.logout)) + ANSWER_MARGIN;
        match self.node(portal, &["-u"], limit).await {
            Ok(finished) if finished.code() == Some(exit::SESSION_NOT_CONNECTED) => Ok(false),
            out => self.unless_missing(portal, "cannot log out", out).map(|()| true),
        }
    }

    /// Deletes the entry of a path. No entry is success.
    pub(super) async fn delete_entry(&self, portal: &Portal) -> Result<(), PortalError> {
        let _alone = self.database.write().await;
        let out = self.node(portal, &["-o", "delete"], DATABASE_TIMEOUT).await;
        self.unless_missing(portal, "cannot delete its entry from open-iscsi's database", out)
    }

    async fn node(&self, portal: &Portal, rest: &[&str], limit: Duration) -> Result<Finished, ProgramError> {
        let portal_argument = argument(portal);
        let mut args = vec!["-m", "node", "-T", &portal.target, "-p", &portal_argument];
        if let Some(own) = &self.own {
            args.extend(["-I", &own.interface.name]);
        }
        args.extend(rest);
        self.run(Invocation::new(Program::Iscsiadm, args, LOCK_WAIT + limit))
            .await
    }

    /// Runs it, again when it found the database changing.
    pub(super) async fn run(&self, invocation: Invocation) -> Result<Finished, ProgramError> {
        for _ in 1..DATABASE_TRIES {
            let finished = self.programs.run(invocation.clone()).await?;
            if finished.code() != Some(exit::IDBM) {
                return Ok(finished);
            }
            tokio::time::sleep(DATABASE_PAUSE).await;
        }
        self.programs.run(invocation).await
    }

    fn unless_missing(
        &self,
        portal: &Portal,
        step: &'static str,
        result: Result<Finished, ProgramError>,
    ) -> Result<(), PortalError> {
        match result {
            Ok(finished) if finished.code() == Some(exit::NO_OBJS_FOUND) => Ok(()),
            other => self.checked(portal, step, other).map(|_| ()),
        }
    }

    /// Gives each exit code its error.
    pub(super) fn checked(
        &self,
        portal: &Portal,
        step: &'static str,
        result: Result<Finished, ProgramError>,
    ) -> Result<Finished, PortalError> {
        let portal = Box::new(portal.clone());
        let finished = match result {
            Ok(finished) => finished,
            Err(source @ (ProgramError::Missing { .. } | ProgramError::Start { .. })) => {
                return Err(PortalError::NoInitiator { portal, source });
            }
            Err(source) => return Err(PortalError::Iscsiadm { portal, step, source }),
        };
        let code = finished.code();
        let source = match finished.ok() {
            Ok(finished) => return Ok(finished),
            Err(source) => source,
        };
        Err(match code {
            Some(exit::TRANS | exit::TRANS_TIMEOUT) => PortalError::NotServed { portal, source },
            Some(exit::LOGIN | exit::FATAL_LOGIN) => PortalError::Refused { portal, source },
            Some(exit::LOGIN_AUTH_FAILED) => PortalError::Authentication { portal, source },
            Some(exit::ISCSID_COMM_ERR | exit::ISCSID_NOTCONN) => PortalError::NoDaemon { portal, source },
            Some(exit::TRANS_NOT_FOUND) => PortalError::NoTransport { portal, source },
            _ => PortalError::Iscsiadm { portal, step, source },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::sim::{SimPrograms, exits};
    use tonic::Code;

    fn portal() -> Portal {
        "[2001:db8::1]:3260,1,iqn.2026-11.com.example:t1"
            .parse()
            .expect("a portal")
    }

    fn iscsiadm(programs: &SimPrograms, root: &Path) -> Iscsiadm {
        Iscsiadm::new(Arc::new(programs.clone()), root, SessionTimers::default(), None)
    }

    #[tokio::test]
    async fn every_exit_code_has_its_error_and_grpc_code() {
        let root = tempfile::tempdir().expect("temporary directory");
        let programs = SimPrograms::new();
        let error = iscsiadm(&programs, root.path())
            .login(&portal())
            .await
            .expect_err("not installed");
        assert!(matches!(error, PortalError::NoInitiator { .. }), "{error}");
        let table = [
            (4, "does not log in", Code::Unavailable),
            (5, "the target refused the login", Code::FailedPrecondition),
            (6, "cannot log in", Code::Internal),
            (8, "does not log in", Code::Unavailable),
            (12, "iscsi_tcp", Code::FailedPrecondition),
            (18, "iscsid is not running", Code::FailedPrecondition),
            (19, "the target refused the login", Code::FailedPrecondition),
            (20, "iscsid is not running", Code::FailedPrecondition),
            (21, "cannot log in", Code::Internal),
            (24, "authorize", Code::Unauthenticated),
        ];
        for (code, text, grpc) in table {
            programs.install(Program::Iscsiadm, move |i| exits(i.program, code, "why"));
            let error = iscsiadm(&programs, root.path())
                .login(&portal())
                .await
                .expect_err("failed");
            let said = error.to_string();
            assert!(
                said.starts_with("portal [2001:db8::1]:3260,1,iqn."),
                "{code}: {said}"
            );
            assert!(said.contains(text), "{code}: {said}");
            assert_eq!(error.code(), grpc, "{code}");
            let source = std::error::Error::source(&error)
                .expect("the program's error")
                .to_string();
            assert_eq!(source, format!("iscsiadm ended with exit code {code}: why"));
        }
        programs.install(Program::Iscsiadm, |i| exits(i.program, 15, ""));
        assert_eq!(
            iscsiadm(&programs, root.path())
                .login(&portal())
                .await
                .expect("exists"),
            Login::Existed
        );
        programs.install(Program::Iscsiadm, |i| exits(i.program, 21, ""));
        iscsiadm(&programs, root.path())
            .logout(&portal())
            .await
            .expect("no session is success");
        iscsiadm(&programs, root.path())
            .delete_entry(&portal())
            .await
            .expect("no entry is success");
    }

    #[tokio::test(start_paused = true)]
    async fn an_iscsiadm_that_never_answers_is_given_up() {
        let root = tempfile::tempdir().expect("temporary directory");
        let programs = SimPrograms::new();
        programs.install_async(Program::Iscsiadm, |_| std::future::pending());
        assert_eq!(
            iscsiadm(&programs, root.path())
                .login(&portal())
                .await
                .expect("given up"),
            Login::Unanswered
        );
    }

    #[tokio::test]
    async fn with_an_interface_every_call_names_it_and_others_entries_are_not_ours() {
        let root = tempfile::tempdir().expect("temporary directory");
        let programs = SimPrograms::new();
        let calls: Arc<std::sync::Mutex<Vec<Vec<String>>>> = Arc::default();
        let heard = Arc::clone(&calls);
        programs.install(Program::Iscsiadm, move |invocation| {
            heard.lock().expect("not poisoned").push(invocation.args.clone());
            exits(invocation.program, 0, "")
        });
        let interface = Interface {
            name: "storagelink-n1".to_owned(),
            initiator: "iqn.2026-11.com.example:host:n1".to_owned(),
        };
        let timers = SessionTimers::default();
        let ours = Iscsiadm::new(Arc::new(programs), root.path(), timers, Some(interface));
        ours.make_entry(&portal()).await.expect("made");
        ours.login(&portal()).await.expect("logged in");
        assert!(ours.logout(&portal()).await.expect("logged out"));
        ours.delete_entry(&portal()).await.expect("deleted");
        let calls = calls.lock().expect("not poisoned");
        assert_eq!(calls.len(), 5, "{calls:?}");
        for call in calls.iter() {
            assert_eq!(call[6..8], ["-I", "storagelink-n1"], "{call:?}");
        }

        let entry = root
            .path()
            .join("etc/iscsi/nodes/iqn.2026-11.com.example:t1/2001:db8::1,3260,1");
        std::fs::create_dir_all(&entry).expect("directory");
        for other in ["default", "storagelink-n10"] {
            std::fs::write(entry.join(other), "").expect("written");
        }
        assert!(!ours.has_entry(&portal()));
        std::fs::write(entry.join("storagelink-n1"), "").expect("written");
        assert!(ours.has_entry(&portal()));
    }

    #[test]
    fn an_entry_is_found_in_either_database_and_however_its_address_is_spelt() {
        let root = tempfile::tempdir().expect("temporary directory");
        let iscsiadm = iscsiadm(&SimPrograms::new(), root.path());
        assert!(!iscsiadm.has_entry(&portal()));
        let other = root
            .path()
            .join("etc/iscsi/nodes/iqn.2026-11.com.example:t1/2001:db8::1,3261,1");
        std::fs::create_dir_all(other).expect("directory");
        assert!(!iscsiadm.has_entry(&portal()));
        let entry = root
            .path()
            .join("var/lib/iscsi/nodes/iqn.2026-11.com.example:t1/2001:0db8:0::1,3260,1");
        std::fs::create_dir_all(entry).expect("directory");
        assert!(iscsiadm.has_entry(&portal()));
    }
}
