//! Graphs of models of real size, by hand, with what recognizers would say of them.
#![allow(dead_code)]

use genie_plugin::builder::{GraphBuilder, Handle};
use genie_plugin::{Annotations, DType, Graph, NodeId, Stage};

/// A decoder: every matrix in float32.
#[derive(Clone, Copy)]
pub struct Decoder {
    pub layers: usize,
    pub width: i64,
    pub vocabulary: i64,
}

struct Weights {
    embedding: Handle,
    layers: Vec<[Handle; 4]>,
    head: Handle,
}

impl Decoder {
    pub fn weight_bytes(&self) -> u64 {
        let (width, vocabulary) = (self.width as u64, self.vocabulary as u64);
        4 * (self.layers as u64 * 12 * width * width + 2 * width * vocabulary)
    }

    fn weights(&self, g: &mut GraphBuilder) -> Weights {
        let w = self.width;
        Weights {
            embedding: g.weight(&[self.vocabulary, w]),
            layers: (0..self.layers)
                .map(|_| {
                    [
                        g.weight(&[w, 3 * w]),
                        g.weight(&[w, w]),
                        g.weight(&[w, 4 * w]),
                        g.weight(&[4 * w, w]),
                    ]
                })
                .collect(),
            head: g.weight(&[w, self.vocabulary]),
        }
    }

    /// Runs `new` tokens after those in the cache, reads the next one; gives the grown cache.
    fn step(
        &self,
        g: &mut GraphBuilder,
        weights: &Weights,
        new: i64,
        cache: &mut [Option<(Handle, Handle, i64)>],
    ) {
        let w = self.width;
        let tokens = g.input_of(&[new], DType::INT64);
        let mut x =
            g.dtype(DType::FLOAT32).op("aten::embedding", &[weights.embedding, tokens], &[new, w]);
        for (layer, [qkv, out, up, down]) in weights.layers.iter().enumerate() {
            x = g.module(&format!("layers.{layer}"), "Block", |g| {
                let normed = g.op("aten::native_layer_norm", &[x], &[new, w]);
                let joint = g.op("aten::mm", &[normed, *qkv], &[new, 3 * w]);
                let query = g.slice(joint, 1, 0, w);
                let (key, value) = (g.slice(joint, 1, w, w), g.slice(joint, 1, 2 * w, w));
                let (keys, values, length) = match cache[layer] {
                    None => {
                        let key = g.op("aten::clone", &[key], &[new, w]);
                        (key, g.op("aten::clone", &[value], &[new, w]), new)
                    }
                    Some((keys, values, length)) => {
                        let all = length + new;
                        let keys = g.op("aten::cat", &[keys, key], &[all, w]);
                        (keys, g.op("aten::cat", &[values, value], &[all, w]), all)
                    }
                };
                cache[layer] = Some((keys, values, length));
                let turned = g.transpose(keys, 0, 1);
                let scores = g.op("aten::mm", &[query, turned], &[new, length]);
                let scores = g.op("aten::_softmax", &[scores], &[new, length]);
                let mixed = g.op("aten::mm", &[scores, values], &[new, w]);
                let mixed = g.op("aten::mm", &[mixed, *out], &[new, w]);
                let x = g.op("aten::add.Tensor", &[x, mixed], &[new, w]);
                let normed = g.op("aten::native_layer_norm", &[x], &[new, w]);
                let hidden = g.op("aten::mm", &[normed, *up], &[new, 4 * w]);
                let hidden = g.op("aten::gelu", &[hidden], &[new, 4 * w]);
                let hidden = g.op("aten::mm", &[hidden, *down], &[new, w]);
                g.op("aten::add.Tensor", &[x, hidden], &[new, w])
            });
        }
        let last = g.slice(x, 0, new - 1, 1);
        let logits = g.op("aten::mm", &[last, weights.head], &[1, self.vocabulary]);
        let token = g.dtype(DType::INT64).op("aten::argmax", &[logits], &[1]);
        g.read(token);
    }

    /// One decode step with `past` tokens in its cache.
    pub fn decode(&self, past: i64) -> (Graph, Annotations) {
        let mut g = GraphBuilder::new();
        let weights = self.weights(&mut g);
        let mut cache: Vec<Option<(Handle, Handle, i64)>> = (0..self.layers)
            .map(|_| {
                let size = [past, self.width];
                Some((g.earlier(&size, Stage::None), g.earlier(&size, Stage::None), past))
            })
            .collect();
        let mut notes = Annotations::new();
        let caches = |g: &GraphBuilder, cache: &[Option<(Handle, Handle, i64)>]| {
            let both = cache.iter().flatten().flat_map(|(keys, values, _)| [*keys, *values]);
            both.map(|handle| g.storage_of(handle)).collect::<Vec<_>>()
        };
        for storage in caches(&g, &cache) {
            notes.residency(storage, "kv_cache", 0.9);
        }
        self.step(&mut g, &weights, 1, &mut cache);
        for (keys, values, _) in cache.iter().flatten() {
            g.alive(*keys);
            g.alive(*values);
        }
        for storage in caches(&g, &cache) {
            notes.residency(storage, "kv_cache", 0.9);
        }
        hold_weights(&mut g, &weights);
        notes.workload("llm", 0.9);
        let graph = g.build();
        notes.matched("llm.step", "llm.decode", "text", 0.9, ops(&graph, |_| true));
        (graph, notes)
    }

    /// A prompt and then some tokens, one segment each.
    pub fn generate(&self, prompt: i64, tokens: usize) -> (Graph, Annotations) {
        let mut g = GraphBuilder::new();
        let weights = self.weights(&mut g);
        let mut cache = vec![None; self.layers];
        self.step(&mut g, &weights, prompt, &mut cache);
        for _ in 0..tokens {
            self.step(&mut g, &weights, 1, &mut cache);
        }
        hold_weights(&mut g, &weights);
        let graph = g.build();
        let mut notes = Annotations::new();
        notes.workload("llm", 0.9);
        let first = |node: NodeId| graph.segment(node) == 0;
        notes.matched("llm.prompt", "llm.prefill", "text", 0.9, ops(&graph, first));
        notes.matched("llm.step", "llm.decode", "text", 0.9, ops(&graph, |node| !first(node)));
        (graph, notes)
    }
}

fn hold_weights(g: &mut GraphBuilder, weights: &Weights) {
    let layers = weights.layers.iter().flatten().copied();
    for weight in layers.chain([weights.embedding, weights.head]) {
        g.alive(weight);
    }
}

fn ops(graph: &Graph, wanted: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
    graph.nodes().filter(|node| graph.is_op(*node) && wanted(*node)).collect()
}

/// A tower of `layers` products over (rows, width).
fn tower(
    g: &mut GraphBuilder,
    name: &str,
    mut x: Handle,
    rows: i64,
    width: i64,
    layers: usize,
) -> Handle {
    for layer in 0..layers {
        x = g.module(&format!("{name}.{layer}"), "Block", |g| {
            let w = g.weight(&[width, width]);
            g.alive(w);
            let x = g.op("aten::mm", &[x, w], &[rows, width]);
            g.op("aten::relu", &[x], &[rows, width])
        });
    }
    x
}

/// An image tower and a text tower that meet in a fusion of a few layers.
pub fn two_towers() -> (Graph, Annotations) {
    let mut g = GraphBuilder::new();
    let image = g.input(&[256, 4096]);
    let text = g.input(&[256, 4096]);
    let image = tower(&mut g, "image", image, 256, 4096, 24);
    let text = tower(&mut g, "text", text, 256, 4096, 20);
    let (image, text) =
        (g.op("aten::mean", &[image], &[1, 4096]), g.op("aten::mean", &[text], &[1, 4096]));
    let joint = g.op("aten::mul.Tensor", &[image, text], &[1, 4096]);
    let joint = tower(&mut g, "fusion", joint, 1, 4096, 2);
    g.read(joint);
    let graph = g.build();
    let mut notes = Annotations::new();
    notes.workload("multimodal", 0.9);
    let under = |name: &str| ops(&graph, |node| graph.module(node).starts_with(name));
    notes.matched("mm.image", "mm.vision_encoder", "image", 0.9, under("image"));
    notes.matched("mm.text", "mm.text_encoder", "text", 0.9, under("text"));
    notes.matched("mm.fusion", "mm.fusion", "", 0.9, under("fusion"));
    (graph, notes)
}

/// A convolutional network of four stages, a batch of 32 images.
pub fn convolutions() -> (Graph, Annotations) {
    let mut g = GraphBuilder::new();
    let mut x = g.input(&[32, 3, 224, 224]);
    let mut channels = 3;
    for (stage, (wide, side, blocks)) in
        [(256, 56, 6), (512, 28, 8), (1024, 14, 12), (2048, 7, 6)].into_iter().enumerate()
    {
        for block in 0..blocks {
            x = g.module(&format!("stage{stage}.{block}"), "Block", |g| {
                let w = g.weight(&[wide, channels, 3, 3]);
                g.alive(w);
                let x = g.op("aten::convolution", &[x, w], &[32, wide, side, side]);
                g.op("aten::relu", &[x], &[32, wide, side, side])
            });
            channels = wide;
        }
    }
    let x = g.op("aten::mean", &[x], &[32, 2048]);
    let head = g.weight(&[2048, 1000]);
    g.alive(head);
    let x = g.op("aten::mm", &[x, head], &[32, 1000]);
    g.read(x);
    let mut columns = g.columns();
    // The builder counts a convolution like an elementwise operator.
    let graph = Graph::new(columns.clone()).unwrap();
    for node in graph.nodes().filter(|node| graph.op_name(*node) == "convolution") {
        let filter: i64 = graph.input(node, 1).unwrap().sizes[1..].iter().product();
        columns.flops[node.0 as usize] *= 2 * filter as u64;
    }
    let graph = Graph::new(columns).unwrap();
    let mut notes = Annotations::new();
    notes.workload("vision", 0.9);
    notes.matched("vision.cnn", "vision.backbone", "image", 0.9, ops(&graph, |_| true));
    (graph, notes)
}

/// Two large tables and several small ones, a dense tower over what is looked up.
pub fn recommender() -> (Graph, Annotations) {
    const ROWS: [i64; 6] = [150_000_000, 120_000_000, 1_000_000, 500_000, 100_000, 10_000];
    const WIDTH: i64 = 128;
    const BATCH: i64 = 2048;
    let mut g = GraphBuilder::new();
    let mut notes = Annotations::new();
    let mut features = Vec::new();
    for (field, rows) in ROWS.into_iter().enumerate() {
        let feature = g.module(&format!("embedding.{field}"), "Embedding", |g| {
            let table = g.weight(&[rows, WIDTH]);
            g.alive(table);
            notes.residency(g.storage_of(table), "embedding_table", 0.9);
            let ids = g.input_of(&[BATCH], DType::INT64);
            g.dtype(DType::FLOAT32).op("aten::embedding", &[table, ids], &[BATCH, WIDTH])
        });
        features.push(feature);
    }
    let width = WIDTH * ROWS.len() as i64;
    let mut x = g.op("aten::cat", &features, &[BATCH, width]);
    let mut before = width;
    for (layer, after) in [8192, 8192, 8192, 4096, 1].into_iter().enumerate() {
        x = g.module(&format!("top.{layer}"), "Linear", |g| {
            let w = g.weight(&[before, after]);
            g.alive(w);
            g.op("aten::mm", &[x, w], &[BATCH, after])
        });
        before = after;
    }
    g.read(x);
    notes.workload("recsys", 0.9);
    (g.build(), notes)
}
