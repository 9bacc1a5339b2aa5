//! A host and node in one thread: storages are vectors of bytes, operators make empty ones.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use genie_shm::UnixLink;
use genie_transport::{Link, LinkError, SharedMemory};
use genie_wire::control::{
    Counter, Have, HaveAnswer, Refusal, Region, Released, Status, StatusRequest, Welcome,
};
use genie_wire::frame::FrameKind;
use genie_wire::record::{MarkKind, WeightHash};
use genie_wire::{ErrorCode, PROTOCOL_VERSION, Record, Reply, StorageId, TapeDecoder};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A storage of this size fails to be read.
pub const POISONED_BYTES: u64 = 0xbad0;
/// Reading a storage of this size says that the node is gone.
pub const LOST_BYTES: u64 = 0xdead0;

#[derive(Clone, Copy)]
pub struct Behaviour {
    /// The version it speaks.
    pub protocol: u32,
    /// Answer reads only after `release_reads`.
    pub hold_reads: bool,
    /// Answer questions for weights only after `release_reads`.
    pub hold_answers: bool,
    /// Take nothing after the hello until `release_reads`.
    pub stall: bool,
    pub vanish_at_fence: bool,
    pub refuse: bool,
    /// Refuse and leave without a look at the hello.
    pub refuse_unasked: bool,
    /// Refuse and leave at the first operator, whatever comes behind it.
    pub refuse_at_op: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            protocol: PROTOCOL_VERSION,
            hold_reads: false,
            stall: false,
            hold_answers: false,
            vanish_at_fence: false,
            refuse: false,
            refuse_unasked: false,
            refuse_at_op: false,
        }
    }
}

pub struct FakeHost {
    released: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What the host saw until the client left.
#[derive(Debug, Default)]
pub struct Seen {
    pub ops: u64,
    pub symbols: Vec<String>,
    pub marks: Vec<(MarkKind, u32)>,
    pub settings: Vec<(u32, Vec<u8>)>,
    pub live_storages: usize,
    /// Answers that were held back at a time.
    pub most_held: usize,
}

struct Host {
    link: UnixLink,
    behaviour: Behaviour,
    released: Arc<AtomicBool>,
    decoder: TapeDecoder,
    storages: HashMap<StorageId, Vec<u8>>,
    weights: HashMap<WeightHash, Vec<u8>>,
    regions: HashMap<u32, SharedMemory>,
    held: Vec<Vec<u8>>,
    held_answers: Vec<Vec<u8>>,
    seen: Seen,
}

impl FakeHost {
    pub fn start(behaviour: Behaviour) -> (UnixLink, FakeHost) {
        let (client, server) = UnixLink::pair().expect("a pair of sockets");
        let released = Arc::new(AtomicBool::new(false));
        let mut host = Host {
            link: server,
            behaviour,
            released: released.clone(),
            decoder: TapeDecoder::new(),
            storages: HashMap::new(),
            weights: HashMap::new(),
            regions: HashMap::new(),
            held: Vec::new(),
            held_answers: Vec::new(),
            seen: Seen::default(),
        };
        let thread = std::thread::spawn(move || {
            host.serve();
            host.seen.live_storages = host.storages.len();
            host.seen
        });
        (client, FakeHost { released, thread })
    }

    pub fn release_reads(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    pub fn join(self) -> Seen {
        self.thread.join().expect("the host's thread ends well")
    }
}

/// The client left, or this host's behaviour says to leave.
struct Over;

impl Host {
    fn serve(&mut self) {
        if self.behaviour.refuse_unasked {
            let _ = self.refuse();
            return;
        }
        while self.turn().is_ok() {}
    }

    fn turn(&mut self) -> Result<(), Over> {
        let write = if self.link.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
        let slice = Timespec { tv_sec: 0, tv_nsec: Duration::from_millis(5).as_nanos() as i64 };
        let event = self.link.event_fd();
        let _ = poll(&mut [PollFd::new(&event, PollFlags::IN | write)], Some(&slice));
        self.link.flush().map_err(|_| Over)?;
        if self.released.load(Ordering::SeqCst) {
            for body in std::mem::take(&mut self.held_answers) {
                self.send(FrameKind::HaveAnswer, &body)?;
            }
            for body in std::mem::take(&mut self.held) {
                self.send(FrameKind::Reply, &body)?;
            }
        } else if self.behaviour.stall && !self.regions.is_empty() {
            return Ok(());
        }
        while let Some(frame) = self.link.poll().map_err(|_| Over)? {
            let body = &*frame.body;
            match frame.kind {
                FrameKind::Hello if self.behaviour.refuse => self.refuse()?,
                FrameKind::Hello => {
                    let welcome =
                        Welcome { protocol: self.behaviour.protocol, ..Welcome::default() };
                    self.send(FrameKind::Welcome, &welcome.encode_to_vec())?;
                }
                FrameKind::Region => {
                    let region = Region::decode(body).expect("a region");
                    self.regions.insert(region.id, frame.memory.expect("its memory"));
                }
                FrameKind::Have => {
                    let have = Have::decode(body).expect("a question");
                    let mut found = Vec::new();
                    for wanted in &have.wanted {
                        let weight = self.weights.get(&*wanted.hash).cloned();
                        found.push(weight.is_some());
                        if let Some(weight) = weight {
                            assert_eq!(weight.len() as u64, wanted.bytes);
                            self.storages.insert(StorageId(wanted.storage), weight);
                        }
                    }
                    let answer = HaveAnswer { token: have.token, found }.encode_to_vec();
                    match self.behaviour.hold_answers && !self.released.load(Ordering::SeqCst) {
                        true => self.held_answers.push(answer),
                        false => self.send(FrameKind::HaveAnswer, &answer)?,
                    }
                }
                FrameKind::StatusRequest => {
                    let token = StatusRequest::decode(body).expect("a question").token;
                    let counters = vec![Counter { name: "host.test".into(), value: 7 }];
                    let status = Status { token, counters, words: vec![] };
                    self.send(FrameKind::Status, &status.encode_to_vec())?;
                }
                FrameKind::Tape => self.execute(body)?,
                kind => panic!("a client does not send {kind:?}"),
            }
        }
        Ok(())
    }

    fn refuse(&mut self) -> Result<(), Over> {
        let refusal = Refusal { code: 1, message: "too many sessions".into() };
        self.send(FrameKind::Refusal, &refusal.encode_to_vec())
    }

    fn execute(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut position = 0;
        while let Some(record) = decoder.next(bytes, &mut position).expect("a valid tape") {
            self.record(record)?;
        }
        self.decoder = decoder;
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), Over> {
        match record {
            Record::Op { .. } if self.behaviour.refuse_at_op => {
                self.refuse()?;
                return Err(Over);
            }
            Record::Op { template, first_new, inputs, .. } => {
                self.seen.ops += 1;
                assert!(inputs.iter().all(|id| self.storages.contains_key(id)));
                for (at, bytes) in (0..).zip(&template.new_storages) {
                    self.storages.insert(StorageId(first_new.0 + at), vec![0; *bytes as usize]);
                }
            }
            Record::Run { token, first_new, .. } => {
                self.storages.insert(first_new, vec![0; 16]);
                let outputs =
                    Reply::Outputs { storage_bytes: vec![16], outputs: vec![], scalars: &[] };
                self.reply(token, &outputs)?;
            }
            Record::Alloc { id, bytes } => {
                self.storages.insert(id, vec![0; bytes as usize]);
            }
            Record::Free { id } => drop(self.storages.remove(&id).expect("freed once")),
            Record::UploadInline { id, offset, bytes } => {
                self.storage(id)[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            Record::Upload { id, offset, len, source } => {
                let mut bytes = vec![0; len as usize];
                self.regions[&source.region].read(source.offset, &mut bytes).expect("in range");
                self.storage(id)[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                let released = Released { region: source.region, bytes: len };
                self.send(FrameKind::Released, &released.encode_to_vec())?;
            }
            Record::StoreWeight { id, hash } => {
                let bytes = self.storage(id).clone();
                assert_eq!(WeightHash::from(blake3::hash(&bytes)), hash);
                self.weights.insert(hash, bytes);
            }
            Record::BindWeight { id, hash } => {
                let bytes = self.weights[&hash].clone();
                *self.storage(id) = bytes;
            }
            Record::Read { token, id, offset, len, dest } => {
                let storage = self.storage(id).clone();
                if storage.len() as u64 == LOST_BYTES {
                    let code = ErrorCode::NodeLost;
                    let message = "the node is gone";
                    return self.reply(token, &Reply::Error { code, message });
                }
                if storage.len() as u64 == POISONED_BYTES {
                    let code = ErrorCode::OutOfMemory;
                    return self.reply(token, &Reply::Error { code, message: "no room" });
                }
                let bytes = &storage[offset as usize..][..len as usize];
                match dest {
                    None => self.reply(token, &Reply::Bytes(bytes))?,
                    Some(span) => {
                        self.regions[&span.region].write(span.offset, bytes).expect("in range");
                        self.reply(token, &Reply::Done)?;
                    }
                }
            }
            Record::Fence { .. } if self.behaviour.vanish_at_fence => return Err(Over),
            Record::Fence { token } => self.reply(token, &Reply::Done)?,
            Record::GetGeneratorState { token } => {
                self.send_reply(token, &Reply::Bytes(&[1, 2, 3]))?;
            }
            Record::Symbol { text, .. } => self.seen.symbols.push(text.into()),
            Record::Mark { kind, symbol } => self.seen.marks.push((kind, symbol)),
            Record::Settings { threads, settings } => {
                self.seen.settings.push((threads, settings.to_vec()));
            }
            Record::Define { .. } | Record::Seed { .. } | Record::Skip { .. } => {}
            other => panic!("not expected here: {other:?}"),
        }
        Ok(())
    }

    fn storage(&mut self, id: StorageId) -> &mut Vec<u8> {
        self.storages.get_mut(&id).expect("a live storage")
    }

    fn reply(&mut self, token: u64, reply: &Reply) -> Result<(), Over> {
        if self.behaviour.hold_reads && !self.released.load(Ordering::SeqCst) {
            let mut body = Vec::new();
            reply.encode(token, &mut body);
            self.held.push(body);
            self.seen.most_held = self.seen.most_held.max(self.held.len());
            return Ok(());
        }
        self.send_reply(token, reply)
    }

    fn send_reply(&mut self, token: u64, reply: &Reply) -> Result<(), Over> {
        let mut body = Vec::new();
        reply.encode(token, &mut body);
        self.send(FrameKind::Reply, &body)
    }

    fn send(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), Over> {
        match self.link.post_send(kind, &[body], None) {
            Ok(()) => Ok(()),
            Err(LinkError::OutOfCredit { .. }) => panic!("the tests send little"),
            Err(_) => Err(Over),
        }
    }
}
