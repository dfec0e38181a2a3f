//! The Linux kernel target (LIO) as an array: one iSCSI target per system, volumes in reflink aggregates.
//!
//! The records are the truth and lie beside the data; this module makes configfs equal to them, at start and with every call. One call changes a
//! system at a time. Never touches a backstore or target of another name, and never serves data whose owner mark is wrong.

mod adopt;
mod configfs;
mod luns;
mod objects;
mod snapshots;
mod volumes;

#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

pub use configfs::{ConfigFs, KernelConfigFs};
pub use luns::LunCounter;
use objects::Objects;
use storagelink_proto::storagelink::v1;
use uuid::Uuid;

use crate::{
    adapter::AdapterError,
    config::SystemConfig,
    files,
    pools::ReflinkPool,
    records::{Life, SnapshotRecord, VolumeRecord},
};

/// One system.
pub struct Lio {
    config: SystemConfig,
    /// Random, made once: the WWIDs of its volumes come from it.
    identity: Uuid,
    pools: Vec<ReflinkPool>,
    objects: Objects,
    state: Mutex<State>,
}

/// What is known of the volumes.
struct State {
    records: BTreeMap<String, VolumeRecord>,
    snapshots: BTreeMap<String, SnapshotRecord>,
    luns: LunCounter,
    /// Volumes that are not served, and why.
    abnormal: BTreeMap<String, String>,
}

impl State {
    fn taken_luns(&self) -> BTreeSet<u32> {
        self.records.values().map(|record| record.lun).collect()
    }

    /// Bytes promised to the volumes of an aggregate, and to its snapshots: they come to own what their volumes overwrite.
    fn promised(&self, aggregate: &str) -> u64 {
        let volumes = self
            .records
            .values()
            .map(|record| (&record.aggregate, record.size_bytes));
        let snapshots = self
            .snapshots
            .values()
            .map(|record| (&record.aggregate, record.size_bytes));
        volumes
            .chain(snapshots)
            .filter(|(home, _)| *home == aggregate)
            .map(|(_, size)| size)
            .sum()
    }
}

/// The system's own identity, made at first start.
fn identity(path: &Path) -> Result<Uuid, AdapterError> {
    let wrap = |action, source| AdapterError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Uuid::try_parse(text.trim()).map_err(|error| wrap("read", std::io::Error::other(error))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let new = Uuid::new_v4();
            files::write_durably(path, format!("{new}\n").as_bytes(), 0o600).map_err(|e| wrap("write", e))?;
            Ok(new)
        }
        Err(source) => Err(wrap("read", source)),
    }
}

impl Lio {
    /// Opens the system: reads the records, finishes or undoes what a crash left half done, and makes configfs equal to the rest. Sessions and
    /// I/O of volumes that are served already are not disturbed.
    ///
    /// # Errors
    /// The target cannot be made, or a record or counter cannot be read. Closed aggregates and bad volumes are no error: they say so when asked.
    pub fn open(
        config: SystemConfig,
        state_dir: &Path,
        configfs: Box<dyn ConfigFs>,
    ) -> Result<Self, AdapterError> {
        let name = &config.name;
        let identity = identity(&state_dir.join(format!("system-{name}.id")))?;
        let pools: Vec<ReflinkPool> = config
            .aggregates
            .iter()
            .map(|a| ReflinkPool::open(name, a.clone(), state_dir))
            .collect();
        let (mut records, mut snapshots) = (BTreeMap::new(), BTreeMap::new());
        for pool in pools.iter().filter(|pool| pool.is_open()) {
            records.extend(pool.records()?);
            snapshots.extend(pool.snapshot_records()?);
        }
        let taken = records.values().map(|record| record.lun).collect();
        let luns = LunCounter::open(&state_dir.join(format!("system-{name}.lun")), &taken)?;
        let objects = Objects::new(configfs, name, &config.target_iqn(), config.portals.clone());
        let state = State {
            records,
            snapshots,
            luns,
            abnormal: BTreeMap::new(),
        };
        let lio = Self {
            identity,
            pools,
            objects,
            state: Mutex::new(state),
            config,
        };
        lio.reconcile()?;
        Ok(lio)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, aggregate: &str) -> Result<&ReflinkPool, AdapterError> {
        self.pools
            .iter()
            .find(|pool| pool.name() == aggregate)
            .ok_or_else(|| AdapterError::NoAggregate {
                system: self.config.name.clone(),
                aggregate: aggregate.to_owned(),
                choices: self
                    .pools
                    .iter()
                    .map(ReflinkPool::name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    fn reconcile(&self) -> Result<(), AdapterError> {
        let mut state = self.state();
        self.objects.ensure_target()?;
        let unfinished: Vec<VolumeRecord> = state
            .records
            .values()
            .filter(|record| record.life != Life::Ready)
            .cloned()
            .collect();
        for record in unfinished {
            tracing::info!(volume.id = record.id, life = %record.life, "a crash left this volume unfinished: it is removed");
            self.purge(&mut state, &record)?;
        }
        self.finish_snapshots(&mut state)?;
        // What lies in a closed aggregate is unknown: its objects stay.
        if self.pools.iter().all(ReflinkPool::is_open) {
            self.objects.remove_unwanted(state.records.values())?;
        }
        let ready: Vec<VolumeRecord> = state.records.values().cloned().collect();
        for mut record in ready {
            let served = self
                .settle(&mut state, &mut record)
                .and_then(|()| self.serve(&record));
            match served {
                Ok(()) => {}
                Err(error) => {
                    let reason = crate::server::full(&error);
                    tracing::error!(volume.id = record.id, reason, "volume is not served");
                    state.abnormal.insert(record.id, reason);
                }
            }
        }
        Ok(())
    }

    /// Makes the kernel objects of a volume equal to its record.
    fn serve(&self, record: &VolumeRecord) -> Result<(), AdapterError> {
        let pool = self.pool(&record.aggregate)?;
        pool.check_data(record)?;
        let backstore = self.objects.ensure_backstore(record, &pool.data(&record.id))?;
        for mapping in &record.mappings {
            self.objects.ensure_mapping(record, mapping, &backstore)?;
        }
        Ok(())
    }

    /// Removes all of a volume; each step is success when it is done already.
    fn purge(&self, state: &mut State, record: &VolumeRecord) -> Result<(), AdapterError> {
        for mapping in &record.mappings {
            self.objects
                .remove_mapping(record.lun, &mapping.iscsi_initiator)?;
        }
        self.objects.remove_lun(record.lun)?;
        self.objects.remove_backstore(&record.id)?;
        self.pool(&record.aggregate)?.remove(&record.id)?;
        state.records.remove(&record.id);
        state.abnormal.remove(&record.id);
        Ok(())
    }

    /// Writes a changed record, then keeps it.
    fn save(&self, state: &mut State, record: &VolumeRecord) -> Result<(), AdapterError> {
        self.pool(&record.aggregate)?.save(record)?;
        state.records.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn show(&self, state: &State, record: &VolumeRecord) -> v1::Volume {
        let mut volume = record.to_volume(&self.config.name);
        volume.used_bytes = self
            .pool(&record.aggregate)
            .map_or(0, |pool| pool.used(&record.id));
        volume.abnormal_reason = state.abnormal.get(&record.id).cloned().unwrap_or_default();
        volume
    }
}
