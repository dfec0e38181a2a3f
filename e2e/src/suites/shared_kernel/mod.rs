//! Two nodes that are containers of one kernel, as in kind: network namespaces of their own with no way to any fabric, iscsid in the first one,
//! one of them without the kernel's /dev. A third plugin, which knows of no other, runs beside them all the time.

mod instance;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use storagelink_proto::csi::v1::{CapacityRange, CreateVolumeRequest};

use super::{
    cluster::{Cluster, Form, limited, refused},
    volume::Volume,
};
use crate::{
    guest::Guest,
    net::Fabric,
    report::{Report, seconds},
    roles::{array, inspect, writer::Writer},
    wait,
};
use instance::{Dev, HOST_NETWORK, Instance, shared_block};

const SIZE: i64 = 256 << 20;
/// The guest of both, with udev.
const NODE: usize = 1;
/// Blocks of 4 KiB after which the second writer's begin.
const APART: u64 = 16_384;
/// How long a fabric stays cut.
const CUT: Duration = Duration::from_secs(8);
/// The longest write when a fabric is silent. The session's own timers (2 s, then the target's retries) are not waited for.
const STALL: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the steps in order; the first that fails ends the suite. Its plugins and namespaces are gone at the end.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = snapshot(guest).await?;
    let outcome = steps(report, cluster, &before).await;
    let end = "for n in n1 n2; do ip netns del $n 2>/dev/null || true; rm -rf /var/lib/storagelink-csi-$n /var/lib/kubelet-$n; done; \
               umount /run/netns/host && rm /run/netns/host";
    for name in ["csi-node-n1", "csi-node-n2"] {
        // One that did not start, or has ended, is no further error.
        if guest.kill(name, 9).await.is_ok() {
            drop(guest.wait(name, LIMIT).await);
        }
    }
    let ended = guest.shell(end).await.map(drop);
    outcome.and(ended)
}

async fn steps(report: &Report, cluster: &Cluster, before: &[Vec<String>; 2]) -> Result<()> {
    let guest = cluster.guest(NODE);
    let (mut one, two) = report
        .step(
            "two nodes on one kernel, in networks without any fabric, have initiator names of their own",
            start(cluster, guest),
        )
        .await?;
    let array = array::snapshot(cluster.lab.array()).await?;
    let volume = create(cluster).await?;
    report
        .step(
            "both stage one raw block volume at once: two maps, each over two sessions of its own",
            both_stage(cluster, guest, [&one, &two], &volume),
        )
        .await?;
    report
        .step(
            "what is written through one is read through the other",
            read_across(guest, [one.target(&volume), two.target(&volume)]),
        )
        .await?;
    let writers = [
        Writer::start(&cluster.lab, guest, "shared-n1", &one.target(&volume), "direct").await?,
        Writer::start_at(&cluster.lab, guest, "shared-n2", &two.target(&volume), APART).await?,
    ];
    report
        .step(
            "a fabric is cut silently: both go on over the other one, and both have their paths back",
            cut(cluster, guest, [&one, &two], &writers),
        )
        .await?;
    report
        .step(
            "a cable is pulled: both give the path up for its carrier",
            pull(cluster, guest, [&one, &two], &volume),
        )
        .await?;
    report
        .step(
            "one plugin is killed: its successor has its own map and no other",
            restart(cluster, guest, &mut one, &two, &volume),
        )
        .await?;
    let stall = report
        .step(
            "one node unstages: the other's map, sessions and I/O are untouched",
            unstage_one(cluster, guest, [&one, &two], &volume, &writers),
        )
        .await?;
    report.say(format!(
        "      longest writes {} and {}",
        seconds(stall[0]),
        seconds(stall[1])
    ));
    report
        .step(
            "the other unstages: nothing is left in kernel, open-iscsi's database and array",
            async {
                two.take_down(cluster, guest, &volume).await?;
                cluster.delete(&volume).await?;
                for (before, after) in before.iter().zip(&snapshot(guest).await?) {
                    inspect::same("the guest", before, after)?;
                }
                for node in [&one, &two] {
                    let left = guest
                        .exec(&["find", &format!("{}/dev", node.state()), "-mindepth", "1"])
                        .await?;
                    ensure!(left.is_empty(), "{}: {left}", node.name);
                }
                inspect::same("array", &array, &array::snapshot(cluster.lab.array()).await?)
            },
        )
        .await
}

async fn start(cluster: &Cluster, guest: &Guest) -> Result<(Instance, Instance)> {
    guest.exec(&["ip", "netns", "attach", "host", "1"]).await?;
    let handles = guest
        .exec(&["stat", "-c", "%i", "-L", HOST_NETWORK, "/proc/1/ns/net"])
        .await?;
    let mut handles = handles.lines();
    ensure!(
        handles.next() == handles.next(),
        "{HOST_NETWORK} is not the first network namespace"
    );
    let one = Instance::start(cluster, guest, "n1", Dev::Host).await?;
    let two = Instance::start(cluster, guest, "n2", Dev::Private).await?;
    let host = guest.read("/etc/iscsi/initiatorname.iscsi").await?;
    let host = host
        .trim()
        .strip_prefix("InitiatorName=")
        .context("a name")?
        .to_owned();
    for node in [&one, &two] {
        let wanted = format!("{host}:{}", node.name);
        ensure!(node.initiator() == wanted, "{} is not {wanted}", node.id);
        let network = format!("--net=/run/netns/{}", node.name);
        let routes = guest.exec(&["nsenter", &network, "ip", "route"]).await?;
        ensure!(routes.is_empty(), "{} has routes: {routes}", node.name);
    }
    // A path that is no namespace is refused by the flag's name.
    let program = cluster.lab.program("storagelink-csi");
    let argv = [
        &program,
        "node",
        "--endpoint",
        "unix:///run/storagelink/none.sock",
        "--node-name",
        "n3",
        "--state-dir",
        "/run/none",
        "--iscsi-netns",
        "/etc/hosts",
    ];
    let done = guest.run(&argv, &[], LIMIT).await?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(
        done.exit != 0 && said.contains("--iscsi-netns: /etc/hosts: is not a network namespace"),
        "{said}"
    );
    Ok((one, two))
}

async fn create(cluster: &Cluster) -> Result<Volume> {
    let request = CreateVolumeRequest {
        name: "shared-kernel".to_owned(),
        capacity_range: Some(CapacityRange {
            required_bytes: SIZE,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![shared_block()],
        parameters: cluster.parameters(),
        ..CreateVolumeRequest::default()
    };
    let answer = cluster.controller().create_volume(limited(request)).await;
    let volume = answer.map_err(refused("CreateVolume"))?.into_inner().volume;
    Ok(Volume::new(volume.unwrap_or_default(), Form::Block))
}

/// The sessions of an initiator name, as `session<number>` in the kernel.
async fn sessions(guest: &Guest, initiator: &str) -> Result<Vec<String>> {
    let script =
        "shopt -s nullglob; for s in /sys/class/iscsi_session/*; do echo ${s##*/} $(<$s/initiatorname); done";
    let all = guest.shell(script).await?;
    let of = |line: &str| {
        let (session, name) = line.split_once(' ')?;
        (name == initiator).then(|| session.to_owned())
    };
    Ok(all.lines().filter_map(of).collect())
}

async fn both_stage(cluster: &Cluster, guest: &Guest, nodes: [&Instance; 2], volume: &Volume) -> Result<()> {
    let (one, two) = tokio::join!(
        nodes[0].bring_up(cluster, guest, volume),
        nodes[1].bring_up(cluster, guest, volume)
    );
    one?;
    two?;
    let mut disks = Vec::new();
    for node in nodes {
        // The second path may come a moment later.
        wait::until("both paths", LIMIT, async || {
            Ok(node.usable(cluster, guest).await? == 2)
        })
        .await?;
        let paths = inspect::paths(guest, &node.map(volume)).await?;
        ensure!(
            paths.len() == 2 && paths[0].portal != paths[1].portal,
            "{}: {paths:?}",
            node.name
        );
        disks.extend(paths.into_iter().map(|path| path.disk));
        let sessions = sessions(guest, node.initiator()).await?;
        ensure!(sessions.len() == 2, "{}: {sessions:?}", node.name);
    }
    disks.sort();
    disks.dedup();
    ensure!(disks.len() == 4, "they share disks: {disks:?}");
    // The array's side: each initiator is one of its own.
    let acls = format!("/sys/kernel/config/target/iscsi/{}/tpgt_*/acls", array::TARGET);
    for node in nodes {
        let script = format!("grep -l LOGGED_IN {acls}/{}/info", node.initiator());
        cluster
            .lab
            .array()
            .shell(&script)
            .await
            .with_context(|| format!("the array sees no {}", node.id))?;
    }
    Ok(())
}

async fn read_across(guest: &Guest, targets: [String; 2]) -> Result<()> {
    let [one, two] = targets;
    for (from, to, seek) in [(&one, &two, 0), (&two, &one, 64)] {
        let script = format!(
            "head -c 65536 /dev/urandom > /run/shared-kernel; \
             dd if=/run/shared-kernel of={from} bs=64k seek={seek} oflag=direct conv=notrunc status=none; \
             dd if={to} bs=64k skip={seek} count=1 iflag=direct status=none | cmp - /run/shared-kernel; rm /run/shared-kernel"
        );
        guest.shell(&script).await?;
    }
    Ok(())
}

/// Waits until both writers have written so much more.
async fn go_on(guest: &Guest, writers: &[Writer; 2]) -> Result<()> {
    for writer in writers {
        let before = writer.acknowledged(guest).await?.len();
        wait::until("writes go on", LIMIT, async || {
            Ok(writer.acknowledged(guest).await?.len() > before + 50)
        })
        .await?;
    }
    Ok(())
}

async fn both_usable(cluster: &Cluster, guest: &Guest, nodes: [&Instance; 2], count: usize) -> Result<()> {
    for node in nodes {
        wait::until(
            &format!("{count} usable paths of {}", node.name),
            LIMIT,
            async || Ok(node.usable(cluster, guest).await? == count),
        )
        .await?;
    }
    Ok(())
}

async fn cut(cluster: &Cluster, guest: &Guest, nodes: [&Instance; 2], writers: &[Writer; 2]) -> Result<()> {
    go_on(guest, writers).await?;
    guest.cut(Fabric::A).await?;
    let during = async {
        tokio::time::sleep(CUT).await;
        both_usable(cluster, guest, nodes, 1).await?;
        go_on(guest, writers).await
    };
    let during = during.await;
    guest.heal(Fabric::A).await?;
    during?;
    for node in nodes {
        // Each found its own connection dead, by looking into the network of iscsid.
        let log = guest.log(&node.process())?;
        ensure!(
            log.contains("the portal does not answer: its connection is ended"),
            "{}: {log}",
            node.name
        );
    }
    both_usable(cluster, guest, nodes, 2).await?;
    go_on(guest, writers).await
}

async fn pull(cluster: &Cluster, guest: &Guest, nodes: [&Instance; 2], volume: &Volume) -> Result<()> {
    guest.carrier(Fabric::B, false).await?;
    let program = cluster.lab.program("mpathutil");
    let told = async {
        for node in nodes {
            let state = node.state();
            let argv = [
                &program,
                "--node",
                node.name,
                "--state-dir",
                &state,
                "explain",
                &volume.id,
            ];
            wait::until(&format!("{} says why", node.name), LIMIT, async || {
                Ok(guest
                    .exec(&argv)
                    .await?
                    .contains("its interface lost its carrier"))
            })
            .await?;
        }
        Ok(())
    };
    let told = told.await;
    guest.carrier(Fabric::B, true).await?;
    told.and(both_usable(cluster, guest, nodes, 2).await)
}

/// A map's number, table and paths' disks.
async fn identity(guest: &Guest, map: &str) -> Result<(String, Vec<String>)> {
    let script = format!(
        "for d in /sys/block/dm-*; do if [ $(<$d/dm/name) = {map} ]; then cat $d/dev $d/dm/uuid; fi; done"
    );
    let paths = inspect::paths(guest, map).await?;
    Ok((
        guest.shell(&script).await?,
        paths.into_iter().map(|path| path.disk).collect(),
    ))
}

async fn restart(
    cluster: &Cluster,
    guest: &Guest,
    one: &mut Instance,
    two: &Instance,
    volume: &Volume,
) -> Result<()> {
    let before = (
        identity(guest, &one.map(volume)).await?,
        identity(guest, &two.map(volume)).await?,
    );
    one.kill(guest).await?;
    one.spawn(cluster, guest).await?;
    let context = one.bring_up(cluster, guest, volume).await?;
    one.stage(volume, &context).await?;
    let after = (
        identity(guest, &one.map(volume)).await?,
        identity(guest, &two.map(volume)).await?,
    );
    ensure!(before == after, "the maps changed: {before:?} {after:?}");
    for node in [&*one, two] {
        let shown = node.shown(cluster, guest).await?;
        let names: Vec<_> = shown
            .iter()
            .map(|map| map["name"].as_str().unwrap_or_default())
            .collect();
        ensure!(
            names == [node.map(volume)],
            "mpathutil --node {} shows {names:?}",
            node.name
        );
        let told = guest.exec(&["ls", &format!("{}/told", node.state())]).await?;
        ensure!(told.lines().count() == 1, "{} tells of {told}", node.name);
    }
    // The plugin that knows of no other node.
    let alone = guest.exec(&[&cluster.lab.program("mpathutil"), "list"]).await?;
    ensure!(
        !alone.contains(&volume.map().replace("storagelink-", "")),
        "{alone}"
    );
    Ok(())
}

/// The longest write of each.
async fn unstage_one(
    cluster: &Cluster,
    guest: &Guest,
    nodes: [&Instance; 2],
    volume: &Volume,
    writers: &[Writer; 2],
) -> Result<[Duration; 2]> {
    let [one, two] = nodes;
    let first = writers[0].stop(guest, LIMIT).await?;
    ensure!(first.errors == 0, "{first:?}");
    let before = (
        identity(guest, &two.map(volume)).await?,
        sessions(guest, two.initiator()).await?,
    );
    one.take_down(cluster, guest, volume).await?;
    let after = (
        identity(guest, &two.map(volume)).await?,
        sessions(guest, two.initiator()).await?,
    );
    ensure!(before == after, "{} changed: {before:?} {after:?}", two.name);
    ensure!(
        inspect::paths(guest, &one.map(volume)).await?.is_empty(),
        "its map is left"
    );
    ensure!(
        sessions(guest, one.initiator()).await?.is_empty(),
        "its sessions are left"
    );
    let find = "find /etc/iscsi /var/lib/iscsi -name '*storagelink-n*' 2>/dev/null || true";
    let database = guest.shell(find).await?;
    ensure!(
        !database.contains("storagelink-n1") && database.contains("ifaces/storagelink-n2"),
        "open-iscsi's database has {database}"
    );
    let written = writers[1].acknowledged(guest).await?.len();
    wait::until("the other is still written", LIMIT, async || {
        Ok(writers[1].acknowledged(guest).await?.len() > written + 50)
    })
    .await?;
    let second = writers[1].stop(guest, LIMIT).await?;
    ensure!(second.errors == 0, "{second:?}");
    // All that was acknowledged through either is there, read through the one that is left.
    writers[1].verify(guest, None).await?;
    writers[0].verify(guest, Some(&two.target(volume))).await?;
    let longest = [first, second].map(|summary| Duration::from_micros(summary.longest_us));
    ensure!(
        longest.iter().all(|longest| *longest < STALL),
        "a write took {longest:?}"
    );
    Ok(longest)
}

/// What volumes leave on a node, and everything of open-iscsi's database and of both nodes.
async fn snapshot(guest: &Guest) -> Result<[Vec<String>; 2]> {
    let script = "find /etc/iscsi /var/lib/iscsi -mindepth 2 2>/dev/null || true; \
                  find /var/lib/kubelet-n1 /var/lib/kubelet-n2 -mindepth 1 2>/dev/null || true";
    let text = guest.shell(script).await?;
    let mut files: Vec<String> = text.lines().map(str::to_owned).collect();
    files.sort();
    Ok([inspect::snapshot(guest).await?, files])
}
