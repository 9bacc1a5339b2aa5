//! What an operator costs, estimated from the shapes in its template.
//!
//! Estimates rank operators and segments against each other; they promise no time.

use genie_wire::template::{OutputSpec, Template};
use genie_wire::value::{TensorMeta, Value};

/// The cost of one operator or of a sum of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts as two.
    pub flops: u64,
    /// Bytes of the tensors read and written.
    pub bytes: u64,
}

impl Cost {
    /// Flops per byte.
    pub fn intensity(self) -> f64 {
        if self.bytes == 0 { 0.0 } else { self.flops as f64 / self.bytes as f64 }
    }

    pub fn plus(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops.saturating_add(other.flops),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// Estimates an operator.
    pub fn of(template: &Template) -> Cost {
        let mut inputs: Vec<&TensorMeta> = Vec::new();
        let mut collected: Vec<TensorMeta> = Vec::new();
        for arg in &template.args {
            arg.for_each_tensor(&mut |_, meta| collected.push(meta.clone()));
        }
        inputs.extend(collected.iter());
        let outputs: Vec<&TensorMeta> =
            template.outputs.iter().filter_map(OutputSpec::meta).collect();
        let bytes =
            inputs.iter().chain(&outputs).fold(0u64, |sum, meta| sum.saturating_add(meta.bytes()));
        let shapes = Shapes { inputs: &inputs, outputs: &outputs, args: &template.args };
        Cost { flops: shapes.flops(base_name(&template.op)), bytes }
    }
}

/// `aten::add.Tensor` -> `add`; `aten::relu_` -> `relu`.
fn base_name(op: &str) -> &str {
    let name = op.split_once("::").map_or(op, |(_, name)| name);
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    name.trim_end_matches('_').trim_start_matches('_')
}

struct Shapes<'a> {
    inputs: &'a [&'a TensorMeta],
    outputs: &'a [&'a TensorMeta],
    args: &'a [Value],
}

impl Shapes<'_> {
    fn flops(&self, name: &str) -> u64 {
        match name {
            "mm" | "bmm" | "matmul" | "mv" | "dot" | "linear" | "addmm" | "baddbmm" | "addmv"
            | "addbmm" | "int_mm" => self.matmul(name),
            "convolution"
            | "convolution_overrideable"
            | "mkldnn_convolution"
            | "cudnn_convolution"
            | "thnn_conv2d"
            | "slow_conv2d_forward"
            | "slow_conv3d" => self.convolution(),
            "convolution_backward" | "convolution_backward_overrideable" => {
                self.convolution_backward()
            }
            _ if name.starts_with("scaled_dot_product") => {
                let forward = self.attention();
                // The backward recomputes the scores and does four products more.
                if name.ends_with("backward") { forward / 2 * 5 } else { forward }
            }
            "empty" | "copy" | "clone" | "to_copy" | "cat" | "stack" | "embedding" | "index"
            | "index_select" | "gather" | "scatter" | "slice_backward" | "select_backward"
            | "constant_pad_nd" | "zero" | "zeros" | "ones" | "full" | "fill"
            | "local_scalar_dense" | "reshape_alias" | "view" | "repeat" | "flip" | "roll" => 0,
            "native_layer_norm" | "native_batch_norm" | "native_group_norm" | "softmax"
            | "log_softmax" | "gelu" => self.largest().saturating_mul(5),
            _ => self.largest(),
        }
    }

    fn largest(&self) -> u64 {
        self.inputs.iter().chain(self.outputs).map(|meta| meta.elements()).max().unwrap_or(0)
    }

    fn output(&self) -> u64 {
        self.outputs.first().map_or(0, |meta| meta.elements())
    }

    /// Each output element is a dot product along the last dimension of the first matrix; the
    /// `add*` forms put the addend before it.
    fn matmul(&self, name: &str) -> u64 {
        let first = usize::from(name.contains("add"));
        let inner = self.inputs.get(first).and_then(|meta| meta.sizes.last()).copied().unwrap_or(1);
        self.output().saturating_mul(inner).saturating_mul(2)
    }

    /// Each output element (each input element, when transposed) takes one product with a filter.
    fn convolution(&self) -> u64 {
        let [input, weight, ..] = self.inputs else {
            return self.largest();
        };
        let transposed =
            self.args.iter().any(|arg| matches!(arg, Value::Bool(true))) && self.args.len() >= 9;
        let filters = weight.sizes.first().copied().unwrap_or(1).max(1);
        let moving = if transposed { input.elements() } else { self.output() };
        moving.saturating_mul(weight.elements() / filters).saturating_mul(2)
    }

    /// Arguments: output gradient, input, weight; one product each for input and weight.
    fn convolution_backward(&self) -> u64 {
        let [gradient, _, weight, ..] = self.inputs else {
            return self.largest();
        };
        let filters = weight.sizes.first().copied().unwrap_or(1).max(1);
        gradient.elements().saturating_mul(weight.elements() / filters).saturating_mul(4)
    }

    /// Query times keys and scores times values: two products of (queries, keys, width).
    fn attention(&self) -> u64 {
        let attention: Vec<_> = self.inputs.iter().filter(|meta| meta.sizes.len() >= 3).collect();
        let [query, key, ..] = attention[..] else {
            return self.largest();
        };
        let keys = key.sizes[key.sizes.len() - 2];
        query.elements().saturating_mul(keys).saturating_mul(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::op;

    fn check(name: &str, inputs: &[&[u64]], output: &[u64], flops: u64) {
        assert_eq!(Cost::of(&op(name, inputs, output)).flops, flops, "{name}");
    }

    #[test]
    fn operators_are_estimated_from_their_shapes() {
        check("aten::mm", &[&[4, 8], &[8, 16]], &[4, 16], 2 * 4 * 8 * 16);
        check("aten::addmm", &[&[16], &[4, 8], &[8, 16]], &[4, 16], 2 * 4 * 8 * 16);
        check("aten::bmm", &[&[3, 4, 8], &[3, 8, 16]], &[3, 4, 16], 3 * 2 * 4 * 8 * 16);
        check("aten::relu_", &[&[10, 10]], &[10, 10], 100);
        check("aten::sum.dim_IntList", &[&[10, 10]], &[10], 100);
        check("aten::copy_", &[&[10], &[10]], &[10], 0);
        let conv: &[&[u64]] = &[&[1, 3, 8, 8], &[6, 3, 3, 3]];
        check("aten::convolution", conv, &[1, 6, 8, 8], 2 * 6 * 64 * 27);
        let heads: &[&[u64]] = &[&[1, 2, 5, 8], &[1, 2, 7, 8], &[1, 2, 7, 8]];
        let name = "aten::_scaled_dot_product_flash_attention_for_cpu";
        check(name, heads, &[1, 2, 5, 8], 4 * 2 * 5 * 7 * 8);
    }

    #[test]
    fn huge_shapes_do_not_overflow() {
        let huge = 1 << 62;
        let cost = Cost::of(&op("aten::mm", &[&[huge, huge], &[huge, huge]], &[huge, huge]));
        assert_eq!(cost.flops, u64::MAX);
        assert!(cost.intensity() >= 0.0);
    }
}
