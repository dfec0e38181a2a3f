//! configfs as a seam: the few operations that the kernel target is driven by.
//!
//! Paths are relative to the target's directory, `/sys/kernel/config/target` on a real kernel. Blocking.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::adapter::AdapterError;

/// The operations.
pub trait ConfigFs: Send + Sync {
    /// Makes one directory.
    fn make_directory(&self, path: &str) -> io::Result<()>;
    /// Removes one directory; configfs removes its attributes with it.
    fn remove_directory(&self, path: &str) -> io::Result<()>;
    /// Links `link` to the directory `to`.
    fn link(&self, to: &str, link: &str) -> io::Result<()>;
    /// Removes a link.
    fn unlink(&self, link: &str) -> io::Result<()>;
    /// Writes an attribute in one piece.
    fn write(&self, path: &str, value: &str) -> io::Result<()>;
    /// Reads an attribute, without the newline at its end.
    fn read(&self, path: &str) -> io::Result<String>;
    /// Names of the directories in a directory, sorted.
    fn directories(&self, path: &str) -> io::Result<Vec<String>>;
    /// Names of the links in a directory, sorted.
    fn links(&self, path: &str) -> io::Result<Vec<String>>;
    /// Where a link leads, relative to the target's directory.
    fn link_target(&self, link: &str) -> io::Result<String>;
    /// True when there is something at this path.
    fn exists(&self, path: &str) -> bool;
}

/// The kernel's own.
#[derive(Clone, Debug)]
pub struct KernelConfigFs {
    root: PathBuf,
}

impl KernelConfigFs {
    /// The target's directory of this machine.
    #[must_use]
    pub fn new() -> Self {
        Self {
            root: PathBuf::from("/sys/kernel/config/target"),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn names(&self, path: &str, wanted: impl Fn(fs::FileType) -> bool) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            let entry = entry?;
            if wanted(entry.file_type()?) {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }
}

impl Default for KernelConfigFs {
    fn default() -> Self {
        Self::new()
    }
}

impl ConfigFs for KernelConfigFs {
    fn make_directory(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.path(path))
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.path(path))
    }

    fn link(&self, to: &str, link: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(self.path(to), self.path(link))
    }

    fn unlink(&self, link: &str) -> io::Result<()> {
        fs::remove_file(self.path(link))
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        io::Write::write_all(
            &mut fs::OpenOptions::new().write(true).open(self.path(path))?,
            value.as_bytes(),
        )
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let mut text = fs::read_to_string(self.path(path))?;
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    fn directories(&self, path: &str) -> io::Result<Vec<String>> {
        self.names(path, |kind| kind.is_dir())
    }

    fn links(&self, path: &str) -> io::Result<Vec<String>> {
        self.names(path, |kind| kind.is_symlink())
    }

    fn link_target(&self, link: &str) -> io::Result<String> {
        // configfs answers with ../../… relative to the link's own directory.
        let full = fs::canonicalize(self.path(link))?;
        let root = fs::canonicalize(&self.root)?;
        let below = full
            .strip_prefix(&root)
            .map_err(|_| io::Error::other("a link leads out of the target's directory"))?;
        below
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other("a name in configfs is not UTF-8"))
    }

    fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }
}

/// configfs with errors that name the operation and the place, and steps that are success when they are done already.
pub(super) struct Tree(pub(super) Box<dyn ConfigFs>);

fn wrap(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> AdapterError {
    move |source| AdapterError::Io {
        action,
        path: Path::new("target").join(path),
        source,
    }
}

impl Tree {
    pub(super) fn ensure_directory(&self, path: &str) -> Result<(), AdapterError> {
        if self.0.exists(path) {
            return Ok(());
        }
        self.0.make_directory(path).map_err(wrap("make", path))
    }

    pub(super) fn remove_directory(&self, path: &str) -> Result<(), AdapterError> {
        match self.0.remove_directory(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrap("remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes sure that the directory holds one link and that it leads to `to`.
    pub(super) fn ensure_link(&self, to: &str, directory: &str, name: &str) -> Result<(), AdapterError> {
        if self.leads_to(directory, to)? {
            return Ok(());
        }
        for link in self.links(directory)? {
            self.unlink(&format!("{directory}/{link}"))?;
        }
        let link = format!("{directory}/{name}");
        self.0.link(to, &link).map_err(wrap("link", &link))
    }

    /// Whether a directory holds a link to `to`.
    pub(super) fn leads_to(&self, directory: &str, to: &str) -> Result<bool, AdapterError> {
        let links = self.links(directory)?;
        Ok(links.iter().any(|link| {
            let target = self.0.link_target(&format!("{directory}/{link}"));
            target.is_ok_and(|target| target == to)
        }))
    }

    pub(super) fn unlink(&self, link: &str) -> Result<(), AdapterError> {
        match self.0.unlink(link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(wrap("unlink", link)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a directory together with the links in it.
    pub(super) fn remove_with_links(&self, directory: &str) -> Result<(), AdapterError> {
        for link in self.links(directory)? {
            self.unlink(&format!("{directory}/{link}"))?;
        }
        self.remove_directory(directory)
    }

    pub(super) fn write(&self, path: &str, value: &str) -> Result<(), AdapterError> {
        self.0.write(path, value).map_err(wrap("write", path))
    }

    /// Writes an attribute unless it has this value: some refuse a write, even of the same value, while the object is in use.
    pub(super) fn ensure_value(&self, path: &str, value: &str) -> Result<(), AdapterError> {
        if self.0.read(path).is_ok_and(|now| now == value) {
            Ok(())
        } else {
            self.write(path, value)
        }
    }

    pub(super) fn read(&self, path: &str) -> Result<String, AdapterError> {
        self.0.read(path).map_err(wrap("read", path))
    }

    /// Directories in a directory; none when it is not there.
    pub(super) fn directories(&self, path: &str) -> Result<Vec<String>, AdapterError> {
        match self.0.directories(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            other => other.map_err(wrap("list", path)),
        }
    }

    pub(super) fn links(&self, path: &str) -> Result<Vec<String>, AdapterError> {
        match self.0.links(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            other => other.map_err(wrap("list", path)),
        }
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.0.exists(path)
    }
}
