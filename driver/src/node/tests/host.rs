//! The simulated host with content on its LUNs and a fuse: after so many calls nothing works any more, as if the process
//! had been killed there.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use storagelink_multipath::host::{
    BlockDevices, DevNo, DeviceMapper, DmError, DmInfo, Host, Scsi, ScsiError, Sysfs, TargetLine,
    sim::SimKernel,
};

/// How many more calls reach the host.
#[derive(Clone)]
pub(super) struct Fuse(Arc<AtomicI64>);

impl Fuse {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }
    pub(super) fn burn_after(&self, calls: i64) {
        self.0.store(calls, Ordering::SeqCst);
    }
    pub(super) fn mend(&self) {
        self.0.store(i64::MAX, Ordering::SeqCst);
    }
    pub(super) fn burnt(&self) -> bool {
        self.0.load(Ordering::SeqCst) < 0
    }
    pub(super) fn spend(&self) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            Ok(())
        } else {
            Err(io::Error::other("killed"))
        }
    }
}

/// What is on the LUNs: bytes that are not zero, by identity.
#[derive(Clone)]
pub(super) struct Content {
    kernel: SimKernel,
    bytes: Arc<Mutex<HashMap<String, BTreeMap<u64, u8>>>>,
}

impl Content {
    pub(super) fn new(kernel: SimKernel) -> Self {
        Self {
            kernel,
            bytes: Arc::default(),
        }
    }

    pub(super) fn write(&self, wwid: &str, offset: u64, data: &[u8]) {
        let mut all = self.bytes.lock().unwrap();
        let disk = all.entry(wwid.to_owned()).or_default();
        for (at, &byte) in (offset..).zip(data) {
            if byte == 0 {
                disk.remove(&at)
            } else {
                disk.insert(at, byte)
            };
        }
    }

    pub(super) fn snapshot(&self, wwid: &str) -> BTreeMap<u64, u8> {
        self.bytes.lock().unwrap().get(wwid).cloned().unwrap_or_default()
    }

    /// Identity of a map, by its node.
    pub(super) fn wwid_of(&self, node: &str) -> Option<String> {
        let Some(minor) = node.strip_prefix("/dev/dm-") else {
            let (devno, _) = self.kernel.own_device(node.as_ref())?;
            return self.kernel.identity(devno).map(|wwid| wwid.to_string());
        };
        let minor: u32 = minor.parse().ok()?;
        let maps = self.kernel.host().dm.list().ok()?;
        let map = maps.into_iter().find(|map| map.devno.minor == minor)?;
        map.uuid.strip_prefix("storagelink-").map(str::to_owned)
    }
}

impl BlockDevices for Content {
    fn node(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        self.kernel.node(devno, name)
    }
    fn own_path(&self, name: &str) -> PathBuf {
        self.kernel.own_path(name)
    }
    fn own_node(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        self.kernel.own_node(devno, name)
    }
    fn remove_own_node(&self, name: &str) -> io::Result<()> {
        self.kernel.remove_own_node(name)
    }
    fn set_read_only(&self, devno: DevNo, name: &str, read_only: bool) -> io::Result<()> {
        self.kernel.set_read_only(devno, name, read_only)
    }
    fn size_bytes(&self, devno: DevNo, name: &str) -> io::Result<u64> {
        self.kernel.size_bytes(devno, name)
    }
    fn flush(&self, devno: DevNo, name: &str) -> io::Result<()> {
        self.kernel.flush(devno, name)
    }
    fn read_at(&self, devno: DevNo, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        // The kernel says whether a path is usable and where the disk ends.
        self.kernel.read_at(devno, name, offset + length as u64 - 1, 1)?;
        let wwid = self.kernel.identity(devno).ok_or(io::ErrorKind::NotFound)?;
        let wwid = wwid.as_str();
        let mut data = vec![0; length];
        for (at, byte) in self.snapshot(wwid).range(offset..offset + length as u64) {
            data[usize::try_from(at - offset).unwrap()] = *byte;
        }
        Ok(data)
    }
}

/// A host behind a fuse.
pub(super) fn fused(kernel: &SimKernel, content: &Content, fuse: &Fuse) -> Host {
    let inner = Host {
        block: Arc::new(content.clone()),
        ..kernel.host()
    };
    let all = Arc::new(Fused {
        inner,
        fuse: fuse.clone(),
    });
    Host {
        dm: all.clone(),
        scsi: all.clone(),
        sysfs: all.clone(),
        block: all,
        network: kernel.host().network,
        names: kernel.host().names,
    }
}

struct Fused {
    inner: Host,
    fuse: Fuse,
}

impl Fused {
    fn dm(&self) -> Result<&dyn DeviceMapper, DmError> {
        let dead = |source| DmError {
            operation: "any",
            device: String::new(),
            source,
        };
        self.fuse.spend().map_err(dead)?;
        Ok(self.inner.dm.as_ref())
    }
    fn scsi(&self, device: &str) -> Result<&dyn Scsi, ScsiError> {
        let dead = |source| ScsiError::Io {
            device: device.to_owned(),
            source,
        };
        self.fuse.spend().map_err(dead)?;
        Ok(self.inner.scsi.as_ref())
    }
    fn sysfs(&self) -> io::Result<&dyn Sysfs> {
        self.fuse.spend()?;
        Ok(self.inner.sysfs.as_ref())
    }
    fn block(&self) -> io::Result<&dyn BlockDevices> {
        self.fuse.spend()?;
        Ok(self.inner.block.as_ref())
    }
}

impl DeviceMapper for Fused {
    fn list(&self) -> Result<Vec<DmInfo>, DmError> {
        self.dm()?.list()
    }
    fn create(&self, name: &str, uuid: &str) -> Result<DmInfo, DmError> {
        self.dm()?.create(name, uuid)
    }
    fn load(&self, name: &str, table: &[TargetLine], read_only: bool) -> Result<(), DmError> {
        self.dm()?.load(name, table, read_only)
    }
    fn clear(&self, name: &str) -> Result<(), DmError> {
        self.dm()?.clear(name)
    }
    fn resume(&self, name: &str, flush: bool) -> Result<(), DmError> {
        self.dm()?.resume(name, flush)
    }
    fn info(&self, name: &str) -> Result<Option<DmInfo>, DmError> {
        self.dm()?.info(name)
    }
    fn table(&self, name: &str) -> Result<Vec<TargetLine>, DmError> {
        self.dm()?.table(name)
    }
    fn status(&self, name: &str) -> Result<Vec<TargetLine>, DmError> {
        self.dm()?.status(name)
    }
    fn message(&self, name: &str, message: &str) -> Result<(), DmError> {
        self.dm()?.message(name, message)
    }
    fn remove(&self, name: &str) -> Result<(), DmError> {
        self.dm()?.remove(name)
    }
}

impl Scsi for Fused {
    fn inquiry_vpd(&self, devno: DevNo, device: &str, page: u8) -> Result<Vec<u8>, ScsiError> {
        self.scsi(device)?.inquiry_vpd(devno, device, page)
    }
    fn inquiry_standard(&self, devno: DevNo, device: &str) -> Result<Vec<u8>, ScsiError> {
        self.scsi(device)?.inquiry_standard(devno, device)
    }
    fn report_target_port_groups(&self, devno: DevNo, device: &str) -> Result<Vec<u8>, ScsiError> {
        self.scsi(device)?.report_target_port_groups(devno, device)
    }
    fn test_unit_ready(&self, devno: DevNo, device: &str) -> Result<(), ScsiError> {
        self.scsi(device)?.test_unit_ready(devno, device)
    }
}

impl Sysfs for Fused {
    fn read(&self, path: &str) -> io::Result<String> {
        self.sysfs()?.read(path)
    }
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.sysfs()?.write(path, value)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.sysfs()?.list(path)
    }
    fn canonical(&self, path: &str) -> io::Result<String> {
        self.sysfs()?.canonical(path)
    }
    fn exists(&self, path: &str) -> bool {
        self.sysfs().is_ok_and(|sysfs| sysfs.exists(path))
    }
}

impl BlockDevices for Fused {
    fn node(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        self.block()?.node(devno, name)
    }
    fn own_path(&self, name: &str) -> PathBuf {
        self.inner.block.own_path(name)
    }
    fn own_node(&self, devno: DevNo, name: &str) -> io::Result<PathBuf> {
        self.block()?.own_node(devno, name)
    }
    fn remove_own_node(&self, name: &str) -> io::Result<()> {
        self.block()?.remove_own_node(name)
    }
    fn set_read_only(&self, devno: DevNo, name: &str, read_only: bool) -> io::Result<()> {
        self.block()?.set_read_only(devno, name, read_only)
    }
    fn size_bytes(&self, devno: DevNo, name: &str) -> io::Result<u64> {
        self.block()?.size_bytes(devno, name)
    }
    fn flush(&self, devno: DevNo, name: &str) -> io::Result<()> {
        self.block()?.flush(devno, name)
    }
    fn read_at(&self, devno: DevNo, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.block()?.read_at(devno, name, offset, length)
    }
}
