//! The event descriptor: sleeping on it alone must be enough, and it must let its owner sleep.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::pair::{BOTH, End, Side, sleep};
use super::{Check, Kit, STEP, ensure, fail};
use crate::transport::{Capabilities, MemoryKey, Part};

/// How long a connection is left alone, and how often it may wake its owner meanwhile.
const IDLE: Duration = Duration::from_millis(500);
const IDLE_WAKES_MAX: usize = 50;
/// Round trips that are made by sleeping only.
const ROUNDS: u64 = 300;
/// Polls that one round trip may take, at both ends together, on average.
const POLLS_A_ROUND_MAX: usize = 60;

pub(crate) fn an_idle_connection_sleeps(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    // What comes with the beginning is not counted.
    pair.pump_for(Duration::from_millis(100), |_, _| Ok(false))?;
    let before = pair.a.polls + pair.b.polls;
    pair.pump_for(IDLE, |_, _| Ok(false))?;
    let polls = pair.a.polls + pair.b.polls - before;
    ensure!(
        polls <= IDLE_WAKES_MAX * 2,
        "two idle ends woke their owner for {polls} polls in {IDLE:?}"
    );
    for side in BOTH {
        let ended = &pair.end(side).ended;
        ensure!(ended.is_none(), "{side:?} failed in {IDLE:?} of silence: {ended:?}");
    }
    Ok(())
}

/// A small source for messages; the peer's go to window 1.
fn source_of(end: &mut End, data: bool) -> Check<Part> {
    if !data {
        return Ok(Part { key: MemoryKey(0), offset: 0, bytes: 0 });
    }
    let (source, target) = (end.block(64)?, end.block(64)?);
    end.connection.offer(1, target.whole())?;
    Ok(source.whole())
}

/// One small message, or a frame where there are no messages.
fn post(data: bool, end: &mut End, source: Part, round: u64) -> Check {
    match data {
        true => end.connection.write(round + 1, &[source], 1, 0)?,
        false => end.connection.send_frame(1, &[&round.to_le_bytes()], None)?,
    }
    Ok(())
}

fn arrived(end: &End) -> u64 {
    (end.placed.len() + end.frames.len()) as u64
}

pub(crate) fn no_wake_up_is_lost(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    let data = kit.has(Capabilities::DATA);
    let parts = [source_of(&mut pair.a, data)?, source_of(&mut pair.b, data)?];
    let before = pair.a.polls + pair.b.polls;
    for round in 0..ROUNDS {
        for (part, side) in parts.iter().zip(BOTH) {
            post(data, pair.end(side), *part, round)?;
            let what = format!("round {round}");
            pair.pump(&what, |a, b| {
                let there = if side == Side::A { b } else { a };
                Ok(arrived(there) > round)
            })?;
        }
    }
    let polls = pair.a.polls + pair.b.polls - before;
    ensure!(
        polls <= POLLS_A_ROUND_MAX * ROUNDS as usize,
        "{ROUNDS} round trips took {polls} polls, sleeping between them"
    );
    Ok(())
}

/// Drives one end on a thread of its own: answers everything that comes until all rounds are done
/// at both ends.
fn answer(data: bool, mut end: End, part: Part, first: bool, done: &AtomicUsize) -> Check<End> {
    let deadline = Instant::now() + STEP;
    let (mut posted, mut finished) = (0, false);
    while done.load(Ordering::Acquire) < 2 {
        end.poll();
        end.verdict()?;
        if let Some(error) = &end.ended {
            return fail(format!("it failed after {} rounds: {error}", arrived(&end)));
        }
        let due = arrived(&end) + u64::from(first);
        while posted < due.min(ROUNDS) {
            post(data, &mut end, part, posted)?;
            posted += 1;
        }
        let sent = match data {
            true => end.written.len() as u64 == ROUNDS,
            false => posted == ROUNDS && end.connection.queued_bytes() == 0,
        };
        if !finished && sent && arrived(&end) == ROUNDS {
            finished = true;
            done.fetch_add(1, Ordering::AcqRel);
        }
        ensure!(Instant::now() < deadline, "stuck after {} rounds", arrived(&end));
        if !end.arm() {
            // Who is done looks from time to time whether the other is.
            let soon = Instant::now() + Duration::from_millis(5);
            sleep(&[end.connection.event_fd()], if finished { soon } else { deadline });
        }
    }
    Ok(end)
}

pub(crate) fn ends_move_between_threads(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    let data = kit.has(Capabilities::DATA);
    let parts = [source_of(&mut pair.a, data)?, source_of(&mut pair.b, data)?];
    let (a, b, done) = (pair.a, pair.b, AtomicUsize::new(0));
    let (ours, theirs) = std::thread::scope(|scope| {
        let there = scope.spawn(|| answer(data, b, parts[1], false, &done));
        let here = answer(data, a, parts[0], true, &done);
        // A failure here must not leave the other waiting for its deadline.
        done.store(2, Ordering::Release);
        (here, there.join().expect("it returns its failure"))
    });
    // Made on one thread, used on another, and dropped on the first again.
    drop((ours?, theirs?));
    Ok(())
}
