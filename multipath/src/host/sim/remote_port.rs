//! Simulated Fibre Channel remote ports: what the kernel's transport class shows of them, and the rules of their timers. Everything else of a port is
//! that of a session.

use std::io;

use super::{
    SimKernel, State,
    sysfs::{missing, refused},
};

/// What is set for a Fibre Channel remote port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timers {
    /// Seconds; off without.
    fast_io_fail: Option<u32>,
    /// Seconds.
    dev_loss: u32,
}

impl SimKernel {
    /// A Fibre Channel host of its own logs in to the port of this name (WWPN), which is the name of the LUN's target, too. Answers the host's number,
    /// with which everything works that works with a session's.
    pub fn log_in_to_port(&self, port_name: &str) -> u32 {
        // No address: no TCP connection.
        let id = self.login(port_name, "", 0);
        if let Some(session) = self.state().sessions.get_mut(&id) {
            // The kernel's defaults.
            session.remote_port = Some(Timers {
                fast_io_fail: None,
                dev_loss: 60,
            });
        }
        id
    }
}

impl State {
    /// Number of the SCSI host of a remote port.
    fn host_of_port(&self, name: &str) -> Option<u32> {
        let number = name.strip_prefix("rport-")?.strip_suffix(":0-0")?.parse().ok()?;
        self.sessions.get(&number)?.remote_port.map(|_| number)
    }

    pub(super) fn read_port(&self, name: &str, attribute: &str) -> Option<String> {
        let session = self.sessions.get(&self.host_of_port(name)?)?;
        let timers = session.remote_port?;
        Some(match attribute {
            "port_name" => session.target.clone(),
            "port_state" if session.state == "LOGGED_IN" => "Online".to_owned(),
            "port_state" => "Blocked".to_owned(),
            "fast_io_fail_tmo" => timers
                .fast_io_fail
                .map_or_else(|| "off".to_owned(), |time| time.to_string()),
            "dev_loss_tmo" => timers.dev_loss.to_string(),
            _ => return None,
        })
    }

    /// As drivers/scsi/scsi_transport_fc.c does: EBUSY for a port that is lost, EINVAL for a time that is not shorter than the other.
    pub(super) fn write_port(&mut self, name: &str, attribute: &str, value: &str) -> io::Result<()> {
        let session = self.host_of_port(name).and_then(|id| self.sessions.get_mut(&id));
        let Some(session) = session else {
            return Err(missing());
        };
        let lost = session.state != "LOGGED_IN";
        let timers = session.remote_port.as_mut().ok_or_else(missing)?;
        if lost {
            return Err(io::Error::from_raw_os_error(nix::libc::EBUSY));
        }
        let seconds = || value.parse::<u32>().map_err(|_| refused());
        match attribute {
            "fast_io_fail_tmo" if value == "off" => timers.fast_io_fail = None,
            "fast_io_fail_tmo" if seconds()? >= timers.dev_loss => return Err(refused()),
            "fast_io_fail_tmo" => timers.fast_io_fail = Some(seconds()?),
            "dev_loss_tmo" => timers.dev_loss = seconds()?,
            _ => return Err(missing()),
        }
        Ok(())
    }
}
