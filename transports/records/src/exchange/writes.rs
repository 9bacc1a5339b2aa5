//! Messages from the call that posts them to the peer's answer.

use genie_transport::transport::{Cause, Completion, MESSAGES_MAX, Part, Result, TransportError};

use super::Exchange;
use crate::memory::invalid;
use crate::record::{Write, protocol};

/// A posted message.
pub(super) struct Message {
    pub parts: Vec<Part>,
    window: u32,
    offset: u64,
    bytes: u64,
    /// All of it went to the carrier: the peer may answer.
    pub sent: bool,
}

impl Exchange {
    pub fn write(&mut self, message: u64, parts: &[Part], window: u32, offset: u64) -> Result<()> {
        self.usable()?;
        let bytes = self.memories.check_all(parts)?;
        if let Some(last) = self.last_message
            && message <= last
        {
            return Err(invalid(format!(
                "message {message} after message {last}: numbers must rise"
            )));
        }
        let limit = self.peer.map_or(self.message_bytes_max, |peer| {
            peer.message_bytes_max.min(self.message_bytes_max)
        });
        if bytes > limit {
            return Err(invalid(format!(
                "message {message} has {bytes} bytes, the limit is {limit}; split it"
            )));
        }
        let open = self.peer_windows.get(&window);
        if let Some(open) = open {
            fits(message, window, offset, bytes, open.bytes)?;
        }
        if self.messages.len() >= MESSAGES_MAX {
            self.wants_messages = true;
            let message = format!(
                "{MESSAGES_MAX} messages are posted and not yet written; try again when the \
                 connection is writable"
            );
            return Err(TransportError::new(Cause::OutOfCredit, message));
        }
        self.last_message = Some(message);
        match open {
            Some(_) => self.ready.push_back(message),
            None => self.waiting.entry(window).or_default().push_back(message),
        }
        for part in parts {
            self.memories.hold(part);
        }
        self.messages
            .insert(message, Message { parts: parts.to_vec(), window, offset, bytes, sent: false });
        Ok(())
    }

    /// Takes the next message whose window is offered.
    pub(super) fn next_message(&mut self) -> Option<(u64, Write)> {
        if self.closing {
            return None;
        }
        while let Some(number) = self.ready.pop_front() {
            let message = &self.messages[&number];
            let &Message { window, offset, bytes, .. } = message;
            let Some(open) = self.peer_windows.get(&window) else {
                self.waiting.entry(window).or_default().push_back(number);
                continue;
            };
            let limit = self.peer.expect("it offered a window").message_bytes_max;
            let fits = match bytes <= limit {
                true => fits(number, window, offset, bytes, open.bytes),
                false => Err(invalid(format!(
                    "message {number} has {bytes} bytes, the peer accepts {limit}; it is not sent"
                ))),
            };
            if let Err(complaint) = fits {
                self.complaints.push_back(complaint);
                self.end_message(number);
                continue;
            }
            let generation = open.generation;
            let done = self.shares;
            return Some((
                number,
                Write { message: number, window, generation, offset, bytes, done },
            ));
        }
        None
    }

    pub(super) fn mark_sent(&mut self, number: u64) {
        self.messages.get_mut(&number).expect("it was being sent").sent = true;
    }

    pub(super) fn on_written(&mut self, message: u64) -> Result<()> {
        self.answered(message)?;
        self.counters.messages_written += 1;
        self.end_message(message);
        self.completions.push_back(Completion::Written { message });
        Ok(())
    }

    /// Its window was withdrawn meanwhile: it is sent again into the next of that number.
    pub(super) fn on_dropped(&mut self, message: u64) -> Result<()> {
        let window = self.answered(message)?;
        self.counters.messages_dropped += 1;
        self.messages.get_mut(&message).expect("checked by answered").sent = false;
        match self.peer_windows.contains_key(&window) {
            true => self.ready.push_back(message),
            false => self.waiting.entry(window).or_default().push_back(message),
        }
        Ok(())
    }

    /// The window of a message that the peer may answer now.
    fn answered(&self, message: u64) -> Result<u32> {
        let sent = self.messages.get(&message).filter(|posted| posted.sent);
        match sent {
            Some(posted) => Ok(posted.window),
            None => Err(protocol(format!("an answer to message {message}, which was not sent"))),
        }
    }

    fn end_message(&mut self, number: u64) {
        if let Some(message) = self.messages.remove(&number) {
            for part in &message.parts {
                self.memories.release(part);
            }
        }
        if self.wants_messages && self.messages.len() <= MESSAGES_MAX / 4 * 3 {
            self.wants_messages = false;
            self.completions.push_back(Completion::Writable);
        }
    }
}

fn fits(message: u64, window: u32, offset: u64, bytes: u64, window_bytes: u64) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= window_bytes => Ok(()),
        _ => Err(invalid(format!(
            "message {message} of {bytes} bytes at {offset} does not fit window {window}, which \
             has {window_bytes} bytes; it is not sent"
        ))),
    }
}
