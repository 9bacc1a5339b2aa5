//! `GENIE_MODE=local`: the executor in this process, behind a link like any other.
//!
//! A frame is executed as it is posted, on the thread that posts it, and the answers are there
//! at once.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::{
    Device, Have, HaveAnswer, Refusal, Region, Status, StatusRequest, TraceAnswer, TraceQuestion,
    TraceRequest, Welcome,
};
use genie_wire::frame::FrameKind;
use genie_wire::{ErrorCode, PROTOCOL_VERSION, WireError};
use genie_worker::local::LocalNode;
use prost::Message;

/// Bytes of weights kept for reuse while no tensor uses them.
const UNHELD_BYTES_MAX: u64 = 256 << 20;

pub struct LocalLink {
    node: LocalNode,
    torch: String,
    inbox: VecDeque<Frame>,
    ended: bool,
    budget_bytes: u64,
    /// Never readable: answers need no waiting.
    event: OwnedFd,
}

// SAFETY: a session uses its link under its lock, one thread at a time, and none of the node's
// objects depends on the thread that made it.
unsafe impl Send for LocalLink {}

impl LocalLink {
    /// An executor on this machine's CPU whose storages may hold `budget_bytes`.
    pub fn new(torch: String, budget_bytes: u64) -> Result<Self, String> {
        let node =
            LocalNode::new(budget_bytes, UNHELD_BYTES_MAX).map_err(|error| error.to_string())?;
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .map_err(|error| format!("make an event descriptor: {error}"))?;
        Ok(LocalLink { node, torch, inbox: VecDeque::new(), ended: false, budget_bytes, event })
    }

    fn answer(&mut self, kind: FrameKind, message: &impl Message) {
        self.inbox.push_back(Frame { kind, body: message.encode_to_vec(), memory: None });
    }

    fn welcome(&mut self) {
        let welcome = Welcome {
            protocol: PROTOCOL_VERSION,
            software: concat!("genie-frontend ", env!("CARGO_PKG_VERSION"), " (local)").into(),
            torch: self.torch.clone(),
            devices: vec![Device {
                kind: "cpu".into(),
                name: "CPU of this process".into(),
                memory_bytes: self.budget_bytes,
            }],
            ops: self.node.ops(),
            session: 1,
            mode: "local".into(),
            scripts: true,
            ..Welcome::default()
        };
        self.answer(FrameKind::Welcome, &welcome);
    }

    /// Executes records; a session that broke the protocol is over, as with a host.
    fn execute(&mut self, tape: &[u8]) {
        if self.ended {
            return;
        }
        let result = self.node.feed(tape);
        while let Some((kind, body)) = self.node.next_frame() {
            // A host counts them.
            if kind != FrameKind::WeightStored {
                self.inbox.push_back(Frame { kind, body, memory: None });
            }
        }
        if let Err(error) = result {
            self.end(&error.to_string());
        }
    }

    fn end(&mut self, why: &str) {
        self.ended = true;
        let refusal = Refusal { code: ErrorCode::Protocol as u32, message: why.into() };
        self.answer(FrameKind::Refusal, &refusal);
    }

    fn have(&mut self, body: &[u8]) -> Result<(), LinkError> {
        let Have { token, wanted } = Have::decode(body).map_err(WireError::from)?;
        match self.node.have(&wanted) {
            Ok(found) => self.answer(FrameKind::HaveAnswer, &HaveAnswer { token, found }),
            Err(error) => self.end(&error.to_string()),
        }
        Ok(())
    }
}

impl Link for LocalLink {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn peer(&self) -> String {
        "this process".to_owned()
    }

    fn wants_write(&self) -> bool {
        false
    }

    fn queued_bytes(&self) -> usize {
        0
    }

    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        memory: Option<&SharedMemory>,
    ) -> Result<(), LinkError> {
        let joined;
        let body = match parts {
            [one] => *one,
            many => {
                joined = many.concat();
                &joined
            }
        };
        match kind {
            FrameKind::Hello => self.welcome(),
            FrameKind::Tape => self.execute(body),
            FrameKind::Region => {
                let region = Region::decode(body).map_err(WireError::from)?;
                let memory = memory.ok_or(LinkError::Closed)?;
                let fd = memory.fd().try_clone_to_owned().map_err(|source| LinkError::Io {
                    doing: "duplicate a region's descriptor",
                    source,
                })?;
                let memory = SharedMemory::adopt(fd, region.bytes)?;
                if let Err(error) = self.node.add_region(region.id, memory) {
                    self.end(&error.to_string());
                }
            }
            FrameKind::Have => self.have(body)?,
            FrameKind::StatusRequest => {
                let StatusRequest { token } =
                    StatusRequest::decode(body).map_err(WireError::from)?;
                let counters = self.node.counters();
                self.answer(FrameKind::Status, &Status { token, counters, words: vec![] });
            }
            FrameKind::TraceRequest => {
                let request = TraceRequest::decode(body).map_err(WireError::from)?;
                let refused = match request.question() {
                    TraceQuestion::Reset => "",
                    _ => "mode local has no host that could explain; use mode local_remote",
                };
                let refused = refused.to_owned();
                let TraceRequest { token, .. } = request;
                let answer = TraceAnswer { token, part: vec![], last: true, refused };
                self.answer(FrameKind::TraceAnswer, &answer);
            }
            _ => return Err(LinkError::Closed),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
        Ok(self.inbox.pop_front())
    }
}
