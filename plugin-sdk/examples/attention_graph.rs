//! Prints the recorded graph of two attentions, as plugins of other languages test with it:
//! `cargo run -p genie-plugin --features harness --example attention_graph`.

use genie_plugin::builder::GraphBuilder;
use genie_plugin::recorded::Recorded;

fn main() {
    let mut g = GraphBuilder::new();
    for layer in 0..2 {
        g.module(&format!("layers.{layer}.attention"), "Attention", |g| {
            let [q, k, v] = [0; 3].map(|_| g.input(&[8, 5, 16]));
            let k = g.transpose(k, 1, 2);
            let scores = g.op("aten::bmm", &[q, k], &[8, 5, 5]);
            let scores = g.op("aten::mul.Scalar", &[scores], &[8, 5, 5]);
            let weights = g.op("aten::_softmax", &[scores], &[8, 5, 5]);
            let out = g.op("aten::bmm", &[weights, v], &[8, 5, 16]);
            g.read(out);
        });
    }
    println!("{}", Recorded::new(g.columns(), "attention_graph", false).to_json());
}
