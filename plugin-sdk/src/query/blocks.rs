//! Runs of operators that repeat one after the other: the layers of a transformer, the blocks of
//! a stage, the steps of a loop.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::{Graph, NodeId};

/// The longest period that is looked for, in operators.
pub const PERIOD_MAX: usize = 1 << 16;

/// What must be equal for two operators to be the same one in two repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The operators' names.
    Ops,
    /// Names, dtypes and numbers of dimensions: holds while a cache grows.
    Ranks,
    /// Names, dtypes and sizes.
    Shapes,
}

/// Which repeats are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeats {
    pub detail: Detail,
    /// The least operators in one repeat.
    pub period_min: usize,
    /// The least repeats, 2 or more.
    pub count_min: usize,
}

impl Default for Repeats {
    fn default() -> Self {
        Repeats { detail: Detail::Shapes, period_min: 4, count_min: 2 }
    }
}

/// A run of operators that is `count` repeats of `period` operators.
///
/// A run has no natural first operator: where it begins depends on what comes before, so a block
/// may begin in the middle of a layer and end in the middle of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Operators in one repeat.
    pub period: usize,
    /// Whole repeats.
    pub count: usize,
    /// All operators of the whole repeats, in program order.
    pub nodes: Vec<NodeId>,
}

impl Block {
    /// The operators of one repeat.
    pub fn repeat(&self, index: usize) -> &[NodeId] {
        self.nodes.get(index * self.period..(index + 1) * self.period).unwrap_or(&[])
    }
}

/// The outermost repeated blocks: of overlapping ones those that cover the most operators, in
/// program order. In time n log n.
pub fn repeated_blocks(graph: &Graph, wanted: Repeats) -> Vec<Block> {
    let mut blocks = all_repeats(graph, wanted);
    // The sort is stable: of equal coverage the first in the program, which has the smaller period.
    blocks.sort_by_key(|block| std::cmp::Reverse(block.nodes.len()));
    let mut taken = crate::query::NodeSet::new(graph);
    blocks.retain(|block| {
        let free = block.nodes.iter().all(|node| !taken.contains(*node));
        if free {
            block.nodes.iter().for_each(|node| {
                taken.insert(*node);
            });
        }
        free
    });
    blocks.sort_by_key(|block| block.nodes[0]);
    blocks
}

/// All maximal repeats, also those within others, in program order.
pub fn all_repeats(graph: &Graph, wanted: Repeats) -> Vec<Block> {
    let nodes: Vec<NodeId> = graph.nodes().filter(|node| graph.is_op(*node)).collect();
    let tokens: Vec<u64> = nodes.iter().map(|node| token(graph, *node, wanted.detail)).collect();
    let sequence = Sequence::new(&tokens);
    let mut runs = sequence.runs();
    runs.sort_unstable();
    runs.into_iter()
        .filter_map(|(start, period, len)| {
            let count = len / period;
            let enough = period >= wanted.period_min.max(1) && count >= wanted.count_min.max(2);
            let nodes = || nodes[start..start + count * period].to_vec();
            enough.then(|| Block { period, count, nodes: nodes() })
        })
        .collect()
}

fn token(graph: &Graph, node: NodeId, detail: Detail) -> u64 {
    let mut hasher = DefaultHasher::new();
    graph.op_symbol(node).hash(&mut hasher);
    for tensor in graph.inputs(node).chain(graph.outputs(node)) {
        match detail {
            Detail::Ops => {}
            Detail::Ranks => (tensor.dtype, tensor.dims()).hash(&mut hasher),
            Detail::Shapes => (tensor.dtype, tensor.sizes).hash(&mut hasher),
        }
    }
    hasher.finish()
}

const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
const MODULUS: u128 = (1 << 61) - 1;

/// Tokens with hashes of all their prefixes, so that windows compare in constant time.
struct Sequence<'t> {
    tokens: &'t [u64],
    prefixes: Vec<u64>,
    powers: Vec<u64>,
}

impl<'t> Sequence<'t> {
    fn new(tokens: &'t [u64]) -> Self {
        let (mut prefixes, mut powers) = (vec![0u64], vec![1u64]);
        for token in tokens {
            let last = prefixes[prefixes.len() - 1];
            prefixes.push(reduce(multiply(last, BASE) as u128 + u128::from(*token >> 4) + 1));
            powers.push(multiply(powers[powers.len() - 1], BASE));
        }
        Sequence { tokens, prefixes, powers }
    }

    fn window(&self, start: usize, len: usize) -> u64 {
        let shifted = multiply(self.prefixes[start], self.powers[len]);
        reduce(u128::from(self.prefixes[start + len]) + MODULUS - u128::from(shifted))
    }

    /// (start, period, length) of the maximal stretches with `t[i] == t[i + period]` that are at
    /// least two periods long.
    ///
    /// A stretch of three or more periods holds equal windows of any length up to twice the
    /// period at exactly that distance, and none nearer; so the distance from each window to the
    /// one before that equals it, for window lengths of powers of two, names the periods to try.
    fn runs(&self) -> Vec<(usize, usize, usize)> {
        let mut runs = Vec::new();
        let mut width = 1;
        while width <= self.tokens.len() / 2 && width <= 2 * PERIOD_MAX {
            let mut latest: HashMap<u64, usize> = HashMap::new();
            // For each period, up to where it has been tried.
            let mut tried: HashMap<usize, usize> = HashMap::new();
            for at in 0..=self.tokens.len() - width {
                let Some(before) = latest.insert(self.window(at, width), at) else { continue };
                let period = at - before;
                // Longer windows find longer periods; shorter ones would try everything.
                let wrong = period > PERIOD_MAX || period > 4 * width;
                if wrong || tried.get(&period).is_some_and(|end| before < *end) {
                    continue;
                }
                let start = before - self.common(before, at, Direction::Back);
                let end = at + self.common(before, at, Direction::Ahead);
                tried.insert(period, end - period);
                if end - start >= 2 * period {
                    runs.push((start, period, end - start));
                }
            }
            width *= 2;
        }
        runs.retain(|(start, period, len)| self.is_primitive(*start, *period, *len));
        runs.sort_unstable();
        runs.dedup();
        runs
    }

    /// How many tokens are equal from `a` and `b` on (or before them).
    fn common(&self, a: usize, b: usize, direction: Direction) -> usize {
        let most = match direction {
            Direction::Ahead => self.tokens.len() - b,
            Direction::Back => a,
        };
        let equal = |len: usize| match direction {
            Direction::Ahead => self.window(a, len) == self.window(b, len),
            Direction::Back => self.window(a - len, len) == self.window(b - len, len),
        };
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if equal(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }

    /// Whether no part of the period is a period too.
    fn is_primitive(&self, start: usize, period: usize, len: usize) -> bool {
        (1..=period / 2)
            .filter(|part| period.is_multiple_of(*part))
            .all(|part| self.window(start, len - part) != self.window(start + part, len - part))
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Ahead,
    Back,
}

fn multiply(a: u64, b: u64) -> u64 {
    reduce(u128::from(a) * u128::from(b))
}

fn reduce(value: u128) -> u64 {
    (value % MODULUS) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    fn graph_of(ops: &str) -> Graph {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2]);
        for op in ops.chars() {
            g.op(&format!("aten::{op}"), &[x], &[2]);
        }
        g.build()
    }

    fn found(ops: &str, period_min: usize) -> Vec<(u32, usize, usize)> {
        let wanted = Repeats { detail: Detail::Shapes, period_min, count_min: 2 };
        let blocks = repeated_blocks(&graph_of(ops), wanted);
        blocks.iter().map(|block| (block.nodes[0].0 - 1, block.period, block.count)).collect()
    }

    #[test]
    fn layers_are_found_with_their_period_and_count() {
        for (ops, period_min, expect) in [
            ("eabcdabcdabcdh", 4, vec![(1, 4, 3)]),
            ("abcab", 1, vec![]),
            ("", 1, vec![]),
            ("a", 1, vec![]),
            ("aaaa", 1, vec![(0, 1, 4)]),
            // Inner repeats are part of the outer one.
            ("xmmmsmmmsmmmsy", 2, vec![(1, 4, 3)]),
            // Two stages, each with its own blocks.
            ("abcabcabcdefgdefgdefg", 3, vec![(0, 3, 3), (9, 4, 3)]),
            // Only twice.
            ("xabcdefgabcdefgy", 3, vec![(1, 7, 2)]),
        ] {
            assert_eq!(found(ops, period_min), expect, "{ops}");
        }
    }

    #[test]
    fn shapes_matter_as_much_as_they_are_asked_to() {
        let mut g = GraphBuilder::new();
        for step in 5..9 {
            let x = g.input(&[1, step]);
            let y = g.op("aten::relu", &[x], &[1, step]);
            g.op("aten::neg", &[y], &[1, step]);
        }
        let graph = g.build();
        let count = |detail| {
            let wanted = Repeats { detail, period_min: 2, count_min: 2 };
            repeated_blocks(&graph, wanted).first().map_or(0, |block| block.count)
        };
        assert_eq!([Detail::Ops, Detail::Ranks, Detail::Shapes].map(count), [4, 4, 0]);
        let wanted = Repeats { detail: Detail::Ranks, period_min: 2, count_min: 2 };
        let block = &repeated_blocks(&graph, wanted)[0];
        assert_eq!(graph.op_name(block.repeat(3)[1]), "neg");
        assert!(block.repeat(4).is_empty());
    }

    /// All runs by trying every period at every place.
    fn slow(tokens: &[u64]) -> Vec<(usize, usize, usize)> {
        let mut runs = Vec::new();
        for period in 1..=tokens.len() / 2 {
            let mut start = 0;
            while start + period < tokens.len() {
                let rest = start..tokens.len() - period;
                let same = rest.take_while(|at| tokens[*at] == tokens[*at + period]).count();
                if same >= period {
                    runs.push((start, period, same + period));
                }
                start += same + 1;
            }
        }
        let sequence = Sequence::new(tokens);
        runs.retain(|(start, period, len)| sequence.is_primitive(*start, *period, *len));
        runs.sort_unstable();
        runs
    }

    proptest::proptest! {
        #[test]
        fn runs_of_three_or_more_are_all_found(
            head in proptest::collection::vec(0u64..4, 0..8),
            layer in proptest::collection::vec(0u64..4, 1..12),
            count in 1usize..6,
            tail in proptest::collection::vec(0u64..4, 0..8),
        ) {
            let mut tokens = head;
            (0..count).for_each(|_| tokens.extend(&layer));
            tokens.extend(tail);
            let tokens: Vec<u64> = tokens.into_iter().map(|token| token << 4).collect();
            let fast = Sequence::new(&tokens).runs();
            let slow = slow(&tokens);
            for run in &fast {
                assert!(slow.contains(run), "{run:?} is no run of {tokens:?}");
            }
            for run in slow.iter().filter(|(_, period, len)| *len >= 3 * period) {
                assert!(fast.contains(run), "{run:?} was missed in {tokens:?}");
            }
        }
    }
}
