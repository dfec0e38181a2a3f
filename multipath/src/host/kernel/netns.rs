//! The network namespace in which the host's iscsid runs, when it is not this process's own (a node that is a container).
//!
//! The kernel speaks NETLINK_ISCSI only in the initial network namespace, and a socket stays in the namespace that it was made in. So this
//! process never enters another one: a thread does, makes what is needed and ends, or a child does before it becomes a program.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};

// NS_GET_NSTYPE (include/uapi/linux/nsfs.h).
nix::ioctl_none!(ns_get_nstype, 0xb7, 3);

/// Why a path is no network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetNamespaceError {
    /// It cannot be opened.
    #[error("{}: cannot be opened; is the host's namespace bound there (ip netns attach)?", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else: a plain file is what is left when nothing is bound onto it.
    #[error("{}: is not a network namespace; bind the host's there (ip netns attach)", path.display())]
    Other {
        /// The path.
        path: PathBuf,
    },
}

/// A network namespace: by default that of this process.
#[derive(Clone, Debug, Default)]
pub struct NetNamespace(Option<Arc<File>>);

impl NetNamespace {
    /// The one whose handle is bound onto `path`. It stays open, and so does the namespace.
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> Result<Self, NetNamespaceError> {
        let file = OpenOptions::new()
            .read(true)
            // A FIFO must not hold up the start.
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| NetNamespaceError::Open {
                path: path.to_owned(),
                source,
            })?;
        // SAFETY: the call takes no argument; on a file of another kind it only fails.
        match unsafe { ns_get_nstype(file.as_raw_fd()) } {
            Ok(libc::CLONE_NEWNET) => Ok(Self(Some(Arc::new(file)))),
            _ => Err(NetNamespaceError::Other {
                path: path.to_owned(),
            }),
        }
    }

    /// It is that of this process.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.0.is_none()
    }

    /// Runs `f` in the namespace, on a thread that ends with it: for what makes a socket, or reads `/proc/thread-self/net`. It must not wait for
    /// anybody.
    ///
    /// # Errors
    /// The namespace cannot be entered (that needs CAP_SYS_ADMIN), or there is no thread to be had.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        let Some(file) = &self.0 else { return Ok(f()) };
        thread::scope(|scope| {
            let inside = move || -> io::Result<T> {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                Ok(f())
            };
            let thread = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, inside)?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Lets the program that `command` starts run in the namespace.
    pub fn enter_in_child(&self, command: &mut Command) {
        let Some(file) = self.0.clone() else { return };
        let enter = move || setns(&*file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec only setns is called: async-signal-safe, a plain system call without allocation.
        unsafe { command.pre_exec(enter) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host");
        let error = NetNamespace::open(&path).unwrap_err();
        assert!(matches!(error, NetNamespaceError::Open { .. }), "{error}");
        std::fs::write(&path, "").unwrap();
        for path in [path.as_path(), Path::new("/proc/self/ns/uts"), Path::new("/proc")] {
            let error = NetNamespace::open(path).unwrap_err();
            assert!(
                error.to_string().contains("is not a network namespace"),
                "{error}"
            );
        }
    }

    #[test]
    fn work_runs_inside_and_this_thread_stays_where_it_is() {
        let link = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(NetNamespace::default().run(link).unwrap(), link());
        // Another namespace than ours, where this test may make one.
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = thread::spawn(move || {
            let made = nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|_| ());
            let opened = made.map(|()| {
                let namespace = NetNamespace::open(Path::new("/proc/thread-self/ns/net")).unwrap();
                (namespace, std::fs::read_link("/proc/thread-self/ns/net").unwrap())
            });
            tell.send(opened).unwrap();
            let _ = ended.recv();
        });
        if let Ok((namespace, its)) = told.recv().unwrap() {
            assert_ne!(its, link());
            assert_eq!(namespace.run(link).unwrap(), its);
            let mut command = child();
            namespace.enter_in_child(&mut command);
            let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
            assert_eq!(Path::new(said.trim()), its);
            assert_ne!(link(), its, "this thread was never inside");
        }
        drop(end);
        other.join().unwrap();
    }

    #[allow(clippy::disallowed_methods, reason = "a test of what a child sees")]
    fn child() -> Command {
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        command
    }
}
