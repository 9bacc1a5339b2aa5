//! The memory of a device, lent to the workers that use it: nobody gets what another has in use.
//!
//! When it is short, first what others were lent and do not use is taken back, then workers without
//! sessions end, and the others give up weights that no tensor uses. Meanwhile whoever asked waits.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use genie_channel::message::Shed;
use genie_channel::{Ask, Lender, Message};
use rustix::event::epoll;

use super::{Gate, OBITUARY_MAX};

/// What a worker is lent at once, if that much is free, so that it seldom asks.
const STEP_BYTES: u64 = 64 << 20;
/// How long one who asks waits for others to give up what they do not need. They cannot while an
/// operator runs.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A question that waits for memory of others.
pub(super) struct Waiting {
    worker: u64,
    ask: Ask,
    /// Workers that end, or give up weights.
    others: BTreeSet<u64>,
    pub(super) until: Instant,
}

impl Waiting {
    pub(super) fn is_of(&self, worker: u64) -> bool {
        self.worker == worker
    }
}

impl Gate {
    /// A worker asks for more memory.
    pub(super) fn hear_lender(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        let ask = match worker.lender.asked() {
            Ok(Some(ask)) => ask,
            Ok(None) => return,
            // It is gone, or broken, which its channel and its end tell.
            Err(_) => {
                let _ = epoll::delete(&self.epoll, worker.lender.event_fd());
                return;
            }
        };
        let device = worker.key.1;
        if self.lend(id, ask.wanted) {
            return self.answer(id, ask);
        }
        let possible = ask.wanted <= self.worker_max(device);
        let others =
            if possible { self.make_room(id, device, ask.wanted) } else { BTreeSet::new() };
        if others.is_empty() {
            return self.answer(id, ask);
        }
        self.waiting.push(Waiting { worker: id, ask, others, until: Instant::now() + WAIT_MAX });
    }

    /// Lends a new worker what it begins with, if that is free.
    pub(super) fn lend_first(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        self.lend(id, STEP_BYTES.min(self.worker_max(worker.key.1)));
    }

    /// Somebody gave up memory, or ended.
    pub(super) fn memory_came(&mut self, from: u64) {
        for mut one in std::mem::take(&mut self.waiting) {
            one.others.remove(&from);
            if self.lend(one.worker, one.ask.wanted) || one.others.is_empty() {
                self.answer(one.worker, one.ask);
            } else {
                self.waiting.push(one);
            }
        }
    }

    /// Who waited long enough is told no.
    pub(super) fn end_waits(&mut self, now: Instant) {
        let (late, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| one.until <= now);
        self.waiting = waiting;
        let late: Vec<Waiting> = late;
        late.into_iter().for_each(|one| self.answer(one.worker, one.ask));
    }

    fn answer(&self, id: u64, ask: Ask) {
        if let Some(worker) = self.workers.get(&id) {
            worker.lender.answer(ask);
        }
    }

    /// What one worker of a device may have in use.
    fn worker_max(&self, device: u32) -> u64 {
        let device = device as usize;
        self.limits[device].0.memory_bytes.min(self.facts.devices[device].memory_bytes)
    }

    /// What all workers of a device may have in use.
    fn lent_max(&self, device: u32) -> u64 {
        let total = self.facts.devices[device as usize].memory_bytes;
        total.saturating_sub(self.shelf.bytes(device))
    }

    /// Whether a device has so many bytes left for what workers share.
    pub(super) fn has_room(&mut self, device: u32, bytes: u64) -> bool {
        let total = self.lent_max(device);
        let workers = self.workers.values_mut().filter(|worker| worker.key.1 == device);
        let mut lenders: Vec<&mut Lender> = workers.map(|worker| &mut worker.lender).collect();
        let lent: u64 = lenders.iter().map(|lender| lender.lease()).sum();
        let mut free = total.saturating_sub(lent);
        for lender in &mut lenders {
            if free < bytes {
                free += lender.take_back();
            }
        }
        free >= bytes
    }

    /// Whether the worker may have so many bytes in use, after this.
    fn lend(&mut self, id: u64, wanted: u64) -> bool {
        let Some(device) = self.workers.get(&id).map(|worker| worker.key.1) else { return false };
        let (max, total) = (self.worker_max(device), self.lent_max(device));
        let mut asker = None;
        let mut others = Vec::new();
        for (other, worker) in self.workers.iter_mut().filter(|(_, worker)| worker.key.1 == device)
        {
            match *other == id {
                true => asker = Some(&mut worker.lender),
                false => others.push(&mut worker.lender),
            }
        }
        asker.is_some_and(|asker| lend(asker, &mut others, total, max, wanted))
    }

    /// Has others of the device give up what they do not need; returns who they are.
    fn make_room(&mut self, asker: u64, device: u32, wanted: u64) -> BTreeSet<u64> {
        let mut others = BTreeSet::new();
        let lease = self.workers.get(&asker).map_or(0, |worker| worker.lender.lease());
        let mut short = wanted.saturating_sub(lease);
        let mut idle: Vec<(Option<Instant>, u64)> = self
            .workers
            .iter()
            .filter(|(id, worker)| **id != asker && worker.key.1 == device)
            .filter(|(_, worker)| worker.sessions.is_empty() && worker.lender.lease() > 0)
            .map(|(id, worker)| (worker.idle_since, *id))
            .collect();
        idle.sort();
        for (_, id) in idle {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            others.insert(id);
            if worker.ending.is_none() {
                tracing::debug!(pid = worker.pid, "an idle worker is ended: memory is short");
                worker.asked = true;
                worker.ending = Some(Instant::now() + OBITUARY_MAX);
                self.nursery.end(id);
            }
            short = short.saturating_sub(self.workers[&id].lender.lease());
            if short == 0 {
                return others;
            }
        }
        let waits: BTreeSet<u64> = self.waiting.iter().map(|one| one.worker).collect();
        let busy: Vec<u64> = self
            .workers
            .iter()
            .filter(|(id, worker)| **id != asker && worker.key.1 == device && !waits.contains(id))
            .filter(|(_, worker)| worker.ending.is_none() && worker.lender.lease() > 0)
            .map(|(id, _)| *id)
            .collect();
        for id in busy {
            if self.post(id, Message::Shed(Shed { bytes: short }), vec![]) {
                others.insert(id);
            }
        }
        others
    }
}

/// Lends `asker` enough for `wanted` bytes in use of the `total` of its device, and up to a step
/// more, but no more than `max`.
fn lend(asker: &mut Lender, others: &mut [&mut Lender], total: u64, max: u64, wanted: u64) -> bool {
    if wanted <= asker.lease() {
        return true;
    }
    if wanted > max {
        return false;
    }
    let lent: u64 = others.iter().map(|other| other.lease()).sum();
    let mut free = total.saturating_sub(lent);
    for other in others {
        if free >= wanted {
            break;
        }
        free += other.take_back();
    }
    if free < wanted {
        return false;
    }
    let step = wanted.checked_next_multiple_of(STEP_BYTES).unwrap_or(wanted);
    asker.lend(step.min(max).min(free));
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use genie_channel::Borrower;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pair() -> (Lender, Borrower) {
        let (lender, page, socket) = Lender::new().unwrap();
        (lender, Borrower::adopt(page, socket).unwrap())
    }

    #[test]
    fn more_is_lent_than_asked_for_while_there_is() {
        let (mut one, _) = pair();
        let (mut other, _) = pair();
        assert!(lend(&mut one, &mut [&mut other], 100 * MIB, 100 * MIB, 1));
        assert_eq!(one.lease(), 64 * MIB);
        assert!(lend(&mut other, &mut [&mut one], 100 * MIB, 30 * MIB, 1));
        assert_eq!((other.lease(), one.lease()), (30 * MIB, 64 * MIB), "its own limit");
        assert!(!lend(&mut other, &mut [&mut one], 100 * MIB, 30 * MIB, 31 * MIB));
    }

    #[test]
    fn what_another_uses_stays_and_what_it_does_not_is_taken_back() {
        let (mut one, uses) = pair();
        let (mut other, _) = pair();
        let total = 100 * MIB;
        assert!(lend(&mut one, &mut [&mut other], total, total, 90 * MIB));
        uses.in_use().store(50 * MIB, Ordering::SeqCst);
        assert!(!lend(&mut other, &mut [&mut one], total, total, 51 * MIB));
        assert_eq!((other.lease(), one.lease()), (0, 50 * MIB));
        assert!(lend(&mut other, &mut [&mut one], total, total, 50 * MIB));
        assert_eq!(other.lease() + one.lease(), total);
        assert!(!lend(&mut one, &mut [&mut other], total, total, 51 * MIB + total));
        // The other gave back, or never took.
        assert!(lend(&mut one, &mut [&mut other], total, total, 60 * MIB));
        assert_eq!((one.lease(), other.lease()), (64 * MIB, 0));
    }

    #[test]
    fn whoever_claims_nonsense_gets_nothing() {
        let (mut one, _) = pair();
        assert!(!lend(&mut one, &mut [], 100, 100, u64::MAX));
        assert!(lend(&mut one, &mut [], 100, u64::MAX, 100));
        assert_eq!(one.lease(), 100);
    }
}
