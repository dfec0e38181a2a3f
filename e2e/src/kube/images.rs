//! Every image that a pod of the lab runs, as archives.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    binaries::Binaries,
    bundle::{Bundle, busybox},
};

/// The sandbox of each pod.
pub const PAUSE: &str = "lab/pause:1";
/// The checksummed writer, with a shell.
pub const WRITER: &str = "lab/writer:1";
/// Images of Kubernetes' own tests, by the names in test/utils/image/manifest.go of the pinned release, of which its
/// storage specs use no more than a shell and its programs; with those that are not busybox's, each with its path in the image.
const SHELLS: [(&str, &[(&str, &str)]); 3] = [
    ("registry.k8s.io/e2e-test-images/busybox:1.37.0-1", &[]),
    // For `dd oflag=nocache`; busybox's own shell would prefer its own dd.
    (
        "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0",
        &[("/bin/dd", "/bin/dd"), ("/bin/dash", "/bin/sh")],
    ),
    ("registry.k8s.io/e2e-test-images/nginx:1.15-4", &[]),
];
/// As Kubernetes' own tests name it.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
/// The product's images, by their archive's name.
const PRODUCT: [&str; 3] = [
    "storagelink-csi-controller",
    "storagelink-csi-node",
    "storagelinkd",
];

/// Archives to import.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Images {
    /// Each an archive of the form that `docker save` makes.
    pub archives: Vec<PathBuf>,
}

impl Images {
    /// Makes the lab's own images in `work`; the product's are taken from `product`, where `make images` puts them.
    pub fn make(binaries: &Binaries, programs: &Path, product: &Path, work: &Path) -> Result<Self> {
        fs::create_dir_all(work).with_context(|| format!("make {}", work.display()))?;
        let mut archives = Vec::new();
        for bundle in bundles(binaries, programs)? {
            let name: String = bundle
                .tag
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .collect();
            let archive = work.join(format!("{name}.tar"));
            bundle
                .write(&archive)
                .with_context(|| format!("make the image {}", bundle.tag))?;
            archives.push(archive);
        }
        for name in PRODUCT {
            let archive = product.join(format!("{name}.tar"));
            ensure!(
                archive.exists(),
                "{} is missing: run make images",
                archive.display()
            );
            archives.push(archive);
        }
        Ok(Self { archives })
    }
}

fn bundles(binaries: &Binaries, programs: &Path) -> Result<Vec<Bundle>> {
    let shell = |tag: &str, programs: Vec<(PathBuf, String)>, entrypoint: &[&str]| Bundle {
        tag: tag.to_owned(),
        programs,
        shell: true,
        entrypoint: entrypoint.iter().map(|&word| word.to_owned()).collect(),
    };
    let mut all = vec![
        Bundle {
            tag: PAUSE.to_owned(),
            programs: vec![(busybox()?, "/bin/busybox".to_owned())],
            shell: false,
            // Ends with its pod only; a sandbox is killed, not asked.
            entrypoint: ["/bin/busybox", "sleep", "2147483647"].map(str::to_owned).into(),
        },
        shell(
            AGNHOST,
            vec![(binaries.kubernetes("agnhost"), "/agnhost".to_owned())],
            &["/agnhost"],
        ),
        shell(
            WRITER,
            vec![(programs.join("lab-writer"), "/bin/lab-writer".to_owned())],
            &["/bin/lab-writer"],
        ),
    ];
    all.extend(SHELLS.map(|(tag, programs)| {
        let programs = programs
            .iter()
            .map(|&(program, inside)| (PathBuf::from(program), inside.to_owned()));
        shell(tag, programs.collect(), &[])
    }));
    all.extend(
        binaries
            .sidecar_images()
            .iter()
            .map(|(program, tag)| Bundle::program(tag, program)),
    );
    Ok(all)
}
