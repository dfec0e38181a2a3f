//! The faults of `make bench-failover`, made from outside of the node: begun, held, ended.

use std::time::Duration;

use anyhow::Result;

use crate::{guest::Guest, net::Fabric, roles::array};

/// How long a silent fault lasts: longer than the slowest manager's stall (NOP-Out 5/5 and a recovery_tmo of 5). The same for all of them,
/// because iscsid's pauses grow with it.
const HELD: Duration = Duration::from_secs(17);
/// How long the portal is away: nobody has to find out, its connection is reset.
const AWAY: Duration = Duration::from_secs(5);

/// How paths are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Fabric a swallows every packet.
    Silence,
    /// The node's interface on fabric a loses its carrier.
    Carrier,
    /// The array resets the connection over fabric a.
    Reset,
    /// The array takes its portal on fabric a away, with the connection, and puts it back.
    Stop,
    /// Both fabrics swallow every packet; a comes back first.
    Both,
    /// Fabric a swallows every packet, and the path over b is in standby (ALUA): the array must be told to use it.
    Standby,
}

impl Fault {
    /// In a table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Silence => "silent loss of a fabric",
            Self::Carrier => "carrier loss at the node",
            Self::Reset => "TCP reset by the array",
            Self::Stop => "portal stopped and started",
            Self::Both => "both fabrics lost silently, one back",
            Self::Standby => "silent loss, the other path in standby",
        }
    }

    /// None: it is over at once.
    pub(super) fn held(self) -> Option<Duration> {
        match self {
            Self::Reset => None,
            Self::Stop => Some(AWAY),
            Self::Silence | Self::Carrier | Self::Both | Self::Standby => Some(HELD),
        }
    }

    pub(super) async fn begin(self, node: &Guest, target: &Guest) -> Result<()> {
        match self {
            Self::Silence | Self::Standby => node.cut(Fabric::A).await,
            Self::Carrier => node.carrier(Fabric::A, false).await,
            Self::Reset => target.shell(&reset(node, target)).await.map(drop),
            Self::Stop => {
                let script = format!("rmdir {}; {}", portal(target), reset(node, target));
                target.shell(&script).await.map(drop)
            }
            Self::Both => {
                node.cut(Fabric::A).await?;
                node.cut(Fabric::B).await
            }
        }
    }

    /// After it the path over fabric a can be used again.
    pub(super) async fn end(self, node: &Guest, target: &Guest) -> Result<()> {
        match self {
            Self::Silence | Self::Both | Self::Standby => node.heal(Fabric::A).await,
            Self::Carrier => node.carrier(Fabric::A, true).await,
            Self::Reset => Ok(()),
            Self::Stop => target
                .shell(&format!("mkdir -p {}", portal(target)))
                .await
                .map(drop),
        }
    }
}

fn portal(target: &Guest) -> String {
    format!(
        "/sys/kernel/config/target/iscsi/{}/tpgt_1/np/{}:3260",
        array::TARGET,
        target.address(Fabric::A)
    )
}

fn reset(node: &Guest, target: &Guest) -> String {
    format!(
        "ss --kill -tn state established 'src {} sport = :3260 dst {}'",
        target.address(Fabric::A),
        node.address(Fabric::A)
    )
}
