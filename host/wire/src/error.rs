/// Why bytes from a peer were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{what} ends after {have} bytes: the message is truncated")]
    Truncated { what: &'static str, have: usize },
    #[error("{what} is {value}, above the limit of {max}")]
    TooLarge { what: &'static str, value: u64, max: u64 },
    #[error("unknown {what} {value}")]
    Unknown { what: &'static str, value: u64 },
    #[error("{what} {value} does not exist in this session")]
    NoSuch { what: &'static str, value: u64 },
    #[error("malformed {what}: {why}")]
    Malformed { what: &'static str, why: &'static str },
    #[error("malformed control message: {0}")]
    Control(String),
}

impl From<prost::DecodeError> for WireError {
    fn from(error: prost::DecodeError) -> Self {
        WireError::Control(error.to_string())
    }
}
