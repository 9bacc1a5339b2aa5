use genie_plugin::builder::GraphBuilder;
use genie_plugin::{Annotations, Columns, Graph, NodeId};
use proptest::prelude::*;

use super::facts::Facts;
use super::parts::{Kind, Part, count, parts};
use super::{BOXES_MAX, dot, json, svg};
use crate::components::{self, Parted};
use crate::merge::{Reading, Said, merge};

/// A language model in two calls: `layers` layers, each an attention and a perceptron.
fn model(layers: usize, steps: usize) -> Columns {
    let mut graph = GraphBuilder::new();
    let mut last = graph.input(&[1, 8]);
    for _ in 0..steps {
        last = graph.module("model", "Model", |graph| {
            for layer in 0..layers {
                let path = format!("model.layers.{layer}");
                last = graph.module(&path, "Layer", |graph| {
                    let weight = graph.weight(&[8, 8]);
                    let attention = format!("{path}.attention");
                    let out = graph.module(&attention, "Attention", |graph| {
                        let scores = graph.op("aten::mm", &[last, weight], &[1, 8]);
                        graph.op("aten::_softmax", &[scores], &[1, 8])
                    });
                    graph.op("aten::add.Tensor", &[out, last], &[1, 8])
                });
            }
            last
        });
        let token = graph.op("aten::argmax", &[last], &[1]);
        graph.read(token);
    }
    graph.columns()
}

/// Phases of nodes by a word for each.
/// A graph of one model.
fn alone(columns: &Columns, reading: &Reading) -> Parted {
    Parted { graph: Graph::trusted(columns.clone()), parts: Vec::new(), reading: reading.clone() }
}

fn reading(columns: &Columns, phase: impl Fn(usize) -> &'static str) -> Reading {
    let mut notes = Annotations::new();
    notes.workload("llm", 0.9);
    for node in 0..columns.nodes() {
        let nodes = [NodeId(node as u32)];
        notes.matched("test", phase(node), "text", 0.8, nodes);
    }
    merge(columns, &[Said { plugin: "test".into(), notes }])
}

fn tree(columns: &Columns, reading: &Reading) -> Vec<Part> {
    let graph = Graph::trusted(columns.clone());
    parts(&Facts::new(&graph, reading), BOXES_MAX)
}

/// Parts in one line: `name*times(inner)`.
fn told(parts: &[Part]) -> String {
    let one = |part: &Part| {
        let times = if part.times > 1 { format!("*{}", part.times) } else { String::new() };
        let inner =
            if part.parts.is_empty() { String::new() } else { format!("({})", told(&part.parts)) };
        let name = match (part.kind, part.name.as_str()) {
            (Kind::Read, _) => "read",
            (Kind::Group, _) => "group",
            (_, "") => "ops",
            (_, name) => name,
        };
        format!("{name}{times}{inner}")
    };
    parts.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn layers_and_steps_fold_to_one_each() {
    let columns = model(4, 3);
    let reading = reading(&columns, |_| "llm.decode");
    assert_eq!(
        told(&tree(&columns, &reading)),
        "llm.decode(group*3(model.layers.0\u{2013}3*4(attention ops) ops read))"
    );
}

#[test]
fn phases_stand_side_by_side_and_are_not_folded_together() {
    let columns = model(2, 2);
    let half = columns.nodes() / 2;
    let reading = reading(&columns, |node| if node < half { "llm.prefill" } else { "llm.decode" });
    let panels = tree(&columns, &reading);
    let names: Vec<&str> = panels.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["llm.prefill", "llm.decode"]);
}

#[test]
fn repeats_without_modules_fold_too() {
    let mut graph = GraphBuilder::new();
    let mut last = graph.input(&[4]);
    last = graph.op("aten::embedding", &[last], &[4]);
    for _ in 0..5 {
        last = graph.op("aten::mm", &[last], &[4]);
        last = graph.op("aten::relu", &[last], &[4]);
        last = graph.op("aten::add.Tensor", &[last], &[4]);
    }
    let columns = graph.columns();
    let panels = tree(&columns, &Reading::default());
    assert_eq!(told(&panels), "ops(ops group*5(ops))");
}

#[test]
fn the_svg_is_well_formed_and_tells_everything_it_should() {
    let columns = model(3, 2);
    let reading = reading(&columns, |_| "llm.decode");
    let text = svg(&alone(&columns, &reading), "a <b> & \"c\" ']]>'");
    let document = roxmltree::Document::parse(&text).unwrap();
    let words: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
    for expect in
        ["a <b> & \"c\" ']]>'", "llm.decode", "attention", "Attention", "\u{d7} 3", "weights read"]
    {
        assert!(words.contains(&expect), "{expect} is missing");
    }
    assert!(words.iter().any(|text| text.starts_with("llm (90 % sure, says test)")));
    // Nothing runs and nothing comes from elsewhere.
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        assert!(
            !["script", "image", "use", "a", "foreignObject"].contains(&node.tag_name().name())
        );
        for attribute in node.attributes() {
            assert!(!attribute.name().starts_with("on") && attribute.name() != "href");
        }
    }
    assert!(!text.contains("@import") && !text.contains("url("));
}

#[test]
fn an_empty_graph_has_a_picture() {
    let text = svg(&alone(&Columns::default(), &Reading::default()), "");
    roxmltree::Document::parse(&text).unwrap();
    assert!(dot(&alone(&Columns::default(), &Reading::default())).starts_with("digraph genie {"));
    assert_eq!(
        json(&alone(&Columns::default(), &Reading::default()))["nodes"],
        serde_json::json!([])
    );
}

#[test]
fn a_graph_of_30000_nodes_has_a_bounded_picture() {
    // Nothing repeats: each operator has a name of its own, in modules of many depths.
    let mut graph = GraphBuilder::new();
    let mut last = graph.input(&[4]);
    for index in 0..30_000usize {
        let path = format!("m{}.s{}.t{}", index / 3000, index / 100, index / 7);
        let op = format!("mine::op{index}");
        last = graph.module(&path, "M", |graph| graph.op(&op, &[last], &[4]));
    }
    let columns = graph.columns();
    let check = |reading: &Reading| {
        let panels = tree(&columns, reading);
        assert!(count(&panels) <= BOXES_MAX, "{} boxes", count(&panels));
        assert_eq!(panels.last().unwrap().all.end, columns.nodes());
        let text = svg(&alone(&columns, reading), "large");
        roxmltree::Document::parse(&text).unwrap();
        assert!(text.len() < 1 << 20, "{} bytes of SVG", text.len());
        let text = dot(&alone(&columns, reading));
        assert!(text.len() < 1 << 20, "{} bytes of DOT", text.len());
    };
    check(&Reading::default());
    // Many changes of phase are bounded as well.
    let phases = ["a", "b", "c", "d", "e"];
    check(&reading(&columns, |node| phases[node * 7919 % 31 % 5]));
}

#[test]
fn a_graph_without_modules_is_bounded_too() {
    let mut graph = GraphBuilder::new();
    let mut last = graph.input(&[4]);
    for index in 0..5_000usize {
        last = graph.op(&format!("mine::op{index}"), &[last], &[4]);
        if index % 3 == 0 {
            graph.read(last);
        }
    }
    let columns = graph.columns();
    let panels = tree(&columns, &Reading::default());
    assert!(count(&panels) <= BOXES_MAX, "{} boxes", count(&panels));
}

#[test]
fn dot_is_balanced_and_names_only_nodes_that_exist() {
    let columns = model(3, 2);
    let text = dot(&alone(&columns, &reading(&columns, |_| "llm \"x\" \\ {")));
    check_dot(&text);
    assert!(text.contains("layers.0\u{2013}2 Layer x 3"), "{text}");
}

/// Braces outside strings match, strings end, edges join nodes that are declared.
fn check_dot(text: &str) {
    let mut bare = String::new();
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            c if !in_string => bare.push(c),
            _ => {}
        }
    }
    assert!(!in_string, "a string does not end: {text}");
    let depths = bare.chars().scan(0i32, |depth, c| {
        *depth += i32::from(c == '{') - i32::from(c == '}');
        Some(*depth)
    });
    let depths: Vec<i32> = depths.collect();
    assert!(depths.iter().all(|depth| *depth >= 0) && depths.last() == Some(&0), "{text}");
    let mut declared: Vec<&str> = Vec::new();
    let mut clusters: Vec<&str> = Vec::new();
    for line in bare.lines().map(str::trim) {
        let word = line.split([' ', ';']).next().unwrap();
        if line.starts_with("subgraph ") {
            clusters.push(line.split(' ').nth(1).unwrap());
        } else if word.starts_with('n') && word[1..].parse::<u32>().is_ok() && !line.contains("->")
        {
            declared.push(word);
        }
    }
    for line in bare.lines().map(str::trim).filter(|line| line.contains("->")) {
        let words: Vec<&str> = line.split([' ', ';']).collect();
        assert!(declared.contains(&words[0]), "{line}");
        assert!(declared.contains(&words[2]), "{line}");
        for end in line.split("cluster_").skip(1) {
            let number: String = end.chars().take_while(char::is_ascii_digit).collect();
            assert!(clusters.contains(&format!("cluster_{number}").as_str()), "{line}");
        }
    }
}

#[test]
fn json_tells_nodes_and_storages() {
    let columns = model(1, 1);
    let reading = reading(&columns, |_| "llm.prefill");
    let value = json(&alone(&columns, &reading));
    assert_eq!(value["workload"]["label"], "llm");
    let nodes = value["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), columns.nodes());
    let mm = nodes.iter().find(|node| node["op"] == "aten::mm").unwrap();
    assert_eq!(mm["module"], "model.layers.0.attention");
    assert_eq!(mm["class"], "Attention");
    assert_eq!(mm["phase"], "llm.prefill");
    assert_eq!(mm["modality"], "text");
    assert_eq!(mm["by"], "test");
    assert_eq!(mm["inputs"][1]["shape"], serde_json::json!([8, 8]));
    let storage = mm["inputs"][1]["storage"].as_u64().unwrap() as usize;
    assert_eq!(value["storages"][storage]["origin"], "weight");
}

proptest! {
    /// Names of any text give well-formed pictures, the same each time; nothing is lost or doubled.
    #[test]
    fn any_names_give_the_same_well_formed_picture(
        names in prop::collection::vec((any::<String>(), any::<String>(), 0usize..4), 1..24),
        title in any::<String>(),
    ) {
        let mut graph = GraphBuilder::new();
        let mut last = graph.input(&[2]);
        for (path, class, op) in &names {
            let op = ["aten::mm", "aten::relu", "mine::\u{1}<&>\"", "aten::add"][*op];
            last = graph.module(path, class, |graph| graph.op(op, &[last], &[2]));
        }
        let columns = graph.columns();
        let phases = ["", "a.b", "<\"&\u{7}\\"];
        let reading = reading(&columns, |node| phases[node / 3 % 3]);
        let panels = tree(&columns, &reading);
        let graph = Graph::trusted(columns.clone());
        let facts = Facts::new(&graph, &reading);
        let told: u64 = panels.iter().map(|part| facts.ops(&part.all)).sum();
        prop_assert_eq!(told, names.len() as u64);
        let text = svg(&alone(&columns, &reading), &title);
        prop_assert!(roxmltree::Document::parse(&text).is_ok(), "{}", text);
        prop_assert_eq!(&text, &svg(&alone(&columns, &reading), &title));
        let text = dot(&alone(&columns, &reading));
        check_dot(&text);
        prop_assert_eq!(&text, &dot(&alone(&columns, &reading)));
    }
}

#[test]
fn each_of_several_models_has_a_frame() {
    let draw = |models: usize| {
        let mut graph = GraphBuilder::new();
        for _ in 0..models {
            let mut x = graph.input(&[1, 8]);
            for _ in 0..30 {
                let weight = graph.weight(&[8, 8]);
                x = graph.module("model.layer", "Layer", |graph| {
                    let y = graph.op("aten::mm", &[x, weight], &[1, 8]);
                    graph.op("aten::relu", &[y], &[1, 8])
                });
            }
            graph.read(x);
        }
        let columns = graph.columns();
        let parted = components::read(columns, |part| reading(part, |_| "llm.prefill"));
        assert_eq!(parted.parts.len(), models);
        let value = json(&parted);
        assert_eq!(value["models"].as_array().unwrap().len(), models);
        let text = dot(&parted);
        check_dot(&text);
        assert_eq!(text.matches("style=bold").count(), models.min(12));
        svg(&parted, "several")
    };
    for models in [2, 12, 14] {
        let text = draw(models);
        let document = roxmltree::Document::parse(&text).unwrap();
        let texts = document.descendants().filter(|node| node.is_text());
        let texts: Vec<&str> = texts.filter_map(|node| node.text()).collect();
        let titles = texts.iter().filter(|text| text.contains(": llm (90 % sure)")).count();
        assert_eq!(titles, models.min(12));
        assert_eq!(texts.contains(&"and 2 models smaller"), models == 14);
        let boxes = text.matches("<title>").count();
        assert!(boxes <= 2 * BOXES_MAX, "{boxes} boxes");
    }
}
