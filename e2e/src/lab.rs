//! A lab: an array guest and node guests on two fabrics, booted together.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::{io::AsyncReadExt as _, net::TcpListener};

use crate::{
    agent::{MACHINE, READY_PORT},
    artifacts::Artifacts,
    guest::Guest,
    net,
    qemu::{Disk, Machine, Process},
};

/// A guest must announce itself within this time; seconds are normal, a loaded machine is not an error.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// LIO with file backstores; configfs comes with it. File systems are loaded by the first mount, as on any host.
const ARRAY_MODULES: [&str; 5] = [
    "target_core_mod",
    "target_core_file",
    "target_core_iblock",
    "iscsi_target_mod",
    "virtio_blk",
];
/// What the driver asks a node to have loaded. The initiator's transport and the file systems come by themselves.
const NODE_MODULES: [&str; 4] = ["dm-multipath", "dm-round-robin", "iscsi_tcp", "sd_mod"];

/// What to boot.
#[derive(Debug, Clone)]
pub struct LabSpec {
    /// Name of the run: its results directory.
    pub name: String,
    /// With an array guest.
    pub array: bool,
    /// Number of node guests.
    pub nodes: u8,
    /// Memory of the array guest in MiB.
    pub memory_mib: u32,
    /// Processors of each guest.
    pub processors: u8,
    /// Bytes of the array's sparse disk.
    pub array_disk_bytes: u64,
    /// Memory of each node guest in MiB.
    pub node_memory_mib: u32,
    /// A disk that every node sees as /dev/vda; what they write to it is gone with them.
    pub node_disk: Option<PathBuf>,
    /// Modules that nodes load beside what the driver asks for.
    pub node_modules: Vec<&'static str>,
}

impl LabSpec {
    /// An array and `nodes` node guests of 2 processors and 1 GiB, the array with a sparse disk of 8 GiB.
    #[must_use]
    pub fn new(name: &str, nodes: u8) -> Self {
        Self {
            name: name.to_owned(),
            array: true,
            nodes,
            memory_mib: 1024,
            processors: 2,
            array_disk_bytes: 8 << 30,
            node_memory_mib: 1024,
            node_disk: None,
            node_modules: Vec::new(),
        }
    }
}

/// Directories a lab works with.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where the programs under test and lab-agent are.
    pub programs: PathBuf,
    /// Where results go, one directory per run.
    pub results: PathBuf,
}

impl Places {
    /// Programs beside this one, results in `lab/` of the target directory.
    pub fn beside_this_program() -> Result<Self> {
        let exe = std::env::current_exe().context("find this program")?;
        let programs = exe.parent().context("this program has no directory")?;
        let target = programs.parent().unwrap_or(programs);
        Ok(Self {
            programs: programs.to_owned(),
            results: target.join("lab"),
        })
    }
}

/// A running lab; dropping it takes everything down.
#[derive(Debug)]
pub struct Lab {
    results: PathBuf,
    programs: PathBuf,
    artifacts: Artifacts,
    ready: TcpListener,
    array: Option<Guest>,
    nodes: Vec<Guest>,
    _lock: Flock<fs::File>,
}

impl Lab {
    /// Boots everything `spec` names and returns once every agent answers. Must run inside the lab's namespaces, once
    /// per process.
    pub async fn start(spec: &LabSpec, artifacts: &Artifacts, places: &Places) -> Result<Self> {
        let (results, lock) = results_directory(&places.results, &spec.name)?;
        net::up().await?;
        let ready = TcpListener::bind((MACHINE, READY_PORT))
            .await
            .context("bind the port for ready guests")?;
        let machine = |name: String, index: u8| Machine {
            results: results.join(&name),
            name,
            index,
            memory_mib: spec.node_memory_mib,
            processors: spec.processors,
            modules: NODE_MODULES.iter().chain(&spec.node_modules).copied().collect(),
            disk: spec.node_disk.clone().map(Disk::Shared),
            agent: places.programs.join("lab-agent"),
        };
        let mut machines = Vec::new();
        if spec.array {
            machines.push(Machine {
                memory_mib: spec.memory_mib,
                modules: ARRAY_MODULES.to_vec(),
                disk: Some(Disk::Own(spec.array_disk_bytes)),
                ..machine("array".to_owned(), 1)
            });
        }
        for number in 1..=spec.nodes {
            machines.push(machine(format!("node{number}"), number + 1));
        }

        let mut booting = Vec::new();
        for machine in machines {
            net::attach(&machine.name).await?;
            let process = machine.start(artifacts)?;
            booting.push((machine, process));
        }
        announced(&ready, &mut booting, artifacts).await?;
        let mut guests = booting
            .into_iter()
            .map(|(machine, process)| Guest::new(machine, process))
            .collect::<Result<Vec<_>>>()?;
        let array = spec.array.then(|| guests.remove(0));
        Ok(Self {
            results,
            programs: places.programs.clone(),
            artifacts: artifacts.clone(),
            ready,
            array,
            nodes: guests,
            _lock: lock,
        })
    }

    /// The array's guest.
    ///
    /// # Panics
    /// When the lab was started without one.
    #[must_use]
    pub fn array(&self) -> &Guest {
        self.array.as_ref().expect("this lab has no array")
    }

    /// The node guest `number`, from 0.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn node(&self, number: usize) -> &Guest {
        &self.nodes[number]
    }

    /// All node guests.
    #[must_use]
    pub fn nodes(&self) -> &[Guest] {
        &self.nodes
    }

    /// Path of a program under test, the same on the machine and in every guest.
    #[must_use]
    pub fn program(&self, name: &str) -> String {
        self.programs.join(name).display().to_string()
    }

    /// Results of this run.
    #[must_use]
    pub fn results(&self) -> &Path {
        &self.results
    }

    /// Power loss and power on of a node; returns how long the boot took.
    pub async fn reboot_node(&mut self, number: usize) -> Result<Duration> {
        let start = Instant::now();
        let guest = &mut self.nodes[number];
        guest.crash().await?;
        guest.restart(&self.artifacts)?;
        let wanted = HashSet::from([guest.name().to_owned()]);
        tokio::time::timeout(BOOT_LIMIT, names(&self.ready, wanted))
            .await
            .context("the node did not boot")??;
        Ok(start.elapsed())
    }

    /// Takes the lab down. Results of a passed run are removed, those of a failed one stay, without disks.
    pub async fn stop(mut self, passed: bool) -> Result<()> {
        for guest in self.array.iter_mut().chain(&mut self.nodes) {
            guest.crash().await?;
            net::detach(guest.name()).await?;
            let _ = fs::remove_file(guest.results().join("disk.raw"));
        }
        if passed {
            fs::remove_dir_all(&self.results)
                .with_context(|| format!("remove the results {}", self.results.display()))?;
        }
        Ok(())
    }
}

/// An empty directory for this run; a second run of the same name at the same time gets one of its own.
fn results_directory(base: &Path, name: &str) -> Result<(PathBuf, Flock<fs::File>)> {
    fs::create_dir_all(base).with_context(|| format!("make {}", base.display()))?;
    for number in 1..=64 {
        let name = if number == 1 {
            name.to_owned()
        } else {
            format!("{name}-{number}")
        };
        let lock = fs::File::create(base.join(format!(".{name}.lock"))).context("make the results' lock")?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            continue;
        };
        let path = base.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("empty {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        return Ok((path, lock));
    }
    bail!("64 runs named {name} at once in {}", base.display())
}

/// Waits until every booting guest announced itself; a guest that ends instead is the error.
async fn announced(
    ready: &TcpListener,
    booting: &mut [(Machine, Process)],
    artifacts: &Artifacts,
) -> Result<()> {
    let wanted: HashSet<String> = booting.iter().map(|(machine, _)| machine.name.clone()).collect();
    let deaths = async {
        let mut futures: Vec<_> = booting
            .iter_mut()
            .map(|(machine, process)| Box::pin(Guest::ended_for_good(machine, process, artifacts)))
            .collect();
        std::future::poll_fn(|context| {
            for future in &mut futures {
                if let std::task::Poll::Ready(error) = future.as_mut().poll(context) {
                    return std::task::Poll::Ready(error);
                }
            }
            std::task::Poll::Pending
        })
        .await
    };
    tokio::select! {
        all = tokio::time::timeout(BOOT_LIMIT, names(ready, wanted)) => {
            all.with_context(|| format!("not every guest was up after {BOOT_LIMIT:?}"))?
        }
        error = deaths => Err(error),
    }
}

/// Reads announcements until every wanted guest made its own.
async fn names(ready: &TcpListener, mut wanted: HashSet<String>) -> Result<()> {
    while !wanted.is_empty() {
        let (mut stream, _) = ready.accept().await.context("accept a ready guest")?;
        let mut name = [0; 64];
        let read = stream
            .read(&mut name)
            .await
            .context("read a ready guest's name")?;
        let name = String::from_utf8_lossy(&name[..read]);
        wanted.remove(name.trim());
    }
    Ok(())
}
