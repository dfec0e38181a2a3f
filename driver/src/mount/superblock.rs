//! What a disk's first bytes say about a file system on it: a pure parser of the superblocks that this driver makes.
//!
//! It must never decide that a disk is empty: not being one of these three says nothing. That is `blank`'s question.

use std::fmt;

use super::filesystem::FsType;

/// How many bytes of the disk's beginning the parser needs: the btrfs superblock is the last, at 64 KiB, 4 KiB long.
pub const HEAD_BYTES: usize = 68 * 1024;

/// ext2/3/4: the superblock begins at byte 1024 (fs/ext4/ext4.h, struct ext4_super_block).
const EXT_AT: usize = 1024;
/// `s_magic` at 0x38: 0xEF53, little endian.
const EXT_MAGIC: u16 = 0xef53;
/// `s_state` bit: cleanly unmounted.
const EXT_VALID: u16 = 1;
/// `s_state` bit: errors were found by the kernel.
const EXT_ERROR: u16 = 2;
/// `s_feature_incompat` bit: the journal must be replayed.
const EXT_RECOVER: u32 = 4;
/// `s_feature_incompat` bit: this is an external journal, not a file system.
const EXT_JOURNAL_DEVICE: u32 = 8;
/// `s_feature_incompat` bit: block numbers have 64 bits.
const EXT_64BIT: u32 = 0x80;
/// XFS: `sb_magicnum`, at byte 0 (fs/xfs/libxfs/xfs_format.h).
const XFS_MAGIC: &[u8] = b"XFSB";
/// btrfs: the first superblock begins at 64 KiB (fs/btrfs/disk-io.h).
const BTRFS_AT: usize = 64 * 1024;
/// Its magic, 0x40 bytes in.
const BTRFS_MAGIC: &[u8] = b"_BHRfS_M";
/// `log_root`, 0x60 bytes in: not zero when a tree log must be replayed.
const BTRFS_LOG_ROOT: usize = 0x60;

/// A file system that was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which one. ext2 and ext3 count as ext4: the same kernel module serves them.
    pub fs: FsType,
    /// It asks for a check before it is mounted writable: the kernel has seen errors in it, or it has no journal and
    /// was not unmounted. A journal that waits for its replay is no reason: the mount does that.
    pub needs_check: bool,
    /// Its journal or log holds changes. Not known, and `false`, for XFS, whose superblock does not say.
    pub needs_replay: bool,
    /// How many bytes of the disk the file system takes up.
    pub size_bytes: u64,
}

/// What the head of a disk shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Exactly one file system.
    One(Superblock),
    /// Marks of more than one: the rest of an older one, or damage. Nobody can tell which is meant.
    Several(Vec<FsType>),
    /// None of those that are known here.
    Unknown,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(found) => write!(f, "{}", found.fs),
            Self::Several(found) => {
                let names: Vec<_> = found.iter().map(FsType::name).collect();
                write!(f, "marks of {}", names.join(" and "))
            }
            Self::Unknown => f.write_str("no known file system"),
        }
    }
}

/// Recognises what the first [`HEAD_BYTES`] of a disk hold. A shorter head shows less.
#[must_use]
pub fn detect(head: &[u8]) -> Content {
    let found: Vec<_> = [ext(head), xfs(head), btrfs(head)]
        .into_iter()
        .flatten()
        .collect();
    match found.as_slice() {
        [] => Content::Unknown,
        [one] => Content::One(*one),
        several => Content::Several(several.iter().map(|s| s.fs).collect()),
    }
}

fn ext(head: &[u8]) -> Option<Superblock> {
    let block = head.get(EXT_AT..EXT_AT + 1024)?;
    if u16_at(block, 0x38)? != EXT_MAGIC {
        return None;
    }
    let state = u16_at(block, 0x3a)?;
    let incompat = u32_at(block, 0x60)?;
    if incompat & EXT_JOURNAL_DEVICE != 0 {
        return None;
    }
    let needs_replay = incompat & EXT_RECOVER != 0;
    let dirty = state & EXT_VALID == 0 && !needs_replay;
    // s_blocks_count_lo, s_log_block_size, and with INCOMPAT_64BIT s_blocks_count_hi.
    let low = u64::from(u32_at(block, 0x4)?);
    let high = if incompat & EXT_64BIT != 0 {
        u64::from(u32_at(block, 0x150)?)
    } else {
        0
    };
    let block_size = 1024u64.checked_shl(u32_at(block, 0x18)?.min(6)).unwrap_or(0);
    let size_bytes = (high << 32 | low).saturating_mul(block_size);
    Some(Superblock {
        fs: FsType::Ext4,
        needs_check: state & EXT_ERROR != 0 || dirty,
        needs_replay,
        size_bytes,
    })
}

fn xfs(head: &[u8]) -> Option<Superblock> {
    let block = head.get(..512)?;
    // sb_blocksize and sb_dblocks, big endian.
    let block_size = u32::from_be_bytes(block.get(4..8)?.try_into().ok()?);
    let blocks = u64::from_be_bytes(block.get(8..16)?.try_into().ok()?);
    let size_bytes = blocks.saturating_mul(block_size.into());
    let found = Superblock {
        fs: FsType::Xfs,
        needs_check: false,
        needs_replay: false,
        size_bytes,
    };
    block.starts_with(XFS_MAGIC).then_some(found)
}

fn btrfs(head: &[u8]) -> Option<Superblock> {
    let block = head.get(BTRFS_AT..BTRFS_AT + 4096)?;
    if block.get(0x40..0x48)? != BTRFS_MAGIC {
        return None;
    }
    let log = block.get(BTRFS_LOG_ROOT..BTRFS_LOG_ROOT + 8)?;
    // total_bytes: of one device, as this driver makes it.
    let size_bytes = u64::from_le_bytes(block.get(0x70..0x78)?.try_into().ok()?);
    Some(Superblock {
        fs: FsType::Btrfs,
        needs_check: false,
        needs_replay: log.iter().any(|&b| b != 0),
        size_bytes,
    })
}

fn u16_at(block: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(block.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(block: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?))
}

/// Heads of disks for tests, here and in the simulated host: what each file system's maker leaves on `size` bytes.
#[cfg(any(test, feature = "sim"))]
#[must_use]
pub fn sample(fs: FsType, size: u64) -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    let blocks = size / 4096;
    match fs {
        FsType::Ext4 => {
            put(
                EXT_AT + 0x4,
                &u32::try_from(blocks).unwrap_or(u32::MAX).to_le_bytes(),
            );
            put(EXT_AT + 0x18, &2u32.to_le_bytes());
            put(EXT_AT + 0x38, &EXT_MAGIC.to_le_bytes());
            put(EXT_AT + 0x3a, &EXT_VALID.to_le_bytes());
        }
        FsType::Xfs => {
            put(0, XFS_MAGIC);
            put(4, &4096u32.to_be_bytes());
            put(8, &blocks.to_be_bytes());
        }
        FsType::Btrfs => {
            put(BTRFS_AT + 0x40, BTRFS_MAGIC);
            put(BTRFS_AT + 0x70, &(blocks * 4096).to_le_bytes());
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_is_told_from_the_others() {
        for fs in FsType::ALL {
            let size_bytes = 10 << 30;
            let clean = Superblock {
                fs,
                needs_check: false,
                needs_replay: false,
                size_bytes,
            };
            assert_eq!(detect(&sample(fs, size_bytes)), Content::One(clean));
        }
        assert_eq!(detect(&vec![0; HEAD_BYTES]), Content::Unknown);
        assert_eq!(detect(&[]), Content::Unknown);
        let mut both = sample(FsType::Btrfs, 1 << 30);
        both[..4].copy_from_slice(XFS_MAGIC);
        assert_eq!(detect(&both), Content::Several(vec![FsType::Xfs, FsType::Btrfs]));
    }

    #[test]
    fn ext4_is_checked_for_errors_but_not_for_a_journal() {
        for (state, incompat, needs_check, needs_replay) in [
            (1u16, 0u32, false, false),
            (1, EXT_RECOVER, false, true),
            (0, EXT_RECOVER, false, true),
            (0, 0, true, false),
            (1 | EXT_ERROR, EXT_RECOVER, true, true),
        ] {
            let mut head = sample(FsType::Ext4, 1 << 30);
            head[EXT_AT + 0x3a..EXT_AT + 0x3c].copy_from_slice(&state.to_le_bytes());
            head[EXT_AT + 0x60..EXT_AT + 0x64].copy_from_slice(&incompat.to_le_bytes());
            let expected = Superblock {
                fs: FsType::Ext4,
                needs_check,
                needs_replay,
                size_bytes: 1 << 30,
            };
            assert_eq!(
                detect(&head),
                Content::One(expected),
                "state {state}, incompat {incompat}"
            );
        }
    }

    #[test]
    fn btrfs_tells_that_its_log_waits_and_an_external_journal_is_no_file_system() {
        let mut head = sample(FsType::Btrfs, 1 << 30);
        head[BTRFS_AT + BTRFS_LOG_ROOT + 3] = 1;
        let Content::One(found) = detect(&head) else {
            panic!("not recognised")
        };
        assert!(found.needs_replay);
        let mut head = sample(FsType::Ext4, 1 << 30);
        head[EXT_AT + 0x60] = 8;
        assert_eq!(detect(&head), Content::Unknown);
    }
}
