//! The columns of a graph as they cross between host and plugin, and their check.

/// A graph as flat lists; `plugin-sdk/wit/v0.3/plugin.wit` says what each column holds.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "harness", derive(serde::Serialize, serde::Deserialize))]
pub struct Columns {
    pub blob: String,
    pub symbol_ends: Vec<u32>,
    pub op: Vec<u32>,
    pub module: Vec<u32>,
    pub class: Vec<u32>,
    pub mark: Vec<u32>,
    pub stage: Vec<u8>,
    #[cfg_attr(feature = "harness", serde(default))]
    pub model: Vec<u32>,
    pub segment: Vec<u32>,
    pub flops: Vec<u64>,
    pub bytes: Vec<u64>,
    pub input_ends: Vec<u32>,
    pub input_value: Vec<u32>,
    pub input_geometry: Vec<u32>,
    pub input_offset: Vec<u64>,
    pub output_ends: Vec<u32>,
    pub output_value: Vec<u32>,
    pub output_geometry: Vec<u32>,
    pub output_offset: Vec<u64>,
    pub arg_ends: Vec<u32>,
    pub arg_kind: Vec<u8>,
    pub arg_bits: Vec<u64>,
    pub value_storage: Vec<u32>,
    pub value_producer: Vec<u32>,
    #[cfg_attr(feature = "harness", serde(default))]
    pub value_edge: Vec<u8>,
    pub storage_bytes: Vec<u64>,
    pub storage_origin: Vec<u8>,
    pub storage_alive: Vec<u8>,
    pub geometry_dtype: Vec<u8>,
    pub geometry_ends: Vec<u32>,
    pub sizes: Vec<i64>,
    pub strides: Vec<i64>,
    #[cfg_attr(feature = "harness", serde(default))]
    pub extra: Vec<(String, Vec<u64>)>,
}

/// The model of what belongs to none alone: sources, uploads.
pub const NO_MODEL: u32 = u32::MAX;

/// Bits of the column `value_edge`.
pub mod edge {
    /// Another model hands the value over.
    pub const FROM: u8 = 1;
    /// Another model uses it.
    pub const TO: u8 = 2;
}

/// A column that contradicts another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` of the graph is malformed: {why}")]
pub struct MalformedColumns {
    pub column: &'static str,
    pub why: String,
}

fn malformed(column: &'static str, why: impl Into<String>) -> MalformedColumns {
    MalformedColumns { column, why: why.into() }
}

impl Columns {
    /// Nodes of the graph.
    pub fn nodes(&self) -> usize {
        self.op.len()
    }

    /// Fills the columns that graphs recorded by earlier releases lack: one model, no edges.
    pub fn complete(&mut self) {
        if self.model.is_empty() {
            self.model = vec![0; self.nodes()];
        }
        if self.value_edge.is_empty() {
            self.value_edge = vec![0; self.value_storage.len()];
        }
    }

    /// Checks that lengths agree, that ends ascend and that every index exists. After this no
    /// accessor of [`crate::Graph`] can fail.
    pub fn check(&self) -> Result<(), MalformedColumns> {
        let nodes = self.op.len();
        check_ends("symbol_ends", &self.symbol_ends, self.blob.len())?;
        let mut start = 0;
        for end in &self.symbol_ends {
            if !self.blob.is_char_boundary(*end as usize) {
                return Err(malformed("symbol_ends", format!("{end} cuts a character of `blob`")));
            }
            if start == 0 && *end != 0 {
                return Err(malformed("symbol_ends", "symbol 0 is not the empty string"));
            }
            start = 1;
        }
        let per_node: [(&'static str, usize); 11] = [
            ("module", self.module.len()),
            ("class", self.class.len()),
            ("mark", self.mark.len()),
            ("stage", self.stage.len()),
            ("model", self.model.len()),
            ("segment", self.segment.len()),
            ("flops", self.flops.len()),
            ("bytes", self.bytes.len()),
            ("input_ends", self.input_ends.len()),
            ("output_ends", self.output_ends.len()),
            ("arg_ends", self.arg_ends.len()),
        ];
        for (column, len) in per_node {
            check_len(column, len, nodes)?;
        }
        check_ends("input_ends", &self.input_ends, self.input_value.len())?;
        check_len("input_geometry", self.input_geometry.len(), self.input_value.len())?;
        check_len("input_offset", self.input_offset.len(), self.input_value.len())?;
        check_ends("output_ends", &self.output_ends, self.output_value.len())?;
        check_len("output_geometry", self.output_geometry.len(), self.output_value.len())?;
        check_len("output_offset", self.output_offset.len(), self.output_value.len())?;
        check_ends("arg_ends", &self.arg_ends, self.arg_kind.len())?;
        check_len("arg_bits", self.arg_bits.len(), self.arg_kind.len())?;
        let storages = self.storage_bytes.len();
        check_len("storage_origin", self.storage_origin.len(), storages)?;
        check_len("storage_alive", self.storage_alive.len(), storages)?;
        check_len("value_producer", self.value_producer.len(), self.value_storage.len())?;
        check_len("value_edge", self.value_edge.len(), self.value_storage.len())?;
        let geometries = self.geometry_dtype.len();
        check_len("geometry_ends", self.geometry_ends.len(), geometries)?;
        check_ends("geometry_ends", &self.geometry_ends, self.sizes.len())?;
        check_len("strides", self.strides.len(), self.sizes.len())?;

        let symbols = self.symbol_ends.len();
        for (column, list) in [
            ("op", &self.op),
            ("module", &self.module),
            ("class", &self.class),
            ("mark", &self.mark),
        ] {
            check_indexes(column, list, symbols)?;
        }
        let values = self.value_storage.len();
        check_indexes("input_value", &self.input_value, values)?;
        check_indexes("output_value", &self.output_value, values)?;
        check_indexes("input_geometry", &self.input_geometry, geometries)?;
        check_indexes("output_geometry", &self.output_geometry, geometries)?;
        check_indexes("value_storage", &self.value_storage, storages)?;
        check_indexes("value_producer", &self.value_producer, nodes)?;
        for (kind, bits) in self.arg_kind.iter().zip(&self.arg_bits) {
            if *kind == 6 && *bits >= symbols as u64 {
                return Err(malformed("arg_bits", format!("symbol {bits} of {symbols}")));
            }
        }
        Ok(())
    }
}

fn check_len(column: &'static str, len: usize, expected: usize) -> Result<(), MalformedColumns> {
    if len == expected {
        return Ok(());
    }
    Err(malformed(column, format!("it has {len} entries instead of {expected}")))
}

fn check_ends(column: &'static str, ends: &[u32], len: usize) -> Result<(), MalformedColumns> {
    if let Some(pair) = ends.windows(2).find(|pair| pair[0] > pair[1]) {
        return Err(malformed(column, format!("{} comes after {}", pair[1], pair[0])));
    }
    let last = ends.last().map_or(0, |end| *end as usize);
    if last == len {
        return Ok(());
    }
    Err(malformed(column, format!("it ends at {last}, the list at {len}")))
}

fn check_indexes(column: &'static str, list: &[u32], len: usize) -> Result<(), MalformedColumns> {
    match list.iter().find(|index| **index as usize >= len) {
        None => Ok(()),
        Some(index) => Err(malformed(column, format!("index {index} of {len}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::small_graph;

    #[test]
    fn a_contradiction_is_named() {
        let good = small_graph();
        assert_eq!(good.check(), Ok(()));
        type Spoil = fn(&mut Columns);
        let cases: [(&str, Spoil); 5] = [
            ("op", |columns| columns.op[0] = 999),
            ("module", |columns| columns.module.push(0)),
            ("input_value", |columns| columns.input_value[0] = 999),
            ("input_ends", |columns| columns.input_ends[0] = 999),
            ("symbol_ends", |columns| columns.symbol_ends[0] = 1),
        ];
        for (column, spoil) in cases {
            let mut columns = good.clone();
            spoil(&mut columns);
            assert_eq!(columns.check().unwrap_err().column, column);
        }
    }
}
