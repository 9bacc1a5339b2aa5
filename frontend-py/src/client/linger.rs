//! Sends records that linger because the program went on to something else.
//!
//! Records travel in batches. A program that starts one large operator and then computes on its
//! own would find it not even begun when it reads the value; and what it freed would stay. A
//! thread looks at the tape now and then while there is something to look at, and sleeps otherwise.

use std::sync::Arc;
use std::thread::{self, Thread};

use crate::client::Session;
use crate::client::limits::{LINGER, LINGER_TURNS};

/// How the thread is woken: under the session's lock.
#[derive(Debug, Default)]
pub(super) struct Sleeper {
    thread: Option<Thread>,
    asleep: bool,
}

impl Sleeper {
    /// Called with every record; does nothing while the thread is awake.
    #[inline]
    pub(super) fn wake(&mut self) {
        if self.asleep {
            self.asleep = false;
            if let Some(thread) = &self.thread {
                thread.unpark();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep
    }
}

impl Session {
    /// Starts the thread; it ends soon after the session.
    pub fn send_what_lingers(self: Arc<Self>) -> std::io::Result<()> {
        thread::Builder::new().name("genie-linger".into()).spawn(move || self.linger())?;
        Ok(())
    }

    fn linger(&self) {
        self.lock().sleeper.thread = Some(thread::current());
        let (mut sent, mut quiet) = (0, 0);
        loop {
            thread::sleep(LINGER);
            let mut core = self.lock();
            if core.end.is_some() {
                return;
            }
            if core.tape.bytes().is_empty() {
                quiet += 1;
                if quiet >= LINGER_TURNS {
                    quiet = 0;
                    core.sleeper.asleep = true;
                    drop(core);
                    thread::park();
                }
                continue;
            }
            quiet = 0;
            if core.counters.frames == sent {
                core.send_tape();
            }
            sent = core.counters.frames;
        }
    }
}
