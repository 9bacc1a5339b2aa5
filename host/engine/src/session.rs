//! One client's session: frames and news in, actions out.

use std::collections::HashMap;
use std::sync::Arc;

use genie_srg::Origin;
use genie_wire::control::{
    Counter, Device, Have, HaveAnswer, Hello, Refusal, Region, Released, Status, StatusRequest,
    TraceAnswer, TraceQuestion, TraceRequest, WantedWeight, WeightStored, Welcome, Word,
};
use genie_wire::frame::{FrameKind, HEADER_BYTES};
use genie_wire::limits::{
    SCRIPTS_BYTES_MAX, STATUS_WAITING_MAX, STORAGES_MAX, SYMBOLS_BYTES_MAX, TEMPLATES_BYTES_MAX,
    TOKENS_MAX, WANTED_MAX,
};
use genie_wire::record::{StorageId, WeightHash};
use genie_wire::varint::Reader;
use genie_wire::{
    ErrorCode, PROTOCOL_OLDEST, PROTOCOL_VERSION, PROTOCOL_WANTED, Reply, TapeDecoder, WireError,
};
use prost::Message;

use crate::history::Snapshot;
use crate::regions::Regions;
use crate::segmenter::Segmenter;
use crate::storages::Storages;
use crate::tape::{DefinitionBytes, TapeState};
use crate::tokens::{Awaited, HOST_TOKENS, Tokens};
use crate::{Action, Counters, SessionError, plan};

/// Storages that questions for weights may name together: every thread of a program may wait for one
/// of its own.
const WANTED_WAITING_MAX: usize = 1 << 20;

/// Bytes of one part of an answer about the trace; a frame is larger.
const TRACE_PART_BYTES: usize = 1 << 20;

/// The wire's bounds of what a host remembers of a session; tests lower them.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Live storages.
    pub storages_max: u64,
    pub template_bytes_max: u64,
    pub symbol_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            storages_max: STORAGES_MAX as u64,
            template_bytes_max: TEMPLATES_BYTES_MAX as u64,
            symbol_bytes_max: SYMBOLS_BYTES_MAX as u64,
        }
    }
}

/// Counters of the host process, asked for when a status is.
pub trait HostCounters: Send + Sync {
    fn entries(&self) -> Vec<(String, u64)>;

    /// Facts that are no numbers.
    fn words(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// What a session is told at its start.
pub struct SessionConfig {
    /// The session's number in this host.
    pub id: u64,
    /// Whose weights it may share: from the peer's credentials, never from the client's words.
    pub identity: String,
    /// The host's name and version, for messages to people.
    pub software: String,
    /// The host's process id.
    pub pid: u32,
    pub limits: Limits,
    pub host: Arc<dyn HostCounters>,
    /// Whether new topologies are worth an [`Action::Analyze`].
    pub analyze: bool,
    /// Why no session is taken: the hello is refused with it, the status is told all the same.
    pub turned_away: Option<String>,
}

/// How a session reaches its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Way {
    /// `local_remote`, `remote` or `remote_zero_copy`.
    pub mode: String,
    /// The same for people, and why not a stronger one.
    pub route: String,
    /// The transport that tensors take.
    pub transport: String,
}

/// The state machine. After [`Action::End`] it ignores everything.
///
/// Invariant: a frame that breaks the protocol never reaches the node, not even in part.
/// Invariant: each token of the client gets exactly one reply while the session lives.
pub struct Session {
    config: SessionConfig,
    tape: TapeState,
    phase: Phase,
    counters: Counters,
    devices: Vec<Device>,
    way: Way,
    link_counters: Vec<(String, u64)>,
    /// The version that the client is spoken to in.
    client_protocol: u32,
    /// The version that the node speaks.
    node_protocol: u32,
    /// Questions for weights that the node will answer, by token.
    questions: HashMap<u64, Vec<Wanted>>,
    /// Entries of `questions` together.
    wanted_waiting: usize,
    status_waiting: Vec<u64>,
}

/// One weight that a program asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub id: StorageId,
    pub bytes: u64,
    pub hash: WeightHash,
    /// The storage comes alive with the answer: its id was passed over before.
    makes: bool,
}

impl Wanted {
    /// For a storage that is alive.
    pub fn new(id: StorageId, bytes: u64, hash: WeightHash) -> Self {
        Wanted { id, bytes, hash, makes: false }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    AwaitingHello,
    AwaitingWelcome,
    Running,
    /// The node is gone; reads are answered with this error.
    NodeLost {
        code: ErrorCode,
        message: String,
    },
    Ended,
}

impl Session {
    pub fn new(config: SessionConfig) -> Self {
        let limits = config.limits;
        Session {
            tape: TapeState {
                decoder: TapeDecoder::new(),
                storages: Storages::new(limits.storages_max),
                regions: Regions::default(),
                tokens: Tokens::default(),
                segmenter: Segmenter::new(),
                storing: 0,
                templates: DefinitionBytes::new("bytes of templates", limits.template_bytes_max),
                scripts: DefinitionBytes::new("bytes of scripts", SCRIPTS_BYTES_MAX as u64),
                symbols: DefinitionBytes::new("bytes of symbols", limits.symbol_bytes_max),
                payloads: Vec::new(),
            },
            config,
            phase: Phase::AwaitingHello,
            counters: Counters::default(),
            devices: Vec::new(),
            way: Way::default(),
            link_counters: Vec::new(),
            client_protocol: PROTOCOL_VERSION,
            node_protocol: PROTOCOL_VERSION,
            questions: HashMap::new(),
            wanted_waiting: 0,
            status_waiting: Vec::new(),
        }
    }

    /// How the node is reached; before the welcome, so that the client is told. It may change
    /// later, and then the status says so.
    pub fn use_way(&mut self, way: Way) {
        self.way = way;
    }

    /// Counters of the link to the node, for the next status.
    pub fn use_link_counters(&mut self, counters: Vec<(String, u64)>) {
        self.link_counters = counters;
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The node's devices, once it welcomed the session.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Live storages and their bytes.
    pub fn live(&self) -> (u64, u64) {
        (self.tape.storages.count(), self.tape.storages.bytes())
    }

    /// Replies the client waits for.
    pub fn waiting(&self) -> usize {
        self.tape.tokens.len()
    }

    pub fn segmenter(&self) -> &Segmenter {
        &self.tape.segmenter
    }

    pub fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Work that can wait until the actions are done: graphs of new segments.
    pub fn settle(&mut self, actions: &mut Vec<Action>) {
        let new = self.tape.settle(self.config.analyze);
        actions.extend(new.into_iter().map(|new| Action::Analyze(Box::new(new))));
    }

    /// A frame from the client arrived whole.
    pub fn client_frame(&mut self, kind: FrameKind, body: &[u8], actions: &mut Vec<Action>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.counters.frames_from_client += 1;
        self.counters.bytes_from_client += frame_bytes(body);
        if let Err(error) = self.accept(kind, body, actions) {
            self.refuse(error.code(), &error.to_string(), actions);
        }
    }

    fn accept(
        &mut self,
        kind: FrameKind,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), SessionError> {
        match (kind, &self.phase) {
            (FrameKind::Tape, Phase::Running) => {
                self.tape.read(body, &mut self.counters)?;
                for (span, bytes) in self.tape.payloads.drain(..) {
                    let (region, offset) = (span.region, span.offset);
                    actions.push(Action::PayloadToNode { region, offset, bytes });
                }
                self.forward_to_node(body, actions);
                Ok(())
            }
            (FrameKind::Tape, Phase::NodeLost { .. }) => {
                self.tape.read(body, &mut self.counters)?;
                self.answer_for_node(actions);
                Ok(())
            }
            (FrameKind::Hello, Phase::AwaitingHello) => self.hello(body, actions),
            (FrameKind::Region, Phase::Running | Phase::NodeLost { .. }) => {
                let region = Region::decode(body).map_err(WireError::from)?;
                self.tape.regions.register(region.id, region.bytes)?;
                if self.phase == Phase::Running {
                    self.forward_to_node(body, actions);
                }
                Ok(())
            }
            (FrameKind::Have, Phase::Running | Phase::NodeLost { .. }) => self.have(body, actions),
            (FrameKind::StatusRequest, _) => self.status_request(body, actions),
            (FrameKind::TraceRequest, Phase::Running | Phase::NodeLost { .. }) => {
                self.trace_request(body, actions)
            }
            (kind, phase) => Err(SessionError::UnexpectedFrame {
                kind: kind_name(kind),
                state: match phase {
                    Phase::AwaitingHello => "before the hello",
                    Phase::AwaitingWelcome => "before the welcome",
                    _ => "in a running session",
                },
            }),
        }
    }

    fn hello(&mut self, body: &[u8], actions: &mut Vec<Action>) -> Result<(), SessionError> {
        let hello = Hello::decode(body).map_err(WireError::from)?;
        if let Some(why) = self.config.turned_away.take() {
            self.refuse(ErrorCode::Unavailable, &why, actions);
            return Ok(());
        }
        let Some(protocol) = genie_wire::common_version(hello.protocol) else {
            return Err(SessionError::Protocol { client: hello.protocol });
        };
        self.client_protocol = protocol;
        self.phase = Phase::AwaitingWelcome;
        let software = format!("{} for {}", self.config.software, hello.software);
        let identity = self.config.identity.clone();
        actions.push(Action::ConnectNode(Hello {
            protocol: PROTOCOL_VERSION,
            software,
            identity,
            ..hello
        }));
        Ok(())
    }

    /// The node answers in the order of the tape, so what was stored before the question counts.
    fn have(&mut self, body: &[u8], actions: &mut Vec<Action>) -> Result<(), SessionError> {
        let have = Have::decode(body).map_err(WireError::from)?;
        let limit = |what, value: usize, max: usize| match value > max {
            true => Err(SessionError::Limit { what, value: value as u64, max: max as u64 }),
            false => Ok(()),
        };
        limit("weights asked for at once", have.wanted.len(), WANTED_MAX)?;
        limit("questions for weights", self.questions.len() + 1, TOKENS_MAX)?;
        let waiting = self.wanted_waiting + have.wanted.len();
        limit("weights asked for", waiting, WANTED_WAITING_MAX)?;
        let next = self.tape.decoder.next_storage();
        let wanted = |wanted: &WantedWeight| {
            let (id, hash) = (StorageId(wanted.storage), weight_hash(&wanted.hash)?);
            if id >= next {
                return Err(SessionError::StorageNotAlive(id.0));
            }
            let makes = self.tape.storages.get(id).is_none();
            Ok(Wanted { makes, ..Wanted::new(id, wanted.bytes, hash) })
        };
        let wanted = have.wanted.iter().map(wanted).collect::<Result<Vec<_>, _>>()?;
        if self.questions.contains_key(&have.token) || have.token >= HOST_TOKENS {
            return Err(SessionError::TokenTaken(have.token));
        }
        if self.phase != Phase::Running || self.node_protocol < PROTOCOL_WANTED {
            self.counters.weight_misses += wanted.len() as u64;
            self.answer_with_nothing(have.token, wanted.len(), actions);
            return Ok(());
        }
        self.wanted_waiting = waiting;
        self.questions.insert(have.token, wanted);
        self.forward_to_node(body, actions);
        Ok(())
    }

    fn answer_with_nothing(&mut self, token: u64, count: usize, actions: &mut Vec<Action>) {
        let answer = HaveAnswer { token, found: vec![false; count] };
        self.send_client(FrameKind::HaveAnswer, answer.encode_to_vec(), actions);
    }

    /// The weights that the node was asked for by this token.
    pub fn weights_asked(&self, token: u64) -> Option<&[Wanted]> {
        self.questions.get(&token).map(Vec::as_slice)
    }

    /// The node told which weights are now the content of their storages.
    fn node_has(&mut self, body: &[u8], actions: &mut Vec<Action>) -> Result<(), SessionError> {
        let answer = HaveAnswer::decode(body).map_err(WireError::from)?;
        let Some(wanted) = self.questions.remove(&answer.token) else {
            let value = answer.token;
            return Err(WireError::NoSuch { what: "question for weights", value }.into());
        };
        self.wanted_waiting -= wanted.len();
        if answer.found.len() != wanted.len() {
            let why = "it has another length than the question";
            return Err(WireError::Malformed { what: "answer about weights", why }.into());
        }
        for (wanted, found) in wanted.iter().zip(&answer.found) {
            if !found {
                self.counters.weight_misses += 1;
                continue;
            }
            self.counters.weight_hits += 1;
            self.counters.weight_bytes_saved += wanted.bytes;
            if wanted.makes {
                self.tape.storages.make(wanted.id, wanted.bytes, Origin::Weight)?;
            } else if self.tape.storages.set_origin(wanted.id, Origin::Weight).is_ok() {
                // Otherwise the program freed it meanwhile.
                self.tape.segmenter.hasher.bind_weight(wanted.id);
            }
        }
        self.forward_to_client(body, actions);
        Ok(())
    }

    fn status_request(
        &mut self,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), SessionError> {
        let request = StatusRequest::decode(body).map_err(WireError::from)?;
        if self.phase != Phase::Running {
            let status = Status { token: request.token, ..Status::default() };
            self.send_status(status, actions);
            return Ok(());
        }
        if self.status_waiting.len() >= STATUS_WAITING_MAX {
            let (value, max) = (STATUS_WAITING_MAX as u64 + 1, STATUS_WAITING_MAX as u64);
            return Err(SessionError::Limit { what: "waiting status requests", value, max });
        }
        self.status_waiting.push(request.token);
        self.forward_to_node(body, actions);
        Ok(())
    }

    fn trace_request(
        &mut self,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), SessionError> {
        let request = TraceRequest::decode(body).map_err(WireError::from)?;
        let Ok(question) = TraceQuestion::try_from(request.question) else {
            let value = request.question as u64;
            return Err(WireError::Unknown { what: "question about the trace", value }.into());
        };
        let snapshot = match question {
            TraceQuestion::Reset => {
                self.tape.segmenter.reset_history(&mut self.counters);
                Snapshot::default()
            }
            TraceQuestion::Explain | TraceQuestion::Graph => {
                self.tape.segmenter.snapshot(&self.tape.storages, &mut self.counters)
            }
        };
        let snapshot = Box::new(snapshot);
        actions.push(Action::AnswerTrace { token: request.token, question, snapshot });
        Ok(())
    }

    /// Sends the next part of an answer to a [`TraceRequest`]: the bytes from `sent` on, as many
    /// as go in one frame. Returns how many were sent by then; `None` after the last part. A large
    /// answer takes many parts, so that whoever sends it can wait for a client that reads slowly.
    pub fn answer_trace(
        &mut self,
        token: u64,
        answer: &Result<Vec<u8>, String>,
        sent: usize,
        actions: &mut Vec<Action>,
    ) -> Option<usize> {
        let (bytes, refused) = match answer {
            Ok(bytes) => (&bytes[..], String::new()),
            Err(refused) => (&[][..], refused.clone()),
        };
        let end = bytes.len().min(sent + TRACE_PART_BYTES);
        let last = end == bytes.len();
        let answer = TraceAnswer { token, part: bytes[sent..end].to_vec(), last, refused };
        self.send_client(FrameKind::TraceAnswer, answer.encode_to_vec(), actions);
        (!last).then_some(end)
    }

    /// Adds the host's counters to the node's.
    fn send_status(&mut self, mut status: Status, actions: &mut Vec<Action>) {
        let mut add = |name: String, value| status.counters.push(Counter { name, value });
        for (name, value) in self.config.host.entries() {
            add(format!("host.{name}"), value);
        }
        for (name, value) in self.counters.entries() {
            add(format!("host.session.{name}"), value);
        }
        for (name, value) in std::mem::take(&mut self.link_counters) {
            add(format!("host.session.link.{name}"), value);
        }
        let (live_storages, live_bytes) = self.live();
        add("host.session.live_storages".to_owned(), live_storages);
        add("host.session.live_bytes".to_owned(), live_bytes);
        add("host.session.topologies".to_owned(), self.tape.segmenter.topologies() as u64);
        add("host.session.waiting".to_owned(), self.tape.tokens.len() as u64);
        add(format!("host.session.plan.{}", plan::ONE_NODE), 1);
        let mut word = |name: &str, value: &str| {
            let (name, value) = (format!("host.{name}"), value.to_owned());
            status.words.push(Word { name, value });
        };
        for (name, value) in self.config.host.words() {
            word(&name, &value);
        }
        word("session.mode", &self.way.mode);
        word("session.route", &self.way.route);
        word("session.transport", &self.way.transport);
        self.send_client(FrameKind::Status, status.encode_to_vec(), actions);
    }

    /// A frame from the node arrived whole.
    pub fn node_frame(&mut self, kind: FrameKind, body: &[u8], actions: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Ended | Phase::NodeLost { .. }) {
            return;
        }
        self.counters.bytes_from_node += frame_bytes(body);
        if let Err(error) = self.accept_from_node(kind, body, actions) {
            let message = format!("the node broke the protocol ({error}); its session is closed");
            self.lose_node(ErrorCode::NodeLost, message, actions);
        }
    }

    fn accept_from_node(
        &mut self,
        kind: FrameKind,
        body: &[u8],
        actions: &mut Vec<Action>,
    ) -> Result<(), SessionError> {
        match (kind, &self.phase) {
            (FrameKind::Reply, Phase::Running) => self.reply(body, actions),
            (FrameKind::Released, Phase::Running) => {
                let released = Released::decode(body).map_err(WireError::from)?;
                self.tape.regions.released(released.region, released.bytes);
                self.forward_to_client(body, actions);
                Ok(())
            }
            (FrameKind::WeightStored, Phase::Running) => self.weight_stored(body),
            (FrameKind::HaveAnswer, Phase::Running) => self.node_has(body, actions),
            (FrameKind::Status, Phase::Running) => {
                let status = Status::decode(body).map_err(WireError::from)?;
                let waiting = self.status_waiting.iter().position(|token| *token == status.token);
                let Some(index) = waiting else {
                    let value = status.token;
                    return Err(WireError::NoSuch { what: "status token", value }.into());
                };
                self.status_waiting.swap_remove(index);
                self.send_status(status, actions);
                Ok(())
            }
            (FrameKind::Welcome, Phase::AwaitingWelcome) => {
                let welcome = Welcome::decode(body).map_err(WireError::from)?;
                self.welcome(welcome, actions);
                Ok(())
            }
            (FrameKind::Refusal, _) => {
                let refusal = Refusal::decode(body).map_err(WireError::from)?;
                let code = u8::try_from(refusal.code).ok().and_then(ErrorCode::from_u8);
                let message = format!("the node refused the session: {}", refusal.message);
                self.lose_node(code.unwrap_or(ErrorCode::NodeLost), message, actions);
                Ok(())
            }
            (kind, _) => Err(SessionError::UnexpectedFrame {
                kind: kind_name(kind),
                state: "from a node in this state",
            }),
        }
    }

    fn welcome(&mut self, welcome: Welcome, actions: &mut Vec<Action>) {
        if !(PROTOCOL_OLDEST..=PROTOCOL_VERSION).contains(&welcome.protocol) {
            let message = format!(
                "the node speaks protocol {}, this host speaks {PROTOCOL_OLDEST} to \
                 {PROTOCOL_VERSION}; install the same version of genie-host and genie-node",
                welcome.protocol
            );
            return self.refuse(ErrorCode::Protocol, &message, actions);
        }
        self.phase = Phase::Running;
        self.node_protocol = welcome.protocol;
        self.devices = welcome.devices.clone();
        let answer = Welcome {
            // The client learns what the tape may hold all the way.
            protocol: self.client_protocol.min(welcome.protocol),
            mode: self.way.mode.clone(),
            route: self.way.route.clone(),
            software: format!("{} over {}", self.config.software, welcome.software),
            session: self.config.id,
            node_pid: welcome.pid,
            pid: self.config.pid,
            ..welcome
        };
        self.send_client(FrameKind::Welcome, answer.encode_to_vec(), actions);
    }

    fn reply(&mut self, body: &[u8], actions: &mut Vec<Action>) -> Result<(), SessionError> {
        let token = Reader::new(body).varint("token")?;
        match self.tape.tokens.take(token) {
            None => {
                return Err(WireError::NoSuch { what: "token", value: token }.into());
            }
            Some(Awaited::Plain) => {}
            Some(Awaited::Run { first_new, reserve }) => {
                if let Err(error) = self.run_made(body, first_new, reserve) {
                    // The client still waits for it.
                    let _ = self.tape.tokens.add(token, Awaited::Plain);
                    return Err(error);
                }
            }
        }
        self.counters.round_trips += 1;
        self.forward_to_client(body, actions);
        Ok(())
    }

    /// The storages that a synchronous operator made are alive from now on.
    fn run_made(
        &mut self,
        body: &[u8],
        first_new: StorageId,
        reserve: u64,
    ) -> Result<(), SessionError> {
        let (_, Reply::Outputs { storage_bytes, outputs, .. }) = Reply::decode(body)? else {
            return Ok(());
        };
        if storage_bytes.len() as u64 > reserve {
            let value = storage_bytes.len() as u64;
            return Err(SessionError::Limit { what: "storages made", value, max: reserve });
        }
        self.tape.segmenter.run_made(first_new, &storage_bytes, &outputs);
        let origin = Origin::Op(self.tape.segmenter.hasher.stage());
        for (index, bytes) in storage_bytes.into_iter().enumerate() {
            self.tape.storages.make(StorageId(first_new.0 + index as u64), bytes, origin)?;
        }
        Ok(())
    }

    fn weight_stored(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let stored = WeightStored::decode(body).map_err(WireError::from)?;
        if self.tape.storing == 0 {
            return Err(WireError::NoSuch { what: "weight being stored", value: 0 }.into());
        }
        self.tape.storing -= 1;
        match stored.refused.is_empty() {
            true => self.counters.weights_stored += 1,
            false => self.counters.weights_refused += 1,
        }
        Ok(())
    }

    /// The link to the node closed, or could not be made; `why` says what happened.
    pub fn node_closed(&mut self, why: &str, actions: &mut Vec<Action>) {
        let message = format!(
            "the node is gone ({why}); the tensors of this session that lived there are lost. \
             Start a new session, for example by genie.shutdown() and genie.init()"
        );
        self.lose_node(ErrorCode::NodeLost, message, actions);
    }

    /// The session cannot be given a node; `message` says why and what to do.
    pub fn no_node(&mut self, message: &str, actions: &mut Vec<Action>) {
        self.refuse(ErrorCode::NodeLost, message, actions);
    }

    fn lose_node(&mut self, code: ErrorCode, message: String, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Ended | Phase::NodeLost { .. } => return,
            Phase::AwaitingHello | Phase::AwaitingWelcome => {
                return self.refuse(code, &message, actions);
            }
            Phase::Running => {}
        }
        self.phase = Phase::NodeLost { code, message };
        for (token, wanted) in std::mem::take(&mut self.questions) {
            self.answer_with_nothing(token, wanted.len(), actions);
        }
        self.wanted_waiting = 0;
        for token in std::mem::take(&mut self.status_waiting) {
            self.send_status(Status { token, ..Status::default() }, actions);
        }
        self.answer_for_node(actions);
    }

    /// Fails every token that waits and gives upload memory back.
    fn answer_for_node(&mut self, actions: &mut Vec<Action>) {
        for released in self.tape.regions.release_all() {
            self.send_client(FrameKind::Released, released.encode_to_vec(), actions);
        }
        let Phase::NodeLost { code, message } = &self.phase else {
            return;
        };
        let (code, message) = (*code, message.clone());
        for token in self.tape.tokens.take_all() {
            let mut body = Vec::with_capacity(message.len() + 16);
            Reply::Error { code, message: &message }.encode(token, &mut body);
            self.counters.round_trips += 1;
            self.send_client(FrameKind::Reply, body, actions);
        }
    }

    /// The client is gone: the session ends, and with the node's link its storages.
    pub fn client_closed(&mut self, actions: &mut Vec<Action>) {
        self.end(actions);
    }

    /// Tells the client why the session ends, and ends it.
    pub fn refuse(&mut self, code: ErrorCode, message: &str, actions: &mut Vec<Action>) {
        if self.phase == Phase::Ended {
            return;
        }
        let refusal = Refusal { code: code as u32, message: message.to_owned() };
        self.send_client(FrameKind::Refusal, refusal.encode_to_vec(), actions);
        self.end(actions);
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            actions.push(Action::End);
        }
    }

    fn forward_to_node(&mut self, body: &[u8], actions: &mut Vec<Action>) {
        self.counters.bytes_to_node += frame_bytes(body);
        actions.push(Action::ForwardToNode);
    }

    fn forward_to_client(&mut self, body: &[u8], actions: &mut Vec<Action>) {
        self.counters.bytes_to_client += frame_bytes(body);
        actions.push(Action::ForwardToClient);
    }

    fn send_client(&mut self, kind: FrameKind, body: Vec<u8>, actions: &mut Vec<Action>) {
        self.counters.bytes_to_client += frame_bytes(&body);
        actions.push(Action::ToClient(kind, body));
    }
}

fn frame_bytes(body: &[u8]) -> u64 {
    (HEADER_BYTES + body.len()) as u64
}

fn weight_hash(bytes: &[u8]) -> Result<WeightHash, SessionError> {
    bytes.try_into().map_err(|_| {
        WireError::Malformed { what: "weight hash", why: "it does not have 32 bytes" }.into()
    })
}

fn kind_name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Hello => "Hello",
        FrameKind::Tape => "Tape",
        FrameKind::Region => "Region",
        FrameKind::Have => "Have",
        FrameKind::StatusRequest => "StatusRequest",
        FrameKind::TraceRequest => "TraceRequest",
        FrameKind::WeightServe => "WeightServe",
        FrameKind::WeightFetch => "WeightFetch",
        FrameKind::Welcome => "Welcome",
        FrameKind::Reply => "Reply",
        FrameKind::Released => "Released",
        FrameKind::HaveAnswer => "HaveAnswer",
        FrameKind::WeightStored => "WeightStored",
        FrameKind::Status => "Status",
        FrameKind::Refusal => "Refusal",
        FrameKind::TraceAnswer => "TraceAnswer",
        FrameKind::WeightServing => "WeightServing",
        FrameKind::Payload => "Payload",
    }
}
