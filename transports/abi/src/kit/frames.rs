//! Frames, memory beside frames, secrets.

use super::pair::{BOTH, Pair, Side, pattern};
use super::{Check, Kit, Stop, ensure, fail, refused};
use crate::SharedMemory;
use crate::transport::{Capabilities, Cause, FRAME_QUEUE_BYTES_MAX};

/// Sizes around the places where transports split things.
const SIZES: [usize; 12] =
    [0, 1, 7, 64, 1_199, 1_500, 4_096, 9_000, 65_535, 65_536, 1 << 20, 3_000_001];
/// Bytes that may be under way outside the queue: in the kernel's and the peer's buffers.
const UNDER_WAY_BYTES_MAX: usize = 256 << 20;

pub(crate) fn frames_arrive_whole_and_in_order(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::CONTROL)?;
    let mut pair = kit.pair()?;
    let limit = pair.setup.connect.frame_bytes_max as usize;
    let sizes: Vec<usize> = SIZES.into_iter().chain([limit, 0, 5]).collect();
    for (number, size) in sizes.iter().enumerate() {
        for side in BOTH {
            let body = pattern(number as u64, 0, *size);
            pair.send(side, number as u8 * 17, &[&body])?;
        }
    }
    let count = sizes.len();
    pair.pump(
        "all frames arriving",
        |a, b| Ok(a.frames.len() >= count && b.frames.len() >= count),
    )?;
    for side in BOTH {
        let frames = &pair.end(side).frames;
        ensure!(frames.len() == count, "{} frames came of {count}", frames.len());
        for (number, ((kind, body, memory), size)) in frames.iter().zip(&sizes).enumerate() {
            ensure!(*kind == number as u8 * 17, "frame {number} has the kind {kind}");
            ensure!(body.len() == *size, "frame {number} has {} bytes of {size}", body.len());
            ensure!(*body == pattern(number as u64, 0, *size), "frame {number} is damaged");
            ensure!(memory.is_none(), "memory came beside frame {number}, none was sent");
        }
    }
    Ok(())
}

pub(crate) fn frames_of_many_parts_are_one_frame(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::CONTROL)?;
    let mut pair = kit.pair()?;
    let whole = pattern(9, 0, 200_000);
    // An empty part, many small ones, more than a scatter list holds, and the rest.
    let mut parts: Vec<&[u8]> = vec![&[]];
    parts.extend(whole[..100].chunks(1));
    parts.push(&whole[100..]);
    pair.send(Side::A, 255, &parts)?;
    pair.send(Side::A, 0, &[])?;
    pair.pump("two frames arriving", |_, b| Ok(b.frames.len() == 2))?;
    ensure!(pair.b.frames[0].1 == whole, "the parts were not joined in order");
    ensure!(pair.b.frames[1].1.is_empty(), "a frame of no parts is not empty");
    Ok(())
}

pub(crate) fn frames_above_the_limit_are_refused(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::CONTROL)?;
    let mut pair = kit.pair()?;
    let body = vec![1; pair.setup.connect.frame_bytes_max as usize + 1];
    let sent = pair.a.connection.send_frame(1, &[&body], None);
    refused("a frame above the limit", sent, &[Cause::Invalid])?;
    pair.send(Side::A, 2, &[b"next"])?;
    pair.pump("a frame after one that was refused", |_, b| Ok(!b.frames.is_empty()))?;
    ensure!(pair.b.frames[0].1 == b"next", "the refused frame was sent after all");
    Ok(())
}

pub(crate) fn frames_meet_backpressure(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::CONTROL)?;
    let mut pair = kit.pair()?;
    let mut sent = 0u64;
    let bytes = 64 << 10;
    // The peer is not polled: the queue must fill up and refuse, instead of growing.
    let refused = loop {
        let mut body = pattern(sent, 0, bytes);
        body[..8].copy_from_slice(&sent.to_le_bytes());
        match pair.a.connection.send_frame(4, &[&body], None) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        let queued = pair.a.connection.queued_bytes();
        ensure!(
            queued <= (FRAME_QUEUE_BYTES_MAX + 2 * bytes) as u64,
            "{queued} bytes are queued, the limit is {FRAME_QUEUE_BYTES_MAX}"
        );
        ensure!(
            (sent as usize) * bytes < UNDER_WAY_BYTES_MAX,
            "{} bytes were taken for a peer that reads nothing",
            sent as usize * bytes
        );
    };
    ensure!(refused.cause == Cause::OutOfCredit, "a full queue is told as {:?}", refused.cause);
    pair.pump("Writable, after the peer read", |a, _| Ok(a.writable > 0))?;
    pair.send(Side::A, 5, &[b"last"])?;
    pair.pump("all frames arriving", |_, b| Ok(b.frames.len() as u64 > sent))?;
    for (number, (_, body, _)) in pair.b.frames[..sent as usize].iter().enumerate() {
        let said = u64::from_le_bytes(body[..8].try_into().expect("64 KiB"));
        ensure!(said == number as u64, "frame {said} came at place {number}");
    }
    pair.pump("an empty queue", |a, _| Ok(a.connection.queued_bytes() == 0))
}

pub(crate) fn shared_memory_goes_beside_a_frame(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::CONTROL)?;
    let mut pair = kit.pair()?;
    let failure = |error: crate::MemoryError| Stop::Fail(error.to_string());
    let memory = SharedMemory::create(1 << 20).map_err(failure)?;
    memory.write(4_000, b"seen from both sides").map_err(failure)?;
    let sent = pair.a.connection.send_frame(9, &[b"with memory"], Some(memory.fd()));
    if !kit.has(Capabilities::SHARES_MEMORY) {
        return refused("memory beside a frame", sent, &[Cause::Unsupported]);
    }
    sent?;
    pair.send(Side::A, 10, &[b"without"])?;
    pair.pump("two frames arriving", |_, b| Ok(b.frames.len() == 2))?;
    ensure!(pair.b.frames[1].2.is_none(), "memory came beside the wrong frame too");
    let Some(fd) = pair.b.frames.remove(0).2 else {
        return fail("the frame came without its memory");
    };
    let theirs = SharedMemory::adopt(fd, 1 << 20).map_err(failure)?;
    let mut read = [0; 20];
    theirs.read(4_000, &mut read).map_err(failure)?;
    ensure!(&read == b"seen from both sides", "it is other memory");
    theirs.write(0, b"back").map_err(failure)?;
    let mut read = [0; 4];
    memory.read(0, &mut read).map_err(failure)?;
    ensure!(&read == b"back", "it is a copy of the memory");
    Ok(())
}

pub(crate) fn secrets_are_equal_at_both_ends(kit: &Kit<'_>) -> Check {
    let pair = kit.pair()?;
    let secrets = |pair: &Pair, label: &[u8]| {
        let a = pair.a.connection.export_secret(label)?;
        Ok::<_, Stop>((a, pair.b.connection.export_secret(label)?))
    };
    if !kit.has(Capabilities::CONTROL) {
        let asked = pair.a.connection.export_secret(b"data 1");
        return refused("export_secret without control", asked, &[Cause::Unsupported]);
    }
    let (a, b) = secrets(&pair, b"data 1")?;
    ensure!(a == b, "the ends derive different secrets");
    ensure!(secrets(&pair, b"data 1")?.0 == a, "a label's secret changes from call to call");
    ensure!(a != [0; 32], "the secret is zero");
    let (other, _) = secrets(&pair, b"data 2")?;
    ensure!(a != other, "two labels have one secret");
    let second = kit.pair()?;
    let (elsewhere, _) = secrets(&second, b"data 1")?;
    ensure!(a != elsewhere, "two connections have one secret");
    Ok(())
}
