//! Why a call of the client failed.

use genie_wire::ErrorCode;

/// The code of an error that carries no [`ErrorCode`]: a signal handler raised, the exception
/// waits beside it.
pub const INTERRUPTED: u8 = 255;

/// An error on its way to becoming an exception. `code` is an [`ErrorCode`], [`INTERRUPTED`], or
/// the `code` of one of Python's own (`genie.errors`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ClientError {
    pub code: u8,
    pub message: String,
}

impl ClientError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ClientError { code: code as u8, message: message.into() }
    }

    pub fn interrupted() -> Self {
        ClientError { code: INTERRUPTED, message: "interrupted by a signal".into() }
    }

    pub fn protocol(message: impl Into<String>) -> Self {
        ClientError::new(ErrorCode::Protocol, message)
    }

    /// The session is over. `why` says what happened to which process, and perhaps what to do.
    pub fn lost(why: impl std::fmt::Display) -> Self {
        let mut message = why.to_string();
        if !message.contains("genie.init()") {
            message.push_str(
                ". Tensors on remote_accelerator are gone with it; genie.init() starts a new \
                 session in this process",
            );
        }
        ClientError::new(ErrorCode::NodeLost, message)
    }

    pub fn is_interrupt(&self) -> bool {
        self.code == INTERRUPTED
    }
}
