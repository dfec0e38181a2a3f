//! One block: 4 KiB fully determined by seed, block number and sequence number, so that a torn, stale, misplaced or foreign
//! block cannot pass for the right one.

/// Bytes of a block; also the alignment O_DIRECT asks for on any disk of today.
pub const SIZE: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"SLWRITE1");
const WORDS: usize = SIZE / 8;

/// A buffer O_DIRECT accepts.
#[repr(align(4096))]
#[derive(Debug, Clone)]
pub struct Buffer(pub [u8; SIZE]);

impl Default for Buffer {
    fn default() -> Self {
        Self([0; SIZE])
    }
}

/// Why a block is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The header is not the writer's.
    #[error("holds no block of this writer")]
    Foreign,
    /// Written by another run, or for another place.
    #[error("holds block {block} of seed {seed}")]
    Misplaced {
        /// Seed in the header.
        seed: u64,
        /// Block number in the header.
        block: u64,
    },
    /// The header fits but the rest does not.
    #[error("is torn or altered from byte {byte} on (sequence {sequence})")]
    Torn {
        /// Sequence number in the header.
        sequence: u64,
        /// First byte that differs.
        byte: usize,
    },
}

/// Fills `buffer` with the block.
pub fn fill(buffer: &mut Buffer, seed: u64, block: u64, sequence: u64) {
    let words = words(seed, block, sequence);
    let mut index = 0;
    while index < WORDS {
        buffer.0[index * 8..index * 8 + 8].copy_from_slice(&words[index].to_le_bytes());
        index += 1;
    }
}

/// The sequence number of the block in `buffer`, if all of it is what the writer wrote for this place.
pub fn check(buffer: &Buffer, seed: u64, block: u64) -> Result<u64, Wrong> {
    let word = |index: usize| {
        let bytes = buffer.0[index * 8..index * 8 + 8]
            .try_into()
            .expect("eight bytes");
        u64::from_le_bytes(bytes)
    };
    if word(0) != MAGIC {
        return Err(Wrong::Foreign);
    }
    if (word(1), word(2)) != (seed, block) {
        return Err(Wrong::Misplaced {
            seed: word(1),
            block: word(2),
        });
    }
    let sequence = word(3);
    let mut expected = Buffer::default();
    fill(&mut expected, seed, block, sequence);
    if buffer.0 == expected.0 {
        return Ok(sequence);
    }
    let differs = buffer
        .0
        .iter()
        .zip(&expected.0)
        .position(|(found, expected)| found != expected);
    Err(Wrong::Torn {
        sequence,
        byte: differs.unwrap_or_default(),
    })
}

/// Header, then a xorshift64* stream (Vigna, "An experimental exploration of Marsaglia's xorshift generators") keyed by it.
/// Plain loops: iterator chains are slow in an unoptimized build on an emulated processor.
fn words(seed: u64, block: u64, sequence: u64) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    words[..4].copy_from_slice(&[MAGIC, seed, block, sequence]);
    let mut state =
        (seed ^ block.rotate_left(20) ^ sequence.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut index = 4;
    while index < WORDS {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        words[index] = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        index += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{Buffer, Wrong, check, fill};

    #[test]
    fn only_the_right_block_passes() {
        let mut buffer = Buffer::default();
        assert_eq!(check(&buffer, 7, 3), Err(Wrong::Foreign));
        fill(&mut buffer, 7, 3, 99);
        assert_eq!(check(&buffer, 7, 3), Ok(99));
        assert_eq!(check(&buffer, 7, 4), Err(Wrong::Misplaced { seed: 7, block: 3 }));
        assert_eq!(check(&buffer, 8, 3), Err(Wrong::Misplaced { seed: 7, block: 3 }));
        let mut older = Buffer::default();
        fill(&mut older, 7, 3, 98);
        buffer.0[2048..].copy_from_slice(&older.0[2048..]);
        assert_eq!(
            check(&buffer, 7, 3),
            Err(Wrong::Torn {
                sequence: 99,
                byte: 2048
            })
        );
    }
}
