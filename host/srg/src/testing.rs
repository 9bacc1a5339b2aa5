//! Small templates for this crate's tests.

use std::sync::Arc;

use genie_wire::template::OutputSpec;
use genie_wire::{DType, Template, TensorMeta, Value};

pub(crate) fn meta(sizes: &[u64]) -> TensorMeta {
    TensorMeta::contiguous(DType::FLOAT32, sizes)
}

pub(crate) fn op(name: &str, inputs: &[&[u64]], output: &[u64]) -> Arc<Template> {
    let args = inputs
        .iter()
        .enumerate()
        .map(|(slot, sizes)| Value::Tensor { slot: slot as u32, meta: meta(sizes) })
        .collect();
    Arc::new(Template {
        op: name.to_owned(),
        slots: inputs.len() as u32,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![meta(output).bytes()],
        args,
        outputs: vec![OutputSpec::New { index: 0, meta: meta(output) }],
    })
}

pub(crate) fn unary(name: &str, sizes: &[u64]) -> Arc<Template> {
    op(name, &[sizes], sizes)
}

pub(crate) fn binary(name: &str, sizes: &[u64]) -> Arc<Template> {
    op(name, &[sizes, sizes], sizes)
}

pub(crate) fn in_place(name: &str, sizes: &[u64]) -> Arc<Template> {
    Arc::new(Template {
        op: name.to_owned(),
        slots: 1,
        scalars: 0,
        mutated: vec![0],
        random: false,
        new_storages: vec![],
        args: vec![Value::Tensor { slot: 0, meta: meta(sizes) }],
        outputs: vec![OutputSpec::Alias { slot: 0, meta: meta(sizes) }],
    })
}
