//! Process 1 of a guest: mounts, modules, addresses; then starts the service and reaps orphans until power-off.

use std::{collections::HashMap, fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::wait::{WaitStatus, wait},
};

use crate::programs;

/// What the kernel command line says about this guest.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Guest name, also its host name.
    pub name: String,
    /// Last byte of its addresses.
    pub index: u8,
    /// Where the kernel package is unpacked.
    pub kernel: String,
    /// Modules to load before anything else.
    pub modules: Vec<String>,
}

impl Identity {
    /// Reads /proc/cmdline.
    pub fn read() -> Result<Self> {
        let line = fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
        Self::parse(&line)
    }

    fn parse(line: &str) -> Result<Self> {
        let words: HashMap<&str, &str> = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        let word = |key: &str| {
            words
                .get(key)
                .copied()
                .with_context(|| format!("the command line has no {key}"))
        };
        Ok(Self {
            name: word("lab.name")?.to_owned(),
            index: word("lab.index")?.parse().context("lab.index")?,
            kernel: word("lab.kernel")?.to_owned(),
            modules: word("lab.modules")?
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// Runs as process 1 and does not return while the guest lives.
pub fn run() -> Result<()> {
    let identity = Identity::read()?;
    stage("root");
    mounts(&identity)?;
    let modules: Vec<&str> = ["modprobe", "-a"]
        .into_iter()
        .chain(identity.modules.iter().map(String::as_str))
        .collect();
    if !identity.modules.is_empty() {
        say(programs::output_blocking(&modules, Path::new("/"), &[]).map(drop));
    }
    stage("modules");
    network(&identity)?;
    stage("network");
    nix::unistd::sethostname(&identity.name).context("set the host name")?;

    let service = programs::myself("serve").context("start the agent's service")?;
    let service = service.id().cast_signed();
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) if pid.as_raw() == service => {
                break;
            }
            Ok(_) => {}
            Err(error) => return Err(error).context("wait for the guest's processes"),
        }
    }
    anyhow::bail!("the agent's service ended")
}

fn mounts(identity: &Identity) -> Result<()> {
    let none = None::<&str>;
    for (kind, place) in [("tmpfs", "/run"), ("tmpfs", "/dev/shm"), ("devpts", "/dev/pts")] {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mount {place}"))?;
    }
    for directory in [
        "/run/lock/iscsi",
        "/run/dbus",
        "/run/udev",
        "/lib/modules",
        "/etc/target",
    ] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
    }
    let release = nix::sys::utsname::uname()
        .context("uname")?
        .release()
        .to_string_lossy()
        .into_owned();
    let modules = format!("/lib/modules/{release}");
    if !Path::new(&modules).exists() {
        symlink(format!("{}{modules}", identity.kernel), &modules).context("link the kernel's modules")?;
    }
    // As systemd does on a host: what mounts inside a pod must be seen outside of it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("make mounts shared")
}

/// eth0 fabric a, eth1 fabric b, eth2 management; `ip -batch` reads all of it in one start.
fn network(identity: &Identity) -> Result<()> {
    use std::fmt::Write as _;
    let mut batch = String::from("link set lo up\n");
    for network in 0..3 {
        let index = identity.index;
        let _ = writeln!(
            batch,
            "addr add 198.18.{network}.{index}/24 dev eth{network}\nlink set eth{network} up"
        );
    }
    programs::output_blocking(&["ip", "-batch", "-"], Path::new("/"), batch.as_bytes()).map(drop)
}

/// What a slow boot is looked up by: the console says when each stage was reached.
fn stage(name: &str) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    console(&format!(
        "{name} at {} s",
        uptime.split(' ').next().unwrap_or_default()
    ));
}

fn say(result: Result<()>) {
    if let Err(error) = result {
        console(&format!("{error:#}"));
    }
}

#[allow(
    clippy::print_stdout,
    reason = "standard output of process 1 is the guest's console"
)]
fn console(text: &str) {
    println!("lab-agent: {text}");
}

#[cfg(test)]
mod tests {
    use super::Identity;

    #[test]
    fn the_command_line_names_the_guest() {
        let line = "console=ttyS0 quiet lab.name=node1 lab.index=2 lab.kernel=/c/k lab.modules=xfs,dm-multipath lab.agent=/x\n";
        let identity = Identity::parse(line).unwrap();
        assert_eq!((identity.name.as_str(), identity.index), ("node1", 2));
        assert_eq!(identity.modules, ["xfs", "dm-multipath"]);
        let error = Identity::parse("lab.name=x lab.index=300 lab.kernel=/ lab.modules=").unwrap_err();
        assert!(format!("{error:#}").starts_with("lab.index"), "{error:#}");
    }
}
