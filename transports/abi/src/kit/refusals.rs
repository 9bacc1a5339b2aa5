//! Calls that make no sense, and calls for what a transport does not have.

use super::pair::Side;
use super::{Check, Kit, ensure, refused};
use crate::transport::{Capabilities, Cause, MemoryKey, Part};

pub(crate) fn senseless_calls_are_invalid(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let invalid = &[Cause::Invalid];
    let block = pair.a.block(1_000)?;
    let target = pair.b.block(1_000)?;
    let nobody = Part { key: MemoryKey(0xdead_beef), offset: 0, bytes: 1 };
    let outside = [(0, 1_001), (1_000, 1), (u64::MAX, 1), (2, u64::MAX), (1_001, 0)];

    let a = &mut pair.a.connection;
    refused("offering unknown memory", a.offer(1, nobody), invalid)?;
    refused("writing unknown memory", a.write(1, &[nobody], 1, 0), invalid)?;
    refused("withdrawing an unknown window", a.withdraw(1), invalid)?;
    refused("unregistering unknown memory", a.unregister(nobody.key), invalid)?;
    for (offset, bytes) in outside {
        let part = block.part(offset, bytes);
        let what = format!("{bytes} bytes at {offset} of 1000");
        refused(&format!("offering {what}"), a.offer(2, part), invalid)?;
        refused(&format!("writing {what}"), a.write(1, &[part], 1, 0), invalid)?;
        // Also behind a part that is fine.
        let parts = [block.part(0, 8), part];
        refused(&format!("writing 8 bytes and {what}"), a.write(1, &parts, 1, 0), invalid)?;
    }
    a.offer(3, block.part(0, 10))?;
    refused("offering one window twice", a.offer(3, block.part(0, 10)), invalid)?;

    // The numbers of refused messages are still free, and the connection works.
    pair.b.connection.offer(1, target.whole())?;
    block.fill(0, 1_000, 8, 0);
    pair.write(Side::A, 5, &[block.whole()], 1, 0)?;
    let a = &mut pair.a.connection;
    refused("a message number again", a.write(5, &[block.whole()], 1, 0), invalid)?;
    refused("a smaller message number", a.write(4, &[block.whole()], 1, 0), invalid)?;
    pair.pump("a message after refused calls", |a, b| Ok(a.written == [5] && b.placed.len() == 1))?;
    ensure!(target.differs(0, 1_000, 8).is_none(), "the message is damaged");
    Ok(())
}

pub(crate) fn calls_without_capability_are_unsupported(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    let unsupported = &[Cause::Unsupported];
    if !kit.has(Capabilities::CONTROL) {
        let sent = pair.a.connection.send_frame(1, &[b"x"], None);
        refused("a frame without control", sent, unsupported)?;
    }
    if !kit.has(Capabilities::DATA) {
        let part = Part { key: MemoryKey(0), offset: 0, bytes: 0 };
        refused("a window without data", pair.a.connection.offer(1, part), unsupported)?;
        refused("a write without data", pair.a.connection.write(1, &[], 1, 0), unsupported)?;
    }
    Ok(())
}
