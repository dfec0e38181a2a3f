//! The engine alone, over whatever SCSI disks a guest has: builds maps, writes to each, watches them. Behind `lab-maps`, which `make
//! bench-scale` measures; runs no transport, no journal and no CSI.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use storagelink_multipath::{Engine, Hctl, Host, MapSpec, Wwid, scsi_device, wwid::parse_vpd_83};

use crate::writer::block::{Buffer, SIZE};

/// Where device nodes would be made that /dev lacks.
const NODES: &str = "/run/lab-maps";
/// Maps that are built at the same time.
const AT_ONCE: usize = 4;
/// Threads that write.
const WRITERS: usize = 8;
/// Writes to each map: round robin over four paths uses each twice.
const WRITES: u64 = 8;
const BUILT_IN: std::time::Duration = std::time::Duration::from_secs(20);
/// Looks at sysfs by which two machines are compared.
const LOOKS: u32 = 50_000;

/// What came of writing to every map.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Touched {
    /// Maps.
    pub maps: usize,
    /// Failed writes.
    pub errors: usize,
    /// The longest write, in microseconds.
    pub longest_us: u64,
    /// Until the last write to the last map, in microseconds.
    pub took_us: u64,
}

/// What adoption came to.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Adopted {
    /// Maps.
    pub maps: usize,
    /// From the start of the program until all were adopted, in microseconds.
    pub took_us: u64,
}

/// The engine on this host.
#[must_use]
pub fn engine() -> Engine {
    Engine::new(Host::kernel(NODES))
}

/// Builds maps over the disks that name the same identity until there are `count`; how many paths the new ones have.
pub async fn build(count: usize) -> Result<usize> {
    let engine = engine();
    let built = engine.maps().await.context("read the maps")?.len();
    let units = units(engine.host());
    ensure!(
        units.len() >= count,
        "{} LUNs are fewer than {count}",
        units.len()
    );
    let wanted = units
        .into_iter()
        .enumerate()
        .skip(built)
        .take(count.saturating_sub(built));
    stream::iter(wanted)
        .map(async |(number, (wwid, disks))| {
            let mut paths = Vec::new();
            for hctl in disks {
                paths.push(
                    engine
                        .prove(hctl, &wwid, BUILT_IN)
                        .await
                        .context("prove a path")?,
                );
            }
            let spec = MapSpec {
                policy: storagelink_multipath::Policy::default(),
                volume: format!("scale-{number:04}"),
                wwid,
                read_only: false,
            };
            let map = engine.build(spec, paths).await.context("build a map")?;
            Ok(map.paths().count())
        })
        .buffer_unordered(AT_ONCE)
        .try_fold(0, async |sum, paths| Ok(sum + paths))
        .await
}

/// The disks of each logical unit, by its NAA identity.
fn units(host: &Host) -> BTreeMap<Wwid, Vec<Hctl>> {
    let mut units: BTreeMap<Wwid, Vec<Hctl>> = BTreeMap::new();
    let all = host.sysfs.list("class/scsi_device").unwrap_or_default();
    for hctl in all.iter().filter_map(|name| name.parse::<Hctl>().ok()) {
        let page = scsi_device::find(host, &hctl)
            .and_then(|disk| host.scsi.inquiry_vpd(disk.devno, &disk.name, 0x83).ok());
        let found = page.and_then(|page| parse_vpd_83(&page).ok()).unwrap_or_default();
        if let Some(wwid) = found.into_iter().find(|wwid| wwid.as_str().starts_with("naa.")) {
            units.entry(wwid).or_default().push(hctl);
        }
    }
    units
}

/// Writes a few blocks to every map, past the page cache.
pub async fn touch() -> Result<Touched> {
    let maps = engine().maps().await.context("read the maps")?;
    let nodes: Vec<String> = maps
        .iter()
        .map(|map| format!("/dev/{}", map.kernel_name()))
        .collect();
    tokio::task::spawn_blocking(move || write_to(&nodes))
        .await
        .context("the writers")
}

fn write_to(nodes: &[String]) -> Touched {
    let (next, result) = (AtomicUsize::new(0), Mutex::new(Touched::default()));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while let Some(node) = nodes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (errors, longest_us) = write_one(node);
                    let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                    result.maps += 1;
                    result.errors += errors;
                    result.longest_us = result.longest_us.max(longest_us);
                }
            });
        }
    });
    let mut result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.took_us = micros(start);
    result
}

/// Failed writes, and the longest one in microseconds.
fn write_one(node: &str) -> (usize, u64) {
    let direct = nix::fcntl::OFlag::O_DIRECT.bits();
    let Ok(device) = File::options().write(true).custom_flags(direct).open(node) else {
        return (1, 0);
    };
    let buffer = Buffer::default();
    let (mut errors, mut longest) = (0, 0);
    for block in 0..WRITES {
        let start = Instant::now();
        if device.write_all_at(&buffer.0, block * SIZE as u64).is_err() {
            errors += 1;
        }
        longest = longest.max(micros(start));
    }
    (errors, longest)
}

/// Microseconds that [`LOOKS`] looks at sysfs take here, each as the engine looks at a path: where a link leads, and an attribute. The loopback
/// device stands for the disk, which not every machine has. Blocking.
pub fn look() -> Result<u64> {
    let host = Host::kernel(NODES);
    let start = Instant::now();
    for _ in 0..LOOKS {
        host.sysfs.link("class/net/lo").context("follow a link")?;
        host.sysfs
            .read("class/net/lo/operstate")
            .context("read an attribute")?;
    }
    Ok(micros(start))
}

/// Adopts what is there, tells of it, and watches until `stop`.
pub async fn watch(
    start: Instant,
    stop: impl Future<Output = ()> + Send,
    tell: impl FnOnce(Adopted),
) -> Result<()> {
    let engine = engine();
    let maps = engine.adopt().await.context("adopt the maps")?.len();
    tell(Adopted {
        maps,
        took_us: micros(start),
    });
    engine.monitor(stop).await;
    Ok(())
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
