//! A simulated kernel for tests: stateful, with faults.
//!
//! It knows arrays with LUNs, iSCSI sessions with their SCSI hosts, SCSI disks, and device-mapper multipath maps, and behaves as measured on real
//! kernels where the engine depends on it: a swap makes failed paths active again and waits for I/O that is stuck on a blocked path, a swap with a
//! path that is too small is refused and leaves the map suspended, a LUN whose backing changed still shows its old size, a command to a blocked
//! device sleeps. What a process asks for that no process may is noted ([`SimKernel::violations`]). It never touches the machine it runs on.

mod dm;
mod faults;
mod network;
mod remote_port;
mod rules;
mod scsi;
mod sleep;
mod sysfs;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{BlockDevices, DevNo, Host};
use crate::{Hctl, Wwid};

/// A LUN of a simulated array: what every path to it reaches.
#[derive(Clone, Debug)]
struct Lun {
    wwid: Wwid,
    size_bytes: u64,
    /// The moment since which it is there.
    since: u64,
}

/// A session and its SCSI host; they share their number.
#[derive(Clone, Debug)]
struct Session {
    target: String,
    address: String,
    port: u16,
    state: &'static str,
    /// Seconds after a loss until waiting I/O fails, when somebody set it.
    recovery_tmo: Option<u32>,
    /// How often it was logged in.
    logins: u32,
    /// Its other end does not answer.
    silent: bool,
    /// Its interface has no carrier.
    unplugged: bool,
    /// The target port group of its portal; without one the array knows of no access states.
    port_group: Option<PortGroup>,
    /// It is no session but a Fibre Channel port, whose name is the target's.
    remote_port: Option<remote_port::Timers>,
}

/// A target port group of a simulated array, with both kinds of access.
#[derive(Clone, Copy, Debug)]
struct PortGroup {
    id: u16,
    /// Code of SPC-6 table 308.
    state: u8,
}

/// A SCSI disk of the simulated host.
#[derive(Clone, Debug)]
struct Disk {
    name: String,
    devno: DevNo,
    state: String,
    diskseq: u64,
    /// Size when it was scanned or rescanned last.
    size_bytes: u64,
    /// Writes are refused (BLKROSET).
    read_only: bool,
    /// The moment at which it was blocked, while it is.
    blocked: Option<u64>,
    /// I/O was in flight when it was blocked: it does not come back before the state changes.
    stuck: bool,
    /// Unit attentions (29/00, power on or reset) that it has to tell.
    attentions: u32,
}

#[derive(Clone, Debug)]
struct MapState {
    uuid: String,
    minor: u32,
    live: Option<Loaded>,
    inactive: Option<Loaded>,
    suspended: bool,
    open_count: u32,
    read_only: bool,
    marks: rules::Marks,
}

impl MapState {
    fn new(uuid: &str, minor: u32, live: Option<Loaded>) -> Self {
        Self {
            uuid: uuid.to_owned(),
            minor,
            live,
            inactive: None,
            suspended: false,
            open_count: 0,
            read_only: false,
            marks: rules::Marks::default(),
        }
    }
}

#[derive(Clone, Debug)]
struct Loaded {
    length: u64,
    table: crate::table::MultipathTable,
    /// Number of the path group in use, counted from 1.
    current_group: u32,
    /// Failed paths with their fail count.
    failed: BTreeMap<DevNo, u32>,
}

#[derive(Default)]
struct State {
    /// By target name and LUN number.
    luns: BTreeMap<(String, u64), Lun>,
    sessions: BTreeMap<u32, Session>,
    disks: BTreeMap<Hctl, Disk>,
    maps: BTreeMap<String, MapState>,
    /// Bytes written, by identity and offset.
    data: HashMap<(Wwid, u64), u8>,
    next: u32,
    /// Seconds until a map without a path fails its I/O by itself, as the module's parameter says.
    queue_timeout: u64,
    /// Sessions are not told apart by their address of this host.
    one_address: bool,
    /// Faults to come: operation and errno, each used once.
    faults: Vec<(String, i32)>,
    /// Operations that hang, with the calls that do.
    hanging: HashMap<String, usize>,
    /// Changing calls that still work before the process counts as killed.
    fuse: Option<usize>,
    /// Changing calls so far.
    changes: usize,
    /// Device nodes in the plugin's own directory.
    nodes: BTreeMap<PathBuf, DevNo>,
    /// The process that lives; calls of earlier ones do nothing.
    process: u32,
    /// Counted by [`SimKernel::tick`].
    moment: u64,
    violations: Vec<String>,
    sleepers: sleep::Sleepers,
}

impl State {
    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// The table has a path that carries I/O.
    fn has_usable_path(&self, live: &Loaded) -> bool {
        live.table.paths().any(|path| {
            !live.failed.contains_key(&path)
                && self
                    .disk_by_devno(path)
                    .is_some_and(|(_, disk)| disk.state == "running")
        })
    }

    /// Counts a changing call; an error when a fault is due or the process is dead.
    fn change(&mut self, operation: &str) -> io::Result<()> {
        if self.fuse.is_some_and(|left| left == 0) {
            return Err(killed());
        }
        if let Some(index) = self.faults.iter().position(|(fault, _)| fault == operation) {
            return Err(io::Error::from_raw_os_error(self.faults.remove(index).1));
        }
        self.changes += 1;
        if let Some(left) = &mut self.fuse {
            *left -= 1;
        }
        Ok(())
    }

    fn lun_of(&self, hctl: Hctl) -> Option<&Lun> {
        let session = self.sessions.get(&hctl.host)?;
        self.luns.get(&(session.target.clone(), hctl.lun))
    }

    fn disk_by_name(&self, name: &str) -> Option<(&Hctl, &Disk)> {
        self.disks.iter().find(|(_, disk)| disk.name == name)
    }

    fn disk_by_devno(&self, devno: DevNo) -> Option<(&Hctl, &Disk)> {
        self.disks.iter().find(|(_, disk)| disk.devno == devno)
    }

    /// Gives a disk another state, and wakes or blocks what is in flight on it.
    fn set_device_state(&mut self, hctl: Hctl, device_state: &str) {
        let moment = self.moment;
        let Some(disk) = self.disks.get_mut(&hctl) else {
            return;
        };
        let blocks = device_state == "blocked";
        let in_use = self.maps.values().any(|map| map.uses(disk.devno));
        disk.stuck = blocks && (disk.stuck || in_use);
        disk.blocked = blocks.then(|| disk.blocked.unwrap_or(moment));
        device_state.clone_into(&mut disk.state);
    }

    /// Identity behind a block device: of the disk, or of the first usable path of a map.
    fn identity(&self, devno: DevNo) -> Option<(Wwid, u64)> {
        if let Some((hctl, disk)) = self.disk_by_devno(devno) {
            return Some((self.lun_of(*hctl)?.wwid.clone(), disk.size_bytes));
        }
        let map = self.maps.values().find(|map| dm::devno(map.minor) == devno)?;
        let live = map.live.as_ref()?;
        let path = live.table.paths().find(|path| {
            !live.failed.contains_key(path)
                && self
                    .disk_by_devno(*path)
                    .is_some_and(|(_, disk)| disk.state == "running")
        })?;
        Some((self.identity(path)?.0, live.length * 512))
    }
}

/// The simulated kernel. Clones are the same machine.
#[derive(Clone, Default)]
pub struct SimKernel {
    machine: Arc<Machine>,
    /// The process that calls through this one.
    process: u32,
}

#[derive(Default)]
struct Machine {
    state: Mutex<State>,
    /// Signalled when something may go on that waits in the kernel.
    changed: Condvar,
    /// Signalled when all that slept have looked whether they may.
    looked: Condvar,
}

impl SimKernel {
    /// A machine without sessions, disks or maps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The seam to it, for the process that lives now.
    #[must_use]
    pub fn host(&self) -> Host {
        let kernel = Self {
            process: self.state().process,
            ..self.clone()
        };
        Host {
            dm: Arc::new(kernel.clone()),
            scsi: Arc::new(kernel.clone()),
            sysfs: Arc::new(kernel.clone()),
            block: Arc::new(kernel.clone()),
            network: Arc::new(kernel),
            names: crate::names::Names::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.machine.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a changing call; an error when a fault is due or the process is dead.
    fn change(&self, operation: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.process != self.process {
            return Err(killed());
        }
        state.change(operation)
    }

    /// Makes a LUN appear on a target, or another one in its place; no path is told.
    pub fn set_lun(&self, target: &str, lun: u64, wwid: &Wwid, size_bytes: u64) {
        let mut state = self.state();
        let key = (target.to_owned(), lun);
        let same = state.luns.get(&key).filter(|lun| lun.wwid == *wwid);
        let since = same.map_or(state.moment, |lun| lun.since);
        let wwid = wwid.clone();
        state.luns.insert(
            key,
            Lun {
                wwid,
                size_bytes,
                since,
            },
        );
    }

    /// Takes a LUN from a target.
    pub fn remove_lun(&self, target: &str, lun: u64) {
        self.state().luns.remove(&(target.to_owned(), lun));
    }

    /// Opens a session, as iscsid does: a new SCSI host without devices. Answers its number, of session and host alike.
    pub fn login(&self, target: &str, address: &str, port: u16) -> u32 {
        let mut state = self.state();
        let id = state.number();
        let session = Session {
            target: target.to_owned(),
            address: address.to_owned(),
            port,
            state: "LOGGED_IN",
            recovery_tmo: None,
            logins: 1,
            silent: false,
            unplugged: false,
            port_group: None,
            remote_port: None,
        };
        state.sessions.insert(id, session);
        id
    }

    /// Puts the portal of a session into a target port group, whose state (a code of SPC-6 table 308) is the same for all its portals.
    pub fn set_port_group(&self, session: u32, id: u16, state: u8) {
        let mut guard = self.state();
        let group = Some(PortGroup { id, state });
        for (number, other) in &mut guard.sessions {
            if *number == session || other.port_group.is_some_and(|group| group.id == id) {
                other.port_group = group;
            }
        }
    }

    /// Closes a session; its disks go with it.
    pub fn logout(&self, session: u32) {
        let mut state = self.state();
        state.sessions.remove(&session);
        state.disks.retain(|hctl, _| hctl.host != session);
    }

    /// Numbers of the sessions to a target and portal.
    #[must_use]
    pub fn sessions(&self, target: &str, address: &str, port: u16) -> Vec<u32> {
        let state = self.state();
        let same = |s: &Session| s.target == target && s.address == address && s.port == port;
        state
            .sessions
            .iter()
            .filter(|(_, session)| same(session))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Number of sessions.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.state().sessions.len()
    }

    /// Addresses of all SCSI disks.
    #[must_use]
    pub fn disks(&self) -> Vec<Hctl> {
        self.state().disks.keys().copied().collect()
    }

    /// Names of all device-mapper devices.
    #[must_use]
    pub fn maps(&self) -> Vec<String> {
        self.state().maps.keys().cloned().collect()
    }

    /// The device behind a node in the plugin's own directory, and whether it refuses writes.
    #[must_use]
    pub fn own_device(&self, node: &std::path::Path) -> Option<(DevNo, bool)> {
        let state = self.state();
        let devno = *state.nodes.get(node)?;
        let (_, disk) = state.disk_by_devno(devno)?;
        Some((devno, disk.read_only))
    }

    /// Identity of what answers behind a block device now.
    #[must_use]
    pub fn identity(&self, devno: DevNo) -> Option<Wwid> {
        self.state().identity(devno).map(|(wwid, _)| wwid)
    }

    /// The time that was set for a session to come back before its I/O fails, in seconds.
    #[must_use]
    pub fn recovery_tmo(&self, session: u32) -> Option<u32> {
        self.state().sessions.get(&session)?.recovery_tmo
    }

    /// Holds a map open, or closes it.
    pub fn set_open_count(&self, map: &str, count: u32) {
        let mut state = self.state();
        let moment = state.moment;
        if let Some(map) = state.maps.get_mut(map) {
            map.open_count = count;
            map.marks.opened = (count > 0).then_some(moment);
        }
    }

    /// Writes to the LUN itself, past any path.
    pub fn write(&self, wwid: &Wwid, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        for (at, byte) in (offset..).zip(bytes) {
            state.data.insert((wwid.clone(), at), *byte);
        }
    }
}

fn killed() -> io::Error {
    io::Error::other("killed")
}

impl BlockDevices for SimKernel {
    fn node(&self, _: DevNo, kernel_name: &str) -> io::Result<PathBuf> {
        Ok(PathBuf::from("/dev").join(kernel_name))
    }

    fn own_path(&self, name: &str) -> PathBuf {
        PathBuf::from("/state/dev").join(name)
    }

    fn own_node(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        let mut state = self.state();
        state.change("MKNOD")?;
        let node = self.own_path(name);
        state.nodes.insert(node.clone(), devno);
        Ok(node)
    }

    fn remove_own_node(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.change("UNLINK")?;
        state.nodes.remove(&self.own_path(name));
        Ok(())
    }

    fn set_read_only(&self, devno: DevNo, _: &str, read_only: bool) -> io::Result<()> {
        let mut state = self.state();
        state.change("BLKROSET")?;
        let disk = state.disks.values_mut().find(|disk| disk.devno == devno);
        let disk = disk.ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENXIO))?;
        disk.read_only = read_only;
        Ok(())
    }

    fn size_bytes(&self, devno: DevNo, _: &str) -> io::Result<u64> {
        let state = self.state();
        state
            .identity(devno)
            .map(|(_, size)| size)
            .ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENXIO))
    }

    fn flush(&self, devno: DevNo, _: &str) -> io::Result<()> {
        self.hangs("FLUSH");
        self.change("FLUSH")?;
        let live = |state: &State| {
            let map = state.maps.values().find(|map| dm::devno(map.minor) == devno);
            map.and_then(|map| map.live.clone())
        };
        // Without a usable path the map holds the request, or fails it when it does not queue.
        let process = self.process;
        self.sleep_while(|state| {
            state.process == process
                && live(state)
                    .is_some_and(|live| live.table.queues_if_no_path() && !state.has_usable_path(&live))
        });
        let state = self.state();
        match live(&state) {
            Some(live) if !state.has_usable_path(&live) => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
            _ => Ok(()),
        }
    }

    fn read_at(&self, devno: DevNo, _: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        let Some((wwid, size)) = state.identity(devno) else {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        };
        if offset.checked_add(length as u64).is_none_or(|end| end > size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((offset..)
            .take(length)
            .map(|at| state.data.get(&(wwid.clone(), at)).copied().unwrap_or(0))
            .collect())
    }
}
