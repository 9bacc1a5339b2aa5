//! Convolutions: what they read, and how they walk over it.

use crate::graph::{Arg, Graph, NodeId, Tensor};
use crate::operators::Roles;

/// A convolution and its operands.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'g> {
    pub data: Tensor<'g>,
    pub weight: Tensor<'g>,
    /// Dimensions that it moves along.
    pub spatial: usize,
    /// The largest of its steps.
    pub stride: i64,
    pub transposed: bool,
}

impl<'g> Convolution<'g> {
    /// The convolution that a node computes, if it does.
    pub fn of(graph: &'g Graph, node: NodeId) -> Option<Self> {
        if !graph.roles(node).has(Roles::CONVOLUTION) {
            return None;
        }
        let (data, weight) = (graph.input(node, 0)?, graph.input(node, 1)?);
        let spatial = weight.dims().checked_sub(2)?;
        // The first list is the steps, the first flag whether it is transposed.
        let mut args = graph.args(node).skip_while(|arg| !matches!(arg, Arg::List(_)));
        let steps = match args.next() {
            Some(Arg::List(count)) => count as usize,
            _ => 0,
        };
        let stride = args.by_ref().take(steps).filter_map(Arg::as_i64).max();
        let transposed = args.find_map(|arg| match arg {
            Arg::Bool(flag) => Some(flag),
            _ => None,
        });
        (spatial > 0 && data.dims() > spatial).then_some(Convolution {
            data,
            weight,
            spatial,
            stride: stride.unwrap_or(1),
            transposed: transposed.unwrap_or(false),
        })
    }

    /// Channels that it reads, with a batch dimension before them or not.
    pub fn channels(&self) -> i64 {
        self.data.size(-1 - self.spatial as isize)
    }

    /// Positions that it looks at together, along each dimension that it moves along.
    pub fn kernel(&self) -> &'g [i64] {
        &self.weight.sizes[2..]
    }

    /// Whether it looks at more than one position.
    pub fn is_wide(&self) -> bool {
        self.kernel().iter().any(|size| *size > 1)
    }

    /// Whether each of its channels reads some of the data's channels only.
    pub fn is_grouped(&self) -> bool {
        !self.transposed && self.weight.size(1) < self.channels()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;

    #[test]
    fn a_convolution_is_read_with_and_without_a_batch() {
        for (data, weight, steps, transposed) in [
            (&[1, 4, 9, 9][..], &[8, 2, 3, 3][..], &[1, 2][..], false),
            (&[4, 9, 9], &[4, 8, 1, 1], &[1, 1], true),
            (&[1, 4, 9], &[8, 4, 1], &[3], false),
        ] {
            let mut g = GraphBuilder::new();
            let (x, w) = (g.input(data), g.weight(weight));
            let y = g.convolve(x, w, steps, transposed, &[8, 3]);
            let node = g.node_of(y);
            let graph = g.build();
            let found = Convolution::of(&graph, node).unwrap();
            assert_eq!((found.spatial, found.channels()), (steps.len(), 4));
            assert_eq!(found.stride, *steps.last().unwrap());
            assert_eq!((found.kernel(), found.transposed), (&weight[2..], transposed));
            assert_eq!(found.is_wide(), weight[2] == 3);
            assert_eq!(found.is_grouped(), weight[1] == 2);
        }
    }
}
