//! A transport over Unix stream sockets, for the tests of this crate: small and plain. It keeps
//! every promise of the traits, unless a [`Fault`] makes it break one.

#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use genie_transport::transport::*;
use rustix::event::epoll;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// A promise that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    ConnectedTwice,
    DropsAFrame,
    SwapsFrames,
    NoQueueLimit,
    NoFrameLimit,
    NeverWritable,
    OneSecretForAll,
    PlacedTwice,
    WrittenAtOnce,
    WritesPastTheWindow,
    ForgetsTheOffset,
    WritesAfterWithdraw,
    DoesNotWait,
    KeepsMemory,
    UnregistersInUse,
    TakesAnyRange,
    TakesAnyNumber,
    TakesManyWindows,
    TakesManyMessages,
    TakesGpuMemory,
    CloseLosesFrames,
    DropIsSilent,
    WorksAfterTheEnd,
    Spins,
    LosesWakeUps,
    ConnectsToNobody,
    AcceptsTooMany,
    BadName,
}

pub struct Loopback(pub Fault);

static NEXT: AtomicU64 = AtomicU64::new(1);

fn refuse<T>(cause: Cause, text: impl Into<String>) -> Result<T> {
    Err(TransportError::new(cause, text))
}

fn io(what: &str) -> impl Fn(std::io::Error) -> TransportError {
    move |error| TransportError::new(Cause::Io, format!("{what}: {error}"))
}

fn os(what: &str) -> impl Fn(rustix::io::Errno) -> TransportError {
    move |error| TransportError::new(Cause::Io, format!("{what}: {error}"))
}

/// Where abstract sockets of this process are: `@...`.
fn socket(address: &str) -> Result<SocketAddr> {
    let name = address.strip_prefix('@').filter(|name| !name.is_empty() && name.is_ascii());
    let name = name.ok_or_else(|| {
        TransportError::new(Cause::Invalid, format!("{address:?} is no address like @name"))
    })?;
    SocketAddr::from_abstract_name(name).map_err(io("the address"))
}

impl Transport for Loopback {
    fn facts(&self) -> Facts {
        let name = if self.0 == Fault::BadName { "Loop Back" } else { "loopback" };
        Facts {
            name: name.into(),
            version: "1.0".into(),
            capabilities: Capabilities::CONTROL.with(Capabilities::DATA),
        }
    }

    fn probe(&self, _: &Options) -> Result<String> {
        Ok("Unix stream sockets".into())
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        let mut address = options.address.clone();
        if address == "@" {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            address = format!("@genie-loopback-{}-{number}", std::process::id());
        }
        let socket = UnixListener::bind_addr(&socket(&address)?).map_err(io("listen"))?;
        socket.set_nonblocking(true).map_err(io("listen"))?;
        let (options, fault) = (options.clone(), self.0);
        Ok(Box::new(LoopbackListener { socket: Some(socket), address, options, fault, taken: 0 }))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        if self.0 == Fault::ConnectsToNobody {
            let (ours, _theirs) = UnixStream::pair().map_err(io("connect"))?;
            let mut connection = LoopbackConnection::new(ours, options, self.0)?;
            connection.connected = true;
            connection.ready.push_back(Completion::Connected);
            std::mem::forget(_theirs);
            return Ok(Box::new(connection));
        }
        let stream = UnixStream::connect_addr(&socket(&options.address)?).map_err(io("connect"))?;
        Ok(Box::new(LoopbackConnection::new(stream, options, self.0)?))
    }
}

struct LoopbackListener {
    socket: Option<UnixListener>,
    address: String,
    options: Options,
    fault: Fault,
    taken: u32,
}

impl Listener for LoopbackListener {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("open while it lives").as_fd()
    }

    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>> {
        let socket = self.socket.as_ref().expect("open while it lives");
        match socket.accept() {
            Ok((stream, _)) => {
                let max = self.options.accept_max;
                if max > 0 && self.taken >= max && self.fault != Fault::AcceptsTooMany {
                    return refuse(Cause::Refused, "a connection more than accept_max");
                }
                self.taken += 1;
                let connection = LoopbackConnection::new(stream, &self.options, self.fault)?;
                Ok(Some(Box::new(connection)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(io("accept")(error)),
        }
    }
}

const HELLO: u8 = 1;
const FRAME: u8 = 2;
const OFFER: u8 = 3;
const WITHDRAW: u8 = 4;
const DATA: u8 = 5;
const WRITTEN: u8 = 6;
/// The window was withdrawn meanwhile: the message waits for it again.
const AGAIN: u8 = 7;
const BYE: u8 = 8;

/// What precedes everything that is sent: kind, a small number, and four numbers.
const HEADER: usize = 1 + 1 + 4 * 8;
/// Bytes that are handed to the socket's queue before more messages are cut up.
const OUT_BYTES: usize = 256 << 10;

fn header(kind: u8, small: u8, numbers: [u64; 4]) -> Vec<u8> {
    let mut bytes = vec![kind, small];
    for number in numbers {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

#[derive(Clone)]
struct Message {
    message: u64,
    parts: Vec<Part>,
    window: u32,
    offset: u64,
    bytes: u64,
}

/// What the bytes that follow are for.
enum Body {
    Frame {
        kind: u8,
        body: Vec<u8>,
        left: usize,
    },
    /// `address` is null when the window is gone.
    Data {
        message: u64,
        window: u32,
        offset: u64,
        bytes: u64,
        done: u64,
        kept: bool,
    },
}

pub struct LoopbackConnection {
    stream: Option<UnixStream>,
    epoll: OwnedFd,
    timer: OwnedFd,
    options: Options,
    fault: Fault,
    connected: bool,
    nonces: [u64; 2],
    ready: VecDeque<Completion>,
    failed: Option<TransportError>,
    closing: bool,

    /// Bytes on their way to the socket; behind them what must not tear a message apart.
    out: VecDeque<u8>,
    control: VecDeque<Vec<u8>>,
    control_bytes: usize,
    held: Option<Vec<u8>>,
    frames: u64,
    /// The message that is being cut up: part and place in it.
    cutting: Option<(Message, usize, u64)>,
    waiting: VecDeque<Message>,
    posted: HashMap<u64, Message>,
    last: Option<u64>,
    starved: bool,

    input: Vec<u8>,
    body: Option<Body>,

    memories: BTreeMap<u64, Memory>,
    next_key: u64,
    windows: HashMap<u32, Part>,
    stale: HashMap<u32, Part>,
    theirs: HashMap<u32, u64>,
    sent: u64,
}

impl LoopbackConnection {
    fn new(stream: UnixStream, options: &Options, fault: Fault) -> Result<Self> {
        stream.set_nonblocking(true).map_err(io("socket"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os("epoll"))?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .map_err(os("timer"))?;
        let wait = Duration::from_millis(options.connect_ms);
        let time = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(wait).expect("milliseconds"),
        };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &time)
            .map_err(os("timer"))?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &stream, data, epoll::EventFlags::IN).map_err(os("epoll"))?;
        epoll::add(&epoll, &timer, data, epoll::EventFlags::IN).map_err(os("epoll"))?;
        // Unique, not secret: this transport is for tests.
        let nonce = NEXT.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id());
        let mut connection = LoopbackConnection {
            stream: Some(stream),
            epoll,
            timer,
            options: options.clone(),
            fault,
            connected: false,
            nonces: [nonce, 0],
            ready: VecDeque::new(),
            failed: None,
            closing: false,
            out: VecDeque::new(),
            control: VecDeque::new(),
            control_bytes: 0,
            held: None,
            frames: 0,
            cutting: None,
            waiting: VecDeque::new(),
            posted: HashMap::new(),
            last: None,
            starved: false,
            input: Vec::new(),
            body: None,
            memories: BTreeMap::new(),
            next_key: 1,
            windows: HashMap::new(),
            stale: HashMap::new(),
            theirs: HashMap::new(),
            sent: 0,
        };
        connection.say(HELLO, 0, [nonce, 0, 0, 0]);
        Ok(connection)
    }

    fn say(&mut self, kind: u8, small: u8, numbers: [u64; 4]) {
        self.queue(header(kind, small, numbers));
        self.flush();
    }

    fn queue(&mut self, bytes: Vec<u8>) {
        self.control_bytes += bytes.len();
        self.control.push_back(bytes);
    }

    fn fail(&mut self, cause: Cause, text: &str) {
        if self.failed.is_none() {
            self.failed = Some(TransportError::new(cause, text));
        }
        self.stream = None;
        self.memories.clear();
        // The descriptor stays readable: a poll is due.
        let past = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: 1 },
        };
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &past);
    }

    fn usable(&self) -> Result<()> {
        match &self.failed {
            Some(error) if self.fault != Fault::WorksAfterTheEnd => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn address(&self, part: &Part) -> Result<*mut u8> {
        let Some(memory) = self.memories.get(&part.key.0) else {
            return refuse(Cause::Invalid, "the memory is not registered");
        };
        let end = part.offset.checked_add(part.bytes);
        if end.is_none_or(|end| end > memory.bytes()) && self.fault != Fault::TakesAnyRange {
            return refuse(Cause::Invalid, "the range lies outside the memory");
        }
        Ok(memory.address().wrapping_add(part.offset as usize))
    }

    /// Cuts messages into the queue and writes it to the socket.
    fn flush(&mut self) {
        loop {
            self.cut();
            let Some(stream) = &mut self.stream else { return };
            if self.out.is_empty() {
                break;
            }
            let (front, _) = self.out.as_slices();
            match stream.write(front) {
                Ok(bytes) => {
                    self.out.drain(..bytes);
                    self.sent += bytes as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // What the peer sent before it went is still read.
                Err(_) => {
                    self.out.clear();
                    self.control.clear();
                    self.control_bytes = 0;
                    self.cutting = None;
                    break;
                }
            }
        }
        if self.starved && self.has_room() && self.fault != Fault::NeverWritable {
            self.starved = false;
            self.ready.push_back(Completion::Writable);
        }
        if let Some(stream) = &self.stream {
            let mut flags = epoll::EventFlags::IN;
            if !self.out.is_empty() {
                flags |= epoll::EventFlags::OUT;
            }
            let _ = epoll::modify(&self.epoll, stream, epoll::EventData::new_u64(0), flags);
        }
    }

    fn has_room(&self) -> bool {
        self.queued_bytes() < FRAME_QUEUE_BYTES_MAX as u64 / 2 && self.posted.len() < MESSAGES_MAX
    }

    fn cut(&mut self) {
        while self.out.len() < OUT_BYTES {
            let Some((message, part, done)) = &mut self.cutting else {
                if let Some(bytes) = self.control.pop_front() {
                    self.control_bytes -= bytes.len();
                    self.out.extend(bytes);
                    continue;
                }
                let offered = |message: &Message| self.theirs.contains_key(&message.window);
                let Some(at) = self.waiting.iter().position(offered) else { return };
                let message = self.waiting.remove(at).expect("it is there");
                let room = self.theirs[&message.window];
                let end = message.offset.checked_add(message.bytes);
                if end.is_none_or(|end| end > room) && self.fault != Fault::WritesPastTheWindow {
                    return self.fail(Cause::Invalid, "a message reaches beyond its window");
                }
                let Message { message: number, window, offset, bytes, .. } = message;
                self.out.extend(header(DATA, 0, [number, window.into(), offset, bytes]));
                self.cutting = Some((message, 0, 0));
                continue;
            };
            let Some(current) = message.parts.get(*part) else {
                self.cutting = None;
                continue;
            };
            let step = (current.bytes - *done).min(OUT_BYTES as u64);
            let piece = Part { key: current.key, offset: current.offset + *done, bytes: step };
            *done += step;
            if *done == current.bytes {
                *part += 1;
                *done = 0;
            }
            let address = self.address(&piece).expect("checked in write, and still in use");
            let mut copy = vec![0u8; step as usize];
            // SAFETY: the range lies in registered memory, which its owner keeps alive.
            unsafe { std::ptr::copy_nonoverlapping(address, copy.as_mut_ptr(), copy.len()) };
            self.out.extend(copy);
        }
    }

    /// Reads a bounded amount.
    fn receive(&mut self) {
        let mut buffer = vec![0; 256 << 10];
        for _ in 0..8 {
            let Some(stream) = &mut self.stream else { return };
            match stream.read(&mut buffer) {
                Ok(0) => {
                    if self.fault != Fault::DropIsSilent {
                        self.fail(Cause::Closed, "the peer is gone");
                    } else {
                        self.stream = None;
                    }
                    return;
                }
                Ok(bytes) => {
                    self.take(&buffer[..bytes]);
                    if self.ready.len() > COMPLETIONS_MAX {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => return self.fail(Cause::Closed, "the peer is gone"),
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while self.failed.is_none() {
            match &mut self.body {
                None => {
                    let step = (HEADER - self.input.len()).min(bytes.len());
                    self.input.extend(&bytes[..step]);
                    bytes = &bytes[step..];
                    if self.input.len() < HEADER {
                        return;
                    }
                    let header = std::mem::take(&mut self.input);
                    self.begin(&header);
                }
                Some(Body::Frame { body, left, .. }) => {
                    let step = (*left).min(bytes.len());
                    body.extend(&bytes[..step]);
                    *left -= step;
                    bytes = &bytes[step..];
                    if *left > 0 {
                        return;
                    }
                    if let Some(Body::Frame { kind, body, .. }) = self.body.take() {
                        self.ready.push_back(Completion::Frame { kind, body, memory: None });
                    }
                }
                Some(Body::Data { window, offset, bytes: total, done, kept, .. }) => {
                    let step = (*total - *done).min(bytes.len() as u64);
                    let (window, begin, kept) = (*window, *offset + *done, *kept);
                    *done += step;
                    let complete = *done == *total;
                    if kept {
                        self.place(window, begin, &bytes[..step as usize]);
                    }
                    bytes = &bytes[step as usize..];
                    if !complete {
                        return;
                    }
                    let Some(Body::Data { message, window, offset, bytes, kept, .. }) =
                        self.body.take()
                    else {
                        return;
                    };
                    self.complete(message, window, offset, bytes, kept);
                }
            }
        }
    }

    fn place(&mut self, window: u32, begin: u64, bytes: &[u8]) {
        let part = self.windows.get(&window).or(self.stale.get(&window)).copied();
        let Some(part) = part else {
            // Withdrawn in the middle of a message.
            if let Some(Body::Data { kept, .. }) = &mut self.body {
                *kept = false;
            }
            return;
        };
        let begin = if self.fault == Fault::ForgetsTheOffset { 0 } else { begin };
        let (offset, len) = (part.offset.wrapping_add(begin), bytes.len() as u64);
        let memory = &self.memories[&part.key.0];
        if offset.checked_add(len).is_none_or(|end| end > memory.bytes()) {
            return;
        }
        // SAFETY: the range was just checked to lie in registered memory.
        unsafe {
            let to = memory.address().add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    fn complete(&mut self, message: u64, window: u32, offset: u64, bytes: u64, kept: bool) {
        if !kept {
            return self.say(AGAIN, 0, [message, 0, 0, 0]);
        }
        let times = if self.fault == Fault::PlacedTwice { 2 } else { 1 };
        for _ in 0..times {
            self.ready.push_back(Completion::Placed { message, window, offset, bytes });
        }
        if self.fault != Fault::WrittenAtOnce {
            self.say(WRITTEN, 0, [message, 0, 0, 0]);
        }
    }

    fn begin(&mut self, header: &[u8]) {
        let number = |index: usize| {
            let at = 2 + index * 8;
            u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"))
        };
        match header[0] {
            HELLO => {
                self.nonces[1] = number(0);
                self.connected = true;
                self.ready.push_back(Completion::Connected);
                if self.fault == Fault::ConnectedTwice {
                    self.ready.push_back(Completion::Connected);
                }
                let never = Itimerspec {
                    it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
                    it_value: Timespec { tv_sec: 0, tv_nsec: 0 },
                };
                let _ =
                    rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &never);
            }
            FRAME if number(0) <= self.options.frame_bytes_max => {
                let left = number(0) as usize;
                self.body = Some(Body::Frame { kind: header[1], body: Vec::new(), left });
            }
            OFFER => {
                self.theirs.insert(number(0) as u32, number(1));
                self.flush();
            }
            WITHDRAW => {
                self.theirs.remove(&(number(0) as u32));
            }
            DATA => {
                let (message, window, offset, bytes) =
                    (number(0), number(1) as u32, number(2), number(3));
                let known = self.windows.get(&window).or(self.stale.get(&window));
                if let Some(part) = known
                    && offset.checked_add(bytes).is_none_or(|end| end > part.bytes)
                    && self.fault != Fault::WritesPastTheWindow
                {
                    return self.fail(Cause::Protocol, "a message reaches beyond its window");
                }
                let kept = known.is_some();
                self.body = Some(Body::Data { message, window, offset, bytes, done: 0, kept });
            }
            WRITTEN => self.written(number(0)),
            AGAIN => {
                if let Some(message) = self.posted.get(&number(0)) {
                    self.waiting.push_front(message.clone());
                    self.flush();
                }
            }
            BYE => self.fail(Cause::Closed, "the peer closed the connection"),
            _ => self.fail(Cause::Protocol, "the peer sent something unknown"),
        }
    }

    fn written(&mut self, message: u64) {
        if self.posted.remove(&message).is_some() {
            self.ready.push_back(Completion::Written { message });
        }
    }
}

impl Connection for LoopbackConnection {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> Result<bool> {
        if self.fault == Fault::Spins {
            return Ok(true);
        }
        let lost = self.fault == Fault::LosesWakeUps;
        Ok((!self.ready.is_empty() || self.failed.is_some()) && !lost)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        if self.failed.is_none() {
            self.flush();
            self.receive();
            self.flush();
            let mut expired = [0; 8];
            let timer_ran = rustix::io::read(&self.timer, &mut expired).is_ok();
            if timer_ran && !self.connected {
                self.fail(Cause::TimedOut, "nobody answered");
            }
            let sent = self.queued_bytes() == 0 && self.cutting.is_none();
            if self.closing && sent && self.failed.is_none() {
                self.fail(Cause::Closed, "closed here");
            }
        }
        let most = if self.fault == Fault::LosesWakeUps { 1 } else { COMPLETIONS_MAX };
        let count = self.ready.len().min(most);
        completions.extend(self.ready.drain(..count));
        match (&self.failed, self.ready.is_empty()) {
            (Some(error), true) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn send_frame(
        &mut self,
        kind: u8,
        parts: &[&[u8]],
        memory: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.usable()?;
        if memory.is_some() {
            return Err(TransportError::unsupported("loopback", "shared memory"));
        }
        let mut body = parts.concat();
        let over = body.len() as u64 > self.options.frame_bytes_max;
        if over && self.fault != Fault::NoFrameLimit {
            return refuse(Cause::Invalid, "the frame is too large");
        }
        if self.queued_bytes() as usize + body.len() > FRAME_QUEUE_BYTES_MAX
            && self.fault != Fault::NoQueueLimit
        {
            self.starved = true;
            return refuse(Cause::OutOfCredit, "the queue is full");
        }
        self.frames += 1;
        if self.fault == Fault::DropsAFrame && self.frames == 5 {
            return Ok(());
        }
        let mut bytes = header(FRAME, kind, [body.len() as u64, 0, 0, 0]);
        bytes.append(&mut body);
        if self.fault == Fault::SwapsFrames && self.frames == 3 {
            self.held = Some(bytes);
            return Ok(());
        }
        self.queue(bytes);
        if let Some(held) = self.held.take() {
            self.queue(held);
        }
        self.flush();
        Ok(())
    }

    fn queued_bytes(&self) -> u64 {
        (self.control_bytes + self.out.len()) as u64
    }

    fn register(&mut self, memory: Memory) -> Result<MemoryKey> {
        self.usable()?;
        let host = matches!(memory.kind(), MemoryKind::Host | MemoryKind::Pinned);
        if !host && self.fault != Fault::TakesGpuMemory {
            return Err(TransportError::unsupported("loopback", "memory of GPUs"));
        }
        if self.memories.len() >= MEMORIES_MAX {
            return refuse(Cause::Invalid, "too many memories");
        }
        let key = self.next_key;
        self.next_key += 1;
        self.memories.insert(key, memory);
        Ok(MemoryKey(key))
    }

    fn unregister(&mut self, key: MemoryKey) -> Result<()> {
        if !self.memories.contains_key(&key.0) {
            return refuse(Cause::Invalid, "the memory is not registered");
        }
        let in_window = self.windows.values().any(|part| part.key == key);
        let in_message =
            self.posted.values().any(|message| message.parts.iter().any(|part| part.key == key));
        if self.fault == Fault::UnregistersInUse && !in_message {
            return Ok(());
        }
        if in_window || in_message {
            return refuse(Cause::Invalid, "the memory is in use");
        }
        if self.fault == Fault::KeepsMemory {
            std::mem::forget(self.memories[&key.0].clone());
        }
        self.memories.remove(&key.0);
        Ok(())
    }

    fn offer(&mut self, window: u32, part: Part) -> Result<()> {
        self.usable()?;
        self.address(&part)?;
        if self.windows.contains_key(&window) {
            return refuse(Cause::Invalid, "the window is offered already");
        }
        if self.windows.len() >= WINDOWS_MAX && self.fault != Fault::TakesManyWindows {
            return refuse(Cause::OutOfCredit, "too many windows");
        }
        self.windows.insert(window, part);
        self.say(OFFER, 0, [window.into(), part.bytes, 0, 0]);
        Ok(())
    }

    fn withdraw(&mut self, window: u32) -> Result<()> {
        let Some(part) = self.windows.remove(&window) else {
            return refuse(Cause::Invalid, "the window is not offered");
        };
        if self.fault == Fault::WritesAfterWithdraw {
            self.stale.insert(window, part);
        }
        self.say(WITHDRAW, 0, [window.into(), 0, 0, 0]);
        Ok(())
    }

    fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        self.usable()?;
        let mut bytes = 0u64;
        for part in parts {
            self.address(part)?;
            bytes += part.bytes;
        }
        if parts.len() > PARTS_MAX || bytes > self.options.message_bytes_max {
            return refuse(Cause::Invalid, "the message is too large");
        }
        let known = self.last.is_some_and(|last| message <= last);
        if known && self.fault != Fault::TakesAnyNumber {
            return refuse(Cause::Invalid, "message numbers must rise");
        }
        if let Some(room) = self.theirs.get(&window)
            && offset.checked_add(bytes).is_none_or(|end| end > *room)
            && self.fault != Fault::WritesPastTheWindow
        {
            return refuse(Cause::Invalid, "the message reaches beyond its window");
        }
        if self.posted.len() >= MESSAGES_MAX && self.fault != Fault::TakesManyMessages {
            self.starved = true;
            return refuse(Cause::OutOfCredit, "too many messages");
        }
        if self.fault == Fault::DoesNotWait && !self.theirs.contains_key(&window) {
            self.ready.push_back(Completion::Written { message });
            return Ok(());
        }
        self.last = Some(message);
        let posted = Message { message, parts: parts.to_vec(), window, offset, bytes };
        self.posted.insert(message, posted.clone());
        self.waiting.push_back(posted);
        self.flush();
        if self.fault == Fault::WrittenAtOnce {
            self.written(message);
        }
        Ok(())
    }

    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut nonces = self.nonces;
        nonces.sort_unstable();
        let label = if self.fault == Fault::OneSecretForAll { &b""[..] } else { label };
        let mut secret = [0; 32];
        for (index, chunk) in secret.chunks_mut(8).enumerate() {
            let mut hasher = DefaultHasher::new();
            (index, nonces, label).hash(&mut hasher);
            chunk.copy_from_slice(&hasher.finish().to_le_bytes());
        }
        Ok(secret)
    }

    fn peer_identity(&self) -> String {
        String::new()
    }

    fn peer_address(&self) -> String {
        "a Unix socket".into()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        vec![("bytes_sent".into(), self.sent), ("frames_sent".into(), self.frames)]
    }

    fn close(&mut self, _reason: &str) {
        if self.failed.is_some() || self.closing {
            return;
        }
        if self.fault == Fault::CloseLosesFrames {
            self.control.clear();
            self.control_bytes = 0;
        }
        self.closing = true;
        self.say(BYE, 0, [0; 4]);
    }
}
