//! The adapter's calls on volumes.

use storagelink_proto::storagelink::v1;

use super::Lio;
use crate::{
    adapter::{Access, Adapter, AdapterError, NewSnapshot, NewVolume},
    ids,
    records::{Life, MappingRecord, VERSION, VolumeRecord},
};

impl Adapter for Lio {
    fn system(&self) -> v1::System {
        v1::System {
            name: self.config.name.clone(),
            adapter: self.config.adapter.clone(),
            protocols: vec![v1::Protocol::Iscsi.into()],
            description: format!("Linux kernel target {}", self.config.target_iqn()),
        }
    }

    fn aggregates(&self) -> Vec<v1::Aggregate> {
        let state = self.state();
        self.pools
            .iter()
            .map(|pool| pool.space(state.promised(pool.name())))
            .collect()
    }

    fn target_ports(&self) -> Vec<v1::TargetPort> {
        let port = |portal: &std::net::SocketAddr| v1::TargetPort {
            protocol: v1::Protocol::Iscsi.into(),
            target: self.config.target_iqn(),
            portal: portal.to_string(),
            portal_group_tag: 1,
        };
        self.config.portals.iter().map(port).collect()
    }

    fn create(&self, new: &NewVolume) -> Result<v1::Volume, AdapterError> {
        let mut state = self.state();
        let pool = self.pool(&new.aggregate)?;
        let mut size_bytes = pool.round(new.size_bytes, new.limit_bytes)?;
        if let Some(mut existing) = state.records.get(&new.id).cloned() {
            if existing.life == Life::Ready {
                compare(&existing, new, size_bytes)?;
                self.settle(&mut state, &mut existing)?;
                return Ok(self.show(&state, &existing));
            }
            // An earlier attempt failed and could not be undone then.
            self.purge(&mut state, &existing)?;
        }
        let adopted = self.lun_of(new)?;
        let from = self.source_data(&state, new, size_bytes)?;
        match &adopted {
            // It takes no more room than it has taken already.
            Some(lun) => size_bytes = lun.size_bytes,
            None => pool.check_room(size_bytes, state.promised(&new.aggregate), new.provision)?,
        }
        let taken = state.taken_luns();
        let mut record = VolumeRecord {
            version: VERSION,
            id: new.id.clone(),
            name: new.name.clone(),
            aggregate: new.aggregate.clone(),
            size_bytes,
            provision: new.provision,
            serial: ids::serial(self.identity, &new.id),
            lun: state.luns.take(&taken, &self.config.name)?,
            life: Life::Creating,
            attributes: new.attributes.clone(),
            mappings: vec![],
            source: new.source.clone(),
            former_file: adopted.map(|lun| lun.file),
        };
        self.save(&mut state, &record)?;
        let data = match &record.former_file {
            Some(file) => pool.adopt_data(&record, file),
            None => pool.make_data(&record, from.as_deref()),
        };
        let made = data
            .and_then(|()| {
                self.objects
                    .ensure_backstore(&record, &pool.data(&record.id))
                    .map(drop)
            })
            .and_then(|()| {
                record.life = Life::Ready;
                self.save(&mut state, &record)
            });
        if let Err(error) = made {
            if let Err(undo) = self.purge(&mut state, &record) {
                tracing::error!(
                    volume.id = record.id,
                    error = crate::server::full(&undo),
                    "cannot undo a failed creation"
                );
            }
            return Err(error);
        }
        self.settle(&mut state, &mut record)?;
        Ok(self.show(&state, &record))
    }

    fn delete(&self, id: &str) -> Result<(), AdapterError> {
        let mut state = self.state();
        let Some(mut record) = state.records.get(id).cloned() else {
            return Ok(());
        };
        if record.life == Life::Ready {
            if !record.mappings.is_empty() {
                return Err(AdapterError::Mapped {
                    id: id.to_owned(),
                    hosts: hosts(&record),
                });
            }
            record.life = Life::Deleting;
            self.save(&mut state, &record)?;
        }
        self.purge(&mut state, &record)
    }

    fn get(&self, id: &str) -> Result<Option<v1::Volume>, AdapterError> {
        let state = self.state();
        Ok(state
            .records
            .get(id)
            .filter(|record| record.life == Life::Ready)
            .map(|record| self.show(&state, record)))
    }

    fn list(&self) -> Result<Vec<v1::Volume>, AdapterError> {
        let state = self.state();
        let ready = state.records.values().filter(|record| record.life == Life::Ready);
        Ok(ready.map(|record| self.show(&state, record)).collect())
    }

    fn expand(&self, id: &str, size_bytes: u64, limit_bytes: u64) -> Result<v1::Volume, AdapterError> {
        let mut state = self.state();
        let mut record = self.ready(&state, id)?;
        let pool = self.pool(&record.aggregate)?;
        let size_bytes = pool.round(size_bytes.max(record.size_bytes), limit_bytes)?;
        if size_bytes > record.size_bytes {
            let promised = state.promised(&record.aggregate);
            pool.check_room(size_bytes - record.size_bytes, promised, record.provision)?;
            pool.grow_data(&record, size_bytes)?;
            // The file is long enough before the record says so, and the record before the kernel: a crash leaves a longer file, which serves.
            record.size_bytes = size_bytes;
            self.save(&mut state, &record)?;
        }
        self.serve(&record)?;
        Ok(self.show(&state, &record))
    }

    fn map(&self, id: &str, access: &Access) -> Result<v1::Volume, AdapterError> {
        let mut state = self.state();
        let mut record = self.ready(&state, id)?;
        self.settle(&mut state, &mut record)?;
        let stranger = state
            .records
            .values()
            .flat_map(|other| &other.mappings)
            .find(|mapping| mapping.iscsi_initiator == access.iscsi_initiator && mapping.host != access.host);
        if let Some(known) = stranger {
            return Err(AdapterError::SharedInitiator {
                initiator: access.iscsi_initiator.clone(),
                known: known.host.clone(),
                host: access.host.clone(),
            });
        }
        let wanted = MappingRecord {
            host: access.host.clone(),
            iscsi_initiator: access.iscsi_initiator.clone(),
            read_only: access.read_only,
        };
        match record.mappings.iter().find(|mapping| mapping.host == access.host) {
            Some(mapping) if *mapping == wanted => {}
            Some(mapping) if mapping.iscsi_initiator == wanted.iscsi_initiator => {
                let how = if mapping.read_only {
                    "read-only"
                } else {
                    "with the right to write"
                };
                let (id, host) = (id.to_owned(), access.host.clone());
                return Err(AdapterError::MappedDifferently { id, host, how });
            }
            Some(_) => {
                let (id, host) = (id.to_owned(), access.host.clone());
                return Err(AdapterError::MappedDifferently {
                    id,
                    host,
                    how: "under another initiator name",
                });
            }
            None => {
                if access.exclusive && !record.mappings.is_empty() {
                    return Err(AdapterError::Mapped {
                        id: id.to_owned(),
                        hosts: hosts(&record),
                    });
                }
                self.pool(&record.aggregate)?.check_data(&record)?;
                record.mappings.push(wanted);
                self.save(&mut state, &record)?;
            }
        }
        self.serve(&record)?;
        state.abnormal.remove(id);
        Ok(self.show(&state, &record))
    }

    fn take_snapshot(&self, new: &NewSnapshot) -> Result<v1::Snapshot, AdapterError> {
        self.take_snapshot(new)
    }

    fn delete_snapshot(&self, id: &str) -> Result<(), AdapterError> {
        self.delete_snapshot(id)
    }

    fn snapshots(&self) -> Result<Vec<v1::Snapshot>, AdapterError> {
        Ok(self.list_snapshots())
    }

    fn unmap(&self, id: &str, host: Option<&str>) -> Result<(), AdapterError> {
        let mut state = self.state();
        let Some(mut record) = state.records.get(id).cloned() else {
            return Ok(());
        };
        let (gone, left): (Vec<MappingRecord>, Vec<MappingRecord>) = record
            .mappings
            .drain(..)
            .partition(|mapping| host.is_none_or(|host| mapping.host == host));
        if gone.is_empty() {
            return Ok(());
        }
        // The kernel first: as long as the record says mapped, the host may still write.
        for mapping in &gone {
            self.objects
                .remove_mapping(record.lun, &mapping.iscsi_initiator)?;
        }
        if left.is_empty() {
            self.objects.remove_lun(record.lun)?;
        }
        record.mappings = left;
        self.save(&mut state, &record)
    }
}

impl Lio {
    pub(super) fn ready(&self, state: &super::State, id: &str) -> Result<VolumeRecord, AdapterError> {
        let found = state.records.get(id).filter(|record| record.life == Life::Ready);
        found
            .cloned()
            .ok_or_else(|| AdapterError::NoVolume(id.to_owned()))
    }
}

fn hosts(record: &VolumeRecord) -> String {
    record
        .mappings
        .iter()
        .map(|mapping| mapping.host.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether a volume that exists is the one that is wanted.
fn compare(existing: &VolumeRecord, new: &NewVolume, size_bytes: u64) -> Result<(), AdapterError> {
    let mut differs = Vec::new();
    if existing.name != new.name {
        differs.push(format!("name `{}`", existing.name));
    }
    if existing.aggregate != new.aggregate {
        differs.push(format!("aggregate `{}`", existing.aggregate));
    }
    // A volume that grew since it was made is still the same one, if it is within the limit.
    if existing.size_bytes < size_bytes || (new.limit_bytes > 0 && existing.size_bytes > new.limit_bytes) {
        differs.push(format!("size {} bytes", existing.size_bytes));
    }
    if existing.provision != new.provision {
        differs.push(format!("provision type {:?}", existing.provision));
    }
    if existing.source != new.source {
        let source = existing.source.as_ref().map(ToString::to_string);
        differs.push(format!("source {}", source.unwrap_or_else(|| "none".to_owned())));
    }
    if differs.is_empty() {
        Ok(())
    } else {
        Err(AdapterError::Differs {
            id: format!("volume {}", new.id),
            differs: differs.join(", "),
        })
    }
}
