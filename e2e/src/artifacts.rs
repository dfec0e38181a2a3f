//! What guests boot: the distribution's own kernel, unpacked once into a cache outside the checkout, and an initramfs.
//!
//! Never installs anything. Runs before the lab's namespaces exist, because fetching the package needs the network.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{cpio, programs::output_blocking};

/// Modules the initramfs loads to reach the 9p root, in this order; dependencies come by themselves.
const EARLY_MODULES: [&str; 5] = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net"];
const INIT: &str = include_str!("../assets/init.sh");
/// The .xz file format, section 2.1.1.1.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\x00";
/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

/// Paths of what guests boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Artifacts {
    /// Kernel release, as `uname -r` says.
    pub release: String,
    /// Root of the unpacked kernel package: holds `lib/modules/<release>`.
    pub kernel: PathBuf,
    /// The uncompressed kernel: boots by PVH without the seconds of decompression.
    pub vmlinux: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// What the benches' guests have beside this machine's own programs.
    #[serde(default)]
    pub multipath_tools: Option<PathBuf>,
}

/// The cache: `STORAGELINK_CACHE`, or `~/.cache/storagelink-csi`.
#[must_use]
pub fn cache_directory() -> PathBuf {
    std::env::var_os("STORAGELINK_CACHE").map_or_else(
        || {
            let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
            PathBuf::from(home).join(".cache/storagelink-csi")
        },
        PathBuf::from,
    )
}

/// Finds or makes everything a guest boots from. `kernel` is a kernel package, or the beginning of a version (`6.12`) of which the newest that
/// the machine's package sources have is taken; none means what `linux-image-amd64` depends on now.
pub fn prepare(cache: &Path, kernel: Option<&str>) -> Result<Artifacts> {
    fs::create_dir_all(cache).with_context(|| format!("make the cache {}", cache.display()))?;
    let lock = fs::File::create(cache.join("kernel.lock")).context("make the cache's lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("lock the cache")?;

    let package = match kernel {
        None => current_package()?,
        Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => package_of(version)?,
        Some(package) => package.to_owned(),
    };
    let root = cache.join(&package);
    if !root.exists() {
        unpack(cache, &package, &root)?;
    }
    let release = release_of(&root)?;
    let artifacts = Artifacts {
        vmlinux: root.join("vmlinux"),
        initramfs: root.join("initramfs"),
        kernel: root,
        release,
        multipath_tools: None,
    };
    write_initramfs(&artifacts)?;
    Ok(artifacts)
}

/// The kernel package users of this distribution run today.
fn current_package() -> Result<String> {
    let text = output_blocking(
        &["apt-cache", "depends", "linux-image-amd64"],
        Path::new("/"),
        &[],
    )?;
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Depends: ")
                .filter(|name| name.starts_with("linux-image-"))
        })
        .map(str::to_owned)
        .with_context(|| format!("linux-image-amd64 depends on no kernel: {text}"))
}

/// The newest kernel package of a version, backports included.
fn package_of(version: &str) -> Result<String> {
    let text = output_blocking(&["apt-cache", "show", "linux-image-amd64"], Path::new("/"), &[])?;
    let text = String::from_utf8_lossy(&text);
    newest_of(&text, version)
        .with_context(|| format!("no package source of this machine has a linux-image-amd64 of {version}"))
}

/// The first kernel of this version that the descriptions of `linux-image-amd64`, newest first, depend on.
fn newest_of(descriptions: &str, version: &str) -> Option<String> {
    let kernels = descriptions
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: ")?.split(' ').next());
    // "6.1" is not "6.12".
    let fits = |kernel: &&str| {
        let rest = kernel
            .strip_prefix("linux-image-")
            .and_then(|kernel| kernel.strip_prefix(version));
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    kernels.into_iter().find(fits).map(str::to_owned)
}

/// Downloads and unpacks the package beside its final place and renames it: a killed run leaves no half kernel.
fn unpack(cache: &Path, package: &str, root: &Path) -> Result<()> {
    let work = tempfile::Builder::new()
        .prefix("unpack-")
        .tempdir_in(cache)
        .context("make a directory to unpack in")?;
    output_blocking(&["apt-get", "download", package], work.path(), &[])?;
    let deb = entries(work.path())?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no .deb"))?;
    let out = work.path().join("root");
    output_blocking(&["dpkg-deb", "-x", &utf8(&deb)?, &utf8(&out)?], work.path(), &[])?;
    let release = release_of(&out)?;
    output_blocking(&["depmod", "-b", &utf8(&out)?, &release], work.path(), &[])?;

    let compressed = fs::read(out.join(format!("boot/vmlinuz-{release}"))).context("read vmlinuz")?;
    let payload = payload(&compressed).context("vmlinuz has no boot header")?;
    let argv: &[&str] = if payload.starts_with(XZ_MAGIC) {
        &["xz", "-dc", "--single-stream"]
    } else if payload.starts_with(ZSTD_MAGIC) {
        &["zstd", "-dc"]
    } else {
        bail!("vmlinuz is compressed neither with xz nor with zstd")
    };
    let kernel = output_blocking(argv, work.path(), payload)?;
    ensure!(
        kernel.starts_with(b"\x7fELF"),
        "the kernel inside vmlinuz is no ELF file"
    );
    fs::write(out.join("vmlinux"), kernel).context("write vmlinux")?;
    fs::rename(&out, root).with_context(|| format!("put the kernel to {}", root.display()))
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length), without the size
/// that follows it in four bytes (scripts/Makefile.lib, size_append).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248)?;
    let end = start + word(0x24c)?.checked_sub(4)?;
    image.get(start..end)
}

fn release_of(root: &Path) -> Result<String> {
    let mut all = entries(&root.join("lib/modules"))?;
    match (all.pop(), all.is_empty()) {
        (Some(path), true) => Ok(path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()),
        _ => bail!("{} does not hold exactly one kernel's modules", root.display()),
    }
}

fn write_initramfs(artifacts: &Artifacts) -> Result<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .context("no busybox (package busybox-static)")?;
    let mut archive = cpio::Archive::default();
    for directory in ["bin", "mods", "proc", "sys", "dev", "lower", "overlay", "newroot"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    for applet in ["sh", "mount", "mkdir", "insmod", "switch_root", "echo"] {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    for (index, module) in early_modules(artifacts)?.iter().enumerate() {
        let mut content = fs::read(module).with_context(|| format!("read {module}"))?;
        let mut name = module.rsplit('/').next().unwrap_or_default();
        // The initramfs has no modprobe to unpack it.
        if let Some(plain) = name.strip_suffix(".xz") {
            content = output_blocking(&["xz", "-dc"], Path::new("/"), &content)?;
            name = plain;
        }
        archive.file(&format!("mods/{index:02}-{name}"), 0o644, &content);
    }
    archive.file("init", 0o755, INIT.as_bytes());

    // Made afresh each time (it is a few files), replaced at once: a guest that boots right now keeps what it opened.
    let directory = artifacts.initramfs.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory).context("make the initramfs")?;
    file.write_all(&archive.finish()).context("write the initramfs")?;
    file.persist(&artifacts.initramfs)
        .context("put the initramfs in place")?;
    Ok(())
}

/// Module files in the order to insert them.
fn early_modules(artifacts: &Artifacts) -> Result<Vec<String>> {
    let base = utf8(&artifacts.kernel)?;
    let mut files = Vec::new();
    for module in EARLY_MODULES {
        let argv = [
            "modprobe",
            "-d",
            &base,
            "-S",
            &artifacts.release,
            "--show-depends",
            module,
        ];
        let text = output_blocking(&argv, Path::new("/"), &[])?;
        for line in String::from_utf8_lossy(&text).lines() {
            let Some(file) = line.strip_prefix("insmod ").map(|rest| rest.trim().to_owned()) else {
                continue; // "builtin <name>"
            };
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(directory)
        .and_then(|read| read.map(|entry| entry.map(|entry| entry.path())).collect())
        .with_context(|| format!("read the directory {}", directory.display()))
}

fn utf8(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_is_the_newest_package_of_it_and_no_other() {
        let text = "Version: 6.12.95-1~bpo12+1\nDepends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1)\n\n\
                    Version: 6.1.192-2\nDepends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)\n\n\
                    Version: 6.1.176-1\nDepends: linux-image-6.1.0-50-amd64 (= 6.1.176-1)\n";
        let newest = |version| super::newest_of(text, version);
        assert_eq!(newest("6.12").as_deref(), Some("linux-image-6.12.95+deb12-amd64"));
        assert_eq!(newest("6.1").as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.2"), None);
    }
}
