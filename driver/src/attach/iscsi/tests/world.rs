//! A node with open-iscsi and a few portals, all simulated: the kernel's sessions and devices, iscsiadm with its
//! database of entries, and the network.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::super::{Config, Initiator, Interface, Probe, Probing};
use super::kernel::{Kernel, SIZE};
use crate::{
    programs::{
        Invocation, Program,
        sim::{Answer, SimPrograms, exits},
    },
    publish_context::{Portal, PublishContext, Transport},
};

pub(super) const TARGET: &str = "iqn.2026-11.com.example:t1";
pub(super) const WWID: &str = "naa.60014051111111111111111111111111";
pub(super) const OTHER: &str = "naa.60014052222222222222222222222222";

/// How a portal takes a login.
#[derive(Clone, Debug)]
pub(super) enum Login {
    /// It succeeds after this time.
    After(Duration),
    /// iscsiadm fails with this code.
    Fails(i32),
    /// The session appears, and iscsiadm never answers.
    Unanswered,
}

#[derive(Default)]
pub(super) struct State {
    /// Portals that accept connections.
    pub(super) portals: BTreeMap<SocketAddr, Login>,
    /// Each call of iscsiadm: the portal and what was asked.
    pub(super) calls: Vec<(SocketAddr, String)>,
    /// A call of iscsiadm that contains this text does its work and never comes back.
    pub(super) freeze: Option<&'static str>,
    /// iscsid was started anew while the portals were away: it ends no session.
    pub(super) unconnected: bool,
    /// The logins in progress, now and at most.
    pub(super) logging_in: (usize, usize),
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) kernel: Kernel,
    pub(super) programs: SimPrograms,
    state: Arc<Mutex<State>>,
    dir: Arc<tempfile::TempDir>,
}

impl Probe for World {
    fn connect(&self, address: SocketAddr, _limit: Duration) -> Probing<'_> {
        let alive = self.state().portals.contains_key(&address);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        Box::pin(async move { if alive { Ok(()) } else { Err(refused()) } })
    }
}

impl World {
    /// A world whose target presents [`WWID`] as LUN 0 and [`OTHER`] as LUN 1 through these portals.
    pub(super) fn new(portals: &[&Portal]) -> Self {
        let world = Self {
            kernel: Kernel::new(),
            programs: SimPrograms::new(),
            state: Arc::default(),
            dir: Arc::new(tempfile::tempdir().expect("temporary directory")),
        };
        {
            let mut state = world.state();
            state.portals = portals
                .iter()
                .map(|p| (p.address, Login::After(Duration::ZERO)))
                .collect();
        }
        world.kernel.present(0, WWID, SIZE);
        world.kernel.present(1, OTHER, SIZE);
        let this = world.clone();
        world
            .programs
            .install_async(Program::Iscsiadm, move |invocation| {
                this.clone().iscsiadm(invocation)
            });
        world
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::new(&self.dir.path().join("state"));
        config.login_settles = Duration::ZERO;
        config.host_root = self.dir.path().join("root");
        config.portal_budget = Duration::from_secs(10);
        config
    }

    pub(super) fn initiator(&self) -> Initiator {
        self.initiator_with(self.config())
    }

    pub(super) fn initiator_with(&self, config: Config) -> Initiator {
        let (programs, probe) = (Arc::new(self.programs.clone()), Arc::new(self.clone()));
        Initiator::new(self.kernel.host(), programs, probe, config).expect("the state directory opens")
    }

    /// What is left on the node: sessions, SCSI devices, entries of open-iscsi, records.
    pub(super) fn left(&self) -> (usize, usize, usize, usize) {
        let files = |path: PathBuf| {
            let count = |p: PathBuf| std::fs::read_dir(p).map_or(0, Iterator::count);
            let Ok(targets) = std::fs::read_dir(path) else {
                return 0;
            };
            targets.flatten().map(|t| count(t.path())).sum()
        };
        let records =
            std::fs::read_dir(self.dir.path().join("state/iscsi-sessions")).map_or(0, Iterator::count);
        (
            self.kernel.sim.session_count(),
            self.kernel.sim.disks().len(),
            files(self.nodes()),
            records,
        )
    }

    /// Calls of iscsiadm for a portal that contain a text.
    pub(super) fn calls(&self, portal: &Portal, text: &str) -> usize {
        self.state()
            .calls
            .iter()
            .filter(|(p, c)| *p == portal.address && c.contains(text))
            .count()
    }

    /// What an administrator does by hand: an entry and a session.
    pub(super) fn administrator(&self, portal: &Portal) {
        std::fs::create_dir_all(self.entry(portal).join("default")).expect("entry");
        self.kernel.log_in(portal);
    }

    /// A node that shares this kernel, with its own state directory and interface.
    pub(super) fn node_config(&self, node: &str) -> Config {
        let mut config = self.config();
        config.state_dir = self.dir.path().join(format!("state-{node}"));
        config.interface = Some(Interface {
            name: format!("storagelink-{node}"),
            initiator: format!("iqn.2026-11.com.example:host:{node}"),
        });
        config
    }

    /// Open-iscsi's interfaces.
    pub(super) fn interfaces(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path().join("root/etc/iscsi/ifaces"));
        let mut names: Vec<String> = names.map_or_else(
            |_| Vec::new(),
            |all| {
                all.flatten()
                    .filter_map(|entry| entry.file_name().into_string().ok())
                    .collect()
            },
        );
        names.sort();
        names
    }

    fn interface_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("root/etc/iscsi/ifaces").join(name)
    }

    /// `iscsiadm -m iface -I <name> <what>...`
    fn interface(&self, program: Program, name: &str, what: &[&str]) -> Answer {
        let file = self.interface_file(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("directory");
        match what {
            ["-o", "new"] => std::fs::write(file, "iface.transport_name = tcp\n").expect("written"),
            ["-o", "update", "-n", key, "-v", value] => {
                assert!(file.exists(), "it was made before");
                std::fs::write(file, format!("{key} = {value}\n")).expect("written");
            }
            ["-o", "delete"] if file.exists() => std::fs::remove_file(file).expect("removed"),
            _ => return exits(program, 7, "usage"),
        }
        exits(program, 0, "")
    }

    /// An interface with this initiator name, from earlier.
    pub(super) fn make_interface(&self, name: &str, initiator: &str) {
        let file = self.interface_file(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("directory");
        std::fs::write(file, format!("iface.initiatorname = {initiator}\n")).expect("written");
    }

    /// The initiator name of an interface; without one it cannot be logged in with.
    fn initiator_of(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.interface_file(name)).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("iface.initiatorname = "));
        line.map(str::to_owned)
    }

    fn nodes(&self) -> PathBuf {
        self.dir.path().join("root/etc/iscsi/nodes")
    }

    fn entry(&self, portal: &Portal) -> PathBuf {
        let name = format!(
            "{},{},{}",
            portal.address.ip(),
            portal.address.port(),
            portal.group_tag
        );
        self.nodes().join(&portal.target).join(name)
    }

    /// `iscsiadm -m node -T <target> -p <portal> [-I <interface>] <what>...`
    async fn iscsiadm(self, invocation: Invocation) -> Answer {
        let program = invocation.program;
        let args: Vec<&str> = invocation.args.iter().map(String::as_str).collect();
        if let ["-m", "iface", "-I", name, what @ ..] = args.as_slice() {
            return self.interface(program, name, what);
        }
        let ["-m", "node", "-T", target, "-p", portal, what @ ..] = args.as_slice() else {
            return exits(program, 7, "usage");
        };
        let portal: Portal = format!("{portal},{target}").parse().expect("a portal in full");
        let text = what.join(" ");
        self.state().calls.push((portal.address, text.clone()));
        let frozen = self.state().freeze.is_some_and(|f| text.contains(f));
        let answer = self.node(program, &portal, what).await;
        if frozen {
            std::future::pending::<()>().await;
        }
        answer
    }

    async fn node(&self, program: Program, portal: &Portal, what: &[&str]) -> Answer {
        let directory = self.entry(portal);
        let (entry, initiator, what) = match what {
            ["-I", name, rest @ ..] => match self.initiator_of(name) {
                None => return exits(program, 7, "no such interface, or one without a name"),
                initiator => (directory.join(name), initiator, rest),
            },
            all => (directory.clone(), None, all),
        };
        let initiator = initiator.as_deref();
        if what != ["-o", "new"] && !entry.exists() {
            return exits(program, 21, "no records found");
        }
        let session = self.kernel.session_of(portal, initiator);
        match what {
            ["-o", "new"] => std::fs::create_dir_all(entry).expect("entry"),
            ["-o", "update", settings @ ..] => {
                let text = settings.join(" ");
                for wanted in [
                    "node.session.scan -v manual",
                    "node.session.iscsi.DefaultTime2Wait -v 0",
                ] {
                    assert!(text.contains(wanted), "{text}");
                }
            }
            ["-o", "delete"] => {
                std::fs::remove_dir_all(entry).expect("entry");
                // Where others' are left it stays.
                drop(std::fs::remove_dir(directory));
            }
            ["-l"] if session.is_some() => return exits(program, 15, "session exists"),
            ["-l"] => return self.log_in(program, portal, initiator).await,
            ["-u"] if self.state().unconnected => return exits(program, 32, "target likely not connected"),
            ["-u"] => match session {
                Some(host) => self.kernel.sim.logout(host),
                None => return exits(program, 21, "no session"),
            },
            _ => return exits(program, 7, "usage"),
        }
        exits(program, 0, "")
    }

    async fn log_in(&self, program: Program, portal: &Portal, initiator: Option<&str>) -> Answer {
        {
            let mut state = self.state();
            state.logging_in.0 += 1;
            state.logging_in.1 = state.logging_in.1.max(state.logging_in.0);
        }
        let login = self
            .state()
            .portals
            .get(&portal.address)
            .cloned()
            .unwrap_or(Login::Fails(8));
        let appear = || self.kernel.log_in_as(portal, initiator);
        let answer = match login {
            Login::After(time) => {
                tokio::time::sleep(time).await;
                appear();
                exits(program, 0, "")
            }
            Login::Fails(code) => exits(program, code, "why"),
            Login::Unanswered => {
                appear();
                std::future::pending().await
            }
        };
        self.state().logging_in.0 -= 1;
        answer
    }
}

/// The volume [`WWID`] as LUN 0 behind these portals.
pub(super) fn volume(portals: &[&Portal]) -> PublishContext {
    PublishContext {
        transport: Transport::Iscsi,
        portals: portals.iter().map(|&p| p.clone()).collect(),
        lun: 0,
        wwid: WWID.into(),
        size_bytes: SIZE,
        read_only: false,
        adopted: false,
        policy: storagelink_multipath::Policy::default(),
    }
}

/// The volume [`OTHER`] as LUN 1 behind these portals.
pub(super) fn other_volume(portals: &[&Portal]) -> PublishContext {
    PublishContext {
        lun: 1,
        wwid: OTHER.into(),
        ..volume(portals)
    }
}

pub(super) fn portal(address: &str) -> Portal {
    format!("{address},1,{TARGET}").parse().expect("a portal")
}

/// Waits until a condition holds; fails the test after 20 s.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
