//! A SAN made by hand, with targetcli, iscsiadm and dmsetup: shows that fabrics, array, counters and writer tell the truth
//! before anything of the product is believed. Part of `lab check`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::Lab,
    net::Fabric,
    report::{Report, seconds},
    roles::{array, inspect, node, writer::Writer},
    wait,
};

const MAP: &str = "byhand";

/// One LUN, two portals, two sessions, a round-robin map; a fabric cut and healed under the writer; bytes spoilt.
pub(crate) async fn steps(report: &Report, lab: &Lab) -> Result<()> {
    let (target, guest) = (lab.array(), lab.node(0));
    report
        .step("a LUN with two portals, by targetcli", lun(lab))
        .await?;
    report
        .step(
            "two sessions and a round-robin map, by iscsiadm and dmsetup",
            async {
                let initiator = node::prepare(guest, false).await?;
                target
                    .shell(&format!(
                        "targetcli /iscsi/{}/tpg1/acls create {initiator}",
                        array::TARGET
                    ))
                    .await?;
                sessions_and_map(lab).await
            },
        )
        .await?;
    let writer = report
        .step("both paths carry about half of the requests", async {
            let device = guest
                .shell(&format!(
                    "grep -l '^{MAP}$' /sys/block/dm-*/dm/name | cut -d/ -f4"
                ))
                .await?;
            let before = inspect::paths(guest, MAP).await?;
            let writer = Writer::start(lab, guest, "writer", &format!("/dev/{device}"), "direct").await?;
            requests(lab, &before, 500).await?;
            let shares = inspect::shares(&before, &inspect::paths(guest, MAP).await?);
            ensure!(
                shares.len() == 2 && shares.iter().all(|(_, _, share)| (40.0..60.0).contains(share)),
                "{shares:?}"
            );
            Ok(writer)
        })
        .await?;
    report
        .step(
            "a silent cut moves all to the other path, a heal brings it back",
            async {
                guest.cut(Fabric::A).await?;
                // noop 1/1 and replacement 1: the session is given up within 3 s and the map goes on.
                let count = writer.acknowledged(guest).await?.len();
                wait::until("writes over fabric b", Duration::from_secs(20), async || {
                    Ok(writer.acknowledged(guest).await?.len() > count + 200)
                })
                .await?;
                guest.heal(Fabric::A).await?;
                wait::until("the session over fabric a", Duration::from_secs(30), async || {
                    Ok(inspect::paths(guest, MAP)
                        .await?
                        .iter()
                        .all(|path| path.state == "running"))
                })
                .await
            },
        )
        .await?;
    let summary = report
        .step(
            "no error reached the writer, everything acknowledged is there",
            async {
                let summary = writer.stop(guest, Duration::from_secs(30)).await?;
                ensure!(summary.errors == 0, "{summary:?}");
                ensure!(summary.longest_us > 500_000, "the cut was not felt: {summary:?}");
                writer.verify(guest, None).await?;
                Ok(summary)
            },
        )
        .await?;
    report.note(format!(
        "{} writes, the longest {}",
        summary.writes,
        seconds(Duration::from_micros(summary.longest_us))
    ));
    report
        .step("spoilt bytes on the array are found", async {
            guest.exec(&["dmsetup", "remove", MAP]).await?;
            target
                .shell(&format!(
                    "printf spoilt | dd of={}/lun0 bs=1 seek=5000 conv=notrunc status=none",
                    array::AGGREGATE
                ))
                .await?;
            let disk = guest
                .shell("ls -d /sys/block/sd* | head -1 | cut -d/ -f4")
                .await?;
            let verdict = writer.verify(guest, Some(&format!("/dev/{disk}"))).await;
            let text = verdict.err().context("it was not found")?.to_string();
            ensure!(text.contains("block 1 is torn"), "{text}");
            guest
                .exec(&["iscsiadm", "-m", "node", "--logout"])
                .await
                .map(drop)
        })
        .await
}

async fn lun(lab: &Lab) -> Result<()> {
    let guest = lab.array();
    array::prepare(guest).await?;
    let (name, aggregate) = (array::TARGET, array::AGGREGATE);
    let portal = |fabric| format!("/iscsi/{name}/tpg1/portals create {} 3260", guest.address(fabric));
    let commands = [
        format!("/backstores/fileio create lun0 {aggregate}/lun0 256M write_back=false"),
        format!("/iscsi create {name}"),
        format!("/iscsi/{name}/tpg1/luns create /backstores/fileio/lun0"),
        format!("/iscsi/{name}/tpg1/portals delete 0.0.0.0 3260"),
        portal(Fabric::A),
        portal(Fabric::B),
    ];
    guest
        .exec_with(&["targetcli"], commands.join("\n").as_bytes())
        .await
        .map(drop)
}

async fn sessions_and_map(lab: &Lab) -> Result<()> {
    let guest = lab.node(0);
    let portal = lab.array().address(Fabric::A);
    guest
        .shell(&format!(
            "iscsiadm -m discovery -t sendtargets -p {portal}; \
             for s in node.session.timeo.replacement_timeout node.conn[0].timeo.noop_out_interval \
                      node.conn[0].timeo.noop_out_timeout; do iscsiadm -m node -o update -n $s -v 1; done; \
             iscsiadm -m node --login"
        ))
        .await?;
    wait::until("two disks", Duration::from_secs(10), async || {
        Ok(guest.shell("ls -d /sys/block/sd* | wc -l").await? == "2")
    })
    .await?;
    guest
        .shell(&format!(
            r#"set -- $(cat /sys/block/sd*/dev); size=$(cat $(ls -d /sys/block/sd* | head -1)/size)
echo "0 $size multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $1 1 $2 1" | dmsetup create {MAP}"#
        ))
        .await
        .map(drop)
}

async fn requests(lab: &Lab, before: &[inspect::Path], count: u64) -> Result<Duration> {
    wait::until(
        &format!("{count} requests"),
        Duration::from_secs(30),
        async || {
            let shares = inspect::shares(before, &inspect::paths(lab.node(0), MAP).await?);
            Ok(shares.iter().map(|(_, requests, _)| requests).sum::<u64>() >= count)
        },
    )
    .await
}
