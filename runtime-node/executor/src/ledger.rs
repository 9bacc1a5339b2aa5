//! Bytes in use against the node's budget, and against each client's share.

use std::collections::HashMap;
use std::sync::Arc;

use genie_wire::ErrorCode;

use crate::Failure;

/// The account of one client identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Account(usize);

#[derive(Debug)]
struct Client {
    identity: Arc<str>,
    used: u64,
}

/// Counts the bytes of one device that sessions and the weight store hold.
///
/// Whoever charges or releases says first for whom, by [`Ledger::enter`].
#[derive(Debug)]
pub(crate) struct Ledger {
    used: u64,
    budget: u64,
    /// What one identity may hold.
    client_max: u64,
    clients: Vec<Client>,
    accounts: HashMap<Arc<str>, Account>,
    current: Account,
    /// Storages of all sessions.
    pub(crate) storages: u64,
}

impl Ledger {
    pub(crate) fn new(budget: u64, client_max: u64) -> Self {
        let mut ledger = Ledger {
            used: 0,
            budget,
            client_max,
            clients: Vec::new(),
            accounts: HashMap::new(),
            current: Account(0),
            storages: 0,
        };
        ledger.account(&Arc::from(""));
        ledger
    }

    /// The account of an identity. Accounts stay: there are as many as identities that were
    /// admitted.
    pub(crate) fn account(&mut self, identity: &Arc<str>) -> Account {
        if let Some(account) = self.accounts.get(identity) {
            return *account;
        }
        let account = Account(self.clients.len());
        self.clients.push(Client { identity: identity.clone(), used: 0 });
        self.accounts.insert(identity.clone(), account);
        account
    }

    /// What follows is charged to this account; returns the one before.
    pub(crate) fn enter(&mut self, account: Account) -> Account {
        std::mem::replace(&mut self.current, account)
    }

    /// Whom is charged now.
    pub(crate) fn current(&self) -> Account {
        self.current
    }

    /// Whether it is the current client's share that has no room for `bytes` more.
    pub(crate) fn share_is_short(&self, bytes: u64) -> bool {
        bytes > self.share_left()
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that an account holds.
    pub(crate) fn used_by(&self, account: Account) -> u64 {
        self.clients[account.0].used
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// What the current client may still take.
    #[inline]
    pub(crate) fn left(&self) -> u64 {
        self.budget.saturating_sub(self.used).min(self.share_left())
    }

    /// Whether the current client's share ends before the node's memory does.
    pub(crate) fn share_is_tighter(&self) -> bool {
        self.share_left() < self.budget.saturating_sub(self.used)
    }

    fn share_left(&self) -> u64 {
        self.client_max.saturating_sub(self.used_by(self.current))
    }

    /// Whether `bytes` more fit; the error says what to do.
    #[inline]
    pub(crate) fn check(&self, bytes: u64) -> Result<(), Failure> {
        if bytes > self.left() { Err(self.full(bytes)) } else { Ok(()) }
    }

    #[cold]
    fn full(&self, bytes: u64) -> Failure {
        self.refusal(&format!("{bytes} bytes were asked for"), self.share_is_short(bytes))
    }

    /// What the device refused although the books had room.
    #[cold]
    pub(crate) fn full_device(&self, refused: &str) -> Failure {
        self.refusal(refused, self.share_is_tighter())
    }

    /// What an operator was refused while it ran, with temporaries that nobody charges.
    #[cold]
    pub(crate) fn full_while_running(&self, refused: &str) -> Failure {
        self.refusal(&format!("while the operator ran, {refused}"), self.share_is_tighter())
    }

    fn refusal(&self, asked: &str, share: bool) -> Failure {
        let client = &self.clients[self.current.0];
        let message = if share {
            format!(
                "out of memory on the node: {asked}, the client {:?} has {} \
                 of the {} bytes that one client may hold; free tensors, use a smaller batch, or \
                 give clients more with genie-node --client-memory-bytes",
                client.identity, client.used, self.client_max
            )
        } else {
            format!(
                "out of memory on the node: {asked}, {} of its {} bytes are \
                 in use; free tensors, use a smaller batch, or give genie-node more with \
                 --memory-bytes",
                self.used, self.budget
            )
        };
        Failure::new(ErrorCode::OutOfMemory, message)
    }

    /// Counts bytes that exist, whether or not they fit.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        let client = &mut self.clients[self.current.0];
        client.used = client.used.saturating_add(bytes);
    }

    pub(crate) fn release(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "no more is released than was charged");
        self.used = self.used.saturating_sub(bytes);
        let client = &mut self.clients[self.current.0];
        debug_assert!(bytes <= client.used, "it is released to the account it was charged to");
        client.used = client.used.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_anothers_share() {
        let mut ledger = Ledger::new(100, 60);
        let (a, b) = (ledger.account(&"a".into()), ledger.account(&"b".into()));
        ledger.enter(a);
        ledger.charge(50);
        let refused = ledger.check(11).unwrap_err().message;
        assert!(
            refused.contains("--client-memory-bytes") && refused.contains("\"a\""),
            "{refused}"
        );
        ledger.enter(b);
        assert!(ledger.check(50).is_ok());
        assert!(ledger.check(51).unwrap_err().message.contains("--memory-bytes"));
        ledger.enter(a);
        ledger.release(50);
        assert_eq!((ledger.used(), ledger.used_by(a)), (0, 0));
    }
}
