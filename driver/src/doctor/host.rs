//! What a node's operating system must bring: programs, an initiator name, a running iscsid, kernel modules; and what must not be in the way.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use storagelink_multipath::host::kernel::NetNamespace;

use super::Finding;
use crate::{
    codes::chain,
    node::info,
    programs::{HostPrograms, Iscsid, Program},
};

/// The modules that volumes need, and whether the kernel loads them by itself when they are first asked for
/// (drivers/md/dm-target.c and dm-path-selector.c call request_module; nobody does for the transport).
pub const MODULES: [(&str, bool); 3] = [
    ("iscsi_tcp", false),
    ("dm_multipath", true),
    ("dm_round_robin", true),
];
/// iscsid's control socket (open-iscsi usr/mgmt_ipc.h, ISCSIADM_NAMESPACE), abstract, as `/proc/net/unix` shows it.
const ISCSID: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";
/// multipathd's control socket (multipath-tools libmpathcmd, DEFAULT_SOCKET).
const MULTIPATHD: &str = "@/org/kernel/linux/storage/multipathd";

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// Where the plugin sees the host's root, when it runs in a container.
    pub host_root: Option<PathBuf>,
    /// The file with the line `InitiatorName=`.
    pub initiator_name_file: PathBuf,
    /// Whose iscsid is meant to run.
    pub iscsid: Iscsid,
    /// The network namespace in which it runs.
    pub network: NetNamespace,
    /// The node's name, when it shares the kernel with others.
    pub node: Option<String>,
}

/// Everything about this host.
#[must_use]
pub fn check(places: &Places, programs: &HostPrograms) -> Vec<Finding> {
    let mut all = programs_there(&programs.missing());
    all.push(initiator_name(
        &places.initiator_name_file,
        places.node.as_deref(),
    ));
    let sockets = sockets(&places.proc, &places.network);
    all.push(iscsid(&sockets, places.iscsid));
    all.extend(multipathd(&sockets));
    let root = places.host_root.as_deref().unwrap_or(Path::new("/"));
    all.extend(MODULES.map(|(name, by_itself)| module(places, root, name, by_itself)));
    all
}

fn programs_there(missing: &[Program]) -> Vec<Finding> {
    if missing.is_empty() {
        return vec![Finding::good("programs", "all there")];
    }
    let one = |program: &Program| {
        let (debian, rhel) = (program.debian_package(), program.rhel_package());
        let found = format!("is not installed: install {debian} (Debian) or {rhel} (Red Hat)");
        Finding::failure(format!("program {program}"), found)
    };
    missing.iter().map(one).collect()
}

/// A node that shares its kernel has one of its own, which needs the node's.
fn initiator_name(file: &Path, node: Option<&str>) -> Finding {
    let name = match node {
        Some(node) => info::node_id(node, file, true).map(|id| id.initiator().to_owned()),
        None => info::initiator_name(file),
    };
    match name {
        Ok(name) => Finding::good("initiator name", name),
        Err(error) => Finding::failure(
            "initiator name",
            format!("{}: install open-iscsi and start it once", chain(&error)),
        ),
    }
}

/// The abstract sockets of a network namespace. `/proc/net` is that of the process, not of the thread.
fn sockets(proc: &Path, network: &NetNamespace) -> io::Result<String> {
    let file = proc.join(if network.is_own() {
        "net/unix"
    } else {
        "thread-self/net/unix"
    });
    network.run(|| fs::read_to_string(file))?
}

fn has(sockets: &io::Result<String>, name: &str) -> Option<bool> {
    let sockets = sockets.as_ref().ok()?;
    Some(sockets.lines().any(|line| line.ends_with(name)))
}

/// Whether an iscsid answers in this network namespace; `None`: it cannot be told. `proc` is `/proc`.
#[must_use]
pub fn iscsid_runs(proc: &Path, network: &NetNamespace) -> Option<bool> {
    has(&sockets(proc, network), ISCSID)
}

fn iscsid(sockets: &io::Result<String>, whose: Iscsid) -> Finding {
    match (has(sockets, ISCSID), whose) {
        (Some(true), Iscsid::OfPlugin) => Finding::failure(
            "iscsid",
            "runs already, on the host or in another container, and there can be one only: systemctl disable --now iscsid iscsid.socket, \
             or node.iscsid: host in the chart's values",
        ),
        (Some(false), Iscsid::OfPlugin) => Finding::good("iscsid", "is the plugin's own"),
        (Some(true), Iscsid::OfHost) => Finding::good("iscsid", "runs"),
        (Some(false), Iscsid::OfHost) => Finding::failure(
            "iscsid",
            "does not run on this host: systemctl enable --now iscsid (package open-iscsi, iscsi-initiator-utils on Red Hat), or node.iscsid: container in the chart's values",
        ),
        (None, _) => Finding::warning(
            "iscsid",
            "it cannot be told whether it runs: /proc/net/unix cannot be read",
        ),
    }
}

/// It takes SCSI disks as soon as they appear; ours are then busy.
fn multipathd(sockets: &io::Result<String>) -> Option<Finding> {
    (has(sockets, MULTIPATHD) == Some(true)).then(|| {
        Finding::warning(
            "multipathd",
            "runs on this host and may take the driver's disks: stop it if nobody else needs it, or blacklist them: \
             blacklist { wwid \"36001405.*\" }",
        )
    })
}

fn module(places: &Places, root: &Path, name: &str, by_itself: bool) -> Finding {
    let what = format!("kernel module {name}");
    if places.sys.join("module").join(name).exists() {
        return Finding::good(what, "loaded");
    }
    let installed = fs::read_to_string(places.proc.join("sys/kernel/osrelease"))
        .ok()
        .and_then(|release| {
            let directory = root.join("lib/modules").join(release.trim());
            let listed = |file: &str| {
                let text = fs::read_to_string(directory.join(file)).ok()?;
                Some(text.lines().any(|line| is_of(line, name)))
            };
            Some(listed("modules.dep")? || listed("modules.builtin").unwrap_or(false))
        });
    match (installed, by_itself) {
        (Some(true), true) => Finding::good(what, "installed, loaded when it is first needed"),
        (Some(true), false) => Finding::failure(
            what,
            format!(
                "is not loaded: modprobe {name}, and a line {name} in /etc/modules-load.d/storagelink.conf"
            ),
        ),
        (Some(false), _) => Finding::failure(
            what,
            "is not installed: install the distribution's package with all modules of this kernel (kernel-modules-extra, linux-modules-extra)",
        ),
        (None, _) => Finding::warning(
            what,
            "it cannot be told whether it is installed: /lib/modules of this kernel cannot be read",
        ),
    }
}

/// Lines of modules.dep and modules.builtin (depmod(8), modules.dep(5)): `kernel/…/<name>.ko[.xz]: …`; `-` and `_` are the same in a name.
fn is_of(line: &str, name: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split_once(".ko")
        .is_some_and(|(module, _)| module.replace('-', "_") == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    struct Host {
        dir: tempfile::TempDir,
        node: Option<String>,
    }

    impl Host {
        fn new() -> Self {
            let host = Self {
                dir: tempfile::tempdir().expect("temporary directory"),
                node: None,
            };
            host.write(
                "proc/net/unix",
                &format!("Num RefCount\n0000: 00000002 {ISCSID}\n"),
            );
            host.write("proc/sys/kernel/osrelease", "6.1.0-1-amd64\n");
            host.write(
                "host/lib/modules/6.1.0-1-amd64/modules.dep",
                "kernel/drivers/md/dm-multipath.ko: kernel/x.ko\nkernel/drivers/md/dm-round-robin.ko.xz:\n\
                 kernel/drivers/scsi/iscsi_tcp.ko:\n",
            );
            host.write(
                "host/etc/iscsi/initiatorname.iscsi",
                "InitiatorName=iqn.2026-11.example:n1\n",
            );
            fs::create_dir_all(host.dir.path().join("sys/module/iscsi_tcp")).expect("made");
            host
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }

        /// What is not as it should be.
        fn bad(&self) -> Vec<Finding> {
            let root = self.dir.path();
            let places = Places {
                proc: root.join("proc"),
                sys: root.join("sys"),
                host_root: Some(root.join("host")),
                initiator_name_file: root.join("host/etc/iscsi/initiatorname.iscsi"),
                iscsid: Iscsid::OfHost,
                network: NetNamespace::default(),
                node: self.node.clone(),
            };
            let mut all = check(&places, &HostPrograms::find(Some(&places.proc), places.iscsid));
            // The machine of the tests need not have the programs.
            all.retain(|f| f.severity != Severity::Good && !f.what.starts_with("program"));
            all
        }
    }

    #[test]
    fn a_host_that_has_everything_has_nothing_to_be_done() {
        assert_eq!(Host::new().bad(), []);
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        type Break = fn(&Host);
        let cases: [(Break, &str, &str, Severity); 6] = [
            (
                |h| h.write("proc/net/unix", "Num\n"),
                "iscsid",
                "systemctl enable --now iscsid",
                Severity::Failure,
            ),
            (
                |h| h.write("proc/net/unix", &format!("1: {ISCSID}\n2: {MULTIPATHD}\n")),
                "multipathd",
                "blacklist",
                Severity::Warning,
            ),
            (
                |h| fs::remove_dir(h.dir.path().join("sys/module/iscsi_tcp")).expect("removed"),
                "kernel module iscsi_tcp",
                "modprobe iscsi_tcp",
                Severity::Failure,
            ),
            (
                |h| {
                    h.write(
                        "host/lib/modules/6.1.0-1-amd64/modules.dep",
                        "kernel/drivers/md/dm-multipath.ko:\n",
                    );
                },
                "kernel module dm_round_robin",
                "is not installed",
                Severity::Failure,
            ),
            (
                |h| h.write("proc/sys/kernel/osrelease", "7.0\n"),
                "kernel module dm_multipath",
                "/lib/modules",
                Severity::Warning,
            ),
            (
                |h| h.write("host/etc/iscsi/initiatorname.iscsi", "\n"),
                "initiator name",
                "install open-iscsi",
                Severity::Failure,
            ),
        ];
        for (break_it, what, text, severity) in cases {
            let host = Host::new();
            break_it(&host);
            let bad = host.bad();
            let found = bad.iter().find(|f| f.what == what);
            let found = found.unwrap_or_else(|| panic!("{what} is not in {bad:?}"));
            assert!(found.found.contains(text), "{found}");
            assert_eq!(found.severity, severity, "{found}");
        }
    }

    #[test]
    fn a_node_that_shares_its_kernel_has_an_initiator_name_of_its_own() {
        let host = Host {
            node: Some("n1".to_owned()),
            ..Host::new()
        };
        assert_eq!(host.bad(), []);
        let name = host.dir.path().join("host/etc/iscsi/initiatorname.iscsi");
        let found = initiator_name(&name, Some("n1"));
        assert_eq!(
            found,
            Finding::good("initiator name", "iqn.2026-11.example:n1:n1")
        );
        let found = initiator_name(&name, Some("N 1"));
        assert_eq!(found.severity, Severity::Failure, "{found}");
    }

    #[test]
    fn a_second_iscsid_is_in_the_way_of_the_plugins_own() {
        let sockets = |text: &str| Ok(text.to_owned());
        let found = iscsid(&sockets(ISCSID), Iscsid::OfPlugin);
        assert_eq!(found.severity, Severity::Failure);
        assert!(found.found.contains("node.iscsid: host"), "{found}");
        assert_eq!(iscsid(&sockets(""), Iscsid::OfPlugin).severity, Severity::Good);
    }

    #[test]
    fn a_missing_program_names_its_packages() {
        let found = programs_there(&[Program::Iscsiadm]);
        assert!(found[0].found.contains("open-iscsi") && found[0].found.contains("iscsi-initiator-utils"));
    }
}
