//! One SCSI disk of this host: find it in sysfs, scan exactly its address, delete it.
//!
//! Never scans more than one H:C:T:L, and never deletes a disk that is not the very one that the caller saw (kernel names are used again;
//! the disk sequence number is not).

use std::{io, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Hctl, Host, RemotePort,
    host::DevNo,
    worker::{self, WorkerError},
};

/// A disk as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiDisk {
    /// Its address.
    pub hctl: Hctl,
    /// Kernel name, for example `sda`.
    pub name: String,
    /// Block device number.
    pub devno: DevNo,
    /// Size in bytes as the kernel believes it.
    pub size_bytes: u64,
    /// SCSI device state: `running`, `blocked`, `transport-offline`, … (drivers/scsi/scsi_sysfs.c, sdev_states).
    pub state: String,
    /// The disk refuses writes.
    pub read_only: bool,
    /// Sequence number of the disk, never used twice while the machine runs; 0 on kernels before 5.15.
    pub diskseq: u64,
    /// Kernel names of block devices built on it, for example `dm-0`.
    pub holders: Vec<String>,
}

impl ScsiDisk {
    /// True when the device takes commands.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// True when both are one and the same disk, not another one that got its name.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.hctl, self.devno, self.diskseq) == (other.hctl, other.devno, other.diskseq)
    }

    /// True when commands to it sleep until its transport recovers: nothing may be sent to it.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self.state.as_str(), "blocked" | "created-blocked" | "quiesce")
    }
}

/// sysfs directory of the SCSI device at this address.
fn device_directory(hctl: Hctl) -> String {
    format!("class/scsi_device/{hctl}/device")
}

/// The disk at this address; `None` when there is no device, or no block device of it yet. Reads sysfs only.
#[must_use]
pub fn find(host: &Host, hctl: &Hctl) -> Option<ScsiDisk> {
    let sysfs = host.sysfs.as_ref();
    let directory = device_directory(*hctl);
    let name = sysfs
        .list(&format!("{directory}/block"))
        .ok()?
        .into_iter()
        .next()?;
    let block = format!("block/{name}");
    let number = |attribute: &str| {
        sysfs
            .read(&format!("{block}/{attribute}"))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    Some(ScsiDisk {
        hctl: *hctl,
        devno: sysfs.read(&format!("{block}/dev")).ok()?.parse().ok()?,
        // sysfs counts sectors of 512 bytes whatever the device's own block size is.
        size_bytes: number("size")?.checked_mul(512)?,
        state: sysfs.read(&format!("{directory}/state")).ok()?,
        read_only: number("ro")? != 0,
        diskseq: number("diskseq").unwrap_or(0),
        holders: sysfs.list(&format!("{block}/holders")).unwrap_or_default(),
        name,
    })
}

/// The SCSI disk with this block device number; `None` for other devices and for one that is gone.
#[must_use]
pub fn find_by_devno(host: &Host, devno: DevNo) -> Option<ScsiDisk> {
    find(host, &Place::of(host, devno)?.hctl).filter(|disk| disk.devno == devno)
}

/// Where a SCSI disk is: what one look at sysfs says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its address.
    pub(crate) hctl: Hctl,
    /// Kernel name.
    pub(crate) name: String,
    /// Number of the iSCSI session that it came by.
    pub(crate) session: Option<u32>,
    /// The Fibre Channel remote port that it came by.
    pub(crate) remote_port: Option<RemotePort>,
}

impl Place {
    /// Of the disk with this block device number; `None` for other devices and for one that is gone.
    pub(crate) fn of(host: &Host, devno: DevNo) -> Option<Self> {
        // dev/block/M:m leads to …[/session<N> or /rport-H:B-R]/target…/<H:C:T:L>/block/sdX.
        let path = host.sysfs.link(&format!("dev/block/{devno}")).ok()?;
        let mut parts = path.rsplit('/');
        let name = parts.next()?.to_owned();
        let hctl = parts.nth(1)?.parse().ok()?;
        let (mut session, mut remote_port) = (None, None);
        for part in parts {
            session = session.or_else(|| part.strip_prefix("session")?.parse().ok());
            remote_port = remote_port.or_else(|| part.parse().ok());
        }
        Some(Self {
            hctl,
            name,
            session,
            remote_port,
        })
    }

    /// State of the SCSI device; `None` when it is gone.
    pub(crate) fn state(&self, host: &Host) -> Option<String> {
        let state = format!("{}/state", device_directory(self.hctl));
        host.sysfs.read(&state).ok()
    }
}

/// Why a scan gave no disk.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The scan itself was refused.
    #[error("scan of {hctl}")]
    Scan {
        /// Address.
        hctl: Hctl,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The target has no LUN of that number for this initiator.
    #[error("there is no LUN at {hctl}")]
    NoLun {
        /// Address.
        hctl: Hctl,
    },
    /// The SCSI device is there, its block device did not come in time.
    #[error("the SCSI device {hctl} had no block device after {deadline:?}")]
    NoDisk {
        /// Address.
        hctl: Hctl,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The scan hangs.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// The first pause between two looks at sysfs while a block device is being made: the sd driver probes on a thread of its own. It
/// doubles up to [`LONGEST_LOOK`]: on a busy machine the looks of many scans would take what the probes need.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(64);

/// A disk is in sysfs a moment before it can be opened (block/genhd.c, device_add_disk: ENXIO until bdev_add). One that takes no commands is
/// not asked: it would keep the caller. Blocking.
fn can_be_opened(host: &Host, disk: &ScsiDisk) -> bool {
    let missing = || {
        host.scsi
            .inquiry_standard(disk.devno, &disk.name)
            .is_err_and(|error| error.is_missing())
    };
    !disk.is_running() || !missing()
}

/// Scans one address and waits for its disk.
///
/// # Errors
/// See [`ScanError`]; nothing else than the one address was scanned.
pub async fn scan(host: &Host, hctl: &Hctl, deadline: Duration) -> Result<ScsiDisk, ScanError> {
    scan_until(host, *hctl, deadline, |host, disk| {
        can_be_opened(host, &disk).then_some(disk)
    })
    .await
}

/// Scans one address, and asks `ready` of its disk, which blocks, until it has an answer.
pub(crate) async fn scan_until<T: Send + 'static>(
    host: &Host,
    hctl: Hctl,
    deadline: Duration,
    ready: impl Fn(&Host, ScsiDisk) -> Option<T> + Send + Sync + 'static,
) -> Result<T, ScanError> {
    let until = Instant::now() + deadline;
    let scanning = host.clone();
    worker::run("scsi-scan", deadline, move || {
        let order = format!("{} {} {}", hctl.channel, hctl.target, hctl.lun);
        scanning
            .sysfs
            .write(&format!("class/scsi_host/host{}/scan", hctl.host), &order)
    })
    .await?
    .map_err(|source| ScanError::Scan { hctl, source })?;
    let mut pause = FIRST_LOOK;
    let ready = Arc::new(ready);
    loop {
        let (looking, ready) = (host.clone(), ready.clone());
        let found = worker::run("scsi-find", deadline, move || {
            let disk = find(&looking, &hctl).filter(|disk| disk.size_bytes > 0);
            match disk.and_then(|disk| ready(&looking, disk)) {
                Some(answer) => Ok(answer),
                None => Err(looking.sysfs.exists(&device_directory(hctl))),
            }
        })
        .await?;
        match found {
            Ok(answer) => return Ok(answer),
            // The scan is synchronous: a device that is not there now does not come.
            Err(false) => return Err(ScanError::NoLun { hctl }),
            Err(true) if Instant::now() >= until => return Err(ScanError::NoDisk { hctl, deadline }),
            Err(true) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

/// Makes the kernel ask a disk for its size again. The disk as it is then; `None` when it is gone, or another one is at its address. Blocking: a
/// device that does not take commands keeps the caller.
///
/// # Errors
/// The kernel refused the write.
pub fn rescan(host: &Host, disk: &ScsiDisk) -> io::Result<Option<ScsiDisk>> {
    host.sysfs
        .write(&format!("{}/rescan", device_directory(disk.hctl)), "1")?;
    Ok(find(host, &disk.hctl).filter(|now| now.is_same(disk)))
}

/// Deletes the disk from this host; the LUN stays as it is. A disk that is gone, or another one at its address, is left alone.
///
/// # Errors
/// The kernel refused the write.
pub fn delete(host: &Host, disk: &ScsiDisk) -> io::Result<()> {
    let Some(now) = find(host, &disk.hctl) else {
        return Ok(());
    };
    if !now.is_same(disk) {
        return Ok(());
    }
    match host
        .sysfs
        .write(&format!("{}/delete", device_directory(disk.hctl)), "1")
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
