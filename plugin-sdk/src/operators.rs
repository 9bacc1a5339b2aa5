//! Operators by what they do with data: one table of roles, which every rule asks.
//!
//! A role is a fact about an operator's name alone. [`crate::Graph::roles`] has it at hand for each node.

use crate::graph::base_name;

/// Roles of one operator, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u32);

macro_rules! roles {
    ($($(#[$doc:meta])* $role:ident: $($name:literal)+;)+) => {
        roles!(@number 0u32; $($(#[$doc])* $role)+);

        /// The operators of each role, by plain name.
        const TABLE: &[(Roles, &[&str])] = &[$((Roles::$role, &[$($name),+])),+];
    };
    (@number $at:expr; $(#[$doc:meta])* $role:ident $($rest:tt)*) => {
        impl Roles {
            $(#[$doc])*
            pub const $role: Roles = Roles(1 << $at);
        }
        roles!(@number $at + 1; $($rest)*);
    };
    (@number $at:expr;) => {};
}

roles! {
    /// Gives its first operand's numbers back: copies, casts, layouts.
    COPY: "_to_copy" "_to_copy_like" "to" "type_as" "clone" "contiguous" "detach" "alias" "lift_fresh"
        "lift_fresh_copy" "_reshape_alias_copy" "view_copy" "permute_copy" "expand_copy" "_conj_physical"
        "_copy_from";
    /// Each element of the result depends on the same element of the operands only ([`Roles::COPY`] too).
    ELEMENTWISE: "abs" "add" "addcdiv" "addcmul" "atan2" "bitwise_and" "bitwise_not" "bitwise_or"
        "bitwise_xor" "ceil" "celu" "clamp" "clamp_max" "clamp_min" "copy" "cos" "cosh" "div" "dropout"
        "elu" "eq" "erf" "exp" "exp2" "expm1" "fill" "floor" "floor_divide" "fmod" "ge" "gelu" "gt"
        "hardsigmoid" "hardswish" "hardtanh" "isnan" "le" "leaky_relu" "lerp" "log" "log10" "log1p" "log2"
        "log_sigmoid_forward" "logical_and" "logical_not" "logical_or" "lt" "masked_fill" "maximum"
        "minimum" "mish" "mul" "native_dropout" "ne" "neg" "pow" "reciprocal" "relu" "relu6" "remainder"
        "round" "rsqrt" "rsub" "sigmoid" "sign" "silu" "sin" "softplus" "sqrt" "square" "sub" "tan" "tanh"
        "threshold" "where" "_to_copy" "_to_copy_like" "to" "type_as" "clone" "contiguous" "detach" "alias"
        "lift_fresh" "lift_fresh_copy" "_reshape_alias_copy" "view_copy" "permute_copy" "expand_copy"
        "_conj_physical" "_copy_from";
    /// Bends what a layer gives.
    ACTIVATION: "relu" "gelu" "silu" "elu" "leaky_relu" "tanh" "hardtanh" "mish" "prelu" "selu";
    CONVOLUTION: "convolution" "_convolution" "conv1d" "conv2d" "conv3d" "convolution_overrideable"
        "mkldnn_convolution" "cudnn_convolution";
    /// A product of matrices.
    PRODUCT: "mm" "bmm" "matmul" "linear" "mv" "addmm" "baddbmm";
    /// A recurrent layer, or one step of one.
    RECURRENCE: "lstm" "gru" "_cudnn_rnn" "mkldnn_rnn_layer" "_thnn_fused_lstm_cell" "_thnn_fused_gru_cell";
    /// Attention over given queries, keys and values, in one operator.
    ATTENTION: "scaled_dot_product_attention" "_scaled_dot_product_attention_math"
        "_scaled_dot_product_attention_math_for_mps" "_scaled_dot_product_flash_attention"
        "_scaled_dot_product_flash_attention_for_cpu" "_scaled_dot_product_efficient_attention"
        "_scaled_dot_product_cudnn_attention" "_scaled_dot_product_fused_attention_overrideable"
        "_flash_attention_forward" "_efficient_attention_forward" "_cudnn_attention_forward";
    /// Attention with its products, in one operator.
    FUSED_LAYER: "_transformer_encoder_layer_fwd" "_native_multi_head_attention";
    SOFTMAX: "_softmax" "softmax" "_safe_softmax";
    /// Norms of samples, groups or batches.
    NORM: "native_batch_norm" "native_layer_norm" "native_group_norm" "batch_norm" "layer_norm" "group_norm"
        "_batch_norm_impl_index" "_native_batch_norm_legit" "cudnn_batch_norm" "rms_norm" "_fused_rms_norm";
    /// The maximum or mean of windows.
    POOL: "max_pool1d" "max_pool1d_with_indices" "max_pool2d" "max_pool2d_with_indices" "max_pool3d"
        "max_pool3d_with_indices" "avg_pool1d" "avg_pool2d" "avg_pool3d" "adaptive_avg_pool1d"
        "adaptive_avg_pool2d" "_adaptive_avg_pool2d" "adaptive_avg_pool3d" "_adaptive_avg_pool3d"
        "adaptive_max_pool1d" "adaptive_max_pool2d" "adaptive_max_pool3d" "fractional_max_pool2d" "fractional_max_pool3d";
    /// A pool, mean, sum or maximum over a dimension.
    REDUCTION: "max" "amax" "mean" "sum";
    /// A Fourier transform.
    FOURIER: "_fft_r2c" "_fft_c2r" "_fft_c2c" "stft" "istft";
    /// Solves or inverts, or takes matrices apart for that.
    FACTORIZATION: "cholesky" "cholesky_inverse" "cholesky_solve" "linalg_cholesky" "linalg_cholesky_ex"
        "linalg_solve" "_linalg_solve_ex" "linalg_solve_ex" "linalg_solve_triangular" "triangular_solve"
        "linalg_lu" "linalg_lu_factor" "linalg_lu_factor_ex" "linalg_lu_solve" "lu_unpack" "linalg_eig"
        "_linalg_eigh" "linalg_eigh" "_linalg_eigvals" "linalg_eigvals" "linalg_eigvalsh" "_linalg_svd"
        "linalg_svd" "linalg_svdvals" "linalg_qr" "geqrf" "linalg_inv" "linalg_inv_ex" "linalg_pinv"
        "inverse" "_linalg_det" "linalg_det" "_linalg_slogdet" "linalg_slogdet" "linalg_lstsq"
        "linalg_ldl_factor_ex" "linalg_ldl_solve";
    /// Waves of numbers: what encodes steps and positions.
    WAVE: "sin" "cos" "polar";
    /// Reads a few rows of its first operand, which may be a huge table.
    GATHER: "embedding" "embedding_bag" "_embedding_bag" "_embedding_bag_forward_only" "index_select" "index"
        "gather";
    /// Adds rows into others by integers.
    SCATTER_SUM: "scatter_add" "index_add" "scatter_reduce" "index_reduce" "segment_reduce";
    /// Writes a part of its first operand, where it works in place: see [`writes_part`].
    PART_WRITE: "index_copy" "index_put" "_index_put_impl" "index_add" "index_fill" "scatter" "scatter_add";
    /// Draws from the generator. A column `random` of the graph (one number a node) overrules this.
    RANDOM: "bernoulli" "binomial" "cauchy" "exponential" "geometric" "log_normal" "multinomial"
        "native_dropout" "_fused_dropout" "normal" "poisson" "rand" "rand_like" "randint" "randint_like"
        "randn" "randn_like" "random" "randperm" "rrelu_with_noise" "uniform";
}

impl Roles {
    /// Whether the operator has one of these roles.
    pub const fn has(self, other: Roles) -> bool {
        self.0 & other.0 != 0
    }

    pub const fn and(self, other: Roles) -> Roles {
        Roles(self.0 | other.0)
    }
}

/// The roles of an operator, given as PyTorch prints it or by its name alone.
pub fn roles(op: &str) -> Roles {
    let name = plain_name(op);
    let rows = TABLE.iter().filter(|(_, names)| names.contains(&name));
    rows.fold(Roles::default(), |sum, (role, _)| sum.and(*role))
}

/// The plain names of all operators with one of these roles.
pub fn with(wanted: Roles) -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .filter(move |(role, _)| role.has(wanted))
        .flat_map(|(_, names)| names.iter().copied())
}

/// Whether the operator writes a part of its first operand and leaves the rest.
pub fn writes_part(op: &str) -> bool {
    base_name(op).ends_with('_') && roles(op).has(Roles::PART_WRITE)
}

/// The operator's name without namespace, overload and the `_` of its in-place form:
/// `relu` for `aten::relu_`.
pub fn plain_name(op: &str) -> &str {
    let name = base_name(op);
    match name.strip_suffix('_') {
        Some(plain) if !plain.is_empty() && !plain.ends_with('_') => plain,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_has_all_its_roles_in_place_or_not() {
        for op in ["aten::tanh", "aten::tanh_", "tanh"] {
            assert_eq!(roles(op), Roles::ELEMENTWISE.and(Roles::ACTIVATION));
        }
        assert_eq!(roles("aten::nothing.like_it"), Roles::default());
        assert!(writes_part("aten::index_put_") && !writes_part("aten::index_put"));
        assert!(with(Roles::RANDOM).any(|name| name == "randperm"));
    }

    #[test]
    fn operators_of_a_forward_pass_do_not_give_their_roles_to_its_backward() {
        let attention = "aten::_scaled_dot_product_flash_attention";
        assert!(roles(attention).has(Roles::ATTENTION));
        let forward = Roles::ATTENTION.and(Roles::POOL).and(Roles::FOURIER);
        let wanted = with(forward.and(Roles::FACTORIZATION).and(Roles::CONVOLUTION));
        for name in wanted {
            assert_eq!(roles(&format!("aten::{name}_backward")), Roles::default(), "{name}");
        }
    }

    #[test]
    fn a_copy_is_elementwise() {
        assert!(with(Roles::COPY).all(|name| roles(name).has(Roles::ELEMENTWISE)));
    }

    #[test]
    fn underscores_that_belong_to_the_name_stay() {
        for (op, name) in [("aten::relu_", "relu"), ("aten::__and__.Tensor", "__and__"), ("_", "_")]
        {
            assert_eq!(plain_name(op), name);
        }
    }
}
