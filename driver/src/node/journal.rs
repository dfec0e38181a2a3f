//! What was intended for each volume: one small file per volume in the state directory, written before the kernel is
//! touched and removed when nothing of the volume is left.
//!
//! It is a hint, never the truth: what is mounted and mapped is the kernel's to say, and every operation works without
//! the file. It keeps what the kernel cannot know: how to reach the volume, and that a format was begun. No secrets.

use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::single::SingleDisk;

/// How long a format that was begun may be begun again. A retry comes within minutes; a file that is older says nothing
/// about today's content of the disk, which may have been used from another node since.
const FORMAT_VALID: Duration = Duration::from_secs(3600);

/// One volume's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// The CSI volume id.
    pub volume_id: String,
    /// Where it is, or was about to be, staged.
    pub staging_path: PathBuf,
    /// `block` or the file system type.
    pub access: String,
    /// The publish context as it came.
    pub publish_context: HashMap<String, String>,
    /// The stage came to its end.
    pub staged: bool,
    /// The disk of a volume that is staged without multipathing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single: Option<SingleDisk>,
    /// When a format of the disk, found blank, was begun and not seen to end: seconds since 1970.
    pub formatting: Option<u64>,
}

impl Entry {
    /// True when a format of this very disk was begun by this node a short while ago and did not end: what is on it
    /// came from that.
    #[must_use]
    pub fn may_format_again(&self) -> bool {
        let now = now();
        self.formatting
            .is_some_and(|at| at <= now && now - at <= FORMAT_VALID.as_secs())
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// A file that could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("volume record {}", path.display())]
pub struct JournalError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The directory of files. Its file system is a local one.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// The files below `state`, the plugin's state directory; both are made when they are missing.
    pub fn open(state: &Path) -> Result<Self, JournalError> {
        let directory = state.join("volumes");
        fs::create_dir_all(&directory).map_err(|source| JournalError {
            path: directory.clone(),
            source,
        })?;
        Ok(Self { directory })
    }

    /// The file of a volume. One that cannot be understood counts as none, with a line in the log: it is a hint.
    pub async fn get(&self, volume: Uuid) -> Result<Option<Entry>, JournalError> {
        self.run(volume, |path| match fs::read(path) {
            Ok(content) => Ok(parse(path, &content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    /// Writes a file: on disk, whole, when this returns.
    pub async fn put(&self, volume: Uuid, entry: &Entry) -> Result<(), JournalError> {
        let content = serde_json::to_vec(entry).map_err(|e| self.error(volume, e.into()))?;
        self.run(volume, move |path| {
            let new = path.with_extension("new");
            let mut file = fs::File::create(&new)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            sync_directory(path)
        })
        .await
    }

    /// Removes a file; a missing one is fine.
    pub async fn remove(&self, volume: Uuid) -> Result<(), JournalError> {
        self.run(volume, |path| match fs::remove_file(path) {
            Ok(()) => sync_directory(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }

    /// Nothing of the volume is left on this node: removes its file. One that says that a format was begun is kept for a
    /// while, or the rest of that format would look like data to the next stage.
    pub async fn settle(&self, volume: Uuid) -> Result<(), JournalError> {
        match self.get(volume).await? {
            Some(entry) if entry.may_format_again() => {
                self.put(
                    volume,
                    &Entry {
                        staged: false,
                        single: None,
                        ..entry
                    },
                )
                .await
            }
            _ => self.remove(volume).await,
        }
    }

    /// Every file that can be understood.
    pub async fn list(&self) -> Result<Vec<(Uuid, Entry)>, JournalError> {
        let directory = self.directory.clone();
        blocking(move || {
            let mut entries = Vec::new();
            for file in fs::read_dir(&directory)? {
                let path = file?.path();
                let stem = path
                    .file_stem()
                    .and_then(|s| s.to_str())
                    .and_then(|s| Uuid::try_parse(s).ok());
                if let (Some(volume), Some("json")) = (stem, path.extension().and_then(|e| e.to_str()))
                    && let Some(entry) = parse(&path, &fs::read(&path)?)
                {
                    entries.push((volume, entry));
                }
            }
            Ok(entries)
        })
        .await
        .map_err(|source| JournalError {
            path: self.directory.clone(),
            source,
        })
    }

    pub(super) fn path(&self, volume: Uuid) -> PathBuf {
        self.directory.join(format!("{}.json", volume.hyphenated()))
    }

    fn error(&self, volume: Uuid, source: io::Error) -> JournalError {
        JournalError {
            path: self.path(volume),
            source,
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        volume: Uuid,
        f: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, JournalError> {
        let path = self.path(volume);
        blocking(move || f(&path))
            .await
            .map_err(|source| self.error(volume, source))
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(f).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn parse(path: &Path, content: &[u8]) -> Option<Entry> {
    serde_json::from_slice(content)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "volume record is damaged: ignored"),
        )
        .ok()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            volume_id: "x".into(),
            staging_path: "/s".into(),
            access: "ext4".into(),
            publish_context: HashMap::from([("lun".into(), "1".into())]),
            staged: false,
            formatting: None,
            single: None,
        }
    }

    #[tokio::test]
    async fn an_entry_survives_and_a_half_written_or_damaged_one_is_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let journal = Journal::open(dir.path()).expect("opens");
        let [a, b, c] = [1, 2, 3].map(Uuid::from_u128);
        journal.put(a, &entry()).await.expect("writes");
        journal
            .put(
                a,
                &Entry {
                    staged: true,
                    ..entry()
                },
            )
            .await
            .expect("writes again");
        fs::write(journal.path(b).with_extension("new"), "{").expect("writes");
        fs::write(journal.path(c), "{}").expect("writes");

        let journal = Journal::open(dir.path()).expect("opens again");
        assert!(journal.get(a).await.expect("reads").expect("is there").staged);
        assert_eq!(journal.get(b).await.expect("reads"), None);
        assert_eq!(journal.get(c).await.expect("reads"), None);
        assert_eq!(journal.list().await.expect("lists").len(), 1);
        for _ in 0..2 {
            journal.remove(a).await.expect("removes");
        }
        assert!(journal.list().await.expect("lists").is_empty());
    }

    #[test]
    fn a_format_may_be_repeated_only_for_a_while() {
        let of = |formatting| {
            Entry {
                formatting,
                ..entry()
            }
            .may_format_again()
        };
        assert!(of(Some(now())));
        assert!(!of(None));
        assert!(!of(Some(now() - 3700)), "long ago");
        assert!(!of(Some(now() + 100)), "the clock was set back");
    }
}
