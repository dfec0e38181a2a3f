//! LUN numbers: given once to a volume for life, and not again while a node could still hold the old device.
//!
//! A node that kept a device at a LUN number which now leads to another volume would read and write the wrong disk, without any error. So the
//! counter only grows, over restarts too, and wraps after 16383.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{adapter::AdapterError, files};

/// The largest number: 14 bits, what flat space addressing carries (SAM-5 4.7.7.3).
pub(super) const LAST: u32 = 16_383;

/// The counter of one target, kept in a file.
#[derive(Debug)]
pub struct LunCounter {
    path: PathBuf,
    last: u32,
}

/// The number after `last` that nobody has, in the order of the counter.
fn next(last: u32, taken: &BTreeSet<u32>) -> Option<u32> {
    (1..=LAST)
        .map(|step| (last + step - 1) % LAST + 1)
        .find(|number| !taken.contains(number))
}

impl LunCounter {
    /// Reads the counter; a missing file starts after the largest number taken.
    ///
    /// # Errors
    /// The file cannot be read, or holds no number.
    pub fn open(path: &Path, taken: &BTreeSet<u32>) -> Result<Self, AdapterError> {
        let wrap = |source| AdapterError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let last = match std::fs::read_to_string(path) {
            Ok(text) => text
                .trim()
                .parse()
                .ok()
                .filter(|last| *last <= LAST)
                .ok_or_else(|| wrap(std::io::Error::other("does not hold a LUN number")))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => taken.last().copied().unwrap_or(0),
            Err(source) => return Err(wrap(source)),
        };
        let counter = Self {
            path: path.to_owned(),
            last,
        };
        counter.keep(last)?;
        Ok(counter)
    }

    fn keep(&self, last: u32) -> Result<(), AdapterError> {
        files::write_durably(&self.path, format!("{last}\n").as_bytes(), 0o600).map_err(|source| {
            AdapterError::Io {
                action: "write",
                path: self.path.clone(),
                source,
            }
        })
    }

    /// The next number; it is on stable storage that it was given before it is given.
    ///
    /// # Errors
    /// All are taken, or the file cannot be written.
    pub fn take(&mut self, taken: &BTreeSet<u32>, system: &str) -> Result<u32, AdapterError> {
        let number = next(self.last, taken).ok_or_else(|| AdapterError::NoLun(system.to_owned()))?;
        self.keep(number)?;
        self.last = number;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_comes_back_only_after_all_others(keep in proptest::collection::vec(any::<bool>(), 1..60)) {
            let home = tempfile::tempdir().unwrap();
            let mut taken = BTreeSet::new();
            let mut given = Vec::new();
            for keep in keep {
                // A restart before each.
                let mut counter = LunCounter::open(&home.path().join("lun"), &taken).unwrap();
                let number = counter.take(&taken, "s").unwrap();
                prop_assert!(!given.contains(&number));
                given.push(number);
                if keep {
                    taken.insert(number);
                }
            }
        }
    }

    #[test]
    fn it_wraps_past_numbers_in_use() {
        assert_eq!(next(LAST, &BTreeSet::from([1, 2])), Some(3));
        assert_eq!(next(LAST - 1, &BTreeSet::from([LAST])), Some(1));
        assert_eq!(next(5, &(1..=LAST).collect()), None);
    }

    #[test]
    fn a_lost_file_starts_after_what_is_in_use_and_a_bad_one_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lun");
        let taken = BTreeSet::from([7]);
        assert_eq!(
            LunCounter::open(&path, &taken)
                .unwrap()
                .take(&taken, "s")
                .unwrap(),
            8
        );
        std::fs::write(&path, "x").unwrap();
        assert!(LunCounter::open(&path, &taken).is_err());
    }
}
