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
        self.hangs("SG_IO");
        let mut state = self.state();
        if state.faults.iter().any(|(fault, _)| fault == "SG_IO") {
            state.change("SG_IO").map_err(wrap)?;
        }
        let (hctl, disk) = state
            .disk_by_name(device)
            .ok_or_else(|| wrap(io::ErrorKind::NotFound.into()))?;
        if disk.state != "running" {
            return Err(wrap(io::Error::from_raw_os_error(nix::libc::ENXIO)));
        }
        match state.lun_of(*hctl) {
            Some(lun) => Ok(f(lun)),
            // ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
            None => Err(ScsiError::Status {
                device: device.to_owned(),
                status: 2,
                host: 0,
                driver: 0,
                sense: Some(crate::sense::Sense {
                    key: 5,
                    asc: 0x25,
                    ascq: 0,
                }),
            }),
        }
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
        self.answer(device, |_| ())
    }
}
