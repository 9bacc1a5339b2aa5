//! Who may begin to connect, and who gives way: strangers must not keep friends out.
//!
//! A peer that has not shown yet who it is holds one of a bounded number of *places*. When they are
//! taken, somebody gives way to the newcomer: the oldest of the source that holds most, so a source
//! crowds out itself before others. Sources where somebody authenticated lately do not give way to
//! strangers. What strangers cost is bounded by rates of attempts in vain.
//!
//! No I/O and no clock. Listeners ask; [`crate::Reception`] does for those of its callers.

mod attempts;
mod recent;
mod source;
mod tally;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use self::attempts::Attempts;
pub use self::attempts::{
    ATTEMPTS_ADDRESSES_MAX, ATTEMPTS_BURST, ATTEMPTS_OF_ADDRESS_BURST, ATTEMPTS_OF_ADDRESS_PER_S,
    ATTEMPTS_PER_S,
};
use self::recent::Recent;
pub use self::source::Source;
pub use self::tally::{Fate, TOLD_EVERY, TOLD_SINGLY_MAX, Tally};

/// Peers that may be in the middle of showing who they are, of all sources and of one.
pub const PENDING_MAX: usize = 256;
pub const PENDING_OF_ADDRESS_MAX: usize = 128;
/// Of these, peers that have not shown that they are at their address. More are asked to, and so is
/// everybody under load.
pub const UNPROVEN_MAX: usize = 32;
/// With more peers pending than this there is load, and strangers get the short time.
pub const LOADED_ABOVE: usize = 64;
/// The short time; otherwise it is `connect_ms` of the listener.
pub const PATIENCE_UNDER_LOAD: Duration = Duration::from_secs(3);
/// Addresses that are remembered because somebody authenticated there, and for how long.
pub const FRIENDS_MAX: usize = 1024;
pub const FRIENDS_FOR: Duration = Duration::from_secs(24 * 60 * 60);

struct Place {
    source: Source,
    since: Instant,
}

/// The answer to a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has the place of this number, which another may have lost.
    Place { number: u64, instead_of: Option<u64> },
    /// It must show first that it is at its address.
    Prove,
    /// Only friends are here.
    Full,
}

/// See the module.
pub struct Guard {
    patience: Duration,
    /// By number, so the oldest first.
    places: BTreeMap<u64, Place>,
    held: HashMap<Source, usize>,
    last: u64,
    attempts: Attempts,
    friends: Recent<Instant>,
}

impl Guard {
    /// `patience` is the time that a peer has where there is no crowd.
    pub fn new(patience: Duration) -> Self {
        Guard {
            patience,
            places: BTreeMap::new(),
            held: HashMap::new(),
            last: 0,
            attempts: Attempts::new(),
            friends: Recent::new(FRIENDS_MAX),
        }
    }

    /// Before anything is done for a source that costs time; `false`: there was too much of it.
    pub fn attempt(&mut self, source: Source, now: Instant) -> bool {
        self.attempts.take(source, self.is_friend(source, now), now)
    }

    /// A newcomer asks for a place.
    pub fn enter(&mut self, source: Source, now: Instant) -> Entry {
        let held = self.held.get(&source).copied().unwrap_or(0);
        let (loaded, full) = (self.is_loaded(), self.places.len() >= PENDING_MAX);
        let loser = if source == Source::Unproven && (loaded || held >= UNPROVEN_MAX) {
            return Entry::Prove;
        } else if source.is_address() && held >= PENDING_OF_ADDRESS_MAX {
            self.oldest(|place| place.source == source)
        } else if full {
            let loser = self.most_crowded(self.is_friend(source, now), now);
            if loser.is_none() {
                return Entry::Full;
            }
            loser
        } else {
            None
        };
        if let Some(loser) = loser {
            self.leave(loser);
        }
        self.last += 1;
        self.places.insert(self.last, Place { source, since: now });
        *self.held.entry(source).or_default() += 1;
        Entry::Place { number: self.last, instead_of: loser }
    }

    /// It is gone, or has shown who it is.
    pub fn leave(&mut self, number: u64) {
        let Some(place) = self.places.remove(&number) else { return };
        if let Some(held) = self.held.get_mut(&place.source) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&place.source);
            }
        }
    }

    /// Somebody got in: its attempt is free, and where `authenticated`, its source is a friend's.
    pub fn welcome(&mut self, source: Source, authenticated: bool, now: Instant) {
        self.attempts.give_back(source, self.is_friend(source, now));
        if authenticated && source.is_address() {
            *self.friends.see(source, || now) = now;
        }
    }

    /// A peer whose time is up; ask again until there is none.
    pub fn overdue(&self, now: Instant) -> Option<u64> {
        self.first_due(now).filter(|(_, due)| *due <= now).map(|(number, _)| number)
    }

    /// When [`Guard::overdue`] should be asked next.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.first_due(now).map(|(_, due)| due)
    }

    fn first_due(&self, now: Instant) -> Option<(u64, Instant)> {
        let (number, oldest) = self.places.first_key_value()?;
        let calm = (*number, oldest.since + self.patience);
        if !self.is_loaded() || self.patience <= PATIENCE_UNDER_LOAD {
            return Some(calm);
        }
        let stranger = self.places.iter().find(|(_, place)| !self.is_friend(place.source, now));
        let short = stranger.map(|(number, place)| (*number, place.since + PATIENCE_UNDER_LOAD));
        short.into_iter().chain([calm]).min_by_key(|(_, due)| *due)
    }

    fn is_loaded(&self) -> bool {
        self.places.len() > LOADED_ABOVE
    }

    fn is_friend(&self, source: Source, now: Instant) -> bool {
        let met = self.friends.get(source);
        source == Source::Here
            || met.is_some_and(|met| now.saturating_duration_since(*met) < FRIENDS_FOR)
    }

    fn oldest(&self, is_one: impl Fn(&Place) -> bool) -> Option<u64> {
        self.places.iter().find(|(_, place)| is_one(place)).map(|(number, _)| *number)
    }

    /// The oldest place of a source that holds as many as any. Friends give way only to a friend,
    /// and where there are no strangers.
    fn most_crowded(&self, for_friend: bool, now: Instant) -> Option<u64> {
        let loser = |friends: bool| {
            let of = |source: &Source| self.is_friend(*source, now) == friends;
            let held = self.held.iter().filter(|(source, _)| of(source));
            let most = held.map(|(_, held)| *held).max()?;
            self.oldest(|place| self.held[&place.source] == most && of(&place.source))
        };
        loser(false).or_else(|| loser(true).filter(|_| for_friend))
    }
}

#[cfg(test)]
mod tests;
