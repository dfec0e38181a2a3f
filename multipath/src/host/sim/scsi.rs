//! Simulated SCSI commands.

use std::{collections::BTreeMap, io};

use super::{PortGroup, Session, SimKernel};
use crate::{
    host::{DevNo, Scsi, ScsiError},
    sense::{Sense, UNIT_ATTENTION},
};

/// State code of a target port group in standby (SPC-6 table 308).
const STANDBY: u8 = 2;

impl SimKernel {
    /// What the LUN answers that is reached through this disk now. `f` gets the session, the LUN and all sessions.
    fn answer_over<T>(
        &self,
        device: &str,
        f: impl FnOnce(&Session, &super::Lun, &BTreeMap<u32, Session>) -> Result<T, ScsiError>,
    ) -> Result<T, ScsiError> {
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
        match state.sessions.get(&hctl.host).zip(state.lun_of(*hctl)) {
            Some((session, lun)) => f(session, lun, &state.sessions),
            // ILLEGAL REQUEST, LOGICAL UNIT NOT SUPPORTED.
            None => Err(check_condition(device, 5, 0x25, 0)),
        }
    }
}

impl SimKernel {
    /// Takes one of the unit attentions that a disk has to tell, if it takes commands.
    fn tells_attention(&self, device: &str) -> bool {
        let mut state = self.state();
        let mut disks = state.disks.values_mut();
        let disk = disks.find(|disk| disk.name == device && disk.state == "running" && disk.attentions > 0);
        disk.map(|disk| disk.attentions -= 1).is_some()
    }
}

fn check_condition(device: &str, key: u8, asc: u8, ascq: u8) -> ScsiError {
    ScsiError::Status {
        device: device.to_owned(),
        status: 2,
        host: 0,
        driver: 0,
        sense: Some(Sense { key, asc, ascq }),
    }
}

impl Scsi for SimKernel {
    fn inquiry_vpd(&self, _: DevNo, device: &str, page: u8) -> Result<Vec<u8>, ScsiError> {
        let (wwid, group) = self.answer_over(device, |session, lun, _| {
            Ok((lun.wwid.clone(), session.port_group.map(|group| group.id)))
        })?;
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
        if let Some(id) = group {
            let [high, low] = id.to_be_bytes();
            answer.extend([0x01, 0x15, 0, 4, 0, 0, high, low]);
            answer[3] += 8;
        }
        Ok(answer)
    }

    fn inquiry_standard(&self, _: DevNo, device: &str) -> Result<Vec<u8>, ScsiError> {
        self.answer_over(device, |session, _, _| {
            let mut data = vec![0; 36];
            // TPGS 11b: implicit and explicit.
            data[5] = if session.port_group.is_some() { 0x30 } else { 0 };
            Ok(data)
        })
    }

    fn report_target_port_groups(&self, _: DevNo, device: &str) -> Result<Vec<u8>, ScsiError> {
        self.answer_over(device, |session, _, all| {
            if session.port_group.is_none() {
                // ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
                return Err(check_condition(device, 5, 0x20, 0));
            }
            let mut answer = vec![0, 0, 0, 0];
            let mut groups: Vec<PortGroup> = all.values().filter_map(|session| session.port_group).collect();
            groups.sort_by_key(|group| group.id);
            groups.dedup_by_key(|group| group.id);
            for group in groups {
                let [high, low] = group.id.to_be_bytes();
                answer.extend([group.state, 0xff, high, low, 0, 0, 0, 1, 0, 0, 0, 1]);
            }
            answer[3] = u8::try_from(answer.len() - 4).unwrap_or(u8::MAX);
            Ok(answer)
        })
    }

    fn test_unit_ready(&self, _: DevNo, device: &str) -> Result<(), ScsiError> {
        // INQUIRY does not tell of them (SPC-6 6.7.1).
        if self.tells_attention(device) {
            return Err(check_condition(device, UNIT_ATTENTION, 0x29, 0));
        }
        self.answer_over(device, |session, _, _| match session.port_group {
            Some(PortGroup { state: STANDBY, .. }) => Err(check_condition(device, 2, 0x04, 0x0b)),
            _ => Ok(()),
        })
    }
}
