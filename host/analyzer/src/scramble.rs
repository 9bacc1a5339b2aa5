//! Names taken away: what recognizers say must hold without them.

use genie_plugin::Columns;
use genie_plugin::symbols::Symbols;

/// Replaces every module's path and class by letters that say nothing, the same for the same
/// name. Operators keep theirs.
pub fn scramble_names(columns: &mut Columns, seed: u64) {
    rename(columns, |text, _| {
        let part = |part: &str| match part.parse::<u64>() {
            // Numbers of layers stay numbers, as an obfuscator leaves list indexes.
            Ok(_) => part.to_owned(),
            Err(_) => letters(part, seed),
        };
        text.split('.').map(part).collect::<Vec<_>>().join(".")
    });
}

/// Exchanges the names of modules among each other.
pub fn permute_names(columns: &mut Columns, seed: u64) {
    rename(columns, |text, all| {
        let index = all.iter().position(|other| other == text).unwrap_or(0);
        // A step that shares no factor with the length visits every name once.
        let len = all.len().max(1);
        let mut step = seed as usize % len;
        while step == 0 || gcd(step, len) != 1 {
            step = step % len + 1;
        }
        all[(index * step + seed as usize) % len].clone()
    });
}

/// Removes what the program itself marked.
pub fn strip_marks(columns: &mut Columns) {
    columns.mark.fill(0);
}

fn rename(columns: &mut Columns, name: impl Fn(&str, &[String]) -> String) {
    let texts = table(columns);
    let mut symbols = Symbols::new();
    let ops: Vec<u32> = columns.op.iter().map(|op| symbols.intern(&texts[*op as usize])).collect();
    let marks: Vec<u32> =
        columns.mark.iter().map(|mark| symbols.intern(&texts[*mark as usize])).collect();
    for (kind, bits) in columns.arg_kind.iter().zip(&mut columns.arg_bits) {
        if *kind == 6 {
            *bits = u64::from(symbols.intern(&texts[*bits as usize]));
        }
    }
    for column in [&mut columns.module, &mut columns.class] {
        let mut all: Vec<String> =
            column.iter().map(|index| texts[*index as usize].clone()).collect();
        all.sort();
        all.dedup();
        all.retain(|text| !text.is_empty());
        for index in column.iter_mut() {
            let text = &texts[*index as usize];
            if !text.is_empty() {
                *index = symbols.intern(&name(text, &all));
            }
        }
    }
    columns.op = ops;
    columns.mark = marks;
    (columns.blob, columns.symbol_ends) = symbols.into_table();
}

fn table(columns: &Columns) -> Vec<String> {
    let mut start = 0;
    columns
        .symbol_ends
        .iter()
        .map(|end| {
            let text = columns.blob[start..*end as usize].to_owned();
            start = *end as usize;
            text
        })
        .collect()
}

/// Six letters from a text and a seed (FNV-1a).
fn letters(text: &str, seed: u64) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (0..6).map(|index| char::from(b'a' + ((hash >> (index * 8)) % 26) as u8)).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Columns {
        let mut symbols = Symbols::new();
        let op = symbols.intern("aten::relu");
        let modules = ["layers.0.attention", "layers.1.attention", "head"];
        let module: Vec<u32> = modules.iter().map(|text| symbols.intern(text)).collect();
        let class: Vec<u32> = ["A", "A", "B"].iter().map(|text| symbols.intern(text)).collect();
        let mark = symbols.intern("truth");
        let (blob, symbol_ends) = symbols.into_table();
        Columns {
            blob,
            symbol_ends,
            op: vec![op; 3],
            module,
            class,
            mark: vec![mark; 3],
            ..Columns::default()
        }
    }

    fn modules(columns: &Columns) -> Vec<String> {
        let texts = table(columns);
        columns.module.iter().map(|index| texts[*index as usize].clone()).collect()
    }

    #[test]
    fn names_are_lost_and_equal_names_stay_equal() {
        let mut columns = named();
        scramble_names(&mut columns, 1);
        let names = modules(&columns);
        assert!(names.iter().all(|name| !name.contains("attention") && !name.contains("head")));
        assert_eq!(names[0].replace(".0.", ".1."), names[1]);
        assert_eq!(columns.class[0], columns.class[1]);
        assert_eq!(table(&columns)[columns.op[0] as usize], "aten::relu");
        strip_marks(&mut columns);
        assert_eq!(columns.mark, [0, 0, 0]);
    }

    #[test]
    fn permuted_names_are_the_same_set() {
        let mut columns = named();
        let before = modules(&columns);
        permute_names(&mut columns, 2);
        let after = modules(&columns);
        assert_ne!(before, after);
        let sorted = |mut list: Vec<String>| {
            list.sort();
            list
        };
        assert_eq!(sorted(before), sorted(after));
    }
}
