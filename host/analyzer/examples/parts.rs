use genie_analyzer::components::part;
use genie_plugin::recorded::Recorded;
use genie_plugin::{Graph, Origin};
fn main() {
    for file in std::env::args().skip(1) {
        let columns = Recorded::read(std::path::Path::new(&file)).unwrap().graph;
        let begun = std::time::Instant::now();
        let parts = part(&columns);
        let us = begun.elapsed().as_micros();
        if parts.len() < 2 {
            println!("{file} 1 ({us} us)");
            continue;
        }
        let told: Vec<String> = parts
            .iter()
            .map(|p| {
                p.columns.check().unwrap();
                let g = Graph::new(p.columns.clone()).unwrap();
                let ops = g.nodes().filter(|n| g.is_op(*n)).count();
                let w = g.storages().filter(|s| g.origin(*s) == Origin::Weight).count();
                let first = g
                    .nodes()
                    .find(|n| g.is_op(*n))
                    .map(|n| format!("{} {}", g.op(n), g.module(n)))
                    .unwrap_or_default();
                format!("{ops}ops/{w}w[{first}]")
            })
            .collect();
        println!("{file} {} ({us} us): {}", parts.len(), told.join(" | "));
    }
}
