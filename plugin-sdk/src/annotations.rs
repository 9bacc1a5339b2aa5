//! What a recognizer found, and a builder for it.

use crate::graph::{NodeId, StorageId};

/// A claim about the window as a whole.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct WorkloadClaim {
    /// `llm`, `text_encoder`, `seq2seq`, `vision`, `recsys`, `multimodal`, `audio`, `diffusion`,
    /// `gnn`, `other`, or a word of your own.
    pub label: String,
    /// 0 to 1.
    pub confidence: f32,
}

/// A named pattern over nodes.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Match {
    pub pattern: String,
    /// The phase these nodes belong to; empty: says nothing.
    pub phase: String,
    /// `text`, `image`, `audio`, ...; empty: says nothing.
    pub modality: String,
    /// 0 to 1.
    pub confidence: f32,
    pub nodes: Vec<u32>,
}

/// What kind of data a storage holds.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct ResidencyClaim {
    pub storage: u32,
    /// `weight`, `kv_cache`, `activation`, `gradient`, `optimizer_state`, `input`, `output`,
    /// `embedding_table`.
    pub residency: String,
    /// 0 to 1.
    pub confidence: f32,
}

/// Everything one recognizer says of one graph.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Annotations {
    pub workload: Vec<WorkloadClaim>,
    pub matches: Vec<Match>,
    pub residency: Vec<ResidencyClaim>,
    /// Facts for people and policies: (`architecture`, `decoder-only`).
    pub attributes: Vec<(String, String)>,
}

impl Annotations {
    pub fn new() -> Self {
        Annotations::default()
    }

    /// Claims that the window is a workload of this class.
    pub fn workload(&mut self, label: &str, confidence: f32) {
        self.workload.push(WorkloadClaim { label: label.to_owned(), confidence });
    }

    /// Adds a match; `phase` and `modality` may be empty. Without nodes nothing is added.
    pub fn matched(
        &mut self,
        pattern: &str,
        phase: &str,
        modality: &str,
        confidence: f32,
        nodes: impl IntoIterator<Item = NodeId>,
    ) {
        let nodes: Vec<u32> = nodes.into_iter().map(|node| node.0).collect();
        if nodes.is_empty() {
            return;
        }
        self.matches.push(Match {
            pattern: pattern.to_owned(),
            phase: phase.to_owned(),
            modality: modality.to_owned(),
            confidence,
            nodes,
        });
    }

    pub fn residency(&mut self, storage: StorageId, residency: &str, confidence: f32) {
        let residency = residency.to_owned();
        self.residency.push(ResidencyClaim { storage: storage.0, residency, confidence });
    }

    pub fn attribute(&mut self, key: &str, value: impl Into<String>) {
        self.attributes.push((key.to_owned(), value.into()));
    }
}

/// Annotations as they cross, in columns with one table of strings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnnotationColumns {
    pub blob: String,
    pub symbol_ends: Vec<u32>,
    pub workload: Vec<u32>,
    pub workload_confidence: Vec<f32>,
    pub pattern: Vec<u32>,
    pub phase: Vec<u32>,
    pub modality: Vec<u32>,
    pub confidence: Vec<f32>,
    pub node_ends: Vec<u32>,
    pub nodes: Vec<u32>,
    pub storage: Vec<u32>,
    pub residency: Vec<u32>,
    pub residency_confidence: Vec<f32>,
    pub attribute_key: Vec<u32>,
    pub attribute_value: Vec<u32>,
}

/// Columns of annotations that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{0}` of the annotations is malformed")]
pub struct MalformedAnnotations(pub &'static str);

impl From<&Annotations> for AnnotationColumns {
    fn from(notes: &Annotations) -> Self {
        let mut symbols = crate::symbols::Symbols::new();
        let mut out = AnnotationColumns::default();
        for claim in &notes.workload {
            out.workload.push(symbols.intern(&claim.label));
            out.workload_confidence.push(claim.confidence);
        }
        for found in &notes.matches {
            out.pattern.push(symbols.intern(&found.pattern));
            out.phase.push(symbols.intern(&found.phase));
            out.modality.push(symbols.intern(&found.modality));
            out.confidence.push(found.confidence);
            out.nodes.extend_from_slice(&found.nodes);
            out.node_ends.push(out.nodes.len() as u32);
        }
        for claim in &notes.residency {
            out.storage.push(claim.storage);
            out.residency.push(symbols.intern(&claim.residency));
            out.residency_confidence.push(claim.confidence);
        }
        for (key, value) in &notes.attributes {
            out.attribute_key.push(symbols.intern(key));
            out.attribute_value.push(symbols.intern(value));
        }
        (out.blob, out.symbol_ends) = symbols.into_table();
        out
    }
}

impl TryFrom<AnnotationColumns> for Annotations {
    type Error = MalformedAnnotations;

    /// Checks lengths, ends and symbols. Whether nodes and storages exist is for the host to say.
    fn try_from(columns: AnnotationColumns) -> Result<Self, Self::Error> {
        let c = columns;
        let same = |name, len: usize, other: usize| match len == other {
            true => Ok(()),
            false => Err(MalformedAnnotations(name)),
        };
        same("workload_confidence", c.workload_confidence.len(), c.workload.len())?;
        let matches = c.pattern.len();
        same("phase", c.phase.len(), matches)?;
        same("modality", c.modality.len(), matches)?;
        same("confidence", c.confidence.len(), matches)?;
        same("node_ends", c.node_ends.len(), matches)?;
        same("residency", c.residency.len(), c.storage.len())?;
        same("residency_confidence", c.residency_confidence.len(), c.storage.len())?;
        same("attribute_value", c.attribute_value.len(), c.attribute_key.len())?;
        let symbol = |index: u32| -> Result<String, MalformedAnnotations> {
            let end = c.symbol_ends.get(index as usize).map(|end| *end as usize);
            let start = match index {
                0 => Some(0),
                _ => c.symbol_ends.get(index as usize - 1).map(|end| *end as usize),
            };
            match (start, end) {
                // No table at all is the empty string alone.
                (_, None) if index == 0 => Ok(String::new()),
                (Some(start), Some(end)) => {
                    let text = c.blob.get(start..end);
                    text.map(str::to_owned).ok_or(MalformedAnnotations("symbol_ends"))
                }
                _ => Err(MalformedAnnotations("symbol_ends")),
            }
        };
        let mut out = Annotations::new();
        for (label, confidence) in c.workload.iter().zip(&c.workload_confidence) {
            out.workload.push(WorkloadClaim { label: symbol(*label)?, confidence: *confidence });
        }
        let mut start = 0usize;
        for index in 0..matches {
            let end = c.node_ends[index] as usize;
            let nodes = c.nodes.get(start..end).ok_or(MalformedAnnotations("node_ends"))?.to_vec();
            start = end;
            out.matches.push(Match {
                pattern: symbol(c.pattern[index])?,
                phase: symbol(c.phase[index])?,
                modality: symbol(c.modality[index])?,
                confidence: c.confidence[index],
                nodes,
            });
        }
        for index in 0..c.storage.len() {
            out.residency.push(ResidencyClaim {
                storage: c.storage[index],
                residency: symbol(c.residency[index])?,
                confidence: c.residency_confidence[index],
            });
        }
        for (key, value) in c.attribute_key.iter().zip(&c.attribute_value) {
            out.attributes.push((symbol(*key)?, symbol(*value)?));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_cross_unchanged() {
        let mut notes = Annotations::new();
        notes.workload("llm", 0.5);
        notes.matched("llm.step", "llm.decode", "", 0.75, [NodeId(3), NodeId(4)]);
        notes.matched("none", "", "", 1.0, []);
        notes.residency(StorageId(7), "kv_cache", 1.0);
        notes.attribute("architecture", "decoder-only");
        assert_eq!(notes.matches.len(), 1);
        let columns = AnnotationColumns::from(&notes);
        assert_eq!(Annotations::try_from(columns.clone()), Ok(notes));
        let spoiled = AnnotationColumns { node_ends: vec![9], ..columns.clone() };
        assert_eq!(Annotations::try_from(spoiled), Err(MalformedAnnotations("node_ends")));
        let spoiled = AnnotationColumns { phase: vec![99], ..columns };
        assert_eq!(Annotations::try_from(spoiled), Err(MalformedAnnotations("symbol_ends")));
    }
}
