//! The simulated kernel with two additions: scans that can be held up, and device nodes that may be opened.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use storagelink_multipath::{
    Hctl, Wwid,
    host::{BlockDevices, DevNo, Host, Sysfs, sim::SimKernel},
    scsi_device::{self, ScsiDisk},
};

use super::world::TARGET;
use crate::publish_context::Portal;

/// Size of every LUN unless a test says otherwise.
pub(super) const SIZE: u64 = 1 << 20;

#[derive(Default)]
struct Scans {
    begun: usize,
    held: bool,
}

#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) sim: SimKernel,
    scans: Arc<(Mutex<Scans>, Condvar)>,
    nodes: Arc<tempfile::TempDir>,
    /// Initiator names of sessions that have one.
    initiators: Arc<Mutex<BTreeMap<u32, String>>>,
}

/// Scans wait while this lives.
pub(super) struct Hold(Kernel);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.state().held = false;
        self.0.scans.1.notify_all();
    }
}

impl Kernel {
    pub(super) fn new() -> Self {
        let nodes = Arc::new(tempfile::tempdir().expect("temporary directory"));
        Self {
            sim: SimKernel::new(),
            scans: Arc::default(),
            nodes,
            initiators: Arc::default(),
        }
    }

    pub(super) fn host(&self) -> Host {
        let this = Arc::new(self.clone());
        Host {
            sysfs: this.clone(),
            block: this,
            ..self.sim.host()
        }
    }

    pub(super) fn present(&self, lun: u64, wwid: &str, size: u64) {
        let wwid: Wwid = wwid.parse().expect("an identity");
        self.sim.set_lun(TARGET, lun, &wwid, size);
    }

    pub(super) fn log_in(&self, portal: &Portal) -> u32 {
        self.sim
            .login(TARGET, &portal.address.ip().to_string(), portal.address.port())
    }

    /// The same through an interface with this initiator name; none for the default one.
    pub(super) fn log_in_as(&self, portal: &Portal, initiator: Option<&str>) -> u32 {
        let session = self.log_in(portal);
        if let Some(initiator) = initiator {
            self.initiators().insert(session, initiator.to_owned());
        }
        session
    }

    /// The session of this initiator name, or of the default interface.
    pub(super) fn session_of(&self, portal: &Portal, initiator: Option<&str>) -> Option<u32> {
        let all = self
            .sim
            .sessions(TARGET, &portal.address.ip().to_string(), portal.address.port());
        let initiators = self.initiators();
        all.into_iter()
            .find(|session| initiators.get(session).map(String::as_str) == initiator)
    }

    fn initiators(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.initiators.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disk(&self, hctl: &Hctl) -> ScsiDisk {
        scsi_device::find(&self.host(), hctl).expect("a disk")
    }

    /// How many scans have begun.
    pub(super) fn scans(&self) -> usize {
        self.state().begun
    }

    pub(super) fn hold_scans(&self) -> Hold {
        self.state().held = true;
        Hold(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, Scans> {
        self.scans.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sysfs for Kernel {
    fn read(&self, path: &str) -> io::Result<String> {
        let session = path
            .strip_prefix("class/iscsi_session/session")
            .and_then(|rest| rest.strip_suffix("/initiatorname")?.parse().ok());
        if let Some(name) = session.and_then(|session: u32| self.initiators().get(&session).cloned()) {
            return Ok(name);
        }
        Sysfs::read(&self.sim, path)
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        if path.ends_with("/scan") {
            let mut scans = self.state();
            scans.begun += 1;
            while scans.held {
                scans = self.scans.1.wait(scans).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Sysfs::write(&self.sim, path, value)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        Sysfs::list(&self.sim, path)
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        self.sim.canonical(path)
    }

    fn exists(&self, path: &str) -> bool {
        self.sim.exists(path)
    }
}

impl BlockDevices for Kernel {
    fn node(&self, devno: DevNo, _: &str) -> io::Result<PathBuf> {
        let path = self.nodes.path().join(devno.to_string());
        std::fs::write(&path, "")?;
        Ok(path)
    }

    fn size_bytes(&self, devno: DevNo, name: &str) -> io::Result<u64> {
        self.sim.size_bytes(devno, name)
    }

    fn flush(&self, devno: DevNo, name: &str) -> io::Result<()> {
        self.sim.flush(devno, name)
    }

    fn read_at(&self, devno: DevNo, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.sim.read_at(devno, name, offset, length)
    }
}
