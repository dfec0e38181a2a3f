//! Whose iscsid keeps the sessions: the host's, or one that the plugin runs beside itself.
//!
//! There is one control socket for each network namespace, and the plugin lives in the host's: never two at once. One that runs here
//! ends with the plugin; its sessions and their I/O go on in the kernel, and the next one takes them over from sysfs (open-iscsi
//! usr/iscsid.c, main: it looks for running sessions at its start). Its database and its initiator name are in the plugin's state
//! directory, so that it finds them again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use storagelink_multipath::host::kernel::NetNamespace;
use uuid::Uuid;

use super::info;
use crate::{
    codes::chain,
    doctor::host::iscsid_runs,
    programs::{Invocation, Program, Programs},
};

/// open-iscsi's directory, which the chart lays over the plugin's state directory.
const DIRECTORY: &str = "/etc/iscsi";
/// Where iscsiadm makes its lock (open-iscsi usr/idbm.h, LOCK_DIR); it makes only the last directory itself.
const LOCKS: &str = "/run/lock";
/// A service has no time limit.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Pauses before it is started again, in seconds.
const PAUSES: [u64; 6] = [0, 1, 2, 5, 10, 30];
/// One that ran so long did not die of its start.
const STEADY: Duration = Duration::from_secs(60);

/// What the administrator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wanted {
    /// The host's.
    #[default]
    Host,
    /// One in the plugin's container.
    Container,
    /// The host's when it runs at the plugin's start, else one in the container.
    Auto,
}

impl Wanted {
    /// Whether the plugin runs one itself. `proc` is `/proc`, `network` where iSCSI is spoken.
    #[must_use]
    pub fn here(self, proc: &Path, network: &NetNamespace) -> bool {
        match self {
            Self::Host => false,
            Self::Container => true,
            // One that cannot be looked for is taken for running: two would fight.
            Self::Auto => iscsid_runs(proc, network) == Some(false),
        }
    }
}

/// Why an iscsid cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum IscsidError {
    /// Its directories or its initiator name cannot be made.
    #[error("iscsid in the container: {action} {path}")]
    Files {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file with this node's initiator name, when the plugin runs iscsid. The host's own name is taken over; a host without
/// open-iscsi gets one that is kept for ever.
///
/// # Errors
/// The file system refused.
pub fn initiator_name_file(hosts: &Path) -> Result<PathBuf, IscsidError> {
    prepare(Path::new(DIRECTORY), Path::new(LOCKS), hosts)
}

fn prepare(directory: &Path, locks: &Path, hosts: &Path) -> Result<PathBuf, IscsidError> {
    let wrap = |action, path: &Path| {
        let path = path.to_owned();
        move |source| IscsidError::Files { action, path, source }
    };
    for wanted in [directory, locks] {
        std::fs::create_dir_all(wanted).map_err(wrap("make", wanted))?;
    }
    let file = directory.join("initiatorname.iscsi");
    if info::initiator_name(&file).is_ok() {
        return Ok(file);
    }
    let name = info::initiator_name(hosts)
        .unwrap_or_else(|_| format!("iqn.2026-11.io.storagelink:node.{}", Uuid::new_v4().simple()));
    let beside = directory.join("initiatorname.new");
    let write = || -> io::Result<()> {
        std::fs::write(&beside, format!("InitiatorName={name}\n"))?;
        std::fs::File::open(&beside)?.sync_all()?;
        std::fs::rename(&beside, &file)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().map_err(wrap("write", &file))?;
    Ok(file)
}

/// Runs it until the future is dropped; it is started again when it ends.
pub async fn keep_running(programs: Arc<dyn Programs>) {
    let mut tries = 0;
    loop {
        let begun = tokio::time::Instant::now();
        let invocation = Invocation::new(Program::Iscsid, ["--foreground"], FOREVER);
        match programs.run(invocation).await {
            Ok(finished) => {
                let error = finished.into_error();
                tracing::error!(
                    error = chain(&error),
                    "iscsid ended: sessions go on, but none comes back by itself"
                );
            }
            Err(error) => tracing::error!(error = chain(&error), "cannot run iscsid"),
        }
        tries = if begun.elapsed() > STEADY { 0 } else { tries + 1 };
        let pause = PAUSES[tries.min(PAUSES.len() - 1)];
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_hosts_when_it_runs() {
        let proc = tempfile::tempdir().expect("temporary directory");
        let net = proc.path().join("net");
        let own = NetNamespace::default();
        // What cannot be read is no reason to start a second one.
        assert!(!Wanted::Auto.here(proc.path(), &own));
        std::fs::create_dir(&net).expect("made");
        for (sockets, here) in [
            ("Num\n", true),
            ("Num\n1: 2 @ISCSIADM_ABSTRACT_NAMESPACE\n", false),
        ] {
            std::fs::write(net.join("unix"), sockets).expect("written");
            assert_eq!(Wanted::Auto.here(proc.path(), &own), here);
        }
        assert!(Wanted::Container.here(proc.path(), &own) && !Wanted::Host.here(proc.path(), &own));
    }

    #[test]
    fn the_hosts_name_is_taken_over_and_a_new_one_is_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let hosts = dir.path().join("hosts");
        let name = |directory: &str| {
            let directory = dir.path().join(directory);
            let file = prepare(&directory, &dir.path().join("lock"), &hosts).expect("a name");
            info::initiator_name(&file).expect("a name")
        };
        let new = name("a");
        assert!(crate::ids::is_iscsi_name(&new), "{new}");
        std::fs::write(&hosts, "InitiatorName=iqn.2026-11.example:n1\n").expect("written");
        assert_eq!(name("a"), new, "a name is kept");
        assert_eq!(name("b"), "iqn.2026-11.example:n1");
    }
}
