//! Recorded graphs: files that hold the graph of what a program ran.
//!
//! `genie.export_graph(path)` writes one; `genie-host graph` and `genie-host plugin test` read
//! it, and so do the native tests of a plugin.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Columns, Graph, MalformedColumns};

/// The format's number; readers refuse others.
pub const RECORDED_VERSION: u32 = 1;
/// The largest file that is read.
pub const RECORDED_BYTES_MAX: u64 = 512 << 20;

/// The graph of a window, with where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    pub version: u32,
    /// The software that recorded it.
    #[serde(default)]
    pub recorded_by: String,
    /// Whether the window was full before the program ended.
    #[serde(default)]
    pub truncated: bool,
    pub graph: Columns,
}

/// Why a recorded graph cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    #[error("cannot read the recorded graph {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} has {bytes} bytes, more than the {RECORDED_BYTES_MAX} of a recorded graph")]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("{path} is not a recorded graph ({source}); make one with `genie.export_graph(path)`")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path} has format {version}, this version reads {RECORDED_VERSION}; record it anew")]
    Version { path: PathBuf, version: u32 },
    #[error("{path}: {source}")]
    Malformed { path: PathBuf, source: MalformedColumns },
}

impl Recorded {
    pub fn new(graph: Columns, recorded_by: &str, truncated: bool) -> Self {
        Recorded {
            version: RECORDED_VERSION,
            recorded_by: recorded_by.to_owned(),
            truncated,
            graph,
        }
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Recorded, RecordedError> {
        let read = |source| RecordedError::Read { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > RECORDED_BYTES_MAX {
            return Err(RecordedError::TooLarge { path: path.to_owned(), bytes });
        }
        let text = std::fs::read(path).map_err(read)?;
        let mut recorded: Recorded = serde_json::from_slice(&text)
            .map_err(|source| RecordedError::Json { path: path.to_owned(), source })?;
        if recorded.version != RECORDED_VERSION {
            let version = recorded.version;
            return Err(RecordedError::Version { path: path.to_owned(), version });
        }
        recorded.graph.complete();
        recorded
            .graph
            .check()
            .map_err(|source| RecordedError::Malformed { path: path.to_owned(), source })?;
        Ok(recorded)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("columns have string keys and finite numbers")
    }

    /// The graph, ready for queries. The columns were checked when they were read.
    pub fn into_graph(self) -> Result<Graph, MalformedColumns> {
        Graph::new(self.graph)
    }
}
