//! A small non-cryptographic 128-bit hash: fast, seedless, the same in every process.
//!
//! It tells a session's own segments apart. Nothing is granted on the strength of it: a program
//! that forges a collision confuses only the hints about itself.

use std::fmt;

/// A 128-bit hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash128(pub u128);

impl fmt::Display for Hash128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Two independent lanes of folded multiplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mixer {
    a: u64,
    b: u64,
}

const A: u64 = 0x9e37_79b9_7f4a_7c15;
const B: u64 = 0xd6e8_feb8_6659_fd93;

fn fold(x: u64, y: u64) -> u64 {
    let product = u128::from(x) * u128::from(y);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Mixer {
    pub(crate) fn new() -> Self {
        Mixer { a: 0x243f_6a88_85a3_08d3, b: 0x1319_8a2e_0370_7344 }
    }

    #[inline]
    pub(crate) fn word(&mut self, word: u64) {
        self.a = fold(self.a ^ word, A).wrapping_add(B);
        self.b = fold(self.b.rotate_left(29).wrapping_add(word) ^ A, B) ^ self.a.rotate_left(11);
    }

    #[inline]
    pub(crate) fn hash(&mut self, hash: Hash128) {
        self.word(hash.0 as u64);
        self.word((hash.0 >> 64) as u64);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    pub(crate) fn finish(mut self) -> Hash128 {
        self.word(A);
        self.word(B);
        Hash128((u128::from(self.a) << 64) | u128::from(self.b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn near_inputs_do_not_collide() {
        let mut seen = HashSet::new();
        for first in 0..300u64 {
            for second in 0..300u64 {
                let mut mixer = Mixer::new();
                mixer.word(first);
                mixer.word(second);
                assert!(seen.insert(mixer.finish()), "{first} {second}");
            }
        }
    }

    #[test]
    fn length_is_part_of_a_byte_string() {
        let of = |bytes: &[u8]| {
            let mut mixer = Mixer::new();
            mixer.bytes(bytes);
            mixer.finish()
        };
        assert_ne!(of(b"a"), of(b"a\0"));
        assert_ne!(of(b""), of(b"\0"));
    }
}
