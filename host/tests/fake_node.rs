//! A node for tests: keeps bytes, computes nothing, speaks the protocol. Built as an example, so
//! that the host can start it like the real one.
//!
//! `FAKE_NODE=mute` never says that it is ready; `FAKE_NODE=broken` ends with a complaint.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use genie_shm::{Listener, UnixLink};
use genie_transport::{Link, LinkError, SharedMemory};
use genie_wire::control::{Counter, Hello, Region, Released, Status, StatusRequest, Welcome};
use genie_wire::control::{Have, HaveAnswer, WeightStored};
use genie_wire::frame::FrameKind;
use genie_wire::record::{StorageId, WeightHash};
use genie_wire::{ErrorCode, PROTOCOL_VERSION, Record, Reply, TapeDecoder};
use prost::Message;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

type Weights = Arc<Mutex<HashMap<WeightHash, Vec<u8>>>>;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name).expect("the host passes it");
        args[at + 1].clone()
    };
    let parent = value("--parent-pid").parse().expect("a process id");
    let parent = Pid::from_raw(parent).expect("a process id");
    let parent = pidfd_open(parent, PidfdFlags::empty()).expect("the host lives");
    match std::env::var("FAKE_NODE").as_deref() {
        Ok("mute") => {
            eprintln!("the node is mute");
            poll(&mut [PollFd::new(&parent, PollFlags::IN)], None).expect("wait");
            return;
        }
        Ok("broken") => {
            eprintln!("libtorch_fake.so: cannot open shared object file");
            std::process::exit(127);
        }
        _ => {}
    }
    let address = value("--listen");
    let listener = Listener::bind(address.strip_prefix("unix:").expect("unix:PATH")).unwrap();
    println!("ready {address}");
    let weights = Weights::default();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.event_fd(), PollFlags::IN),
            PollFd::new(&parent, PollFlags::IN),
        ];
        poll(&mut fds, None).expect("wait");
        if !fds[1].revents().is_empty() {
            return;
        }
        if let Ok(Some(link)) = listener.accept() {
            let weights = weights.clone();
            std::thread::spawn(move || serve(link, weights));
        }
    }
}

struct Session {
    link: UnixLink,
    decoder: TapeDecoder,
    storages: HashMap<StorageId, Vec<u8>>,
    regions: HashMap<u32, SharedMemory>,
    weights: Weights,
}

fn serve(link: UnixLink, weights: Weights) {
    let mut session = Session {
        link,
        decoder: TapeDecoder::new(),
        storages: HashMap::new(),
        regions: HashMap::new(),
        weights,
    };
    // Either the host left, or a test broke something: this connection ends.
    while session.step().is_ok() {}
}

impl Session {
    fn step(&mut self) -> Result<(), LinkError> {
        while let Some(frame) = self.link.poll()? {
            match frame.kind {
                FrameKind::Hello => {
                    let hello = Hello::decode(&frame.body[..]).expect("a hello");
                    let welcome = Welcome {
                        protocol: PROTOCOL_VERSION,
                        software: format!("fake node for {}", hello.identity),
                        pid: std::process::id(),
                        ..Welcome::default()
                    };
                    self.send(FrameKind::Welcome, &welcome.encode_to_vec())?;
                }
                FrameKind::Region => {
                    let region = Region::decode(&frame.body[..]).expect("a region");
                    self.regions.insert(region.id, frame.memory.expect("memory beside it"));
                }
                FrameKind::StatusRequest => {
                    let request = StatusRequest::decode(&frame.body[..]).expect("a request");
                    let value = self.storages.len() as u64;
                    let counter = Counter { name: "node.storages".to_owned(), value };
                    let status =
                        Status { token: request.token, counters: vec![counter], words: vec![] };
                    self.send(FrameKind::Status, &status.encode_to_vec())?;
                }
                FrameKind::Tape => self.tape(&frame.body)?,
                FrameKind::Have => {
                    let have = Have::decode(&frame.body[..]).expect("a question");
                    let weights = self.weights.lock().unwrap().clone();
                    let found = have.wanted.iter().map(|wanted| {
                        let weight = weights.get(&wanted.hash[..]);
                        let id = StorageId(wanted.storage);
                        weight.map(|bytes| self.storages.insert(id, bytes.clone())).is_some()
                    });
                    let answer = HaveAnswer { token: have.token, found: found.collect() };
                    self.send(FrameKind::HaveAnswer, &answer.encode_to_vec())?;
                }
                _ => return Err(LinkError::Closed),
            }
        }
        let write = if self.link.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
        poll(&mut [PollFd::new(&self.link, PollFlags::IN | write)], None).expect("wait");
        self.link.flush()
    }

    fn send(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), LinkError> {
        self.link.post_send(kind, &[body], None)
    }

    fn reply(&mut self, token: u64, reply: &Reply) -> Result<(), LinkError> {
        let mut body = Vec::new();
        reply.encode(token, &mut body);
        self.send(FrameKind::Reply, &body)
    }

    fn tape(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut position = 0;
        while let Some(record) = decoder.next(bytes, &mut position)? {
            self.record(record)?;
        }
        self.decoder = decoder;
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), LinkError> {
        match record {
            Record::Alloc { id, bytes } => {
                self.storages.insert(id, vec![0; bytes as usize]);
            }
            Record::Op { template, first_new, .. } => {
                for (index, bytes) in template.new_storages.iter().enumerate() {
                    let id = StorageId(first_new.0 + index as u64);
                    self.storages.insert(id, vec![0; *bytes as usize]);
                }
            }
            Record::Free { id } => {
                self.storages.remove(&id);
            }
            Record::UploadInline { id, offset, bytes } => {
                let storage = self.storages.get_mut(&id).expect("the host checked");
                storage[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
            }
            Record::Upload { id, offset, len, source } => {
                let storage = self.storages.get_mut(&id).expect("the host checked");
                let to = &mut storage[offset as usize..(offset + len) as usize];
                self.regions[&source.region].read(source.offset, to)?;
                let released = Released { region: source.region, bytes: len };
                self.send(FrameKind::Released, &released.encode_to_vec())?;
            }
            Record::StoreWeight { id, hash } => {
                let bytes = self.storages[&id].clone();
                let stored = WeightStored {
                    hash: hash.to_vec(),
                    bytes: bytes.len() as u64,
                    refused: String::new(),
                };
                self.weights.lock().unwrap().insert(hash, bytes);
                self.send(FrameKind::WeightStored, &stored.encode_to_vec())?;
            }
            Record::BindWeight { id, hash } => {
                let bytes = self.weights.lock().unwrap()[&hash].clone();
                self.storages.insert(id, bytes);
            }
            Record::Read { token, id, offset, len, dest } => {
                let bytes = self.storages[&id][offset as usize..(offset + len) as usize].to_vec();
                match dest {
                    None => self.reply(token, &Reply::Bytes(&bytes))?,
                    Some(dest) => {
                        self.regions[&dest.region].write(dest.offset, &bytes)?;
                        self.reply(token, &Reply::Done)?;
                    }
                }
            }
            Record::Fence { token } => self.reply(token, &Reply::Done)?,
            Record::Run { token, .. } => {
                let error = Reply::Error { code: ErrorCode::NotImplemented, message: "fake" };
                self.reply(token, &error)?;
            }
            _ => {}
        }
        Ok(())
    }
}
