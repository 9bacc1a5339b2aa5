//! Does what its configuration says, which is seldom good: `{"do": "loop"}`.

use genie_plugin::prelude::*;

#[derive(Default)]
struct Hostile {
    deed: String,
}

impl Plugin for Hostile {
    fn info() -> Info {
        let provides = vec!["mischief".into()];
        Info { name: "hostile".into(), version: "1".into(), summary: String::new(), provides }
    }

    fn configure(&mut self, json: &str) -> Result<(), String> {
        let config: serde_json::Value =
            serde_json::from_str(json).map_err(|error| error.to_string())?;
        self.deed = config["do"].as_str().unwrap_or_default().to_owned();
        match self.deed.as_str() {
            "refuse-config" => Err("no such\nsetting \u{1b}[31m".into()),
            "loop-at-start" => endless(),
            _ => Ok(()),
        }
    }
}

fn endless() -> ! {
    let mut number = 1u64;
    loop {
        number = std::hint::black_box(number.wrapping_mul(3));
    }
}

#[inline(never)]
fn deep(depth: u64) -> u64 {
    if std::hint::black_box(depth) == u64::MAX {
        return 0;
    }
    deep(depth + 1) ^ depth
}

#[inline(never)]
fn deep_frames(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if frame[0] == u64::MAX {
        return 0;
    }
    deep_frames(depth + 1).wrapping_add(frame[depth as usize % 64])
}

fn fill_memory() -> ! {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1; 1 << 20]));
    }
}

impl Recognizer for Hostile {
    fn recognize(&self, graph: &Graph) -> Result<Annotations, String> {
        let mut notes = Annotations::new();
        match self.deed.as_str() {
            "good" => {
                notes.workload("other", 0.25);
                notes.matched("all", "other.forward", "", 0.5, graph.nodes());
                genie_plugin::log::info("looked at it");
            }
            "loop" => endless(),
            "memory" => fill_memory(),
            "grow" => {
                // Within the cap, but more than is kept for the next call.
                std::hint::black_box(vec![1u8; 160 << 20]);
            }
            "recursion" => {
                notes.workload("deep", deep(0) as f32);
            }
            "deep-frames" => {
                notes.workload("deep", deep_frames(0) as f32);
            }
            "trap" => {
                let empty: &[u32] = std::hint::black_box(&[]);
                notes.workload("trap", empty[7] as f32);
            }
            "huge" => {
                let nodes = vec![NodeId(0); 16 << 20];
                notes.matched("huge", "", "", 1.0, nodes);
            }
            "many" => {
                for _ in 0..20_000 {
                    notes.matched("many", "", "", 1.0, [NodeId(0)]);
                }
            }
            "flood" => loop {
                genie_plugin::log::warn("flood\nand a second line");
            },
            "flood-wide" => {
                let line = "wide ".repeat(1 << 20);
                for _ in 0..200 {
                    genie_plugin::log::warn(&line);
                }
            }
            "wrong-node" => notes.matched("wrong", "", "", 1.0, [NodeId(u32::MAX)]),
            "wrong-storage" => notes.residency(StorageId(u32::MAX), "weight", 1.0),
            "wrong-confidence" => notes.workload("sure", f32::NAN),
            "control" => notes.workload("\u{1b}[2Jcleared", 1.0),
            "error" => return Err("I will not\nsay".into()),
            other => return Err(format!("what is {other:?}?")),
        }
        Ok(notes)
    }
}

genie_plugin::recognizer!(Hostile);
