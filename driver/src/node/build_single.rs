//! The second half of NodeStageVolume without multipathing: brings up one path, proves it, mounts what is on it.
//!
//! One portal after the other until one leads to the volume: the others stay unused. It must never use a disk whose live identity is not the
//! volume's, nor one that something else holds.

use storagelink_multipath::{ProvenPath, Wwid, engine::BuildError, scsi_device, worker};
use tonic::Code;

use super::{
    build_up::ATTACH,
    fault::Fault,
    held::Held,
    journal::Entry,
    single::{PROVE, Single, SingleDisk},
    stage::{StageError, Work},
    transport::{Attached, TransportError},
    validate::Access,
    view::Top,
};
use crate::{
    codes::chain,
    mount::MountError,
    publish_context::{Portal, PublishContext},
};

impl Work<'_> {
    /// Path, disk, file system.
    pub(super) async fn build_single(&self, entry: &mut Entry) -> Result<(), StageError> {
        let volume = self.volume;
        let wwid = self.wwid()?;
        let path = self.one_path(&wwid).await?;
        let disk = path.disk().clone();
        if let Some(holder) = disk.holders.first() {
            let sysfs = self.node.host.sysfs.clone();
            let attribute = format!("block/{holder}/dm/uuid");
            let read = worker::run("holder", PROVE, move || sysfs.read(&attribute)).await;
            let held = BuildError::Held {
                device: disk.name.clone(),
                holder: holder.clone(),
                uuid: read.ok().and_then(Result::ok).unwrap_or_default(),
            };
            return Err(self.engine(Fault::build("use its disk", held)));
        }
        let mut size = disk.size_bytes;
        if size < self.request.context.size_bytes {
            size = self.node.rescan(&disk).await.map_err(|e| self.engine(e))?;
        }
        if size < self.request.context.size_bytes {
            return Err(StageError::TooSmall {
                volume,
                actual: size,
                published: self.request.context.size_bytes,
            });
        }
        // Noted before it is used: an unstage after a crash lets go of this very disk.
        let patience_was = self.node.patience_of(&disk).await;
        entry.single = Some(SingleDisk {
            patience_was,
            ..SingleDisk::new(&disk, &self.node.boot)
        });
        self.node.journal.put(volume, entry).await?;
        self.set_read_only(&disk).await?;
        let mapped = self.node.mapped_sessions().await;
        self.node.have_patience(&disk, patience_was, &mapped).await;
        let held = Held::Single(Single {
            devno: disk.devno,
            disk: Some(storagelink_multipath::ScsiDisk {
                size_bytes: size,
                ..disk
            }),
            noted: true,
        });
        let disk = self.node.disk(volume, &held).await.map_err(|e| self.mount(e))?;
        let seen = self.look(Some(&disk)).await?;
        if let Some(other) = seen.besides(&[self.staging]).first() {
            return Err(self.conflict(format!("at {}", other.display())));
        }
        if let Access::Mount { fs, .. } = self.request.capability.access
            && matches!(seen.at(self.staging), Top::Free)
        {
            self.mount_it(&disk, fs, entry).await?;
        }
        entry.staged = true;
        entry.formatting = None;
        Ok(self.node.journal.put(volume, entry).await?)
    }

    /// The first path that leads to the volume. Volumes begin with different portals, so that their load is shared among these.
    async fn one_path(&self, wwid: &Wwid) -> Result<ProvenPath, StageError> {
        let portals = &self.request.context.portals;
        let first = usize::try_from(self.volume.as_u128() % portals.len().max(1) as u128).unwrap_or(0);
        let mut errors: Vec<(&Portal, TransportError)> = Vec::new();
        for portal in portals.iter().cycle().skip(first).take(portals.len()) {
            let context = PublishContext {
                portals: vec![portal.clone()],
                ..self.request.context.clone()
            };
            match self.node.transport.attach(&context, ATTACH).await {
                Ok(Attached { paths, .. }) => {
                    if let Some(path) = paths.into_iter().next() {
                        return Ok(path);
                    }
                }
                Err(error) => {
                    tracing::warn!(volume.id = %self.volume, %portal, error = chain(&error), "no path over this portal");
                    errors.push((portal, error));
                }
            }
        }
        let volume = self.volume;
        // All say that somebody must change something first (the array shows another disk): the first of them is what has to be told.
        let hopeless = errors
            .iter()
            .all(|(_, error)| error.code == Code::FailedPrecondition);
        if (hopeless || errors.len() == 1) && !errors.is_empty() {
            let (_, source) = errors.swap_remove(0);
            return Err(StageError::Transport { volume, source });
        }
        let told = |(portal, error): &(&Portal, TransportError)| format!("{portal}: {}", chain(error));
        Err(StageError::NoPath {
            volume,
            wwid: wwid.to_string(),
            errors: errors.iter().map(told).collect::<Vec<_>>().join("; "),
        })
    }

    /// Refuses a disk that the array itself protects from writes, when it is to be written.
    async fn writable(&self, disk: &storagelink_multipath::ScsiDisk) -> Result<(), StageError> {
        let (host, hctl) = (self.node.host.clone(), disk.hctl);
        let found = worker::run("find-disk", PROVE, move || scsi_device::find(&host, &hctl)).await;
        if found.is_ok_and(|found| found.is_none_or(|found| !found.read_only)) {
            return Ok(());
        }
        let wwid = self.wwid()?;
        let device = disk.name.clone();
        Err(self.engine(Fault::build(
            "use its disk",
            BuildError::ReadOnly { device, wwid },
        )))
    }

    async fn set_read_only(&self, disk: &storagelink_multipath::ScsiDisk) -> Result<(), StageError> {
        let (block, devno, name) = (self.node.host.block.clone(), disk.devno, disk.name.clone());
        let (read_only, path) = (self.request.read_only(), std::path::PathBuf::from(&disk.name));
        let operation = "set read-only or writable";
        let set = worker::run("set-read-only", PROVE, move || {
            block.set_read_only(devno, &name, read_only)
        });
        match set.await {
            Ok(Ok(())) if read_only => Ok(()),
            Ok(Ok(())) => self.writable(disk).await,
            Ok(Err(source)) => Err(self.mount(MountError::Io {
                operation,
                path,
                source,
            })),
            Err(source) => Err(self.mount(MountError::Overdue {
                operation,
                path,
                source,
            })),
        }
    }
}
