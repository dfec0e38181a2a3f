//! What a failed walk leaves to read: everything that cluster, containers and host say, a file each.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};

use super::{
    cluster,
    settings::{ARRAY, CLUSTER, FABRICS, Settings},
    tool::{self, SHORT},
};
use crate::kube::cluster::NAMESPACE;

/// A file's name, and the program whose output it gets.
type Source = (&'static str, Vec<String>);

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// Programs of the host and of Docker.
fn host() -> Vec<Source> {
    let mut sources: Vec<Source> = [
        ("docker-ps.txt", "docker ps --all --no-trunc"),
        ("dmesg.txt", "dmesg"),
        ("modules.txt", "lsmod"),
        ("mounts.txt", "cat /proc/mounts"),
        ("addresses.txt", "ip -statistics address"),
        ("neighbours.txt", "ip neighbour"),
        ("sessions.txt", "iscsiadm -m session -P 3"),
        ("records.txt", "iscsiadm -m node"),
        ("interfaces.txt", "iscsiadm -m iface"),
        ("dm-table.txt", "dmsetup table"),
        ("dm-status.txt", "dmsetup status"),
        ("dm-info.txt", "dmsetup info -c -o name,uuid,open,suspended"),
        ("loop.txt", "losetup --list"),
        (
            "disks.txt",
            "lsblk --output NAME,KNAME,MAJ:MIN,SIZE,TYPE,MOUNTPOINTS",
        ),
    ]
    .map(|(file, line)| (file, words(line)))
    .into();
    let inspect = |what: &[&str]| {
        words("docker inspect")
            .into_iter()
            .chain(what.iter().map(|&word| word.to_owned()))
            .collect()
    };
    sources.push((
        "array-log.txt",
        words(&format!("docker logs --timestamps {ARRAY}")),
    ));
    sources.push((
        "array-targetcli.txt",
        words(&format!("docker exec {ARRAY} targetcli ls")),
    ));
    sources.push((
        "array-addresses.txt",
        words(&format!("docker exec {ARRAY} ip address")),
    ));
    sources.push(("array.json", inspect(&[ARRAY])));
    sources.push((
        "networks.json",
        inspect(&[FABRICS[0].network, FABRICS[1].network, "kind"]),
    ));
    sources
}

/// kubectl's arguments.
const KUBECTL: [(&str, &str); 4] = [
    (
        "objects.txt",
        "get all,pvc,pv,storageclasses,volumeattachments,csinodes,nodes -A -o wide",
    ),
    (
        "objects.yaml",
        "get pvc,pv,volumeattachments,csinodes,pods -A -o yaml",
    ),
    ("events.txt", "get events -A --sort-by=.lastTimestamp"),
    ("describe.txt", "describe nodes,pods,pvc -A"),
];

/// Writes all of it into a new folder, whose path is the answer.
///
/// # Errors
/// The folder cannot be written; a program that fails is told in its file.
pub async fn collect(settings: &Settings) -> Result<PathBuf> {
    let directory = settings.directory.join(name(SystemTime::now()));
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    for (file, argv) in host() {
        save(&directory, file, &argv).await?;
    }
    if !cluster::exists().await.unwrap_or(false) {
        return Ok(directory);
    }
    let kubeconfig = settings.kubeconfig().to_string_lossy().into_owned();
    let kubectl = |line: &str| {
        // An API server that does not answer is not waited for with each of them.
        let mut argv = words("kubectl --request-timeout=20s --kubeconfig");
        argv.push(kubeconfig.clone());
        argv.extend(words(line));
        argv
    };
    for (file, line) in KUBECTL {
        save(&directory, file, &kubectl(line)).await?;
    }
    let pods = tool::run(&kubectl(&format!("get pods -n {NAMESPACE} -o name")), SHORT).await;
    for pod in pods.unwrap_or_default().lines() {
        let file = format!("{}.log", pod.trim_start_matches("pod/"));
        let line = format!("logs -n {NAMESPACE} {pod} --all-containers --prefix --tail=-1");
        save(&directory, &file, &kubectl(&line)).await?;
    }
    let nodes = directory.join("kind").to_string_lossy().into_owned();
    let argv = ["kind", "export", "logs", "--name", CLUSTER, &nodes].map(str::to_owned);
    save(&directory, "kind-export.txt", &argv).await?;
    Ok(directory)
}

async fn save(directory: &Path, file: &str, argv: &[String]) -> Result<()> {
    let text = match tool::finish(argv, SHORT).await {
        Ok(done) if done.exit == 0 => tool::said(&done),
        Ok(done) => format!("{}\nexit {}", tool::said(&done), done.exit),
        Err(error) => format!("{error:#}"),
    };
    fs::write(directory.join(file), text).with_context(|| format!("write {file}"))
}

/// The folder's name: UTC, so that they sort.
fn name(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::name;

    #[test]
    fn folders_are_named_by_the_time_in_utc() {
        let at = |seconds| name(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_827_696), "20000229-123456");
        assert_eq!(at(1_795_888_145), "20261128-174905");
    }
}
