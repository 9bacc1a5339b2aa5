//! The executor inside the client's own process (`GENIE_MODE=local`): tape bytes in, frames out.

use genie_aten::execute::{Device, init};
use genie_transport::SharedMemory;
use genie_wire::frame::FrameKind;

use crate::aten::Aten;
use crate::{Executor, Failure, SentFrames, Session, SessionError, SessionSettings};

/// One session on the CPU of this process.
pub struct LocalNode {
    executor: Executor<Aten>,
    session: Session<Aten>,
    sent: SentFrames,
}

impl LocalNode {
    /// Its storages may hold `budget_bytes`; operators use as many threads as the process does.
    pub fn new(budget_bytes: u64) -> Result<Self, Failure> {
        init()?;
        let mut executor = Executor::new(Aten::new(Device::CPU), budget_bytes);
        let session = executor.open(SessionSettings::default())?;
        Ok(LocalNode { executor, session, sent: SentFrames::default() })
    }

    /// Schema hashes of the operators it runs.
    pub fn ops(&self) -> Vec<u64> {
        Device::CPU.ops(&[])
    }

    /// Memory that the tape's uploads and reads may name.
    pub fn add_region(&mut self, region: u32, memory: SharedMemory) -> Result<(), SessionError> {
        self.executor.add_region(&mut self.session, region, memory)
    }

    /// Executes whole records; the answers wait in [`LocalNode::next_frame`]. After an error the
    /// node takes no more.
    pub fn feed(&mut self, tape: &[u8]) -> Result<(), SessionError> {
        let mut position = 0;
        self.executor.execute(
            &mut self.session,
            tape,
            &mut position,
            usize::MAX,
            &mut self.sent,
        )?;
        self.executor.idle(&mut self.session, &mut self.sent);
        Ok(())
    }

    /// The next frame for the client: replies, credits, stored weights.
    pub fn next_frame(&mut self) -> Option<(FrameKind, Vec<u8>)> {
        self.sent.0.pop_front()
    }

    /// Counters by name, as a node's status has them.
    pub fn counters(&self) -> Vec<genie_wire::control::Counter> {
        self.executor.counters()
    }
}
