//! Repeats of segments: a loop is kept a few times, then only counted.
//!
//! A segment repeats others when it has their topology and uses the same storages from before at the
//! same places: weights, above all. So two models of one architecture that take turns stay two, and a
//! loop goes on after something else ran in between.

use std::collections::HashMap;
use std::sync::Arc;

use genie_srg::{Hash128, Noted, SegmentHashes, Trace};

/// Repeats of a segment that are kept whole.
pub const FOLD_REPEATS_MIN: usize = 3;
/// Records that must be kept before any segment is only counted: small programs are told operator by
/// operator.
pub const FOLD_RECORDS_MIN: usize = 1 << 12;
/// Kept segments of one topology that a new one is compared with, the newest.
const RECENT_MAX: usize = 48;
/// Kinds of repeats of one topology: models of one architecture.
const KINDS_MAX: usize = 64;

/// Knows which segments repeat.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    topologies: HashMap<Hash128, Topology>,
}

#[derive(Debug, Default)]
struct Topology {
    recent: Vec<usize>,
    kinds: Vec<Kind>,
}

/// Segments that repeat each other.
#[derive(Debug)]
struct Kind {
    /// The last one that is kept.
    kept: usize,
    /// Where all use the same storage.
    lasting: Vec<usize>,
}

impl Fold {
    /// The kept segment that `next` repeats; `None` where it is to be kept itself.
    pub fn repeats(
        &self,
        kept: &[Arc<Noted>],
        hashes: SegmentHashes,
        next: &Trace,
    ) -> Option<usize> {
        let kinds = self.topologies.get(&hashes.topology)?.kinds.iter();
        let fits = |kind: &&Kind| lasts(kept[kind.kept].trace(), next, &kind.lasting);
        kinds.filter(fits).max_by_key(|kind| kind.lasting.len()).map(|kind| kind.kept)
    }

    /// Takes note of the last of the kept segments; `records` are those of all together.
    pub fn kept(&mut self, kept: &[Arc<Noted>], records: usize) {
        let Some(newest) = kept.len().checked_sub(1) else { return };
        let topology = self.topologies.entry(kept[newest].hashes.topology).or_default();
        if records >= FOLD_RECORDS_MIN && topology.kinds.len() < KINDS_MAX {
            topology.kinds.extend(kind(kept, newest, &topology.recent));
        }
        if topology.recent.len() == RECENT_MAX {
            topology.recent.remove(0);
        }
        topology.recent.push(newest);
    }
}

/// What a kept segment is the last of, if enough of `recent` are its like: those with which it shares
/// the most.
fn kind(kept: &[Arc<Noted>], newest: usize, recent: &[usize]) -> Option<Kind> {
    let shared = |other: &usize| shared(kept[*other].trace(), kept[newest].trace());
    let most = recent.iter().map(|other| shared(other).count()).max().filter(|most| *most > 0)?;
    let like: Vec<usize> =
        recent.iter().copied().filter(|other| shared(other).count() == most).collect();
    let first = like.first()?;
    let all = |place: &usize| like.iter().all(|other| lasts_at(kept, *other, newest, *place));
    let lasting: Vec<usize> = shared(first).filter(all).collect();
    let enough = like.len() + 1 >= FOLD_REPEATS_MIN && !lasting.is_empty();
    enough.then_some(Kind { kept: newest, lasting })
}

/// Where two segments of one topology use the same storage.
fn shared<'a>(one: &'a Trace, other: &'a Trace) -> impl Iterator<Item = usize> + 'a {
    let both = one.storages().zip(other.storages()).enumerate();
    both.filter(|(_, (a, b))| a == b).map(|(at, _)| at)
}

fn lasts_at(kept: &[Arc<Noted>], one: usize, other: usize, place: usize) -> bool {
    kept[one].trace().storage(place) == kept[other].trace().storage(place)
}

fn lasts(one: &Trace, other: &Trace, places: &[usize]) -> bool {
    places.iter().all(|place| one.storage(*place) == other.storage(*place))
}
