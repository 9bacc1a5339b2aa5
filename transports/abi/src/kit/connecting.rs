//! Facts, probing, listening, connecting.

use std::time::{Duration, Instant};

use super::pair::{BOTH, End, meet, sleep};
use super::{CONNECT_MS, Check, Kit, SLACK, STEP, ensure, fail};
use crate::import::is_name;
use crate::transport::Capabilities;

/// Connections that exist at the same time.
const MANY: usize = 24;

pub(crate) fn facts_name_the_transport(kit: &Kit<'_>) -> Check {
    let facts = &kit.facts;
    ensure!(is_name(&facts.name), "the name {:?} is not a word of lower case", facts.name);
    ensure!(!facts.version.is_empty(), "the version is empty");
    ensure!(
        kit.has(Capabilities::CONTROL) || kit.has(Capabilities::DATA),
        "it claims neither control nor data"
    );
    ensure!(kit.transport.facts() == *facts, "the facts change from call to call");
    Ok(())
}

pub(crate) fn probe_answers_in_one_line(kit: &Kit<'_>) -> Check {
    let line = kit.transport.probe(&kit.setup().listen)?;
    ensure!(!line.is_empty() && !line.contains('\n'), "{line:?} is not one line");
    Ok(())
}

pub(crate) fn nonsense_addresses_are_refused(kit: &Kit<'_>) -> Check {
    for address in ["\0", "no such place \0 at all", "\u{7f}:::::"] {
        let mut setup = kit.setup_in_vain();
        setup.listen.address = address.into();
        setup.connect.address = address.into();
        let listener = kit.transport.listen(&setup.listen);
        ensure!(listener.is_err(), "it listens on the address {address:?}");
        if let Ok(connection) = kit.transport.connect(&setup.connect) {
            ends_unconnected(kit, End::new(connection), address)?;
        }
    }
    Ok(())
}

pub(crate) fn nobody_there_is_told_in_time(kit: &Kit<'_>) -> Check {
    let mut setup = kit.setup_in_vain();
    let listener = kit.transport.listen(&setup.listen)?;
    setup.connect.address = listener.address();
    drop(listener);
    match kit.transport.connect(&setup.connect) {
        Ok(connection) => ends_unconnected(kit, End::new(connection), "where nobody listens"),
        Err(error) => {
            ensure!(!error.message.is_empty(), "the error has no text");
            Ok(())
        }
    }
}

/// Waits for the error of a connection that cannot come about.
fn ends_unconnected(_kit: &Kit<'_>, mut end: End, to: &str) -> Check {
    let deadline = Instant::now() + Duration::from_millis(CONNECT_MS) + SLACK;
    loop {
        end.poll();
        ensure!(!end.connected, "it connected to {to:?}");
        if let Some(error) = &end.ended {
            ensure!(!error.message.is_empty(), "the error has no text");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no error within {CONNECT_MS} ms, connecting to {to:?}");
        if !end.arm() {
            sleep(&[end.connection.event_fd()], deadline);
        }
    }
}

pub(crate) fn both_ends_become_connected(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    // Nothing may come behind, in particular no second Connected.
    pair.pump_for(Duration::from_millis(50), |_, _| Ok(false))?;
    for side in BOTH {
        if let Some(error) = &pair.end(side).ended {
            return fail(format!("{side:?} failed with nothing done to it: {error}"));
        }
    }
    Ok(())
}

pub(crate) fn an_idle_listener_accepts_nothing(kit: &Kit<'_>) -> Check {
    let setup = kit.setup();
    let mut listener = kit.transport.listen(&setup.listen)?;
    ensure!(!listener.address().is_empty(), "a listener has no address");
    if kit.has(Capabilities::CONTROL) {
        ensure!(listener.accept()?.is_none(), "a connection came from nowhere");
    }
    Ok(())
}

pub(crate) fn connections_outlive_their_listener(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    drop(pair.listener.take());
    if kit.has(Capabilities::CONTROL) {
        for side in BOTH {
            pair.send(side, 1, &[b"still there"])?;
        }
        return pair.pump("a frame after the listener was dropped", |a, b| {
            Ok(!a.frames.is_empty() && !b.frames.is_empty())
        });
    }
    let target = pair.b.block(64)?;
    let source = pair.a.block(64)?;
    pair.b.connection.offer(1, target.whole())?;
    pair.write(super::pair::Side::A, 1, &[source.whole()], 1, 0)?;
    pair.pump("a message after the listener was dropped", |_, b| Ok(!b.placed.is_empty()))
}

pub(crate) fn many_connections_keep_apart(kit: &Kit<'_>) -> Check {
    let mut pairs = Vec::new();
    if kit.has(Capabilities::CONTROL) {
        let mut setup = kit.setup();
        let mut listener = kit.transport.listen(&setup.listen)?;
        setup.connect.address = listener.address();
        for _ in 0..MANY {
            let a = End::new(kit.transport.connect(&setup.connect)?);
            let (a, b) = meet(listener.as_mut(), a)?;
            pairs.push((a, b));
        }
    } else {
        for _ in 0..MANY {
            let pair = kit.pair()?;
            pairs.push((pair.a, pair.b));
        }
    }
    let mut blocks = Vec::new();
    for (number, (a, b)) in pairs.iter_mut().enumerate() {
        let seed = number as u64;
        if kit.has(Capabilities::DATA) {
            let (source, target) = (a.block(10_000)?, b.block(10_000)?);
            source.fill(0, source.bytes, seed, 0);
            b.connection.offer(7, target.whole())?;
            a.connection.write(1, &[source.whole()], 7, 0)?;
            blocks.push((source, target));
        }
        if kit.has(Capabilities::CONTROL) {
            a.connection.send_frame(3, &[&seed.to_le_bytes()], None)?;
        }
    }
    let deadline = Instant::now() + STEP;
    let reached = |(a, b): &(End, End)| {
        (!kit.has(Capabilities::DATA) || (b.placed.len() == 1 && a.written.len() == 1))
            && (!kit.has(Capabilities::CONTROL) || b.frames.len() == 1)
    };
    while !pairs.iter().all(reached) {
        ensure!(Instant::now() < deadline, "some of {MANY} connections got nothing in {STEP:?}");
        let mut awake = false;
        for end in pairs.iter_mut().flat_map(|(a, b)| [a, b]) {
            end.poll();
            awake |= end.arm();
            end.verdict()?;
            if let Some(error) = &end.ended {
                return fail(format!("one of {MANY} connections failed: {error}"));
            }
        }
        if !awake && !pairs.iter().all(reached) {
            let ends = pairs.iter().flat_map(|(a, b)| [a, b]);
            let fds: Vec<_> = ends.map(|end| end.connection.event_fd()).collect();
            sleep(&fds, deadline);
        }
    }
    for (number, (_, b)) in pairs.iter().enumerate() {
        let seed = number as u64;
        if let Some((_, target)) = blocks.get(number) {
            let differs = target.differs(0, target.bytes, seed);
            ensure!(differs.is_none(), "connection {number} got bytes of another");
        }
        if let Some((_, body, _)) = b.frames.first() {
            ensure!(*body == seed.to_le_bytes(), "connection {number} got the frame of another");
        }
    }
    Ok(())
}

pub(crate) fn accept_max_is_kept(kit: &Kit<'_>) -> Check {
    kit.need(Capabilities::CONTROL)?;
    let mut setup = kit.setup();
    setup.listen.accept_max = 1;
    let mut pair = kit.pair_with(setup)?;
    pair.setup.connect.connect_ms = CONNECT_MS;
    let mut second = match kit.transport.connect(&pair.setup.connect) {
        Ok(connection) => End::new(connection),
        Err(_) => return Ok(()),
    };
    let deadline = Instant::now() + Duration::from_millis(CONNECT_MS) + SLACK;
    let mut listener = pair.listener.take().expect("a new pair has one");
    while second.ended.is_none() {
        // A refused connection may be told as an error, which names it.
        if let Ok(Some(_)) = listener.accept() {
            return fail("a second connection was accepted where accept_max is 1");
        }
        second.poll();
        ensure!(!second.connected, "a second connection came about where accept_max is 1");
        ensure!(Instant::now() < deadline, "a connection too many is not told within connect_ms");
        if second.ended.is_none() && !second.arm() {
            // The listener may stay readable: it is asked from time to time.
            let soon = Instant::now() + Duration::from_millis(20);
            sleep(&[second.connection.event_fd()], soon.min(deadline));
        }
    }
    Ok(())
}

pub(crate) fn a_wrong_secret_does_not_connect(kit: &Kit<'_>) -> Check {
    if kit.has(Capabilities::CONTROL) {
        return Err(super::Stop::Skip("it makes its own secrets".into()));
    }
    let mut setup = kit.setup_in_vain();
    if setup.listen.trusted {
        return Err(super::Stop::Skip("the options say that the network is trusted".into()));
    }
    let mut listener = kit.transport.listen(&setup.listen)?;
    setup.connect.address = listener.address();
    setup.connect.secret = Some([0xee; 32]);
    let mut a = End::new(kit.transport.connect(&setup.connect)?);
    let mut b = None;
    let deadline = Instant::now() + Duration::from_millis(CONNECT_MS) + SLACK;
    while a.ended.is_none() {
        if let (None, Ok(Some(accepted))) = (&b, listener.accept()) {
            b = Some(End::new(accepted));
        }
        a.poll();
        if let Some(b) = &mut b {
            b.poll();
            ensure!(!b.connected, "the accepted end is connected to a peer with another secret");
        }
        ensure!(!a.connected, "it is connected to a peer with another secret");
        ensure!(Instant::now() < deadline, "a wrong secret is not told within connect_ms");
        if a.ended.is_none() && !a.arm() {
            let soon = Instant::now() + Duration::from_millis(20);
            sleep(&[a.connection.event_fd()], soon.min(deadline));
        }
    }
    Ok(())
}

pub(crate) fn statistics_and_names_can_be_asked(kit: &Kit<'_>) -> Check {
    let mut pair = kit.pair()?;
    for side in BOTH {
        let connection = &pair.end(side).connection;
        connection.peer_identity();
        ensure!(!connection.peer_address().is_empty(), "{side:?} has no peer's address");
        let mut names: Vec<_> = connection.statistics().into_iter().map(|(name, _)| name).collect();
        ensure!(names.iter().all(|name| !name.is_empty()), "a counter has no name");
        let count = names.len();
        names.sort();
        names.dedup();
        ensure!(names.len() == count, "two counters of {side:?} have one name");
    }
    Ok(())
}
