//! sysfs below an injectable root.

use std::{
    fs,
    io::{self, Read as _},
    path::{Component, Path, PathBuf},
};

use crate::host::Sysfs;

/// A sysfs tree. Paths are relative to its root and never leave it by `..`.
#[derive(Clone, Debug)]
pub struct KernelSysfs {
    root: PathBuf,
}

impl KernelSysfs {
    /// The tree mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        let relative = path.trim_start_matches('/');
        if Path::new(relative)
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{path}` is not a path below sysfs"),
            ));
        }
        Ok(self.root.join(relative))
    }
}

impl Sysfs for KernelSysfs {
    fn read(&self, path: &str) -> io::Result<String> {
        // An attribute comes in one piece, which is shorter than a page (Documentation/filesystems/sysfs.rst): asking for its size and its
        // end, as the standard library does, would double the calls of a look at thousands of paths.
        let mut page = [0; 4096];
        let mut file = fs::File::open(self.path(path)?)?;
        let length = file.read(&mut page)?;
        let mut bytes = page[..length].to_vec();
        if length == page.len() {
            file.read_to_end(&mut bytes)?;
        }
        let mut text = String::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))?;
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        // One write call and no creation: an attribute takes its value in one piece.
        io::Write::write_all(
            &mut fs::OpenOptions::new().write(true).open(self.path(path)?)?,
            value.as_bytes(),
        )
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(path)?)? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        let root = fs::canonicalize(&self.root)?;
        let full = fs::canonicalize(self.path(path)?)?;
        let below = full
            .strip_prefix(&root)
            .map_err(|_| io::Error::other(format!("`{path}` leads out of sysfs")))?;
        below
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other("a name in sysfs is not UTF-8"))
    }

    fn link(&self, path: &str) -> io::Result<String> {
        let target = fs::read_link(self.path(path)?)?;
        let beyond = || io::Error::other(format!("`{path}` leads to {}", target.display()));
        let mut parts: Vec<&str> = path.split('/').collect();
        parts.pop();
        for part in target.components() {
            match part {
                Component::ParentDir => drop(parts.pop().ok_or_else(beyond)?),
                Component::Normal(name) => parts.push(name.to_str().ok_or_else(beyond)?),
                _ => return Err(beyond()),
            }
        }
        Ok(parts.join("/"))
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).is_ok_and(|path| path.exists())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_writes_lists_and_stays_below_its_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("devices/a")).unwrap();
        fs::create_dir_all(root.path().join("block")).unwrap();
        fs::write(root.path().join("devices/a/size"), "2048\n").unwrap();
        std::os::unix::fs::symlink("../devices/a", root.path().join("block/sda")).unwrap();
        let sysfs = KernelSysfs::new(root.path());
        assert_eq!(sysfs.read("block/sda/size").unwrap(), "2048");
        assert_eq!(sysfs.canonical("block/sda").unwrap(), "devices/a");
        assert_eq!(sysfs.link("block/sda").unwrap(), "devices/a");
        std::os::unix::fs::symlink("../../up", root.path().join("block/out")).unwrap();
        assert!(sysfs.link("block/out").is_err(), "out of sysfs");
        fs::remove_file(root.path().join("block/out")).unwrap();
        assert_eq!(sysfs.list("block").unwrap(), ["sda"]);
        sysfs.write("block/sda/size", "4096").unwrap();
        assert_eq!(sysfs.read("devices/a/size").unwrap(), "4096");
        assert!(sysfs.write("block/sda/absent", "1").is_err());
        assert!(sysfs.read("../etc/passwd").is_err());
        assert!(sysfs.read("block/../../etc/passwd").is_err());
    }
}
