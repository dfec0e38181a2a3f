//! The file systems that this driver makes, checks and grows, and the mount options that it takes.
//!
//! It must never be asked to format a disk that was not found blank ([`super::blank`]); it formats without a force
//! option where the maker has one, as a last guard. Options that would make a file system open other devices of the
//! host, or that change the mount tree, are refused.

use std::{fmt, path::Path, str::FromStr, time::Duration};

use nix::mount::MsFlags;

use crate::programs::{Exit, Finished, Invocation, Program, ProgramError, Programs};

/// A file system type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl FsType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As mount(2) and a StorageClass spell it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type that is not one of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("file system type `{0}` is not one of ext4, xfs, btrfs")]
pub struct FsTypeError(String);

impl FromStr for FsType {
    type Err = FsTypeError;
    /// An empty text is the default, ext4.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.is_empty() {
            return Ok(Self::Ext4);
        }
        Self::ALL
            .into_iter()
            .find(|f| f.name() == s)
            .ok_or_else(|| FsTypeError(s.chars().take(32).collect()))
    }
}

/// A list of mount options, taken apart as mount(2) wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Options of every file system, without [`MsFlags::MS_RDONLY`].
    pub flags: MsFlags,
    /// `ro` was asked for.
    pub read_only: bool,
    /// Options of the one file system, in the order given.
    pub data: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            flags: MsFlags::empty(),
            read_only: false,
            data: Vec::new(),
        }
    }
}

/// Longest sum of all options in bytes: what the kernel takes as data is one page (mount(2)).
pub const MAX_OPTIONS_BYTES: usize = 4000;

/// Options of every file system: name, flag, and whether the name sets it or clears it.
const GENERIC: [(&str, MsFlags, bool); 20] = [
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("lazytime", MsFlags::MS_LAZYTIME, true),
    ("nolazytime", MsFlags::MS_LAZYTIME, false),
    ("silent", MsFlags::MS_SILENT, true),
];

/// Options that mean something to mount(8) or to an init system only.
const IGNORED: [&str; 3] = ["defaults", "_netdev", "nofail"];

/// Options that act on the mount tree, and those that make a file system open another device of the host.
const REFUSED: [&str; 19] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "shared",
    "rshared",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "device",
    "logdev",
    "rtdev",
    "journal_path",
    "journal_dev",
    "offset",
];

/// A mount option that is not taken. It never quotes the value: CSI calls `mount_flags` possibly sensitive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// It would change the mount tree or open another device.
    #[error("mount option `{0}` is not allowed for a volume")]
    Refused(String),
    /// It holds a control character or is empty.
    #[error("mount option {0} (counted from 1) is empty or holds a control character")]
    Malformed(usize),
    /// All together are too long.
    #[error("mount options have {0} bytes, at most {MAX_OPTIONS_BYTES} are allowed")]
    TooLong(usize),
}

impl MountOptions {
    /// Takes apart options, each of which may hold several separated by commas. Of contradicting ones the last counts,
    /// as with mount(8).
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, OptionError> {
        let length = options.iter().map(|o| o.as_ref().len() + 1).sum();
        if length > MAX_OPTIONS_BYTES {
            return Err(OptionError::TooLong(length));
        }
        let mut parsed = Self::default();
        for (i, option) in options.iter().enumerate() {
            for word in option.as_ref().split(',') {
                if word.is_empty() || word.chars().any(char::is_control) {
                    return Err(OptionError::Malformed(i + 1));
                }
                parsed.add(word)?;
            }
        }
        Ok(parsed)
    }

    fn add(&mut self, word: &str) -> Result<(), OptionError> {
        let name = word.split('=').next().unwrap_or(word);
        if REFUSED.contains(&name) {
            return Err(OptionError::Refused(name.to_owned()));
        }
        if let Some((_, flag, set)) = GENERIC.iter().find(|(n, ..)| *n == word) {
            self.flags.set(*flag, *set);
        } else if word == "ro" || word == "rw" {
            self.read_only = word == "ro";
        } else if !IGNORED.contains(&word)
            && !name.to_ascii_lowercase().starts_with("x-")
            && name != "comment"
        {
            self.data.push(word.to_owned());
        }
        Ok(())
    }
}

/// Time limit of a look at a disk by blkid.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// Time limit of a format. It discards nothing, so it does not grow much with the disk.
const MAKE_LIMIT: Duration = Duration::from_secs(300);
/// Time limit of a check: a large damaged ext4 takes long.
const CHECK_LIMIT: Duration = Duration::from_secs(1800);
/// Time limit of a growth.
const GROW_LIMIT: Duration = Duration::from_secs(600);

/// A file system step that failed.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// A program is missing, failed or took too long.
    #[error("{step} {fs}")]
    Program {
        /// `make`, `check`, ...
        step: &'static str,
        /// Which file system.
        fs: FsType,
        /// What the program said.
        #[source]
        source: ProgramError,
    },
    /// The check found what it may not repair by itself.
    #[error("the ext4 file system has errors that `e2fsck -p` does not repair; run e2fsck by hand")]
    Damaged {
        /// What e2fsck said.
        #[source]
        source: ProgramError,
    },
    /// blkid could not look.
    #[error("probe for signatures")]
    Probe {
        /// What it said.
        #[source]
        source: ProgramError,
    },
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Asks blkid's low-level probe for any signature. `None`: nothing found. Otherwise its words for what is there.
pub async fn signature(programs: &dyn Programs, node: &Path) -> Result<Option<String>, FsError> {
    let args = ["-p".to_owned(), "-o".to_owned(), "export".to_owned(), text(node)];
    let finished = programs
        .run(Invocation::new(Program::Blkid, args, PROBE_LIMIT))
        .await
        .map_err(|source| FsError::Probe { source })?;
    match finished.exit {
        Exit::Code(0) => Ok(Some(words(&finished.stdout))),
        // blkid(8): 2 is nothing found, but also a device that cannot be opened; then it says so.
        Exit::Code(2) if finished.stderr.trim().is_empty() => Ok(None),
        Exit::Code(8) => Ok(Some("signatures of more than one format".to_owned())),
        _ => Err(FsError::Probe {
            source: finished.into_error(),
        }),
    }
}

/// The TYPE and PTTYPE lines of blkid's export format.
fn words(export: &str) -> String {
    let found: Vec<_> = export
        .lines()
        .filter_map(|l| l.strip_prefix("TYPE=").or_else(|| l.strip_prefix("PTTYPE=")))
        .map(|v| {
            v.chars()
                .filter(|c| c.is_ascii_graphic())
                .take(40)
                .collect::<String>()
        })
        .collect();
    if found.is_empty() {
        "an unnamed signature".to_owned()
    } else {
        found.join(" and ")
    }
}

/// Formats a disk. `force` only for a disk on which this driver's own format was interrupted.
pub async fn make(programs: &dyn Programs, fs: FsType, node: &Path, force: bool) -> Result<(), FsError> {
    // Nothing is discarded: the disk is blank, and discarding terabytes one command at a time takes minutes.
    let (program, options, forced): (_, &[&str], _) = match fs {
        FsType::Ext4 => (Program::MkfsExt4, &["-q", "-m", "0", "-E", "nodiscard"], "-F"),
        FsType::Xfs => (Program::MkfsXfs, &["-q", "-K"], "-f"),
        FsType::Btrfs => (Program::MkfsBtrfs, &["-q", "-K"], "-f"),
    };
    let force = force.then_some(forced);
    let args = options
        .iter()
        .copied()
        .chain(force)
        .map(str::to_owned)
        .chain([text(node)]);
    run(programs, "make", fs, Invocation::new(program, args, MAKE_LIMIT)).await
}

/// Checks an ext4 file system that asks for it and repairs what is safe to repair. The others check themselves when
/// they are mounted.
pub async fn check(programs: &dyn Programs, node: &Path) -> Result<(), FsError> {
    let invocation = Invocation::new(Program::E2fsck, ["-p".to_owned(), text(node)], CHECK_LIMIT);
    let failed = |source| FsError::Program {
        step: "check",
        fs: FsType::Ext4,
        source,
    };
    let finished: Finished = programs.run(invocation).await.map_err(failed)?;
    match finished.exit {
        // e2fsck(8): 1 and 2 are "errors corrected"; the reboot that 2 advises concerns a mounted root.
        Exit::Code(0..=2) => Ok(()),
        // 4 is "errors left uncorrected", alone or with other bits.
        Exit::Code(code) if code & 4 != 0 => Err(FsError::Damaged {
            source: finished.into_error(),
        }),
        _ => Err(failed(finished.into_error())),
    }
}

/// Grows a mounted file system to the size of its disk. Repeating it changes nothing.
pub async fn grow(programs: &dyn Programs, fs: FsType, node: &Path, mounted: &Path) -> Result<(), FsError> {
    let (program, args) = match fs {
        FsType::Ext4 => (Program::Resize2fs, vec![text(node)]),
        FsType::Xfs => (Program::XfsGrowfs, vec![text(mounted)]),
        FsType::Btrfs => (
            Program::Btrfs,
            vec!["filesystem".into(), "resize".into(), "max".into(), text(mounted)],
        ),
    };
    run(programs, "grow", fs, Invocation::new(program, args, GROW_LIMIT)).await
}

async fn run(
    programs: &dyn Programs,
    step: &'static str,
    fs: FsType,
    what: Invocation,
) -> Result<(), FsError> {
    let done = programs.run(what).await.and_then(Finished::ok);
    done.map(drop)
        .map_err(|source| FsError::Program { step, fs, source })
}

#[cfg(test)]
#[path = "filesystem_tests.rs"]
mod tests;
