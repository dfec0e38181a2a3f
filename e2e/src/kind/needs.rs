//! What the host must have. Looked at before anything is made; what is missing is named with what brings it.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Result, bail};

use super::{
    configfs,
    settings::Settings,
    tool::{self, SHORT},
};

/// Programs, and where they come from.
const PROGRAMS: [(&str, &str); 6] = [
    ("docker", "install Docker Engine (Debian: docker.io)"),
    ("kind", "install it: https://kind.sigs.k8s.io"),
    ("kubectl", "install it: https://kubernetes.io/docs/tasks/tools"),
    ("helm", "install it: https://helm.sh/docs/intro/install"),
    (
        "iscsiadm",
        "install the package open-iscsi (Debian, Ubuntu) or iscsi-initiator-utils (Fedora)",
    ),
    ("modprobe", "install the package kmod"),
];

/// Modules of the kernel, and what each is for.
const MODULES: [(&str, &str); 8] = [
    ("target_core_mod", "the array: the kernel's target"),
    ("target_core_file", "the array: volumes in files"),
    ("iscsi_target_mod", "the array: iSCSI"),
    ("iscsi_tcp", "the nodes: iSCSI sessions"),
    ("dm_multipath", "the nodes: multipath maps"),
    ("dm_round_robin", "the nodes: both paths in turn"),
    ("xfs", "the array: its aggregate's file system"),
    ("loop", "the array: its aggregate is an image in a file"),
];

/// The socket of iscsid, or of systemd for it: an abstract one (usr/mgmt_ipc.h of open-iscsi).
const ISCSID: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";
const INITIATOR_NAME: &str = "/etc/iscsi/initiatorname.iscsi";

/// What was seen of a host.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Operating system, as Rust calls it.
    pub system: String,
    /// The caller is root.
    pub root: bool,
    /// Programs found by PATH.
    pub programs: BTreeSet<String>,
    /// Why the engine does not answer; `None` when it does.
    pub engine: Option<String>,
    /// Modules that are neither loaded nor could be, with what modprobe said.
    pub no_modules: Vec<(String, String)>,
    /// The kernel's target shows itself in configfs.
    pub configfs: bool,
    /// iscsid, or systemd for it, listens.
    pub iscsid: bool,
    /// The host has an initiator name.
    pub initiator_name: bool,
    /// Release of the kernel.
    pub kernel: String,
}

impl Seen {
    /// What is missing, in plain words with what brings it; nothing when all is there.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        if self.system != "linux" {
            return vec![format!(
                "this is {}: the array and the nodes use the host's own kernel, which must be Linux (a virtual machine will do)",
                self.system
            )];
        }
        if !self.root {
            return vec!["root: run it with sudo -E; it loads modules and looks into the kernel".to_owned()];
        }
        let mut missing: Vec<String> = PROGRAMS
            .iter()
            .filter(|(program, _)| !self.programs.contains(*program))
            .map(|(program, remedy)| format!("program {program}: {remedy}"))
            .collect();
        if let Some(why) = self.engine.as_ref().filter(|_| self.programs.contains("docker")) {
            missing.push(format!("a running Docker engine: {why}"));
        }
        for (module, said) in &self.no_modules {
            let purpose = MODULES
                .iter()
                .find(|(name, _)| name == module)
                .map_or("", |(_, purpose)| *purpose);
            missing.push(format!(
                "kernel module {module} ({purpose}): {said}; Debian: linux-image-amd64 instead of the cloud kernel, \
                 Ubuntu: linux-modules-extra-{}",
                self.kernel
            ));
        }
        if self.no_modules.is_empty() && !self.configfs {
            missing.push(format!(
                "configfs: {} is not there; mount -t configfs configfs /sys/kernel/config",
                configfs::TARGETS
            ));
        }
        if self.programs.contains("iscsiadm") {
            if !self.iscsid {
                missing.push("iscsid: systemctl enable --now iscsid.socket, or iscsid.service".to_owned());
            }
            if !self.initiator_name {
                missing.push(format!(
                    "an initiator name in {INITIATOR_NAME}: echo \"InitiatorName=$(iscsi-iname)\" > {INITIATOR_NAME}"
                ));
            }
        }
        missing
    }
}

/// Looks at this host; modules that are missing are loaded if they can be.
pub async fn look() -> Seen {
    let mut seen = Seen {
        system: std::env::consts::OS.to_owned(),
        root: nix::unistd::geteuid().is_root(),
        programs: PROGRAMS
            .iter()
            .map(|(program, _)| (*program).to_owned())
            .filter(|program| on_path(program))
            .collect(),
        kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        ..Seen::default()
    };
    if !seen.root || seen.system != "linux" {
        return seen;
    }
    seen.engine = match tool::finish(&["docker", "version", "--format", "{{.Server.Version}}"], SHORT).await {
        Ok(done) if done.exit == 0 => None,
        Ok(done) => Some(tool::said(&done)),
        Err(error) => Some(format!("{error:#}")),
    };
    let names: Vec<&str> = MODULES.iter().map(|(name, _)| *name).collect();
    seen.no_modules = load(&names).await;
    seen.configfs = Path::new(configfs::TARGETS).is_dir();
    seen.iscsid = std::fs::read_to_string("/proc/net/unix").is_ok_and(|sockets| listens(&sockets));
    seen.initiator_name =
        std::fs::read_to_string(INITIATOR_NAME).is_ok_and(|text| initiator_name(&text).is_some());
    seen
}

/// Fails with the list of what is missing, one thing a line.
pub async fn check(settings: &Settings) -> Result<()> {
    let mut missing = look().await.missing();
    if !settings.cluster.is_file() {
        missing.push(format!("the file {}", settings.cluster.display()));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("this host lacks:\n      - {}", missing.join("\n      - "))
}

/// Loads modules; those that are not there afterwards, with what modprobe said.
pub async fn load(modules: &[&str]) -> Vec<(String, String)> {
    let mut missing = Vec::new();
    for module in modules {
        if Path::new("/sys/module").join(module).is_dir() {
            continue;
        }
        // One that is built in has no directory when it has no parameters: modprobe knows it.
        let said = match tool::finish(&["modprobe", module], SHORT).await {
            Ok(done) if done.exit == 0 => continue,
            Ok(done) => tool::said(&done),
            Err(error) => format!("{error:#}"),
        };
        missing.push(((*module).to_owned(), said));
    }
    missing
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Whether the list of unix sockets (/proc/net/unix) has iscsid's.
fn listens(sockets: &str) -> bool {
    sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .any(|name| name == ISCSID)
}

/// The name in the text of initiatorname.iscsi.
pub(super) fn initiator_name(text: &str) -> Option<&str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("InitiatorName="))
        .map(str::trim)
        .find(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{PROGRAMS, Seen, initiator_name, listens};

    type Change = fn(&mut Seen);

    fn well() -> Seen {
        Seen {
            system: "linux".to_owned(),
            root: true,
            programs: PROGRAMS.iter().map(|(name, _)| (*name).to_owned()).collect(),
            configfs: true,
            iscsid: true,
            initiator_name: true,
            kernel: "6.1.0-9-amd64".to_owned(),
            ..Seen::default()
        }
    }

    #[test]
    fn a_host_with_everything_lacks_nothing() {
        assert_eq!(well().missing(), Vec::<String>::new());
    }

    #[test]
    fn each_missing_thing_is_named_with_its_remedy() {
        let cases: [(Change, &str, &str); 8] = [
            (|seen| seen.root = false, "root", "sudo"),
            (
                |seen| seen.programs.retain(|program| program != "kind"),
                "program kind",
                "kind.sigs.k8s.io",
            ),
            (
                |seen| seen.programs.retain(|program| program != "iscsiadm"),
                "program iscsiadm",
                "open-iscsi",
            ),
            (
                |seen| seen.engine = Some("Cannot connect".to_owned()),
                "Docker engine",
                "Cannot connect",
            ),
            (
                |seen| seen.no_modules = vec![("dm_round_robin".to_owned(), "not found".to_owned())],
                "dm_round_robin (the nodes: both paths in turn): not found",
                "linux-modules-extra-6.1.0-9-amd64",
            ),
            (|seen| seen.configfs = false, "configfs", "mount -t configfs"),
            (|seen| seen.iscsid = false, "iscsid", "systemctl"),
            (
                |seen| seen.initiator_name = false,
                "initiatorname.iscsi",
                "iscsi-iname",
            ),
        ];
        for (change, name, remedy) in cases {
            let mut seen = well();
            change(&mut seen);
            let missing = seen.missing();
            assert_eq!(missing.len(), 1, "{missing:?}");
            assert!(
                missing[0].contains(name) && missing[0].contains(remedy),
                "{missing:?}"
            );
        }
        let mac = Seen {
            system: "macos".to_owned(),
            ..Seen::default()
        };
        assert!(mac.missing()[0].contains("macos") && mac.missing().len() == 1);
    }

    #[test]
    fn iscsid_is_found_by_its_socket_only() {
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 17411 ";
        assert!(listens(&format!("{head}{line}@ISCSIADM_ABSTRACT_NAMESPACE\n")));
        assert!(!listens(&format!(
            "{head}{line}@ISCSID_UIP_ABSTRACT_NAMESPACE\n{line}\n"
        )));
    }

    #[test]
    fn the_initiator_name_is_not_a_comment() {
        assert_eq!(
            initiator_name("## x\nInitiatorName=iqn.1993-08.org.debian:01:a\n"),
            Some("iqn.1993-08.org.debian:01:a")
        );
        assert_eq!(initiator_name("# InitiatorName=iqn.x\nInitiatorName=\n"), None);
    }
}
