//! Is there nothing on this disk? The question that stands between a user's data and mkfs.
//!
//! A disk is blank when every place looked at is zero: its whole first and last MiB (partition tables, every file
//! system's and volume manager's first superblock, RAID and ZFS labels at the end), the places of known backup
//! superblocks, and samples spread evenly over the rest. It must never answer "blank" for a place that could not be
//! read. Zero is what a fresh LUN reads as on every array that this driver serves; an array that hands out old data in
//! a new LUN makes the answer "not blank", which is the right way to be wrong.

use std::{io, ops::Range};

use storagelink_multipath::host::{BlockDevices, DevNo};

/// How much of the beginning and of the end is looked at.
const EDGE: u64 = 1 << 20;
/// Size of each sample in between.
const SAMPLE: u64 = 64 * 1024;
/// How many samples are spread over the disk.
const SAMPLES: u64 = 64;
/// Alignment of samples: a direct read of a disk with 4 KiB sectors needs it.
const ALIGN: u64 = 4096;
/// Backup superblocks that survive a wiped beginning: btrfs mirrors (64 MiB, 256 GiB), the first ext4 backups (block
/// 32768 of 4 KiB and 8193 of 1 KiB).
const KNOWN: [u64; 4] = [64 << 20, 256 << 30, 128 << 20, 8193 * 1024 / ALIGN * ALIGN];

/// The places to look at on a disk of `size` bytes: within the disk, none of them empty, in ascending order, aligned
/// but for the end of the last.
#[must_use]
pub fn places(size: u64) -> Vec<Range<u64>> {
    if size <= 2 * EDGE {
        return if size == 0 {
            Vec::new()
        } else {
            std::iter::once(0..size).collect()
        };
    }
    let middle = size - 2 * EDGE;
    let spread = (0..SAMPLES).map(|i| EDGE + middle / SAMPLES * i);
    let mut starts: Vec<u64> = spread.chain(KNOWN).map(|at| at / ALIGN * ALIGN).collect();
    starts.retain(|&at| at >= EDGE && at < size - EDGE);
    starts.sort_unstable();
    starts.dedup();
    let samples = starts.into_iter().map(|at| at..(at + SAMPLE).min(size - EDGE));
    let tail = (size - EDGE) / ALIGN * ALIGN..size;
    std::iter::once(0..EDGE).chain(samples).chain([tail]).collect()
}

/// The byte offset of the first place that is not zero; `None` when the disk is blank. Blocks: call it through a worker.
pub fn first_content(
    block: &dyn BlockDevices,
    devno: DevNo,
    name: &str,
    size: u64,
) -> io::Result<Option<u64>> {
    let places = places(size);
    // What was read of each, in turn.
    let (mut read, mut found, mut short) = (0, None, None);
    block.read_places(devno, name, &places, &mut |offset, data| {
        let wanted = places[read].end - places[read].start;
        read += 1;
        if data.len() as u64 != wanted {
            short = Some(format!(
                "read {} of {wanted} bytes at offset {offset}",
                data.len()
            ));
        }
        found = first_nonzero(data).map(|at| offset + at as u64);
        found.is_none() && short.is_none()
    })?;
    match (found, short) {
        (Some(at), _) => Ok(Some(at)),
        (None, None) if read == places.len() => Ok(None),
        (None, short) => {
            let text = short.unwrap_or_else(|| format!("read {read} of {} places", places.len()));
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
        }
    }
}

/// Compares whole pieces first: megabytes of zeros are the usual case.
fn first_nonzero(data: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let piece = data
        .chunks(ZEROS.len())
        .position(|piece| piece != &ZEROS[..piece.len()])?;
    let start = piece * ZEROS.len();
    data[start..].iter().position(|&b| b != 0).map(|at| start + at)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    const DEVNO: DevNo = DevNo { major: 253, minor: 0 };

    /// A disk that is zero but for one byte.
    struct OneByte(u64, u8);

    impl BlockDevices for OneByte {
        fn node(&self, _: DevNo, _: &str) -> io::Result<PathBuf> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn size_bytes(&self, _: DevNo, _: &str) -> io::Result<u64> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn flush(&self, _: DevNo, _: &str) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn read_at(&self, _: DevNo, _: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
            let mut data = vec![0; length];
            if let Some(byte) = self
                .0
                .checked_sub(offset)
                .and_then(|i| data.get_mut(usize::try_from(i).ok()?))
            {
                *byte = self.1;
            }
            Ok(data)
        }
    }

    #[test]
    fn the_edges_and_the_backup_superblocks_are_among_the_places() {
        let size = 300u64 << 30;
        let places = places(size);
        let covered = |at: u64| places.iter().any(|p| p.contains(&at));
        for at in [
            0,
            EDGE - 1,
            size - 1,
            size - EDGE,
            64 << 20,
            (128 << 20) + 1080,
            (8193 << 10) + 56,
            256 << 30,
        ] {
            assert!(covered(at), "offset {at}");
        }
        assert!(
            places.iter().map(|p| p.end - p.start).sum::<u64>() < 8 << 20,
            "few enough to be quick"
        );
    }

    #[test]
    fn a_place_that_cannot_be_read_is_not_blank() {
        struct Short;
        impl BlockDevices for Short {
            fn node(&self, _: DevNo, _: &str) -> io::Result<PathBuf> {
                Err(io::ErrorKind::Unsupported.into())
            }
            fn size_bytes(&self, _: DevNo, _: &str) -> io::Result<u64> {
                Ok(0)
            }
            fn flush(&self, _: DevNo, _: &str) -> io::Result<()> {
                Ok(())
            }
            fn read_at(&self, _: DevNo, _: &str, _: u64, length: usize) -> io::Result<Vec<u8>> {
                Ok(vec![0; length - 1])
            }
        }
        assert!(first_content(&Short, DEVNO, "dm-0", 1 << 30).is_err());
    }

    proptest! {
        #[test]
        fn places_are_ordered_inside_the_disk_and_whole(size in 0u64..1 << 42) {
            let places = places(size);
            prop_assert!(places.iter().all(|p| p.start < p.end && p.end <= size));
            prop_assert!(places.is_sorted_by_key(|p| p.start));
            prop_assert_eq!(places.first().map_or(0, |p| p.start), 0);
            prop_assert_eq!(places.last().map_or(0, |p| p.end), size);
        }

        #[test]
        fn one_byte_in_any_place_is_found(size in 1u64..1 << 36, place in any::<prop::sample::Index>(), inside in any::<prop::sample::Index>(), byte in 1u8..) {
            let places = places(size);
            let place = &places[place.index(places.len())];
            let at = place.start + inside.index((place.end - place.start) as usize) as u64;
            prop_assert_eq!(first_content(&OneByte(at, byte), DEVNO, "dm-0", size).expect("reads"), Some(at));
        }
    }

    #[test]
    fn a_zero_disk_is_blank() {
        for size in [1, 4096, EDGE, 2 * EDGE, 2 * EDGE + 512, (1 << 30) + 512] {
            assert_eq!(
                first_content(&OneByte(u64::MAX, 1), DEVNO, "dm-0", size).expect("reads"),
                None
            );
        }
    }
}
