//! Simulated sysfs: the attributes and links that the project reads, and the writes that it makes.

use std::io;

use super::{Disk, SimKernel, State, dm};
use crate::{
    Hctl,
    host::{DevNo, Sysfs},
};

pub(super) fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

pub(super) fn refused() -> io::Error {
    io::Error::from_raw_os_error(nix::libc::EINVAL)
}

impl State {
    fn session_link(&self, name: &str) -> Option<String> {
        let id: u32 = name.strip_prefix("session")?.parse().ok()?;
        self.sessions
            .get(&id)
            .filter(|session| session.remote_port.is_none())?;
        Some(format!("devices/platform/host{id}/session{id}"))
    }

    /// Real directory of a SCSI device: below its session, as with iscsi_tcp, or its remote port.
    fn device_link(&self, hctl: Hctl) -> Option<String> {
        self.disks.get(&hctl)?;
        let host = hctl.host;
        let by = match self.sessions.get(&host)?.remote_port {
            None => format!("session{host}"),
            Some(_) => format!("rport-{host}:0-0"),
        };
        Some(format!(
            "devices/platform/host{host}/{by}/target{host}:0:0/{hctl}"
        ))
    }

    /// Kernel names of the maps over a disk.
    fn holders(&self, devno: DevNo) -> Vec<String> {
        let over = |map: &super::MapState| {
            let tables = map.live.iter().chain(&map.inactive);
            tables
                .flat_map(|loaded| loaded.table.paths())
                .any(|path| path == devno)
        };
        self.maps
            .values()
            .filter(|map| over(map))
            .map(|map| format!("dm-{}", map.minor))
            .collect()
    }

    fn read(&self, path: &str) -> Option<String> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["block", name, ref rest @ ..] => self.read_block(name, rest),
            ["class", "scsi_device", hctl, "device", "state"] => {
                Some(self.disks.get(&hctl.parse().ok()?)?.state.clone())
            }
            ["class", "fc_remote_ports", port, attribute] => self.read_port(port, attribute),
            ["class", "iscsi_session", session, attribute] => {
                let session = self
                    .sessions
                    .get(&session.strip_prefix("session")?.parse().ok()?)?;
                match attribute {
                    "targetname" => Some(session.target.clone()),
                    "state" => Some(session.state.to_owned()),
                    "initiatorname" => Some(String::new()),
                    "recovery_tmo" => Some(session.recovery_tmo.unwrap_or(0).to_string()),
                    _ => None,
                }
            }
            [
                "module",
                "dm_multipath",
                "parameters",
                "queue_if_no_path_timeout_secs",
            ] => Some(self.queue_timeout.to_string()),
            ["class", "iscsi_host", host, "ipaddress"] => {
                let id = host.strip_prefix("host")?.parse().ok()?;
                self.sessions.get(&id)?;
                Some(self.local_address(id).to_string())
            }
            ["class", "iscsi_connection", connection, attribute] => {
                let id = connection.strip_prefix("connection")?.strip_suffix(":0")?;
                let id = id.parse().ok()?;
                let session = self.sessions.get(&id)?;
                match attribute {
                    "local_port" => Some(super::network::local_port(id).to_string()),
                    "persistent_address" | "address" => Some(session.address.clone()),
                    "persistent_port" | "port" => Some(session.port.to_string()),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn read_block(&self, name: &str, rest: &[&str]) -> Option<String> {
        if let Some(minor) = name.strip_prefix("dm-") {
            let minor: u32 = minor.parse().ok()?;
            let (map_name, map) = self.maps.iter().find(|(_, map)| map.minor == minor)?;
            return match rest {
                ["dm", "uuid"] => Some(map.uuid.clone()),
                ["dm", "name"] => Some(map_name.clone()),
                ["dev"] => Some(dm::devno(minor).to_string()),
                ["size"] => Some(map.live.as_ref().map_or(0, |live| live.length).to_string()),
                _ => None,
            };
        }
        let (_, disk) = self.disk_by_name(name)?;
        match rest {
            ["dev"] => Some(disk.devno.to_string()),
            ["size"] => Some((disk.size_bytes / 512).to_string()),
            ["ro"] => Some(u8::from(disk.read_only).to_string()),
            ["diskseq"] => Some(disk.diskseq.to_string()),
            ["stat"] => Some("0 0 0 0 0 0 0 0 0 0 0".to_owned()),
            _ => None,
        }
    }

    fn list(&self, path: &str) -> Option<Vec<String>> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["class", "iscsi_session"] => {
                let iscsi = self
                    .sessions
                    .iter()
                    .filter(|(_, session)| session.remote_port.is_none());
                Some(iscsi.map(|(id, _)| format!("session{id}")).collect())
            }
            ["class", "iscsi_connection"] => {
                let iscsi = self
                    .sessions
                    .iter()
                    .filter(|(_, session)| session.remote_port.is_none());
                Some(iscsi.map(|(id, _)| format!("connection{id}:0")).collect())
            }
            ["class", "scsi_host"] => Some(self.sessions.keys().map(|id| format!("host{id}")).collect()),
            ["class", "scsi_device"] => Some(self.disks.keys().map(ToString::to_string).collect()),
            ["class", "scsi_device", hctl, "device"] => self
                .disks
                .get(&hctl.parse().ok()?)
                .map(|_| vec!["block".to_owned(), "state".to_owned()]),
            ["class", "scsi_device", hctl, "device", "block"] => self
                .disks
                .get(&hctl.parse().ok()?)
                .map(|disk| vec![disk.name.clone()]),
            ["block"] => {
                let disks = self.disks.values().map(|disk| disk.name.clone());
                Some(
                    disks
                        .chain(self.maps.values().map(|map| format!("dm-{}", map.minor)))
                        .collect(),
                )
            }
            ["block", name, "holders"] => Some(self.holders(self.disk_by_name(name)?.1.devno)),
            _ => None,
        }
    }

    fn canonical(&self, path: &str) -> Option<String> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["class", "iscsi_session", session] => {
                Some(format!("{}/iscsi_session/{session}", self.session_link(session)?))
            }
            ["class", "scsi_device", hctl, "device"] => self.device_link(hctl.parse().ok()?),
            ["class", "scsi_device", hctl] => Some(format!(
                "{}/scsi_device/{hctl}",
                self.device_link(hctl.parse().ok()?)?
            )),
            ["block", name] => {
                let (hctl, disk) = self.disk_by_name(name)?;
                Some(format!("{}/block/{}", self.device_link(*hctl)?, disk.name))
            }
            ["dev", "block", devno] => {
                let (hctl, disk) = self.disk_by_devno(devno.parse().ok()?)?;
                Some(format!("{}/block/{}", self.device_link(*hctl)?, disk.name))
            }
            _ => None,
        }
    }

    /// Finds the LUN at this address, as the kernel does when it is told to scan it.
    fn scan(&mut self, hctl: Hctl) {
        let Some(size_bytes) = self.lun_of(hctl).map(|lun| lun.size_bytes) else {
            return;
        };
        if self.disks.contains_key(&hctl) {
            return;
        }
        let number = self.number();
        let disk = Disk {
            name: format!("sd{number}"),
            devno: DevNo {
                major: 8,
                minor: number * 16,
            },
            state: "running".to_owned(),
            diskseq: u64::from(number),
            size_bytes,
            read_only: false,
            blocked: None,
            stuck: false,
            attentions: 0,
        };
        self.disks.insert(hctl, disk);
    }

    pub(super) fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["class", "scsi_host", host, "scan"] => {
                let host: u32 = host
                    .strip_prefix("host")
                    .and_then(|n| n.parse().ok())
                    .ok_or_else(missing)?;
                let session = self.sessions.get(&host).ok_or_else(missing)?;
                if session.state != "LOGGED_IN" {
                    return Err(refused());
                }
                let numbers: Option<Vec<u64>> = value.split(' ').map(|word| word.parse().ok()).collect();
                let Some([channel, target, lun]) =
                    numbers.as_deref().and_then(|n| <[u64; 3]>::try_from(n).ok())
                else {
                    return Err(refused());
                };
                if (channel, target) == (0, 0) {
                    self.scan(Hctl {
                        host,
                        channel: 0,
                        target: 0,
                        lun,
                    });
                }
                Ok(())
            }
            ["class", "scsi_device", hctl, "device", action] => {
                let hctl: Hctl = hctl.parse().map_err(|_| missing())?;
                let size = self.lun_of(hctl).map(|lun| lun.size_bytes);
                let disk = self.disks.get_mut(&hctl).ok_or_else(missing)?;
                match action {
                    "delete" => {
                        self.disks.remove(&hctl);
                    }
                    "rescan" => disk.size_bytes = size.unwrap_or(disk.size_bytes),
                    _ => return Err(missing()),
                }
                Ok(())
            }
            ["class", "fc_remote_ports", port, attribute] => self.write_port(port, attribute, value),
            ["class", "iscsi_session", session, "recovery_tmo"] => {
                let id = session
                    .strip_prefix("session")
                    .and_then(|n| n.parse::<u32>().ok());
                let session = id.and_then(|id| self.sessions.get_mut(&id)).ok_or_else(missing)?;
                session.recovery_tmo = Some(value.parse().map_err(|_| refused())?);
                Ok(())
            }
            [
                "module",
                "dm_multipath",
                "parameters",
                "queue_if_no_path_timeout_secs",
            ] => {
                self.queue_timeout = value.parse().map_err(|_| refused())?;
                Ok(())
            }
            _ => Err(missing()),
        }
    }
}

impl Sysfs for SimKernel {
    fn read(&self, path: &str) -> io::Result<String> {
        self.state().read(path).ok_or_else(missing)
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.judge_deletion(path);
        self.change("WRITE")?;
        self.state().write(path, value)?;
        // A device that is deleted gives its I/O back.
        self.wake();
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.state().list(path).ok_or_else(missing)
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        self.state().canonical(path).ok_or_else(missing)
    }

    fn exists(&self, path: &str) -> bool {
        let state = self.state();
        state.read(path).is_some() || state.list(path).is_some() || state.canonical(path).is_some()
    }
}
