//! A node that is a container among others on one kernel (`--shared-kernel`, `--iscsi-netns`): what then is its own, and what it must leave alone.
//!
//! Its own are maps, sessions, the initiator name and the interface of open-iscsi, all by the node's name. The host's iscsid, udev rules and
//! multipath configuration are everybody's.

use std::path::{Path, PathBuf};

use storagelink_multipath::{
    host::kernel::{NetNamespace, NetNamespaceError},
    names::{Names, NodeNameError, UUID_PREFIX},
};

use super::{
    info::{self, InfoError},
    iscsid,
};
use crate::attach::iscsi::Interface;

/// The flags of a node that does not have its kernel, or its network, to itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct SharedKernelArgs {
    /// Several nodes share this kernel (kind): the node's name becomes part of the names of its maps and of its initiator name, it has an interface
    /// of its own in open-iscsi, and it leaves the host's configuration alone. Change it only while no volume is staged.
    #[arg(long, conflicts_with = "install_host_config")]
    pub shared_kernel: bool,
    /// A handle of the network namespace in which the host's iscsid runs, bound onto this path (ip netns attach): iSCSI works in there. For a node
    /// whose own is not the initial one.
    #[arg(long, value_name = "PATH")]
    pub iscsi_netns: Option<PathBuf>,
}

/// What cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SharedKernelError {
    /// The node's name.
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    /// The namespace.
    #[error("--iscsi-netns")]
    Network(#[from] NetNamespaceError),
    /// One iscsid for each kernel.
    #[error("--shared-kernel needs --iscsid host: one iscsid serves all nodes of a kernel")]
    Iscsid,
    /// The initiator name.
    #[error("--shared-kernel needs this host's initiator name")]
    Initiator(#[from] InfoError),
}

impl SharedKernelArgs {
    /// Whose maps are ours.
    ///
    /// # Errors
    /// The node's name does not fit, or it is to run an iscsid of its own.
    pub fn names(&self, node: &str, iscsid: iscsid::Wanted) -> Result<Names, SharedKernelError> {
        match (self.shared_kernel, iscsid) {
            (false, _) => Ok(Names::default()),
            (true, iscsid::Wanted::Host) => Ok(Names::of_node(node)?),
            (true, _) => Err(SharedKernelError::Iscsid),
        }
    }

    /// Where iSCSI is spoken.
    ///
    /// # Errors
    /// It is no network namespace.
    pub fn network(&self) -> Result<NetNamespace, SharedKernelError> {
        let opened = self.iscsi_netns.as_deref().map(NetNamespace::open).transpose()?;
        Ok(opened.unwrap_or_default())
    }
}

/// The interface of a node that shares its kernel. Without an initiator name it could not tell its sessions from others'.
///
/// # Errors
/// The name cannot be read, or does not fit with the node's.
pub(super) fn interface(names: &Names, file: &Path) -> Result<Option<Interface>, SharedKernelError> {
    let Some(node) = names.node() else {
        return Ok(None);
    };
    let id = info::node_id(node, file, true)?;
    Ok(Some(Interface {
        name: format!("{UUID_PREFIX}{node}"),
        initiator: id.initiator().to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::chain;

    fn shared() -> SharedKernelArgs {
        SharedKernelArgs {
            shared_kernel: true,
            iscsi_netns: None,
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_flags_name() {
        let host = iscsid::Wanted::Host;
        let long = "n".repeat(41);
        assert_eq!(
            SharedKernelArgs::default().names(&long, host).expect("unused"),
            Names::default()
        );
        assert_eq!(shared().names("n1", host).expect("fits").node(), Some("n1"));
        for (node, iscsid) in [
            (long.as_str(), host),
            ("n1", iscsid::Wanted::Auto),
            ("n1", iscsid::Wanted::Container),
        ] {
            let error = shared().names(node, iscsid).expect_err("cannot be");
            assert!(error.to_string().contains("--shared-kernel"), "{error}");
        }
        let nowhere = SharedKernelArgs {
            iscsi_netns: Some("/proc/self/ns/uts".into()),
            ..shared()
        };
        let error = chain(&nowhere.network().expect_err("another kind of namespace"));
        assert!(
            error.starts_with("--iscsi-netns: /proc/self/ns/uts: is not a network namespace"),
            "{error}"
        );
        assert!(shared().network().expect("our own").is_own());
    }

    #[test]
    fn the_initiator_name_carries_the_node_and_is_needed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("initiatorname.iscsi");
        let names = Names::of_node("kind-worker").expect("fits");
        let error = interface(&names, &file).expect_err("no file").to_string();
        assert!(error.contains("--shared-kernel"), "{error}");
        assert_eq!(interface(&Names::default(), &file).expect("not needed"), None);
        std::fs::write(&file, "InitiatorName=iqn.2026-11.example:host\n").expect("written");
        let expected = Interface {
            name: "storagelink-kind-worker".to_owned(),
            initiator: "iqn.2026-11.example:host:kind-worker".to_owned(),
        };
        assert_eq!(interface(&names, &file).expect("made"), Some(expected));
        let long = format!("InitiatorName=iqn.2026-11.example:{}\n", "h".repeat(200));
        std::fs::write(&file, long).expect("written");
        let error = chain(&interface(&names, &file).expect_err("too long"));
        assert!(error.contains("initiatorname.iscsi"), "{error}");
    }
}
