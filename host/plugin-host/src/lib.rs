//! Runs Genie's plugins: WASM components in a sandbox.
//!
//! A plugin sees a graph and says what it is or where it should run; see the crate
//! `genie-plugin`. This crate finds plugins in a directory, compiles them in a process of its
//! own, runs them with limits on time, memory, stack and output, and without any capability
//! but those that are granted. A plugin that fails costs speed, never an answer: it gets a
//! strike, and after three it is disabled.
//!
//! It never looks at tensors, and it decides nothing about what plugins say beyond that it is
//! well-formed. Start reading at [`PluginHost`].

mod cache;
mod check;
mod compile;
mod component;
mod directory;
mod discover;
mod engine;
mod host;
pub mod limits;
mod manifest;
mod plugin;
mod since;
mod since_v0_1;
mod state;
mod text;
mod vet;
mod watch;

pub use compile::{Compiler, compile_child_main};
pub use component::Shape;
pub use directory::{DirectoryError, check_directory};
pub use host::{OpenError, PluginHost, Rescan, Settings};
pub use limits::Limits;
pub use manifest::{Capability, Kind, Manifest};
pub use plugin::{Call, CallError, PluginState, PluginStatus};
pub use watch::{WATCH_EVERY, Watch};
