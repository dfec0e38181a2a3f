//! Where the programs of Kubernetes, the sidecars and helm are: in the cache, in directories that carry their versions.
//!
//! Never builds anything: `hack/install-kube.sh` does, from the same file of versions.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// The one file of versions.
const VERSIONS: &str = include_str!("../../kube/versions.env");

/// Programs by directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Binaries {
    versions: BTreeMap<String, String>,
    cache: PathBuf,
}

impl Binaries {
    /// Where they would be.
    #[must_use]
    pub fn in_cache(cache: &Path) -> Self {
        let versions = VERSIONS
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(name, version)| (name.to_owned(), version.trim().to_owned()))
            .collect();
        Self {
            versions,
            cache: cache.to_owned(),
        }
    }

    /// Finds them; fails with the command that makes what is missing.
    pub fn find(cache: &Path) -> Result<Self> {
        let found = Self::in_cache(cache);
        for program in [
            found.kubernetes("kubelet"),
            found.sidecar("csi-provisioner"),
            found.helm(),
        ] {
            ensure!(
                program.exists(),
                "{} is missing: run hack/install-kube.sh {}",
                program.display(),
                cache.display()
            );
        }
        Ok(found)
    }

    /// A version of the file, by its name there.
    ///
    /// # Panics
    /// When the file has no such line.
    #[must_use]
    pub fn version(&self, name: &str) -> &str {
        self.versions
            .get(name)
            .unwrap_or_else(|| panic!("versions.env has no {name}"))
    }

    /// A program of Kubernetes itself.
    #[must_use]
    pub fn kubernetes(&self, name: &str) -> PathBuf {
        self.cache
            .join(format!("kubernetes-v{}", self.version("KUBERNETES")))
            .join(name)
    }

    /// Kubernetes' own end-to-end test program.
    #[must_use]
    pub fn e2e_test(&self) -> PathBuf {
        self.cache
            .join(format!("kubernetes-e2e-v{}", self.version("KUBERNETES")))
            .join("e2e.test")
    }

    fn sidecars(&self) -> PathBuf {
        self.cache.join(format!(
            "csi-sidecars-p{}-a{}-r{}-s{}",
            self.version("EXTERNAL_PROVISIONER"),
            self.version("EXTERNAL_ATTACHER"),
            self.version("EXTERNAL_RESIZER"),
            self.version("EXTERNAL_SNAPSHOTTER")
        ))
    }

    /// A sidecar.
    #[must_use]
    pub fn sidecar(&self, name: &str) -> PathBuf {
        self.sidecars().join(name)
    }

    /// The sidecars' images, as the chart names them: program and `name:tag`.
    #[must_use]
    pub fn sidecar_images(&self) -> Vec<(PathBuf, String)> {
        [
            ("csi-provisioner", "EXTERNAL_PROVISIONER"),
            ("csi-attacher", "EXTERNAL_ATTACHER"),
            ("csi-resizer", "EXTERNAL_RESIZER"),
            ("csi-snapshotter", "EXTERNAL_SNAPSHOTTER"),
        ]
        .map(|(name, version)| {
            let tag = self.version(version);
            (
                self.sidecar(name),
                format!("registry.k8s.io/sig-storage/{name}:v{tag}"),
            )
        })
        .into()
    }

    /// The definitions of VolumeSnapshot and its kin.
    #[must_use]
    pub fn snapshot_definitions(&self) -> PathBuf {
        self.sidecars().join("crd")
    }

    /// helm.
    #[must_use]
    pub fn helm(&self) -> PathBuf {
        self.cache
            .join(format!("helm-v{}", self.version("HELM")))
            .join("helm")
    }

    /// kind, and what only a cluster made by it needs.
    #[must_use]
    pub fn kind(&self) -> PathBuf {
        self.cache
            .join(format!("kind-v{}", self.version("KIND")))
            .join("kind")
    }

    /// The cache itself.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
