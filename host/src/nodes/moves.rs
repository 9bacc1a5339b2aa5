//! Weights that a session's node takes from another node instead of from the program.
//!
//! A node that says it lacks weights which another node has is not believed yet: the other one is
//! asked to **serve** each, then the session's node to **fetch** it. The session hears the answer
//! when all that can come have come, as if its node had had them. Whatever goes wrong, it hears
//! what it would have heard: the weight is not there, and the program uploads it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_engine::HOST_TOKENS;
use genie_engine::session::Wanted;
use genie_remote::RemoteLink;
use genie_remote::message::TEXT_BYTES_MAX;
use genie_remote::moves::{MOVE_BYTES_MAX, deadline};
use genie_transport::{Link, LinkError};
use genie_wire::control::{HaveAnswer, WeightFetch, WeightServe, WeightServing, WeightStored};
use genie_wire::frame::FrameKind;
use genie_wire::record::WeightHash;
use prost::Message;

use super::places::{Place, Places};

/// Smaller weights are uploaded: that takes less time than the round trips of a move.
const MOVE_BYTES_MIN: u64 = 256 << 10;
/// Moves of one session at a time.
const MOVES_MAX: usize = 8;
/// Nodes that give weights to one session at a time.
pub const SOURCES_MAX: usize = 4;
/// How long the link to a giving node is kept for the next weight.
const IDLE_FOR: Duration = Duration::from_secs(5);

/// A link to a node that gives weights.
pub trait Source: Link {
    /// Whether it may be asked already.
    fn is_ready(&self) -> bool;

    /// An address that it told, as others reach it.
    fn resolve(&self, address: &str) -> String;
}

impl Source for RemoteLink {
    fn is_ready(&self) -> bool {
        RemoteLink::is_ready(self)
    }

    fn resolve(&self, address: &str) -> String {
        RemoteLink::resolve(self, address)
    }
}

/// The host's other nodes.
pub trait Others: Send + Sync {
    fn places(&self) -> &Places;

    /// Begins to connect to a node.
    fn reach(&self, node: usize) -> Result<Box<dyn Source>, String>;

    /// The transport by which a weight goes from one node to the other, if there is one.
    fn transport(&self, from: usize, to: usize) -> Option<String>;

    /// The node's name, for people.
    fn name(&self, node: usize) -> String;

    /// A move ended: the bytes that moved.
    fn count(&self, moved: Option<u64>);
}

/// What is to be done about a move.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Send this to the session's node.
    Fetch(WeightFetch),
    /// Tell the session.
    Answer(HaveAnswer),
}

/// The moves of one session.
pub struct Moves {
    others: Arc<dyn Others>,
    identity: Arc<str>,
    here: Place,
    sources: Vec<Giving>,
    /// Questions of the session that wait for weights to come, by token.
    questions: HashMap<u64, Question>,
    /// Weights that may come, in order.
    waiting: VecDeque<Coming>,
    /// What the session's node fetches, by a token of the host's.
    fetching: HashMap<u64, Fetching>,
    next_token: u64,
    /// Questions whose last weight came, or does not.
    answers: Vec<HaveAnswer>,
}

struct Question {
    found: Vec<bool>,
    /// Weights that are still to come.
    left: usize,
}

/// A weight that a question waits for.
#[derive(Clone, Copy)]
struct Coming {
    question: u64,
    /// Which of the question's.
    index: usize,
    wanted: Wanted,
}

struct Giving {
    place: Place,
    link: Box<dyn Source>,
    /// Weights that the node was asked for or will be, in order; the first `sent` were.
    asked: VecDeque<Asked>,
    sent: usize,
    idle_since: Instant,
}

struct Asked {
    coming: Coming,
    transport: String,
    connection: u64,
    secret: [u8; 32],
    until: Instant,
}

struct Fetching {
    coming: Coming,
    from: Place,
}

impl Moves {
    pub fn new(others: Arc<dyn Others>, identity: &str, here: Place) -> Self {
        Moves {
            others,
            identity: identity.into(),
            here,
            sources: Vec::new(),
            questions: HashMap::new(),
            waiting: VecDeque::new(),
            fetching: HashMap::new(),
            next_token: HOST_TOKENS,
            answers: Vec::new(),
        }
    }

    /// The session's node stored a weight, or refused to.
    pub fn stored(&self, stored: &WeightStored) {
        if let Ok(hash) = WeightHash::try_from(&stored.hash[..])
            && stored.refused.is_empty()
        {
            self.others.places().note(&self.identity, &hash, stored.bytes, self.here);
        }
    }

    /// The session's node answered a question for these weights. `true`: the session is not told
    /// yet, as some may come from other nodes.
    pub fn answered(&mut self, answer: &HaveAnswer, wanted: &[Wanted], now: Instant) -> bool {
        let places = self.others.places();
        let mut left = 0;
        for (index, (wanted, found)) in wanted.iter().zip(&answer.found).enumerate() {
            if *found {
                places.note(&self.identity, &wanted.hash, wanted.bytes, self.here);
                continue;
            }
            places.forget(&self.identity, &wanted.hash, self.here);
            if self.place(wanted, now).is_some() {
                self.waiting.push_back(Coming { question: answer.token, index, wanted: *wanted });
                left += 1;
            }
        }
        if left == 0 {
            return false;
        }
        self.questions.insert(answer.token, Question { found: answer.found.clone(), left });
        self.start(now);
        true
    }

    /// The session's node answered what the host asked it; whether that was so.
    pub fn fetched(&mut self, answer: &HaveAnswer, now: Instant) -> bool {
        let Some(Fetching { coming, from }) = self.fetching.remove(&answer.token) else {
            return false;
        };
        let Wanted { hash, bytes, .. } = coming.wanted;
        let came = answer.found == [true];
        self.others.count(came.then_some(bytes));
        match came {
            true => self.others.places().note(&self.identity, &hash, bytes, self.here),
            false => {
                let reason = "it did not arrive (the node's log says why)";
                self.failed(from, Some(&hash), reason, now);
            }
        }
        self.settle(coming, came);
        true
    }

    /// A weight came, or does not.
    fn settle(&mut self, coming: Coming, came: bool) {
        let Some(question) = self.questions.get_mut(&coming.question) else { return };
        question.found[coming.index] = came;
        question.left -= 1;
        if question.left == 0 {
            let token = coming.question;
            let found = self.questions.remove(&token).map(|question| question.found);
            self.answers.push(HaveAnswer { token, found: found.unwrap_or_default() });
        }
    }

    /// Another node from which a weight can be taken, if that is worth it.
    fn place(&self, wanted: &Wanted, now: Instant) -> Option<(Place, String)> {
        if !(MOVE_BYTES_MIN..=MOVE_BYTES_MAX).contains(&wanted.bytes) {
            return None;
        }
        let to = self.here.node;
        let found = self.others.places().find(&self.identity, &wanted.hash, to, now)?;
        let place = (found.bytes == wanted.bytes).then_some(found.place)?;
        Some((place, self.others.transport(place.node, to)?))
    }

    /// Asks other nodes for weights that wait, as many as may move at a time; whether any were.
    fn start(&mut self, now: Instant) -> bool {
        let mut begun = false;
        loop {
            let asked: usize = self.sources.iter().map(|source| source.asked.len()).sum();
            if asked + self.fetching.len() >= MOVES_MAX {
                return begun;
            }
            let Some(coming) = self.waiting.pop_front() else {
                return begun;
            };
            match self.begin(coming, now) {
                Some(()) => begun = true,
                None => self.settle(coming, false),
            }
        }
    }

    /// Asks another node for a weight.
    fn begin(&mut self, coming: Coming, now: Instant) -> Option<()> {
        let (place, transport) = self.place(&coming.wanted, now)?;
        let mut random = [0; 40];
        let (Ok(index), true) = (self.source(place, now), fill_random(&mut random)) else {
            return None;
        };
        let (connection, secret) = random.split_first_chunk::<8>().expect("40 are more than 8");
        self.sources[index].asked.push_back(Asked {
            coming,
            transport,
            connection: u64::from_le_bytes(*connection),
            secret: secret.try_into().expect("32 are left"),
            until: now + deadline(0),
        });
        Some(())
    }

    /// The link to a node, begun now or before.
    fn source(&mut self, place: Place, now: Instant) -> Result<usize, ()> {
        if let Some(index) = self.sources.iter().position(|source| source.place == place) {
            return Ok(index);
        }
        if self.sources.len() >= SOURCES_MAX {
            return Err(());
        }
        match self.others.reach(place.node) {
            Ok(link) => {
                let asked = VecDeque::new();
                self.sources.push(Giving { place, link, asked, sent: 0, idle_since: now });
                Ok(self.sources.len() - 1)
            }
            Err(reason) => {
                self.failed(place, None, &reason, now);
                Err(())
            }
        }
    }

    /// Talks to the giving nodes; what follows from that is appended to `steps`.
    pub fn drive(&mut self, now: Instant, steps: &mut Vec<Step>) {
        loop {
            self.drive_sources(now, steps);
            if !self.start(now) {
                break;
            }
        }
        steps.extend(self.answers.drain(..).map(Step::Answer));
    }

    fn drive_sources(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let mut index = 0;
        while index < self.sources.len() {
            let ended = self.drive_source(index, now, steps);
            let source = &self.sources[index];
            let late = source.asked.front().is_some_and(|asked| asked.until <= now);
            let idle = source.asked.is_empty() && now >= source.idle_since + IDLE_FOR;
            match ended {
                Ok(()) if idle => drop(self.sources.swap_remove(index)),
                Ok(()) if !late => index += 1,
                ended => {
                    let reason = ended.err().unwrap_or_else(|| "no answer in time".to_owned());
                    let source = self.sources.swap_remove(index);
                    if !source.asked.is_empty() {
                        self.failed(source.place, None, &reason, now);
                    }
                    for asked in source.asked {
                        self.others.count(None);
                        self.settle(asked.coming, false);
                    }
                }
            }
        }
    }

    fn drive_source(
        &mut self,
        index: usize,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> Result<(), String> {
        loop {
            let source = &mut self.sources[index];
            // First, so that what is there is ready when it is asked for.
            let frame = source.link.poll().map_err(|error| error.to_string())?;
            source.ask(&self.identity).map_err(|error| error.to_string())?;
            match frame {
                None => return Ok(()),
                Some(frame) if frame.kind == FrameKind::WeightServing && source.sent > 0 => {
                    let serving = WeightServing::decode(&frame.body[..]);
                    let serving = serving.map_err(|error| error.to_string())?;
                    if serving.address.len().max(serving.refused.len()) > TEXT_BYTES_MAX {
                        return Err("its answer is too long".to_owned());
                    }
                    self.serving(index, serving, now, steps);
                }
                Some(frame) => return Err(format!("it sent {:?} unasked", frame.kind)),
            }
        }
    }

    /// The oldest question was answered.
    fn serving(
        &mut self,
        index: usize,
        serving: WeightServing,
        now: Instant,
        steps: &mut Vec<Step>,
    ) {
        let source = &mut self.sources[index];
        let Some(asked) = source.asked.pop_front() else { return };
        source.sent -= 1;
        source.idle_since = now;
        let (from, coming) = (source.place, asked.coming);
        let hash = coming.wanted.hash;
        if !serving.refused.is_empty() {
            self.others.places().forget(&self.identity, &hash, from);
            self.others.count(None);
            let (name, reason) = (self.others.name(from.node), serving.refused);
            tracing::info!("a weight is uploaded, as {name} does not give it: {reason}");
            return self.settle(coming, false);
        }
        let address = source.link.resolve(&serving.address);
        let token = self.next_token;
        self.next_token += 1;
        self.fetching.insert(token, Fetching { coming, from });
        steps.push(Step::Fetch(WeightFetch {
            token,
            hash: hash.to_vec(),
            bytes: serving.bytes,
            address,
            connection: asked.connection,
            secret: asked.secret.to_vec(),
            transport: asked.transport,
            deadline_ms: deadline(serving.bytes).as_millis().try_into().unwrap_or(u32::MAX),
            storage: coming.wanted.id.0,
        }));
    }

    /// A move from there failed; the way is not tried again for a while.
    fn failed(&self, from: Place, hash: Option<&WeightHash>, reason: &str, now: Instant) {
        let places = self.others.places();
        if let Some(hash) = hash {
            places.forget(&self.identity, hash, from);
        }
        places.avoid(from.node, self.here.node, now);
        let (from, to) = (self.others.name(from.node), self.others.name(self.here.node));
        tracing::warn!("a weight is uploaded instead of moved from {from} to {to}: {reason}");
    }

    /// What to wait for, besides the session's own links.
    pub fn event_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().map(|source| source.link.event_fd())
    }

    /// When [`Moves::drive`] is due although nothing happens.
    pub fn due(&self) -> Option<Instant> {
        let due = |source: &Giving| {
            let until = source.asked.front().map(|asked| asked.until);
            until.unwrap_or(source.idle_since + IDLE_FOR)
        };
        self.sources.iter().map(due).min()
    }
}

impl Giving {
    /// Sends the questions that wait, once the node can be asked.
    fn ask(&mut self, identity: &str) -> Result<(), LinkError> {
        while self.link.is_ready()
            && let Some(asked) = self.asked.get(self.sent)
        {
            let serve = WeightServe {
                identity: identity.to_owned(),
                hash: asked.coming.wanted.hash.to_vec(),
                connection: asked.connection,
                secret: asked.secret.to_vec(),
                transport: asked.transport.clone(),
                device: self.place.device,
            };
            self.link.post_send(FrameKind::WeightServe, &[&serve.encode_to_vec()], None)?;
            self.sent += 1;
        }
        Ok(())
    }
}

/// Whether the kernel gave enough.
fn fill_random(bytes: &mut [u8]) -> bool {
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::rand::getrandom(&mut *bytes, flags) == Ok(bytes.len())
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
