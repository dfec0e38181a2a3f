//! A LUN that somebody else made in an aggregate becomes a volume, by its name, with its content.
//!
//! Nothing of the LUN changes before its volume is ready; only then do the old backstore and the old name of its file go, at once or with
//! the next call or start. A LUN that anybody could reach, or whose content may not be what it seems, is never taken. It gets a new WWID:
//! a host that knew it under the old one does not take it for its own.

use std::path::PathBuf;

use super::{Lio, State, objects, objects::Objects};
use crate::{
    adapter::{AdapterError, NewVolume},
    records::{Source, VolumeRecord},
};

/// How many names an error lists.
const CHOICES: usize = 20;
/// What the kernel's file backstore shows without being told otherwise, and so do volumes.
const BLOCK_SIZE: &str = "512";

/// A LUN that may become a volume.
pub(super) struct Adoptable {
    /// Its data.
    pub(super) file: PathBuf,
    /// Its size in bytes.
    pub(super) size_bytes: u64,
}

/// A backstore that is not this gateway's.
struct Foreign {
    /// Its directory in configfs.
    directory: String,
    name: String,
}

impl Foreign {
    fn is_file(&self) -> bool {
        self.directory.starts_with("core/fileio_")
    }
}

impl Objects {
    fn foreign(&self) -> Result<Vec<Foreign>, AdapterError> {
        let mut found = Vec::new();
        for hba in self.tree.directories("core")? {
            // `alua` lies beside the HBAs, whose names end with a number.
            let number = hba
                .rsplit_once('_')
                .and_then(|(_, number)| number.parse::<u32>().ok());
            if number.is_none() {
                continue;
            }
            for name in self.tree.directories(&format!("core/{hba}"))? {
                if !name.starts_with("storagelink.") {
                    let directory = format!("core/{hba}/{name}");
                    found.push(Foreign { directory, name });
                }
            }
        }
        Ok(found)
    }

    /// Where a backstore is a LUN: `<fabric>/<target>/<portal group>/lun_<n>`, of all fabrics of the kernel.
    fn exported(&self, backstore: &str) -> Result<Option<String>, AdapterError> {
        for fabric in self.tree.directories("")?.iter().filter(|name| *name != "core") {
            for target in self.tree.directories(fabric)? {
                for group in self.tree.directories(&format!("{fabric}/{target}"))? {
                    let place = format!("{fabric}/{target}/{group}");
                    for lun in self.tree.directories(&format!("{place}/lun"))? {
                        if self.tree.leads_to(&format!("{place}/lun/{lun}"), backstore)? {
                            return Ok(Some(format!("{place}/{lun}")));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    fn value(&self, foreign: &Foreign, attribute: &str) -> Result<String, AdapterError> {
        self.tree.read(&format!("{}/{attribute}", foreign.directory))
    }
}

impl Lio {
    /// Looks for the LUN that a new volume shall be; `None` when it shall be none.
    pub(super) fn lun_of(&self, new: &NewVolume) -> Result<Option<Adoptable>, AdapterError> {
        let Some(Source::Lun(lun)) = &new.source else {
            return Ok(None);
        };
        let doubt = |problem: String| AdapterError::InDoubt {
            lun: lun.clone(),
            problem,
        };
        let all = self.objects.foreign()?;
        let named: Vec<&Foreign> = all.iter().filter(|foreign| foreign.name == *lun).collect();
        let foreign = match named[..] {
            [one] => one,
            [] => return Err(self.no_lun_named(new, lun, &all)),
            [first, second, ..] => {
                return Err(doubt(format!(
                    "two backstores have this name: {} and {}",
                    first.directory, second.directory
                )));
            }
        };
        if let Some(place) = self.objects.exported(&foreign.directory)? {
            return Err(doubt(format!(
                "it is exported as {place}, so somebody may be writing to it: delete that LUN in targetcli first"
            )));
        }
        if !foreign.is_file() {
            return Err(doubt(format!("{} is not a fileio backstore", foreign.directory)));
        }
        let block_size = self.objects.value(foreign, "attrib/block_size")?;
        if block_size != BLOCK_SIZE {
            return Err(doubt(format!(
                "it has blocks of {block_size} bytes, volumes have {BLOCK_SIZE}: a file system on it would not be found"
            )));
        }
        let info = self.objects.value(foreign, "info")?;
        let (Some(file), Some(size_bytes)) = (objects::file_of(&info), objects::size_of(&info)) else {
            return Err(doubt(format!("{} is not enabled", foreign.directory)));
        };
        let file = PathBuf::from(file);
        self.pool(&new.aggregate)?
            .check_adoptable(&file, size_bytes)
            .map_err(doubt)?;
        if size_bytes < new.size_bytes || (new.limit_bytes > 0 && size_bytes > new.limit_bytes) {
            return Err(AdapterError::Source {
                from: Source::Lun(lun.clone()),
                problem: format!(
                    "it has {size_bytes} bytes; asked for are {} or more{}",
                    new.size_bytes,
                    match new.limit_bytes {
                        0 => String::new(),
                        limit => format!(", at most {limit}"),
                    }
                ),
            });
        }
        Ok(Some(Adoptable { file, size_bytes }))
    }

    fn no_lun_named(&self, new: &NewVolume, lun: &str, all: &[Foreign]) -> AdapterError {
        let mut names: Vec<&str> = all
            .iter()
            .filter(|foreign| foreign.is_file())
            .map(|foreign| foreign.name.as_str())
            .collect();
        names.sort_unstable();
        names.truncate(CHOICES);
        AdapterError::NoLunNamed {
            system: self.config.name.clone(),
            aggregate: new.aggregate.clone(),
            lun: lun.to_owned(),
            choices: if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        }
    }

    /// Takes away what an adopted LUN was before: its backstore and the old name of its file.
    ///
    /// # Errors
    /// It was exported in the meantime: the volume is not served then.
    pub(super) fn settle(&self, state: &mut State, record: &mut VolumeRecord) -> Result<(), AdapterError> {
        let (Some(Source::Lun(lun)), Some(former)) = (&record.source, record.former_file.clone()) else {
            return Ok(());
        };
        for foreign in self.objects.foreign()? {
            if foreign.name != *lun || !foreign.is_file() {
                continue;
            }
            let info = self.objects.value(&foreign, "info")?;
            if objects::file_of(&info).map(PathBuf::from).as_ref() != Some(&former) {
                continue;
            }
            if let Some(place) = self.objects.exported(&foreign.directory)? {
                return Err(AdapterError::Data {
                    id: record.id.clone(),
                    problem: format!(
                        "LUN `{lun}`, which it was, is exported as {place}: delete that LUN in targetcli"
                    ),
                });
            }
            self.objects.remove_backstore_at(&foreign.directory)?;
        }
        self.pool(&record.aggregate)?.drop_former_name(record, &former)?;
        record.former_file = None;
        self.save(state, record)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use crate::{
        adapter::{Adapter as _, AdapterError, NewVolume},
        adapters::lio::tests::{Array, MIB, access, new},
        records::Source,
    };

    const ID: &str = "0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
    const OTHER: &str = "1b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e";
    const LUN: &str = "oracle-1";

    fn wanted(id: &str) -> NewVolume {
        NewVolume {
            size_bytes: MIB,
            source: Some(Source::Lun(LUN.to_owned())),
            ..new(id)
        }
    }

    fn in_doubt(result: Result<impl std::fmt::Debug, AdapterError>, text: &str) {
        match result {
            Err(AdapterError::InDoubt { lun, problem }) => {
                assert_eq!(lun, LUN);
                assert!(problem.contains(text), "{problem}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lun_becomes_a_volume_with_its_content_and_is_nobody_elses_any_more() {
        let array = Array::new();
        let lio = array.start();
        let file = array.foreign_lun(LUN, 4 * MIB);
        let inode = fs::metadata(&file).unwrap().ino();
        let made = lio.create(&wanted(ID)).unwrap();
        assert_eq!((made.size_bytes, made.source_lun.as_str()), (4 * MIB, LUN));
        assert!(!file.exists() && !array.kernel.tree().iter().any(|path| path.ends_with(LUN)));
        assert_eq!(
            fs::metadata(array.data(ID)).unwrap().ino(),
            inode,
            "nothing was copied"
        );
        assert!(fs::read(array.data(ID)).unwrap().starts_with(b"content"));
        // The same again, another claim for it, a new start, a host.
        assert_eq!(lio.create(&wanted(ID)).unwrap(), made);
        assert!(matches!(
            lio.create(&wanted(OTHER)),
            Err(AdapterError::NoLunNamed { .. })
        ));
        drop(lio);
        let lio = array.start();
        assert_eq!(lio.get(ID).unwrap().unwrap(), made);
        lio.map(ID, &access("node1")).unwrap();
    }

    #[test]
    fn what_is_in_doubt_is_refused_and_left_as_it_was() {
        let array = Array::new();
        let lio = array.start();
        assert!(matches!(
            lio.create(&wanted(ID)),
            Err(AdapterError::NoLunNamed { choices, .. }) if choices == "none"
        ));
        let file = array.foreign_lun(LUN, 4 * MIB);
        let lun = array.foreign_export(LUN);
        in_doubt(
            lio.create(&wanted(ID)),
            "exported as iscsi/iqn.2003-01.org.example:x/tpgt_1/lun_0",
        );
        array.foreign_unexport(&lun);

        array.foreign_value(LUN, "attrib/block_size", "4096");
        in_doubt(lio.create(&wanted(ID)), "4096");
        array.foreign_value(LUN, "attrib/block_size", "512");

        fs::hard_link(&file, file.with_extension("second")).unwrap();
        in_doubt(lio.create(&wanted(ID)), "2 names");
        fs::remove_file(file.with_extension("second")).unwrap();

        xattr::set(&file, "user.storagelink", b"somebody").unwrap();
        in_doubt(lio.create(&wanted(ID)), "somebody");
        xattr::remove(&file, "user.storagelink").unwrap();

        fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .unwrap()
            .set_len(5 * MIB)
            .unwrap();
        in_doubt(lio.create(&wanted(ID)), "behind its end");
        fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .unwrap()
            .set_len(4 * MIB)
            .unwrap();

        for (size_bytes, limit_bytes) in [(5 * MIB, 0), (MIB, 2 * MIB)] {
            let wanted = NewVolume {
                size_bytes,
                limit_bytes,
                ..wanted(ID)
            };
            assert!(matches!(lio.create(&wanted), Err(AdapterError::Source { .. })));
        }
        assert!(lio.list().unwrap().is_empty() && array.volumes().is_empty());
        assert!(fs::read(&file).unwrap().starts_with(b"content"));
        lio.create(&wanted(ID)).unwrap();
    }

    #[test]
    fn killed_at_any_change_of_the_kernel_the_content_is_in_one_place_and_the_call_goes_on() {
        for changes in 0.. {
            let array = Array::new();
            let lio = array.start();
            let file = array.foreign_lun(LUN, 4 * MIB);
            array.kernel.kill_after(changes);
            let killed = lio.create(&wanted(ID)).is_err();
            drop(lio);
            array.kernel.restart();
            let lio = array.start();
            let made = lio.create(&wanted(ID)).unwrap();
            assert_eq!(made.size_bytes, 4 * MIB);
            assert!(!file.exists(), "after {changes} changes");
            assert!(fs::read(array.data(ID)).unwrap().starts_with(b"content"));
            assert!(!array.kernel.tree().iter().any(|path| path.ends_with(LUN)));
            if !killed {
                break;
            }
        }
    }

    #[test]
    fn one_that_is_exported_after_its_adoption_is_not_served() {
        let array = Array::new();
        let lio = array.start();
        let file = array.foreign_lun(LUN, 4 * MIB);
        let made = lio.create(&wanted(ID)).unwrap();
        drop(lio);
        // As if the gateway had been killed before it took the old LUN away.
        fs::hard_link(array.data(ID), &file).unwrap();
        array.foreign_backstore(LUN, &file, 4 * MIB);
        array.edit_record(
            ID,
            "\"source\"",
            &format!("\"former_file\": {file:?}, \"source\""),
        );
        let lun = array.foreign_export(LUN);
        let lio = array.start();
        let shown = lio.get(ID).unwrap().unwrap();
        assert!(
            shown.abnormal_reason.contains("exported as"),
            "{}",
            shown.abnormal_reason
        );
        assert!(matches!(
            lio.map(ID, &access("node1")),
            Err(AdapterError::Data { .. })
        ));
        assert!(lio.get(ID).unwrap().unwrap().mappings.is_empty());
        array.foreign_unexport(&lun);
        lio.map(ID, &access("node1")).unwrap();
        assert!(!file.exists());
        assert_eq!(lio.get(ID).unwrap().unwrap().wwid, made.wwid);
    }
}
