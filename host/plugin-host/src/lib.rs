//! Runs Genie's plugins: WASM components in a sandbox.

mod directory;

use std::process::ExitCode;

pub use directory::{DirectoryError, check_directory};

/// The main function of the child process that compiles one component.
pub fn compile_child_main() -> ExitCode {
    ExitCode::FAILURE
}
