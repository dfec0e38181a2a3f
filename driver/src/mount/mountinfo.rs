//! `/proc/self/mountinfo` (proc(5)): a pure parser, and the questions that the node asks of the parsed table.
//!
//! It must never guess: a line that is not of the documented form is an error, not a line to skip, since a mount that is
//! overlooked is a mount that gets made twice or a disk that is taken away while it is in use.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use storagelink_multipath::host::DevNo;

/// One mount of this process's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Unique for as long as the mount lives.
    pub id: u64,
    /// The mount that it sits on.
    pub parent: u64,
    /// `st_dev` of its files. Anonymous (major 0) for btrfs and for everything without a disk.
    pub devno: DevNo,
    /// Which directory or file of the file system is shown here.
    pub root: PathBuf,
    /// Where.
    pub path: PathBuf,
    /// Options of this mount alone: `rw`, `ro`, `nosuid`, ...
    pub options: String,
    /// File system type.
    pub fs_type: String,
    /// What was mounted, as the file system tells it: a device node for ours.
    pub source: PathBuf,
    /// Options of the file system, common to all its mounts.
    pub super_options: String,
}

impl MountPoint {
    /// True when a write through this mount is refused: by the mount itself or by its file system.
    #[must_use]
    pub fn read_only(&self) -> bool {
        has(&self.options, "ro") || self.stopped()
    }

    /// True when the kernel stopped writing to the file system after an error: the mount may be written, its file system not. XFS says
    /// nothing here when it shuts down; its I/O fails.
    #[must_use]
    pub fn stopped(&self) -> bool {
        // ext4 has words of its own for it since Linux 6.15 (fs/ext4/super.c, `_ext4_show_options`).
        let stopped = ["ro", "emergency_ro", "shutdown"];
        !has(&self.options, "ro") && stopped.iter().any(|option| has(&self.super_options, option))
    }
}

fn has(options: &str, option: &str) -> bool {
    options.split(',').any(|o| o == option)
}

/// A line that is not of the documented form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of mountinfo has no valid {field}")]
pub struct MountInfoError {
    /// Counted from 1.
    pub line: usize,
    /// The first field that is missing or malformed.
    pub field: &'static str,
}

/// Parses the whole file. It is bytes, not text: a path may hold any byte but NUL.
pub fn parse(content: &[u8]) -> Result<Vec<MountPoint>, MountInfoError> {
    content
        .split(|&b| b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(i, line)| parse_line(line).map_err(|field| MountInfoError { line: i + 1, field }))
        .collect()
}

fn parse_line(line: &[u8]) -> Result<MountPoint, &'static str> {
    let mut fields = line.split(|&b| b == b' ');
    let mut next = |name: &'static str| fields.next().filter(|f| !f.is_empty()).ok_or(name);
    let id = number(next("mount id")?).ok_or("mount id")?;
    let parent = number(next("parent id")?).ok_or("parent id")?;
    let devno = text(next("device number")?)
        .parse()
        .map_err(|_| "device number")?;
    let root = path(next("root")?);
    let mount_point = path(next("mount point")?);
    let options = text(next("mount options")?);
    // Any number of optional fields (propagation), then a single hyphen.
    while next("separator")? != b"-" {}
    Ok(MountPoint {
        id,
        parent,
        devno,
        root,
        path: mount_point,
        options,
        fs_type: text(next("file system type")?),
        // The one field that may be empty: mount(2) takes an empty source.
        source: path(fields.next().ok_or("source")?),
        super_options: text(fields.next().ok_or("super options")?),
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field)
        .ok()
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// The kernel writes space, tab, newline and backslash (and `#` in the source) as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| first == b'\\')
            .filter(|d| d[0] <= b'3' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) => {
                bytes.push((d[0] - b'0') << 6 | (d[1] - b'0') << 3 | (d[2] - b'0'));
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

/// The mount that a look at `path` ends in: of several stacked on it, the one on top.
#[must_use]
pub fn top<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    let here: Vec<_> = mounts
        .iter()
        .filter(|m| m.path.as_os_str().as_bytes() == path.as_os_str().as_bytes())
        .collect();
    // The top one is nobody's parent at this place. Only a table read in the middle of a change has none.
    here.iter()
        .find(|m| !here.iter().any(|other| other.parent == m.id))
        .or(here.last())
        .copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "\
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:5 / /dev rw,nosuid shared:2 master:3 propagate_from:2 - devtmpfs devtmpfs rw,size=1k
31 22 253:3 / /var/lib/a\\040b\\134c rw,noatime - xfs /dev/dm-3 ro,attr2
32 31 0:44 /sub /var/lib/a\\040b\\134c ro - btrfs /dev/dm-4 rw
33 22 0:5 /dm-7 /pods/x rw - devtmpfs  rw
";

    #[test]
    fn the_documented_form_is_read_with_escapes_and_optional_fields() {
        let mounts = parse(SAMPLE.as_bytes()).expect("parses");
        assert_eq!(mounts.len(), 5);
        let odd = Path::new("/var/lib/a b\\c");
        assert_eq!(mounts[2].path, odd);
        assert_eq!(mounts[2].devno, DevNo { major: 253, minor: 3 });
        assert!(mounts[2].read_only() && mounts[3].read_only() && !mounts[1].read_only());
        assert_eq!(top(&mounts, odd).expect("is there").id, 32);
        assert_eq!(top(&mounts, Path::new("/var/lib")), None);
        assert_eq!(mounts[4].source, Path::new(""));
        assert_eq!(mounts[4].root, Path::new("/dm-7"));
    }

    #[test]
    fn a_file_system_that_stopped_is_told_from_a_mount_that_is_read_only() {
        let of = |options: &str, super_options: &str| {
            let line = format!("22 1 253:0 / /data {options} - ext4 /dev/dm-0 {super_options}\n");
            let mounts = parse(line.as_bytes()).expect("parses");
            (mounts[0].stopped(), mounts[0].read_only())
        };
        assert_eq!(of("rw,noatime", "rw,errors=remount-ro"), (false, false));
        assert_eq!(of("rw", "ro,errors=remount-ro"), (true, true));
        assert_eq!(of("rw", "rw,emergency_ro"), (true, true));
        assert_eq!(of("rw", "rw,shutdown"), (true, true));
        assert_eq!(of("ro", "rw"), (false, true));
        assert_eq!(of("ro", "ro"), (false, true));
    }

    #[test]
    fn the_upper_of_stacked_mounts_counts_in_any_order() {
        let mut mounts = parse(SAMPLE.as_bytes()).expect("parses");
        mounts.reverse();
        assert_eq!(
            top(&mounts, Path::new("/var/lib/a b\\c")).expect("is there").id,
            32
        );
    }

    #[test]
    fn a_damaged_line_is_an_error_that_names_line_and_field() {
        for (line, field) in [
            ("x 1 8:0 / / rw - ext4 /dev/sda rw", "mount id"),
            ("1 1 8 / / rw - ext4 /dev/sda rw", "device number"),
            ("1 1 8:0 / / rw shared:1", "separator"),
            ("1 1 8:0 / / rw - ext4 /dev/sda", "super options"),
        ] {
            let table = format!("22 1 253:0 / / rw - ext4 /dev/root rw\n{line}\n");
            assert_eq!(
                parse(table.as_bytes()),
                Err(MountInfoError { line: 2, field }),
                "{line}"
            );
        }
    }

    fn escape(bytes: &[u8]) -> Vec<u8> {
        bytes
            .iter()
            .flat_map(|&b| match b {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{b:03o}").into_bytes(),
                _ => vec![b],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_path_survives(name in proptest::collection::vec(1u8.., 1..40)) {
            let mut line = b"9 1 8:0 / /".to_vec();
            line.extend(escape(&name));
            line.extend(b" rw - ext4 /dev/sda rw\n");
            let mut path = b"/".to_vec();
            path.extend(&name);
            let parsed = parse(&line).expect("parses");
            prop_assert_eq!(parsed[0].path.as_os_str().as_bytes(), &path[..]);
        }

        #[test]
        fn no_input_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&content);
        }
    }
}
