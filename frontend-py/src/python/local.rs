//! `GENIE_MODE=local`: the executor in this process, behind a link like any other.
//!
//! A frame is executed as it is posted, on the thread that posts it, and the answers are there
//! at once. The weight store is kept small here, as a host would.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use genie_node::local::LocalNode;
use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::{
    Device, Have, HaveAnswer, Refusal, Region, Status, StatusRequest, TraceAnswer, TraceQuestion,
    TraceRequest, WeightStored, Welcome,
};
use genie_wire::frame::FrameKind;
use genie_wire::record::WeightHash;
use genie_wire::{ErrorCode, PROTOCOL_VERSION, TapeWriter, WireError};
use prost::Message;

/// Bytes of weights kept for reuse that no storage of the program may use any more.
const WEIGHTS_BYTES_MAX: u64 = 256 << 20;

pub struct LocalLink {
    node: LocalNode,
    torch: String,
    inbox: VecDeque<Frame>,
    weights: Weights,
    ended: bool,
    /// Never readable: answers need no waiting.
    event: OwnedFd,
}

#[derive(Default)]
struct Weights {
    bytes: HashMap<WeightHash, u64>,
    oldest_first: VecDeque<WeightHash>,
    held: HashSet<WeightHash>,
    total_bytes: u64,
}

// SAFETY: a session uses its link under its lock, one thread at a time, and none of the node's
// objects depends on the thread that made it.
unsafe impl Send for LocalLink {}

impl LocalLink {
    /// An executor on this machine's CPU whose storages may hold `budget_bytes`.
    pub fn new(torch: String, budget_bytes: u64) -> Result<Self, String> {
        let node = LocalNode::new(budget_bytes).map_err(|error| error.to_string())?;
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .map_err(|error| format!("make an event descriptor: {error}"))?;
        Ok(LocalLink {
            node,
            torch,
            inbox: VecDeque::new(),
            weights: Weights::default(),
            ended: false,
            event,
        })
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
                memory_bytes: 0,
            }],
            ops: self.node.ops(),
            session: 1,
            mode: "local".into(),
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
            if kind == FrameKind::WeightStored {
                self.keep(&body);
            } else {
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

    fn keep(&mut self, body: &[u8]) {
        let Ok(stored) = WeightStored::decode(body) else {
            return;
        };
        let Ok(hash) = WeightHash::try_from(&*stored.hash) else {
            return;
        };
        if !stored.refused.is_empty() {
            return;
        }
        let weights = &mut self.weights;
        if weights.bytes.insert(hash, stored.bytes).is_none() {
            weights.oldest_first.push_back(hash);
            weights.total_bytes += stored.bytes;
        }
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        let mut forget = TapeWriter::new();
        let weights = &mut self.weights;
        let mut left = weights.oldest_first.len();
        while weights.total_bytes > WEIGHTS_BYTES_MAX && left > 0 {
            left -= 1;
            let Some(hash) = weights.oldest_first.pop_front() else {
                break;
            };
            if weights.held.contains(&hash) {
                weights.oldest_first.push_back(hash);
                continue;
            }
            weights.total_bytes -= weights.bytes.remove(&hash).unwrap_or(0);
            forget.forget_weight(&hash);
        }
        if !forget.bytes().is_empty() && self.node.feed(forget.bytes()).is_err() {
            self.end("the executor refused to forget a weight");
        }
    }

    fn have(&mut self, body: &[u8]) -> Result<(), LinkError> {
        let have = Have::decode(body).map_err(WireError::from)?;
        let hash = WeightHash::try_from(&*have.hash).ok();
        let hash = hash.filter(|hash| self.weights.bytes.contains_key(hash));
        self.weights.held.extend(hash);
        let present = hash.is_some();
        self.answer(FrameKind::HaveAnswer, &HaveAnswer { token: have.token, present, bytes: 0 });
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
