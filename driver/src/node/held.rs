//! What a volume lies on here: a multipath map, or one disk when it was staged without multipathing. Read from the kernel for each operation.

use storagelink_multipath::Map;
use uuid::Uuid;

use super::{Inner, fault::Fault, prepare::Disk, single::Single, view};
use crate::mount::MountError;

/// What a volume lies on.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// With multipathing.
    Map(Box<Map>),
    /// Without.
    Single(Single),
}

impl Held {
    /// Writes are refused.
    pub(super) fn read_only(&self) -> bool {
        match self {
            Self::Map(map) => map.read_only,
            Self::Single(single) => single.read_only(),
        }
    }

    /// I/O goes through now.
    pub(super) fn is_usable(&self) -> bool {
        match self {
            Self::Map(map) => !map.suspended && map.has_usable_path(),
            Self::Single(single) => single.state() == "running",
        }
    }

    /// An unmount would sleep until a path is back.
    pub(super) fn would_wait(&self) -> bool {
        match self {
            Self::Map(map) => map.queue_if_no_path && !map.has_usable_path(),
            Self::Single(single) => single.is_blocked(),
        }
    }

    /// Size in bytes; 0 when it is gone.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Map(map) => map.size_bytes,
            Self::Single(single) => single.disk.as_ref().map_or(0, |disk| disk.size_bytes),
        }
    }

    /// With multipathing.
    pub(super) fn is_multipath(&self) -> bool {
        matches!(self, Self::Map(_))
    }
}

impl Inner {
    /// What the volume lies on; `None` when it is not here.
    pub(super) async fn held(&self, volume: Uuid) -> Result<Option<Held>, Fault> {
        let map = self.engine.find_by_volume(&volume.to_string()).await;
        if let Some(map) = map.map_err(Fault::view)? {
            return Ok(Some(Held::Map(Box::new(map))));
        }
        Ok(self.single(volume).await?.map(Held::Single))
    }

    /// Its disk, with a node to open it by.
    pub(super) async fn disk(&self, volume: Uuid, held: &Held) -> Result<Disk, MountError> {
        let single = match held {
            Held::Map(map) => return view::disk(&self.host, map).await,
            Held::Single(single) => single,
        };
        let map = self.host.names.map_name(&volume.to_string());
        let (block, devno, name) = (self.host.block.clone(), single.devno, map.clone());
        let node = view::node(&map, move || block.own_node(devno, &name)).await?;
        Ok(Disk {
            devno,
            name: single.name(),
            map,
            node,
            size: held.size_bytes(),
        })
    }
}
