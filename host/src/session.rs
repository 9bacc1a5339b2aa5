//! The thread of one session: moves frames between client and node as the engine decides.
//!
//! It holds no lock while it moves frames. Before it sleeps it forwards everything that arrived,
//! and it stops reading from one side while too much waits for the other, so that memory stays
//! bounded; what it has to send it always tries to send, so that nothing deadlocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_engine::session::Way;
use genie_engine::{Action, Session};
use genie_shm::UnixLink;
use genie_transport::{Frame, Link, LinkError, LinkWay};
use genie_wire::ErrorCode;
use genie_wire::control::{HaveAnswer, TraceQuestion, WeightStored};
use genie_wire::frame::FrameKind;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::analysis::{Analysis, Question};
use crate::mailbox::{Answer, Mailbox};
use crate::nodes::{Moves, Nodes, Reached, SOURCES_MAX, SessionNode, Step};
use crate::totals::{SessionReport, SessionSlot};

/// Bytes that may wait for one side before the other is no longer read.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Frames taken from one side before the other gets its turn.
const FRAMES_PER_TURN: usize = 64;
/// How long the last words may take to reach a client.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// One session's links and state.
pub struct SessionThread {
    pub client: UnixLink,
    pub session: Session,
    pub nodes: Arc<Nodes>,
    pub analysis: Arc<Analysis>,
    pub slot: Arc<SessionSlot>,
    /// How long to look for frames before sleeping, while the program waits for a reply.
    pub spin: Duration,
}

struct Running {
    client: UnixLink,
    /// Frames that the link to the client had no credit for: an answer about the trace may be larger
    /// than its queue. Nothing is read while some wait, so what they take stays bounded.
    backlog: VecDeque<(FrameKind, Vec<u8>)>,
    node: Option<NodeLink>,
    /// Weights on their way from other nodes.
    moves: Option<Moves>,
    session: Session,
    nodes: Arc<Nodes>,
    analysis: Arc<Analysis>,
    mailbox: Arc<Mailbox>,
    /// Answers about the trace on their way to the client, and how much of the first was sent.
    answers: VecDeque<Answer>,
    answered: usize,
    actions: Vec<Action>,
    ended: bool,
    client_ready: bool,
}

struct NodeLink {
    link: Box<dyn Link>,
    node: SessionNode,
    /// The last [`Link::changes`] that the session knows of.
    changes: u32,
    ready: bool,
    /// It hung up: read what is left, whatever waits for the client.
    hung_up: bool,
}

impl SessionThread {
    /// Serves the client until it leaves or is refused.
    pub fn run(self) {
        let SessionThread { client, session, nodes, analysis, slot, spin } = self;
        let mut running = Running {
            client,
            backlog: VecDeque::new(),
            node: None,
            moves: None,
            session,
            nodes,
            analysis,
            mailbox: slot.mailbox.clone(),
            answers: VecDeque::new(),
            answered: 0,
            actions: Vec::with_capacity(8),
            ended: false,
            client_ready: true,
        };
        while !running.ended {
            let moved = running.take_client_turn()
                | running.take_node_turn()
                | running.drive_moves()
                | running.send_answers();
            if moved || running.ended {
                continue;
            }
            running.session.settle(&mut running.actions);
            running.act(None, None);
            running.note_way();
            slot.publish(running.report());
            running.sleep(spin);
        }
        running.say_farewell();
        slot.publish(running.report());
    }
}

impl Running {
    fn report(&self) -> SessionReport {
        let (live_storages, live_bytes) = self.session.live();
        let live = (live_storages, live_bytes);
        let live = if self.ended { (0, 0) } else { live };
        SessionReport {
            counters: *self.session.counters(),
            live_storages: live.0,
            live_bytes: live.1,
        }
    }

    fn may_read_client(&self) -> bool {
        let to_node = self.node.as_ref().map_or(0, |node| node.link.queued_bytes());
        to_node <= QUEUE_BYTES_MAX && self.client.queued_bytes() <= QUEUE_BYTES_MAX
    }

    fn may_read_node(&self) -> bool {
        self.client.queued_bytes() <= QUEUE_BYTES_MAX
            || self.node.as_ref().is_some_and(|node| node.hung_up)
    }

    /// Handles frames from the client; whether there were any.
    fn take_client_turn(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..FRAMES_PER_TURN {
            if self.ended || !self.client_ready || !self.may_read_client() {
                break;
            }
            match self.client.poll() {
                Ok(Some(frame)) => {
                    moved = true;
                    self.session.client_frame(frame.kind, &frame.body, &mut self.actions);
                    self.act(Some(&frame), None);
                }
                Ok(None) => self.client_ready = false,
                Err(error) => self.client_failed(&error),
            }
        }
        moved
    }

    fn take_node_turn(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..FRAMES_PER_TURN {
            if self.ended || !self.may_read_node() {
                break;
            }
            let Some(node) = self.node.as_mut().filter(|node| node.ready) else {
                break;
            };
            match node.link.poll() {
                Ok(Some(frame)) => {
                    moved = true;
                    if frame.kind == FrameKind::Status {
                        self.session.use_link_counters(node.link.statistics());
                    }
                    if !self.is_withheld(&frame) {
                        self.node_said(&frame);
                    }
                }
                Ok(None) => node.ready = false,
                Err(error) => {
                    moved = true;
                    self.node_failed(&error);
                }
            }
        }
        moved
    }

    /// What other threads told; see [`Mailbox`].
    fn take_letters(&mut self) {
        let letters = self.mailbox.take();
        self.answers.extend(letters.answers);
        if let Some(reason) = letters.end {
            self.session.refuse(ErrorCode::NodeLost, &reason, &mut self.actions);
            self.act(None, None);
        }
    }

    /// Sends answers about the trace as the client takes them; whether any part was sent.
    fn send_answers(&mut self) -> bool {
        let mut moved = false;
        while !self.ended && self.client.queued_bytes() <= QUEUE_BYTES_MAX {
            let Some((token, answer)) = self.answers.front() else { break };
            let left = self.session.answer_trace(*token, answer, self.answered, &mut self.actions);
            self.answered = left.unwrap_or(0);
            if left.is_none() {
                self.answers.pop_front();
            }
            self.act(None, None);
            moved = true;
        }
        moved
    }

    fn node_said(&mut self, frame: &Frame) {
        self.session.node_frame(frame.kind, &frame.body, &mut self.actions);
        self.act(None, Some(frame));
    }

    /// Notes what the node says of weights. `true`: the session is not to hear it yet.
    fn is_withheld(&mut self, frame: &Frame) -> bool {
        let Some(moves) = &mut self.moves else { return false };
        match frame.kind {
            FrameKind::WeightStored => {
                if let Ok(stored) = WeightStored::decode(&frame.body[..]) {
                    moves.stored(&stored);
                }
                false
            }
            FrameKind::HaveAnswer => {
                // What makes no sense is the session's to refuse.
                let Ok(answer) = HaveAnswer::decode(&frame.body[..]) else { return false };
                let now = Instant::now();
                match self.session.weights_asked(answer.token) {
                    Some(wanted) => moves.answered(&answer, wanted, now),
                    None => moves.fetched(&answer, now),
                }
            }
            _ => false,
        }
    }

    /// Talks to the nodes that give weights; whether anything came of it.
    fn drive_moves(&mut self) -> bool {
        let mut steps = Vec::new();
        if let Some(moves) = &mut self.moves {
            moves.drive(Instant::now(), &mut steps);
        }
        let moved = !steps.is_empty();
        for step in steps {
            match step {
                Step::Fetch(fetch) => {
                    self.send_node(FrameKind::WeightFetch, &fetch.encode_to_vec(), None);
                }
                Step::Answer(answer) => {
                    let (kind, body) = (FrameKind::HaveAnswer, answer.encode_to_vec());
                    self.node_said(&Frame { kind, body, memory: None });
                }
            }
        }
        moved
    }

    /// Does what the engine decided. `from_client` and `from_node` are the frame it was about.
    fn act(&mut self, from_client: Option<&Frame>, from_node: Option<&Frame>) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::ForwardToNode => {
                    if let Some(frame) = from_client {
                        self.send_node(frame.kind, &frame.body, Some(frame));
                    }
                }
                Action::ForwardToClient => {
                    if let Some(frame) = from_node {
                        self.send_client(frame.kind, &frame.body);
                    }
                }
                Action::PayloadToNode { region, offset, bytes } => {
                    self.post_payload(region, offset, bytes);
                }
                Action::ToClient(kind, body) => self.send_client(kind, &body),
                Action::ToNode(kind, body) => self.send_node(kind, &body, None),
                Action::ConnectNode(hello) => self.connect_node(hello),
                Action::Analyze(new) => self.analysis.begin(*new),
                Action::AnswerTrace { token, question, snapshot } => {
                    let devices = self.session.devices().to_vec();
                    let from = Arc::downgrade(&self.mailbox);
                    let asked = Question { token, question, snapshot, devices, from };
                    match question {
                        // The session forgot it already.
                        TraceQuestion::Reset => self.answers.push_back((token, Ok(Vec::new()))),
                        _ => {
                            if let Err(refused) = self.analysis.ask(asked) {
                                self.answers.push_back((token, Err(refused)));
                            }
                        }
                    }
                }
                Action::End => self.ended = true,
            }
        }
        if self.actions.is_empty() {
            // Keep the buffer: nothing is allocated for a frame.
            self.actions = actions;
        } else {
            self.act(None, None);
        }
    }

    fn connect_node(&mut self, mut hello: genie_wire::control::Hello) {
        match self.nodes.connect() {
            Ok(Reached { link, node, way }) => {
                if let Some(threads) = self.nodes.threads() {
                    (hello.threads, hello.threads_fixed) = (threads, true);
                }
                self.moves = self.nodes.moves(&node, &hello.identity, hello.device);
                self.session.use_way(way);
                let changes = link.changes();
                // A remote link may have taken frames in already.
                let ready = link.needs_drive();
                self.node = Some(NodeLink { link, node, changes, ready, hung_up: false });
                self.send_node(FrameKind::Hello, &hello.encode_to_vec(), None);
            }
            Err(message) => {
                tracing::warn!("a session gets no node: {message}");
                self.session.no_node(&message, &mut self.actions);
            }
        }
    }

    fn send_node(&mut self, kind: FrameKind, body: &[u8], origin: Option<&Frame>) {
        let Some(node) = &mut self.node else { return };
        let memory = origin.and_then(|frame| frame.memory.as_ref());
        match node.link.post_send(kind, &[body], memory) {
            // A closed link is reported by its receiving half, after the node's last words.
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => self.node_failed(&error),
        }
    }

    fn post_payload(&mut self, region: u32, offset: u64, bytes: u64) {
        let Some(node) = &mut self.node else { return };
        match node.link.post_payload(region, offset, bytes) {
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => self.node_failed(&error),
        }
    }

    /// Tells the session when the link goes another way than before.
    fn note_way(&mut self) {
        let Some(node) = &mut self.node else { return };
        let changes = node.link.changes();
        if changes != node.changes
            && let Some(way) = node.link.way()
        {
            node.changes = changes;
            let LinkWay { mode, route, transport } = way;
            self.session.use_way(Way { mode, route, transport });
        }
    }

    fn send_client(&mut self, kind: FrameKind, body: &[u8]) {
        if !self.backlog.is_empty() {
            return self.backlog.push_back((kind, body.to_vec()));
        }
        match self.client.post_send(kind, &[body], None) {
            Ok(()) => {}
            Err(LinkError::OutOfCredit { .. }) => self.backlog.push_back((kind, body.to_vec())),
            Err(error) => self.client_failed(&error),
        }
    }

    /// Sends what the client takes of what waits for it.
    fn flush_client(&mut self) -> Result<(), LinkError> {
        self.client.flush()?;
        while let Some((kind, body)) = self.backlog.front() {
            match self.client.post_send(*kind, &[body], None) {
                Ok(()) => drop(self.backlog.pop_front()),
                Err(LinkError::OutOfCredit { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn client_failed(&mut self, error: &LinkError) {
        match error {
            LinkError::Closed => tracing::debug!("the client left"),
            LinkError::Wire(_) | LinkError::Memory(_) => {
                let code = genie_wire::ErrorCode::Protocol;
                self.session.refuse(code, &error.to_string(), &mut self.actions);
            }
            error => tracing::warn!("the link to a client failed: {error}"),
        }
        self.session.client_closed(&mut self.actions);
        // Last words may fail in turn; the session has ended by then, so this ends as well.
        if !self.ended {
            self.act(None, None);
            self.ended = true;
        }
    }

    fn node_failed(&mut self, error: &LinkError) {
        let Some(node) = self.node.take() else { return };
        self.moves = None;
        let why = node.node.end(error);
        tracing::warn!("a session lost its node: {why}");
        self.session.node_closed(&why, &mut self.actions);
        self.act(None, None);
    }

    /// Waits until something can be read or sent, spinning first while a reply is waited for.
    fn sleep(&mut self, spin: Duration) {
        if !spin.is_zero() && self.session.waiting() > 0 {
            let end = Instant::now() + spin;
            while Instant::now() < end {
                if self.poll_links(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let due = self.moves.as_ref().and_then(Moves::due);
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        // Rounded up, so that the moment has come when the wait ends.
        let left = left.map(|left| left + Duration::from_micros(50));
        self.poll_links(left.and_then(|left| Timespec::try_from(left).ok()).as_ref());
    }

    /// Whether something happened.
    fn poll_links(&mut self, timeout: Option<&Timespec>) -> bool {
        let wants = |read: bool, write: bool| {
            let read = if read { PollFlags::IN } else { PollFlags::empty() };
            read | if write { PollFlags::OUT } else { PollFlags::empty() }
        };
        let client = wants(self.may_read_client(), self.client.wants_write());
        let read_node = self.may_read_node();
        let (client_events, letters, node_events) = {
            let client_fd = PollFd::new(&self.client, client);
            let mut fds: [PollFd<'_>; 3 + SOURCES_MAX] = std::array::from_fn(|_| client_fd.clone());
            fds[1] = PollFd::from_borrowed_fd(self.mailbox.event_fd(), PollFlags::IN);
            let mut count = 2;
            if let Some(node) = &self.node {
                let read = read_node || node.link.needs_drive();
                let events = wants(read, node.link.wants_write());
                fds[2] = PollFd::from_borrowed_fd(node.link.event_fd(), events);
                count = 3;
            }
            let sources = self.moves.iter().flat_map(Moves::event_fds);
            for source in sources {
                fds[count] = PollFd::from_borrowed_fd(source, PollFlags::IN);
                count += 1;
            }
            match poll(&mut fds[..count], timeout) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return false,
                Err(errno) => {
                    tracing::error!("cannot wait for a session's links: {errno}");
                    self.ended = true;
                    return true;
                }
            }
            let node = if self.node.is_some() { fds[2].revents() } else { PollFlags::empty() };
            (fds[0].revents(), !fds[1].revents().is_empty(), node)
        };
        self.client_events(client_events);
        if letters && !self.ended {
            self.take_letters();
        }
        self.node_events(node_events);
        true
    }

    fn client_events(&mut self, events: PollFlags) {
        if events.contains(PollFlags::HUP) && !self.may_read_client() {
            // Nobody is left to answer, whatever it still sent.
            return self.client_failed(&LinkError::Closed);
        }
        if events.contains(PollFlags::OUT)
            && let Err(error) = self.flush_client()
        {
            return self.client_failed(&error);
        }
        self.client_ready |= events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
    }

    fn node_events(&mut self, events: PollFlags) {
        let may_read = self.may_read_node();
        let Some(node) = &mut self.node else { return };
        if events.contains(PollFlags::OUT) {
            match node.link.flush() {
                Ok(()) | Err(LinkError::Closed) => {}
                Err(error) => return self.node_failed(&error),
            }
        }
        node.hung_up |= events.intersects(PollFlags::HUP | PollFlags::ERR);
        node.ready |= node.hung_up || events.contains(PollFlags::IN);
        if node.ready && !may_read && node.link.needs_drive() {
            // What it finds is told when frames are read again.
            let _ = node.link.drive();
        }
    }

    /// Sends what is queued for the client, within bounds.
    fn say_farewell(&mut self) {
        self.moves = None;
        // Closing the node's link first frees the session's storages there at once.
        self.node = None;
        let deadline = Instant::now() + FAREWELL_TIMEOUT;
        while self.client.wants_write() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else {
                return;
            };
            let ready = poll(&mut [PollFd::new(&self.client, PollFlags::OUT)], Some(&timeout));
            if !matches!(ready, Ok(1..)) || self.flush_client().is_err() {
                return;
            }
        }
    }
}
