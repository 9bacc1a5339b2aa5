//! Replies a session waits for.

use genie_srg::IdMap;
use genie_wire::limits::TOKENS_MAX;
use genie_wire::record::StorageId;

use crate::SessionError;

/// Tokens of a client stay below; the host's own questions to a node use those from here on.
pub const HOST_TOKENS: u64 = 1 << 63;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Plain,
    /// A synchronous operator, whose storages become alive with its reply.
    Run {
        first_new: StorageId,
        reserve: u64,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Tokens {
    outstanding: IdMap<u64, Awaited>,
}

impl Tokens {
    pub(crate) fn len(&self) -> usize {
        self.outstanding.len()
    }

    pub(crate) fn add(&mut self, token: u64, awaited: Awaited) -> Result<(), SessionError> {
        if token >= HOST_TOKENS {
            let max = HOST_TOKENS - 1;
            return Err(SessionError::Limit { what: "token", value: token, max });
        }
        if self.outstanding.len() >= TOKENS_MAX {
            let (value, max) = (self.outstanding.len() as u64 + 1, TOKENS_MAX as u64);
            return Err(SessionError::Limit { what: "replies waited for", value, max });
        }
        match self.outstanding.insert(token, awaited) {
            None => Ok(()),
            Some(_) => Err(SessionError::TokenTaken(token)),
        }
    }

    pub(crate) fn take(&mut self, token: u64) -> Option<Awaited> {
        self.outstanding.remove(&token)
    }

    /// All tokens, in the order the client chose them.
    pub(crate) fn take_all(&mut self) -> Vec<u64> {
        let mut tokens: Vec<u64> = self.outstanding.drain().map(|(token, _)| token).collect();
        tokens.sort_unstable();
        tokens
    }
}
