//! A container image of programs that are on this machine: each with the shared libraries it needs, in one layer.
//!
//! For what the lab itself puts into pods. The product's own images are built from the Dockerfile and only imported.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::programs::output_blocking;

/// What an image holds and starts.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// `name:tag`, as pods ask for it.
    pub tag: String,
    /// Programs of this machine, each with its path in the image.
    pub programs: Vec<(PathBuf, String)>,
    /// With busybox as `/bin/<applet>` for every applet.
    pub shell: bool,
    /// The command.
    pub entrypoint: Vec<String>,
}

impl Bundle {
    /// One program as the command, and nothing else.
    #[must_use]
    pub fn program(tag: &str, program: &Path) -> Self {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let inside = format!("/{name}");
        Self {
            tag: tag.to_owned(),
            programs: vec![(program.to_owned(), inside.clone())],
            shell: false,
            entrypoint: vec![inside],
        }
    }

    /// Writes the image as an archive of the form that `docker save` makes.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let work = tempfile::tempdir().context("make a directory for an image")?;
        let root = work.path().join("root");
        for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "var"] {
            fs::create_dir_all(root.join(directory)).context("make the image's directories")?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).context("mode of /tmp")?;
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        )
        .context("write /etc/passwd")?;
        for (program, inside) in &self.programs {
            copy(program, &root, inside)?;
            for library in libraries(program)? {
                let inside = library.to_string_lossy().into_owned();
                copy(&library, &root, &inside)?;
            }
        }
        if self.shell {
            shell(&root)?;
        }
        self.archive(work.path(), archive)
    }

    fn archive(&self, work: &Path, archive: &Path) -> Result<()> {
        let layer = work.join("layer.tar");
        let tar = |what: &[&str], out: &Path| {
            let out = out.to_string_lossy();
            let argv: Vec<&str> = [
                "tar",
                "--numeric-owner",
                "--owner=0",
                "--group=0",
                "--mtime=@0",
                "--sort=name",
                "-cf",
                &out,
                "-C",
            ]
            .into_iter()
            .chain(what.iter().copied())
            .collect();
            output_blocking(&argv, work, &[]).map(drop)
        };
        tar(&["root", "."], &layer)?;
        let bytes = fs::read(&layer).context("read the layer")?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": self.entrypoint,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{:x}", Sha256::digest(&bytes))]},
        });
        let config = serde_json::to_vec(&config).context("write the image's configuration")?;
        let name = format!("{:x}.json", Sha256::digest(&config));
        fs::write(work.join(&name), config).context("write the image's configuration")?;
        let manifest = json!([{"Config": name, "RepoTags": [self.tag], "Layers": ["layer.tar"]}]);
        fs::write(
            work.join("manifest.json"),
            serde_json::to_vec(&manifest).context("write the manifest")?,
        )
        .context("write the manifest")?;
        tar(&[".", &name, "layer.tar", "manifest.json"], archive)
    }
}

fn copy(from: &Path, root: &Path, inside: &str) -> Result<()> {
    let to = root.join(inside.trim_start_matches('/'));
    let directory = to.parent().unwrap_or(root);
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    fs::copy(from, &to)
        .with_context(|| format!("copy {}", from.display()))
        .map(drop)
}

/// The shared libraries that the dynamic linker would load; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let program = program.to_string_lossy();
    // It fails for a static program.
    let Ok(text) = output_blocking(&["ldd", &program], Path::new("/"), &[]) else {
        return Ok(Vec::new());
    };
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

fn shell(root: &Path) -> Result<()> {
    copy(&busybox()?, root, "/bin/busybox")?;
    let list = output_blocking(&["busybox", "--list"], Path::new("/"), &[])?;
    for applet in String::from_utf8_lossy(&list).lines().filter(|a| *a != "busybox") {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            symlink("busybox", &link).with_context(|| format!("link {applet}"))?;
        }
    }
    Ok(())
}

/// The machine's static busybox.
pub fn busybox() -> Result<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("no busybox (package busybox-static)")
}
