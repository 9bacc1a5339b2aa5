//! The words of a pattern.

use std::fmt;
use std::sync::Arc;

use crate::graph::base_name;
use crate::query::plain_name;
use crate::{Graph, NodeId};

/// A question about a node.
pub(super) type Predicate = Arc<dyn Fn(&Graph, NodeId) -> bool + Send + Sync>;

/// Which operators a step may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ops {
    Any,
    Names(Vec<String>),
}

impl Ops {
    /// Whether an operator's whole name is one of these.
    pub fn contains(&self, op: &str) -> bool {
        let is_operator = !op.starts_with("genie::");
        let Ops::Names(names) = self else { return is_operator };
        let (base, plain) = (base_name(op), plain_name(op));
        names.iter().any(|name| match name.strip_suffix('*') {
            Some(start) if name.contains("::") => op.starts_with(start),
            Some(start) => is_operator && base.starts_with(start),
            None if name.contains("::") => op == name,
            None => plain == name || base == name,
        })
    }
}

/// What names operators: `"mm"`, `["relu", "gelu"]`, a slice, or [`Ops::Any`].
pub trait IntoOps {
    fn into_ops(self) -> Ops;
}

impl IntoOps for Ops {
    fn into_ops(self) -> Ops {
        self
    }
}

impl IntoOps for &str {
    fn into_ops(self) -> Ops {
        Ops::Names(vec![self.to_owned()])
    }
}

impl IntoOps for &[&str] {
    fn into_ops(self) -> Ops {
        Ops::Names(self.iter().map(|name| (*name).to_owned()).collect())
    }
}

impl<const N: usize> IntoOps for [&str; N] {
    fn into_ops(self) -> Ops {
        self.as_slice().into_ops()
    }
}

impl<const N: usize> IntoOps for &[&str; N] {
    fn into_ops(self) -> Ops {
        self.as_slice().into_ops()
    }
}

/// How often a step may come in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    Once,
    Maybe,
    Repeated,
    AnyNumber,
}

impl Times {
    pub(super) fn min(self) -> u32 {
        match self {
            Times::Once | Times::Repeated => 1,
            Times::Maybe | Times::AnyNumber => 0,
        }
    }

    pub(super) fn max(self) -> u32 {
        match self {
            Times::Once | Times::Maybe => 1,
            Times::Repeated | Times::AnyNumber => super::REPEATS_MAX,
        }
    }
}

/// One operator of a pattern and what it uses.
#[derive(Clone)]
pub(super) struct Step {
    pub ops: Ops,
    pub times: Times,
    pub name: Option<String>,
    pub predicates: Vec<Predicate>,
    /// What the data comes from (`then`), and as which operand.
    pub before: Option<Box<Pattern>>,
    pub position: Option<usize>,
    /// What else is used.
    pub others: Vec<(Pattern, Option<usize>)>,
    pub strict: bool,
}

/// An operand that is looked at no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Anything,
    Weight { name: Option<String> },
    Tensor { name: String },
}

#[derive(Clone)]
pub(super) enum Shape {
    Step(Step),
    Leaf(Leaf),
    Or(Vec<Pattern>),
}

/// A pattern of dataflow. See [`crate::matcher`] for how to write one.
#[derive(Clone)]
pub struct Pattern {
    pub(super) shape: Shape,
    /// Which of the last step's operands the next call of `operand` places.
    with_last: bool,
}

/// Begins a pattern with one of these operators.
pub fn op(ops: impl IntoOps) -> Pattern {
    Pattern::of(Shape::Step(Step {
        ops: ops.into_ops(),
        times: Times::Once,
        name: None,
        predicates: Vec::new(),
        before: None,
        position: None,
        others: Vec::new(),
        strict: false,
    }))
}

/// An operand that is a weight, also behind copies and casts.
pub fn weight() -> Pattern {
    Pattern::of(Shape::Leaf(Leaf::Weight { name: None }))
}

/// An operand with a name: the same name is the same tensor everywhere in the pattern, so that
/// `x * sigmoid(x)` is `tensor("x").then("sigmoid").then("mul").with(tensor("x"))`.
pub fn tensor(name: &str) -> Pattern {
    Pattern::of(Shape::Leaf(Leaf::Tensor { name: name.to_owned() }))
}

/// Any operand.
pub fn anything() -> Pattern {
    Pattern::of(Shape::Leaf(Leaf::Anything))
}

impl Pattern {
    fn of(shape: Shape) -> Self {
        Pattern { shape, with_last: false }
    }

    fn next(self, ops: impl IntoOps, times: Times) -> Pattern {
        let mut next = op(ops);
        next.last(&mut |step| {
            step.times = times;
            step.before = Some(Box::new(self.clone()));
        });
        next
    }

    /// An operator that uses the result so far.
    pub fn then(self, ops: impl IntoOps) -> Pattern {
        self.next(ops, Times::Once)
    }

    /// An operator that may be missing.
    pub fn maybe(self, ops: impl IntoOps) -> Pattern {
        self.next(ops, Times::Maybe)
    }

    /// One or more of these operators in a row.
    pub fn repeated(self, ops: impl IntoOps) -> Pattern {
        self.next(ops, Times::Repeated)
    }

    /// None or more of these operators in a row.
    pub fn any_number(self, ops: impl IntoOps) -> Pattern {
        self.next(ops, Times::AnyNumber)
    }

    /// What else the last operator uses. Each `with` is an operand of its own.
    pub fn with(mut self, operand: Pattern) -> Pattern {
        self.last(&mut |step| step.others.push((operand.clone(), None)));
        self.with_last = true;
        self
    }

    /// The position, from 0, of the operand that was named last: by `with`, or by `then`.
    pub fn operand(mut self, position: usize) -> Pattern {
        let with_last = self.with_last;
        self.last(&mut |step| match step.others.last_mut() {
            Some((_, place)) if with_last => *place = Some(position),
            _ => step.position = Some(position),
        });
        self
    }

    /// The name by which a match gives the last operator: [`super::Found::node`].
    pub fn named(mut self, name: &str) -> Pattern {
        match &mut self.shape {
            Shape::Leaf(Leaf::Weight { name: place }) => *place = Some(name.to_owned()),
            Shape::Leaf(leaf) => *leaf = Leaf::Tensor { name: name.to_owned() },
            _ => self.last(&mut |step| step.name = Some(name.to_owned())),
        }
        self
    }

    /// The last operator is meant only where this holds. It must not look beyond the graph.
    pub fn when(
        mut self,
        holds: impl Fn(&Graph, NodeId) -> bool + Send + Sync + 'static,
    ) -> Pattern {
        let holds: Predicate = Arc::new(holds);
        self.last(&mut |step| step.predicates.push(Arc::clone(&holds)));
        self
    }

    /// Copies and casts are not passed over on the way to the last operator's operands.
    pub fn strict(mut self) -> Pattern {
        self.last(&mut |step| step.strict = true);
        self
    }

    /// This or the other; this is tried first.
    pub fn or(self, other: Pattern) -> Pattern {
        let mut ways = match self.shape {
            Shape::Or(ways) => ways,
            shape => vec![Pattern::of(shape)],
        };
        ways.push(other);
        Pattern::of(Shape::Or(ways))
    }

    /// The last step; of alternatives, that of each. Operands have none.
    fn last(&mut self, change: &mut dyn FnMut(&mut Step)) {
        match &mut self.shape {
            Shape::Step(step) => change(step),
            Shape::Or(ways) => ways.iter_mut().for_each(|way| way.last(change)),
            Shape::Leaf(_) => {}
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shape {
            Shape::Leaf(leaf) => leaf.fmt(f),
            Shape::Or(ways) => f.debug_tuple("or").field(ways).finish(),
            Shape::Step(step) => {
                if let Some(before) = &step.before {
                    write!(f, "{before:?} -> ")?;
                }
                write!(f, "{:?} {:?}", step.times, step.ops)?;
                match step.others.is_empty() {
                    true => Ok(()),
                    false => write!(f, " with {:?}", step.others),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_whole_or_beginnings() {
        for (names, op, expect) in [
            (&["add"][..], "aten::add_.Tensor", true),
            (&["add"], "aten::addmm", false),
            (&["add*"], "aten::addmm", true),
            (&["aten::add.Tensor"], "aten::add.Tensor", true),
            (&["aten::add.Tensor"], "aten::add.Scalar", false),
            (&["aten::conv*"], "aten::convolution", true),
            (&["_softmax"], "aten::_softmax", true),
            (&["softmax"], "aten::_softmax", false),
            (&["relu", "gelu"], "aten::gelu", true),
            (&["relu_"], "aten::relu_", true),
            (&["relu_"], "aten::relu", false),
            (&["*"], "aten::relu", true),
            (&["*"], "genie::read", false),
            (&["genie::read"], "genie::read", true),
        ] {
            assert_eq!(names.into_ops().contains(op), expect, "{names:?} {op}");
        }
        assert!(Ops::Any.contains("aten::relu") && !Ops::Any.contains("genie::upload"));
    }
}
