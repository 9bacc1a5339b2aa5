//! The extension module: the session behind the shim's `GenieTape`, and Python's view of it.

mod debug;
mod ending;
mod fallbacks;
mod gil;
mod local;
mod module;
mod state;
mod tape;
