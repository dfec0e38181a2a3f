//! Named background programs of a guest: started, signalled, awaited; their output goes to the results directory.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::sync::watch;

use crate::programs;

/// Exit code of a program once it ended.
type Exit = watch::Receiver<Option<i32>>;

struct Process {
    group: Pid,
    exit: Exit,
}

/// The named programs of this guest.
#[derive(Clone)]
pub struct Processes {
    logs: PathBuf,
    table: Arc<Mutex<HashMap<String, Process>>>,
}

impl Processes {
    /// Programs whose logs go to `logs`.
    #[must_use]
    pub fn new(logs: &Path) -> Self {
        Self {
            logs: logs.to_owned(),
            table: Arc::default(),
        }
    }

    /// Starts a program; a name is free again once its program ended. Logs of one name are appended.
    pub fn start(&self, name: &str, argv: &[String], env: &HashMap<String, String>) -> io::Result<u32> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table
            .get(name)
            .is_some_and(|process| process.exit.borrow().is_none())
        {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{name} runs already"),
            ));
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.logs.join(format!("{name}.log")))?;
        let mut child = programs::background(argv, env, log, true)?;
        let pid = child
            .id()
            .ok_or_else(|| io::Error::other("the program has no id"))?;
        let (send, exit) = watch::channel(None);
        tokio::spawn(async move {
            let code = child.wait().await.map_or(-1, programs::exit_code);
            send.send_replace(Some(code));
        });
        table.insert(
            name.to_owned(),
            Process {
                group: Pid::from_raw(pid.cast_signed()),
                exit,
            },
        );
        Ok(pid)
    }

    /// Signals the program and what it started. False when it does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> io::Result<bool> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get(name) {
            Some(process) if process.exit.borrow().is_none() => {
                killpg(process.group, signal)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// How to wait for the program's end; none for a name never started.
    #[must_use]
    pub fn exit(&self, name: &str) -> Option<Exit> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(name).map(|process| process.exit.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use nix::sys::signal::Signal;

    use super::Processes;

    #[tokio::test]
    async fn a_named_program_is_logged_signalled_and_awaited() {
        let logs = tempfile::tempdir().unwrap();
        let processes = Processes::new(logs.path());
        let argv = ["sh", "-c", "echo up; exec sleep 60"].map(str::to_owned);
        processes.start("one", &argv, &HashMap::new()).unwrap();
        assert!(
            processes.start("one", &argv, &HashMap::new()).is_err(),
            "the name is taken"
        );
        let log = logs.path().join("one.log");
        crate::wait::until(
            "the program's line",
            std::time::Duration::from_secs(10),
            async || Ok(std::fs::read(&log)? == b"up\n"),
        )
        .await
        .unwrap();
        assert!(processes.signal("one", Signal::SIGKILL).unwrap());
        let mut exit = processes.exit("one").unwrap();
        assert_eq!(*exit.wait_for(Option::is_some).await.unwrap(), Some(128 + 9));
        assert!(!processes.signal("one", Signal::SIGKILL).unwrap(), "it ended");
        assert!(processes.exit("two").is_none());
    }
}
