//! The ids that the listening end gives to connections, and peers put on their packets.

use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator};

const ID_BYTES: usize = 8;

/// Ids that are random as a whole. Of quinn's own only three bytes are: among the ids of a thousand
/// half-open handshakes, the one that a Retry gives to a host was now and then a stranger's, and
/// the host's packets went there until that handshake was forgotten.
pub(crate) struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = genie_records::nonce().expect("the kernel has random numbers");
        ConnectionId::new(&random[..ID_BYTES])
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// With three random bytes some hundreds are given twice.
    #[test]
    fn no_id_is_given_twice() {
        let given: HashSet<ConnectionId> = (0..100_000).map(|_| RandomIds.generate_cid()).collect();
        assert_eq!(given.len(), 100_000);
    }
}
