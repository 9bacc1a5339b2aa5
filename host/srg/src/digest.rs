//! The hash of a template, once exact and once as topology. Computed once per template.

use genie_wire::template::{OutputSpec, Template};
use genie_wire::value::{TensorMeta, Value};

use crate::Hash128;
use crate::mix::Mixer;

/// Integers up to this distance from 0 are kept in the topology unless they are a size: they are
/// dimensions, dtypes, layouts and small counts.
const SMALL_INTEGER_MAX: u64 = 64;

/// What a template adds to the hashes of its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateDigest {
    /// Everything of the template.
    pub exact: Hash128,
    /// Sizes replaced by 0, 1 or their equality class within the template.
    pub topology: Hash128,
}

impl TemplateDigest {
    pub fn of(template: &Template) -> Self {
        let mut bytes = Vec::with_capacity(256);
        template.encode(&mut bytes);
        let mut exact = Mixer::new();
        exact.bytes(&bytes);
        TemplateDigest { exact: exact.finish(), topology: Topology::new(template).hash(template) }
    }
}

struct Topology {
    mixer: Mixer,
    /// Sizes met so far; a size's class is its position.
    classes: Vec<u64>,
}

impl Topology {
    fn new(template: &Template) -> Self {
        let mut classes = Vec::new();
        let mut add = |meta: &TensorMeta| {
            for size in &meta.sizes {
                if *size > 1 && !classes.contains(size) {
                    classes.push(*size);
                }
            }
        };
        template.args.iter().for_each(|arg| arg.for_each_tensor(&mut |_, meta| add(meta)));
        template.outputs.iter().filter_map(OutputSpec::meta).for_each(add);
        Topology { mixer: Mixer::new(), classes }
    }

    fn hash(mut self, template: &Template) -> Hash128 {
        self.mixer.bytes(template.op.as_bytes());
        for word in [template.slots, template.scalars, u32::from(template.random)] {
            self.mixer.word(word.into());
        }
        self.mixer.word(template.mutated.len() as u64);
        template.mutated.iter().for_each(|slot| self.mixer.word((*slot).into()));
        self.mixer.word(template.new_storages.len() as u64);
        self.mixer.word(template.args.len() as u64);
        template.args.iter().for_each(|arg| self.value(arg));
        self.mixer.word(template.outputs.len() as u64);
        template.outputs.iter().for_each(|output| self.output(output));
        self.mixer.finish()
    }

    fn tagged(&mut self, tag: u64, word: u64) {
        self.mixer.word(tag);
        self.mixer.word(word);
    }

    fn size(&mut self, size: u64) {
        let class = match size {
            0 | 1 => size,
            _ => {
                2 + self.classes.iter().position(|known| *known == size).unwrap_or(usize::MAX / 2)
                    as u64
            }
        };
        self.mixer.word(class);
    }

    fn integer(&mut self, value: i64) {
        let is_size = value > 1 && self.classes.contains(&(value as u64));
        if is_size {
            self.mixer.word(1);
            self.size(value as u64);
        } else if value.unsigned_abs() <= SMALL_INTEGER_MAX {
            self.tagged(2, value as u64);
        } else {
            self.tagged(3, u64::from(value < 0));
        }
    }

    /// Dtype, sizes as classes, the order of the strides (broadcast ones marked), and whether
    /// there is an offset.
    fn meta(&mut self, meta: &TensorMeta) {
        self.tagged(u64::from(meta.dtype.0), meta.sizes.len() as u64);
        meta.sizes.iter().for_each(|size| self.size(*size));
        self.mixer.word(u64::from(meta.offset > 0));
        if meta.is_contiguous() {
            self.mixer.word(u64::MAX);
            return;
        }
        let mut order: Vec<usize> = (0..meta.strides.len()).collect();
        order.sort_by_key(|dim| std::cmp::Reverse(meta.strides[*dim]));
        for dim in order {
            self.tagged(dim as u64, u64::from(meta.strides[dim] == 0));
        }
    }

    fn output(&mut self, output: &OutputSpec) {
        match output {
            OutputSpec::Undefined => self.mixer.word(0),
            OutputSpec::New { index, meta } => {
                self.tagged(1, (*index).into());
                self.meta(meta);
            }
            OutputSpec::Alias { slot, meta } => {
                self.tagged(2, (*slot).into());
                self.meta(meta);
            }
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::None => self.mixer.word(0),
            Value::Tensor { slot, meta } => {
                self.tagged(1, (*slot).into());
                self.meta(meta);
            }
            Value::UndefinedTensor => self.mixer.word(2),
            Value::ScalarTensor { scalar, dtype, wrapped } => {
                self.tagged(3, (*scalar).into());
                self.tagged(dtype.0.into(), u64::from(*wrapped));
            }
            Value::Int(value) => {
                self.mixer.word(4);
                self.integer(*value);
            }
            Value::Double(value) => self.tagged(5, value.to_bits()),
            Value::Bool(value) => self.tagged(6, u64::from(*value)),
            Value::Complex(re, im) => {
                self.tagged(7, re.to_bits());
                self.mixer.word(im.to_bits());
            }
            Value::String(text) => {
                self.mixer.word(8);
                self.mixer.bytes(text.as_bytes());
            }
            Value::VaryingDouble { scalar } => self.tagged(9, (*scalar).into()),
            Value::VaryingInt { scalar } => self.tagged(10, (*scalar).into()),
            Value::VaryingComplex { scalar } => self.tagged(11, (*scalar).into()),
            Value::Device { accelerator } => {
                self.tagged(12, accelerator.map_or(u64::MAX, u64::from));
            }
            Value::Generator => self.mixer.word(13),
            Value::List(items) => {
                self.tagged(14, items.len() as u64);
                items.iter().for_each(|item| self.value(item));
            }
            Value::IntList(items) => {
                self.tagged(15, items.len() as u64);
                items.iter().for_each(|item| self.integer(*item));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use genie_wire::DType;

    fn unary(op: &str, sizes: &[u64], extra: Vec<Value>) -> TemplateDigest {
        let meta = TensorMeta::contiguous(DType::FLOAT32, sizes);
        let mut args = vec![Value::Tensor { slot: 0, meta: meta.clone() }];
        args.extend(extra);
        TemplateDigest::of(&Template {
            op: op.to_owned(),
            slots: 1,
            scalars: 0,
            mutated: vec![],
            random: false,
            new_storages: vec![meta.bytes()],
            args,
            outputs: vec![OutputSpec::New { index: 0, meta }],
        })
    }

    #[test]
    fn sizes_change_exact_but_not_topology() {
        let short = unary("aten::relu", &[8, 16], vec![]);
        let long = unary("aten::relu", &[9, 16], vec![]);
        assert_ne!(short.exact, long.exact);
        assert_eq!(short.topology, long.topology);
    }

    #[test]
    fn one_and_zero_and_equality_stay_in_the_topology() {
        let general = unary("aten::relu", &[8, 16], vec![]).topology;
        for sizes in [[1, 16], [0, 16], [16, 16]] {
            assert_ne!(unary("aten::relu", &sizes, vec![]).topology, general, "{sizes:?}");
        }
    }

    #[test]
    fn dims_and_booleans_stay_but_sizes_among_the_integers_do_not() {
        let of = |rows, dim, keep| {
            let extra = vec![Value::Int(dim), Value::Bool(keep), Value::IntList(vec![rows, 64])];
            unary("aten::sum", &[rows as u64, 64, 5], extra).topology
        };
        assert_eq!(of(17, 2, true), of(18, 2, true));
        assert_ne!(of(17, 2, true), of(17, 3, true));
        assert_ne!(of(17, 2, true), of(17, 2, false));
    }
}
