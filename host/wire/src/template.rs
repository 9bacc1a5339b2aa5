//! Templates: an operator with its argument layout, defined once and repeated by small records.

use crate::WireError;
use crate::limits::{
    LIST_MAX, OUTPUTS_MAX, SCALARS_MAX, SLOTS_MAX, STORAGE_BYTES_MAX, STRING_BYTES_MAX,
    TEMPLATE_BYTES_MAX,
};
use crate::value::{TensorMeta, Value};
use crate::varint::{Reader, put, put_bytes};

/// What a record of this template reads, writes and makes.
///
/// Invariant: every slot and scalar index named by an argument, an output or `mutated` exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Qualified name with overload, as PyTorch prints it: `aten::add.Tensor`, `aten::relu`.
    pub op: String,
    /// Distinct input storages of a record. Two arguments over one storage share a slot.
    pub slots: u32,
    /// Words of varying scalars in a record.
    pub scalars: u32,
    /// Input slots whose storage the operator writes.
    pub mutated: Vec<u32>,
    /// Whether the operator draws from the session's random generator.
    pub random: bool,
    /// Bytes of each storage the operator makes.
    pub new_storages: Vec<u64>,
    pub args: Vec<Value>,
    /// The returned tensors in order; tensor lists are flattened.
    pub outputs: Vec<OutputSpec>,
}

/// Where one returned tensor lives.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputSpec {
    /// An undefined tensor.
    Undefined,
    /// Over new storage number `index` of the record.
    New { index: u32, meta: TensorMeta },
    /// Over the storage of input slot `slot` (in-place operators, views).
    Alias { slot: u32, meta: TensorMeta },
}

impl OutputSpec {
    pub fn meta(&self) -> Option<&TensorMeta> {
        match self {
            OutputSpec::Undefined => None,
            OutputSpec::New { meta, .. } | OutputSpec::Alias { meta, .. } => Some(meta),
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            OutputSpec::Undefined => out.push(0),
            OutputSpec::New { index, meta } => {
                out.push(1);
                put(out, u64::from(*index));
                meta.encode(out);
            }
            OutputSpec::Alias { slot, meta } => {
                out.push(2);
                put(out, u64::from(*slot));
                meta.encode(out);
            }
        }
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(match reader.u8("output kind")? {
            0 => OutputSpec::Undefined,
            1 => OutputSpec::New {
                index: reader.bounded("new storage", OUTPUTS_MAX)? as u32,
                meta: TensorMeta::decode(reader)?,
            },
            2 => OutputSpec::Alias {
                slot: reader.bounded("slot", SLOTS_MAX)? as u32,
                meta: TensorMeta::decode(reader)?,
            },
            value => return Err(WireError::Unknown { what: "output kind", value: value.into() }),
        })
    }
}

impl Template {
    /// The layout is: op, slots, scalars, mutated, random, arguments, new storages, outputs.
    /// Arguments stand before the outputs so that a `Run` record can carry a template without.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.op.as_bytes());
        put(out, u64::from(self.slots));
        put(out, u64::from(self.scalars));
        put(out, self.mutated.len() as u64);
        for slot in &self.mutated {
            put(out, u64::from(*slot));
        }
        out.push(u8::from(self.random));
        put(out, self.args.len() as u64);
        for arg in &self.args {
            arg.encode(out);
        }
        put(out, self.new_storages.len() as u64);
        for bytes in &self.new_storages {
            put(out, *bytes);
        }
        put(out, self.outputs.len() as u64);
        for output in &self.outputs {
            output.encode(out);
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > TEMPLATE_BYTES_MAX {
            return Err(WireError::TooLarge {
                what: "template",
                value: bytes.len() as u64,
                max: TEMPLATE_BYTES_MAX as u64,
            });
        }
        let mut reader = Reader::new(bytes);
        let op = reader.str("operator name", STRING_BYTES_MAX)?.to_owned();
        let slots = reader.bounded("slots", SLOTS_MAX)? as u32;
        let scalars = reader.bounded("scalars", SCALARS_MAX)? as u32;
        let mutated_len = reader.bounded("mutated slots", slots as usize)?;
        let mutated: Vec<u32> = (0..mutated_len)
            .map(|_| Ok(reader.bounded("slot", SLOTS_MAX)? as u32))
            .collect::<Result<_, WireError>>()?;
        let random = reader.u8("random flag")? != 0;
        let args_len = reader.bounded("arguments", LIST_MAX)?;
        let args: Vec<Value> =
            (0..args_len).map(|_| Value::decode(&mut reader)).collect::<Result<_, _>>()?;
        let new_len = reader.bounded("new storages", OUTPUTS_MAX)?;
        let new_storages: Vec<u64> = (0..new_len)
            .map(|_| reader.bounded("storage bytes", STORAGE_BYTES_MAX as usize).map(|v| v as u64))
            .collect::<Result<_, _>>()?;
        let outputs_len = reader.bounded("outputs", OUTPUTS_MAX)?;
        let outputs: Vec<OutputSpec> =
            (0..outputs_len).map(|_| OutputSpec::decode(&mut reader)).collect::<Result<_, _>>()?;
        if !reader.is_empty() {
            return Err(WireError::Malformed { what: "template", why: "bytes after its end" });
        }
        let template =
            Template { op, slots, scalars, mutated, random, new_storages, args, outputs };
        template.validate()?;
        Ok(template)
    }

    fn validate(&self) -> Result<(), WireError> {
        let slot_exists = |slot: u32| {
            if slot < self.slots {
                Ok(())
            } else {
                Err(WireError::NoSuch { what: "slot", value: slot.into() })
            }
        };
        let mut result = Ok(());
        for arg in &self.args {
            arg.for_each_tensor(&mut |slot, _| {
                if result.is_ok() {
                    result = slot_exists(slot);
                }
            });
            if arg.scalar_words_end() > self.scalars {
                let value = u64::from(arg.scalar_words_end());
                return Err(WireError::NoSuch { what: "scalar", value });
            }
        }
        result?;
        self.mutated.iter().try_for_each(|slot| slot_exists(*slot))?;
        for output in &self.outputs {
            match output {
                OutputSpec::Undefined => {}
                OutputSpec::Alias { slot, .. } => slot_exists(*slot)?,
                OutputSpec::New { index, .. } => {
                    if *index as usize >= self.new_storages.len() {
                        return Err(WireError::NoSuch {
                            what: "new storage",
                            value: (*index).into(),
                        });
                    }
                }
            }
        }
        Ok(())
    }
}
