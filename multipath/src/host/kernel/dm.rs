//! Device-mapper through the low level of the `devicemapper` crate, apart from the two calls that would wait for udev ([`super::dm_ioctl`]).

use std::{io, path::Path, sync::OnceLock};

use devicemapper::{DM, DevId, DeviceInfo, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid, errors};

use super::{dm_control, dm_ioctl};
use crate::host::{DevNo, DeviceMapper, DmError, DmInfo, TargetLine};

/// The control device (drivers/md/dm-ioctl.c).
const CONTROL: &str = "/dev/mapper/control";
/// Which minor number it has.
const MISC: &str = "/proc/misc";

/// /dev/mapper/control of this machine. Opened by the first call that finds it, since the module may be loaded later than this process starts, and
/// kept: a look at hundreds of maps is thousands of calls.
#[derive(Default)]
pub struct KernelDeviceMapper {
    control: OnceLock<DM>,
}

/// udev shall make the links in /dev/mapper and leave the content alone: a blkid on a map without paths would hang a udev worker.
fn udev_flags() -> u32 {
    (DmUdevFlags::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_DISK_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_OTHER_RULES_FLAG)
        .bits()
}

fn options(flags: DmFlags) -> DmOptions {
    DmOptions::default().set_flags(flags)
}

fn to_io(error: devicemapper::DmError) -> io::Error {
    match error {
        devicemapper::DmError::Core(errors::Error::Ioctl(_, _, _, errno)) => {
            io::Error::from_raw_os_error(*errno as i32)
        }
        other => io::Error::other(other.to_string()),
    }
}

impl KernelDeviceMapper {
    fn control(&self) -> io::Result<&DM> {
        if let Some(open) = self.control.get() {
            return Ok(open);
        }
        dm_control::ensure(Path::new(CONTROL), Path::new(MISC))?;
        let open = DM::new().map_err(to_io)?;
        Ok(self.control.get_or_init(|| open))
    }

    fn call<T>(
        &self,
        operation: &'static str,
        device: &str,
        f: impl FnOnce(&DM) -> devicemapper::DmResult<T>,
    ) -> Result<T, DmError> {
        let wrap = |source| DmError {
            operation,
            device: device.to_owned(),
            source,
        };
        f(self.control().map_err(wrap)?).map_err(|error| wrap(to_io(error)))
    }

    /// Like [`Self::call`], on a device addressed by name.
    fn named<T>(
        &self,
        operation: &'static str,
        device: &str,
        f: impl FnOnce(&DM, &DevId<'_>) -> devicemapper::DmResult<T>,
    ) -> Result<T, DmError> {
        self.call(operation, device, |dm| f(dm, &DevId::Name(DmName::new(device)?)))
    }
}

fn info(device: &DeviceInfo) -> DmInfo {
    let flags = device.flags();
    DmInfo {
        name: device.name().map(ToString::to_string).unwrap_or_default(),
        uuid: device.uuid().map(ToString::to_string).unwrap_or_default(),
        devno: DevNo {
            major: device.device().major,
            minor: device.device().minor,
        },
        suspended: flags.contains(DmFlags::DM_SUSPEND),
        read_only: flags.contains(DmFlags::DM_READONLY),
        live_table: flags.contains(DmFlags::DM_ACTIVE_PRESENT),
        inactive_table: flags.contains(DmFlags::DM_INACTIVE_PRESENT),
        deferred_remove: flags.contains(DmFlags::DM_DEFERRED_REMOVE),
        open_count: u32::try_from(device.open_count()).unwrap_or(0),
        event_nr: device.event_nr(),
    }
}

fn lines(table: Vec<(u64, u64, String, String)>) -> Vec<TargetLine> {
    table
        .into_iter()
        .map(|(start, length, target, params)| TargetLine {
            start,
            length,
            target,
            params,
        })
        .collect()
}

impl DeviceMapper for KernelDeviceMapper {
    fn list(&self) -> Result<Vec<DmInfo>, DmError> {
        let names = self.call("LIST_DEVICES", "all", DM::list_devices)?;
        let mut found = Vec::with_capacity(names.len());
        for (name, _, _) in names {
            // A device may vanish between the two calls.
            found.extend(self.info(&name.to_string())?);
        }
        Ok(found)
    }

    fn create(&self, name: &str, uuid: &str) -> Result<DmInfo, DmError> {
        self.call("DEV_CREATE", name, |dm| {
            dm.device_create(DmName::new(name)?, Some(DmUuid::new(uuid)?), DmOptions::default())
        })
        .map(|device| info(&device))
    }

    fn load(&self, name: &str, table: &[TargetLine], read_only: bool) -> Result<(), DmError> {
        let rows: Vec<_> = table
            .iter()
            .map(|line| (line.start, line.length, line.target.clone(), line.params.clone()))
            .collect();
        let flags = if read_only {
            DmFlags::DM_READONLY
        } else {
            DmFlags::empty()
        };
        self.named("TABLE_LOAD", name, |dm, id| {
            dm.table_load(id, &rows, options(flags))
        })
        .map(drop)
    }

    fn clear(&self, name: &str) -> Result<(), DmError> {
        self.named("TABLE_CLEAR", name, DM::table_clear).map(drop)
    }

    fn resume(&self, name: &str, flush: bool) -> Result<(), DmError> {
        let flags = if flush {
            DmFlags::empty()
        } else {
            DmFlags::DM_NOFLUSH | DmFlags::DM_SKIP_LOCKFS
        };
        dm_ioctl::resume(CONTROL, name, flags.bits(), udev_flags()).map_err(|source| DmError {
            operation: "DEV_SUSPEND (resume)",
            device: name.to_owned(),
            source,
        })
    }

    fn info(&self, name: &str) -> Result<Option<DmInfo>, DmError> {
        match self.named("DEV_STATUS", name, DM::device_info) {
            Ok(device) => Ok(Some(info(&device))),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn table(&self, name: &str) -> Result<Vec<TargetLine>, DmError> {
        // NOFLUSH: a status must not push the map's queued I/O.
        let flags = DmFlags::DM_STATUS_TABLE | DmFlags::DM_NOFLUSH;
        self.named("TABLE_STATUS (table)", name, |dm, id| {
            dm.table_status(id, options(flags))
        })
        .map(|(_, table)| lines(table))
    }

    fn status(&self, name: &str) -> Result<Vec<TargetLine>, DmError> {
        self.named("TABLE_STATUS", name, |dm, id| {
            dm.table_status(id, options(DmFlags::DM_NOFLUSH))
        })
        .map(|(_, table)| lines(table))
    }

    fn message(&self, name: &str, message: &str) -> Result<(), DmError> {
        self.named("TARGET_MSG", name, |dm, id| dm.target_msg(id, None, message))
            .map(drop)
    }

    fn remove(&self, name: &str) -> Result<(), DmError> {
        dm_ioctl::remove(CONTROL, name, udev_flags()).map_err(|source| DmError {
            operation: "DEV_REMOVE",
            device: name.to_owned(),
            source,
        })
    }
}
