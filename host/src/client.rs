//! A small blocking client of a host or a node, for `doctor` and `status`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use genie_shm::UnixLink;
use genie_transport::{Frame, Link, SharedMemory};
use genie_wire::PROTOCOL_VERSION;
use genie_wire::control::{Hello, Refusal, Region, Status, StatusRequest, Welcome};
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::serve::SOFTWARE;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// One connection, used for one question at a time.
pub struct Client {
    link: UnixLink,
}

impl Client {
    pub fn new(link: UnixLink) -> Self {
        Client { link }
    }

    pub fn hello(&mut self) -> anyhow::Result<Welcome> {
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            software: SOFTWARE.to_owned(),
            threads: 1,
            pid: std::process::id(),
            identity: rustix::process::geteuid().as_raw().to_string(),
            ..Hello::default()
        };
        self.send(FrameKind::Hello, &hello.encode_to_vec())?;
        let frame = self.wait(FrameKind::Welcome)?;
        Ok(Welcome::decode(&frame.body[..])?)
    }

    pub fn status(&mut self) -> anyhow::Result<Status> {
        let request = StatusRequest { token: 1 };
        self.send(FrameKind::StatusRequest, &request.encode_to_vec())?;
        Ok(Status::decode(&self.wait(FrameKind::Status)?.body[..])?)
    }

    pub fn region(&mut self, id: u32, memory: &SharedMemory) -> anyhow::Result<()> {
        let region = Region { id, bytes: memory.bytes() }.encode_to_vec();
        Ok(self.link.post_send(FrameKind::Region, &[&region], Some(memory))?)
    }

    pub fn send(&mut self, kind: FrameKind, body: &[u8]) -> anyhow::Result<()> {
        Ok(self.link.post_send(kind, &[body], None)?)
    }

    /// The next frame of this kind; others are passed over.
    pub fn wait(&mut self, kind: FrameKind) -> anyhow::Result<Frame> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            while let Some(frame) = self.link.poll()? {
                if frame.kind == FrameKind::Refusal {
                    bail!("{}", Refusal::decode(&frame.body[..])?.message);
                }
                if frame.kind == kind {
                    return Ok(frame);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs());
            }
            let write = if self.link.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            let timeout = Timespec::try_from(left).context("wait for an answer")?;
            match poll(&mut [PollFd::new(&self.link, PollFlags::IN | write)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait for an answer"),
            }
            self.link.flush()?;
        }
    }
}
