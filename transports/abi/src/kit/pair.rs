//! Two connected ends, driven as their caller would: polls, then sleep on the event descriptors.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Check, Kit, STEP, Setup, Stop, ensure, fail};
use crate::SharedMemory;
use crate::transport::{
    COMPLETIONS_MAX, Cause, Completion, Connection, Listener, Memory, MemoryKey, Part,
    TransportError,
};

/// A frame that arrived.
pub(crate) type Frame = (u8, Vec<u8>, Option<OwnedFd>);

/// A message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Placed {
    pub message: u64,
    pub window: u32,
    pub offset: u64,
    pub bytes: u64,
}

/// One end and everything that its polls returned.
pub(crate) struct End {
    pub connection: Box<dyn Connection>,
    pub connected: bool,
    pub frames: Vec<Frame>,
    pub placed: Vec<Placed>,
    pub written: Vec<u64>,
    pub writable: usize,
    pub ended: Option<TransportError>,
    pub polls: usize,
    placed_ever: BTreeSet<u64>,
    written_ever: BTreeSet<u64>,
    /// The first thing that no transport may do.
    wrong: Option<String>,
}

impl End {
    pub fn new(connection: Box<dyn Connection>) -> Self {
        End {
            connection,
            connected: false,
            frames: Vec::new(),
            placed: Vec::new(),
            written: Vec::new(),
            writable: 0,
            ended: None,
            polls: 0,
            placed_ever: BTreeSet::new(),
            written_ever: BTreeSet::new(),
            wrong: None,
        }
    }

    pub fn poll(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.polls += 1;
        let mut completions = Vec::new();
        let polled = self.connection.poll(&mut completions);
        if completions.len() > COMPLETIONS_MAX {
            self.complain(format!("one poll returned {} completions", completions.len()));
        }
        for completion in completions {
            self.take(completion);
        }
        if let Err(error) = polled {
            if matches!(error.cause, Cause::OutOfCredit | Cause::Unsupported) {
                self.complain(format!("a poll failed with {:?} ({error})", error.cause));
            }
            self.ended = Some(error);
        }
    }

    fn take(&mut self, completion: Completion) {
        if !self.connected && !matches!(completion, Completion::Connected) {
            self.complain(format!("{completion:?} came before Connected"));
        }
        match completion {
            Completion::Connected if self.connected => self.complain("Connected came twice".into()),
            Completion::Connected => self.connected = true,
            Completion::Frame { kind, body, memory } => self.frames.push((kind, body, memory)),
            Completion::Writable => self.writable += 1,
            Completion::Written { message } => {
                if !self.written_ever.insert(message) {
                    self.complain(format!("message {message} was written twice"));
                }
                self.written.push(message);
            }
            Completion::Placed { message, window, offset, bytes } => {
                if !self.placed_ever.insert(message) {
                    self.complain(format!("message {message} was placed twice"));
                }
                self.placed.push(Placed { message, window, offset, bytes });
            }
        }
    }

    fn complain(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    /// What was done that no transport may do, as the failure of a check.
    pub fn verdict(&self) -> Check {
        match &self.wrong {
            Some(wrong) => fail(wrong.clone()),
            None => Ok(()),
        }
    }

    /// Whether it should be polled again before sleeping.
    pub fn arm(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        match self.connection.arm() {
            Ok(pending) => pending,
            Err(error) => {
                self.ended = Some(error);
                true
            }
        }
    }

    /// Registers zeroed memory.
    pub fn block(&mut self, bytes: u64) -> Check<Block> {
        let (memory, shared) =
            Memory::allocate(bytes).map_err(|error| Stop::Fail(error.to_string()))?;
        let key = self.connection.register(memory)?;
        Ok(Block { key, shared, bytes })
    }
}

/// Registered memory.
pub(crate) struct Block {
    pub key: MemoryKey,
    pub shared: Arc<SharedMemory>,
    pub bytes: u64,
}

/// Bytes that are filled or compared at a time.
const CHUNK: usize = 64 << 10;

impl Block {
    pub fn part(&self, offset: u64, bytes: u64) -> Part {
        Part { key: self.key, offset, bytes }
    }

    pub fn whole(&self) -> Part {
        self.part(0, self.bytes)
    }

    /// Writes the pattern of a seed; `begin` is the place in the pattern of the first byte.
    pub fn fill(&self, offset: u64, bytes: u64, seed: u64, begin: u64) {
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(CHUNK as u64);
            let chunk = pattern(seed, begin + done, step as usize);
            self.shared.write(offset + done, &chunk).expect("inside the block");
            done += step;
        }
    }

    /// The first place at which the bytes are not those of the pattern.
    pub fn differs(&self, offset: u64, bytes: u64, seed: u64) -> Option<u64> {
        self.first(offset, bytes, |begin, len| pattern(seed, begin, len))
    }

    /// The first byte that is not zero.
    pub fn touched(&self, offset: u64, bytes: u64) -> Option<u64> {
        self.first(offset, bytes, |_, len| vec![0; len])
    }

    fn first(
        &self,
        offset: u64,
        bytes: u64,
        expect: impl Fn(u64, usize) -> Vec<u8>,
    ) -> Option<u64> {
        let mut have = vec![0; CHUNK];
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(CHUNK as u64) as usize;
            let have = &mut have[..step];
            self.shared.read(offset + done, have).expect("inside the block");
            let want = expect(done, step);
            if *have != want[..] {
                let at = have.iter().zip(&want).position(|(have, want)| have != want);
                return Some(done + at.expect("they differ") as u64);
            }
            done += step as u64;
        }
        None
    }
}

/// Bytes `begin..begin + len` of the endless pattern of a seed.
pub(crate) fn pattern(seed: u64, begin: u64, len: usize) -> Vec<u8> {
    let word = |index: u64| {
        // SplitMix64, of the word's place in the pattern.
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let skip = (begin % 8) as usize;
    let words = (skip + len).div_ceil(8) as u64;
    let mut bytes: Vec<u8> = (begin / 8..begin / 8 + words).flat_map(word).collect();
    bytes.drain(..skip);
    bytes.truncate(len);
    bytes
}

/// Two ends. `a` connected, `b` was accepted.
pub(crate) struct Pair {
    pub a: End,
    pub b: End,
    pub listener: Option<Box<dyn Listener>>,
    pub sleeps: usize,
    pub setup: Setup,
}

/// Which end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

pub(crate) const BOTH: [Side; 2] = [Side::A, Side::B];

impl Kit<'_> {
    pub(crate) fn pair(&self) -> Check<Pair> {
        self.pair_with(self.setup())
    }

    pub(crate) fn pair_with(&self, mut setup: Setup) -> Check<Pair> {
        let mut listener = self.transport.listen(&setup.listen)?;
        setup.connect.address = listener.address();
        let a = End::new(self.transport.connect(&setup.connect)?);
        let (a, b) = meet(listener.as_mut(), a)?;
        Ok(Pair { a, b, listener: Some(listener), sleeps: 0, setup })
    }
}

/// Accepts the connection that `a` is making, and waits until both ends are connected.
pub(crate) fn meet(listener: &mut dyn Listener, mut a: End) -> Check<(End, End)> {
    let deadline = Instant::now() + STEP;
    let mut accepted = None;
    while accepted.is_none() {
        accepted = listener.accept()?;
        a.poll();
        if let Some(error) = &a.ended {
            return fail(format!("connecting failed: {:?}: {error}", error.cause));
        }
        ensure!(Instant::now() < deadline, "no connection could be accepted within {STEP:?}");
        if accepted.is_none() && !a.arm() {
            sleep(&[listener.event_fd(), a.connection.event_fd()], deadline);
        }
    }
    let b = End::new(accepted.expect("the loop ended"));
    let mut pair = Pair { a, b, listener: None, sleeps: 0, setup: Setup::of(Default::default()) };
    pair.pump("both ends becoming connected", |a, b| Ok(a.connected && b.connected))?;
    Ok((pair.a, pair.b))
}

/// Sleeps until a descriptor is readable or the time has come.
pub(crate) fn sleep(fds: &[BorrowedFd<'_>], until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(left).expect("steps take seconds");
    // An interrupted sleep is one that ended early.
    let _ = poll(&mut fds, Some(&timeout));
}

impl Pair {
    pub fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// Drives both ends until something is reached. An end that fails meanwhile is a failure.
    pub fn pump(
        &mut self,
        what: &str,
        mut until: impl FnMut(&mut End, &mut End) -> Check<bool>,
    ) -> Check {
        self.pump_to_end(what, |a, b| {
            if until(a, b)? {
                return Ok(true);
            }
            for (name, end) in [("connecting", a), ("accepted", b)] {
                if let Some(error) = &end.ended {
                    let cause = error.cause;
                    return fail(format!("{what}: the {name} end failed: {cause:?}: {error}"));
                }
            }
            Ok(false)
        })
    }

    /// Drives both ends until something is reached, which may be that they failed.
    pub fn pump_to_end(
        &mut self,
        what: &str,
        until: impl FnMut(&mut End, &mut End) -> Check<bool>,
    ) -> Check {
        match self.pump_for(STEP, until)? {
            true => Ok(()),
            false => fail(format!(
                "{what} did not happen within {STEP:?}, sleeping only on the event descriptors \
                 ({} polls, {} sleeps)",
                self.a.polls + self.b.polls,
                self.sleeps
            )),
        }
    }

    /// Drives both ends for some time; whether something was reached.
    pub fn pump_for(
        &mut self,
        time: Duration,
        mut until: impl FnMut(&mut End, &mut End) -> Check<bool>,
    ) -> Check<bool> {
        let deadline = Instant::now() + time;
        if until(&mut self.a, &mut self.b)? {
            return Ok(true);
        }
        loop {
            // One poll each, then sleep: what else there is to poll, `arm` has to tell.
            self.a.poll();
            self.b.poll();
            self.a.verdict()?;
            self.b.verdict()?;
            if until(&mut self.a, &mut self.b)? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if self.a.arm() | self.b.arm() {
                continue;
            }
            let alive = [&self.a, &self.b].into_iter().filter(|end| end.ended.is_none());
            let fds: Vec<_> = alive.map(|end| end.connection.event_fd()).collect();
            self.sleeps += 1;
            sleep(&fds, deadline);
        }
    }

    /// Writes, waiting for credit where it is refused.
    pub fn write(
        &mut self,
        side: Side,
        message: u64,
        parts: &[Part],
        window: u32,
        offset: u64,
    ) -> Check {
        self.with_credit(side, |end| end.connection.write(message, parts, window, offset))
    }

    /// Sends a frame, waiting for credit where it is refused.
    pub fn send(&mut self, side: Side, kind: u8, parts: &[&[u8]]) -> Check {
        self.with_credit(side, |end| end.connection.send_frame(kind, parts, None))
    }

    fn with_credit(
        &mut self,
        side: Side,
        mut call: impl FnMut(&mut End) -> crate::transport::Result<()>,
    ) -> Check {
        loop {
            let before = self.end(side).writable;
            match call(self.end(side)) {
                Err(error) if error.cause == Cause::OutOfCredit => {
                    self.pump("Writable, after a call was refused with OutOfCredit", |a, b| {
                        Ok(match side {
                            Side::A => a.writable > before,
                            Side::B => b.writable > before,
                        })
                    })?;
                }
                result => return Ok(result?),
            }
        }
    }
}

/// Bounds a wait that no descriptor ends.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Stopwatch(Instant::now())
    }

    pub fn is_over(&self) -> bool {
        self.0.elapsed() > STEP
    }
}
