//! Sound: waveforms and spectrograms, acoustic encoders, and decoders that write text or waves.
//!
//! | what comes in or out | evidence |
//! |---|---|
//! | a waveform | convolutions over one or two channels of many samples that leave few frames |
//! | frames of one | a Fourier transform of real numbers before any parameter, also one by products: the squares of two are added |
//! | a spectrogram in bands | convolutions over series with as many channels as bands |
//! | a spectrogram as a plane | convolutions over one plane that is not about square, or bands that are normed one by one |
//! | a waveform that goes out | transposed convolutions that make many samples of few frames |
//!
//! The front end ends where the first product of a matrix begins; a decoder is what depends on
//! tokens.

use genie_plugin::prelude::*;
use genie_plugin::shapes::flow::{is_given, product};
use genie_plugin::shapes::modality::{Modalities, Modality};

use crate::facts::Facts;

/// Below this nothing is claimed.
const CLAIM_MIN: f32 = 0.3;
/// Fewer samples are no sound: 25 ms at 16 kHz.
const SAMPLES_MIN: i64 = 400;
/// Samples of a sound that is surely one: an eighth of a second.
const SAMPLES_MANY: i64 = 2000;
/// Samples for each frame that a front end leaves at the least.
const FRAME_MIN: i64 = 8;
/// Bands of a spectrogram.
const BANDS: std::ops::RangeInclusive<i64> = 16..=256;
/// Bands of frames that no convolution reads: fewer are sensors, more are features of regions.
const BANDS_ROWS: std::ops::RangeInclusive<i64> = 20..=160;
/// Activations of this kind that only a recurrence has.
const RECURRENT_MIN: usize = 9;
/// Fewer frames are no sound.
const FRAMES_MIN: i64 = 16;
/// Readers of one value that are looked at.
const READERS_MAX: usize = 8;
const FLOAT_BYTES: i64 = 4;
/// A usual count of bands begins here; fewer may be sensors.
const BANDS_SURE: i64 = 40;

pub(crate) fn recognize(facts: &Facts<'_>, notes: &mut Annotations) {
    if !may_sound(facts) {
        return;
    }
    let sound = Sound::of(facts);
    let confidence = sound.confidence();
    if confidence < CLAIM_MIN {
        return;
    }
    notes.workload("audio", confidence);
    if facts.flow.training {
        return;
    }
    let mut parts: [Vec<NodeId>; 3] = Default::default();
    for (node, part) in sound.nodes.iter().zip(sound.parts()) {
        parts[part as usize].push(*node);
    }
    let [frontend, encoder, decoder] = parts;
    for (pattern, phase, modality, nodes) in [
        ("audio.frontend", "audio.frontend", "audio", frontend),
        ("audio.encoder", "audio.encode", "audio", encoder),
        ("audio.decoder", "audio.decode", "text", decoder),
    ] {
        notes.matched(pattern, phase, modality, confidence, nodes);
    }
}

/// Whether there is anything that sound needs: convolutions, spectra, recurrence or scores of
/// symbols. A look at names of operators, to spare language models the rest.
fn may_sound(facts: &Facts<'_>) -> bool {
    let graph = facts.graph;
    let mut bends = 0;
    graph.nodes().any(|node| {
        let name = facts.graph.name(node);
        bends += usize::from(name == "tanh");
        facts.graph.roles(node).has(Roles::CONVOLUTION)
            || bends >= RECURRENT_MIN
            || matches!(name, "_fft_r2c" | "stft" | "_log_softmax" | "lstm" | "gru" | "_cudnn_rnn")
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Frontend,
    Encoder,
    Decoder,
}

/// A convolution and what it reads.
#[derive(Debug, Clone, Copy)]
struct Convolution<'g> {
    data: Tensor<'g>,
    weight: Tensor<'g>,
    /// Dimensions that it moves along.
    spatial: usize,
    stride: i64,
    transposed: bool,
}

fn convolution<'g>(facts: &Facts<'g>, node: NodeId) -> Option<Convolution<'g>> {
    let graph = facts.graph;
    if !facts.graph.roles(node).has(Roles::CONVOLUTION) {
        return None;
    }
    let (data, weight) = (graph.input(node, 0)?, graph.input(node, 1)?);
    let spatial = weight.dims().checked_sub(2)?;
    let mut args = graph.args(node).skip_while(|arg| !matches!(arg, Arg::List(_))).skip(1);
    let stride = args.next().and_then(|arg| arg.as_i64()).unwrap_or(1);
    let transposed = args.find_map(|arg| match arg {
        Arg::Bool(flag) => Some(flag),
        _ => None,
    });
    (spatial > 0 && data.dims() > spatial).then_some(Convolution {
        data,
        weight,
        spatial,
        stride,
        transposed: transposed.unwrap_or(false),
    })
}

impl Convolution<'_> {
    fn channels(&self) -> i64 {
        self.data.size(-1 - self.spatial as isize)
    }
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Wave {
        samples: i64,
    },
    Transform,
    Bands {
        bands: i64,
    },
    Plane {
        longer: i64,
        shorter: i64,
        /// The kernel reaches further along one dimension: the two are not alike.
        uneven: bool,
    },
    BandNorm,
    WaveOut {
        samples: i64,
    },
    /// Frames of bands that products read one by one, to score each or to be attended to by words.
    Rows,
}

/// A waveform that transposed convolutions make.
#[derive(Debug, Clone, Copy)]
struct Made {
    first: NodeId,
    samples: i64,
}

struct Sound<'g> {
    facts: &'g Facts<'g>,
    graph: &'g Graph,
    /// The operators of inference, or of the first forward pass of training.
    nodes: Vec<NodeId>,
    /// Where sound comes in (or goes out).
    entry: Option<(NodeId, Source)>,
    made: Option<Made>,
    /// Pictures with colours come in too.
    pictures: bool,
    /// Attention or recurrence runs over frames.
    sequence: bool,
    attention: bool,
    /// The fewest frames that convolutions over the waveform leave.
    frames: i64,
    /// Some early convolution leaves out positions.
    strided: bool,
}

impl<'g> Sound<'g> {
    fn of(facts: &'g Facts<'g>) -> Self {
        let (graph, flow, modalities) = (facts.graph, &facts.flow, &facts.modalities);
        let nodes: Vec<NodeId> = graph
            .nodes()
            .take_while(|node| graph.stage(*node) != Stage::Backward)
            .filter(|node| flow.is_forward(*node))
            .collect();
        let raw = |value: ValueId| !modalities.is_touched(value);
        let mut sound = Sound {
            facts,
            graph,
            nodes,
            entry: None,
            made: None,
            pictures: false,
            sequence: false,
            attention: false,
            frames: i64::MAX,
            strided: false,
        };
        let mut gates = 0;
        for node in &sound.nodes {
            let node = *node;
            if let Some(convolution) = convolution(facts, node) {
                let is_raw = raw(convolution.data.value);
                sound.pictures |= is_raw && convolution.spatial >= 2 && convolution.channels() == 3;
                if is_raw && sound.entry.is_none() {
                    sound.entry = entered(&convolution).map(|source| (node, source));
                }
                sound.strided |= convolution.spatial == 1 && convolution.stride > 1;
                continue;
            }
            let name = facts.graph.name(node);
            if sound.entry.is_none()
                && product(facts.graph, node).is_some_and(|product| {
                    product.weighted && raw(product.data.value) && is_long(graph, product.data)
                })
                && is_power(facts, node)
            {
                sound.entry = Some((node, Source::Transform));
                continue;
            }
            match name {
                "_fft_r2c" | "stft"
                    if sound.entry.is_none()
                        && graph
                            .input(node, 0)
                            .is_some_and(|data| raw(data.value) && is_long(graph, data)) =>
                {
                    sound.entry = Some((node, Source::Transform));
                }
                "native_batch_norm" | "batch_norm" if sound.entry.is_none() => {
                    let banded = graph.input(node, 0).is_some_and(|data| {
                        let (a, b) = (data.size(-2), data.size(-1));
                        raw(data.value)
                            && data.dims() == 4
                            && data.size(1) > 4
                            && a.min(b) == 1
                            && a.max(b) > 1
                    });
                    if banded {
                        sound.entry = Some((node, Source::BandNorm));
                    }
                }
                "sigmoid" | "tanh" => gates += 1,
                _ if name.contains("attention") || name.contains("transformer_encoder_layer") => {
                    sound.attention = true;
                }
                "lstm"
                | "gru"
                | "_thnn_fused_lstm_cell"
                | "_thnn_fused_gru_cell"
                | "_cudnn_rnn" => gates += 9,
                _ => {}
            }
        }
        sound.made = sound.wave_out();
        if let (Some(made), None | Some((_, Source::Bands { .. }))) = (sound.made, sound.entry) {
            sound.entry = Some((made.first, Source::WaveOut { samples: made.samples }));
        }
        sound.attention |= !facts.attentions().is_empty();
        if sound.entry.is_none() {
            sound.entry = sound.rows(modalities);
        }
        if sound.entry.is_some() {
            // A few steps of a recurrence have more gates than any head.
            sound.sequence = sound.attention || gates >= 9;
            sound.frames = sound.frames_left();
        }
        sound
    }

    fn confidence(&self) -> f32 {
        let Some((_, source)) = self.entry else { return 0.0 };
        let sure = match source {
            Source::Wave { samples } => {
                let frame = samples / self.frames.max(1);
                match (samples >= SAMPLES_MANY, frame >= 2 * FRAME_MIN, frame >= FRAME_MIN) {
                    (true, true, _) => 0.92,
                    (true, _, true) if self.sequence => 0.88,
                    (_, _, true) => 0.78,
                    (true, ..) => 0.65,
                    _ => 0.2,
                }
            }
            Source::Transform => 0.9,
            Source::Bands { bands } => match (self.sequence, bands >= BANDS_SURE) {
                (true, true) => 0.88,
                (true, false) => 0.7,
                (false, true) => 0.66,
                (false, false) => 0.4,
            },
            Source::Plane { longer, shorter, uneven } => {
                match (self.sequence, longer >= 2 * shorter) {
                    (true, true) => 0.9,
                    (true, false) if uneven => 0.82,
                    (true, false) => 0.75,
                    (false, true) => 0.82,
                    (false, false) => 0.6,
                }
            }
            Source::BandNorm => 0.9,
            Source::WaveOut { samples } if samples >= SAMPLES_MANY => 0.85,
            Source::WaveOut { .. } => 0.7,
            Source::Rows => 0.75,
        };
        if self.pictures { sure * 0.3 } else { sure }
    }

    /// The fewest positions that convolutions and pools leave of the series that comes in.
    fn frames_left(&self) -> i64 {
        let graph = self.graph;
        let Some((entry, Source::Wave { .. })) = self.entry else { return i64::MAX };
        let mut reached = vec![false; graph.len()];
        reached[entry.0 as usize] = true;
        let mut frames = i64::MAX;
        for node in self.nodes.iter().filter(|node| **node >= entry) {
            let at = node.0 as usize;
            reached[at] |= graph.predecessors(*node).any(|before| reached[before.0 as usize]);
            let shrinks = self.graph.roles(*node).has(Roles::CONVOLUTION)
                || self.graph.name(*node).contains("pool");
            let Some(out) = graph.output(*node, 0) else { continue };
            if reached[at] && shrinks && out.dims() >= 2 && out.size(-1) > 1 {
                frames = frames.min(out.size(-1));
            }
        }
        frames
    }

    /// The last of transposed convolutions that make a waveform.
    fn wave_out(&self) -> Option<Made> {
        let graph = self.graph;
        let (mut least, mut found) = (i64::MAX, None);
        let mut wave = None;
        for node in &self.nodes {
            let Some(convolution) =
                convolution(self.facts, *node).filter(|found| found.spatial == 1)
            else {
                continue;
            };
            let Some(out) = graph.output(*node, 0) else { continue };
            if convolution.transposed && convolution.stride > 1 {
                least = least.min(convolution.data.size(-1));
                found.get_or_insert(*node);
            }
            let samples = out.size(-1);
            if out.size(-2) <= 2 && samples >= SAMPLES_MIN && samples / FRAME_MIN >= least {
                wave = found.map(|first| Made { first, samples });
            }
        }
        wave
    }

    /// Frames of bands that no convolution reads first: a recurrence or attention over them, and
    /// words that look at them, scores of symbols for each frame, or convolutions in between.
    fn rows(&self, modalities: &Modalities) -> Option<(NodeId, Source)> {
        let graph = self.graph;
        let (mut entry, mut symbols, mut words, mut neighbours, mut gated) =
            (None, false, false, false, false);
        let mut frames = 0;
        for node in &self.nodes {
            let name = self.graph.name(*node);
            if let Some(product) = product(self.graph, *node) {
                let bands = product.data.size(-1);
                let is_raw = product.weighted && !modalities.is_touched(product.data.value);
                if entry.is_none() && is_raw && BANDS_ROWS.contains(&bands) {
                    // All frames, or one at a time.
                    let bytes = graph.storage_bytes(graph.storage(product.data.value)) as i64;
                    let steps = bytes / FLOAT_BYTES / (product.data.elements() as i64).max(1);
                    frames = if steps > 1 { steps } else { series_len(graph, product.data) };
                    entry = (frames >= FRAMES_MIN).then_some(*node);
                }
            }
            gated |= name == "glu" || name == "sigmoid";
            // Each channel is mixed with its neighbours in time, between layers of attention.
            neighbours |= convolution(self.facts, *node).is_some_and(|found| {
                found.spatial == 1
                    && found.weight.size(1) == 1
                    && found.weight.size(-1) > 1
                    && found.channels() > 1
                    && modalities.is_touched(found.data.value)
            });
            let depends = |tensor: Tensor<'_>| {
                modalities.value(tensor.value).has(Modality::SERIES.with(Modality::VECTOR))
            };
            let Some(input) = graph.input(*node, 0) else { continue };
            symbols |=
                name == "_log_softmax" && depends(input) && input.dims() == 3 && input.size(-1) > 2;
            // Words ask, frames answer: as many columns as there are frames.
            words |= name == "_softmax"
                && depends(input)
                && modalities.value(input.value).has(Modality::TOKENS)
                && input.size(-1) == frames;
        }
        let entry = entry?;
        let recurrent = self.nodes.iter().filter(|node| self.graph.name(**node) == "tanh").count()
            >= RECURRENT_MIN;
        let sequence = recurrent || self.attention;
        let speaks = symbols || words || neighbours && gated && self.attention;
        (sequence && speaks).then_some((entry, Source::Rows))
    }

    /// The part of each node.
    fn parts(&self) -> Vec<Part> {
        let frontend = self.frontend();
        let decoder = self.decoder();
        self.nodes
            .iter()
            .map(|node| match node.0 as usize {
                at if decoder[at] => Part::Decoder,
                at if frontend[at] => Part::Frontend,
                _ => Part::Encoder,
            })
            .collect()
    }

    fn frontend(&self) -> Vec<bool> {
        let mut front = match self.entry {
            Some((entry, Source::Wave { .. })) => self.convolved(entry),
            Some((entry, Source::Transform)) => self.transformed(entry),
            _ => return vec![false; self.graph.len()],
        };
        // What is only there for the front end: padding, windows, norms of its weights.
        let graph = self.graph;
        for node in self.nodes.iter().rev() {
            let mut readers = graph.successors(*node).peekable();
            if readers.peek().is_some() && readers.all(|reader| front[reader.0 as usize]) {
                front[node.0 as usize] = true;
            }
        }
        front
    }

    /// From the first convolution over the waveform to the last one before any matrix, with what
    /// bends and scales its result.
    fn convolved(&self, entry: NodeId) -> Vec<bool> {
        let graph = self.graph;
        let mut front = vec![false; graph.len()];
        let mut last = entry;
        let (mut residual, mut products) = (false, false);
        for node in self.nodes.iter().copied().filter(|node| *node >= entry) {
            let name = self.graph.name(node);
            products |= product(self.graph, node).is_some();
            let from = graph.predecessors(node).filter(|before| front[before.0 as usize]).count();
            let is_convolution = self.graph.roles(node).has(Roles::CONVOLUTION);
            if node != entry && (from == 0 || !(is_convolution || keeps_frames(graph, node))) {
                continue;
            }
            front[node.0 as usize] = true;
            if is_convolution && node > last {
                last = node;
            }
            residual |= name == "add" && from > 1;
        }
        // A codec is one encoder from the waveform on.
        if residual && !self.attention || !products {
            return vec![false; graph.len()];
        }
        let mut tail = vec![false; graph.len()];
        tail[last.0 as usize] = true;
        for node in self.nodes.iter().copied().filter(|node| *node > last) {
            let at = node.0 as usize;
            let follows = graph.predecessors(node).any(|before| tail[before.0 as usize]);
            tail[at] =
                follows && front[at] && (!is_layer_norm(graph, node) || is_bent(graph, node));
            front[at] = tail[at];
        }
        front
    }

    /// From frames to the logarithm of their spectrum.
    fn transformed(&self, entry: NodeId) -> Vec<bool> {
        let graph = self.graph;
        let mut front = vec![false; graph.len()];
        front[entry.0 as usize] = true;
        let mut last = entry;
        for node in self.nodes.iter().copied().filter(|node| *node > entry) {
            let name = self.graph.name(node);
            let from = graph.predecessors(node).any(|before| front[before.0 as usize]);
            if !from
                || self.graph.roles(node).has(Roles::CONVOLUTION)
                || name.contains("attention")
                || name == "addmm"
            {
                continue;
            }
            front[node.0 as usize] = true;
            if matches!(name, "log" | "log10" | "log2" | "log1p" | "abs" | "view_as_real") {
                last = node;
            }
        }
        (last.0 as usize + 1..front.len()).for_each(|at| front[at] = false);
        front
    }

    /// What depends on tokens, and what only serves that.
    fn decoder(&self) -> Vec<bool> {
        let graph = self.graph;
        let mut depends = vec![false; graph.len()];
        // Numbers that were counted up, or chosen among scores of sound alone.
        let mut counted = vec![false; graph.values().len()];
        let mut first = None;
        // What depends on the sound that comes in.
        let mut heard = vec![false; graph.len()];
        let entry = self.entry.map(|(entry, _)| entry);
        let makes = self.made.map(|made| made.first);
        if let Some((entry, Source::WaveOut { .. })) = self.entry {
            // Few frames go in and many samples come out: all of it decodes.
            self.nodes
                .iter()
                .filter(|node| **node >= entry)
                .for_each(|node| depends[node.0 as usize] = true);
            return depends;
        }
        for node in &self.nodes {
            let at = node.0 as usize;
            let name = self.graph.name(*node);
            depends[at] = makes == Some(*node)
                || graph.predecessors(*node).any(|before| depends[before.0 as usize]);
            heard[at] = entry == Some(*node)
                || graph.predecessors(*node).any(|before| heard[before.0 as usize]);
            let chosen =
                matches!(name, "argmax" | "argmin" | "max" | "min" | "topk") && !depends[at];
            let counts = chosen
                || matches!(name, "arange" | "cumsum" | "linspace" | "range")
                || graph.inputs(*node).any(|input| counted[input.value.0 as usize]);
            // Distances between positions may be numbers with a fraction for a while.
            let carries = self.graph.roles(*node).has(Roles::ELEMENTWISE) || name == "copy";
            for output in
                graph.outputs(*node).filter(|output| carries || !output.dtype.is_floating())
            {
                counted[output.value.0 as usize] = counts;
            }
            if name != "embedding" || depends[at] {
                continue;
            }
            let (Some(table), Some(index)) = (graph.input(*node, 0), graph.input(*node, 1)) else {
                continue;
            };
            // A square of numbers says how far apart two positions are.
            let pairs = index.dims() >= 2 && index.size(-1) == index.size(-2) && index.size(-1) > 1;
            if is_given(graph, table.value) && !counted[index.value.0 as usize] && !pairs {
                depends[at] = true;
                first.get_or_insert(*node);
            }
        }
        let Some(first) = first else { return depends };
        for node in self.nodes.iter().rev() {
            let mut readers = graph.successors(*node).peekable();
            let at = node.0 as usize;
            if !heard[at] && *node > first {
                // Masks and positions of words, also where the program reads them itself.
                depends[at] =
                    readers.all(|reader| depends[reader.0 as usize] || !heard[reader.0 as usize]);
                continue;
            }
            let serves = *node > first || !heard[at];
            if serves
                && readers.peek().is_some()
                && readers.all(|reader| depends[reader.0 as usize])
            {
                depends[node.0 as usize] = true;
            }
        }
        depends
    }
}

/// What a convolution over given numbers hears.
fn entered(convolution: &Convolution<'_>) -> Option<Source> {
    let (data, weight) = (convolution.data, convolution.weight);
    if convolution.transposed {
        return None;
    }
    match (convolution.spatial, convolution.channels()) {
        (1, 1..=2) if data.size(-1) >= SAMPLES_MIN => Some(Source::Wave { samples: data.size(-1) }),
        (1, bands) if BANDS.contains(&bands) => {
            let frames = data.size(-1);
            // A kernel of one looks at each position alone: points, not frames.
            let series = frames >= FRAMES_MIN && frames * 2 >= bands && weight.size(-1) > 1;
            series.then_some(Source::Bands { bands })
        }
        (2, 1) => {
            let (a, b) = (data.size(-2), data.size(-1));
            // A kernel along one dimension only reads sensors one by one.
            let wide = weight.size(-1) > 1 && weight.size(-2) > 1;
            let (longer, shorter) = (a.max(b), a.min(b));
            let uneven = weight.size(-1) != weight.size(-2);
            (wide && shorter >= 8 && longer * 4 >= shorter * 5).then_some(Source::Plane {
                longer,
                shorter,
                uneven,
            })
        }
        _ => None,
    }
}

/// Whether the squares of a product and of another of the same data are added: the power of waves
/// and of waves a quarter later. One product may give both.
fn is_power(facts: &Facts<'_>, node: NodeId) -> bool {
    let graph = facts.graph;
    let Some(data) = product(facts.graph, node).map(|product| product.data) else { return false };
    // The part of a product of the same data that a value is the square of.
    let squared = |value: ValueId| -> Option<Tensor<'_>> {
        let at = graph.producer(value);
        let mut inputs = graph.inputs(at);
        let (first, second) = (inputs.next()?, inputs.next());
        let is_square = match facts.graph.name(at) {
            "square" => true,
            "pow" => graph.args(at).any(|arg| arg_is_two(&arg)),
            "mul" => second
                .is_some_and(|other| other.value == first.value && other.offset == first.offset),
            _ => false,
        };
        let of = product(facts.graph, graph.producer(first.value)).filter(|product| {
            product.data.value == data.value
                && product.data.offset == data.offset
                && product.data.sizes == data.sizes
        });
        (is_square && of.is_some()).then_some(first)
    };
    let Some(out) = graph.output(node, 0) else { return false };
    graph.consumers(out.value).iter().take(READERS_MAX).any(|square| {
        let Some(square) = graph.output(*square, 0) else { return false };
        graph.consumers(square.value).iter().take(READERS_MAX).any(|sum| {
            let mut parts = graph.inputs(*sum).map(|input| squared(input.value));
            let (Some(Some(a)), Some(Some(b))) = (parts.next(), parts.next()) else {
                return false;
            };
            facts.graph.name(*sum) == "add" && (a.value, a.offset) != (b.value, b.offset)
        })
    })
}

fn arg_is_two(arg: &Arg<'_>) -> bool {
    match arg {
        Arg::Int(number) => *number == 2,
        Arg::Float(number) => *number == 2.0,
        _ => false,
    }
}

/// Whether frames were cut from something as long as a sound.
fn is_long(graph: &Graph, frames: Tensor<'_>) -> bool {
    let mut at = frames;
    for _ in 0..16 {
        if is_given(graph, at.value) {
            break;
        }
        let node = graph.producer(at.value);
        match graph.inputs(node).max_by_key(|input| input.elements()) {
            Some(next) if next.dtype.is_floating() => at = next,
            _ => break,
        }
    }
    let whole = graph.output(graph.producer(at.value), 0).unwrap_or(at);
    whole.size(-1) >= SAMPLES_MIN
        || overlapping_span(frames).max(overlapping_span(whole)) >= SAMPLES_MIN
}

/// From the first to the last element of frames that overlap: the samples that they were cut from.
fn overlapping_span(frames: Tensor<'_>) -> i64 {
    let ([.., count, len], [.., step, 1]) = (frames.sizes, frames.strides) else { return 0 };
    match step {
        step if (1..*len).contains(step) => (count - 1).saturating_mul(*step).saturating_add(*len),
        _ => 0,
    }
}

/// How many rows a given series has, one after another.
fn series_len(graph: &Graph, data: Tensor<'_>) -> i64 {
    let whole = graph.output(graph.producer(data.value), 0).unwrap_or(data);
    if whole.dims() == 3 { whole.size(1).max(whole.size(0)) } else { 0 }
}

/// Work that a front end does between convolutions.
fn keeps_frames(graph: &Graph, node: NodeId) -> bool {
    let name = graph.name(node);
    graph.roles(node).has(Roles::ELEMENTWISE)
        || name.contains("pad")
        || name.contains("pool")
        || name.contains("_norm")
        || matches!(
            name,
            "clone"
                | "copy"
                | "glu"
                | "dropout"
                | "native_dropout"
                | "leaky_relu"
                | "prelu"
                | "snake"
        )
        || is_bend(name)
}

fn is_layer_norm(graph: &Graph, node: NodeId) -> bool {
    graph.name(node).contains("layer_norm")
}

/// Whether an activation reads the node's result: then it is the norm of a convolution.
fn is_bent(graph: &Graph, node: NodeId) -> bool {
    graph.successors(node).any(|reader| is_bend(graph.name(reader)))
}

fn is_bend(name: &str) -> bool {
    matches!(
        name,
        "relu"
            | "gelu"
            | "silu"
            | "elu"
            | "leaky_relu"
            | "tanh"
            | "hardtanh"
            | "mish"
            | "prelu"
            | "selu"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::General;
    use genie_plugin::builder::{Given, GraphBuilder, Handle};
    use genie_plugin::harness;

    fn claimed(graph: &Graph) -> f32 {
        let mut notes = Annotations::new();
        recognize(&Facts::of(graph), &mut notes);
        notes.workload.iter().map(|claim| claim.confidence).fold(0.0, f32::max)
    }

    fn convolve(
        g: &mut GraphBuilder,
        x: Handle,
        weight: &[i64],
        stride: i64,
        up: bool,
        out: &[i64],
    ) -> Handle {
        let w = g.weight(weight);
        let args = [
            Given::Tensor(0),
            Given::Tensor(1),
            Given::None,
            Given::Ints(&[stride]),
            Given::Ints(&[0]),
            Given::Ints(&[1]),
            Given::Bool(up),
            Given::Ints(&[0]),
            Given::Int(1),
        ];
        g.op_with("aten::convolution", &[x, w], Some(&args), out)
    }

    fn linear(g: &mut GraphBuilder, x: Handle, rows: i64, from: i64, to: i64) -> Handle {
        let (w, b) = (g.weight(&[from, to]), g.weight(&[to]));
        g.op("aten::addmm", &[b, x, w], &[rows, to])
    }

    /// A waveform, two convolutions, norm and a product over frames.
    fn speech(g: &mut GraphBuilder) -> Handle {
        let x = g.input(&[1, 1, 8000]);
        let x = convolve(g, x, &[32, 1, 10], 5, false, &[1, 32, 1600]);
        let x = g.op("aten::gelu", &[x], &[1, 32, 1600]);
        let x = convolve(g, x, &[32, 32, 4], 8, false, &[1, 32, 200]);
        let x = g.op("aten::relu", &[x], &[1, 32, 200]);
        let x = g.transpose(x, 1, 2);
        let x = g.op("aten::native_layer_norm", &[x], &[1, 200, 32]);
        let x = g.view(x, &[200, 32]);
        linear(g, x, 200, 32, 16)
    }

    #[test]
    fn strided_convolutions_over_a_waveform_are_the_front_end() {
        let mut g = GraphBuilder::new();
        speech(&mut g);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_workload("audio");
        for op in ["convolution", "gelu", "relu"] {
            seen.assert_phase_of(op, "audio.frontend");
        }
        for op in ["native_layer_norm", "addmm"] {
            seen.assert_phase_of(op, "audio.encode");
        }
    }

    #[test]
    fn what_depends_on_words_decodes() {
        let mut g = GraphBuilder::new();
        let frames = speech(&mut g);
        let (ids, table) = (g.input_of(&[1, 3], DType::INT64), g.weight(&[90, 16]));
        let words = g.op("aten::embedding", &[table, ids], &[1, 3, 16]);
        let words = g.view(words, &[3, 16]);
        let keys = g.transpose(frames, 0, 1);
        let scores = g.op("aten::mm", &[words, keys], &[3, 200]);
        let weights = g.op("aten::_softmax", &[scores], &[3, 200]);
        g.op("aten::mm", &[weights, frames], &[3, 16]);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        for op in ["embedding", "mm", "_softmax"] {
            seen.assert_phase_of(op, "audio.decode");
        }
        seen.assert_phase_of("addmm", "audio.encode");
    }

    #[test]
    fn a_spectrum_of_frames_is_the_front_end() {
        let mut g = GraphBuilder::new();
        let (x, window) = (g.input(&[1, 4096]), g.weight(&[256]));
        let frames = g.view(x, &[16, 256]);
        let frames = g.op("aten::mul.Tensor", &[frames, window], &[16, 256]);
        let spectrum = g.op("aten::_fft_r2c", &[frames], &[16, 129]);
        let power = g.op("aten::abs", &[spectrum], &[16, 129]);
        let log = g.op("aten::log", &[power], &[16, 129]);
        linear(&mut g, log, 16, 129, 8);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_workload("audio");
        for op in ["mul", "_fft_r2c", "log"] {
            seen.assert_phase_of(op, "audio.frontend");
        }
        seen.assert_phase_of("addmm", "audio.encode");
    }

    #[test]
    fn planes_are_sound_only_when_long() {
        for (sizes, sound) in
            [([1, 1, 64, 200], true), ([1, 1, 28, 28], false), ([1, 3, 64, 200], false)]
        {
            let mut g = GraphBuilder::new();
            let x = g.input(&sizes);
            let y = convolve(
                &mut g,
                x,
                &[8, sizes[1], 3, 3],
                1,
                false,
                &[1, 8, sizes[2] - 2, sizes[3] - 2],
            );
            g.op("aten::relu", &[y], &[1, 8, sizes[2] - 2, sizes[3] - 2]);
            let confidence = claimed(&g.build());
            assert_eq!(confidence >= 0.7, sound, "{sizes:?}: {confidence}");
        }
    }

    #[test]
    fn few_channels_of_a_short_series_are_sensors() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[8, 4, 64]);
        convolve(&mut g, x, &[32, 4, 3], 1, false, &[8, 32, 62]);
        assert_eq!(claimed(&g.build()), 0.0);
    }

    #[test]
    fn transposed_convolutions_make_a_waveform() {
        let mut g = GraphBuilder::new();
        let x = g.input(&[1, 80, 40]);
        let x = convolve(&mut g, x, &[80, 32, 16], 8, true, &[1, 32, 320]);
        let x = convolve(&mut g, x, &[32, 1, 16], 8, true, &[1, 1, 2560]);
        g.op("aten::tanh", &[x], &[1, 1, 2560]);
        let graph = g.build();
        let seen = harness::recognize::<General>(&graph);
        seen.assert_workload("audio");
        seen.assert_phase_of("tanh", "audio.decode");
    }

    #[test]
    fn squares_of_two_products_of_one_frame_are_a_spectrum() {
        for quarter_later in [true, false] {
            let mut g = GraphBuilder::new();
            let x = g.input(&[1, 4096]);
            let frames = g.view(x, &[16, 256]);
            let (sin, cos) = (g.weight(&[256, 129]), g.weight(&[256, 129]));
            let square = [Given::Tensor(0), Given::Int(2)];
            let a = g.op("aten::mm", &[frames, sin], &[16, 129]);
            let squared = g.op_with("aten::pow.Tensor_Scalar", &[a], Some(&square), &[16, 129]);
            let b = g.op("aten::mm", &[frames, cos], &[16, 129]);
            let other = match quarter_later {
                true => g.op_with("aten::pow.Tensor_Scalar", &[b], Some(&square), &[16, 129]),
                false => b,
            };
            let power = g.op("aten::add.Tensor", &[squared, other], &[16, 129]);
            let log = g.op("aten::log", &[power], &[16, 129]);
            let bands = g.view(log, &[1, 16, 129]);
            convolve(&mut g, bands, &[8, 16, 3], 1, false, &[1, 8, 127]);
            let graph = g.build();
            if quarter_later {
                let seen = harness::recognize::<General>(&graph);
                seen.assert_workload("audio");
                for op in ["mm", "pow", "log"] {
                    seen.assert_phase_of(op, "audio.frontend");
                }
                seen.assert_phase_of("convolution", "audio.encode");
            } else {
                assert!(claimed(&graph) < 0.5);
            }
        }
    }
}
