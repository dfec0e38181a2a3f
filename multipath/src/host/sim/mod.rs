//! A simulated kernel for tests: stateful, with faults.
//!
//! It knows arrays with LUNs, iSCSI sessions with their SCSI hosts, SCSI disks, and device-mapper multipath maps, and behaves as measured on real
//! kernels where the engine depends on it: a swap makes failed paths active again, a swap with a path that is too small is refused and leaves the
//! map suspended, a LUN whose backing changed still shows its old size. It never touches the machine it runs on.

mod dm;
mod network;
mod scsi;
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
            return Err(io::Error::other("killed"));
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
pub struct SimKernel(Arc<Machine>);

#[derive(Default)]
struct Machine {
    state: Mutex<State>,
    /// Signalled when something may go on that waits in the kernel.
    changed: Condvar,
}

impl SimKernel {
    /// A machine without sessions, disks or maps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The seam to it.
    #[must_use]
    pub fn host(&self) -> Host {
        Host {
            dm: Arc::new(self.clone()),
            scsi: Arc::new(self.clone()),
            sysfs: Arc::new(self.clone()),
            block: Arc::new(self.clone()),
            network: Arc::new(self.clone()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps as in the kernel for as long as `stuck` says.
    fn sleep_while(&self, stuck: impl FnMut(&mut State) -> bool) {
        drop(
            self.0
                .changed
                .wait_while(self.state(), stuck)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// A call of this kind hangs here if one is to.
    fn hangs(&self, operation: &str) {
        if let Some(calls) = self.state().hanging.get_mut(operation) {
            *calls += 1;
        }
        self.sleep_while(|state| state.hanging.contains_key(operation));
    }

    /// Calls of this kind hang from now on: `SG_IO`, `RESUME` or `FLUSH`.
    pub fn hang(&self, operation: &str) {
        self.state().hanging.insert(operation.to_owned(), 0);
    }

    /// The calls of this kind that hang return; answers how many there were.
    pub fn release(&self, operation: &str) -> usize {
        let calls = self.state().hanging.remove(operation).unwrap_or(0);
        self.0.changed.notify_all();
        calls
    }

    /// Makes a LUN appear on a target, or another one in its place; no path is told.
    pub fn set_lun(&self, target: &str, lun: u64, wwid: &Wwid, size_bytes: u64) {
        self.state().luns.insert(
            (target.to_owned(), lun),
            Lun {
                wwid: wwid.clone(),
                size_bytes,
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

    /// The connection is lost: the session fails and its devices take this state (`blocked`, then `transport-offline`).
    pub fn cut(&self, session: u32, device_state: &str) {
        let mut state = self.state();
        if let Some(session) = state.sessions.get_mut(&session) {
            session.state = "FAILED";
        }
        for (hctl, disk) in &mut state.disks {
            if hctl.host == session {
                device_state.clone_into(&mut disk.state);
            }
        }
        let gone: Vec<DevNo> = state
            .disks
            .iter()
            .filter(|(hctl, _)| hctl.host == session)
            .map(|(_, disk)| disk.devno)
            .collect();
        if device_state != "blocked" {
            // The I/O in flight comes back with an error, and the target fails the path.
            for devno in gone {
                for map in state.maps.values_mut() {
                    dm::fail(map, devno);
                }
            }
        }
    }

    /// The connection is back.
    pub fn heal(&self, session: u32) {
        let mut state = self.state();
        if let Some(session) = state.sessions.get_mut(&session) {
            session.state = "LOGGED_IN";
            session.logins += 1;
            (session.silent, session.unplugged) = (false, false);
        }
        for (hctl, disk) in &mut state.disks {
            if hctl.host == session {
                "running".clone_into(&mut disk.state);
            }
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// The next call of this kind fails with this errno: `TABLE_LOAD`, `DEV_CREATE`, `RESUME`, `DEV_REMOVE`, `TARGET_MSG`, `SG_IO`, `WRITE`, `FLUSH`.
    /// A `RESUME` that fails so leaves the map suspended and its new table loaded, as a wait that was interrupted does.
    pub fn fail_next(&self, operation: &str, errno: i32) {
        self.state().faults.push((operation.to_owned(), errno));
    }

    /// After so many more changing calls nothing works any more, as if the process had been killed there.
    pub fn kill_after(&self, calls: usize) {
        self.state().fuse = Some(calls);
    }

    /// A new process: calls work again.
    pub fn restart(&self) {
        self.state().fuse = None;
    }

    /// Changing calls so far.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.state().changes
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
        if let Some(map) = self.state().maps.get_mut(map) {
            map.open_count = count;
        }
    }

    /// Writes to the LUN itself, past any path.
    pub fn write(&self, wwid: &Wwid, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        for (at, byte) in (offset..).zip(bytes) {
            state.data.insert((wwid.clone(), at), *byte);
        }
    }

    /// Puts a device-mapper device of somebody else over a disk, as a second manager would.
    pub fn foreign_map(&self, name: &str, uuid: &str, over: Hctl) {
        let mut state = self.state();
        let Some(disk) = state.disks.get(&over).cloned() else {
            return;
        };
        let minor = state.number();
        let table = crate::table::MultipathTable::round_robin([disk.devno]);
        let live = Loaded {
            length: disk.size_bytes / 512,
            current_group: table.initial_group,
            table,
            failed: BTreeMap::new(),
        };
        let map = MapState {
            uuid: uuid.to_owned(),
            minor,
            live: Some(live),
            inactive: None,
            suspended: false,
            open_count: 0,
            read_only: false,
        };
        state.maps.insert(name.to_owned(), map);
    }
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
        self.state().change("FLUSH")?;
        let live = |state: &State| {
            let map = state.maps.values().find(|map| dm::devno(map.minor) == devno);
            map.and_then(|map| map.live.clone())
        };
        // Without a usable path the map holds the request, or fails it when it does not queue.
        self.sleep_while(|state| {
            live(state).is_some_and(|live| live.table.queues_if_no_path() && !state.has_usable_path(&live))
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
