//! Where the host's programs are, and how each is started: directly, or inside the host's own root.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use storagelink_multipath::host::kernel::NetNamespace;

use super::{Invocation, Iscsid, Program, ProgramError, Programs, Running, process};

/// Where programs are looked for. Fixed, so that nothing in an environment decides what runs as root.
const SEARCH_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// coreutils' chroot, which starts a host's program when the plugin lives in a container.
const CHROOT: &str = "chroot";

/// How one program is started.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    /// The file to execute.
    executable: PathBuf,
    /// Arguments before the program's own.
    before: Vec<String>,
}

/// The programs of this host, found once.
#[derive(Clone, Debug)]
pub struct HostPrograms {
    starts: BTreeMap<Program, Start>,
    iscsid: Iscsid,
    /// Where those run that speak iSCSI.
    network: NetNamespace,
}

impl HostPrograms {
    /// Looks for every program. One that is missing is an error only when it is asked for, see [`Self::missing`].
    ///
    /// `host_root` is where a container sees the host's root file system. Programs that must be the host's own (modprobe,
    /// and iscsiadm with the host's `iscsid`) are then looked for, and started, in there.
    #[must_use]
    pub fn find(host_root: Option<&Path>, iscsid: Iscsid) -> Self {
        Self::find_in(&SEARCH_PATH, host_root, iscsid)
    }

    fn find_in(search: &[&str], host_root: Option<&Path>, iscsid: Iscsid) -> Self {
        let chroot = look(search, CHROOT);
        let starts = Program::ALL
            .into_iter()
            .filter_map(|program| {
                let start = match host_root.filter(|_| program.belongs_to_host(iscsid)) {
                    None => Start {
                        executable: look(search, program.file_name())?,
                        before: Vec::new(),
                    },
                    Some(root) => {
                        let inside = look_in_root(root, search, program.file_name())?;
                        Start {
                            executable: chroot.clone()?,
                            before: vec![root.to_str()?.to_owned(), inside],
                        }
                    }
                };
                Some((program, start))
            })
            .collect();
        Self {
            starts,
            iscsid,
            network: NetNamespace::default(),
        }
    }

    /// The same, with the programs that speak iSCSI started in this network namespace: the children enter it, this process does not.
    #[must_use]
    pub fn in_network(self, network: NetNamespace) -> Self {
        Self { network, ..self }
    }

    /// The programs that are needed and were not found.
    #[must_use]
    pub fn missing(&self) -> Vec<Program> {
        Program::ALL
            .into_iter()
            .filter(|p| *p != Program::Iscsid || self.iscsid == Iscsid::OfPlugin)
            .filter(|p| !self.starts.contains_key(p))
            .collect()
    }

    /// Fails with the first of these programs that was not found.
    pub fn require(&self, programs: &[Program]) -> Result<(), ProgramError> {
        match programs.iter().find(|p| !self.starts.contains_key(p)) {
            Some(&program) => Err(ProgramError::Missing { program }),
            None => Ok(()),
        }
    }
}

impl Programs for HostPrograms {
    fn run(&self, invocation: Invocation) -> Running<'_> {
        Box::pin(async move {
            let program = invocation.program;
            let start = self
                .starts
                .get(&program)
                .ok_or(ProgramError::Missing { program })?;
            let path = SEARCH_PATH.join(":");
            let begun = Instant::now();
            let network = match program.speaks_iscsi() {
                true => self.network.clone(),
                false => NetNamespace::default(),
            };
            let result = process::run(&start.executable, &start.before, &path, &invocation, &network).await;
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let args = invocation.args.join(" ");
            match &result {
                Ok(finished) => tracing::debug!(%program, args, ms, exit = %finished.exit, "ran a program"),
                Err(error) => tracing::debug!(%program, args, ms, %error, "could not run a program"),
            }
            result
        })
    }
}

/// The first executable file of this name.
fn look(search: &[&str], name: &str) -> Option<PathBuf> {
    search.iter().map(|dir| Path::new(dir).join(name)).find(|path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// The same below another root, as a path inside it. A link is taken on trust: where an absolute one leads can only be
/// seen from inside.
fn look_in_root(root: &Path, search: &[&str], name: &str) -> Option<String> {
    search.iter().map(|dir| format!("{dir}/{name}")).find(|inside| {
        root.join(inside.trim_start_matches('/'))
            .symlink_metadata()
            .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    fn executable(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().expect("has a parent")).expect("directory");
        fs::write(path, text).expect("file");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named_when_it_is_asked_for() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bin = dir.path().to_str().expect("text");
        executable(
            &dir.path().join("blkid"),
            "#!/bin/sh\necho \"$LC_ALL/$HOME/$1\"\nexit 2\n",
        );
        fs::write(dir.path().join("btrfs"), "not executable").expect("file");
        let programs = HostPrograms::find_in(&[bin], None, Iscsid::OfHost);

        let found = programs
            .run(Invocation::new(Program::Blkid, ["a b"], Duration::from_secs(20)))
            .await;
        let found = found.expect("it ran");
        assert_eq!((found.code(), found.stdout.as_str()), (Some(2), "C//a b\n"));

        assert!(programs.missing().contains(&Program::Btrfs));
        let error = programs
            .require(&[Program::Blkid, Program::Btrfs])
            .expect_err("not executable");
        assert!(error.to_string().contains("btrfs-progs"), "{error}");
        let error = programs
            .run(Invocation::new(Program::E2fsck, ["x"], Duration::from_secs(1)))
            .await;
        assert!(matches!(
            error,
            Err(ProgramError::Missing {
                program: Program::E2fsck
            })
        ));
    }

    #[tokio::test]
    async fn with_a_host_root_iscsiadm_is_the_hosts_and_the_rest_is_ours() {
        let ours = tempfile::tempdir().expect("temporary directory");
        let root = tempfile::tempdir().expect("temporary directory");
        let bin = ours.path().to_str().expect("text");
        executable(&ours.path().join("iscsiadm"), "#!/bin/sh\necho ours\n");
        executable(&ours.path().join("blkid"), "#!/bin/sh\necho ours\n");
        // Stands in for coreutils' chroot, which only root may run: it shows what would be started.
        executable(&ours.path().join("chroot"), "#!/bin/sh\necho \"in $1: $2 $3\"\n");
        let inside = root.path().join(bin.trim_start_matches('/')).join("iscsiadm");
        executable(&inside, "#!/bin/sh\necho hosts\n");

        let programs = HostPrograms::find_in(&[bin], Some(root.path()), Iscsid::OfHost);
        let limit = Duration::from_secs(20);
        let host = programs
            .run(Invocation::new(Program::Iscsiadm, ["-V"], limit))
            .await
            .expect("ran");
        assert_eq!(
            host.stdout,
            format!("in {}: {bin}/iscsiadm -V\n", root.path().display())
        );
        assert!(!programs.missing().contains(&Program::Iscsid));
        let contained = HostPrograms::find_in(&[bin], Some(root.path()), Iscsid::OfPlugin);
        assert!(contained.missing().contains(&Program::Iscsid));
        for (programs, program) in [(&programs, Program::Blkid), (&contained, Program::Iscsiadm)] {
            let own = programs
                .run(Invocation::new(program, ["-V"], limit))
                .await
                .expect("ran");
            assert_eq!(own.stdout, "ours\n");
        }
    }
}
