//! The kernel objects of one system: its target, a backstore per volume, LUNs and access control entries. Each is made and removed in steps that
//! are success when they are done already.
//!
//! Layout: Documentation/target and drivers/target/target_core_configfs.c. One HBA directory per backstore, because rtslib (targetcli) assumes it.
//! Only objects that carry this system's names are ever touched.

use std::{net::SocketAddr, path::Path};

use super::configfs::{ConfigFs, Tree};
use crate::{
    adapter::AdapterError,
    records::{MappingRecord, VolumeRecord},
};

/// Attributes of the target portal group: no demo mode, access by explicit entries only.
pub(super) const ATTRIBUTES: [(&str, &str); 5] = [
    ("generate_node_acls", "0"),
    ("cache_dynamic_acls", "0"),
    // Initiators are told apart by their names; CHAP is not part of this version.
    ("authentication", "0"),
    ("demo_mode_write_protect", "1"),
    ("prod_mode_write_protect", "0"),
];

/// Session parameters (RFC 7143 13): a lost session may be built anew at once, and larger bursts save round trips.
pub(super) const PARAMETERS: [(&str, &str); 4] = [
    ("DefaultTime2Wait", "0"),
    ("DefaultTime2Retain", "0"),
    ("MaxRecvDataSegmentLength", "262144"),
    ("MaxXmitDataSegmentLength", "262144"),
];

/// Name of our links; the kernel does not care.
const LINK: &str = "storagelink";

/// The objects of one system.
pub(super) struct Objects {
    pub(super) tree: Tree,
    system: String,
    iqn: String,
    portals: Vec<SocketAddr>,
}

impl Objects {
    pub(super) fn new(tree: Box<dyn ConfigFs>, system: &str, iqn: &str, portals: Vec<SocketAddr>) -> Self {
        Self {
            tree: Tree(tree),
            system: system.to_owned(),
            iqn: iqn.to_owned(),
            portals,
        }
    }

    fn group(&self) -> String {
        format!("iscsi/{}/tpgt_1", self.iqn)
    }

    /// Name of a volume's backstore. Blanks and slashes are not in it: rtslib refuses them.
    fn backstore_name(&self, volume: &str) -> String {
        format!("storagelink.{}.{volume}", self.system)
    }

    /// The volume of a backstore with this name, if it is this system's.
    fn volume_of<'a>(&self, backstore: &'a str) -> Option<&'a str> {
        backstore
            .strip_prefix("storagelink.")?
            .strip_prefix(self.system.as_str())?
            .strip_prefix('.')
    }

    /// Makes the target with its portals and opens it.
    pub(super) fn ensure_target(&self) -> Result<(), AdapterError> {
        let group = self.group();
        self.tree.ensure_directory("iscsi")?;
        self.tree.ensure_directory(&format!("iscsi/{}", self.iqn))?;
        self.tree.ensure_directory(&group)?;
        for (name, value) in ATTRIBUTES {
            self.tree.ensure_value(&format!("{group}/attrib/{name}"), value)?;
        }
        for (name, value) in PARAMETERS {
            self.tree.ensure_value(&format!("{group}/param/{name}"), value)?;
        }
        let wanted: Vec<String> = self.portals.iter().map(ToString::to_string).collect();
        for portal in self.tree.directories(&format!("{group}/np"))? {
            if !wanted.contains(&portal) {
                self.tree.remove_directory(&format!("{group}/np/{portal}"))?;
            }
        }
        for portal in wanted {
            self.tree.ensure_directory(&format!("{group}/np/{portal}"))?;
        }
        self.tree.ensure_value(&format!("{group}/enable"), "1")
    }

    /// All backstores: their directory and name.
    fn backstores(&self) -> Result<Vec<(String, String)>, AdapterError> {
        let mut found = Vec::new();
        for hba in self.tree.directories("core")? {
            if hba.starts_with("fileio_") {
                let names = self.tree.directories(&format!("core/{hba}"))?;
                found.extend(names.into_iter().map(|name| (format!("core/{hba}"), name)));
            }
        }
        Ok(found)
    }

    /// Directory of a volume's backstore, if there is one.
    fn backstore(&self, volume: &str) -> Result<Option<String>, AdapterError> {
        let wanted = self.backstore_name(volume);
        let found = self.backstores()?.into_iter().find(|(_, name)| *name == wanted);
        Ok(found.map(|(hba, name)| format!("{hba}/{name}")))
    }

    /// A number that no HBA directory has.
    fn free_hba(&self) -> Result<String, AdapterError> {
        let hbas = self.tree.directories("core")?;
        let used: Vec<u32> = hbas
            .iter()
            .filter_map(|hba| hba.rsplit('_').next()?.parse().ok())
            .collect();
        let free = (0..).find(|number| !used.contains(number)).unwrap_or(u32::MAX);
        Ok(format!("core/fileio_{free}"))
    }

    /// Makes the backstore over the data file, which the caller has checked. Answers its directory.
    pub(super) fn ensure_backstore(
        &self,
        record: &VolumeRecord,
        data: &Path,
    ) -> Result<String, AdapterError> {
        if let Some(directory) = self.backstore(&record.id)? {
            if self.tree.read(&format!("{directory}/enable"))? == "1" {
                let info = self.tree.read(&format!("{directory}/info"))?;
                let served = file_of(&info).unwrap_or_default();
                if data.to_str() != Some(served) {
                    let problem = format!("the kernel serves {served} for it, not {}", data.display());
                    return Err(AdapterError::Data {
                        id: record.id.clone(),
                        problem,
                    });
                }
                self.grow_backstore(&directory, &info, record.size_bytes)?;
                return Ok(directory);
            }
            // Half made: targetcli can list nothing while it stands.
            self.remove_backstore_at(&directory)?;
        }
        let hba = self.free_hba()?;
        let directory = format!("{hba}/{}", self.backstore_name(&record.id));
        self.tree.ensure_directory(&hba)?;
        let made = self.fill_backstore(&directory, record, data);
        if made.is_err()
            && let Err(error) = self.remove_backstore_at(&directory)
        {
            tracing::warn!(volume.id = record.id, %error, "cannot remove a backstore that could not be made");
        }
        made.map(|()| directory)
    }

    fn fill_backstore(
        &self,
        directory: &str,
        record: &VolumeRecord,
        data: &Path,
    ) -> Result<(), AdapterError> {
        self.tree.ensure_directory(directory)?;
        let data = data
            .to_str()
            .filter(|path| !path.contains([',', '\n']))
            .ok_or_else(|| AdapterError::Data {
                id: record.id.clone(),
                problem: format!("the path {} cannot be given to the kernel", data.display()),
            })?;
        // Neither fd_buffered_io nor fd_async_io: a completed write is on stable storage (O_DSYNC).
        let control = format!("{directory}/control");
        self.tree.write(
            &control,
            &format!("fd_dev_name={data},fd_dev_size={}", record.size_bytes),
        )?;
        self.tree
            .write(&format!("{directory}/wwn/vpd_unit_serial"), &record.serial)?;
        self.tree.write(&format!("{directory}/enable"), "1")?;
        // Discards of the initiator give space back to the aggregate.
        self.tree
            .ensure_value(&format!("{directory}/attrib/emulate_tpu"), "1")
    }

    /// Tells the kernel of a longer file; never of a shorter one, which it would accept.
    fn grow_backstore(&self, directory: &str, info: &str, size_bytes: u64) -> Result<(), AdapterError> {
        if size_of(info).is_some_and(|now| now >= size_bytes) {
            return Ok(());
        }
        self.tree.write(
            &format!("{directory}/control"),
            &format!("fd_dev_size={size_bytes}"),
        )
    }

    pub(super) fn remove_backstore_at(&self, directory: &str) -> Result<(), AdapterError> {
        self.tree.remove_directory(directory)?;
        let hba = directory.rsplit_once('/').map_or(directory, |(hba, _)| hba);
        self.tree.remove_directory(hba)
    }

    /// Lets the mapping's initiator reach the volume.
    pub(super) fn ensure_mapping(
        &self,
        record: &VolumeRecord,
        mapping: &MappingRecord,
        backstore: &str,
    ) -> Result<(), AdapterError> {
        let group = self.group();
        let lun = format!("{group}/lun/lun_{}", record.lun);
        self.tree.ensure_directory(&lun)?;
        self.tree.ensure_link(backstore, &lun, LINK)?;
        let acl = format!("{group}/acls/{}", mapping.iscsi_initiator);
        self.tree.ensure_directory(&acl)?;
        let mapped = format!("{acl}/lun_{}", record.lun);
        self.tree.ensure_directory(&mapped)?;
        self.tree.ensure_link(&lun, &mapped, LINK)?;
        let protect = if mapping.read_only { "1" } else { "0" };
        self.tree
            .ensure_value(&format!("{mapped}/write_protect"), protect)
    }

    /// Takes a LUN from an initiator, and the entry with its last one.
    pub(super) fn remove_mapping(&self, lun: u32, initiator: &str) -> Result<(), AdapterError> {
        let acl = format!("{}/acls/{initiator}", self.group());
        if !self.tree.exists(&acl) {
            return Ok(());
        }
        self.tree.remove_with_links(&format!("{acl}/lun_{lun}"))?;
        if !self.mapped_luns(&acl)?.is_empty() {
            return Ok(());
        }
        self.tree.remove_directory(&acl)
    }

    /// Numbers of the LUNs that an access control entry shows.
    fn mapped_luns(&self, acl: &str) -> Result<Vec<u32>, AdapterError> {
        Ok(self
            .tree
            .directories(acl)?
            .iter()
            .filter_map(|name| lun_number(name))
            .collect())
    }

    /// Takes a LUN from the target.
    pub(super) fn remove_lun(&self, lun: u32) -> Result<(), AdapterError> {
        self.tree
            .remove_with_links(&format!("{}/lun/lun_{lun}", self.group()))
    }

    /// Removes a volume's backstore.
    pub(super) fn remove_backstore(&self, volume: &str) -> Result<(), AdapterError> {
        match self.backstore(volume)? {
            Some(directory) => self.remove_backstore_at(&directory),
            None => Ok(()),
        }
    }

    /// Removes what no record wants: entries, LUNs, backstores. `wanted` are the records that are served.
    pub(super) fn remove_unwanted<'a>(
        &self,
        wanted: impl Iterator<Item = &'a VolumeRecord> + Clone,
    ) -> Result<(), AdapterError> {
        let group = self.group();
        let maps = |initiator: &str, lun: u32| {
            wanted
                .clone()
                .any(|r| r.lun == lun && r.mappings.iter().any(|m| m.iscsi_initiator == initiator))
        };
        for initiator in self.tree.directories(&format!("{group}/acls"))? {
            let luns = self.mapped_luns(&format!("{group}/acls/{initiator}"))?;
            let unwanted: Vec<u32> = luns
                .iter()
                .copied()
                .filter(|lun| !maps(&initiator, *lun))
                .collect();
            for lun in &unwanted {
                self.remove_mapping(*lun, &initiator)?;
            }
            if luns.is_empty() {
                self.tree.remove_directory(&format!("{group}/acls/{initiator}"))?;
            }
        }
        for lun in self.tree.directories(&format!("{group}/lun"))? {
            let Some(number) = lun_number(&lun) else { continue };
            if !wanted
                .clone()
                .any(|record| record.lun == number && !record.mappings.is_empty())
            {
                self.remove_lun(number)?;
            }
        }
        for (hba, name) in self.backstores()? {
            let Some(volume) = self.volume_of(&name) else {
                continue;
            };
            if !wanted.clone().any(|record| record.id == volume) {
                self.remove_backstore_at(&format!("{hba}/{name}"))?;
            }
        }
        // An HBA directory that a crash left without its backstore; one of somebody else holds something.
        for hba in self.tree.directories("core")? {
            let hba = format!("core/{hba}");
            if hba.starts_with("core/fileio_") && self.tree.directories(&hba)?.is_empty() {
                self.tree.remove_directory(&hba)?;
            }
        }
        Ok(())
    }
}

fn lun_number(name: &str) -> Option<u32> {
    name.strip_prefix("lun_")?.parse().ok()
}

/// The file in a fileio backstore's `info`.
pub(super) fn file_of(info: &str) -> Option<&str> {
    Some(info.split_once(" File: ")?.1.rsplit_once("  Size: ")?.0)
}

/// The size in a fileio backstore's `info` (drivers/target/target_core_file.c, fd_show_configfs_dev_params).
pub(super) fn size_of(info: &str) -> Option<u64> {
    info.rsplit_once(" Size: ")?
        .1
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernels_info_is_understood() {
        let info = "Status: ACTIVATED  Max Queue Depth: 0  SectorSize: 512  HwMaxSectors: 16384\n        TCM FILEIO ID: 0        File: /srv/a/data  Size: 67108864  Mode: O_DSYNC Async: 0";
        assert_eq!(super::size_of(info), Some(67_108_864));
        assert_eq!(super::file_of(info), Some("/srv/a/data"));
        assert_eq!(super::size_of("Status: DEACTIVATED"), None);
        assert_eq!(super::lun_number("lun_16383"), Some(16383));
        assert_eq!(super::lun_number("attrib"), None);
    }
}
