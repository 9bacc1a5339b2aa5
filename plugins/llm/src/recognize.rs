//! Which family the window is, and which pass is which phase.

use genie_plugin::evidence::{
    BESIDE_A_SIGN, BESIDE_A_SIGNATURE, CLAIM_MIN, FAIR, GOOD, LIKELY, PLAUSIBLE, STRONG,
    UNMISTAKABLE, WEAK,
};
use genie_plugin::prelude::*;
use genie_plugin::shapes::{Modality, Pass, View};

use crate::cache::Caches;

/// What passes over tokens amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Reads left to right, scores the vocabulary.
    Decoder,
    /// Sees all positions at once.
    Encoder,
    /// One encoder, and a decoder that looks at it.
    EncoderDecoder,
}

pub fn recognize(view: &View, notes: &mut Annotations) {
    let Some((family, confidence)) = family(view) else { return };
    let graph = view.graph;
    let others = view.other_inputs();
    // Pictures or sound among the inputs: another recognizer knows better.
    let pure = match () {
        () if others.has(Modality(Modality::IMAGE.0 | Modality::AUDIO.0)) => BESIDE_A_SIGNATURE,
        () if view.regions().is_some() => BESIDE_A_SIGN,
        () => 1.0,
    };
    let confidence = confidence * pure;
    let label = match family {
        Family::Decoder => "llm",
        Family::Encoder => "text_encoder",
        Family::EncoderDecoder => "seq2seq",
    };
    notes.workload(label, confidence);
    describe(view, family, notes);
    if !view.flow.training {
        phases(view, family, confidence, notes);
        let caches = Caches::of(view);
        if let Some(kind) = caches.kind() {
            notes.attribute("kv_cache", kind);
        }
        if family != Family::Encoder {
            for (storage, sure) in &caches.storages {
                notes.residency(StorageId(*storage), "kv_cache", sure * pure);
            }
            let attending = view.attentions.iter().flat_map(|attention| {
                [attention.key, attention.value].map(|value| graph.producer(value))
            });
            let appends = attending.filter(|node| graph.is_op(*node));
            notes.matched("llm.kv_cache", "", "", confidence, appends);
        }
    }
}

fn family(view: &View) -> Option<(Family, f32)> {
    let mut working = view.working().peekable();
    working.peek()?;
    let (mut causal, mut bidirectional, mut past, mut scores) = (0, 0, 0, 0);
    let (mut crossing, mut attending, mut passes) = (0, 0, 0);
    let (mut single, mut longest) = (0, 0);
    let mut weighted = 0;
    for (_, pass) in working {
        passes += 1;
        // One layer that sees later positions lets all that follow see them.
        causal += usize::from(pass.causal && !pass.bidirectional);
        bidirectional += usize::from(pass.bidirectional);
        past += usize::from(pass.past > 0);
        scores += usize::from(!pass.scores.is_empty());
        crossing += usize::from(crosses_text(view, pass));
        attending += usize::from(!pass.attentions.is_empty());
        single += usize::from(pass.tokens <= 1);
        longest = longest.max(pass.tokens);
        weighted += pass.weighted;
    }
    let fed_back = view.is_fed_back();
    if crossing > 0 && (bidirectional > 0 || crossing < passes) {
        // A target that looks at a history scores no words.
        return Some((Family::EncoderDecoder, if scores > 0 { STRONG } else { FAIR }));
    }
    if reads_then_writes(view) {
        return Some((Family::EncoderDecoder, GOOD));
    }
    if attending == 0 {
        // Recurrent or state-space: scores of every vocabulary row say that it is a language model.
        return match (scores > 0, fed_back) {
            (true, true) => Some((Family::Decoder, STRONG)),
            // Mixing by softmax or Fourier over all positions is no recurrence.
            (true, false) if mixes_all(view) => Some((Family::Encoder, PLAUSIBLE)),
            (true, false) if longest > 1 || single > 0 => Some((Family::Decoder, FAIR)),
            (false, _) if mixes_all(view) && longest > 4 => Some((Family::Encoder, PLAUSIBLE)),
            (false, _) if longest > 4 && weighted >= 4 => Some((Family::Encoder, CLAIM_MIN)),
            _ => None,
        };
    }
    if crossing > 0 {
        // A decoder's steps alone; its encoder ran before the window.
        return Some((Family::EncoderDecoder, LIKELY));
    }
    if fed_back && scores > 0 {
        return Some((Family::Decoder, UNMISTAKABLE));
    }
    if past > 0 {
        return Some((Family::Decoder, if scores > 0 { STRONG } else { LIKELY }));
    }
    if causal > 0 && causal >= bidirectional {
        return Some((Family::Decoder, if scores > 0 { GOOD } else { FAIR }));
    }
    if bidirectional > 0 {
        return Some((Family::Encoder, if longest > 1 { LIKELY } else { WEAK }));
    }
    // One token that looks at itself only.
    Some((Family::Decoder, if scores > 0 { FAIR } else { CLAIM_MIN }))
}

/// Whether a pass that scores nothing comes before passes that write token by token: an encoder
/// whose decoder does not attend to it, or not by a softmax.
fn reads_then_writes(view: &View) -> bool {
    let mut working = view.working().map(|(_, pass)| pass);
    let Some(first) = working.next() else { return false };
    let mut writes = 0;
    for pass in working {
        if pass.scores.is_empty() {
            return false;
        }
        writes += 1;
    }
    writes > 0 && first.scores.is_empty() && !first.causal && first.past == 0 && first.tokens > 1
}

/// Whether positions are mixed all at once by other means than plain attention.
fn mixes_all(view: &View) -> bool {
    let graph = view.graph;
    graph.nodes().filter(|node| view.flow.is_forward(*node)).any(|node| match graph.op_name(node) {
        "_softmax" => graph.output(node, 0).is_some_and(|out| out.dims() >= 3),
        name => name.starts_with("_fft"),
    })
}

/// Whether a pass looks at what another pass over tokens made, and not by a cache of its own.
fn crosses_text(view: &View, pass: &Pass) -> bool {
    pass.crossing.iter().any(|index| {
        let key = view.modalities.value(view.attentions[*index].key);
        key.has(Modality::TOKENS) || key == Modality::NONE || is_memory(view, key)
    })
}

/// Whether rows of numbers are what an encoder made before the window: no features of regions.
fn is_memory(view: &View, key: Modality) -> bool {
    key.only(Modality::SERIES.with(Modality::VECTOR)) && view.regions().is_none()
}

fn phases(view: &View, family: Family, confidence: f32, notes: &mut Annotations) {
    let graph = view.graph;
    let list = &view.passes.list;
    let mut phase_of_pass: Vec<&str> = Vec::with_capacity(list.len());
    let mut seen = false;
    let looked_at = looked_at(view);
    let first = view.working().next().map_or(0, |(_, pass)| pass.tokens);
    for (index, pass) in list.iter().enumerate() {
        let phase = match family {
            Family::Encoder => "text.encode",
            Family::EncoderDecoder => {
                let decodes = !pass.crossing.is_empty()
                    || pass.causal
                    || pass.chosen
                    || pass.past > 0
                    || !pass.scores.is_empty();
                let silent = pass.crossing.is_empty() && pass.scores.is_empty() && !pass.chosen;
                let encodes = !pass.chosen && looked_at[index]
                    || silent && looked_at[index..].contains(&true);
                if decodes && !encodes { "seq2seq.decode" } else { "seq2seq.encode" }
            }
            Family::Decoder => {
                // A prompt that is read in equal parts is still being read.
                let part = seen && pass.tokens > 1 && pass.tokens == first && !pass.chosen;
                let continues = (pass.past > 0 && !part)
                    || pass.chosen
                    || (pass.tokens <= 1 && (seen || looks_back(view, pass)));
                if continues { "llm.decode" } else { "llm.prefill" }
            }
        };
        seen |= pass.weighted >= 2;
        phase_of_pass.push(phase);
    }
    if phase_of_pass.is_empty() {
        return;
    }
    for (index, pass) in list.iter().enumerate() {
        let pattern = match family {
            Family::Encoder => "text.encoder",
            Family::EncoderDecoder => match phase_of_pass[index] {
                "seq2seq.encode" => "seq2seq.encoder",
                _ => "seq2seq.decoder",
            },
            Family::Decoder => "llm.pass",
        };
        // What stands before the first pass prepares it.
        let start = if index == 0 { NodeId(0) } else { pass.start };
        let nodes = (start.0..pass.end.0).map(NodeId).filter(|node| graph.is_op(*node));
        notes.matched(pattern, phase_of_pass[index], "text", confidence, nodes);
    }
    let scores = list.iter().flat_map(|pass| pass.scores.iter().copied());
    notes.matched("llm.scores", "", "text", confidence, scores);
}

/// For each pass whether a later one looks at what it made: an encoder, whatever its masks and
/// windows look like.
fn looked_at(view: &View) -> Vec<bool> {
    let list = &view.passes.list;
    let mut looked_at = vec![false; list.len()];
    for (index, pass) in list.iter().enumerate() {
        for attention in &pass.crossing {
            match view.passes.latest(view.attentions[*attention].key) {
                Some(made) if made < index => looked_at[made] = true,
                _ => {}
            }
        }
    }
    looked_at
}

/// Whether a pass of one token uses state from before the window.
fn looks_back(view: &View, pass: &Pass) -> bool {
    pass.attentions.iter().any(|index| {
        let attention = &view.attentions[*index];
        attention.k_len > attention.q_len
    })
}

fn describe(view: &View, family: Family, notes: &mut Annotations) {
    let architecture = match family {
        Family::Decoder => "decoder-only",
        Family::Encoder => "encoder-only",
        Family::EncoderDecoder => "encoder-decoder",
    };
    notes.attribute("architecture", architecture);
    let graph = view.graph;
    // Sampling chooses among words, a router among experts.
    let vocabularies: Vec<i64> = view.passes.list.iter().map(|pass| pass.vocabulary).collect();
    let routes = |node: NodeId| {
        let among = graph.input(node, 0).map_or(0, |scores| scores.size(-1));
        graph.op_name(node) == "topk" && !vocabularies.contains(&among)
    };
    let mut forward = graph.nodes().filter(|node| view.flow.is_forward(*node));
    let experts = !view.attentions.is_empty() && forward.any(routes);
    if experts {
        notes.attribute("experts", "routed");
    }
    if let Some((_, pass)) = view.working().next() {
        notes.attribute("vocabulary", pass.vocabulary.to_string());
    }
}
