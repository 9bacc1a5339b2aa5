//! The search for a pattern: from its last operator up to its operands, with backtracking.

use std::collections::HashMap;

use super::pattern::{Leaf, Pattern, Shape, Step};
use crate::query::{NodeSet, is_transparent, seen_through};
use crate::{Graph, NodeId, Origin, ValueId};

/// The most steps of the search for each node that a match could end with.
pub const STEPS_MAX: usize = 10_000;
/// The most times that a repeated step comes in a row.
pub const REPEATS_MAX: u32 = 64;
/// Operands of a node that are looked at.
pub const OPERANDS_MAX: usize = 64;
/// The most copies and casts that are passed over between two steps.
const PASSED_MAX: u32 = 8;
/// The deepest nesting of the search; each level takes a little of the guest's stack.
const DEPTH_MAX: u32 = 384;

/// A place where a pattern was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    root: NodeId,
    nodes: Vec<NodeId>,
    named: Vec<(String, NodeId)>,
    values: Vec<(String, ValueId)>,
}

impl Found {
    /// The pattern's last operator.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// All nodes of the match in program order, with the copies and casts between them.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = NodeId> + '_ {
        self.nodes.iter().copied()
    }

    /// The operator with this name; of a repeated one the first.
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.all(name).min()
    }

    /// Every operator with this name.
    pub fn all<'f>(&'f self, name: &'f str) -> impl Iterator<Item = NodeId> + 'f {
        self.named.iter().filter(move |(other, _)| other == name).map(|(_, node)| *node)
    }

    /// The operand with this name, as it was before copies and casts.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        self.values.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }
}

impl Pattern {
    /// All matches in the order of their last operators. A node ends at most one match, and a
    /// match that lies within another one is left out.
    pub fn find(&self, graph: &Graph) -> Vec<Found> {
        let mut possible: HashMap<u32, bool> = HashMap::new();
        let roots = graph.nodes().filter(|node| {
            let may_end = || self.may_end_with(graph.op(*node));
            *possible.entry(graph.op_symbol(*node)).or_insert_with(may_end)
        });
        outermost(roots.filter_map(|node| self.at(graph, node)).collect())
    }

    /// The match that ends with this node.
    pub fn at(&self, graph: &Graph, root: NodeId) -> Option<Found> {
        let mut search = Search { graph, steps: 0, depth: 0, trail: Vec::new() };
        let goal = Goal::Match { pattern: self, at: Place::Node(root), count: 0, rest: None };
        if !search.solve(Some(&goal)) {
            return None;
        }
        let mut found = Found { root, nodes: vec![], named: vec![], values: vec![] };
        for mark in search.trail {
            match mark {
                Mark::Node(node) => found.nodes.push(node),
                Mark::Named(name, node) => found.named.push((name.to_owned(), node)),
                Mark::Value(name, value) => found.values.push((name.to_owned(), value)),
            }
        }
        found.nodes.sort_unstable();
        found.nodes.dedup();
        Some(found)
    }

    /// Whether an operator can be the last one of a match.
    fn may_end_with(&self, op: &str) -> bool {
        match &self.shape {
            Shape::Leaf(_) => false,
            Shape::Or(ways) => ways.iter().any(|way| way.may_end_with(op)),
            Shape::Step(step) => {
                let before = step.before.as_ref();
                step.ops.contains(op)
                    || (step.times.min() == 0
                        && before.is_some_and(|before| before.may_end_with(op)))
            }
        }
    }
}

/// The matches that share no node, earliest first; of two that do, the larger one stays.
pub fn disjoint(graph: &Graph, mut found: Vec<Found>) -> Vec<Found> {
    found.sort_by_key(|one| std::cmp::Reverse(one.nodes.len()));
    let mut taken = NodeSet::new(graph);
    found.retain(|one| {
        let free = one.nodes().all(|node| !taken.contains(node));
        if free {
            one.nodes().for_each(|node| {
                taken.insert(node);
            });
        }
        free
    });
    found.sort_by_key(|one| one.root);
    found
}

/// Leaves out matches whose nodes are all in another match.
fn outermost(found: Vec<Found>) -> Vec<Found> {
    let mut holders: HashMap<NodeId, Vec<usize>> = HashMap::new();
    for (index, one) in found.iter().enumerate() {
        one.nodes().for_each(|node| holders.entry(node).or_default().push(index));
    }
    let within = |inner: usize| {
        let few = found[inner].nodes().map(|node| &holders[&node]).min_by_key(|list| list.len());
        few.into_iter().flatten().any(|outer| {
            let (small, large) = (&found[inner].nodes, &found[*outer].nodes);
            // Of equal matches the first stays.
            let bigger =
                small.len() < large.len() || (small.len() == large.len() && *outer < inner);
            bigger && small.iter().all(|node| large.binary_search(node).is_ok())
        })
    };
    let keep: Vec<bool> = (0..found.len()).map(|index| !within(index)).collect();
    let mut keep = keep.into_iter();
    found.into_iter().filter(|_| keep.next().unwrap_or(true)).collect()
}

/// Where a pattern is tried.
#[derive(Clone, Copy)]
enum Place {
    /// At this node.
    Node(NodeId),
    /// At what made this operand; so many copies were passed over already.
    Value { value: ValueId, passed: u32, strict: bool },
}

/// What is still to be shown, as a list that lives on the stack of the search. `'p` is the
/// pattern's life.
#[derive(Clone, Copy)]
enum Goal<'p, 's> {
    /// `count` repeats of the pattern's last step came already.
    Match { pattern: &'p Pattern, at: Place, count: u32, rest: Option<&'s Goal<'p, 's>> },
    /// The operands of a step from number `next` on; `used` are the positions that are taken.
    Operands { job: Job<'p>, next: usize, used: u64, rest: Option<&'s Goal<'p, 's>> },
}

/// A step that was put on a node.
#[derive(Clone, Copy)]
struct Job<'p> {
    step: &'p Step,
    node: NodeId,
    /// What the data comes from: the same step again (`count` so far) or what is before it.
    source: Option<(&'p Pattern, u32)>,
}

impl<'p> Job<'p> {
    /// Operand number `index` of the pattern: pattern, repeats so far, position.
    fn operand(&self, index: usize) -> Option<(&'p Pattern, u32, Option<usize>)> {
        let others = match self.source {
            Some((pattern, count)) if index == 0 => {
                return Some((pattern, count, self.step.position));
            }
            Some(_) => index - 1,
            None => index,
        };
        self.step.others.get(others).map(|(pattern, position)| (pattern, 0, *position))
    }
}

/// What the search has decided so far; undone when it goes back.
enum Mark<'p> {
    Node(NodeId),
    Named(&'p str, NodeId),
    Value(&'p str, ValueId),
}

struct Search<'g, 'p> {
    graph: &'g Graph,
    steps: usize,
    depth: u32,
    trail: Vec<Mark<'p>>,
}

impl<'p> Search<'_, 'p> {
    /// Whether the goals can be shown; the trail then says how. Otherwise it is as before.
    fn solve(&mut self, goal: Option<&Goal<'p, '_>>) -> bool {
        let Some(goal) = goal else { return true };
        self.steps += 1;
        if self.steps > STEPS_MAX || self.depth == DEPTH_MAX {
            return false;
        }
        let mark = self.trail.len();
        self.depth += 1;
        let shown = match *goal {
            Goal::Match { pattern, at, count, rest } => match &pattern.shape {
                Shape::Leaf(leaf) => self.leaf(leaf, at, rest),
                Shape::Or(ways) => ways
                    .iter()
                    .any(|way| self.solve(Some(&Goal::Match { pattern: way, at, count: 0, rest }))),
                Shape::Step(step) => self.step(pattern, step, at, count, rest),
            },
            Goal::Operands { job, next, used, rest } => self.operands(job, next, used, rest),
        };
        self.depth -= 1;
        if !shown {
            self.trail.truncate(mark);
        }
        shown
    }

    /// The step here, further up behind a copy, or not at all.
    fn step(
        &mut self,
        pattern: &'p Pattern,
        step: &'p Step,
        at: Place,
        count: u32,
        rest: Option<&Goal<'p, '_>>,
    ) -> bool {
        let mark = self.trail.len();
        let node = match at {
            Place::Node(node) => node,
            Place::Value { value, .. } => self.graph.producer(value),
        };
        let op = self.graph.op(node);
        let fits = count < step.times.max()
            && step.ops.contains(op)
            && step.predicates.iter().all(|holds| holds(self.graph, node));
        if fits {
            let before = step.before.as_deref().map(|before| (before, 0));
            let again = (step.times.max() > 1).then_some((pattern, count + 1));
            let job = Job { step, node, source: again.or(before) };
            self.trail.push(Mark::Node(node));
            self.trail.extend(step.name.as_deref().map(|name| Mark::Named(name, node)));
            if self.solve(Some(&Goal::Operands { job, next: 0, used: 0, rest })) {
                return true;
            }
            self.trail.truncate(mark);
        }
        if count >= step.times.min()
            && let Some(before) = step.before.as_deref()
            && self.solve(Some(&Goal::Match { pattern: before, at, count: 0, rest }))
        {
            return true;
        }
        let Place::Value { passed, strict: false, .. } = at else { return false };
        let source = self.graph.input(node, 0).filter(|_| is_transparent(op));
        let Some(source) = source.filter(|_| passed < PASSED_MAX) else { return false };
        let at = Place::Value { value: source.value, passed: passed + 1, strict: false };
        self.trail.push(Mark::Node(node));
        self.solve(Some(&Goal::Match { pattern, at, count, rest }))
    }

    /// Each way to give the operands that the pattern names positions of their own.
    fn operands(
        &mut self,
        job: Job<'p>,
        next: usize,
        used: u64,
        rest: Option<&Goal<'p, '_>>,
    ) -> bool {
        let Some((pattern, count, position)) = job.operand(next) else { return self.solve(rest) };
        for place in 0..self.graph.inputs(job.node).len().min(OPERANDS_MAX) {
            let Some(operand) = self.graph.input(job.node, place) else { return false };
            let bit = 1u64 << place;
            if used & bit != 0 || position.is_some_and(|wanted| wanted != place) {
                continue;
            }
            let more = Goal::Operands { job, next: next + 1, used: used | bit, rest };
            let at = Place::Value { value: operand.value, passed: 0, strict: job.step.strict };
            if self.solve(Some(&Goal::Match { pattern, at, count, rest: Some(&more) })) {
                return true;
            }
        }
        false
    }

    fn leaf(&mut self, leaf: &'p Leaf, at: Place, rest: Option<&Goal<'p, '_>>) -> bool {
        let Place::Value { value, strict, .. } = at else { return false };
        let value = if strict { value } else { seen_through(self.graph, value) };
        let name = match leaf {
            Leaf::Anything => None,
            Leaf::Weight { name } => {
                if self.graph.origin(self.graph.storage(value)) != Origin::Weight {
                    return false;
                }
                name.as_deref()
            }
            Leaf::Tensor { name } => Some(name.as_str()),
        };
        if let Some(name) = name {
            let bound = self.trail.iter().find_map(|mark| match mark {
                Mark::Value(other, value) if *other == name => Some(*value),
                _ => None,
            });
            match bound {
                Some(bound) if bound != value => return false,
                Some(_) => {}
                None => self.trail.push(Mark::Value(name, value)),
            }
        }
        self.solve(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::builder::{GraphBuilder, Handle};
    use crate::matcher::{anything, op, tensor, weight};

    const PRODUCT: [&str; 4] = ["mm", "addmm", "bmm", "baddbmm"];

    fn attention() -> Pattern {
        op("bmm")
            .named("scores")
            .maybe(["mul", "div"])
            .maybe("add")
            .named("mask")
            .then(["_softmax", "_safe_softmax"])
            .named("softmax")
            .any_number(["dropout", "native_dropout"])
            .then("bmm")
            .operand(0)
            .named("output")
            .or(op(["_scaled_dot_product*", "scaled_dot_product_attention"]).named("output"))
    }

    fn attend(g: &mut GraphBuilder, scale: bool, mask: bool, cast: bool) -> Handle {
        let [q, k, v] = [0; 3].map(|_| g.input(&[8, 5, 16]));
        let k = g.transpose(k, 1, 2);
        let mut x = g.op("aten::bmm", &[q, k], &[8, 5, 5]);
        if scale {
            x = g.op("aten::div.Scalar", &[x], &[8, 5, 5]);
        }
        if mask {
            let bias = g.input(&[1, 5, 5]);
            x = g.op("aten::add.Tensor", &[bias, x], &[8, 5, 5]);
        }
        if cast {
            x = g.dtype(DType::FLOAT32).op("aten::_to_copy", &[x], &[8, 5, 5]);
        }
        x = g.op("aten::_softmax", &[x], &[8, 5, 5]);
        g.op("aten::bmm", &[x, v], &[8, 5, 16])
    }

    #[test]
    fn attention_is_found_with_and_without_scale_mask_and_cast() {
        for bits in 0..8u32 {
            let [scale, mask, cast] = [1, 2, 4].map(|bit| bits & bit != 0);
            let mut g = GraphBuilder::new();
            let out = attend(&mut g, scale, mask, cast);
            let out = g.node_of(out);
            let graph = g.build();
            let found = attention().find(&graph);
            assert_eq!(found.len(), 1, "{bits}");
            assert_eq!(found[0].node("output"), Some(out));
            assert_eq!(found[0].nodes().len() as u32, 3 + bits.count_ones());
            assert_eq!(found[0].node("mask").is_some(), mask);
            assert_eq!(graph.op_name(found[0].node("scores").unwrap()), "bmm");
        }
        let mut g = GraphBuilder::new();
        let [q, k, v] = [0; 3].map(|_| g.input(&[1, 8, 5, 16]));
        g.op("aten::_scaled_dot_product_flash_attention_for_cpu", &[q, k, v], &[1, 8, 5, 16]);
        assert_eq!(attention().find(&g.build()).len(), 1);
    }

    #[test]
    fn strict_steps_pass_over_nothing() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[2]);
        let a = g.op("aten::relu", &[x], &[2]);
        let b = g.op("aten::clone", &[a], &[2]);
        g.op("aten::neg", &[b], &[2]);
        let graph = g.build();
        assert_eq!(op("relu").then("neg").find(&graph).len(), 1);
        assert!(op("relu").then("neg").strict().find(&graph).is_empty());
    }

    #[test]
    fn swiglu_needs_both_branches() {
        let swiglu = op(PRODUCT)
            .named("gate")
            .then("silu")
            .then("mul")
            .with(op(PRODUCT).named("up"))
            .then(PRODUCT)
            .with(weight().named("down"));
        for swapped in [false, true] {
            let mut g = GraphBuilder::new();
            let x = g.input(&[2, 4]);
            let [wg, wu] = [0; 2].map(|_| g.weight(&[4, 8]));
            let wd = g.weight(&[8, 4]);
            let gate = g.op("aten::mm", &[x, wg], &[2, 8]);
            let act = g.op("aten::silu", &[gate], &[2, 8]);
            let up = g.op("aten::mm", &[x, wu], &[2, 8]);
            let operands = if swapped { [up, act] } else { [act, up] };
            let both = g.op("aten::mul.Tensor", &operands, &[2, 8]);
            g.op("aten::mm", &[both, wd], &[2, 4]);
            let (gate, up, down) = (g.node_of(gate), g.node_of(up), g.value_of(wd));
            let graph = g.build();
            let found = swiglu.find(&graph);
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].node("gate"), found[0].node("up")), (Some(gate), Some(up)));
            assert_eq!(found[0].value("down"), Some(down));
        }
        let mut g = GraphBuilder::new();
        let (x, w, v) = (g.input(&[2, 4]), g.weight(&[4, 8]), g.weight(&[8, 4]));
        let gate = g.op("aten::mm", &[x, w], &[2, 8]);
        let act = g.op("aten::silu", &[gate], &[2, 8]);
        let other = g.input(&[2, 8]);
        let both = g.op("aten::mul.Tensor", &[act, other], &[2, 8]);
        g.op("aten::mm", &[both, v], &[2, 4]);
        assert!(swiglu.find(&g.build()).is_empty());
    }

    #[test]
    fn the_same_name_is_the_same_tensor() {
        let norm = tensor("x")
            .then("pow")
            .then("mean")
            .maybe("add")
            .then("rsqrt")
            .then("mul")
            .with(tensor("x"))
            .named("normed")
            .then("mul")
            .with(weight())
            .then(PRODUCT)
            .with(weight());
        for (same, expect) in [(true, 1), (false, 0)] {
            let mut g = GraphBuilder::new();
            let x = g.input(&[2, 4]);
            let y = if same { x } else { g.input(&[2, 4]) };
            let wide = g.op("aten::_to_copy", &[x], &[2, 4]);
            let square = g.op("aten::pow.Tensor_Scalar", &[wide], &[2, 4]);
            let mean = g.op("aten::mean.dim", &[square], &[2, 1]);
            let eps = g.in_place("aten::add_.Scalar", mean, &[]);
            let root = g.op("aten::rsqrt", &[eps], &[2, 1]);
            let normed = g.op("aten::mul.Tensor", &[y, root], &[2, 4]);
            let (w, v) = (g.weight(&[4]), g.weight(&[4, 8]));
            let scaled = g.op("aten::mul.Tensor", &[w, normed], &[2, 4]);
            g.op("aten::mm", &[scaled, v], &[2, 8]);
            assert_eq!(norm.find(&g.build()).len(), expect);
        }
    }

    #[test]
    fn a_shorter_match_inside_a_longer_one_is_left_out() {
        let stage = op("convolution*").named("conv").maybe("native_batch_norm").maybe("relu");
        let mut g = GraphBuilder::new();
        let (x, w) = (g.input(&[1, 3, 8, 8]), g.weight(&[3, 3, 3, 3]));
        let mut y = x;
        for _ in 0..2 {
            y = g.op("aten::convolution", &[y, w], &[1, 3, 8, 8]);
            y = g.op("aten::native_batch_norm", &[y], &[1, 3, 8, 8]);
            y = g.in_place("aten::relu_", y, &[]);
        }
        let graph = g.build();
        let found = stage.find(&graph);
        assert_eq!(found.iter().map(|one| one.nodes().len()).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(disjoint(&graph, found).len(), 2);
    }

    #[test]
    fn repeats_predicates_and_positions_are_kept() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[4]);
        let a = g.op("aten::exp", &[x], &[4]);
        let b = g.op("aten::neg", &[a], &[4]);
        let c = g.op("aten::neg", &[b], &[4]);
        let d = g.op("aten::sub.Tensor", &[x, c], &[4]);
        let nodes = [a, b, c, d].map(|handle| g.node_of(handle));
        let graph = g.build();
        let chain = op("exp").repeated("neg").named("neg").then("sub");
        let found = chain.find(&graph);
        assert_eq!(found[0].nodes().collect::<Vec<_>>(), nodes);
        assert_eq!(found[0].all("neg").count(), 2);
        assert_eq!(found[0].node("neg"), Some(nodes[1]));
        for (pattern, expect) in [
            (op("exp").repeated("cos").then("sub"), 0),
            (op("exp").any_number("cos").then("neg"), 1),
            (op("neg").then("sub").operand(0), 0),
            (op("neg").then("sub").operand(1), 1),
            (op("neg").then("sub").with(anything()), 1),
            (op("neg").then("sub").with(anything()).with(anything()), 0),
            (op("sub").with(tensor("x")).operand(0).with(op("neg")), 1),
            (op("sub").with(weight()), 0),
            (op("neg").when(|graph, node| graph.successors(node).count() == 1), 2),
            (op("neg").when(|_, _| false), 0),
            (op("cos").or(op("exp")), 1),
        ] {
            assert_eq!(pattern.find(&graph).len(), expect, "{pattern:?}");
        }
    }

    /// Invariant: the deepest search fits half of the stack that the host gives a guest.
    #[test]
    fn a_deep_search_fits_a_small_stack() {
        let mut g = GraphBuilder::new();
        let mut y = g.input(&[1]);
        let mut pattern = op("exp");
        for _ in 0..8 {
            y = g.op("aten::exp", &[y], &[1]);
            for _ in 0..50 {
                y = g.op("aten::neg", &[y], &[1]);
            }
            pattern = pattern.repeated("neg").then("exp");
        }
        g.op("aten::exp", &[y], &[1]);
        let graph = g.build();
        let search = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            // Three groups are within the depth, all eight are not.
            let three = op("exp").repeated("neg").then("exp").repeated("neg").then("exp");
            (pattern.find(&graph).len(), three.find(&graph).len())
        });
        assert_eq!(search.unwrap().join().unwrap(), (0, 7));
    }

    /// Invariant: a search ends after STEPS_MAX steps, whatever the pattern.
    #[test]
    fn a_search_is_bounded() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[1]);
        let mut y = x;
        // A ladder: each level can be reached over two operands, 2^60 ways in all.
        for _ in 0..60 {
            y = g.op("aten::add.Tensor", &[y, y], &[1]);
        }
        let last = g.node_of(y);
        let graph = g.build();
        let pattern = op("cos").any_number("add");
        assert_eq!(pattern.at(&graph, last), None);
        let mut search = Search { graph: &graph, steps: 0, depth: 0, trail: Vec::new() };
        let at = Place::Node(last);
        let goal = Goal::Match { pattern: &pattern, at, count: 0, rest: None };
        assert!(!search.solve(Some(&goal)));
        // After the limit every open way ends at its next step.
        assert!((STEPS_MAX..2 * STEPS_MAX).contains(&search.steps), "{} steps", search.steps);
    }
}
