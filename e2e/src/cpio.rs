//! Writes the "newc" cpio archive the kernel unpacks as initramfs (kernel Documentation/driver-api/early-userspace/
//! buffer-format.rst). Only what the lab needs: directories, files, symlinks.

/// An archive being written, in memory.
#[derive(Debug, Default)]
pub struct Archive {
    data: Vec<u8>,
    inode: u32,
}

// File type bits of st_mode (POSIX sys/stat.h).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

impl Archive {
    /// Adds a directory; its parent must have been added.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a regular file with the permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, REGULAR | mode, content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    /// Ends the archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.data
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).expect("initramfs members are small");
        let name = u32::try_from(path.len() + 1).expect("initramfs names are short");
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.data.extend_from_slice(b"070701");
        for field in fields {
            self.data.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.data.extend_from_slice(path.as_bytes());
        self.data.push(0);
        self.pad();
        self.data.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.data.resize(self.data.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Archive;

    #[test]
    fn busybox_reads_the_archive_back() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/odd", 0o755, b"12345");
        archive.symlink("bin/link", "odd");
        let directory = tempfile::tempdir().unwrap();
        let data = archive.finish();
        crate::programs::output_blocking(&["busybox", "cpio", "-i"], directory.path(), &data).unwrap();
        let read = |path: &str| std::fs::read(directory.path().join(path)).unwrap();
        assert_eq!(read("bin/odd"), b"12345");
        assert_eq!(read("bin/link"), b"12345");
        assert_eq!(
            std::fs::read_link(directory.path().join("bin/link")).unwrap(),
            Path::new("odd")
        );
    }
}
