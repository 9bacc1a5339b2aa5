//! Operators by what they do with data, where their names alone tell.

/// Operators that read a few rows of their first operand, which may be a huge table.
pub const GATHERS: [&str; 7] = [
    "embedding",
    "embedding_bag",
    "_embedding_bag",
    "_embedding_bag_forward_only",
    "index_select",
    "index",
    "gather",
];

/// Operators that write a part of their first operand in place.
pub const PART_WRITES: [&str; 7] = [
    "index_copy_",
    "index_put_",
    "_index_put_impl_",
    "index_add_",
    "index_fill_",
    "scatter_",
    "scatter_add_",
];

/// Operators that draw from the generator. A column `random` of the graph (one number a node)
/// overrules this list.
pub const RANDOM: [&str; 24] = [
    "bernoulli",
    "bernoulli_",
    "binomial",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "multinomial",
    "native_dropout",
    "_fused_dropout",
    "normal",
    "normal_",
    "poisson",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "random",
    "random_",
    "randperm",
    "rrelu_with_noise",
    "uniform_",
];
