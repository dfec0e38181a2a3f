//! Who this node is: its id from its name and its iSCSI initiator name, and the fabrics that it has.
//!
//! The initiator name belongs to open-iscsi; it is read each time and never written.

use std::{
    io,
    path::{Path, PathBuf},
};

use storagelink_multipath::host::kernel::NetNamespace;
use storagelink_proto::csi::v1::Topology;
use tonic::Code;

use crate::{
    codes::Coded,
    fabrics::{
        Fabrics,
        routes::{self, RoutesError},
    },
    ids::{IdError, NodeId},
};

/// Longest file that is read: the real one has a comment and one line.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why the node has no id.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// The file cannot be read.
    #[error("initiator name file {}: cannot be read; is open-iscsi installed on this node?", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has no name in it.
    #[error("initiator name file {}: has {found} lines `InitiatorName=<name>`, exactly one is needed", path.display())]
    NoName {
        /// Its path.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// Node name or initiator name.
    #[error("node id of node {node:?} with the initiator name in {}", path.display())]
    Malformed {
        /// The node's name.
        node: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: IdError,
    },
    /// The routes cannot be read.
    #[error("routes of node")]
    Routes(#[from] RoutesError),
    /// The network namespace cannot be entered.
    #[error("routes of node: the network namespace of --iscsi-netns")]
    Network(#[source] io::Error),
}

impl Coded for InfoError {
    fn code(&self) -> Code {
        Code::FailedPrecondition
    }
}

/// The initiator name in open-iscsi's file: the last word of its one line `InitiatorName=`. Lines that begin with `#`
/// are comments, and so is the `GenerateName=yes` of a host that has not been started yet.
pub fn initiator_name(path: &Path) -> Result<String, InfoError> {
    let unreadable = |source| InfoError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE_BYTES {
        return Err(unreadable(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has {size} bytes"),
        )));
    }
    let content = std::fs::read_to_string(path).map_err(unreadable)?;
    let names: Vec<&str> = content
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("InitiatorName")?
                .trim_start()
                .strip_prefix('=')
        })
        .map(str::trim)
        .collect();
    match names.as_slice() {
        [name] => Ok((*name).to_owned()),
        _ => Err(InfoError::NoName {
            path: path.to_owned(),
            found: names.len(),
        }),
    }
}

/// The id of this node. One that shares its kernel has an initiator name of its own: the host's, followed by the node's name.
pub fn node_id(name: &str, file: &Path, shared_kernel: bool) -> Result<NodeId, InfoError> {
    let mut initiator = initiator_name(file)?;
    if shared_kernel {
        initiator = format!("{initiator}:{name}");
    }
    NodeId::new(name, &initiator, Vec::new()).map_err(|source| InfoError::Malformed {
        node: name.to_owned(),
        path: file.to_owned(),
        source,
    })
}

/// Which fabrics this node has; `None` when there is no topology. `network` is where iSCSI is spoken.
pub fn topology(fabrics: &Fabrics, network: &NetNamespace) -> Result<Option<Topology>, InfoError> {
    if fabrics.is_empty() {
        return Ok(None);
    }
    let routes = network
        .run(|| routes::read(Path::new("/proc/thread-self/net")))
        .map_err(InfoError::Network)??;
    Ok(fabrics.of_node(&routes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_as_open_iscsi_writes_it_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("initiatorname.iscsi");
        assert!(matches!(
            node_id("n1", &file, false),
            Err(InfoError::Unreadable { .. })
        ));
        std::fs::write(
            &file,
            "## comment\n#InitiatorName=iqn.old\nInitiatorName=iqn.1993-08.org.debian:01:abc\n",
        )
        .expect("written");
        assert_eq!(
            node_id("n1", &file, false).expect("an id").to_string(),
            "n1/iqn.1993-08.org.debian:01:abc"
        );
        assert_eq!(
            node_id("n1", &file, true).expect("an id").to_string(),
            "n1/iqn.1993-08.org.debian:01:abc:n1"
        );
        assert!(matches!(
            node_id("N 1", &file, false),
            Err(InfoError::Malformed { .. })
        ));
        for (content, found) in [
            ("GenerateName=yes\n", 0),
            ("", 0),
            ("InitiatorName=a\nInitiatorName=b\n", 2),
        ] {
            std::fs::write(&file, content).expect("written");
            assert!(
                matches!(node_id("n1", &file, false), Err(InfoError::NoName { found: f, .. }) if f == found),
                "{content}"
            );
        }
        for name in ["", "host1", "iqn.a/b", "iqn.a b"] {
            std::fs::write(&file, format!("InitiatorName={name}\n")).expect("written");
            let error = node_id("n1", &file, false).expect_err(name);
            assert!(error.to_string().contains("initiatorname.iscsi"), "{error}");
        }
    }
}
