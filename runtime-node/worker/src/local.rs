//! The executor inside the client's own process (`GENIE_MODE=local`): tape bytes in, frames out.

use genie_aten::execute::{Device, init};
use genie_executor::{
    Executor, ExecutorLimits, Failure, SentFrames, Session, SessionError, SessionSettings,
};
use genie_transport::SharedMemory;
use genie_wire::StorageId;
use genie_wire::control::WantedWeight;
use genie_wire::frame::FrameKind;
use genie_wire::record::WeightHash;

use crate::aten::{Aten, failure};

/// One session on the CPU of this process.
pub struct LocalNode {
    executor: Executor<Aten>,
    session: Session<Aten>,
    sent: SentFrames,
}

impl LocalNode {
    /// Its storages may hold `budget_bytes`, weights that no storage refers to `unheld_bytes_max`
    /// of it; operators use as many threads as the process does.
    pub fn new(budget_bytes: u64, unheld_bytes_max: u64) -> Result<Self, Failure> {
        init().map_err(failure)?;
        let limits = ExecutorLimits { unheld_bytes_max, ..ExecutorLimits::of(budget_bytes) };
        let mut executor = Executor::with_limits(Aten::guest(Device::CPU), limits);
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

    /// Makes stored weights the content of their storages; which were.
    pub fn have(&mut self, wanted: &[WantedWeight]) -> Result<Vec<bool>, SessionError> {
        wanted
            .iter()
            .map(|wanted| {
                let Ok(hash) = WeightHash::try_from(&wanted.hash[..]) else {
                    return Ok(false);
                };
                let id = StorageId(wanted.storage);
                self.executor.bind_if_stored(&mut self.session, id, wanted.bytes, &hash)
            })
            .collect()
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
