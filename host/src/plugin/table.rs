//! Tables for a terminal.

/// Prints rows in aligned columns; those whose heading begins with `>` to the right.
pub fn print(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> =
        header.iter().map(|name| name.trim_start_matches('>').chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let names: Vec<String> =
        header.iter().map(|cell| cell.trim_start_matches('>').to_owned()).collect();
    for row in std::iter::once(&names).chain(rows) {
        let cells = row.iter().zip(&widths).zip(header).map(|((cell, width), name)| {
            match name.starts_with('>') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            }
        });
        println!("{}", cells.collect::<Vec<String>>().join("  ").trim_end());
    }
}
