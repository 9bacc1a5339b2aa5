//! Errors from C++, as `cpp/status.h` lays them out.

const MESSAGE_BYTES: usize = 4095;

/// Filled by C++ when a call fails.
#[repr(C)]
pub struct GenieError {
    pub code: u8,
    pub message: [u8; MESSAGE_BYTES],
}

impl GenieError {
    pub fn empty() -> Self {
        GenieError { code: 0, message: [0; MESSAGE_BYTES] }
    }

    /// Writes an error for C++ to raise, cut at a character boundary if it is too long.
    pub fn set(&mut self, code: u8, message: &str) {
        let mut end = message.len().min(MESSAGE_BYTES - 1);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.code = code;
        self.message[..end].copy_from_slice(&message.as_bytes()[..end]);
        self.message[end] = 0;
    }

    pub fn text(&self) -> String {
        let end = self.message.iter().position(|byte| *byte == 0).unwrap_or(MESSAGE_BYTES);
        String::from_utf8_lossy(&self.message[..end]).into_owned()
    }
}

/// A failed call into libtorch. `code` is a `genie_wire::ErrorCode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtenError {
    pub code: u8,
    pub message: String,
}

impl std::fmt::Display for AtenError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for AtenError {}

impl AtenError {
    /// Runs a C call that fills an error; its result code decides.
    pub(crate) fn check(call: impl FnOnce(*mut GenieError) -> i32) -> Result<(), AtenError> {
        let mut error = GenieError::empty();
        match call(&mut error) {
            0 => Ok(()),
            _ => Err(AtenError { code: error.code, message: error.text() }),
        }
    }
}
