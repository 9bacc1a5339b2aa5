use genie_plugin::{Graph, Recognizer};
use std::time::{Duration, Instant};
#[path = "../tests/common/mod.rs"]
mod common;
fn best(mut f: impl FnMut()) -> Duration {
    let mut b = Duration::MAX;
    for _ in 0..300 {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed());
    }
    b
}
fn main() {
    tracing_subscriber::fmt().init();
    let place = common::Place::new();
    let wasm = std::env::args().nth(1).unwrap();
    place.add("probe", "recognizer", wasm.as_ref(), "");
    let host = genie_plugin_host::PluginHost::open(genie_plugin_host::Settings {
        compiler: genie_plugin_host::Compiler::InProcess,
        ..place.settings_no_compiler()
    })
    .unwrap();
    for n in [100, 1000, 10000] {
        let g = common::chain(n);
        let ready = Graph::new(g.clone()).unwrap();
        let pass = best(|| {
            std::hint::black_box(genie_plugin_probe::Probe.recognize(&ready).unwrap());
        });
        let clone = best(|| {
            std::hint::black_box(g.clone());
        });
        let new = best(|| {
            let g = g.clone();
            std::hint::black_box(Graph::new(g).unwrap());
        });
        let wasm = best(|| {
            let c = host.recognize(&g);
            std::hint::black_box(c[0].result.as_ref().unwrap());
        });
        println!(
            "{} nodes: pass {pass:?} clone {clone:?} clone+new {new:?} wasm {wasm:?} ratio {:.2} ratio-all {:.2}",
            2 * n,
            wasm.as_secs_f64() / pass.as_secs_f64(),
            wasm.as_secs_f64() / (pass + new).as_secs_f64()
        );
    }
}
