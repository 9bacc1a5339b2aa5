//! The life of registered memory and of windows.

use std::sync::Arc;
use std::time::Duration;

use super::pair::{Side, Stopwatch};
use super::{Check, Kit, Stop, ensure, fail, refused};
use crate::transport::{Capabilities, Cause, Memory, MemoryKind};

pub(crate) fn a_withdrawn_window_stays_untouched(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let (source, target) = (pair.a.block(5_000)?, pair.b.block(5_000)?);
    source.fill(0, 5_000, 1, 0);
    pair.b.connection.offer(1, target.whole())?;
    pair.write(Side::A, 1, &[source.part(0, 0)], 1, 0)?;
    pair.pump("an empty message", |a, b| Ok(a.written == [1] && b.placed.len() == 1))?;
    // The sender does not know yet that the window is gone: it has not been polled since.
    pair.b.connection.withdraw(1)?;
    let written = pair.a.connection.write(2, &[source.whole()], 1, 0);
    pair.pump_for(Duration::from_millis(100), |_, _| Ok(false))?;
    ensure!(target.touched(0, 5_000).is_none(), "a window was written after it was withdrawn");
    ensure!(pair.b.placed.len() == 1, "a message was placed in a window that was withdrawn");
    // The same number may be offered again, with other memory; what waited may come then.
    let fresh = pair.b.block(5_000)?;
    pair.b.connection.offer(1, fresh.whole())?;
    if written.is_ok() {
        pair.pump("the message that waited for the window", |a, _| Ok(a.written.contains(&2)))?;
    } else {
        pair.pump_for(Duration::from_millis(50), |_, _| Ok(false))?;
        pair.write(Side::A, 3, &[source.whole()], 1, 0)?;
        pair.pump("a message to the new window", |a, _| Ok(a.written.contains(&3)))?;
    }
    ensure!(fresh.differs(0, 5_000, 1).is_none(), "the new window has not the message");
    ensure!(target.touched(0, 5_000).is_none(), "the old window was written in the end");
    Ok(())
}

pub(crate) fn memory_in_use_cannot_be_unregistered(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let (source, target) = (pair.a.block(500)?, pair.b.block(500)?);
    pair.write(Side::A, 1, &[source.whole()], 4, 0)?;
    let result = pair.a.connection.unregister(source.key);
    refused("unregistering memory of a message that is not written", result, &[Cause::Invalid])?;
    pair.b.connection.offer(4, target.whole())?;
    let result = pair.b.connection.unregister(target.key);
    refused("unregistering memory of a window", result, &[Cause::Invalid])?;
    pair.pump("the message", |a, b| Ok(a.written == [1] && b.placed.len() == 1))?;
    pair.a.connection.unregister(source.key)?;
    pair.b.connection.withdraw(4)?;
    pair.b.connection.unregister(target.key)?;
    let result = pair.b.connection.unregister(target.key);
    refused("unregistering twice", result, &[Cause::Invalid])?;
    let result = pair.a.connection.write(2, &[source.whole()], 4, 0);
    refused("writing from memory that was given up", result, &[Cause::Invalid])
}

pub(crate) fn memory_is_given_up(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    let mut pair = kit.pair()?;
    let block = pair.a.block(1 << 16)?;
    ensure!(Arc::strong_count(&block.shared) > 1, "registered memory is not kept alive");
    pair.a.connection.unregister(block.key)?;
    let count = Arc::strong_count(&block.shared);
    ensure!(count == 1, "memory is kept after it was unregistered ({} owners)", count - 1);
    // A connection that goes away gives up everything, whatever it was used for.
    let (source, target) = (pair.a.block(1 << 16)?, pair.b.block(1 << 16)?);
    pair.write(Side::A, 1, &[source.whole()], 99, 0)?;
    pair.b.connection.offer(1, target.whole())?;
    let kept = [source.shared.clone(), target.shared.clone()];
    drop((source, target));
    drop(pair);
    let watch = Stopwatch::start();
    for memory in kept {
        // A transport with a thread of its own may take a moment.
        while Arc::strong_count(&memory) > 1 {
            if watch.is_over() {
                return fail("memory is kept after its connection was dropped");
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

pub(crate) fn gpu_memory_is_taken_or_refused(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::DATA)?;
    if kit.has(Capabilities::GPU_MEMORY) {
        return Err(Stop::Skip("it claims gpu-memory, which needs a GPU to be checked".into()));
    }
    let mut pair = kit.pair()?;
    let (_, host) = Memory::allocate(4_096).map_err(|error| Stop::Fail(error.to_string()))?;
    for kind in [MemoryKind::Gpu, MemoryKind::DmaBuf] {
        // SAFETY: the memory is host memory and lives in its owner; the kind is a lie that a
        // transport without gpu-memory must refuse before it looks at the address.
        let memory = unsafe { Memory::from_raw(host.address(), 4_096, kind, 0, -1, host.clone()) };
        let result = pair.a.connection.register(memory);
        refused(&format!("memory of the kind {kind:?}"), result, &[Cause::Unsupported])?;
    }
    let count = Arc::strong_count(&host);
    ensure!(count == 1, "memory that was refused is kept ({} owners)", count - 1);
    // SAFETY: as above; memory that is pinned is host memory.
    let pinned =
        unsafe { Memory::from_raw(host.address(), 4_096, MemoryKind::Pinned, 0, -1, host.clone()) };
    pair.a.connection.register(pinned)?;
    Ok(())
}
