//! Snapshots, and volumes that begin with the content of one or of another volume.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use storagelink_proto::storagelink::v1;

use super::{Lio, State};
use crate::{
    adapter::{AdapterError, NewSnapshot, NewVolume},
    records::{Life, SnapshotRecord, Source, VERSION},
};

impl Lio {
    pub(super) fn take_snapshot(&self, new: &NewSnapshot) -> Result<v1::Snapshot, AdapterError> {
        let mut state = self.state();
        if let Some(existing) = state.snapshots.get(&new.id).cloned() {
            if existing.life == Life::Ready {
                compare(&existing, new)?;
                return Ok(existing.to_snapshot(&self.config.name));
            }
            // An earlier attempt failed and could not be undone then.
            self.purge_snapshot(&mut state, &existing)?;
        }
        let volume = self.ready(&state, &new.volume)?;
        let pool = self.pool(&volume.aggregate)?;
        pool.check_room(
            volume.size_bytes,
            state.promised(&volume.aggregate),
            volume.provision,
        )?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut record = SnapshotRecord {
            version: VERSION,
            id: new.id.clone(),
            name: new.name.clone(),
            volume: volume.id.clone(),
            aggregate: volume.aggregate.clone(),
            size_bytes: volume.size_bytes,
            provision: volume.provision,
            taken_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            life: Life::Creating,
        };
        self.save_snapshot(&mut state, &record)?;
        let taken = pool.take_snapshot(&record, &volume).and_then(|()| {
            record.life = Life::Ready;
            self.save_snapshot(&mut state, &record)
        });
        if let Err(error) = taken {
            if let Err(undo) = self.purge_snapshot(&mut state, &record) {
                let error = crate::server::full(&undo);
                tracing::error!(
                    snapshot.id = record.id,
                    error,
                    "cannot undo a snapshot that failed"
                );
            }
            return Err(error);
        }
        Ok(record.to_snapshot(&self.config.name))
    }

    pub(super) fn delete_snapshot(&self, id: &str) -> Result<(), AdapterError> {
        let mut state = self.state();
        let Some(mut record) = state.snapshots.get(id).cloned() else {
            return Ok(());
        };
        if record.life == Life::Ready {
            record.life = Life::Deleting;
            self.save_snapshot(&mut state, &record)?;
        }
        self.purge_snapshot(&mut state, &record)
    }

    pub(super) fn list_snapshots(&self) -> Vec<v1::Snapshot> {
        let state = self.state();
        let ready = state
            .snapshots
            .values()
            .filter(|record| record.life == Life::Ready);
        ready
            .map(|record| record.to_snapshot(&self.config.name))
            .collect()
    }

    /// Undoes or finishes what a crash left half done.
    pub(super) fn finish_snapshots(&self, state: &mut State) -> Result<(), AdapterError> {
        let unfinished: Vec<SnapshotRecord> = state
            .snapshots
            .values()
            .filter(|record| record.life != Life::Ready)
            .cloned()
            .collect();
        for record in unfinished {
            tracing::info!(snapshot.id = record.id, life = %record.life, "a crash left this snapshot unfinished: it is removed");
            self.purge_snapshot(state, &record)?;
        }
        Ok(())
    }

    /// The data file that a new volume begins with.
    pub(super) fn source_data(
        &self,
        state: &State,
        new: &NewVolume,
        size_bytes: u64,
    ) -> Result<Option<PathBuf>, AdapterError> {
        let Some(source) = &new.source else {
            return Ok(None);
        };
        let (aggregate, size, data) = match source {
            Source::Lun(_) => return Ok(None),
            Source::Volume(id) => {
                let record = self.ready(state, id)?;
                let pool = self.pool(&record.aggregate)?;
                pool.check_data(&record)?;
                (record.aggregate, record.size_bytes, pool.data(id))
            }
            Source::Snapshot(id) => {
                let found = state
                    .snapshots
                    .get(id)
                    .filter(|record| record.life == Life::Ready);
                let record = found.ok_or_else(|| AdapterError::NoSnapshot(id.clone()))?;
                let pool = self.pool(&record.aggregate)?;
                pool.check_snapshot(record)?;
                (
                    record.aggregate.clone(),
                    record.size_bytes,
                    pool.snapshot_data(id),
                )
            }
        };
        let unfit = |problem: String| AdapterError::Source {
            from: source.clone(),
            problem,
        };
        if aggregate != new.aggregate {
            return Err(unfit(format!(
                "it is in aggregate `{aggregate}`, not in `{}`: blocks are shared inside one aggregate only",
                new.aggregate
            )));
        }
        if size > size_bytes {
            return Err(unfit(format!(
                "it has {size} bytes, the volume shall have {size_bytes}"
            )));
        }
        Ok(Some(data))
    }

    fn save_snapshot(&self, state: &mut State, record: &SnapshotRecord) -> Result<(), AdapterError> {
        self.pool(&record.aggregate)?.save_snapshot(record)?;
        state.snapshots.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn purge_snapshot(&self, state: &mut State, record: &SnapshotRecord) -> Result<(), AdapterError> {
        self.pool(&record.aggregate)?.remove_snapshot(&record.id)?;
        state.snapshots.remove(&record.id);
        Ok(())
    }
}

/// Whether a snapshot that exists is the one that is wanted.
fn compare(existing: &SnapshotRecord, new: &NewSnapshot) -> Result<(), AdapterError> {
    let differs = if existing.volume != new.volume {
        format!("source volume {}", existing.volume)
    } else if existing.name != new.name {
        format!("name `{}`", existing.name)
    } else {
        return Ok(());
    };
    let id = format!("snapshot {}", new.id);
    Err(AdapterError::Differs { id, differs })
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use crate::{
        adapter::{Adapter as _, AdapterError, NewSnapshot, NewVolume},
        adapters::lio::tests::{Array, new},
        records::{Life, Provision, Source},
    };

    const VOLUME: &str = "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
    const SNAPSHOT: &str = "2b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
    const COPY: &str = "3b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";

    fn snapshot() -> NewSnapshot {
        NewSnapshot {
            id: SNAPSHOT.to_owned(),
            volume: VOLUME.to_owned(),
            name: "snap-1".to_owned(),
        }
    }

    fn from(source: Source) -> NewVolume {
        NewVolume {
            source: Some(source),
            ..new(COPY)
        }
    }

    fn write(array: &Array, volume: &str, text: &str) {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(array.data(volume))
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn begins(array: &Array, volume: &str, text: &str) -> bool {
        fs::read(array.data(volume)).unwrap().starts_with(text.as_bytes())
    }

    #[test]
    fn a_volume_from_a_snapshot_has_what_was_there_when_it_was_taken() {
        let array = Array::new();
        let lio = array.start();
        lio.create(&new(VOLUME)).unwrap();
        write(&array, VOLUME, "before");
        let taken = lio.take_snapshot(&snapshot()).unwrap();
        write(&array, VOLUME, "after!");
        assert_eq!(lio.take_snapshot(&snapshot()).unwrap(), taken);
        lio.delete(VOLUME).unwrap();
        let made = lio.create(&from(Source::Snapshot(SNAPSHOT.into()))).unwrap();
        assert_eq!(made.source_snapshot_id, SNAPSHOT);
        assert!(begins(&array, COPY, "before"));
        // Deleting the snapshot leaves what was made from it; so does a new start.
        lio.delete_snapshot(SNAPSHOT).unwrap();
        lio.delete_snapshot(SNAPSHOT).unwrap();
        drop(lio);
        let lio = array.start();
        assert!(lio.snapshots().unwrap().is_empty());
        assert!(begins(&array, COPY, "before"));
        assert_eq!(lio.get(COPY).unwrap().unwrap(), made);
    }

    #[test]
    fn a_clone_is_another_volume_with_the_same_content() {
        for provision in [Provision::Thin, Provision::Thick] {
            let array = Array::new();
            let lio = array.start();
            let original = lio
                .create(&NewVolume {
                    provision,
                    ..new(VOLUME)
                })
                .unwrap();
            write(&array, VOLUME, "data");
            let larger = NewVolume {
                provision,
                size_bytes: 8 << 20,
                ..from(Source::Volume(VOLUME.into()))
            };
            let clone = lio.create(&larger).unwrap();
            assert!(begins(&array, COPY, "data"));
            assert_eq!(clone.size_bytes, 8 << 20);
            assert_eq!(fs::metadata(array.data(COPY)).unwrap().len(), 8 << 20);
            assert_ne!(clone.wwid, original.wwid);
            // The same call again, and one that wants another source.
            assert_eq!(lio.create(&larger).unwrap(), clone);
            let other = NewVolume {
                source: None,
                ..larger
            };
            assert!(
                matches!(lio.create(&other), Err(AdapterError::Differs { differs, .. }) if differs.contains(VOLUME))
            );
        }
    }

    #[test]
    fn what_cannot_be_made_is_refused_and_leaves_nothing() {
        let array = Array::new();
        let lio = array.start();
        assert!(matches!(
            lio.take_snapshot(&snapshot()),
            Err(AdapterError::NoVolume(_))
        ));
        lio.create(&new(VOLUME)).unwrap();
        lio.take_snapshot(&snapshot()).unwrap();
        let other = NewSnapshot {
            volume: COPY.to_owned(),
            ..snapshot()
        };
        assert!(matches!(
            lio.take_snapshot(&other),
            Err(AdapterError::Differs { .. })
        ));
        let smaller = NewVolume {
            size_bytes: 1 << 20,
            ..from(Source::Snapshot(SNAPSHOT.into()))
        };
        assert!(matches!(lio.create(&smaller), Err(AdapterError::Source { .. })));
        let unknown = from(Source::Snapshot(COPY.into()));
        assert!(matches!(lio.create(&unknown), Err(AdapterError::NoSnapshot(_))));
        assert_eq!(lio.list().unwrap().len(), 1);
        // Data that is not the snapshot's is not handed out.
        let data = array.snapshot_data(SNAPSHOT);
        fs::remove_file(&data).unwrap();
        fs::write(&data, "foreign").unwrap();
        let wanted = from(Source::Snapshot(SNAPSHOT.into()));
        assert!(matches!(lio.create(&wanted), Err(AdapterError::Data { .. })));
        assert!(lio.get(COPY).unwrap().is_none());
    }

    #[test]
    fn a_snapshot_that_a_crash_left_half_made_is_gone_after_the_start() {
        let array = Array::new();
        let lio = array.start();
        lio.create(&new(VOLUME)).unwrap();
        lio.take_snapshot(&snapshot()).unwrap();
        drop(lio);
        for life in [Life::Creating, Life::Deleting] {
            let record = array.snapshot_data(SNAPSHOT).with_file_name("record.json");
            let text = fs::read_to_string(&record).unwrap();
            fs::write(&record, text.replace("ready", &life.to_string())).unwrap();
            let lio = array.start();
            assert!(lio.snapshots().unwrap().is_empty());
            assert!(!record.exists());
            lio.take_snapshot(&snapshot()).unwrap();
        }
    }

    #[test]
    fn snapshots_count_as_promised() {
        let array = Array::new();
        let lio = array.start();
        lio.create(&new(VOLUME)).unwrap();
        let before = lio.aggregates()[0].provisioned_bytes;
        lio.take_snapshot(&snapshot()).unwrap();
        assert_eq!(lio.aggregates()[0].provisioned_bytes, 2 * before);
    }
}
