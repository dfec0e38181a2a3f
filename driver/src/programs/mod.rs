//! The only module of the driver that starts programs.
//!
//! It owns the list of programs that the node plugin may start, how they are found and how they are run: by absolute
//! path, with an argument vector, an empty environment but for `PATH` and `LC_ALL=C`, no input, a time limit and a
//! bound on what is kept of their output. It must never go through a shell, never take a secret as an argument and
//! never leave a program behind that its caller gave up on.

use std::{fmt, future::Future, io, path::PathBuf, pin::Pin, time::Duration};

mod host;
mod process;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use host::HostPrograms;

/// A program that the node plugin may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Program {
    /// open-iscsi's administration tool.
    Iscsiadm,
    /// Makes an ext4 file system.
    MkfsExt4,
    /// Makes an XFS file system.
    MkfsXfs,
    /// Makes a btrfs file system.
    MkfsBtrfs,
    /// Tells what a block device holds.
    Blkid,
    /// Checks an ext4 file system.
    E2fsck,
    /// Grows an ext4 file system.
    Resize2fs,
    /// Grows a mounted XFS file system.
    XfsGrowfs,
    /// Grows a mounted btrfs file system.
    Btrfs,
    /// Loads kernel modules.
    Modprobe,
    /// open-iscsi's service, when the plugin runs it beside itself.
    Iscsid,
}

impl Program {
    /// Every program, in the order in which they are reported.
    pub const ALL: [Self; 11] = [
        Self::Iscsiadm,
        Self::MkfsExt4,
        Self::MkfsXfs,
        Self::MkfsBtrfs,
        Self::Blkid,
        Self::E2fsck,
        Self::Resize2fs,
        Self::XfsGrowfs,
        Self::Btrfs,
        Self::Modprobe,
        Self::Iscsid,
    ];

    /// File name to look for.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Iscsiadm => "iscsiadm",
            Self::MkfsExt4 => "mkfs.ext4",
            Self::MkfsXfs => "mkfs.xfs",
            Self::MkfsBtrfs => "mkfs.btrfs",
            Self::Blkid => "blkid",
            Self::E2fsck => "e2fsck",
            Self::Resize2fs => "resize2fs",
            Self::XfsGrowfs => "xfs_growfs",
            Self::Btrfs => "btrfs",
            Self::Modprobe => "modprobe",
            Self::Iscsid => "iscsid",
        }
    }

    /// Debian package that carries it.
    #[must_use]
    pub const fn debian_package(self) -> &'static str {
        match self {
            Self::Iscsiadm | Self::Iscsid => "open-iscsi",
            Self::MkfsExt4 | Self::E2fsck | Self::Resize2fs => "e2fsprogs",
            Self::MkfsXfs | Self::XfsGrowfs => "xfsprogs",
            Self::MkfsBtrfs | Self::Btrfs => "btrfs-progs",
            Self::Blkid => "util-linux",
            Self::Modprobe => "kmod",
        }
    }

    /// Package of Red Hat Enterprise Linux and its kin that carries it; btrfs-progs is in Fedora only.
    #[must_use]
    pub const fn rhel_package(self) -> &'static str {
        match self {
            Self::Iscsiadm | Self::Iscsid => "iscsi-initiator-utils",
            _ => self.debian_package(),
        }
    }

    /// True for a program that speaks to iscsid or to the kernel's iSCSI: it must run in the network namespace of both.
    #[must_use]
    const fn speaks_iscsi(self) -> bool {
        matches!(self, Self::Iscsiadm | Self::Iscsid)
    }

    /// True for a program that must be the host's own, even when the plugin runs in a container: iscsiadm speaks an
    /// unversioned protocol with iscsid, so another build of it hangs; modprobe needs the host's modules.
    #[must_use]
    const fn belongs_to_host(self, iscsid: Iscsid) -> bool {
        match self {
            Self::Iscsiadm => matches!(iscsid, Iscsid::OfHost),
            Self::Modprobe => true,
            _ => false,
        }
    }
}

/// Whose iscsid runs; iscsiadm must be of the same build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iscsid {
    /// The host's.
    OfHost,
    /// The plugin's own.
    OfPlugin,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}

/// One run of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to run.
    pub program: Program,
    /// Its arguments, without the program's own name. Visible to every process of the host: no secrets.
    pub args: Vec<String>,
    /// How long it may run before it and its process group are killed.
    pub timeout: Duration,
}

impl Invocation {
    /// A run of `program` with `args`, for at most `timeout`.
    pub fn new<I, S>(program: Program, args: I, timeout: Duration) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            program,
            args: args.into_iter().map(Into::into).collect(),
            timeout,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code (0 to 255).
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a finished program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which program.
    pub program: Program,
    /// How it ended.
    pub exit: Exit,
    /// Standard output, at most [`OUTPUT_LIMIT`] bytes of it, not trimmed.
    pub stdout: String,
    /// Standard error, at most [`OUTPUT_LIMIT`] bytes of it, not trimmed.
    pub stderr: String,
}

impl Finished {
    /// True for exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// The exit code; `None` after a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self.exit {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) => None,
        }
    }

    /// Itself after exit code 0, otherwise [`ProgramError::Failed`] with what the program said.
    pub fn ok(self) -> Result<Self, ProgramError> {
        if self.success() {
            Ok(self)
        } else {
            Err(self.into_error())
        }
    }

    /// The error that quotes this program's exit and output.
    #[must_use]
    pub fn into_error(self) -> ProgramError {
        let said = quote(&self.stderr, &self.stdout);
        ProgramError::Failed {
            program: self.program,
            exit: self.exit,
            said,
        }
    }
}

/// How many bytes are kept of each of a program's outputs; the rest is read and dropped.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// How many bytes of a program's output an error quotes.
const QUOTE_LIMIT: usize = 400;

/// A program that could not be run, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("program {program} is not installed (Debian package {})", program.debian_package())]
    Missing {
        /// Which program.
        program: Program,
    },
    /// It was found but could not be started.
    #[error("cannot start {}", path.display())]
    Start {
        /// Which program.
        program: Program,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ran longer than it may; it has been killed.
    #[error("{program} did not end within {} ms{}", timeout.as_millis(), said_suffix(said))]
    Timeout {
        /// Which program.
        program: Program,
        /// How long it was given.
        timeout: Duration,
        /// What it had said by then.
        said: String,
    },
    /// It ended with another code than 0.
    #[error("{program} ended with {exit}{}", said_suffix(said))]
    Failed {
        /// Which program.
        program: Program,
        /// How.
        exit: Exit,
        /// What it said.
        said: String,
    },
}

fn said_suffix(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    }
}

/// One line of bounded length from a program's output: what it wrote to standard error, otherwise its standard output.
/// The end is kept, since programs put their reason last.
fn quote(stderr: &str, stdout: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let line = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let line: String = line
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.len() <= QUOTE_LIMIT {
        return line;
    }
    let start = (line.len() - QUOTE_LIMIT..)
        .find(|&i| line.is_char_boundary(i))
        .unwrap_or(line.len());
    format!("...{}", &line[start..])
}

/// The answer of [`Programs::run`].
pub type Running<'a> = Pin<Box<dyn Future<Output = Result<Finished, ProgramError>> + Send + 'a>>;

/// Something that runs programs: the host, or a simulation of it.
pub trait Programs: Send + Sync {
    /// Runs a program to its end. An exit code other than 0 is not an error here: see [`Finished::ok`].
    ///
    /// Dropping the future kills the program and its process group.
    fn run(&self, invocation: Invocation) -> Running<'_>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_quotes_the_end_of_the_output_in_one_line() {
        let finished = Finished {
            program: Program::Iscsiadm,
            exit: Exit::Code(8),
            stdout: "ignored".into(),
            stderr: format!("{}\n\n  last words\t\u{1b}[0m\n", "é".repeat(500)),
        };
        let text = finished.into_error().to_string();
        assert!(text.starts_with("iscsiadm ended with exit code 8: ..."), "{text}");
        assert!(text.ends_with("; last words  [0m"), "{text}");
        assert!(text.len() < QUOTE_LIMIT + 60, "{}", text.len());
    }

    #[test]
    fn standard_output_is_quoted_when_standard_error_is_blank() {
        let finished = Finished {
            program: Program::Blkid,
            exit: Exit::Signal(9),
            stdout: "a\nb\n".into(),
            stderr: " \n".into(),
        };
        assert_eq!(
            finished.into_error().to_string(),
            "blkid ended with signal 9: a; b"
        );
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let text = ProgramError::Missing {
            program: Program::MkfsXfs,
        }
        .to_string();
        assert_eq!(
            text,
            "program mkfs.xfs is not installed (Debian package xfsprogs)"
        );
    }
}
