//! A table of strings, each held once.

use std::collections::HashMap;

/// Strings by number; number 0 is the empty string.
#[derive(Debug, Clone)]
pub struct Symbols {
    blob: String,
    ends: Vec<u32>,
    known: HashMap<String, u32>,
}

impl Default for Symbols {
    fn default() -> Self {
        Symbols::new()
    }
}

impl Symbols {
    pub fn new() -> Self {
        Symbols { blob: String::new(), ends: vec![0], known: HashMap::from([(String::new(), 0)]) }
    }

    /// The number of a string, the same for the same string.
    pub fn intern(&mut self, text: &str) -> u32 {
        if let Some(symbol) = self.known.get(text) {
            return *symbol;
        }
        let symbol = self.ends.len() as u32;
        self.blob.push_str(text);
        self.ends.push(self.blob.len() as u32);
        self.known.insert(text.to_owned(), symbol);
        symbol
    }

    /// The strings by number.
    pub fn into_list(self) -> Vec<String> {
        let mut start = 0;
        let text = |end: &u32| {
            let text = self.blob[start..*end as usize].to_owned();
            start = *end as usize;
            text
        };
        self.ends.iter().map(text).collect()
    }

    /// The table as it crosses: all strings end to end, and where each one stops.
    pub fn into_table(self) -> (String, Vec<u32>) {
        (self.blob, self.ends)
    }
}
