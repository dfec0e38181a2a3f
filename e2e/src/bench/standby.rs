//! The round of `make bench-failover` in which the other path is in standby: whoever manages the map must tell the array to use it.
//!
//! The paths' states are set by the array before each round; who carries is read from the disks' counters.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};

use super::{
    failover::{BACK, CARRIED, NODE, OURS, PACE, Round, Subject, longest_since},
    fault::Fault,
};
use crate::{
    net::Fabric,
    roles::{
        inspect, node,
        port_groups::{self, FIRST, PortGroups, SECOND, State},
        writer::Writer,
    },
    suites::cluster::Cluster,
    wait,
};

/// How long only one path must have carried before it counts as the one that is used.
const SETTLED: Duration = Duration::from_secs(1);
/// Time to come to that: three times the longest interval at which multipathd looks at a path, 20 s.
const SETTLE: Duration = Duration::from_secs(60);

/// The LUN with a path in each of two port groups.
pub(super) struct Standby {
    groups: PortGroups,
    context: HashMap<String, String>,
}

impl Standby {
    /// Made when the pass needs it.
    pub(super) async fn make_for(
        pass: &[Fault],
        cluster: &Cluster,
        context: &HashMap<String, String>,
    ) -> Result<Option<Self>> {
        if !pass.contains(&Fault::Standby) {
            return Ok(None);
        }
        let target = cluster.lab.array();
        let groups = PortGroups::make(target, context, &node::initiator(cluster.guest(NODE))).await?;
        let mut context = context.clone();
        context.insert("portals".to_owned(), port_groups::context_portals(target));
        let standby = Self { groups, context };
        standby.first_optimized(cluster).await?;
        Ok(Some(standby))
    }

    /// The publish context that leads to both groups.
    pub(super) fn context(&self) -> &HashMap<String, String> {
        &self.context
    }

    /// After the map is gone.
    pub(super) async fn remove(&self, cluster: &Cluster) -> Result<()> {
        self.groups.remove(cluster.lab.array()).await
    }

    /// The path of the first group is the better one, as the array says.
    pub(super) async fn first_optimized(&self, cluster: &Cluster) -> Result<()> {
        let target = cluster.lab.array();
        self.groups.set(target, FIRST, State::Optimized).await?;
        self.groups.set(target, SECOND, State::Standby).await
    }

    /// From the first path used alone to the second one, which the array was told to use. No figure where a peer does not come to the former.
    pub(super) async fn round(&self, subject: &Subject<'_>, name: &str) -> Result<Round> {
        let cluster = subject.cluster;
        let (guest, target) = (cluster.guest(NODE), cluster.lab.array());
        let writer = Writer::start_paced(&cluster.lab, guest, name, &subject.device, PACE).await?;
        let settled = wait::until("the optimized path alone carries", SETTLE, async || {
            let before = inspect::paths(guest, &subject.map).await?;
            tokio::time::sleep(SETTLED).await;
            let (first, other) = self.requests(subject, &before).await?;
            ensure!(first >= CARRIED && other == 0, "{first} and {other} requests");
            Ok(true)
        })
        .await;
        if let Err(error) = settled {
            ensure!(subject.manager != OURS, "{error:#}");
            writer.stop(guest, BACK).await?;
            return Ok(Round::default());
        }
        let earlier = writer.acknowledged(guest).await?.len();
        Fault::Standby.begin(guest, target).await?;
        if let Some(held) = Fault::Standby.held() {
            tokio::time::sleep(held).await;
        }
        Fault::Standby.end(guest, target).await?;
        let stopped = writer.acknowledged(guest).await?.len();
        wait::until("writes go on", BACK, async || {
            Ok(writer.acknowledged(guest).await?.len() > stopped + 20)
        })
        .await?;
        let longest = longest_since(&writer, guest, earlier).await?;
        let summary = writer.stop(guest, BACK).await?;
        ensure!(summary.errors == 0, "{summary:?}");
        Ok(Round {
            stall: Some(longest),
            back: None,
            after_session: None,
        })
    }

    /// Requests since `before` over the path of the first group, and over the other one.
    async fn requests(&self, subject: &Subject<'_>, before: &[inspect::Path]) -> Result<(u64, u64)> {
        let cluster = subject.cluster;
        let first = cluster.lab.array().address(Fabric::A);
        let now = inspect::paths(cluster.guest(NODE), &subject.map).await?;
        let shares = inspect::shares(before, &now);
        let of = |wanted: bool| -> u64 {
            let paths = shares
                .iter()
                .filter(|(path, _, _)| (path.portal == first) == wanted);
            paths.map(|(_, requests, _)| requests).sum()
        };
        Ok((of(true), of(false)))
    }
}
