//! Questions for weights: which of these bytes does the node have?
//!
//! Parameters and buffers of a module that moves to the device are announced before it does
//! ([`begin_weights`]): then one question asks for many. What the node has it binds to storages of
//! the question's own, which hold it until it is bound to the program's.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};

use genie_wire::StorageId;
use genie_wire::control::{Have, WantedWeight};
use genie_wire::frame::FrameKind;
use genie_wire::limits::WANTED_MAX;
use genie_wire::record::WeightHash;

use crate::client::core::{Answer, Core, Leftover};
use crate::client::limits::{ASK_AHEAD_BYTES, WEIGHT_BYTES_MIN};
use crate::client::session::Session;
use crate::client::{ClientError, Pause};

/// Bytes of the program, by place: their address and length.
type Place = (usize, usize);

/// The weights that a thread is moving.
struct Moving {
    /// What was announced and not uploaded yet.
    announced: HashSet<Place>,
    /// What of that was not asked for yet, in the order in which it will be uploaded.
    ahead: VecDeque<Place>,
    /// Asked for, until they are uploaded.
    asked: HashMap<Place, Known>,
    /// The serial of the session that was asked, or 0: a new one knows nothing of this.
    session: u64,
}

/// What is known of an announced weight.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) hash: WeightHash,
    /// The storage that holds it on the node; `None` when the node does not have it.
    pub(super) held_by: Option<StorageId>,
}

thread_local! {
    static MOVING: RefCell<Option<Moving>> = const { RefCell::new(None) };
}

/// This thread is about to upload the bytes at these addresses, of these lengths, in about this
/// order, as weights.
///
/// # Safety
/// All of them may be read until they were uploaded, or until [`end_weights`].
pub unsafe fn begin_weights(places: impl IntoIterator<Item = Place>) {
    let mut announced = HashSet::new();
    let large = |place: &Place| place.1 as u64 >= WEIGHT_BYTES_MIN && announced.insert(*place);
    let ahead = places.into_iter().filter(large).collect();
    let moving = Moving { announced, ahead, asked: HashMap::new(), session: 0 };
    MOVING.with_borrow_mut(|slot| *slot = Some(moving));
}

/// What was announced was uploaded, or will not be. `session` is the current one, if there is one.
pub fn end_weights(session: Option<&Session>) {
    let Some(moving) = MOVING.with_borrow_mut(Option::take) else { return };
    let Some(session) = session.filter(|session| session.serial == moving.session) else {
        return;
    };
    for held_by in moving.asked.into_values().filter_map(|known| known.held_by) {
        session.let_go(held_by);
    }
}

/// Whether this thread is moving a module.
pub(super) fn is_moving() -> bool {
    MOVING.with_borrow(Option::is_some)
}

impl Session {
    /// What the node knows of an announced weight, which may mean to ask; `None` if `bytes` were
    /// not announced.
    pub(super) fn announced(
        &self,
        bytes: &[u8],
        pause: &mut Pause,
    ) -> Result<Option<Known>, ClientError> {
        let place = (bytes.as_ptr().addr(), bytes.len());
        let was_announced = MOVING.with_borrow_mut(|slot| {
            let Some(moving) = slot else { return false };
            if moving.session != self.serial {
                moving.session = self.serial;
                moving.asked.clear();
            }
            moving.announced.remove(&place)
        });
        if !was_announced {
            return Ok(None);
        }
        loop {
            let window = MOVING.with_borrow_mut(|slot| {
                let moving = slot.as_mut()?;
                match moving.asked.remove(&place) {
                    Some(known) => Some(Err(known)),
                    None => Some(Ok(next_window(moving))),
                }
            });
            match window {
                Some(Err(known)) => return Ok(Some(known)),
                Some(Ok(window)) if !window.is_empty() => self.ask_ahead(&window, pause)?,
                // A question was interrupted, or the session is another now.
                _ => return Ok(None),
            }
        }
    }

    /// Asks for announced weights, before they are uploaded.
    fn ask_ahead(&self, window: &[Place], pause: &mut Pause) -> Result<(), ClientError> {
        pause.enter();
        let hashes: Vec<WeightHash> = window
            .iter()
            .map(|(at, len)| {
                // SAFETY: who announced the place promised it.
                let bytes = unsafe { std::slice::from_raw_parts(*at as *const u8, *len) };
                blake3::hash(bytes).into()
            })
            .collect();
        let first = {
            let mut core = self.lock();
            core.live()?;
            if !core.reserve_storages(window.len() as u64) {
                return Ok(());
            }
            let first = core.tape.next_storage().0;
            core.tape.skip(window.len() as u64);
            first
        };
        let wanted = |(index, (hash, place)): (u64, (&WeightHash, &Place))| WantedWeight {
            storage: first + index,
            bytes: place.1 as u64,
            hash: hash.to_vec(),
        };
        let wanted = (0..).zip(hashes.iter().zip(window)).map(wanted).collect();
        let found = self.ask_for_weights(wanted, Leftover::Held { first }, pause)?;
        let missing = found.iter().filter(|found| !**found).count();
        self.lock().unreserve_storages(missing as u64);
        let known = (first..).zip(window).zip(hashes).zip(found);
        MOVING.with_borrow_mut(|slot| {
            let Some(moving) = slot else { return };
            moving.asked.extend(known.map(|(((id, place), hash), found)| {
                (*place, Known { hash, held_by: found.then_some(StorageId(id)) })
            }));
        });
        Ok(())
    }

    /// Which of these the node has; what it has is now the content of its storage.
    pub(super) fn ask_for_weights(
        &self,
        wanted: Vec<WantedWeight>,
        leftover: Leftover,
        pause: &mut Pause,
    ) -> Result<Vec<bool>, ClientError> {
        let count = wanted.len();
        let token = {
            let mut core = self.lock_to_ask(Core::may_ask, None)?;
            let token = core.open_token();
            core.send_control(FrameKind::Have, &Have { token, wanted });
            core.counters.weight_queries += 1;
            core.counters.round_trips += 1;
            token
        };
        match self.answer_paused(token, leftover, None, pause)? {
            Answer::Have(found) if found.len() == count => Ok(found),
            _ => Err(ClientError::protocol(
                "the host's answer does not fit the question for weights",
            )),
        }
    }

    /// A storage that was bound for the program is not needed any more.
    pub(super) fn let_go(&self, id: StorageId) {
        let mut core = self.lock();
        if core.end.is_none() {
            core.free(id);
            core.sleeper.wake();
        }
    }
}

/// The next weights to ask for: as many as one message may name, up to a number of bytes, so that
/// the node has something to do while the rest is hashed.
fn next_window(moving: &mut Moving) -> Vec<Place> {
    let mut bytes = 0;
    let mut window = Vec::new();
    while bytes < ASK_AHEAD_BYTES
        && window.len() < WANTED_MAX
        && let Some(place) = moving.ahead.pop_front()
    {
        bytes += place.1 as u64;
        window.push(place);
    }
    window
}
