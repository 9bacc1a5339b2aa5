//! Handshakes that are under way, on quinn's thread: who may begin one, and who gives way.
//!
//! The caller of the listener gets to know of peers whose handshake is done, that is, of those with
//! a certificate; strangers cost it nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_records::guard::{Entry, Fate, Guard, PENDING_MAX, Source, Tally};
use genie_transport::transport::{Cause, Result, TransportError};
use quinn::{Connection, ConnectionError, Endpoint, Incoming};
use tokio::task::AbortHandle;

use crate::carrier::refused;
use crate::config::Judge;
use crate::wake::Bell;

/// Peers with a finished handshake that wait for the caller's look.
const ARRIVALS_MAX: usize = PENDING_MAX;

/// A peer whose handshake is done, or why one failed.
pub(crate) type Arrival = Result<Connection>;

/// As quinn tells how one ended.
type Handshaken = std::result::Result<Connection, ConnectionError>;

/// See the module.
pub(crate) struct Handshakes {
    judge: Judge,
    tally: Arc<Tally>,
    bell: Arc<Bell>,
    arrivals: SyncSender<Arrival>,
    state: Mutex<State>,
}

struct State {
    guard: Guard,
    begun: HashMap<u64, Handshake>,
}

struct Handshake {
    peer: SocketAddr,
    task: AbortHandle,
}

impl Handshakes {
    /// What arrives rings the bell.
    pub fn new(
        judge: Judge,
        patience: Duration,
        tally: Arc<Tally>,
        bell: Arc<Bell>,
    ) -> (Arc<Self>, Receiver<Arrival>) {
        let (arrivals, waiting) = sync_channel(ARRIVALS_MAX);
        let state = Mutex::new(State { guard: Guard::new(patience), begun: HashMap::new() });
        (Arc::new(Handshakes { judge, tally, bell, arrivals, state }), waiting)
    }

    /// Lets peers begin until the endpoint is closed.
    pub async fn take_from(self: Arc<Self>, endpoint: Endpoint) {
        loop {
            let next = endpoint.accept();
            let incoming = match self.give_up(Instant::now()) {
                None => next.await,
                Some(due) => match tokio::time::timeout_at(due.into(), next).await {
                    Ok(incoming) => incoming,
                    Err(_) => continue,
                },
            };
            let Some(incoming) = incoming else { return };
            self.begin(incoming, Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, incoming: Incoming, now: Instant) {
        let peer = incoming.remote_address();
        let from = Some(peer.ip());
        let source = match incoming.remote_address_validated() {
            true => Source::of(from),
            false => Source::Unproven,
        };
        let mut state = self.state();
        if !state.guard.attempt(source, now) {
            incoming.refuse();
            return self.tally.count(Fate::OverRate, from, now);
        }
        let (number, instead_of) = match state.guard.enter(source, now) {
            Entry::Place { number, instead_of } => (number, instead_of),
            Entry::Prove => {
                // Refused only to who has proved it.
                let _ = incoming.retry();
                return self.tally.count(Fate::AskedForProof, from, now);
            }
            Entry::Full => {
                incoming.refuse();
                return self.tally.count(Fate::CrowdedOut, from, now);
            }
        };
        if let Some(loser) = instead_of.and_then(|loser| state.end(loser)) {
            self.tally.count(Fate::CrowdedOut, Some(loser.ip()), now);
        }
        // A first packet that makes no sense is nobody's connection.
        let Ok(connecting) = incoming.accept() else { return state.guard.leave(number) };
        let handshakes = self.clone();
        let handshake = async move { handshakes.ended(number, peer, connecting.await) };
        let task = tokio::spawn(handshake).abort_handle();
        state.begun.insert(number, Handshake { peer, task });
    }

    fn ended(&self, number: u64, peer: SocketAddr, result: Handshaken) {
        let (now, from) = (Instant::now(), Some(peer.ip()));
        let mut state = self.state();
        state.begun.remove(&number);
        state.guard.leave(number);
        match result {
            Ok(connection) => {
                // By a finished handshake the address is proven.
                state.guard.welcome(Source::of(from), self.judge.is_some(), now);
                if let Err(TrySendError::Full(_)) = self.arrivals.try_send(Ok(connection)) {
                    self.tally.count(Fate::CrowdedOut, from, now);
                }
                self.bell.ring();
            }
            Err(error) => {
                if self.tally.count_and_tell(Fate::Failed, from, now) {
                    self.tell(peer, refused(error, &self.judge));
                }
            }
        }
    }

    /// Ends handshakes whose time is up; says when the next one's is.
    fn give_up(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        while let Some(number) = state.guard.overdue(now) {
            state.guard.leave(number);
            let Some(peer) = state.end(number) else { continue };
            if self.tally.count_and_tell(Fate::Overdue, Some(peer.ip()), now) {
                let message = "the peer did not finish the handshake in time";
                self.tell(peer, TransportError::new(Cause::TimedOut, message));
            }
        }
        state.guard.due(now)
    }

    /// Tells the caller of the listener, if it has a look at all.
    fn tell(&self, peer: SocketAddr, error: TransportError) {
        let message = format!("{peer}: {}", error.message);
        let _ = self.arrivals.try_send(Err(TransportError::new(error.cause, message)));
        self.bell.ring();
    }

    /// Nobody waits for them any more.
    pub fn end_all(&self) {
        for (_, Handshake { task, .. }) in self.state().begun.drain() {
            task.abort();
        }
    }
}

impl State {
    /// Ends a handshake that has lost its place; says whose it was.
    fn end(&mut self, number: u64) -> Option<SocketAddr> {
        let Handshake { peer, task } = self.begun.remove(&number)?;
        task.abort();
        Some(peer)
    }
}
