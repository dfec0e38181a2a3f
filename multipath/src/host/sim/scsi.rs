//! Simulated SCSI commands.

use std::io;

use super::SimKernel;
use crate::host::{Scsi, ScsiError};

impl SimKernel {
    /// The LUN that answers through this disk now.
    fn answer<T>(&self, device: &str, f: impl FnOnce(&super::Lun) -> T) -> Result<T, ScsiError> {
        let wrap = |source: io::Error| ScsiError::Io {
            device: device.to_owned(),
            source,
        };
        self.judge_command(device);
        self.hangs("SG_IO");
        self.hangs(&format!("SG_IO {device}"));
        // Such a command heeds neither its own time limit nor SIGKILL.
        self.sleep_while(|state| {
            let Some((hctl, disk)) = state.disk_by_name(device) else {
                return false;
            };
            let session = state.sessions.get(&hctl.host);
            let silent = session.is_some_and(|session| session.silent || session.unplugged);
            disk.blocked.is_some() || (silent && disk.state == "running")
        });
        if self.state().faults.iter().any(|(fault, _)| fault == "SG_IO") {
            self.change("SG_IO").map_err(wrap)?;
        }
        let state = self.state();
        let (hctl, disk) = state
            .disk_by_name(device)
            .ok_or_else(|| wrap(io::ErrorKind::NotFound.into()))?;
        if disk.state != "running" {
            return Err(wrap(io::Error::from_raw_os_error(nix::libc::ENXIO)));
        }
        match state.lun_of(*hctl) {
            Some(lun) => Ok(f(lun)),
            // ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
            None => Err(check_condition(device, 5, 0x25)),
        }
    }
}

fn check_condition(device: &str, key: u8, asc: u8) -> ScsiError {
    ScsiError::Status {
        device: device.to_owned(),
        status: 2,
        host: 0,
        driver: 0,
        sense: Some(crate::sense::Sense { key, asc, ascq: 0 }),
    }
}

impl Scsi for SimKernel {
    fn inquiry_vpd(&self, device: &str, page: u8) -> Result<Vec<u8>, ScsiError> {
        let wwid = self.answer(device, |lun| lun.wwid.clone())?;
        let digits = wwid
            .as_str()
            .strip_prefix("naa.")
            .unwrap_or_default()
            .as_bytes()
            .to_vec();
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        let naa: Vec<u8> = digits
            .chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect();
        let length = u8::try_from(naa.len()).unwrap_or(0);
        let mut answer = vec![0, page, 0, length + 4, 0x01, 0x03, 0, length];
        answer.extend(naa);
        Ok(answer)
    }

    fn test_unit_ready(&self, device: &str) -> Result<(), ScsiError> {
        self.answer(device, |_| ())?;
        // INQUIRY does not tell of them (SPC-6 6.7.1).
        let mut state = self.state();
        match state.disks.values_mut().find(|disk| disk.name == device) {
            Some(disk) if disk.attentions > 0 => {
                disk.attentions -= 1;
                Err(check_condition(device, crate::sense::UNIT_ATTENTION, 0x29))
            }
            _ => Ok(()),
        }
    }
}
