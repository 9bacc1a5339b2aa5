//! Who the peer is: greetings, and proofs of a data connection's secret.

use std::time::Instant;

use genie_transport::transport::{Cause, Completion, Result, TransportError};
use ring::hmac;

use super::{CONTROL, DATA, Exchange, Stage};
use crate::memory::invalid;
use crate::record::{FRAME, HEAD_BYTES, Hello, Record, protocol};

impl Exchange {
    /// The carrier can take bytes. `binding` is what ties a proof to this very connection: 32 bytes
    /// of the TLS exporter, or nothing.
    pub fn greet(&mut self, binding: Vec<u8>, now: Instant) -> Result<()> {
        self.binding = binding;
        self.heard = now;
        if !self.initiator {
            self.send_hello()?;
            if self.data_lane == DATA {
                Record::Lane.encode(self.lanes[DATA].record(None));
            }
        }
        Ok(())
    }

    /// 32 bytes from the two nonces: for transports without TLS. Who reads along knows them.
    pub fn plain_secret(&self, label: &[u8]) -> Result<[u8; 32]> {
        let Some(peer) = self.peer.filter(|_| self.is_open()) else {
            return Err(invalid("the connection is not set up: it has no secret yet".into()));
        };
        let (first, second) = self.in_order(&self.nonce, &peer.nonce);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[first.as_slice(), second].concat());
        Ok(tag(&key, &[b"genie secret v1", label]))
    }

    pub(super) fn on_hello(&mut self, hello: Hello) -> Result<()> {
        self.peer = Some(hello);
        if hello.secured != self.secret.is_some() {
            return Err(refused(match hello.secured {
                true => "asks for a data connection's secret, this end was given none",
                false => "knows no secret, this end asks for a data connection's",
            }));
        }
        if hello.connection != self.connection {
            let (theirs, ours) = (hello.connection, self.connection);
            return Err(refused(&format!("means connection {theirs:#x}, this end {ours:#x}")));
        }
        if let Some(sharing) = &mut self.sharing {
            let beside = self.descriptors.pop_front().filter(|_| hello.beside);
            let beside = beside.ok_or_else(|| protocol("a greeting without its memory".into()))?;
            sharing.greeted(beside)?;
        } else if hello.beside {
            return Err(protocol("a greeting with memory, which cannot be passed here".into()));
        }
        if self.initiator {
            self.send_hello()?;
        }
        match self.secret {
            None => self.open(),
            Some(_) if self.initiator => {
                self.send_proof();
                self.stage = Stage::Proving;
            }
            Some(_) => self.stage = Stage::Proving,
        }
        Ok(())
    }

    pub(super) fn on_proof(&mut self, proof: &[u8; 32]) -> Result<()> {
        let (key, proved) = self.proof_of(!self.initiator).expect("both are known here");
        if hmac::verify(&key, &proved, proof).is_err() {
            return Err(refused("does not know the secret of this data connection"));
        }
        if !self.initiator {
            self.send_proof();
        }
        self.open();
        Ok(())
    }

    fn send_hello(&mut self) -> Result<()> {
        self.greeted = true;
        let beside = self.sharing.as_mut().map(|sharing| sharing.greeting()).transpose()?;
        let hello = Hello {
            frame_bytes_max: self.frame_bytes_max,
            message_bytes_max: self.message_bytes_max,
            connection: self.connection,
            secured: self.secret.is_some(),
            nonce: self.nonce,
            beside: beside.is_some(),
        };
        Record::Hello(hello).encode(self.lanes[CONTROL].record(beside));
        Ok(())
    }

    fn send_proof(&mut self) {
        let (key, proved) = self.proof_of(self.initiator).expect("both are known here");
        let proof = tag(&key, &[&proved]);
        Record::Proof(proof).encode(self.lanes[CONTROL].record(None));
    }

    /// The key and what is proved, for one of the two ends.
    fn proof_of(&self, initiator: bool) -> Option<(hmac::Key, Vec<u8>)> {
        let (secret, peer) = (self.secret?, self.peer?);
        let (first, second) = self.in_order(&self.nonce, &peer.nonce);
        let mut proved = b"genie data connection v1".to_vec();
        proved.push(initiator.into());
        proved.extend_from_slice(&self.connection.to_le_bytes());
        proved.extend_from_slice(first);
        proved.extend_from_slice(second);
        proved.extend_from_slice(&self.binding);
        Some((hmac::Key::new(hmac::HMAC_SHA256, &secret), proved))
    }

    fn in_order<'a>(&self, ours: &'a [u8; 32], theirs: &'a [u8; 32]) -> (&'a [u8; 32], &'a [u8]) {
        if self.initiator { (ours, theirs) } else { (theirs, ours) }
    }

    fn open(&mut self) {
        self.stage = Stage::Open;
        self.completions.push_back(Completion::Connected);
        self.held_bytes = 0;
        let limit = self.peer.expect("it greeted").frame_bytes_max;
        for (record, beside) in std::mem::take(&mut self.held) {
            let bytes = record.len() - HEAD_BYTES;
            if record[0] == FRAME && bytes as u64 > limit {
                let complaint =
                    format!("a frame of {bytes} bytes, the peer accepts {limit}; it is not sent");
                self.complaints.push_back(invalid(complaint));
                continue;
            }
            self.lanes[CONTROL].record(beside).extend_from_slice(&record);
        }
    }
}

pub(super) fn refused(what: &str) -> TransportError {
    let message = format!("the peer is refused: it {what}");
    TransportError::new(Cause::Refused, message)
}

fn tag(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
