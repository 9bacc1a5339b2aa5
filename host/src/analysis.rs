//! What sessions ran, recognized: at once where a program asks, behind its back where not.

use genie_analyzer::{Explanation, Reading, StorageFacts, columns, merge};
use genie_engine::{NewTopology, Snapshot};
use genie_plugin::Columns;
use genie_plugin::recorded::Recorded;
use genie_srg::{Origin, Window};
use genie_wire::control::TraceQuestion;

use crate::serve::SOFTWARE;

/// The recognizers of this host and what they found.
#[derive(Debug, Default)]
pub struct Analysis {}

impl Analysis {
    /// Has a new topology recognized, some time.
    pub fn begin(&self, _new: NewTopology) {}

    /// Answers a question about what a session ran.
    pub fn answer(&self, question: TraceQuestion, snapshot: &Snapshot) -> Result<Vec<u8>, String> {
        match question {
            TraceQuestion::Reset => Ok(Vec::new()),
            TraceQuestion::Graph => {
                let recorded = Recorded::new(graph_of(snapshot), SOFTWARE, snapshot.truncated);
                Ok(recorded.to_json().into_bytes())
            }
            TraceQuestion::Explain => {
                let columns = graph_of(snapshot);
                let reading: Reading = merge(&columns, &[]);
                let told = Explanation::of(&columns, &reading, snapshot.truncated);
                Ok(told.to_json().into_bytes())
            }
        }
    }
}

/// The columns of everything in the snapshot.
fn graph_of(snapshot: &Snapshot) -> Columns {
    let known = |id: genie_wire::StorageId| snapshot.storages.get(&id.0);
    let origin = |id| known(id).map_or(Origin::Unknown, |storage| storage.origin);
    let window = Window::build(&snapshot.segments, origin);
    columns(&window, |id| {
        known(id).map(|storage| StorageFacts {
            bytes: storage.bytes,
            origin: storage.origin,
            alive: storage.alive,
        })
    })
}
