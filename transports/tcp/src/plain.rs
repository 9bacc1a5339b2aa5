//! Without TLS: the kernel moves payload straight from and to registered memory.

use std::time::Instant;

use genie_records::{CONTROL, Exchange};
use genie_transport::transport::Result;

use crate::socket::Socket;

/// A buffer for records, when payload follows them that has its own place.
const RECORDS_BYTES: usize = 4 << 10;
/// The buffer once records came that filled the small one.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes moved in one call, each way, before the caller gets its turn.
const BUDGET_BYTES: usize = 4 << 20;

pub(crate) struct Plain {
    socket: Socket,
    buffer: Vec<u8>,
    greeted: bool,
}

impl Plain {
    pub fn new(socket: Socket) -> Self {
        Plain { socket, buffer: vec![0; RECORDS_BYTES], greeted: false }
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    pub fn receive(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        if !self.greeted {
            if !self.socket.check_connected()? {
                return Ok(());
            }
            self.greeted = true;
            exchange.greet(Vec::new(), now)?;
        }
        let mut budget = BUDGET_BYTES;
        while budget > 0 && !exchange.is_full() {
            let direct = exchange.direct(CONTROL);
            let direct_bytes = direct.map_or(0, |span| span.bytes);
            let records = match direct {
                Some(_) => &mut self.buffer[..RECORDS_BYTES],
                None => &mut self.buffer[..],
            };
            let asked = direct_bytes + records.len();
            let read = self.socket.read(direct, records)?;
            if read == 0 {
                return Ok(());
            }
            if direct.is_some() {
                exchange.placed_directly(CONTROL, read.min(direct_bytes), now);
            }
            let records = read.saturating_sub(direct_bytes);
            exchange.feed(CONTROL, &self.buffer[..records], now)?;
            if read < asked {
                return Ok(());
            }
            // Many records in a row, without payload: read more of them at a time.
            let size = match direct.is_none() && exchange.direct(CONTROL).is_none() {
                true => BUFFER_BYTES,
                false => RECORDS_BYTES,
            };
            self.buffer.resize(size, 0);
            budget = budget.saturating_sub(read);
        }
        Ok(())
    }

    pub fn send(&mut self, exchange: &mut Exchange, now: Instant) -> Result<()> {
        let mut budget = BUDGET_BYTES;
        while self.greeted && budget > 0 {
            let outgoing = exchange.outgoing(CONTROL)?;
            let bytes = outgoing.bytes();
            if bytes == 0 {
                return Ok(());
            }
            let sent = self.socket.write(&outgoing)?;
            exchange.advance(CONTROL, sent, now);
            if sent < bytes {
                return Ok(());
            }
            budget = budget.saturating_sub(sent);
        }
        Ok(())
    }
}
