//! Sound: waveforms and spectrograms, acoustic encoders, and decoders that write text or waves.
//!
//! [`Source`] lists what sound looks like. The front end ends where the first product of a matrix
//! begins; a decoder is what depends on tokens; the encoder is the rest.

mod parts;
mod source;
mod spectrum;
#[cfg(test)]
mod tests;

use genie_plugin::dataflow::{NodeSet, reach};
use genie_plugin::evidence::CLAIM_MIN;
use genie_plugin::prelude::*;

use self::source::Source;
use crate::facts::Facts;

/// Some steps of a recurrence that is written out have more gates than any head.
const GATES_MIN: usize = 9;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    let Some(sound) = Sound::of(facts) else { return };
    let confidence = sound.source.level(sound.frame(), sound.attends || sound.recurs);
    if confidence < CLAIM_MIN {
        return;
    }
    notes.workload("audio", confidence);
    if facts.flow.training {
        return;
    }
    let (decoder, front_end) = (parts::decoder(&sound), parts::front_end(&sound));
    let nodes = facts.nodes.iter().copied();
    let (decoder, heard): (Vec<_>, Vec<_>) = nodes.partition(|node| decoder.contains(*node));
    let (front_end, encoder): (Vec<_>, Vec<_>) =
        heard.into_iter().partition(|node| front_end.contains(*node));
    notes.matched("audio.frontend", "audio.frontend", "audio", confidence, front_end);
    notes.matched("audio.encoder", "audio.encode", "audio", confidence, encoder);
    notes.matched("audio.decoder", "audio.decode", "text", confidence, decoder);
}

/// A window with sound in it.
struct Sound<'g> {
    facts: &'g Facts<'g>,
    /// Where it comes in, or is first made.
    entry: NodeId,
    /// Where it comes in again, too: in pieces, one after the other.
    entries: Vec<NodeId>,
    source: Source,
    /// Where transposed convolutions begin to make a waveform.
    made: Option<NodeId>,
    /// What depends on the entry.
    heard: NodeSet,
    attends: bool,
    recurs: bool,
}

impl<'g> Sound<'g> {
    fn of(facts: &'g Facts<'g>) -> Option<Self> {
        if source::has_pictures(facts) {
            return None;
        }
        let made = source::made(facts);
        let (entry, source) = match (source::incoming(facts), made) {
            (None | Some((_, Source::Bands { .. })), Some(made)) => (made, Source::WaveOut),
            (Some(incoming), _) => incoming,
            (None, None) => (source::rows(facts)?, Source::Rows),
        };
        let (graph, nodes) = (facts.graph, &facts.nodes);
        let gates = nodes.iter().filter(|node| matches!(graph.name(**node), "sigmoid" | "tanh"));
        let recurs = gates.count() >= GATES_MIN
            || nodes.iter().any(|node| graph.roles(*node).has(Roles::RECURRENCE));
        let mut entries = vec![entry];
        if made != Some(entry) {
            entries.extend(source::all_incoming(facts).filter(|node| *node > entry));
        }
        let heard = reach(graph, nodes, entries.iter().copied(), |_| true);
        let attends = !facts.attentions().is_empty();
        Some(Sound { facts, entry, entries, source, made, heard, attends, recurs })
    }

    /// Samples for each of the fewest positions that convolutions and pools leave of a waveform.
    fn frame(&self) -> i64 {
        let graph = self.facts.graph;
        let Source::Wave { samples } = self.source else { return 0 };
        let shrinks = Roles::CONVOLUTION.and(Roles::POOL);
        let shrunk = self.heard.iter().filter(|node| graph.roles(*node).has(shrinks));
        let frames = shrunk.filter_map(|node| Some(graph.output(node, 0)?.size(-1)));
        samples / frames.filter(|frames| *frames > 1).min().unwrap_or(i64::MAX)
    }
}
