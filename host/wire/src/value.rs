//! Encoded operator arguments: the argument types of PyTorch's schemas, as bytes.
//!
//! The C++ shim (`runtime-node/aten/cpp/codec.h`) writes and reads the same format; the tests of
//! that crate hold the two together.

use crate::WireError;
use crate::limits::{DIMS_MAX, LIST_MAX, NESTING_MAX, STRING_BYTES_MAX};
use crate::varint::{Reader, put, put_bytes, put_signed};

/// A PyTorch scalar type, by its `c10::ScalarType` number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType(pub u8);

impl DType {
    pub const UINT8: DType = DType(0);
    pub const INT64: DType = DType(4);
    pub const FLOAT32: DType = DType(6);
    pub const FLOAT64: DType = DType(7);
    pub const BOOL: DType = DType(11);
    pub const BFLOAT16: DType = DType(15);

    /// Bytes per element; `None` for a type this version does not know.
    pub fn size_bytes(self) -> Option<u64> {
        Some(match self.0 {
            0 | 1 | 11 | 12 | 13 | 23..=26 => 1,
            2 | 5 | 15 | 27 => 2,
            3 | 6 | 8 | 14 | 28 => 4,
            4 | 7 | 9 | 29 => 8,
            10 => 16,
            _ => return None,
        })
    }

    /// Words of 8 bytes that one value takes among a record's scalars.
    pub fn scalar_words(self) -> u32 {
        if matches!(self.0, 8..=10) { 2 } else { 1 }
    }

    pub fn name(self) -> &'static str {
        const NAMES: [&str; 16] = [
            "uint8",
            "int8",
            "int16",
            "int32",
            "int64",
            "float16",
            "float32",
            "float64",
            "complex32",
            "complex64",
            "complex128",
            "bool",
            "qint8",
            "quint8",
            "qint32",
            "bfloat16",
        ];
        NAMES.get(usize::from(self.0)).copied().unwrap_or("other")
    }
}

/// The geometry of a tensor over a storage. Units: elements, not bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorMeta {
    pub dtype: DType,
    pub offset: u64,
    pub sizes: Vec<u64>,
    pub strides: Vec<u64>,
}

impl TensorMeta {
    /// A contiguous tensor at offset 0.
    pub fn contiguous(dtype: DType, sizes: &[u64]) -> Self {
        TensorMeta { dtype, offset: 0, strides: contiguous_strides(sizes), sizes: sizes.to_vec() }
    }

    pub fn elements(&self) -> u64 {
        self.sizes.iter().fold(1, |product, size| product.saturating_mul(*size))
    }

    /// Bytes of the tensor's elements (not of its storage).
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.size_bytes().unwrap_or(8))
    }

    pub fn is_contiguous(&self) -> bool {
        self.strides == contiguous_strides(&self.sizes)
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let contiguous = self.is_contiguous();
        out.push(self.dtype.0);
        out.push(u8::from(contiguous));
        put(out, self.offset);
        put(out, self.sizes.len() as u64);
        for size in &self.sizes {
            put(out, *size);
        }
        if !contiguous {
            for stride in &self.strides {
                put(out, *stride);
            }
        }
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let dtype = DType(reader.u8("dtype")?);
        let contiguous = match reader.u8("tensor flags")? {
            0 => false,
            1 => true,
            value => return Err(WireError::Unknown { what: "tensor flags", value: value.into() }),
        };
        let offset = dimension(reader, "offset")?;
        let dims = reader.bounded("number of dimensions", DIMS_MAX)?;
        let sizes: Vec<u64> =
            (0..dims).map(|_| dimension(reader, "size")).collect::<Result<_, _>>()?;
        let strides = if contiguous {
            contiguous_strides(&sizes)
        } else {
            (0..dims).map(|_| dimension(reader, "stride")).collect::<Result<_, _>>()?
        };
        Ok(TensorMeta { dtype, offset, sizes, strides })
    }
}

/// Sizes, strides and offsets fit libtorch's `int64_t`.
fn dimension(reader: &mut Reader, what: &'static str) -> Result<u64, WireError> {
    let value = reader.varint(what)?;
    if value > i64::MAX as u64 {
        return Err(WireError::TooLarge { what, value, max: i64::MAX as u64 });
    }
    Ok(value)
}

/// Row-major strides, with PyTorch's rule that an empty dimension counts as 1.
pub fn contiguous_strides(sizes: &[u64]) -> Vec<u64> {
    let mut strides = vec![1u64; sizes.len()];
    for i in (0..sizes.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(sizes[i + 1].max(1));
    }
    strides
}

/// One encoded argument.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    /// A tensor over the storage in input slot `slot` of the record.
    Tensor {
        slot: u32,
        meta: TensorMeta,
    },
    UndefinedTensor,
    /// A 0-dim CPU tensor: its value is varying scalar `scalar` of the record. `wrapped` marks a
    /// Python number, which takes part in type promotion differently.
    ScalarTensor {
        scalar: u32,
        dtype: DType,
        wrapped: bool,
    },
    Int(i64),
    Double(f64),
    Bool(bool),
    Complex(f64, f64),
    String(String),
    /// A number whose value is varying scalar `scalar` of the record.
    VaryingDouble {
        scalar: u32,
    },
    VaryingInt {
        scalar: u32,
    },
    VaryingComplex {
        scalar: u32,
    },
    /// The accelerator device of the node that executes the record; `None` means the CPU.
    Device {
        accelerator: Option<u8>,
    },
    /// The session's random generator.
    Generator,
    List(Vec<Value>),
    /// A list of integers, coded densely (sizes, strides, dims).
    IntList(Vec<i64>),
}

mod tag {
    pub const NONE: u8 = 0;
    pub const TENSOR: u8 = 1;
    pub const UNDEFINED_TENSOR: u8 = 2;
    pub const SCALAR_TENSOR: u8 = 3;
    pub const INT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const BOOL: u8 = 6;
    pub const COMPLEX: u8 = 7;
    pub const STRING: u8 = 8;
    pub const VARYING_DOUBLE: u8 = 9;
    pub const VARYING_INT: u8 = 10;
    pub const VARYING_COMPLEX: u8 = 11;
    pub const DEVICE: u8 = 12;
    pub const GENERATOR: u8 = 13;
    pub const LIST: u8 = 14;
    pub const INT_LIST: u8 = 15;
}

impl Value {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::None => out.push(tag::NONE),
            Value::Tensor { slot, meta } => {
                out.push(tag::TENSOR);
                put(out, u64::from(*slot));
                meta.encode(out);
            }
            Value::UndefinedTensor => out.push(tag::UNDEFINED_TENSOR),
            Value::ScalarTensor { scalar, dtype, wrapped } => {
                out.push(tag::SCALAR_TENSOR);
                put(out, u64::from(*scalar));
                out.push(dtype.0);
                out.push(u8::from(*wrapped));
            }
            Value::Int(value) => {
                out.push(tag::INT);
                put_signed(out, *value);
            }
            Value::Double(value) => {
                out.push(tag::DOUBLE);
                out.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            Value::Bool(value) => {
                out.push(tag::BOOL);
                out.push(u8::from(*value));
            }
            Value::Complex(re, im) => {
                out.push(tag::COMPLEX);
                out.extend_from_slice(&re.to_bits().to_le_bytes());
                out.extend_from_slice(&im.to_bits().to_le_bytes());
            }
            Value::String(value) => {
                out.push(tag::STRING);
                put_bytes(out, value.as_bytes());
            }
            Value::VaryingDouble { scalar } => put_varying(out, tag::VARYING_DOUBLE, *scalar),
            Value::VaryingInt { scalar } => put_varying(out, tag::VARYING_INT, *scalar),
            Value::VaryingComplex { scalar } => put_varying(out, tag::VARYING_COMPLEX, *scalar),
            Value::Device { accelerator } => {
                out.push(tag::DEVICE);
                out.push(accelerator.map_or(u8::MAX, |index| index));
            }
            Value::Generator => out.push(tag::GENERATOR),
            Value::List(items) => {
                out.push(tag::LIST);
                put(out, items.len() as u64);
                for item in items {
                    item.encode(out);
                }
            }
            Value::IntList(items) => {
                out.push(tag::INT_LIST);
                put(out, items.len() as u64);
                for item in items {
                    put_signed(out, *item);
                }
            }
        }
    }

    pub fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Value::decode_nested(reader, NESTING_MAX)
    }

    fn decode_nested(reader: &mut Reader, depth: usize) -> Result<Self, WireError> {
        Ok(match reader.u8("argument tag")? {
            tag::NONE => Value::None,
            tag::TENSOR => Value::Tensor {
                slot: reader.bounded("slot", u32::MAX as usize)? as u32,
                meta: TensorMeta::decode(reader)?,
            },
            tag::UNDEFINED_TENSOR => Value::UndefinedTensor,
            tag::SCALAR_TENSOR => Value::ScalarTensor {
                scalar: scalar_index(reader)?,
                dtype: DType(reader.u8("dtype")?),
                wrapped: flag(reader)?,
            },
            tag::INT => Value::Int(reader.signed("integer")?),
            tag::DOUBLE => Value::Double(f64::from_bits(reader.u64_le("double")?)),
            tag::BOOL => Value::Bool(flag(reader)?),
            tag::COMPLEX => Value::Complex(
                f64::from_bits(reader.u64_le("complex")?),
                f64::from_bits(reader.u64_le("complex")?),
            ),
            tag::STRING => Value::String(reader.str("string", STRING_BYTES_MAX)?.to_owned()),
            tag::VARYING_DOUBLE => Value::VaryingDouble { scalar: scalar_index(reader)? },
            tag::VARYING_INT => Value::VaryingInt { scalar: scalar_index(reader)? },
            tag::VARYING_COMPLEX => Value::VaryingComplex { scalar: scalar_index(reader)? },
            tag::DEVICE => {
                let index = reader.u8("device")?;
                Value::Device { accelerator: (index != u8::MAX).then_some(index) }
            }
            tag::GENERATOR => Value::Generator,
            tag::LIST => {
                if depth == 0 {
                    return Err(WireError::Malformed { what: "list", why: "nested too deeply" });
                }
                let len = reader.bounded("list length", LIST_MAX)?;
                let items: Result<_, _> =
                    (0..len).map(|_| Value::decode_nested(reader, depth - 1)).collect();
                Value::List(items?)
            }
            tag::INT_LIST => {
                let len = reader.bounded("list length", LIST_MAX)?;
                let items: Result<_, _> = (0..len).map(|_| reader.signed("integer")).collect();
                Value::IntList(items?)
            }
            value => {
                return Err(WireError::Unknown { what: "argument tag", value: value.into() });
            }
        })
    }

    /// Calls `visit` for every tensor in this argument, lists included.
    pub fn for_each_tensor(&self, visit: &mut impl FnMut(u32, &TensorMeta)) {
        match self {
            Value::Tensor { slot, meta } => visit(*slot, meta),
            Value::List(items) => items.iter().for_each(|item| item.for_each_tensor(visit)),
            _ => {}
        }
    }

    /// One past the last varying scalar word this argument reads (complex values take two).
    pub(crate) fn scalar_words_end(&self) -> u32 {
        match self {
            Value::ScalarTensor { scalar, dtype, .. } => scalar + dtype.scalar_words(),
            Value::VaryingDouble { scalar } | Value::VaryingInt { scalar } => scalar + 1,
            Value::VaryingComplex { scalar } => scalar + 2,
            Value::List(items) => items.iter().map(Value::scalar_words_end).max().unwrap_or(0),
            _ => 0,
        }
    }
}

fn put_varying(out: &mut Vec<u8>, tag: u8, scalar: u32) {
    out.push(tag);
    put(out, u64::from(scalar));
}

fn scalar_index(reader: &mut Reader) -> Result<u32, WireError> {
    Ok(reader.bounded("scalar index", crate::limits::SCALARS_MAX)? as u32)
}

fn flag(reader: &mut Reader) -> Result<bool, WireError> {
    match reader.u8("flag")? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(WireError::Unknown { what: "flag", value: value.into() }),
    }
}
