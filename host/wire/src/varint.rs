//! LEB128 integers and a bounds-checked reader.

use crate::WireError;

/// Appends `value` in LEB128 (1 to 10 bytes).
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed value, zigzag coded.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length-prefixed byte string.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a byte slice from the front, never past its end.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, position: 0 }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    fn truncated(&self, what: &'static str) -> WireError {
        WireError::Truncated { what, have: self.bytes.len() }
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        let byte = *self.bytes.get(self.position).ok_or_else(|| self.truncated(what))?;
        self.position += 1;
        Ok(byte)
    }

    pub fn varint(&mut self, what: &'static str) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            if shift == 63 && byte > 1 {
                return Err(WireError::Malformed { what, why: "integer above 64 bits" });
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Malformed { what, why: "integer above 64 bits" })
    }

    pub fn signed(&mut self, what: &'static str) -> Result<i64, WireError> {
        let raw = self.varint(what)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A varint that must not exceed `max`.
    pub fn bounded(&mut self, what: &'static str, max: usize) -> Result<usize, WireError> {
        let value = self.varint(what)?;
        if value > max as u64 {
            return Err(WireError::TooLarge { what, value, max: max as u64 });
        }
        Ok(value as usize)
    }

    pub fn take(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], WireError> {
        if len > self.remaining() {
            return Err(self.truncated(what));
        }
        let slice = &self.bytes[self.position..self.position + len];
        self.position += len;
        Ok(slice)
    }

    /// A length-prefixed byte string of at most `max` bytes.
    pub fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], WireError> {
        let len = self.bounded(what, max)?;
        self.take(what, len)
    }

    /// A length-prefixed UTF-8 string of at most `max` bytes.
    pub fn str(&mut self, what: &'static str, max: usize) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes(what, max)?)
            .map_err(|_| WireError::Malformed { what, why: "not UTF-8" })
    }

    pub fn u64_le(&mut self, what: &'static str) -> Result<u64, WireError> {
        let bytes = self.take(what, 8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("take returned 8 bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_round_trip(unsigned: u64, signed: i64) {
            let mut out = Vec::new();
            put(&mut out, unsigned);
            put_signed(&mut out, signed);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint("test").unwrap(), unsigned);
            prop_assert_eq!(reader.signed("test").unwrap(), signed);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.varint("test").is_ok() {}
        }
    }
}
