//! A bounded table of sources. When it is full, the one that was seen least recently is forgotten.

use std::collections::{BTreeMap, HashMap};

use super::Source;

pub(super) struct Recent<V> {
    most: usize,
    entries: HashMap<Source, (u64, V)>,
    /// The entries by when they were seen.
    order: BTreeMap<u64, Source>,
    seen: u64,
}

impl<V> Recent<V> {
    pub fn new(most: usize) -> Self {
        Recent { most, entries: HashMap::new(), order: BTreeMap::new(), seen: 0 }
    }

    pub fn get(&self, source: Source) -> Option<&V> {
        self.entries.get(&source).map(|(_, value)| value)
    }

    /// Without being seen.
    pub fn get_mut(&mut self, source: Source) -> Option<&mut V> {
        self.entries.get_mut(&source).map(|(_, value)| value)
    }

    /// The entry of a source that is seen now, made by `fresh` where there was none.
    pub fn see(&mut self, source: Source, fresh: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&source)
            && self.entries.len() >= self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.seen += 1;
        let (at, value) = self.entries.entry(source).or_insert_with(|| (0, fresh()));
        self.order.remove(at);
        *at = self.seen;
        self.order.insert(self.seen, source);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_seen_is_forgotten() {
        let source = |last: u8| Source::V4([10, 0, 0, last]);
        let mut recent = Recent::new(3);
        for last in [1, 2, 3, 1, 4] {
            recent.see(source(last), || last);
        }
        let known =
            |recent: &Recent<u8>| [1, 2, 3, 4].map(|last| recent.get(source(last)).is_some());
        assert_eq!(known(&recent), [true, false, true, true]);
        // Changing an entry is not seeing it.
        *recent.get_mut(source(3)).unwrap() = 9;
        recent.see(source(2), || 2);
        assert_eq!(known(&recent), [true, true, false, true]);
        assert_eq!((recent.entries.len(), recent.order.len()), (3, 3));
    }
}
