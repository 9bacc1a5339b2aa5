//! Named limits: reached, refused beyond, usable after.

use super::pair::Side;
use super::{Check, Kit, Stop, ensure, refused};
use crate::transport::{Capabilities, Cause, MEMORIES_MAX, MESSAGES_MAX, Memory, WINDOWS_MAX};

/// How a transport refuses what is too many.
const REFUSED: &[Cause] = &[Cause::Invalid, Cause::OutOfCredit];

pub(crate) fn windows_are_limited(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let (source, target) = (pair.a.block(64)?, pair.b.block(64)?);
    for window in 0..WINDOWS_MAX as u32 {
        pair.b.connection.offer(window, target.whole())?;
    }
    let more = pair.b.connection.offer(WINDOWS_MAX as u32, target.whole());
    refused("a window too many", more, REFUSED)?;
    pair.b.connection.withdraw(0)?;
    pair.b.connection.offer(WINDOWS_MAX as u32, target.whole())?;
    for (message, window) in [(1, WINDOWS_MAX as u32), (2, WINDOWS_MAX as u32 - 1)] {
        pair.write(Side::A, message, &[source.whole()], window, 0)?;
    }
    pair.pump(
        "messages to the last windows",
        |a, b| Ok(a.written.len() == 2 && b.placed.len() == 2),
    )
}

pub(crate) fn memories_are_limited(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let (memory, _) = Memory::allocate(4_096).map_err(|error| Stop::Fail(error.to_string()))?;
    let mut keys = Vec::new();
    for _ in 0..MEMORIES_MAX {
        keys.push(pair.a.connection.register(memory.clone())?);
    }
    let more = pair.a.connection.register(memory.clone());
    refused("a memory too many", more, REFUSED)?;
    let count = keys.len();
    keys.sort();
    keys.dedup();
    ensure!(keys.len() == count, "two memories have one key");
    pair.a.connection.unregister(keys[7])?;
    pair.a.connection.register(memory)?;
    Ok(())
}

pub(crate) fn messages_are_limited(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let (source, target) = (pair.a.block(64)?, pair.b.block(64)?);
    let mut posted = 0;
    // To a window that is not offered: nothing can be written yet.
    let error = loop {
        match pair.a.connection.write(posted + 1, &[source.whole()], 6, 0) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
        ensure!(posted <= MESSAGES_MAX as u64, "{posted} messages were taken, none was written");
    };
    ensure!(error.cause == Cause::OutOfCredit, "a full queue is told as {:?}", error.cause);
    ensure!(posted >= 16, "only {posted} messages can wait");
    pair.b.connection.offer(6, target.whole())?;
    pair.pump("Writable, after OutOfCredit", |a, _| Ok(a.writable > 0))?;
    pair.write(Side::A, posted + 1, &[source.whole()], 6, 0)?;
    pair.pump("all messages", |a, b| {
        Ok(a.written.len() as u64 == posted + 1 && b.placed.len() as u64 == posted + 1)
    })
}

pub(crate) fn message_sizes_are_limited(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut setup = kit.setup();
    setup.listen.message_bytes_max = 1 << 20;
    setup.connect.message_bytes_max = 1 << 20;
    let mut pair = kit.pair_with(setup)?;
    let (source, target) = (pair.a.block(2 << 20)?, pair.b.block(2 << 20)?);
    pair.b.connection.offer(1, target.whole())?;
    let large = [source.part(0, 1 << 20), source.part(0, 1)];
    let written = pair.a.connection.write(1, &large, 1, 0);
    refused("a message above message_bytes_max", written, &[Cause::Invalid])?;
    pair.write(Side::A, 1, &large[..1], 1, 0)?;
    pair.pump("the largest message", |a, b| Ok(a.written == [1] && b.placed.len() == 1))
}
