//! Waiting without holding the interpreter.

use crate::client::ClientError;

/// How the client talks to the interpreter around a wait. No function is called with a lock of
/// the client held that a thread holding the interpreter may wait for.
pub struct Hooks {
    /// Gives up the interpreter if this thread holds it; returns what `restore` needs, or 0.
    pub release: fn() -> usize,
    pub restore: fn(usize),
    /// Lets signal handlers run; whether one raised. Called without the interpreter.
    pub interrupted: fn() -> bool,
}

/// For programs without an interpreter.
pub static NO_INTERPRETER: Hooks = Hooks { release: || 0, restore: |_| (), interrupted: || false };

/// Holds the interpreter released from [`Pause::enter`] until it is dropped.
pub struct Pause<'a> {
    hooks: &'a Hooks,
    released: Option<usize>,
    brief: bool,
}

impl<'a> Pause<'a> {
    pub fn new(hooks: &'a Hooks) -> Self {
        Pause { hooks, released: None, brief: false }
    }

    /// A wait of at most one slice, for callers that can neither raise nor give the interpreter
    /// up: they may hold locks of their own that a thread with the interpreter waits for. It ends
    /// as soon as a signal might have come in; their return lets the interpreter handle it.
    pub fn brief(hooks: &'a Hooks) -> Self {
        Pause { brief: true, ..Pause::new(hooks) }
    }

    pub fn enter(&mut self) {
        if self.released.is_none() && !self.brief {
            self.released = Some((self.hooks.release)());
        }
    }

    /// Fails when a signal handler raised.
    pub fn check(&self) -> Result<(), ClientError> {
        if self.brief || (self.hooks.interrupted)() {
            return Err(ClientError::interrupted());
        }
        Ok(())
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.released.take() {
            (self.hooks.restore)(state);
        }
    }
}
