//! What volumes could leave behind in a lab: on every node, and on the array.

use anyhow::Result;

use super::cluster::Cluster;
use crate::roles::{array, inspect};

/// What there was before a suite.
#[derive(Debug)]
pub(super) struct Before {
    nodes: Vec<Vec<String>>,
    array: Vec<String>,
}

impl Before {
    /// Looks at everything.
    pub(super) async fn look(cluster: &Cluster) -> Result<Self> {
        let mut nodes = Vec::new();
        for guest in cluster.lab.nodes() {
            nodes.push(inspect::snapshot(guest).await?);
        }
        Ok(Self {
            nodes,
            array: array::snapshot(cluster.lab.array()).await?,
        })
    }

    /// Fails with what is there now and was not before, and the other way round.
    pub(super) async fn nothing_left(&self, cluster: &Cluster) -> Result<()> {
        self.nothing_left_on_nodes(cluster).await?;
        inspect::same("array", &self.array, &array::snapshot(cluster.lab.array()).await?)
    }

    /// The same, but for the array.
    pub(super) async fn nothing_left_on_nodes(&self, cluster: &Cluster) -> Result<()> {
        for (guest, before) in cluster.lab.nodes().iter().zip(&self.nodes) {
            inspect::same(guest.name(), before, &inspect::snapshot(guest).await?)?;
        }
        Ok(())
    }
}
