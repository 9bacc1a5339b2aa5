//! Placed writes: windows, messages, scatter lists, completions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pair::{BOTH, Block, Pair, Placed, Side};
use super::{Check, Kit, ensure, fail, refused};
use crate::transport::{Capabilities, Cause, PARTS_MAX};

/// Sizes around the places where transports split things.
const SIZES: [u64; 14] = [
    0,
    1,
    7,
    64,
    1_199,
    1_400,
    1_500,
    4_096,
    9_000,
    65_536,
    1 << 20,
    3_000_001,
    16 << 20,
    64 << 20,
];
/// Untouched bytes around what is written.
const GUARD: u64 = 64;

/// A block at `b` with a window of `bytes` bytes in its middle.
fn guarded(pair: &mut Pair, window: u32, bytes: u64) -> Check<Block> {
    let block = pair.b.block(bytes + 2 * GUARD)?;
    pair.b.connection.offer(window, block.part(GUARD, bytes))?;
    Ok(block)
}

fn guard_is_whole(block: &Block) -> Check {
    for begin in [0, block.bytes - GUARD] {
        if let Some(at) = block.touched(begin, GUARD) {
            return fail(format!("byte {} outside the window was written", begin + at));
        }
    }
    Ok(())
}

pub(crate) fn messages_of_all_sizes_are_placed(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let limit = pair.setup.connect.message_bytes_max;
    for (number, size) in SIZES.into_iter().filter(|size| *size <= limit).enumerate() {
        let (message, window) = (number as u64 * 3 + 1, number as u32 * 5);
        let target = guarded(&mut pair, window, size + 10)?;
        let source = pair.a.block(size.max(1))?;
        source.fill(0, size, message, 0);
        pair.write(Side::A, message, &[source.part(0, size)], window, 10)?;
        pair.pump(&format!("a message of {size} bytes"), |a, b| {
            Ok(!a.written.is_empty() && !b.placed.is_empty())
        })?;
        let expect = Placed { message, window, offset: 10, bytes: size };
        ensure!(pair.b.placed == [expect], "{:?} was told, not {expect:?}", pair.b.placed);
        ensure!(pair.a.written == [message], "{:?} was written", pair.a.written);
        if let Some(at) = target.differs(GUARD + 10, size, message) {
            return fail(format!("byte {at} of {size} is wrong"));
        }
        ensure!(target.touched(GUARD, 10).is_none(), "bytes before the offset were written");
        guard_is_whole(&target)?;
        pair.a.written.clear();
        pair.b.placed.clear();
        pair.b.connection.withdraw(window)?;
        pair.b.connection.unregister(target.key)?;
        pair.a.connection.unregister(source.key)?;
    }
    Ok(())
}

pub(crate) fn a_write_waits_for_its_window(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let source = pair.a.block(100_000)?;
    source.fill(0, source.bytes, 1, 0);
    let target = pair.b.block(100_000)?;
    pair.write(Side::A, 1, &[source.whole()], 77, 0)?;
    let early = pair.pump_for(Duration::from_millis(100), |a, b| {
        Ok(!a.written.is_empty() || !b.placed.is_empty())
    })?;
    ensure!(!early, "a message was completed before its window was offered");
    ensure!(target.touched(0, target.bytes).is_none(), "memory that was not offered was written");
    pair.b.connection.offer(77, target.whole())?;
    pair.pump("the waiting message", |a, b| Ok(a.written == [1] && b.placed.len() == 1))?;
    ensure!(target.differs(0, target.bytes, 1).is_none(), "the message is damaged");
    Ok(())
}

pub(crate) fn scatter_lists_are_joined(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    // Parts of odd sizes, some empty, in turn from two memories, placed backwards in them.
    let sources = [pair.a.block(1 << 20)?, pair.a.block(1 << 20)?];
    let (mut parts, mut total, mut ends) = (Vec::new(), 0, [1 << 20, 1 << 20]);
    for number in 0..PARTS_MAX {
        let bytes = [0, 1, 333, 4_097, 20_001][number % 5];
        let which = number % 2;
        ends[which] -= bytes;
        sources[which].fill(ends[which], bytes, 5, total);
        parts.push(sources[which].part(ends[which], bytes));
        total += bytes;
    }
    let target = guarded(&mut pair, 0, total)?;
    pair.write(Side::A, 9, &parts, 0, 0)?;
    pair.pump("a scatter list", |a, b| Ok(a.written == [9] && b.placed.len() == 1))?;
    if let Some(at) = target.differs(GUARD, total, 5) {
        return fail(format!("byte {at} of {total} is wrong"));
    }
    guard_is_whole(&target)?;
    let too_many = vec![sources[0].part(0, 1); PARTS_MAX + 1];
    let written = pair.a.connection.write(10, &too_many, 0, 0);
    refused("a scatter list of too many parts", written, &[Cause::Invalid])
}

/// Messages of one direction of [`many`].
const MESSAGES: u64 = 600;
const WINDOWS: u64 = 5;
const SLOT: u64 = 6_000;

/// Many messages of many sizes into slots of several windows, from one end to the other or both
/// ways at once.
fn many(kit: &Kit<'_>, sides: &[Side]) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let slots = MESSAGES.div_ceil(WINDOWS);
    let size = |message: u64| (message * 7_919) % (SLOT + 1);
    let mut blocks = Vec::new();
    for side in sides {
        let other = if *side == Side::A { Side::B } else { Side::A };
        let source = pair.end(*side).block(MESSAGES * SLOT)?;
        let mut targets = Vec::new();
        for window in 0..WINDOWS {
            let target = pair.end(other).block(slots * SLOT)?;
            pair.end(other).connection.offer(window as u32, target.whole())?;
            targets.push(target);
        }
        blocks.push((*side, other, source, targets));
    }
    for number in 0..MESSAGES {
        for (side, _, source, _) in &blocks {
            let (from, bytes) = (number * SLOT, size(number));
            source.fill(from, bytes, number, 0);
            let (window, offset) = ((number % WINDOWS) as u32, number / WINDOWS * SLOT);
            pair.write(*side, number + 1, &[source.part(from, bytes)], window, offset)?;
        }
    }
    let ways = |side: Side| sides.contains(&side);
    pair.pump("many messages", |a, b| {
        let there = |from: &super::pair::End, to: &super::pair::End| {
            from.written.len() as u64 == MESSAGES && to.placed.len() as u64 == MESSAGES
        };
        Ok((!ways(Side::A) || there(a, b)) && (!ways(Side::B) || there(b, a)))
    })?;
    for (_, other, _, targets) in &blocks {
        let told: BTreeMap<u64, Placed> =
            pair.end(*other).placed.iter().map(|placed| (placed.message, *placed)).collect();
        for number in 0..MESSAGES {
            let (window, offset) = ((number % WINDOWS) as u32, number / WINDOWS * SLOT);
            let bytes = size(number);
            let expect = Placed { message: number + 1, window, offset, bytes };
            let have = told.get(&(number + 1));
            ensure!(have == Some(&expect), "{have:?} was told, not {expect:?}");
            let target = &targets[window as usize];
            let differs = target.differs(offset, bytes, number);
            ensure!(differs.is_none(), "message {} is damaged", number + 1);
            let behind = target.touched(offset + bytes, SLOT - bytes);
            ensure!(behind.is_none(), "bytes behind message {} were written", number + 1);
        }
    }
    // Nothing may be told again later.
    pair.pump_for(Duration::from_millis(50), |_, _| Ok(false))?;
    Ok(())
}

pub(crate) fn many_messages_come_once_each(kit: &Kit<'_>) -> Check {
    many(kit, &[Side::A])
}

pub(crate) fn both_directions_at_once(kit: &Kit<'_>) -> Check {
    many(kit, &BOTH)
}

pub(crate) fn written_means_that_the_peer_has_it(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    for (message, bytes) in [(1, 4_000), (2, 2 << 20)] {
        let source = pair.a.block(bytes)?;
        let target = pair.b.block(bytes)?;
        source.fill(0, bytes, message, 0);
        pair.b.connection.offer(message as u32, target.whole())?;
        // The other end is polled seldom: only what it has taken may be told as written.
        pair.write(Side::A, message, &[source.whole()], message as u32, 0)?;
        let mut turn = 0;
        let deadline = std::time::Instant::now() + super::STEP;
        while pair.a.written.last() != Some(&message) {
            ensure!(std::time::Instant::now() < deadline, "message {message} is never written");
            pair.a.poll();
            turn += 1;
            if turn % 50 == 0 && pair.a.written.last() != Some(&message) {
                pair.b.poll();
            }
            pair.a.verdict()?;
            if let Some(error) = &pair.a.ended {
                return fail(format!("the sender failed: {error}"));
            }
        }
        if let Some(at) = target.differs(0, bytes, message) {
            return fail(format!("it is told as written, and the peer lacks byte {at}"));
        }
        // From now on the source may change.
        source.fill(0, bytes, 999, 0);
        pair.pump("Placed", |_, b| Ok(b.placed.iter().any(|placed| placed.message == message)))?;
        let differs = target.differs(0, bytes, message);
        ensure!(differs.is_none(), "the source was read after it was told as written");
    }
    Ok(())
}

pub(crate) fn writes_outside_a_window_touch_nothing(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let wrong = [(0, 101), (100, 1), (1, 100), (u64::MAX, 1), (u64::MAX - 50, 100), (1 << 40, 8)];
    for known in [true, false] {
        for (offset, bytes) in wrong {
            let mut pair = kit.pair()?;
            let source = pair.a.block(200)?;
            source.fill(0, 200, 4, 0);
            let target = if known { Some(guarded(&mut pair, 3, 100)?) } else { None };
            if known {
                // So that the sender knows of the window: a message that fits.
                pair.write(Side::A, 1, &[source.part(0, 0)], 3, 0)?;
                pair.pump("an empty message", |a, _| Ok(a.written == [1]))?;
            }
            let what = format!("a write of {bytes} bytes at {offset} into a window of 100");
            let result = pair.a.connection.write(2, &[source.part(0, bytes)], 3, offset);
            let target = match target {
                Some(target) => target,
                None => guarded(&mut pair, 3, 100)?,
            };
            match result {
                Err(_) => refused(&what, result, &[Cause::Invalid, Cause::Protocol])?,
                Ok(()) => {
                    pair.pump_to_end(&what, |a, b| Ok(a.ended.is_some() || b.ended.is_some()))?;
                    let told = [&pair.a, &pair.b].into_iter().any(|end| {
                        let cause = end.ended.as_ref().map(|error| error.cause);
                        matches!(cause, Some(Cause::Invalid | Cause::Protocol))
                    });
                    ensure!(told, "{what} is told neither as Invalid nor as Protocol");
                }
            }
            ensure!(pair.b.placed.iter().all(|placed| placed.message != 2), "{what} was placed");
            ensure!(!pair.a.written.contains(&2), "{what} was told as written");
            guard_is_whole(&target)?;
        }
    }
    Ok(())
}
