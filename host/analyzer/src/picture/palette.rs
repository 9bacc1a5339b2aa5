//! Colours of phases: the same for the same name, apart for people who see fewer colours.

/// Colours after Okabe and Ito, with three of Tol's behind them; dark text reads on their tints.
const COLOURS: [&str; 10] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#332288",
    "#999933", "#882255",
];
/// What no recognizer named.
pub const NONE: &str = "#9aa3ad";

/// Phases of the shipped recognizers; those that meet in one program have colours apart.
const KNOWN: [(&str, usize); 25] = [
    ("audio.decode", 1),
    ("audio.encode", 4),
    ("audio.frontend", 6),
    ("diffusion.denoise", 3),
    ("diffusion.vae", 6),
    ("gnn.message_passing", 2),
    ("llm.decode", 1),
    ("llm.prefill", 0),
    ("mm.fusion", 3),
    ("mm.text_encoder", 4),
    ("mm.vision_encoder", 2),
    ("other.forward", 0),
    ("recsys.dense_mlp", 0),
    ("recsys.embedding_lookup", 2),
    ("recsys.interaction", 1),
    ("seq2seq.decode", 1),
    ("seq2seq.encode", 2),
    ("text.encode", 4),
    ("train.backward", 1),
    ("train.forward", 0),
    ("train.optimizer", 2),
    ("vision.backbone", 0),
    ("vision.detect", 5),
    ("vision.head", 1),
    ("vision.stem", 2),
];

/// The colours of these phases, in their order. A phase that nobody knows takes a colour by its
/// name, or the next one that is free here.
pub fn colours(phases: &[String]) -> Vec<&'static str> {
    let known = |phase: &str| {
        let at = KNOWN.binary_search_by(|(name, _)| (*name).cmp(phase)).ok()?;
        Some(KNOWN[at].1)
    };
    let mut taken: Vec<usize> = phases.iter().filter_map(|phase| known(phase)).collect();
    phases
        .iter()
        .map(|phase| {
            if phase.is_empty() {
                return NONE;
            }
            let index = known(phase).unwrap_or_else(|| {
                let begin = hash(phase) as usize % COLOURS.len();
                let free = (0..COLOURS.len())
                    .map(|step| (begin + step) % COLOURS.len())
                    .find(|index| !taken.contains(index));
                taken.extend(free);
                free.unwrap_or(begin)
            });
            COLOURS[index]
        })
        .collect()
}

/// The colour mixed with white: `share` of 255 of it is left.
pub fn tint(colour: &str, share: u32) -> String {
    let channel = |at: usize| {
        let value = u32::from_str_radix(&colour[at..at + 2], 16).unwrap_or(0);
        (value * share + 255 * (255 - share)) / 255
    };
    format!("#{:02x}{:02x}{:02x}", channel(1), channel(3), channel(5))
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_phases_are_sorted_and_keep_their_colour() {
        assert!(KNOWN.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let one = colours(&["llm.decode".into()]);
        let two = colours(&["mine.own".into(), "llm.prefill".into(), "llm.decode".into()]);
        assert_eq!(one[0], two[2]);
        assert_eq!(colours(&[String::new()]), [NONE]);
    }

    #[test]
    fn strangers_get_colours_apart() {
        let phases: Vec<String> = (0..COLOURS.len()).map(|index| format!("p{index}")).collect();
        let mut colours = colours(&phases);
        colours.sort();
        colours.dedup();
        assert_eq!(colours.len(), COLOURS.len());
    }

    #[test]
    fn tints_are_light() {
        assert_eq!(tint("#000000", 0), "#ffffff");
        assert_eq!(tint("#336699", 255), "#336699");
    }
}
