//! Packages of the distribution that only guests may have, unpacked into the cache: their installation would start services or change
//! udev's rules on the machine itself, and in the guests of every other suite.
//!
//! Runs before the lab's namespaces exist, because fetching needs the network.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{guest::Guest, programs::output_blocking};

/// What `package` needs beyond what this machine has, unpacked into one tree; made once for each set of packages. An empty tree where it is
/// installed.
pub fn unpacked(cache: &Path, package: &str) -> Result<PathBuf> {
    let simulated = [
        "apt-get",
        "install",
        "--simulate",
        "--no-install-recommends",
        package,
    ];
    let simulated = output_blocking(&simulated, Path::new("/"), &[])?;
    let missing = missing(&String::from_utf8_lossy(&simulated));
    let version = missing.iter().find(|(name, _)| *name == package);
    let version = version.map_or("installed", |(_, version)| version.as_str());
    let root = cache.join(format!("{package}-{version}"));
    if root.exists() {
        return Ok(root);
    }
    let work = tempfile::Builder::new()
        .prefix("unpack-")
        .tempdir_in(cache)
        .context("make a directory to unpack in")?;
    let out = work.path().join("root");
    fs::create_dir(&out).context("make a directory to unpack in")?;
    if !missing.is_empty() {
        let names = missing.iter().map(|(name, _)| name.as_str());
        let download: Vec<&str> = ["apt-get", "download"].into_iter().chain(names).collect();
        output_blocking(&download, work.path(), &[])?;
    }
    let mut count = 0;
    for entry in fs::read_dir(work.path()).context("read what was downloaded")? {
        let file = entry.context("read what was downloaded")?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            let (file, out) = (file.to_string_lossy(), out.to_string_lossy());
            output_blocking(&["dpkg-deb", "-x", &file, &out], work.path(), &[])?;
            count += 1;
        }
    }
    ensure!(
        count == missing.len(),
        "{count} of {} packages came",
        missing.len()
    );
    fs::rename(&out, &root).with_context(|| format!("put {package} to {}", root.display()))?;
    Ok(root)
}

/// Lays such a tree over a guest's root. Nobody else sees it there.
pub async fn lay(guest: &Guest, tree: &Path) -> Result<()> {
    let script = format!(
        "tar -C '{}' -cf - . | tar -C / --keep-directory-symlink -xf -; ldconfig",
        tree.display()
    );
    guest.shell(&script).await.map(drop)
}

/// Names and versions of the lines `Inst <name> (<version> ...`.
fn missing(simulated: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        // An upgrade names the version of now first, in brackets.
        let version = rest.split_once('(')?.1.split(' ').next()?;
        Some((name.to_owned(), version.to_owned()))
    };
    simulated.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_missing_is_read_from_the_simulation() {
        let text = "Reading package lists...\nInst kpartx (0.9.4-3 Debian:12 [amd64])\nInst libx [1.0] (1.1 Debian:12 [amd64]) []\nConf kpartx (0.9.4-3 Debian:12 [amd64])\n";
        let expected = [("kpartx", "0.9.4-3"), ("libx", "1.1")];
        assert_eq!(
            super::missing(text),
            expected.map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
    }
}
