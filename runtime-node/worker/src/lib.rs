//! The executor on libtorch.
//!
//! A node's workers run it in processes of their own (`genie-worker`), the front end's mode `local` in
//! the program's ([`local`]).

pub mod aten;
pub mod local;
