//! One QEMU process: its command line and its life.
//!
//! Always tcg: the stock kernel hangs in the nested KVM of small cloud machines. Several threads need QEMU 8.1 (older ones
//! race between translating and patching code).

use std::{collections::HashMap, fs, path::PathBuf, process::ExitStatus};

use anyhow::{Context as _, Result};
use tokio::process::Child;

use crate::{artifacts::Artifacts, net::Fabric, programs};

/// The disk /dev/vda of a guest.
#[derive(Debug, Clone)]
pub enum Disk {
    /// A sparse one of so many bytes, empty at power on for the first time.
    Own(u64),
    /// This file, which others boot with too: what the guest writes is gone with it.
    Shared(PathBuf),
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Guest name: lower-case letters and digits, at most 12.
    pub name: String,
    /// Last byte of its addresses, 1 to 253.
    pub index: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Its processors.
    pub processors: u8,
    /// Modules loaded before the agent serves.
    pub modules: Vec<&'static str>,
    /// Its disk; none without.
    pub disk: Option<Disk>,
    /// Directory of this guest's console, logs, monitor and disk.
    pub results: PathBuf,
    /// The lab-agent program.
    pub agent: PathBuf,
}

impl Machine {
    /// The guest's console, as the kernel and process 1 wrote it.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.results.join("console.log")
    }

    /// The monitor's socket.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.results.join("qmp")
    }

    /// The file of a disk of its own.
    #[must_use]
    pub fn disk_file(&self) -> PathBuf {
        self.results.join("disk.raw")
    }

    fn argv(&self, artifacts: &Artifacts) -> Vec<String> {
        // A processor without AVX: emulating it, and saving its registers at every switch, makes starting a pod a third dearer.
        let mut argv: Vec<String> =
            "qemu-system-x86_64 -M pc -accel tcg,thread=multi,tb-size=2000 -cpu Westmere,+rdrand -nodefaults \
                                     -display none -no-reboot"
                .split_whitespace()
                .map(str::to_owned)
                .collect();
        let mut add = |option: &str, value: String| argv.extend([option.to_owned(), value]);
        // Hardening costs an emulated processor more than a real one, and shows nothing here. On a busy machine the emulated timer ticks late, and
        // the kernel's check of it at boot would panic.
        let append = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off init_on_alloc=0 hardened_usercopy=off apparmor=0 audit=0 net.ifnames=0 lab.name={} lab.index={} lab.kernel={} \
             lab.modules={} lab.agent={}",
            self.name,
            self.index,
            artifacts.kernel.display(),
            self.modules.join(","),
            self.agent.display()
        );
        add("-m", self.memory_mib.to_string());
        add("-smp", self.processors.to_string());
        add("-kernel", artifacts.vmlinux.display().to_string());
        add("-initrd", artifacts.initramfs.display().to_string());
        add("-append", append);
        add(
            "-virtfs",
            "local,path=/,security_model=none,mount_tag=root,readonly=on,multidevs=remap".to_owned(),
        );
        let results = self.results.display();
        add(
            "-virtfs",
            format!("local,path={results},security_model=none,mount_tag=lab,multidevs=remap"),
        );
        for fabric in Fabric::ALL {
            let (number, tap) = (fabric.number(), fabric.tap(&self.name));
            add(
                "-netdev",
                format!("tap,id=net{number},ifname={tap},script=no,downscript=no"),
            );
            // A locally administered address: unique by network and guest. romfile= saves the seconds of iPXE.
            let mac = format!("52:54:00:00:{number:02x}:{:02x}", self.index);
            add(
                "-device",
                format!("virtio-net-pci,romfile=,netdev=net{number},mac={mac}"),
            );
        }
        let drive = match &self.disk {
            Some(Disk::Own(_)) => Some((self.disk_file(), "")),
            Some(Disk::Shared(file)) => Some((file.clone(), ",snapshot=on")),
            None => None,
        };
        if let Some((file, more)) = drive {
            let file = file.display();
            add(
                "-drive",
                format!("file={file},format=raw,if=none,id=disk,cache=unsafe{more}"),
            );
            add("-device", "virtio-blk-pci,drive=disk".to_owned());
        }
        add(
            "-qmp",
            format!("unix:{},server=on,wait=off", self.monitor().display()),
        );
        add("-serial", format!("file:{}", self.console().display()));
        argv
    }

    /// Starts the guest.
    pub fn start(&self, artifacts: &Artifacts) -> Result<Process> {
        fs::create_dir_all(&self.results).with_context(|| format!("make {}", self.results.display()))?;
        if let Some(Disk::Own(bytes)) = self.disk {
            let disk = fs::File::create(self.disk_file()).context("make the disk")?;
            disk.set_len(bytes).context("size the disk")?;
        }
        let log = fs::File::create(self.results.join("qemu.log")).context("make qemu.log")?;
        let child = programs::background(&self.argv(artifacts), &HashMap::new(), log, false)
            .context("start qemu-system-x86_64")?;
        Ok(Process { child })
    }
}

/// A running QEMU; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Waits until QEMU ended.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.context("wait for QEMU")
    }

    /// The node loses power.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill QEMU")
    }
}
