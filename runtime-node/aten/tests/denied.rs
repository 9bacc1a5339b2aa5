//! What is no computation is not run, whoever asks, and not among what a node says it runs.

use std::collections::BTreeMap;
use std::sync::Mutex;

use genie_aten::execute::{Device, Template as Bound, init};
use genie_wire::{ErrorCode, Template, Value};

/// What is left to the clients is so for the whole process: who looks at it takes turns.
static PROCESS: Mutex<()> = Mutex::new(());

/// Binds an operator; why it is refused. Refused operators are so before their arguments are read.
fn refusal(op: &str, args: Vec<Value>) -> (u8, String) {
    let template = Template {
        op: op.into(),
        slots: 0,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![],
        args,
        outputs: vec![],
    };
    let mut encoded = Vec::new();
    template.encode(&mut encoded);
    let error = Bound::new(&encoded, Device::CPU).err().unwrap_or_else(|| panic!("{op} is bound"));
    (error.code, error.message)
}

#[test]
fn what_touches_more_than_its_tensors_is_refused_by_name_and_reason() {
    init().unwrap();
    for (op, why) in [
        ("aten::from_file", "opens a file"),
        ("aten::from_file.out", "opens a file"),
        ("aten::_reshape_alias", "bounds"),
        ("aten::_reshape_alias_copy", "bounds"),
        ("aten::set_.source_Tensor", "which memory"),
        ("aten::set_.source_Storage", "which memory"),
        ("aten::resize_", "which memory"),
        ("aten::empty.memory_format", "nobody wrote"),
        ("aten::is_pinned", "pinned"),
        ("aten::_cufft_set_plan_cache_max_size", "whole process"),
        ("aten::_print", "prints"),
        ("aten::_assert_async", "CUDA"),
        ("aten::_foobar", "to test"),
        ("aten::requires_grad_", "autograd"),
        ("aten::sum.dim_DimnameList", "names"),
        ("aten::_sparse_coo_tensor_unsafe", "sparse"),
        ("aten::_nested_view_from_buffer", "nested"),
        ("aten::quantize_per_tensor", "quantized"),
        ("aten::fbgemm_pack_gemm_matrix_fp16", "object"),
        ("aten::_cudnn_init_dropout_state", "one library"),
        ("aten::segment_reduce", "unchecked"),
        ("inductor::_reinterpret_tensor", "bounds"),
        ("c10d::broadcast_", "collectives"),
        ("profiler::_record_function_enter_new", "profiling"),
        ("quantized::linear_dynamic", "packs"),
    ] {
        let (code, message) = refusal(op, vec![]);
        assert_eq!(code, ErrorCode::NotImplemented as u8, "{op}: {message}");
        assert!(message.contains(op) && message.contains(why), "{op}: {message}");
    }
}

#[test]
fn no_file_is_made_through_an_operator() {
    init().unwrap();
    let file = std::env::temp_dir().join(format!("genie-from-file-{}", std::process::id()));
    let name = file.to_str().unwrap().to_owned();
    let args = [Value::String(name), Value::Bool(true), Value::Int(4)];
    let args = args.into_iter().chain(std::iter::repeat_n(Value::None, 4)).collect();
    assert!(refusal("aten::from_file", args).1.contains("opens a file"));
    assert!(!file.exists());
}

#[test]
fn what_is_listed_is_what_is_bound() {
    let _turn = PROCESS.lock().unwrap();
    init().unwrap();
    let reviewed = Device::CPU.reviewed();
    let (mut runs, mut not) = (0, 0);
    for (name, why_not) in &reviewed {
        // Of what is bound, the arguments are missing.
        let error = Bound::new(&encoded_name(name), Device::CPU).err().unwrap();
        let refused = error.message.contains("does not run");
        assert_eq!(refused, why_not.is_some(), "{name}: {why_not:?}");
        *if refused { &mut not } else { &mut runs } += 1;
    }
    assert_eq!(Device::CPU.ops(&[]).len(), runs);
    assert!(runs > 2000 && not > 500, "{runs} run, {not} do not");
}

/// A template's beginning: its name, and nothing that could be run.
fn encoded_name(name: &str) -> Vec<u8> {
    let mut encoded = Vec::new();
    genie_wire::varint::put(&mut encoded, name.len() as u64);
    encoded.extend_from_slice(name.as_bytes());
    encoded
}

/// Only `aten` computes on what a record carries. A namespace that a new PyTorch brings is denied
/// until somebody has looked at it and gives it a line in `cpp/denied.cpp`.
#[test]
fn every_namespace_of_this_torch_was_reviewed() {
    init().unwrap();
    let mut running: BTreeMap<String, usize> = BTreeMap::new();
    for (name, why_not) in Device::CPU.reviewed() {
        let namespace = name.split("::").next().unwrap().to_owned();
        match why_not {
            None => *running.entry(namespace).or_default() += 1,
            Some(why) => assert!(!why.contains("nobody has reviewed"), "{name}: {why}"),
        }
    }
    assert_eq!(running.keys().collect::<Vec<_>>(), ["aten"], "{running:?}");
}

#[test]
fn what_programs_need_is_not_refused() {
    init().unwrap();
    let reviewed: BTreeMap<_, _> = Device::CPU.reviewed().into_iter().collect();
    for op in [
        "aten::copy_",
        "aten::as_strided_scatter",
        "aten::scaled_dot_product_attention",
        "aten::native_batch_norm",
        "aten::_fused_moving_avg_obs_fq_helper",
        "aten::_foreach_add_.List",
        "aten::_fused_adam_",
        "aten::_embedding_bag",
        "aten::nonzero",
        "aten::normal_",
        "aten::_linalg_svd",
        "aten::_amp_update_scale_",
        "aten::linalg_eigvals.out",
        "aten::lstm.input",
        "aten::_weight_int8pack_mm",
    ] {
        assert_eq!(reviewed.get(op), Some(&None), "{op}");
    }
}

#[test]
fn what_the_owner_leaves_to_the_clients_is_refused_too() {
    let _turn = PROCESS.lock().unwrap();
    init().unwrap();
    let before = Device::CPU.reviewed();
    let without = ["aten::special_zeta".to_owned(), "aten::erfcx.never".to_owned()];
    Device::CPU.ops(&without);
    let (code, message) = refusal("aten::special_zeta.other_scalar", vec![]);
    assert_eq!(code, ErrorCode::NotImplemented as u8);
    assert!(message.contains("--without"), "{message}");
    let overloads = |ops: &[(String, Option<String>)]| {
        ops.iter().filter(|(_, why_not)| why_not.is_none()).count()
    };
    let left = before.iter().filter(|(name, _)| name.starts_with("aten::special_zeta")).count();
    assert_eq!(overloads(&Device::CPU.reviewed()), overloads(&before) - left);
}
