//! A plugin's words, made fit for a log and a terminal.

/// `text` without control characters and no longer than `bytes_max`.
pub(crate) fn clean(text: &str, bytes_max: usize) -> String {
    let cut = text.floor_char_boundary(bytes_max);
    let mut out: String =
        text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut < text.len() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn words_are_cut_at_a_character_and_stay_on_their_line() {
        assert_eq!(clean("a\nb\u{1b}[31mc", 99), "a b [31mc");
        assert_eq!(clean("ääää", 3), "ä...");
    }
}
