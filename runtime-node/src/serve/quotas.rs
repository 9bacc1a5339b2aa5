//! What one client identity may ask of a node, whichever device and connection it uses.
//!
//! Memory is counted per device by the executor's ledger; here are sessions and bytes per second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Identities remembered without a session, so that a client that reconnects keeps its debt.
const IDLE_CLIENTS_MAX: usize = 4096;

/// The limits of each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    pub sessions_max: u32,
    /// Bytes of tape and tensors that a client may send in a second; bursts of one second's worth
    /// are taken at once.
    pub bytes_per_s: u64,
}

impl Default for QuotaLimits {
    fn default() -> Self {
        QuotaLimits { sessions_max: u32::MAX, bytes_per_s: u64::MAX }
    }
}

/// The clients of a node.
#[derive(Debug, Default)]
pub struct Quotas {
    limits: QuotaLimits,
    clients: Mutex<BTreeMap<String, Client>>,
}

#[derive(Debug)]
struct Client {
    sessions: u32,
    /// Bytes that may be taken at once; negative while a debt is paid off.
    allowance: f64,
    updated: Instant,
}

/// A session's place; given back on drop.
#[derive(Debug)]
pub struct Admission {
    quotas: Arc<Quotas>,
    identity: String,
}

impl Quotas {
    pub fn new(limits: QuotaLimits) -> Self {
        Quotas { limits, clients: Mutex::default() }
    }

    /// A place for one more session of a client, or why there is none.
    pub fn admit(self: &Arc<Self>, identity: &str, now: Instant) -> Result<Admission, String> {
        let mut clients = self.lock();
        if clients.len() >= IDLE_CLIENTS_MAX {
            clients.retain(|_, client| client.sessions > 0);
        }
        let client = clients.entry(identity.to_owned()).or_insert_with(|| Client {
            sessions: 0,
            allowance: self.limits.bytes_per_s as f64,
            updated: now,
        });
        if client.sessions >= self.limits.sessions_max {
            return Err(format!(
                "the client {identity:?} has {} sessions on this node already, as many as one \
                 client may; end one, or start the node with a larger --client-sessions",
                client.sessions
            ));
        }
        client.sessions += 1;
        Ok(Admission { quotas: self.clone(), identity: identity.to_owned() })
    }

    /// A panic while a number was changed leaves a number.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// Counts bytes that the client sent; returns how long it must wait before it sends more.
    pub fn take(&self, bytes: u64, now: Instant) -> Option<Duration> {
        let rate = self.quotas.limits.bytes_per_s;
        if rate == u64::MAX {
            return None;
        }
        let mut clients = self.quotas.lock();
        let client = clients.get_mut(&self.identity)?;
        let passed = now.saturating_duration_since(client.updated).as_secs_f64();
        client.updated = now;
        client.allowance = (client.allowance + passed * rate as f64).min(rate as f64);
        client.allowance -= bytes as f64;
        (client.allowance < 0.0).then(|| Duration::from_secs_f64(-client.allowance / rate as f64))
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(client) = self.quotas.lock().get_mut(&self.identity) {
            client.sessions -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_one_client_are_bounded_and_given_back() {
        let limits = QuotaLimits { sessions_max: 2, ..QuotaLimits::default() };
        let (quotas, now) = (Arc::new(Quotas::new(limits)), Instant::now());
        let first = quotas.admit("a", now).unwrap();
        let _second = quotas.admit("a", now).unwrap();
        assert!(quotas.admit("a", now).unwrap_err().contains("--client-sessions"));
        assert!(quotas.admit("b", now).is_ok());
        drop(first);
        assert!(quotas.admit("a", now).is_ok());
    }

    #[test]
    fn a_debt_is_waited_off_and_survives_a_reconnect() {
        let limits = QuotaLimits { bytes_per_s: 1000, ..QuotaLimits::default() };
        let (quotas, start) = (Arc::new(Quotas::new(limits)), Instant::now());
        let session = quotas.admit("a", start).unwrap();
        assert_eq!(session.take(1000, start), None, "one second's worth at once");
        let wait = session.take(500, start).expect("over the rate");
        assert!((0.45..0.55).contains(&wait.as_secs_f64()), "{wait:?}");
        drop(session);
        let again = quotas.admit("a", start).unwrap();
        assert!(again.take(0, start).is_some(), "the debt stays");
        assert_eq!(again.take(0, start + Duration::from_secs(1)), None);
    }
}
