//! Records and descriptors over a Unix socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use genie_records::{CONTROL, Exchange, io};
use genie_shm::peer_credentials;
use genie_transport::transport::{Cause, Result, TransportError};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};

use crate::failure;

/// One system call reads as much as fits.
const BUFFER_BYTES: usize = 128 << 10;
/// Descriptors one message may carry before the kernel cuts the rest off (one is ever valid).
const DESCRIPTORS_MAX: usize = 4;
/// Bytes moved in one call, each way, before the caller gets its turn.
const BUDGET_BYTES: usize = 4 << 20;

pub(crate) struct Carrier {
    socket: OwnedFd,
    path: PathBuf,
    uid: u32,
    buffer: Box<[u8]>,
    greeted: bool,
    /// Payload is left to copy although the peer takes records.
    more: bool,
}

impl Carrier {
    pub fn new(socket: OwnedFd, path: &Path) -> Result<Self> {
        let (_, uid) = peer_credentials(socket.as_fd()).map_err(|error| failure(path, error))?;
        let buffer = vec![0; BUFFER_BYTES].into();
        Ok(Carrier { socket, path: path.into(), uid, buffer, greeted: false, more: false })
    }
}

impl genie_records::Carrier for Carrier {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn receive(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        if !self.greeted {
            self.greeted = true;
            exchange.greet(Vec::new(), now)?;
        }
        let mut budget = BUDGET_BYTES;
        while budget > 0 && !exchange.is_full() {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut self.buffer)],
                &mut control,
                flags,
            );
            let received = match received {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNRESET) => return Err(ended()),
                Err(errno) => return Err(io("receive from the peer")(errno)),
            };
            let mut carried = false;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    carried = true;
                    for fd in fds {
                        exchange.feed_descriptor(fd)?;
                    }
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(TransportError::new(
                    Cause::Protocol,
                    "the peer sent more descriptors than any record has",
                ));
            }
            if received.bytes == 0 {
                return Err(ended());
            }
            exchange.feed(CONTROL, &self.buffer[..received.bytes], now)?;
            if received.bytes < self.buffer.len() && !carried {
                return Ok(());
            }
            budget = budget.saturating_sub(received.bytes);
        }
        Ok(())
    }

    fn send(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        let mut budget = BUDGET_BYTES;
        self.more = false;
        while self.greeted && budget > 0 {
            let outgoing = exchange.outgoing(CONTROL)?;
            if outgoing.records.is_empty() {
                // A large message is copied over several calls.
                self.more = exchange.wants_to_send();
                return Ok(());
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::default();
            let beside: [BorrowedFd<'_>; 1];
            if let Some(fd) = outgoing.beside {
                beside = [fd];
                control = SendAncillaryBuffer::new(&mut space);
                let fits = control.push(SendAncillaryMessage::ScmRights(&beside));
                assert!(fits, "the buffer was sized for one descriptor");
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(outgoing.records)], &mut control, flags) {
                Ok(sent) => {
                    exchange.advance(CONTROL, sent, now);
                    budget = budget.saturating_sub(sent);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ended()),
                Err(errno) => return Err(io("send to the peer")(errno)),
            }
        }
        Ok(())
    }

    fn speaks_first(&self) -> bool {
        true
    }

    fn has_more(&self) -> bool {
        self.more
    }

    fn finish(&mut self) {
        // Fails only where there is no connection any more.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    fn export_secret(&self, exchange: &Exchange, label: &[u8]) -> Result<[u8; 32]> {
        exchange.plain_secret(label)
    }

    fn peer_identity(&self) -> String {
        format!("uid/{}", self.uid)
    }

    fn peer_address(&self) -> String {
        self.path.display().to_string()
    }
}

fn ended() -> TransportError {
    TransportError::new(
        Cause::Closed,
        "the peer ended the connection without a goodbye; its process may have ended",
    )
}
