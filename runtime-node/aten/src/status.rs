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
    ///
    /// The error's 4 KiB are not cleared first: this is on the path of every operator.
    pub(crate) fn check(call: impl FnOnce(*mut GenieError) -> i32) -> Result<(), AtenError> {
        let mut error = std::mem::MaybeUninit::<GenieError>::uninit();
        let pointer = error.as_mut_ptr();
        // SAFETY: both places lie inside `error`.
        unsafe {
            (&raw mut (*pointer).code).write(0);
            (&raw mut (*pointer).message).cast::<u8>().write(0);
        }
        match call(pointer) {
            0 => Ok(()),
            _ => Err(AtenError::filled(pointer)),
        }
    }

    #[cold]
    fn filled(error: *const GenieError) -> AtenError {
        // SAFETY: `code` was written by `check`, and perhaps by C++ since.
        let code = unsafe { (&raw const (*error).code).read() };
        // SAFETY: `check` wrote a NUL, and C++ ends what it writes over it with one
        // (cpp/status.h), so the bytes up to the first NUL are initialised and inside `error`.
        let message = unsafe { std::ffi::CStr::from_ptr((&raw const (*error).message).cast()) };
        AtenError { code, message: message.to_string_lossy().into_owned() }
    }
}
