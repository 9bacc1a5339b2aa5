//! How connections end.

use std::time::{Duration, Instant};

use super::pair::{BOTH, End, Side, sleep};
use super::{Check, DEADLINE_MS, Kit, SLACK, Stop, ensure, fail};
use crate::transport::{Capabilities, Cause};

/// Frames that are queued when a connection is closed.
const FRAMES: usize = 40;

pub(crate) fn close_delivers_and_then_tells(kit: &Kit<'_>) -> Check {
    for closing in BOTH {
        let mut pair = kit.pair()?;
        let frames = if kit.has(Capabilities::CONTROL) { FRAMES } else { 0 };
        for number in 0..frames {
            pair.end(closing).connection.send_frame(1, &[&vec![number as u8; 20_000]], None)?;
        }
        pair.end(closing).connection.close("the kit is done with it");
        pair.pump_to_end("both ends being told of a close", |a, b| {
            Ok(a.ended.is_some() && b.ended.is_some())
        })?;
        for side in BOTH {
            let error = pair.end(side).ended.as_ref().expect("waited for");
            let cause = error.cause;
            ensure!(cause == Cause::Closed, "a close is told to {side:?} as {cause:?} ({error})");
        }
        let other = if closing == Side::A { Side::B } else { Side::A };
        let came = pair.end(other).frames.len();
        ensure!(came == frames, "{came} of {frames} frames came before the end");
    }
    Ok(())
}

pub(crate) fn a_dropped_peer_is_noticed(kit: &Kit<'_>) -> Check {
    for dropped in BOTH {
        let pair = kit.pair_with(kit.setup_to_end())?;
        let listener = pair.listener;
        let (gone, mut left) = match dropped {
            Side::A => (pair.a, pair.b),
            Side::B => (pair.b, pair.a),
        };
        drop(gone);
        ends_in_time(&mut left, "its peer was dropped")?;
        drop(listener);
    }
    Ok(())
}

pub(crate) fn a_silent_peer_is_given_up(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair_with(kit.setup_to_end())?;
    if !pair.setup.silent_means_dead {
        return Err(Stop::Skip("its peers live although nobody polls them".into()));
    }
    let began = Instant::now();
    ends_in_time(&mut pair.a, "its peer fell silent")?;
    let cause = pair.a.ended.as_ref().map(|error| error.cause);
    ensure!(cause == Some(Cause::TimedOut), "silence is told as {cause:?}");
    let early = Duration::from_millis(DEADLINE_MS / 2);
    ensure!(began.elapsed() > early, "the peer was given up after {:?}", began.elapsed());
    Ok(())
}

/// Drives one end, sleeping, until it fails.
fn ends_in_time(end: &mut End, because: &str) -> Check {
    let deadline = Instant::now() + Duration::from_millis(DEADLINE_MS) + SLACK;
    while end.ended.is_none() {
        ensure!(Instant::now() < deadline, "no error within {DEADLINE_MS} ms after {because}");
        end.poll();
        if end.ended.is_none() && !end.arm() {
            sleep(&[end.connection.event_fd()], deadline);
        }
    }
    let error = end.ended.as_ref().expect("the loop ended");
    let fine = matches!(error.cause, Cause::Closed | Cause::TimedOut | Cause::Io);
    ensure!(fine, "it is told as {:?} ({error}) that {because}", error.cause);
    ensure!(!error.message.is_empty(), "the error has no text");
    Ok(())
}

pub(crate) fn calls_after_the_end_fail(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    let block = match kit.has(Capabilities::DATA) {
        true => Some(pair.a.block(100)?),
        false => None,
    };
    pair.b.connection.close("over");
    pair.pump_to_end("both ends being told of a close", |a, b| {
        Ok(a.ended.is_some() && b.ended.is_some())
    })?;
    let a = &mut pair.a.connection;
    let fails = |what: &str, failed: bool| match failed {
        true => Ok(()),
        false => fail(format!("{what} is accepted after the connection has ended")),
    };
    for _ in 0..3 {
        fails("a poll", a.poll(&mut Vec::new()).is_err())?;
        if kit.has(Capabilities::CONTROL) {
            fails("a frame", a.send_frame(1, &[b"late"], None).is_err())?;
        }
        if let Some(block) = &block {
            fails("a write", a.write(1, &[block.whole()], 1, 0).is_err())?;
        }
        a.close("again");
    }
    // Its memory can still be given up, or is with the connection.
    drop(pair);
    if let Some(block) = block {
        let watch = super::pair::Stopwatch::start();
        while std::sync::Arc::strong_count(&block.shared) > 1 {
            ensure!(!watch.is_over(), "memory is kept after its connection was dropped");
            std::thread::yield_now();
        }
    }
    Ok(())
}
