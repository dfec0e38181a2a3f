//! The initiator of this node: one path's session from nothing to logged in, and from unused to gone.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use storagelink_multipath::{Engine, host::Host, worker};
use tokio::{sync::oneshot, time::Instant};

use super::{
    error::PortalError,
    interface::Interface,
    iscsiadm::{Iscsiadm, Login, SessionTimers},
    portal::key,
    probe::Probe,
    record::{LoginMark, NodeEntry, Record, RecordError, Records},
    session::{self, Session},
    slots::{Slots, Using},
};
use crate::{programs::Programs, publish_context::Portal};

/// Time limit of a look at sysfs or at the state directory. Neither waits for a target.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// Time for a connection of our own to a portal. SYNs are sent after 0 and 1 s (RFC 6298 2.1), so one may be lost.
const CONNECT: Duration = Duration::from_millis(2500);

/// How often a session's state is looked at while it is waited for: the kernel gives no notice of it in sysfs.
const STATE_INTERVAL: Duration = Duration::from_millis(50);

/// How long iscsiadm may take to report a session that the kernel has: release 2.1.10 of open-iscsi never reports one
/// with `node.session.scan` set to `manual`.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a session may stay in sysfs after iscsid said that it is logged out.
const GONE: Duration = Duration::from_secs(2);

/// What the initiator must know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The plugin's state directory.
    pub state_dir: PathBuf,
    /// Where the host's file system is seen: `/` outside a container.
    pub host_root: PathBuf,
    /// This node's initiator name. When it is known, sessions of another name are left alone.
    pub initiator_name: Option<String>,
    /// The node's own interface in open-iscsi, where nodes share a kernel: then only sessions that are known to have its initiator name are ours.
    pub interface: Option<Interface>,
    /// Settings of the sessions that are opened.
    pub timers: SessionTimers,
    /// How long one path may take from the first look to a proven device.
    pub portal_budget: Duration,
    /// How long the other paths are waited for once the first is there.
    pub grace: Duration,
    /// How long after its begin a login that nobody waits for may still end in a session.
    pub login_settles: Duration,
}

impl Config {
    /// The defaults: 15 s per path (login, one retry and a scan), 1 s for the others once one path is there.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            host_root: PathBuf::from("/"),
            initiator_name: None,
            interface: None,
            timers: SessionTimers::default(),
            portal_budget: Duration::from_secs(15),
            grace: Duration::from_secs(1),
            // Twice what iscsid needs for its tries at a portal that does not answer (login timeout 5 s, one retry).
            login_settles: Duration::from_secs(20),
        }
    }
}

/// The iSCSI initiator of this node. Clones share their state.
#[derive(Clone)]
pub struct Initiator(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) host: Host,
    pub(super) engine: Engine,
    pub(super) slots: Slots,
    pub(super) config: Config,
    pub(super) iscsiadm: Iscsiadm,
    probe: Arc<dyn Probe>,
    records: Records,
    ours: session::Ours,
    boot: String,
}

/// A session that can carry I/O, held for the caller: it is not logged out before the answer is dropped.
pub(super) struct Held {
    pub(super) session: Session,
    _using: Using,
}

impl Initiator {
    /// Opens the directory of records in the state directory.
    pub fn new(
        host: Host,
        programs: Arc<dyn Programs>,
        probe: Arc<dyn Probe>,
        config: Config,
    ) -> Result<Self, RecordError> {
        let records = Records::open(&config.state_dir)?;
        // Without a boot id every record counts as this boot's: sessions are then judged by sysfs alone.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let engine = Engine::new(host.clone());
        let ours = match (&config.interface, &config.initiator_name) {
            (Some(interface), _) => session::Ours::Only(interface.initiator.clone()),
            (None, Some(name)) => session::Ours::Named(name.clone()),
            (None, None) => session::Ours::All,
        };
        let interface = config.interface.clone();
        let iscsiadm = Iscsiadm::new(programs, &config.host_root, config.timers, interface);
        Ok(Self(Arc::new(Inner {
            host,
            engine,
            slots: Slots::default(),
            config,
            iscsiadm,
            probe,
            records,
            ours,
            boot,
        })))
    }

    /// A session of this path that can carry I/O: one that is there, or a new one.
    ///
    /// Dropping the future does not stop a login that has begun: a half-done one would leave open-iscsi's database
    /// locked. It ends within its own limits and is taken back when nobody wants its session any more.
    ///
    /// `answered` is set as soon as the portal is known to be alive.
    pub(super) async fn session(
        &self,
        portal: &Portal,
        answered: Arc<AtomicBool>,
    ) -> Result<Held, PortalError> {
        let (answer, wait) = oneshot::channel();
        let (this, path) = (self.clone(), portal.clone());
        let task = tokio::spawn(async move {
            let result = this.session_inner(&path, &answered).await;
            // An error has cleaned up behind itself; a session that nobody waits for is let go of.
            if let Err(Ok(held)) = answer.send(result) {
                drop(held);
                if let Err(error) = this.release(&path).await {
                    tracing::warn!(portal = %path, error = %error, "cannot log out of a session that came too late");
                }
            }
        });
        match wait.await {
            Ok(result) => result,
            // Only a panic of the task closes the channel without an answer.
            Err(_) => match task.await {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => Err(PortalError::TimedOut {
                    portal: portal.clone().into(),
                    budget: self.0.config.portal_budget,
                }),
            },
        }
    }

    async fn session_inner(&self, portal: &Portal, answered: &AtomicBool) -> Result<Held, PortalError> {
        let using = self.0.slots.enter(key(portal));
        // Well before the caller's own time is up: the state of the session says more than a time-out.
        let patience = self.0.config.portal_budget / 2;
        let until = Instant::now() + patience;
        loop {
            // Most attaches find the session there: no program, no record. The gate keeps a logout out meanwhile.
            let gate = using.gate().await;
            let mut found = self.find(portal).await?;
            if matches!(found, Found::None) {
                self.open(portal, answered).await?;
                found = self.find(portal).await?;
            }
            drop(gate);
            let state = match found {
                Found::LoggedIn(session) => {
                    answered.store(true, Ordering::SeqCst);
                    return Ok(Held {
                        session,
                        _using: using,
                    });
                }
                Found::Down(state) => state,
                Found::None => "absent".to_owned(),
            };
            // iscsid logs a lost session in again by itself; without the gate, so that nobody else waits with us.
            if Instant::now() + STATE_INTERVAL > until {
                return Err(PortalError::Down {
                    portal: portal.clone().into(),
                    state,
                    budget: patience,
                });
            }
            tokio::time::sleep(STATE_INTERVAL).await;
        }
    }

    /// Probe, record, entry, login. The caller holds the gate and has seen that there is no session.
    async fn open(&self, portal: &Portal, answered: &AtomicBool) -> Result<(), PortalError> {
        self.0
            .probe
            .connect(portal.address, CONNECT)
            .await
            .map_err(|source| PortalError::Unreachable {
                portal: portal.clone().into(),
                source,
            })?;
        answered.store(true, Ordering::SeqCst);
        let before = self.record(portal).await?;
        let entry = match &before {
            Some(record) => record.entry,
            None => {
                let (this, path) = (self.clone(), portal.clone());
                let found = self
                    .look(portal, "look for its entry", move || {
                        this.0.iscsiadm.has_entry(&path)
                    })
                    .await?;
                if found { NodeEntry::Found } else { NodeEntry::Ours }
            }
        };
        let record = Record {
            portal: portal.clone(),
            boot: self.0.boot.clone(),
            entry,
            login: LoginMark::Begun,
        };
        self.write(&record).await?;
        let login = async {
            self.prepare_interface(portal).await?;
            if entry == NodeEntry::Ours {
                self.0.iscsiadm.make_entry(portal).await?;
            }
            tokio::select! {
                result = self.0.iscsiadm.login(portal) => result,
                result = self.unanswered(portal) => result,
            }
        };
        let result = match login.await {
            // Somebody else was quicker: theirs. But with a record of this boot it is what we began before a crash.
            Ok(Login::Existed) if before.is_none_or(|b| b.boot != self.0.boot) => {
                return self.disown(portal).await;
            }
            Ok(Login::Opened | Login::Existed) => return self.write(&record.done()).await,
            Ok(Login::Unanswered) => {
                let budget = self.0.config.portal_budget;
                Err(PortalError::TimedOut {
                    portal: portal.clone().into(),
                    budget,
                })
            }
            Err(error) => Err(error),
        };
        // Whatever iscsiadm said, the kernel knows.
        match self.find(portal).await? {
            Found::None => {}
            Found::LoggedIn(_) | Found::Down(_) => return self.write(&record.done()).await,
        }
        if matches!(result, Err(PortalError::TimedOut { .. })) {
            // iscsid was not waited for to the end: the sweep looks again when it must have ended.
            return result;
        }
        // The login's error is the one to tell; what could not be cleaned up stays on record for the sweep.
        if let Err(error) = self.forget(portal, entry).await {
            tracing::warn!(portal = %portal, error = %error, "cannot clean up after a failed login");
        }
        result
    }

    /// Ends when the kernel has had the session for a while and iscsiadm, which should have said so, still has not.
    async fn unanswered(&self, portal: &Portal) -> Result<Login, PortalError> {
        while !matches!(self.find(portal).await?, Found::LoggedIn(_)) {
            tokio::time::sleep(STATE_INTERVAL).await;
        }
        tokio::time::sleep(ANSWER).await;
        tracing::warn!(%portal, "iscsiadm does not report a login that has succeeded (open-iscsi 2.1.10 never does)");
        Ok(Login::Unanswered)
    }

    /// Logs a path's session out when this plugin opened it and nobody uses it: no SCSI device left on it, nobody
    /// busy with it. Otherwise nothing happens. Safe to repeat.
    pub(super) async fn release(&self, portal: &Portal) -> Result<(), PortalError> {
        if self.0.slots.users(&key(portal)) > 0 {
            return Ok(());
        }
        let (this, path) = (self.clone(), portal.clone());
        // Its own task for the same reason as in `session`: a logout is not left half done.
        match tokio::spawn(async move { this.release_inner(&path).await }).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Ok(()),
        }
    }

    async fn release_inner(&self, portal: &Portal) -> Result<(), PortalError> {
        let using = self.0.slots.enter(key(portal));
        let _gate = using.gate().await;
        if !using.alone() {
            return Ok(());
        }
        let Some(record) = self.record(portal).await? else {
            return Ok(());
        };
        let sessions = self.sessions(portal).await?;
        let session = match sessions.as_slice() {
            [] if self.may_still_log_in(&record).await? => return Ok(()),
            [] => return self.forget(&record.portal, record.entry).await,
            [session] => session,
            // A logout of this path would hit somebody else's session as well.
            _ => return Ok(()),
        };
        if record.boot != self.0.boot {
            // Sessions do not outlive a boot: this one is somebody else's.
            return self.disown(portal).await;
        }
        let (this, host) = (self.clone(), session.host);
        let devices = self
            .sysfs(portal, move || {
                session::devices_of_host(this.0.host.sysfs.as_ref(), host)
            })
            .await?;
        if !devices.is_empty() {
            return Ok(());
        }
        if !self.0.iscsiadm.logout(&record.portal).await? {
            // No device is left on it: nothing of a volume waits for it. The sweep ends it when it can be.
            tracing::info!(%portal, "the session is not connected and stays until its portal is back");
            return Ok(());
        }
        let until = Instant::now() + GONE;
        while let Some(left) = self.sessions(portal).await?.into_iter().next() {
            if Instant::now() > until {
                return Err(PortalError::Down {
                    portal: portal.clone().into(),
                    state: left.state,
                    budget: GONE,
                });
            }
            tokio::time::sleep(STATE_INTERVAL).await;
        }
        self.forget(&record.portal, record.entry).await
    }

    /// Whether iscsid may be busy with a login that a process before this one, or a call before this one, gave up on. Forgetting it now would
    /// leave a session that is nobody's.
    async fn may_still_log_in(&self, record: &Record) -> Result<bool, PortalError> {
        if record.login == LoginMark::Done || record.boot != self.0.boot {
            return Ok(false);
        }
        let (this, portal) = (self.clone(), record.portal.clone());
        let age = self
            .look(&record.portal, "read its record", move || {
                this.0.records.age(&portal)
            })
            .await?;
        Ok(age < self.0.config.login_settles)
    }

    async fn write(&self, record: &Record) -> Result<(), PortalError> {
        let (this, kept) = (self.clone(), record.clone());
        self.look(&record.portal, "write its record", move || {
            this.0.records.put(&kept)
        })
        .await?
        .map_err(|source| PortalError::Record {
            portal: record.portal.clone().into(),
            source,
        })
    }

    /// Removes what is left of a path without a session: open-iscsi's entry when it is ours, then the record.
    async fn forget(&self, portal: &Portal, entry: NodeEntry) -> Result<(), PortalError> {
        if entry == NodeEntry::Ours {
            match self.0.iscsiadm.delete_entry(portal).await {
                // Without open-iscsi there is no entry that could matter.
                Ok(()) | Err(PortalError::NoInitiator { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.disown(portal).await?;
        self.remove_unused_interface().await;
        Ok(())
    }

    /// Removes the record: the session, if any, is not ours.
    async fn disown(&self, portal: &Portal) -> Result<(), PortalError> {
        let (this, path) = (self.clone(), portal.clone());
        self.look(portal, "remove its record", move || this.0.records.remove(&path))
            .await?
            .map_err(|source| PortalError::Record {
                portal: portal.clone().into(),
                source,
            })
    }

    async fn record(&self, portal: &Portal) -> Result<Option<Record>, PortalError> {
        let (this, path) = (self.clone(), portal.clone());
        self.look(portal, "read its record", move || this.0.records.get(&path))
            .await?
            .map_err(|source| PortalError::Record {
                portal: portal.clone().into(),
                source,
            })
    }

    /// All records, and the errors of those that could not be read.
    pub(super) async fn records(&self) -> Result<(Vec<Record>, Vec<RecordError>), RecordError> {
        let this = self.clone();
        // The state directory is a local one; a blocking pool thread will do.
        match tokio::task::spawn_blocking(move || this.0.records.list()).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn find(&self, portal: &Portal) -> Result<Found, PortalError> {
        let mut sessions = self.sessions(portal).await?;
        match sessions.iter().position(Session::logged_in) {
            Some(i) => Ok(Found::LoggedIn(sessions.swap_remove(i))),
            None => Ok(sessions.pop().map_or(Found::None, |s| Found::Down(s.state))),
        }
    }

    /// The kernel's sessions of this path.
    pub(super) async fn sessions(&self, portal: &Portal) -> Result<Vec<Session>, PortalError> {
        let (this, path) = (self.clone(), portal.clone());
        self.sysfs(portal, move || {
            session::of_portal(this.0.host.sysfs.as_ref(), &path, &this.0.ours)
        })
        .await
    }

    async fn sysfs<T: Send + 'static>(
        &self,
        portal: &Portal,
        f: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, PortalError> {
        self.look(portal, "look at the host's sessions", f)
            .await?
            .map_err(|source| PortalError::Sysfs {
                portal: portal.clone().into(),
                source,
            })
    }

    /// A short blocking call, on its own thread.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        portal: &Portal,
        step: &'static str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PortalError> {
        worker::run("iscsi", LOOK, f)
            .await
            .map_err(|source| PortalError::Worker {
                portal: portal.clone().into(),
                step,
                source,
            })
    }
}

/// What sysfs shows of a path.
enum Found {
    LoggedIn(Session),
    Down(String),
    None,
}
