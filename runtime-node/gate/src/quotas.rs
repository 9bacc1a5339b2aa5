//! How many sessions one client may have: by what its host proved to be, not by what it says.
//!
//! Memory and bytes a second are its workers' (`genie_channel::message::Limits`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The limits of each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    pub sessions_max: u32,
}

impl Default for QuotaLimits {
    fn default() -> Self {
        QuotaLimits { sessions_max: u32::MAX }
    }
}

/// The clients of a node that have sessions.
#[derive(Debug, Default)]
pub struct Quotas {
    limits: QuotaLimits,
    clients: Rc<RefCell<BTreeMap<String, u32>>>,
}

/// A session's place; given back on drop.
#[derive(Debug)]
pub(crate) struct Admission {
    clients: Rc<RefCell<BTreeMap<String, u32>>>,
    identity: String,
}

impl Quotas {
    pub fn new(limits: QuotaLimits) -> Self {
        Quotas { limits, clients: Rc::default() }
    }

    /// A place for one more session of a client, or why there is none.
    pub(crate) fn admit(&self, identity: &str) -> Result<Admission, String> {
        let mut clients = self.clients.borrow_mut();
        let sessions = clients.get(identity).copied().unwrap_or(0);
        if sessions >= self.limits.sessions_max {
            return Err(format!(
                "the client {identity:?} has {sessions} sessions on this node already, as many as \
                 one client may; end one, or start the node with a larger --client-sessions"
            ));
        }
        clients.insert(identity.to_owned(), sessions + 1);
        Ok(Admission { clients: self.clients.clone(), identity: identity.to_owned() })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut clients = self.clients.borrow_mut();
        if let Some(sessions) = clients.get_mut(&self.identity) {
            *sessions -= 1;
            if *sessions == 0 {
                clients.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_client_are_bounded_and_given_back() {
        let quotas = Quotas::new(QuotaLimits { sessions_max: 2 });
        let first = quotas.admit("a").unwrap();
        let _second = quotas.admit("a").unwrap();
        assert!(quotas.admit("a").unwrap_err().contains("--client-sessions"));
        assert!(quotas.admit("b").is_ok());
        drop(first);
        assert!(quotas.admit("a").is_ok());
        assert_eq!(quotas.clients.borrow().len(), 1, "who has none is forgotten");
    }
}
