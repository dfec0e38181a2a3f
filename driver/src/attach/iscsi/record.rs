//! Which sessions this plugin opened: one small file per path in the state directory, written before the login and
//! removed after the logout, so that a crash in between leaves a file that says what to clean up.
//!
//! A file is an intention, not the truth: whether the session is there is the kernel's to say.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::portal;
use crate::publish_context::Portal;

/// Who made the entry of this path in open-iscsi's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NodeEntry {
    /// This plugin: it may be set up again and is deleted after the logout.
    Ours,
    /// It was there before: it is used as it is and stays.
    Found,
}

/// A session that this plugin opens, or opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The path.
    pub(super) portal: Portal,
    /// The boot in which it was opened: sessions do not outlive one.
    pub(super) boot: String,
    /// Whose entry the login uses.
    pub(super) entry: NodeEntry,
    /// How far the login came.
    pub(super) login: LoginMark,
}

impl Record {
    /// The same with its login done.
    pub(super) fn done(&self) -> Self {
        Self {
            login: LoginMark::Done,
            ..self.clone()
        }
    }
}

/// How far a login is known to have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LoginMark {
    /// It was begun. iscsid may still end it in a session, also when nobody waits for that any more.
    Begun,
    /// The session was there.
    Done,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    portal: String,
    boot: String,
    entry: NodeEntry,
    login: LoginMark,
}

/// A record that could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("session record {}", path.display())]
pub struct RecordError {
    /// The file or directory.
    path: PathBuf,
    /// Why.
    #[source]
    source: io::Error,
}

/// The directory of records. All calls block for as long as the state directory's file system does.
#[derive(Clone, Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    /// Records below `state`, the plugin's state directory, which is made when it is missing.
    pub(super) fn open(state: &Path) -> Result<Self, RecordError> {
        let directory = state.join("iscsi-sessions");
        fs::create_dir_all(&directory).map_err(|source| RecordError {
            path: directory.clone(),
            source,
        })?;
        Ok(Self { directory })
    }

    /// The record of a path. One that cannot be parsed is an error: guessing whose session it is would be worse.
    pub(super) fn get(&self, portal: &Portal) -> Result<Option<Record>, RecordError> {
        let path = self.path(portal);
        match read(&path) {
            Ok(record) => Ok(Some(record)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RecordError { path, source }),
        }
    }

    /// Writes a record so that it is on disk, whole, when this returns.
    pub(super) fn put(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.portal);
        let stored = Stored {
            portal: record.portal.to_string(),
            boot: record.boot.clone(),
            entry: record.entry,
            login: record.login,
        };
        let write = || {
            let new = path.with_extension("new");
            let mut file = fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec(&stored)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| RecordError {
            path: path.clone(),
            source,
        })
    }

    /// How long ago a record was written; zero when that cannot be told.
    pub(super) fn age(&self, portal: &Portal) -> Duration {
        let written = fs::metadata(self.path(portal)).and_then(|meta| meta.modified());
        written
            .ok()
            .and_then(|written| written.elapsed().ok())
            .unwrap_or_default()
    }

    /// Removes a record; one that is not there is gone already.
    pub(super) fn remove(&self, portal: &Portal) -> Result<(), RecordError> {
        let path = self.path(portal);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(RecordError { path, source }),
        }
    }

    /// Every record, and what could not be read.
    pub(super) fn list(&self) -> Result<(Vec<Record>, Vec<RecordError>), RecordError> {
        let failed = |source| RecordError {
            path: self.directory.clone(),
            source,
        };
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // `.new` is what a crash in the middle of a write leaves; the next write of that record replaces it.
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => errors.push(RecordError { path, source }),
            }
        }
        Ok((records, errors))
    }

    fn path(&self, portal: &Portal) -> PathBuf {
        // A digest keeps a hostile target name out of the path and any name within the file system's limit.
        let digest = hex::encode(Sha256::digest(portal::key(portal).to_string()));
        self.directory.join(format!("{}.json", &digest[..32]))
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let stored: Stored = serde_json::from_slice(&fs::read(path)?)?;
    let portal = stored
        .portal
        .parse()
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(Record {
        portal,
        boot: stored.boot,
        entry: stored.entry,
        login: stored.login,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portal(address: &str) -> Portal {
        format!("{address}:3260,1,iqn.2026-11.com.example:t1")
            .parse()
            .expect("a portal")
    }

    #[test]
    fn records_survive_and_half_written_ones_are_not_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let records = Records::open(dir.path()).expect("opens");
        let record = Record {
            portal: portal("[2001:db8::1]"),
            boot: "b1".into(),
            entry: NodeEntry::Found,
            login: LoginMark::Done,
        };
        records.put(&record).expect("writes");
        records
            .put(&Record {
                portal: portal("192.0.2.1"),
                ..record.clone()
            })
            .expect("writes");
        fs::write(dir.path().join("iscsi-sessions/half.new"), "{\"target\":").expect("writes");

        let again = Records::open(dir.path()).expect("opens");
        assert_eq!(again.get(&record.portal).expect("reads"), Some(record.clone()));
        assert_eq!(again.get(&portal("192.0.2.2")).expect("reads"), None);
        let (all, errors) = again.list().expect("lists");
        assert_eq!((all.len(), errors.len()), (2, 0));

        again.remove(&record.portal).expect("removes");
        again.remove(&record.portal).expect("is gone already");
        assert_eq!(again.get(&record.portal).expect("reads"), None);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let records = Records::open(dir.path()).expect("opens");
        let record = Record {
            portal: portal("192.0.2.1"),
            boot: "b1".into(),
            entry: NodeEntry::Ours,
            login: LoginMark::Begun,
        };
        records.put(&record).expect("writes");
        fs::write(records.path(&record.portal), "{}").expect("writes");
        let error = records.get(&record.portal).expect_err("damaged");
        assert!(error.to_string().contains("iscsi-sessions"), "{error}");
        assert_eq!(records.list().expect("lists").1.len(), 1);
    }
}
