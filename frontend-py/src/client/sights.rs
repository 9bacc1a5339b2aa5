//! What was uploaded before: only content that comes again is worth a question to the node.
//!
//! A batch of fresh data costs one look at a sample of its bytes, and no hash. The sample is
//! compared, never trusted: what is bound to a weight was hashed whole.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use genie_wire::record::WeightHash;

use crate::client::limits::SIGHTS_MAX;

/// Pieces of a sample, and the bytes of each.
const PIECES: usize = 64;
const PIECE_BYTES: usize = 64;

/// A sample of some content, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sample(u64);

impl Sample {
    /// Looks at pieces spread over the bytes, first and last included.
    pub fn of(bytes: &[u8]) -> Sample {
        let mut hasher = DefaultHasher::new();
        hasher.write_usize(bytes.len());
        if bytes.len() <= PIECES * PIECE_BYTES {
            hasher.write(bytes);
            return Sample(hasher.finish());
        }
        let last = bytes.len() - PIECE_BYTES;
        for piece in 0..PIECES {
            let at = last as u128 * piece as u128 / (PIECES - 1) as u128;
            hasher.write(&bytes[at as usize..][..PIECE_BYTES]);
        }
        Sample(hasher.finish())
    }
}

/// What is known of content with some sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    Once,
    /// It came again, and had this hash.
    Again(WeightHash),
    /// Contents that differ have this sample: it tells nothing.
    Various,
}

/// What to do with content that is to be uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It is new, as far as is known.
    New,
    /// Hash it; then [`Sights::is_worth_asking`] says more.
    Seen,
}

/// Samples of what was uploaded lately, at most twice [`SIGHTS_MAX`].
#[derive(Debug, Default)]
pub struct Sights {
    /// When it is full it becomes `older`, and what was there is forgotten.
    newer: HashMap<Sample, Sight>,
    older: HashMap<Sample, Sight>,
}

impl Sights {
    pub fn look(&mut self, sample: Sample) -> Look {
        let known = self.newer.get(&sample).or_else(|| self.older.get(&sample)).copied();
        self.note(sample, known.unwrap_or(Sight::Once));
        match known {
            None | Some(Sight::Various) => Look::New,
            Some(Sight::Once | Sight::Again(_)) => Look::Seen,
        }
    }

    /// Content with a sample that was seen has this hash: whether the node may know it.
    pub fn is_worth_asking(&mut self, sample: Sample, hash: WeightHash) -> bool {
        let sight = match self.newer.get(&sample) {
            None | Some(Sight::Once) => Sight::Again(hash),
            Some(Sight::Again(before)) if *before == hash => Sight::Again(hash),
            Some(_) => Sight::Various,
        };
        self.note(sample, sight);
        sight != Sight::Various
    }

    fn note(&mut self, sample: Sample, sight: Sight) {
        if self.newer.len() >= SIGHTS_MAX && !self.newer.contains_key(&sample) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(sample, sight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WeightHash = [1; 32];
    const B: WeightHash = [2; 32];

    #[test]
    fn content_that_comes_again_is_worth_a_question() {
        let mut sights = Sights::default();
        let sample = Sample::of(b"a batch");
        assert_eq!(sights.look(sample), Look::New);
        for _ in 0..3 {
            assert_eq!(sights.look(sample), Look::Seen);
            assert!(sights.is_worth_asking(sample, A));
        }
        assert_eq!(sights.look(Sample::of(b"another")), Look::New);
    }

    #[test]
    fn contents_that_look_alike_cost_two_hashes_and_no_more() {
        let mut sights = Sights::default();
        let sample = Sample::of(b"zeros, mostly");
        assert_eq!(sights.look(sample), Look::New);
        assert_eq!(sights.look(sample), Look::Seen);
        assert!(sights.is_worth_asking(sample, A));
        assert_eq!(sights.look(sample), Look::Seen);
        assert!(!sights.is_worth_asking(sample, B));
        assert_eq!(sights.look(sample), Look::New);
    }

    #[test]
    fn a_sample_covers_both_ends_and_the_length() {
        let bytes = vec![7; 1 << 20];
        let sample = Sample::of(&bytes);
        for change in [0, PIECE_BYTES - 1, (1 << 20) - 1] {
            let mut other = bytes.clone();
            other[change] = 8;
            assert_ne!(Sample::of(&other), sample, "byte {change}");
        }
        assert_ne!(Sample::of(&bytes[1..]), sample);
        assert_eq!(Sample::of(&bytes.clone()), sample);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut sights = Sights::default();
        for number in 0..5 * SIGHTS_MAX as u64 {
            sights.look(Sample(number));
        }
        assert!(sights.newer.len() + sights.older.len() <= 2 * SIGHTS_MAX);
        assert_eq!(sights.look(Sample(5 * SIGHTS_MAX as u64 - 1)), Look::Seen);
        assert_eq!(sights.look(Sample(0)), Look::New);
    }
}
