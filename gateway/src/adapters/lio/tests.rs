//! The adapter over a simulated configfs and a real directory.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Lio, configfs::ConfigFs as _, sim::SimConfigFs};
use crate::{
    adapter::{Access, Adapter, AdapterError, NewVolume},
    config::{AggregateConfig, SystemConfig},
    records::Provision,
};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const ID: &str = "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
const OTHER: &str = "1b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
const GROUP: &str = "iscsi/iqn.2026-11.io.storagelink:array1/tpgt_1";

/// An array whose gateway can be started again and again.
pub(crate) struct Array {
    home: tempfile::TempDir,
    pub(super) kernel: SimConfigFs,
}

impl Array {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("state")).unwrap();
        std::fs::create_dir(home.path().join("aggr1")).unwrap();
        Self {
            home,
            kernel: SimConfigFs::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn config(&self) -> SystemConfig {
        SystemConfig {
            name: "array1".to_owned(),
            adapter: "lio".to_owned(),
            target: None,
            portals: vec![
                "198.18.0.1:3260".parse().unwrap(),
                "198.18.1.1:3260".parse().unwrap(),
            ],
            aggregates: vec![AggregateConfig {
                name: "aggr1".to_owned(),
                kind: "reflink".to_owned(),
                path: self.path("aggr1"),
                overcommit: 1.0,
                reserve: 0,
            }],
        }
    }

    pub(super) fn try_start(&self) -> Result<Lio, AdapterError> {
        Lio::open(self.config(), &self.path("state"), Box::new(self.kernel.clone()))
    }

    pub(crate) fn start(&self) -> Lio {
        self.try_start().unwrap()
    }

    pub(super) fn snapshot_data(&self, id: &str) -> PathBuf {
        self.path("aggr1/snapshots").join(id).join("data")
    }

    pub(super) fn data(&self, id: &str) -> PathBuf {
        self.path("aggr1/volumes").join(id).join("data")
    }

    /// Volumes on disk.
    pub(super) fn volumes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("aggr1/volumes")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

const FOREIGN: &str = "core/fileio_9";

/// What an administrator does beside the gateway.
impl Array {
    /// A LUN in the aggregate that begins with the word `content`. Its file.
    pub(super) fn foreign_lun(&self, name: &str, size: u64) -> PathBuf {
        let file = self.path("aggr1").join(format!("{name}.img"));
        std::fs::write(&file, "content").unwrap();
        let data = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
        data.set_len(size).unwrap();
        self.foreign_backstore(name, &file, size);
        file
    }

    pub(super) fn foreign_backstore(&self, name: &str, file: &Path, size: u64) {
        let directory = format!("{FOREIGN}/{name}");
        self.kernel.make_directory(FOREIGN).unwrap();
        self.kernel.make_directory(&directory).unwrap();
        let control = format!("fd_dev_name={},fd_dev_size={size}", file.display());
        self.kernel
            .write(&format!("{directory}/control"), &control)
            .unwrap();
        self.foreign_value(name, "enable", "1");
    }

    pub(super) fn foreign_value(&self, name: &str, attribute: &str, value: &str) {
        self.kernel
            .write(&format!("{FOREIGN}/{name}/{attribute}"), value)
            .unwrap();
    }

    /// Makes the backstore a LUN of another target; the LUN's directory.
    pub(super) fn foreign_export(&self, name: &str) -> String {
        let group = "iscsi/iqn.2003-01.org.example:x/tpgt_1";
        let lun = format!("{group}/lun/lun_0");
        for directory in ["iscsi/iqn.2003-01.org.example:x", group, &lun] {
            self.kernel.make_directory(directory).unwrap();
        }
        self.kernel
            .link(&format!("{FOREIGN}/{name}"), &format!("{lun}/x"))
            .unwrap();
        lun
    }

    pub(super) fn foreign_unexport(&self, lun: &str) {
        self.kernel.unlink(&format!("{lun}/x")).unwrap();
        self.kernel.remove_directory(lun).unwrap();
    }

    pub(super) fn edit_record(&self, id: &str, from: &str, to: &str) {
        let record = self.data(id).with_file_name("record.json");
        let text = std::fs::read_to_string(&record).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&record, text.replace(from, to)).unwrap();
    }
}

pub(super) fn new(id: &str) -> NewVolume {
    NewVolume {
        id: id.to_owned(),
        aggregate: "aggr1".to_owned(),
        name: format!("pvc-{id}"),
        size_bytes: 3 * MIB + 1,
        limit_bytes: 0,
        provision: Provision::Thin,
        attributes: BTreeMap::new(),
        source: None,
    }
}

pub(super) fn access(host: &str) -> Access {
    Access {
        host: host.to_owned(),
        iscsi_initiator: format!("iqn.2026-11.com.example:{host}"),
        read_only: false,
        exclusive: true,
    }
}

#[test]
fn a_volume_lives_and_leaves_nothing() {
    let array = Array::new();
    let lio = array.start();
    let empty = array.kernel.tree();
    let made = lio.create(&new(ID)).unwrap();
    assert_eq!(made.size_bytes, 4 * MIB, "rounded up");
    assert_eq!(lio.create(&new(ID)).unwrap(), made, "the same again is the same");
    assert_eq!(std::fs::metadata(array.data(ID)).unwrap().len(), 4 * MIB);

    let mapped = lio.map(ID, &access("node1")).unwrap();
    assert_eq!(lio.map(ID, &access("node1")).unwrap(), mapped);
    let lun = mapped.mappings[0].lun;
    let tree = array.kernel.tree();
    for path in [
        format!("core/fileio_0/storagelink.array1.{ID}"),
        format!("{GROUP}/np/198.18.0.1:3260"),
        format!("{GROUP}/lun/lun_{lun}/storagelink"),
        format!("{GROUP}/acls/iqn.2026-11.com.example:node1/lun_{lun}/storagelink"),
    ] {
        assert!(tree.contains(&path), "{path} in {tree:#?}");
    }
    let value = |path: String| array.kernel.value(&path).unwrap();
    assert_eq!(
        value(format!("{GROUP}/attrib/generate_node_acls")),
        "0",
        "never demo mode"
    );
    assert_eq!(
        value(format!(
            "core/fileio_0/storagelink.array1.{ID}/wwn/vpd_unit_serial"
        )),
        made.serial
    );
    assert_eq!(
        value(format!(
            "{GROUP}/acls/iqn.2026-11.com.example:node1/lun_{lun}/write_protect"
        )),
        "0"
    );

    assert!(matches!(lio.delete(ID), Err(AdapterError::Mapped { .. })));
    for _ in 0..2 {
        lio.unmap(ID, Some("node1")).unwrap();
    }
    for _ in 0..2 {
        lio.delete(ID).unwrap();
    }
    assert_eq!(array.kernel.tree(), empty);
    assert!(array.volumes().is_empty() && lio.list().unwrap().is_empty());
    assert_ne!(lio.create(&new(OTHER)).unwrap().wwid, made.wwid);
    assert_ne!(
        lio.map(OTHER, &access("node1")).unwrap().mappings[0].lun,
        lun,
        "a LUN number is not given twice"
    );
}

#[test]
fn what_differs_is_refused_and_named() {
    let array = Array::new();
    let lio = array.start();
    lio.create(&new(ID)).unwrap();
    for (change, word) in [
        (
            NewVolume {
                size_bytes: 9 * MIB,
                ..new(ID)
            },
            "size",
        ),
        (
            NewVolume {
                size_bytes: 1,
                limit_bytes: MIB,
                ..new(ID)
            },
            "size",
        ),
        (
            NewVolume {
                name: "other".into(),
                ..new(ID)
            },
            "name",
        ),
        (
            NewVolume {
                provision: Provision::Thick,
                ..new(ID)
            },
            "provision",
        ),
    ] {
        let error = lio.create(&change).unwrap_err();
        assert!(
            matches!(&error, AdapterError::Differs { differs, .. } if differs.contains(word)),
            "{error}"
        );
    }
    lio.map(ID, &access("node1")).unwrap();
    let error = lio.map(ID, &access("node2")).unwrap_err();
    assert!(
        error.to_string().contains("node1"),
        "the holder is named: {error}"
    );
    lio.map(
        ID,
        &Access {
            exclusive: false,
            ..access("node2")
        },
    )
    .unwrap();
    let read_only = Access {
        read_only: true,
        ..access("node1")
    };
    assert!(matches!(
        lio.map(ID, &read_only),
        Err(AdapterError::MappedDifferently { .. })
    ));
    let twin = Access {
        iscsi_initiator: access("node1").iscsi_initiator,
        exclusive: false,
        ..access("node3")
    };
    assert!(matches!(
        lio.map(ID, &twin),
        Err(AdapterError::SharedInitiator { .. })
    ));
    assert_eq!(lio.get(ID).unwrap().unwrap().mappings.len(), 2);
}

#[test]
fn a_full_aggregate_says_how_full_and_makes_nothing() {
    let array = Array::new();
    let lio = array.start();
    for provision in [Provision::Thin, Provision::Thick] {
        let error = lio
            .create(&NewVolume {
                size_bytes: 1 << 43,
                provision,
                ..new(ID)
            })
            .unwrap_err();
        assert!(
            matches!(error, AdapterError::Full { left, .. } if left > 0),
            "{error}"
        );
    }
    assert!(matches!(
        lio.create(&NewVolume {
            size_bytes: 1,
            limit_bytes: 2,
            ..new(ID)
        }),
        Err(AdapterError::Limit { .. })
    ));
    assert!(array.volumes().is_empty());
}

#[test]
fn thick_takes_its_space_and_growing_is_seen_by_the_kernel() {
    let array = Array::new();
    let lio = array.start();
    lio.create(&NewVolume {
        provision: Provision::Thick,
        ..new(ID)
    })
    .unwrap();
    assert!(std::fs::metadata(array.data(ID)).unwrap().blocks() * 512 >= 4 * MIB);
    lio.map(ID, &access("node1")).unwrap();
    assert_eq!(lio.expand(ID, 9 * MIB, 0).unwrap().size_bytes, 9 * MIB);
    assert_eq!(
        lio.expand(ID, MIB, 0).unwrap().size_bytes,
        9 * MIB,
        "it never shrinks"
    );
    let info = array
        .kernel
        .value(&format!("core/fileio_0/storagelink.array1.{ID}/info"))
        .unwrap();
    assert!(info.contains(&format!("Size: {}", 9 * MIB)), "{info}");
}

#[test]
fn data_that_is_not_the_volumes_is_never_served() {
    let lose = |path: &Path| std::fs::remove_file(path).unwrap();
    let replace = |path: &Path| {
        std::fs::remove_file(path).unwrap();
        std::fs::File::create(path).unwrap().set_len(64 * MIB).unwrap();
    };
    let cut = |path: &Path| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(1)
            .unwrap();
    };
    for (what, spoil) in [
        ("missing", &lose as &dyn Fn(&Path)),
        ("foreign", &replace),
        ("short", &cut),
    ] {
        let array = Array::new();
        array.start().create(&new(ID)).unwrap();
        spoil(&array.data(ID));
        // The machine starts again: configfs is empty.
        let array = Array {
            kernel: SimConfigFs::new(),
            ..array
        };
        let lio = array.start();
        assert!(
            !array.kernel.tree().iter().any(|path| path.contains(ID)),
            "{what}: it is not exported"
        );
        assert!(
            !lio.get(ID).unwrap().unwrap().abnormal_reason.is_empty(),
            "{what}"
        );
        assert!(
            matches!(lio.map(ID, &access("node1")), Err(AdapterError::Data { .. })),
            "{what}"
        );
        assert!(
            lio.get(ID).unwrap().unwrap().mappings.is_empty(),
            "{what}: nothing changed"
        );
    }
}

#[test]
fn an_unmounted_aggregate_is_closed_and_nothing_is_made_in_its_place() {
    let array = Array::new();
    array.start().create(&new(ID)).unwrap();
    std::fs::rename(array.path("aggr1"), array.path("unmounted")).unwrap();
    std::fs::create_dir(array.path("aggr1")).unwrap();
    let before = array.kernel.tree();
    let lio = array.start();
    assert!(lio.aggregates()[0].unavailable_reason.contains("mounted"));
    assert!(matches!(
        lio.create(&new(OTHER)),
        Err(AdapterError::Unavailable { .. })
    ));
    assert_eq!(std::fs::read_dir(array.path("aggr1")).unwrap().count(), 0);
    assert_eq!(array.kernel.tree(), before, "what the kernel serves goes on");
}

#[test]
fn a_restart_changes_nothing_and_a_machines_restart_brings_all_back() {
    let array = Array::new();
    let lio = array.start();
    lio.create(&new(ID)).unwrap();
    let mapped = lio.map(ID, &access("node1")).unwrap();
    let (tree, changes) = (array.kernel.tree(), array.kernel.changes());
    assert_eq!(array.start().get(ID).unwrap().unwrap(), mapped);
    assert_eq!(
        array.kernel.changes(),
        changes,
        "sessions and I/O are not disturbed"
    );
    let array = Array {
        kernel: SimConfigFs::new(),
        ..array
    };
    assert_eq!(array.start().get(ID).unwrap().unwrap(), mapped);
    assert_eq!(array.kernel.tree(), tree);
}

#[test]
fn a_volume_that_the_kernel_serves_from_elsewhere_is_not_trusted() {
    use super::ConfigFs;
    let array = Array::new();
    array.start().create(&new(ID)).unwrap();
    let control = format!("core/fileio_0/storagelink.array1.{ID}/control");
    array
        .kernel
        .write(&control, "fd_dev_name=/elsewhere/data")
        .unwrap();
    let lio = array.start();
    let error = lio.map(ID, &access("node1")).unwrap_err();
    assert!(
        matches!(&error, AdapterError::Data { problem, .. } if problem.contains("/elsewhere/data")),
        "{error}"
    );
    assert!(!array.kernel.tree().iter().any(|path| path.contains("/acls/iqn")));
}

#[test]
fn objects_of_others_are_left_alone() {
    use super::ConfigFs;
    let array = Array::new();
    for path in [
        "core/fileio_0",
        "core/fileio_0/disk1",
        "core/iblock_1",
        "iscsi",
        "iscsi/iqn.2003-01.org.linux-iscsi:x",
    ] {
        array.kernel.make_directory(path).unwrap();
    }
    let foreign = array.kernel.tree();
    let lio = array.start();
    lio.create(&new(ID)).unwrap();
    lio.delete(ID).unwrap();
    drop(lio);
    let tree = {
        array.start();
        array.kernel.tree()
    };
    assert!(foreign.iter().all(|path| tree.contains(path)), "{tree:#?}");
}
