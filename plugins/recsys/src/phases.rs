//! What each operator of a recommender does, and what that says for there being one.
//!
//! One pass in program order follows rows of tables: as long as fields stand side by side they are
//! [`Kind::Rows`], where they meet each other [`Kind::Mixed`], and once a product by parameters has
//! read one long row for each example [`Kind::Dense`].

use std::collections::HashMap;

use genie_plugin::dataflow::seen_through;
use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::product;

use crate::lookups::Lookup;

/// A table of users or items has at least so many rows.
const ROWS_MANY: i64 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Kind {
    /// Masks, positions, constants.
    #[default]
    Nothing,
    /// Comes from no table.
    Dense,
    /// Rows of tables, each field for itself.
    Rows,
    /// Fields that have met.
    Mixed,
}

/// The phases of a recommender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Lookup,
    Dense,
    Interaction,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    kind: Kind,
    /// Which lookups took part, one bit each (lookups 64 apart share one).
    sources: u64,
    /// Numbers in a row of the tables.
    width: i64,
    /// Examples.
    batch: i64,
    /// Some example has several rows of one lookup.
    many: bool,
    /// Dense work on nothing but mixed fields.
    from_mixed: bool,
    /// Exactly the result of this lookup (by number, from 1), at most scaled or copied.
    direct: u32,
}

/// What was seen on the way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Evidence {
    /// The most lookups of one row an example that were put side by side.
    pub joined: u32,
    /// Two different lookups were multiplied.
    pub multiplied: bool,
    /// Fields were summed and squared.
    pub squared: bool,
    /// Several rows an example were read as one long row by a product with parameters.
    pub flattened: bool,
    /// Two computations from different tables end in a product with each other.
    pub towers: bool,
    /// A state was compared with rows that were looked up in the table that it came from.
    pub candidates: bool,
    /// The last state of a sequence was compared with the whole table that it came from.
    pub whole_table: bool,
    pub attention: bool,
    /// Attention hides what comes later.
    pub causal: bool,
}

pub(crate) struct Reading {
    /// For each node of the graph.
    pub phases: Vec<Option<Phase>>,
    pub evidence: Evidence,
}

/// Follows the rows of `lookups` through `nodes`.
pub(crate) fn follow(graph: &Graph, nodes: &[NodeId], lookups: &[Lookup]) -> Reading {
    let mut tables: HashMap<StorageId, Table> = HashMap::new();
    for (index, lookup) in lookups.iter().enumerate() {
        let fresh = Table { sources: 0, each: lookup.each, rows: lookup.rows };
        let table = tables.entry(lookup.table).or_insert(fresh);
        table.sources |= 1 << (index % 64);
    }
    let mut follower = Follower {
        graph,
        lookups,
        tables,
        batch: usual_batch(lookups),
        states: vec![State::default(); graph.values().len()],
        phases: vec![None; graph.len()],
        evidence: Evidence::default(),
    };
    let mut next = lookups.iter().enumerate().peekable();
    for node in nodes {
        match next.next_if(|(_, lookup)| lookup.node == *node) {
            Some((index, lookup)) => follower.looked_up(index, lookup),
            None => follower.computed(*node),
        }
    }
    follower.settle(nodes);
    Reading { phases: follower.phases, evidence: follower.evidence }
}

/// The number of examples: what most lookups have.
fn usual_batch(lookups: &[Lookup]) -> i64 {
    let mut batches: Vec<i64> = lookups.iter().map(|lookup| lookup.batch).collect();
    batches.sort_unstable();
    let mut best = (0, 1);
    for run in batches.chunk_by(|a, b| a == b) {
        best = best.max((run.len(), run[0]));
    }
    best.1
}

/// All lookups in one table.
#[derive(Debug, Clone, Copy, Default)]
struct Table {
    /// As in [`State::sources`].
    sources: u64,
    /// Rows for each example, of the first lookup.
    each: i64,
    /// Rows of the table.
    rows: i64,
}

struct Follower<'g> {
    graph: &'g Graph,
    lookups: &'g [Lookup],
    tables: HashMap<StorageId, Table>,
    batch: i64,
    states: Vec<State>,
    phases: Vec<Option<Phase>>,
    evidence: Evidence,
}

impl Follower<'_> {
    fn state(&self, tensor: &Tensor<'_>) -> State {
        self.states[tensor.value.0 as usize]
    }

    fn set(&mut self, node: NodeId, state: State, phase: Option<Phase>) {
        for output in self.graph.outputs(node) {
            self.states[output.value.0 as usize] = match output.dtype.is_floating() {
                true => state,
                false => State::default(),
            };
        }
        self.phases[node.0 as usize] = phase;
    }

    fn looked_up(&mut self, index: usize, lookup: &Lookup) {
        let state = State {
            kind: Kind::Rows,
            sources: 1 << (index % 64),
            width: lookup.width,
            batch: lookup.batch,
            many: lookup.each > 1,
            from_mixed: false,
            direct: index as u32 + 1,
        };
        self.set(lookup.node, state, Some(Phase::Lookup));
    }

    fn computed(&mut self, node: NodeId) {
        let graph = self.graph;
        let name = graph.name(node);
        if let Some(product) = product(graph, node) {
            return match product.weighted {
                true => self.projected(node, product.data, product.other),
                false => self.compared(node, product.data, product.other),
            };
        }
        if graph.roles(node).has(Roles::CONVOLUTION) {
            let Some(data) = graph.input(node, 0) else { return };
            let state = self.state(&data);
            return match state.kind {
                Kind::Rows | Kind::Mixed => self.mixed(node, state),
                _ => self.set(node, State { direct: 0, ..state }, self.phase_of(state)),
            };
        }
        if name.contains("attention") || name.contains("transformer_encoder_layer") {
            self.evidence.attention = true;
            let state = self.joint(node);
            return match state.kind {
                Kind::Rows | Kind::Mixed => self.mixed(node, state),
                _ => self.set(node, state, self.phase_of(state)),
            };
        }
        match name {
            "cat" | "stack" | "concat" | "hstack" => self.put_together(node),
            "sum" | "mean" | "amax" | "max" | "logsumexp" => self.reduced(node),
            _ if graph.inputs(node).len() >= 2
                && (graph.roles(node).has(Roles::ELEMENTWISE) || is_pairwise(name)) =>
            {
                self.combined(node);
            }
            _ => self.passed(node, name),
        }
    }

    /// What all operands that carry data are together.
    fn joint(&self, node: NodeId) -> State {
        let mut sum = State { from_mixed: true, ..State::default() };
        for input in self.graph.inputs(node) {
            let state = self.state(&input);
            if state.kind == Kind::Nothing {
                continue;
            }
            sum.from_mixed &= state.from_mixed || state.kind == Kind::Mixed;
            sum.kind = sum.kind.max(state.kind);
            sum.sources |= state.sources;
            sum.width = sum.width.max(state.width);
            sum.batch = match sum.batch {
                0 => state.batch,
                // Where the numbers differ, what most lookups have.
                known if known != state.batch && state.batch != 0 => self.batch,
                known => known,
            };
            sum.many |= state.many;
        }
        sum
    }

    fn phase_of(&self, state: State) -> Option<Phase> {
        match state.kind {
            Kind::Nothing => None,
            Kind::Dense => Some(Phase::Dense),
            Kind::Rows | Kind::Mixed => Some(Phase::Interaction),
        }
    }

    fn mixed(&mut self, node: NodeId, state: State) {
        let state = State { kind: Kind::Mixed, direct: 0, from_mixed: true, ..state };
        self.set(node, state, Some(Phase::Interaction));
    }

    fn dense(&mut self, node: NodeId, state: State) {
        let from_mixed = state.from_mixed || state.kind == Kind::Mixed;
        let state = State { kind: Kind::Dense, direct: 0, from_mixed, ..state };
        self.set(node, state, Some(Phase::Dense));
    }

    fn batch_of(&self, state: State) -> i64 {
        if state.batch == 0 { self.batch } else { state.batch }
    }

    /// Whether fields lie behind each other in one long row for each example.
    fn is_flat(&self, tensor: &Tensor<'_>, state: State) -> bool {
        let mut long = tensor.sizes.iter().copied().filter(|size| *size != 1);
        let batch = self.batch_of(state);
        let batch = batch == 1 || long.next() == Some(batch);
        let row = long.next().unwrap_or(1);
        batch && long.next().is_none() && row > state.width
    }

    /// Fields that have not met, read as one long row.
    fn is_one_row(&self, tensor: &Tensor<'_>, state: State) -> bool {
        state.kind == Kind::Rows && self.is_flat(tensor, state)
    }

    /// A product with parameters.
    fn projected(&mut self, node: NodeId, data: Tensor<'_>, weight: Tensor<'_>) {
        let graph = self.graph;
        let state = self.state(&data);
        let table = graph.storage(weight.value);
        let batch = self.batch_of(state);
        let scored = self.tables.get(&table).map(|table| table.each);
        let all = graph.output(node, 0).map_or(0, |out| out.size(-1));
        let rows = data.elements() as i64 / data.size(-1).max(1);
        if let (Some(each), true) = (scored, state.kind != Kind::Nothing) {
            // Compared with every row of a table.
            // For the last of a sequence, or for some of it that were hidden.
            let some = rows % batch.max(1) == 0 && rows < each.saturating_mul(batch);
            let sequence = each > 1 && batch > 1 && some;
            self.evidence.whole_table |= sequence && state.sources != 0;
            return self.mixed(node, state);
        }
        // A score for each row of a table, by weights of their own.
        let like = self.tables.values().find(|table| table.rows == all && all >= ROWS_MANY);
        if let (Some(table), true) = (like, state.sources != 0) {
            self.evidence.whole_table |= table.each > 1 && batch > 1 && rows == batch;
            return self.mixed(node, state);
        }
        match state.kind {
            Kind::Rows | Kind::Mixed => {
                let one_row = rows == batch
                    && !(data.dims() == 3 && data.size(1) == 1 && data.size(-1) == state.width);
                let step = state.kind == Kind::Rows && state.many && data.size(-1) == state.width;
                if one_row && !step {
                    let flat =
                        data.size(-1) > state.width && data.size(-1) % state.width.max(1) == 0;
                    self.evidence.flattened |=
                        state.kind == Kind::Rows && state.direct != 0 && flat && state.many;
                    self.dense(node, state);
                } else {
                    self.mixed(node, state);
                }
            }
            _ => self.dense(node, State { kind: Kind::Dense, ..state }),
        }
    }

    /// A product of two computed operands.
    fn compared(&mut self, node: NodeId, a: Tensor<'_>, b: Tensor<'_>) {
        let (one, two) = (self.state(&a), self.state(&b));
        let state = self.joint(node);
        self.compare_states(one, two);
        let flat = self.is_one_row(&a, one) || self.is_one_row(&b, two);
        let fields = |state: State| matches!(state.kind, Kind::Rows | Kind::Mixed);
        if self.are_towers(one, two) {
            self.evidence.towers |= !one.many && !two.many && !self.evidence.attention;
            return self.mixed(node, state);
        }
        match (fields(one) || fields(two)) && !flat {
            true => self.mixed(node, state),
            false if state.kind == Kind::Nothing => self.set(node, state, None),
            // Two computations are multiplied with each other; a softmax or a number weighs one.
            false
                if one.kind == Kind::Dense
                    && two.kind == Kind::Dense
                    && !self.is_weighing(a, b) =>
            {
                self.mixed(node, state)
            }
            false => self.dense(node, state),
        }
    }

    /// Whether one of two operands comes from a softmax, or is one number for each example.
    fn is_weighing(&self, a: Tensor<'_>, b: Tensor<'_>) -> bool {
        [a, b].iter().any(|operand| {
            if operand.elements() as i64 <= self.batch_of(self.state(operand)) {
                return true;
            }
            let from = self.graph.producer(seen_through(self.graph, operand.value));
            self.graph.roles(from).has(Roles::SOFTMAX)
        })
    }

    /// Different tables on both sides, neither in the other.
    fn are_towers(&self, one: State, two: State) -> bool {
        one.kind == Kind::Dense
            && two.kind == Kind::Dense
            && one.sources != 0
            && two.sources != 0
            && one.sources & two.sources == 0
    }

    /// Evidence from two states that meet in a product.
    fn compare_states(&mut self, one: State, two: State) {
        for (rows, state) in [(one, two), (two, one)] {
            let (Some(lookup), true) = (self.direct(rows), state.sources & !rows.sources != 0)
            else {
                continue;
            };
            let same_table = self
                .tables
                .get(&lookup.table)
                .is_some_and(|table| state.sources & table.sources & !rows.sources != 0);
            self.evidence.candidates |=
                same_table && (lookup.each > 1 || state.many || state.kind != Kind::Rows);
            self.evidence.multiplied |= self.direct(state).is_some() && !lookup_is_many(lookup);
        }
    }

    fn direct(&self, state: State) -> Option<Lookup> {
        (state.direct != 0).then(|| self.lookups[state.direct as usize - 1])
    }

    fn put_together(&mut self, node: NodeId) {
        let graph = self.graph;
        let state = self.joint(node);
        let Some(out) = graph.output(node, 0) else { return };
        if state.kind == Kind::Nothing || !out.dtype.is_floating() {
            // Numbers that the program gave, side by side.
            return self.set(node, State::default(), None);
        }
        // Several rows of one lookup as one long row beside others.
        self.evidence.flattened |= graph.inputs(node).any(|input| {
            let state = self.state(&input);
            let fields = state.direct != 0 && state.many && self.is_one_row(&input, state);
            fields && input.size(-1) % state.width.max(1) == 0 && self.is_flat(&out, state)
        });
        let mut one_each: Vec<u32> = graph
            .inputs(node)
            .filter_map(|input| {
                self.direct(self.state(&input)).map(|lookup| (self.state(&input).direct, lookup))
            })
            .filter(|(_, lookup)| !lookup_is_many(*lookup))
            .map(|(direct, _)| direct)
            .collect();
        one_each.sort_unstable();
        one_each.dedup();
        // What was computed from other lookups stands beside them as one more.
        let own = one_each.iter().fold(0u64, |own, direct| own | 1 << ((direct - 1) % 64));
        let beside = state.sources & !own != 0 && self.is_flat(&out, state);
        let joined = one_each.len() as u32 + u32::from(beside);
        if !one_each.is_empty() && joined > 1 {
            self.evidence.joined = self.evidence.joined.max(joined);
        }
        let several = graph.inputs(node).len() > 1;
        // What is known of each item, side by side.
        let beside = graph.inputs(node).all(|input| {
            let of = self.state(&input);
            of.direct != 0 && of.many && input.dims() == 3 && input.sizes[..2] == out.sizes[..2]
        });
        if several && beside && out.dims() == 3 {
            let state = State { direct: 0, width: out.size(-1), ..state };
            return self.set(node, state, Some(Phase::Lookup));
        }
        let fields_only = one_each.len() > 1 && one_each.len() == graph.inputs(node).len();
        let state = State { direct: if several { 0 } else { self.only_direct(node) }, ..state };
        match self.is_flat(&out, state) {
            // Fields behind each other can still be looked at one by one.
            true if fields_only => {
                self.set(node, State { kind: Kind::Rows, many: true, ..state }, Some(Phase::Dense));
            }
            true if several => self.dense(node, state),
            _ => self.set(node, state, self.phase_of(state)),
        }
    }

    fn only_direct(&self, node: NodeId) -> u32 {
        self.graph.input(node, 0).map_or(0, |input| self.state(&input).direct)
    }

    fn reduced(&mut self, node: NodeId) {
        let Some(input) = self.graph.input(node, 0) else { return };
        let state = self.state(&input);
        match state.kind {
            // A weight for each feature: the linear part.
            Kind::Rows if state.width == 1 => self.dense(node, state),
            Kind::Rows if state.direct != 0 && state.many && !self.is_squared(input.value) => {
                // One lookup of several rows, pooled as an embedding bag would.
                let state = State { many: false, ..state };
                self.set(node, state, Some(Phase::Lookup));
            }
            Kind::Rows | Kind::Mixed => {
                // The square of a sum and the sum of squares.
                self.evidence.squared |= state.kind == Kind::Rows && self.is_squared(input.value);
                self.mixed(node, state);
            }
            _ => self.set(node, State { direct: 0, ..state }, self.phase_of(state)),
        }
    }

    /// Whether a product of vectors is summed over each vector: a dot product.
    fn is_compared(&self, node: NodeId) -> bool {
        let Some(out) = self.graph.output(node, 0) else { return false };
        let width = out.size(-1) as u64;
        let mut readers = self.graph.consumers(out.value).iter().peekable();
        readers.peek().is_some()
            && readers.all(|reader| {
                let sum =
                    self.graph.output(*reader, 0).filter(|_| self.graph.name(*reader) == "sum");
                sum.is_some_and(|sum| {
                    sum.elements().saturating_mul(width) == out.elements()
                        && sum.size(-1) != out.size(-1)
                })
            })
    }

    /// Whether all that reads a node's result sums it up.
    fn is_pooled(&self, node: NodeId) -> bool {
        let mut readers = self.graph.successors(node).peekable();
        readers.peek().is_some()
            && readers.all(|reader| matches!(self.graph.name(reader), "sum" | "mean"))
    }

    /// Whether the same rows are multiplied with themselves, as in a factorization machine.
    fn is_squared(&self, value: ValueId) -> bool {
        let graph = self.graph;
        graph.consumers(value).iter().any(|node| match graph.name(*node) {
            "pow" | "square" => true,
            "mul" | "bmm" | "matmul" => {
                graph.inputs(*node).filter(|input| input.value == value).count() > 1
            }
            _ => false,
        })
    }

    /// Elementwise with two operands or more.
    fn combined(&mut self, node: NodeId) {
        let graph = self.graph;
        let name = graph.name(node);
        let carrying: Vec<Tensor<'_>> = graph
            .inputs(node)
            .filter(|input| self.state(input).kind != Kind::Nothing)
            .take(2)
            .collect();
        let (Some(a), b) = (carrying.first(), carrying.get(1)) else {
            return self.set(node, State::default(), None);
        };
        let state = self.joint(node);
        let one = self.state(a);
        let Some(b) = b else {
            // Scaled, masked or shifted by something from no table.
            let pooling = one.direct != 0 && (!one.many || self.is_pooled(node));
            return match one.kind {
                Kind::Rows if pooling => self.set(node, one, Some(Phase::Lookup)),
                Kind::Rows if one.width > 1 => self.set(node, one, Some(Phase::Interaction)),
                _ => self.set(node, one, self.phase_of(one)),
            };
        };
        let two = self.state(b);
        let multiplies = matches!(name, "mul" | "div" | "addcmul");
        if multiplies {
            self.compare_states(one, two);
        }
        let fields = |state: State| matches!(state.kind, Kind::Rows | Kind::Mixed);
        let flat = self.is_one_row(a, one) || self.is_one_row(b, two);
        if self.are_towers(one, two) && multiplies {
            self.evidence.towers |= !one.many && !two.many && !self.evidence.attention;
            return self.mixed(node, state);
        }
        let narrow = state.width == 1;
        match (fields(one), fields(two)) {
            _ if flat || narrow => self.dense(node, state),
            (true, true) => self.mixed(node, state),
            (false, false) => self.set(node, State { direct: 0, ..state }, Some(Phase::Dense)),
            // A score is added to a score; a gate opens and closes fields.
            _ if multiplies || a.elements().max(b.elements()) as i64 > self.batch => {
                self.mixed(node, state)
            }
            _ => self.dense(node, state),
        }
    }

    /// One operand and perhaps parameters: activations, norms, copies.
    fn passed(&mut self, node: NodeId, name: &str) {
        let graph = self.graph;
        // Destination first, source second.
        let from = usize::from(name == "copy");
        let Some(input) = graph.input(node, from) else { return };
        let state = self.state(&input);
        let transparent = graph.roles(node).has(Roles::COPY) || name == "copy";
        if !transparent
            && state.kind != Kind::Nothing
            && name.contains("norm")
            && self.is_flat(&input, state)
        {
            return self.dense(node, state);
        }
        let direct = if transparent || name == "native_dropout" { state.direct } else { 0 };
        let phase = match (state.kind, transparent) {
            (Kind::Rows, true) if state.direct != 0 => Some(Phase::Lookup),
            _ => self.phase_of(state),
        };
        self.set(node, State { direct, ..state }, phase);
    }

    /// What is left, from the end: each operator without a phase goes with what reads it, and work
    /// whose only use is an interaction goes with that.
    fn settle(&mut self, nodes: &[NodeId]) {
        let graph = self.graph;
        let mut gates = vec![false; graph.len()];
        for node in nodes.iter().rev() {
            let at = node.0 as usize;
            let readers = || graph.successors(*node).map(|reader| reader.0 as usize);
            match self.phases[at] {
                None => self.phases[at] = readers().find_map(|reader| self.phases[reader]),
                Some(Phase::Dense) => {
                    let state =
                        graph.output(*node, 0).map(|out| self.state(&out)).unwrap_or_default();
                    let used = readers().next().is_some();
                    let only =
                        readers().all(|reader| self.phases[reader] == Some(Phase::Interaction));
                    let name = graph.name(*node);
                    let scales = product(graph, *node).is_none()
                        && (is_scaling(name) || matches!(name, "cat" | "stack"));
                    // Work on what has met that opens and closes fields again, or goes on from step
                    // to step of a sequence.
                    gates[at] = state.from_mixed
                        && readers().all(|reader| {
                            let reader_id = NodeId(reader as u32);
                            let wide = graph
                                .output(reader_id, 0)
                                .is_some_and(|out| out.elements() as i64 > self.batch);
                            let opens = match graph.name(reader_id) {
                                // Something is there to be opened and closed, not compared.
                                "mul" => {
                                    !self.is_compared(reader_id)
                                        && graph.inputs(reader_id).any(|other| {
                                            matches!(
                                                self.state(&other).kind,
                                                Kind::Rows | Kind::Mixed
                                            )
                                        })
                                }
                                name => name == "add",
                            };
                            gates[reader] || wide && opens
                        });
                    if used && only && (gates[at] || scales) {
                        self.phases[at] = Some(Phase::Interaction);
                    }
                }
                _ => {}
            }
        }
        // Numbers that come in go with what they are for; what nothing reads goes with its input.
        for node in nodes {
            let at = node.0 as usize;
            if self.phases[at].is_none() {
                self.phases[at] = graph
                    .predecessors(*node)
                    .filter_map(|before| self.phases[before.0 as usize])
                    .next();
            }
        }
    }
}

fn lookup_is_many(lookup: Lookup) -> bool {
    lookup.each > 1 && !lookup.bag
}

fn is_pairwise(name: &str) -> bool {
    matches!(
        name,
        "mul"
            | "sub"
            | "add"
            | "div"
            | "addcmul"
            | "lerp"
            | "where"
            | "masked_fill"
            | "dot"
            | "rsub"
    )
}

/// Work that brings vectors to one length.
fn is_scaling(name: &str) -> bool {
    matches!(
        name,
        "linalg_vector_norm"
            | "norm"
            | "clamp_min"
            | "clamp"
            | "div"
            | "rsqrt"
            | "sqrt"
            | "pow"
            | "sum"
            | "mul"
            | "maximum"
            | "expand"
            | "reciprocal"
    )
}
