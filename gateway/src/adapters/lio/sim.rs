//! A simulated configfs with the kernel target's rules, as far as the adapter meets them: what cannot be removed while it is used, what cannot be
//! written, what vanishes with a directory. Killed after a given number of changes, it refuses everything until it is restarted.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::libc::{EBUSY, EEXIST, EINVAL, ENOENT, ENOTEMPTY};

use super::configfs::ConfigFs;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    Link(String),
    Value(String),
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    fuse: Option<usize>,
    changes: usize,
}

/// The simulated tree. Clones are the same one.
#[derive(Clone, Default)]
pub(super) struct SimConfigFs(Arc<Mutex<State>>);

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl SimConfigFs {
    pub(super) fn new() -> Self {
        let sim = Self::default();
        sim.state().nodes.insert("core".to_owned(), Node::Directory);
        sim
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kill_after(&self, changes: usize) {
        self.state().fuse = Some(changes);
    }

    pub(super) fn restart(&self) {
        self.state().fuse = None;
    }

    pub(super) fn changes(&self) -> usize {
        self.state().changes
    }

    /// All directories and links.
    pub(super) fn tree(&self) -> Vec<String> {
        let state = self.state();
        state
            .nodes
            .iter()
            .filter(|(_, node)| !matches!(node, Node::Value(_)))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// An attribute's value.
    pub(super) fn value(&self, path: &str) -> Option<String> {
        match self.state().nodes.get(path) {
            Some(Node::Value(value)) => Some(value.clone()),
            _ => None,
        }
    }
}

impl State {
    fn change(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => return Err(io::Error::other("killed")),
            Some(left) => *left -= 1,
            None => {}
        }
        self.changes += 1;
        Ok(())
    }

    fn below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a String, &'a Node)> {
        let prefix = format!("{path}/");
        self.nodes
            .iter()
            .filter(move |(name, _)| name.starts_with(&prefix))
    }

    /// Names in a directory; the root is the empty path.
    fn children(&self, path: &str, wanted: impl Fn(&Node) -> bool) -> io::Result<Vec<String>> {
        if !path.is_empty() && self.nodes.get(path) != Some(&Node::Directory) {
            return Err(errno(ENOENT));
        }
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        let children = self
            .nodes
            .iter()
            .filter(|(_, node)| wanted(node))
            .filter_map(|(name, _)| name.strip_prefix(&prefix));
        Ok(children
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect())
    }

    fn set(&mut self, path: String, value: &str) {
        self.nodes.insert(path, Node::Value(value.to_owned()));
    }

    /// Attributes and default groups that come with a directory.
    fn populate(&mut self, path: &str) {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["core", _, _] => {
                for (name, value) in [
                    ("enable", "0"),
                    ("info", "Status: DEACTIVATED"),
                    ("attrib/block_size", "512"),
                    ("control", ""),
                    ("attrib/emulate_tpu", "0"),
                    ("wwn/vpd_unit_serial", ""),
                ] {
                    self.set(format!("{path}/{name}"), value);
                }
            }
            ["iscsi", _, _] => {
                for name in ["lun", "acls", "np", "attrib", "param"] {
                    self.nodes.insert(format!("{path}/{name}"), Node::Directory);
                }
                self.set(format!("{path}/enable"), "0");
                for (name, value) in super::objects::ATTRIBUTES
                    .iter()
                    .chain(&super::objects::PARAMETERS)
                {
                    let group = if name.starts_with(|c: char| c.is_ascii_uppercase()) {
                        "param"
                    } else {
                        "attrib"
                    };
                    self.set(
                        format!("{path}/{group}/{name}"),
                        if *value == "0" { "1" } else { "0" },
                    );
                }
            }
            ["iscsi", _, _, "acls", _, _] => self.set(format!("{path}/write_protect"), "1"),
            _ => {}
        }
    }

    fn linked(&self, path: &str) -> bool {
        self.nodes
            .values()
            .any(|node| matches!(node, Node::Link(to) if to == path))
    }
}

impl ConfigFs for SimConfigFs {
    fn make_directory(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let parent = path.rsplit_once('/').map(|(parent, _)| parent);
        if parent.is_some_and(|parent| state.nodes.get(parent) != Some(&Node::Directory)) {
            return Err(errno(ENOENT));
        }
        if state.nodes.contains_key(path) {
            return Err(errno(EEXIST));
        }
        // One backstore per HBA directory: more of them break targetcli.
        if path.starts_with("core/") && path.matches('/').count() == 2 {
            assert!(
                state.below(parent.unwrap_or_default()).next().is_none(),
                "two backstores in {path}"
            );
        }
        state.nodes.insert(path.to_owned(), Node::Directory);
        state.populate(path);
        Ok(())
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        let mut state = self.state();
        if !state.nodes.contains_key(path) {
            return Err(errno(ENOENT));
        }
        state.change()?;
        if state.linked(path) {
            return Err(errno(EBUSY));
        }
        let own_groups = ["lun", "acls", "np", "attrib", "param"];
        let full = state.below(path).any(|(name, node)| match node {
            Node::Value(_) => false,
            Node::Link(_) => true,
            Node::Directory => !own_groups.iter().any(|group| *name == format!("{path}/{group}")),
        });
        if full {
            return Err(errno(ENOTEMPTY));
        }
        let gone: Vec<String> = state.below(path).map(|(name, _)| name.clone()).collect();
        for name in gone {
            state.nodes.remove(&name);
        }
        state.nodes.remove(path);
        Ok(())
    }

    fn link(&self, to: &str, link: &str) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        if state.nodes.get(to) != Some(&Node::Directory) {
            return Err(errno(ENOENT));
        }
        // Only an enabled backstore can be a LUN.
        if to.starts_with("core/")
            && state.nodes.get(&format!("{to}/enable")) != Some(&Node::Value("1".to_owned()))
        {
            return Err(errno(EINVAL));
        }
        state.nodes.insert(link.to_owned(), Node::Link(to.to_owned()));
        Ok(())
    }

    fn unlink(&self, link: &str) -> io::Result<()> {
        let mut state = self.state();
        if !matches!(state.nodes.get(link), Some(Node::Link(_))) {
            return Err(errno(ENOENT));
        }
        state.change()?;
        state.nodes.remove(link);
        Ok(())
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let mut state = self.state();
        if !matches!(state.nodes.get(path), Some(Node::Value(_))) {
            return Err(errno(ENOENT));
        }
        state.change()?;
        let (object, attribute) = path.rsplit_once('/').unwrap_or_default();
        let object_of_serial = object.strip_suffix("/wwn").unwrap_or(object).to_owned();
        match attribute {
            "enable"
                if object.starts_with("core/")
                    && state.nodes.get(path) == Some(&Node::Value("1".to_owned())) =>
            {
                return Err(errno(EEXIST));
            }
            "enable" if object.starts_with("core/") => {
                let control = state.nodes.get(&format!("{object}/control")).cloned();
                assert!(
                    matches!(control, Some(Node::Value(text)) if text.contains("fd_dev_name=")),
                    "enabled without a file"
                );
            }
            // Unit serial numbers are fixed once the unit is exported.
            "vpd_unit_serial" if state.linked(&object_of_serial) => return Err(errno(EINVAL)),
            "control" => {
                let old = match state.nodes.get(path) {
                    Some(Node::Value(old)) => old.clone(),
                    _ => String::new(),
                };
                let all = format!("{old}{value},");
                // The last word for each key counts.
                let word = |key: &str| {
                    all.split(',')
                        .filter_map(|pair| pair.strip_prefix(key))
                        .next_back()
                };
                let (file, size) = (
                    word("fd_dev_name=").unwrap_or(""),
                    word("fd_dev_size=").unwrap_or("0"),
                );
                let info = format!(
                    "Status: ACTIVATED\n        TCM FILEIO ID: 0        File: {file}  Size: {size}  Mode: O_DSYNC"
                );
                state.set(format!("{object}/info"), &info);
                state.set(path.to_owned(), &all);
                return Ok(());
            }
            _ => {}
        }
        state.set(path.to_owned(), value);
        Ok(())
    }

    fn read(&self, path: &str) -> io::Result<String> {
        self.value(path).ok_or_else(|| errno(ENOENT))
    }

    fn directories(&self, path: &str) -> io::Result<Vec<String>> {
        self.state().children(path, |node| *node == Node::Directory)
    }

    fn links(&self, path: &str) -> io::Result<Vec<String>> {
        self.state().children(path, |node| matches!(node, Node::Link(_)))
    }

    fn link_target(&self, link: &str) -> io::Result<String> {
        match self.state().nodes.get(link) {
            Some(Node::Link(to)) => Ok(to.clone()),
            _ => Err(errno(ENOENT)),
        }
    }

    fn exists(&self, path: &str) -> bool {
        self.state().nodes.contains_key(path)
    }
}
