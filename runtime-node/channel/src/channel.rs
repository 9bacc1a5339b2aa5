//! One end of a channel.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use prost::Message as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::message::{Envelope, Message};

/// The largest message.
pub const MESSAGE_BYTES_MAX: usize = 96 << 10;
/// Messages that wait for a peer that does not read; a peer that leaves more lie is left.
pub const QUEUE_MAX: usize = 1024;
/// Descriptors of one message.
const DESCRIPTORS_MAX: usize = 5;

/// A nonblocking socket that carries whole messages, each with the descriptors that it announces.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// Why a channel is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the other end is gone")]
    Closed,
    #[error("the other end does not read: {QUEUE_MAX} messages wait for it")]
    Full,
    #[error("a message of {bytes} bytes is too large (limit {MESSAGE_BYTES_MAX})")]
    TooLarge { bytes: usize },
    #[error("the other end sent something malformed: {0}")]
    Malformed(&'static str),
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
}

impl Channel {
    /// An end, and the socket of the other for another process.
    pub fn pair() -> Result<(Channel, OwnedFd), ChannelError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(io("make a channel"))?;
        Ok((Channel::over(one), other))
    }

    /// The end whose socket came from the other process.
    pub fn over(socket: OwnedFd) -> Channel {
        Channel { socket, queue: VecDeque::new() }
    }

    /// Readable when [`Channel::poll`] may have something.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Hangs up; the other end reads what was sent.
    pub fn close(&mut self) {
        // It may have hung up before.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Whether messages wait for the other end: watch for writability then, and [`Channel::flush`].
    pub fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends a message, or queues it.
    pub fn post(&mut self, message: Message, fds: Vec<OwnedFd>) -> Result<(), ChannelError> {
        let bytes = Envelope { message: Some(message) }.encode_to_vec();
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(ChannelError::TooLarge { bytes: bytes.len() });
        }
        assert!(fds.len() <= DESCRIPTORS_MAX, "no message has more");
        if self.queue.len() >= QUEUE_MAX {
            return Err(ChannelError::Full);
        }
        self.queue.push_back((bytes, fds));
        self.flush()
    }

    pub fn flush(&mut self) -> Result<(), ChannelError> {
        while let Some((bytes, fds)) = self.queue.front() {
            if !send(self.socket.as_fd(), bytes, fds)? {
                break;
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// The next message that arrived, with its descriptors; `None` when there is none now.
    pub fn poll(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, ChannelError> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Err(ChannelError::Closed),
                other => break other.map_err(io("receive over a channel"))?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
            return Err(ChannelError::Malformed("a message or its descriptors were cut off"));
        }
        let envelope = Envelope::decode(&bytes[..received.bytes]);
        let message = envelope.ok().and_then(|envelope| envelope.message);
        let message = message.ok_or(ChannelError::Malformed("a message of no known kind"))?;
        if fds.len() != message.descriptors() {
            return Err(ChannelError::Malformed("other descriptors than its kind has"));
        }
        Ok(Some((message, fds)))
    }

    /// As [`Channel::poll`], but waits. `None` when nothing came in time.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<(Message, Vec<OwnedFd>)>, ChannelError> {
        let until = timeout.map(|timeout| std::time::Instant::now() + timeout);
        loop {
            self.flush()?;
            if let Some(message) = self.poll()? {
                return Ok(Some(message));
            }
            let left = until.map(|at| at.saturating_duration_since(std::time::Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, self.wants_write());
            match poll(&mut [PollFd::new(&self.socket, flags)], left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(io("wait for a channel")(errno)),
            }
        }
    }
}

/// `false` when the other end's buffer is full.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> Result<bool, ChannelError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(&borrowed));
        assert!(fits, "the buffer was sized for them");
    }
    loop {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelError::Closed),
            Err(errno) => return Err(io("send over a channel")(errno)),
        }
    }
}

fn io(doing: &'static str) -> impl Fn(Errno) -> ChannelError {
    move |errno| ChannelError::Io { doing, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Leave, Stop};

    fn pair() -> (Channel, Channel) {
        let (one, other) = Channel::pair().unwrap();
        (one, Channel::over(other))
    }

    fn stop(words: &str) -> Message {
        Message::Stop(Stop { why: words.to_owned() })
    }

    #[test]
    fn messages_arrive_whole_in_order_and_with_their_descriptors() {
        let (mut one, mut other) = pair();
        let passed = (0..5).map(|_| Channel::pair().unwrap().1).collect();
        one.post(stop("first"), vec![]).unwrap();
        one.post(Message::Fork(Default::default()), passed).unwrap();
        assert_eq!(other.poll().unwrap().unwrap().0, stop("first"));
        let (message, fds) = other.poll().unwrap().unwrap();
        assert_eq!((message, fds.len()), (Message::Fork(Default::default()), 5));
        assert!(other.poll().unwrap().is_none());
        drop(one);
        assert!(matches!(other.poll(), Err(ChannelError::Closed)));
    }

    #[test]
    fn what_is_not_read_waits_up_to_a_bound() {
        let (mut one, mut other) = pair();
        let words = "x".repeat(64 << 10);
        let mut posted = 0;
        while one.post(stop(&words), vec![]).is_ok() {
            posted += 1;
        }
        assert!(one.wants_write() && posted > QUEUE_MAX);
        let mut got = 0;
        while got < posted {
            while other.poll().unwrap().is_some() {
                got += 1;
            }
            one.flush().unwrap();
        }
        assert!(!one.wants_write() && got == posted);
    }

    #[test]
    fn a_malformed_message_is_an_error() {
        let (one, mut other) = pair();
        assert!(send(one.event_fd(), b"\xff\xff\xff", &[]).unwrap());
        assert!(matches!(other.poll(), Err(ChannelError::Malformed(_))));
        // A kind that has no descriptors, with one.
        let (_inner, passed) = Channel::pair().unwrap();
        let bytes = Envelope { message: Some(Message::Leave(Leave::default())) }.encode_to_vec();
        assert!(send(one.event_fd(), &bytes, &[passed]).unwrap());
        assert!(matches!(other.poll(), Err(ChannelError::Malformed(_))));
    }
}
