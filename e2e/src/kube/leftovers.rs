//! What volumes could leave behind: on the workers, on the array, in the API server.

use std::time::Duration;

use anyhow::Result;

use super::{cluster::Cluster, worker, writers};
use crate::{
    roles::{array, inspect},
    wait,
};

/// What there was before a suite.
#[derive(Debug)]
pub struct Before {
    nodes: Vec<Vec<String>>,
    array: Vec<String>,
}

impl Before {
    /// Looks at everything.
    pub async fn look(cluster: &Cluster) -> Result<Self> {
        let mut nodes = Vec::new();
        for guest in cluster.lab.nodes() {
            nodes.push(worker::snapshot(guest).await?);
        }
        Ok(Self {
            nodes,
            array: array::snapshot(cluster.lab.array()).await?,
        })
    }

    /// Fails with what is there now and was not before, once volumes and attachments are gone from the cluster.
    pub async fn nothing_left(&self, cluster: &Cluster) -> Result<()> {
        writers::no_volumes(cluster).await?;
        // A session that ends by itself is looked for every 30 s.
        wait::until("nothing is left", Duration::from_secs(90), async || {
            let now = Self::look(cluster).await?;
            for (guest, (before, after)) in cluster.lab.nodes().iter().zip(self.nodes.iter().zip(&now.nodes))
            {
                inspect::same(guest.name(), before, after)?;
            }
            inspect::same("array", &self.array, &now.array)?;
            Ok(true)
        })
        .await
        .map(drop)
    }
}
