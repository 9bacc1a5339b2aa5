//! Writes a picture for Graphviz.

use std::fmt::Write;

use super::Framed;
use super::facts::{Facts, amount, plural, shortened};
use super::flow::flows;
use super::palette::{colours, tint};
use super::parts::{Kind, Part};

/// Characters of the operators of a node.
const OPS_CHARS_MAX: usize = 80;

/// The graph of these panels.
pub fn write(facts: &Facts, panels: &[Part]) -> String {
    let mut out = Out { dot: begin(facts), facts, colours: colours(&facts.phases), last: 0 };
    out.list(panels, 1);
    out.dot.push_str("}\n");
    out.dot
}

/// The graph of these models, a cluster each.
pub fn write_models(facts: &Facts, models: &[Framed<'_>]) -> String {
    let (mut dot, mut last) = (begin(facts), 0);
    for model in models {
        last += 1;
        let label = quoted(&model.title);
        let _ = writeln!(dot, "  subgraph cluster_{last} {{\n    label={label}; style=bold;");
        let colours = colours(&model.facts.phases);
        let mut out = Out { dot, facts: &model.facts, colours, last };
        out.list(&model.panels, 2);
        (dot, last) = (out.dot, out.last);
        dot.push_str("  }\n");
    }
    dot.push_str("}\n");
    dot
}

fn begin(facts: &Facts) -> String {
    let mut dot = String::new();
    let workload = &facts.reading.workload;
    let label = format!("{} ({:.2})", shortened(&workload.word, 60), workload.confidence);
    let _ = writeln!(
        dot,
        "digraph genie {{\n  graph [label={}, labelloc=t, compound=true, rankdir=TB, fontname=\"Helvetica\"];\n  \
         node [shape=box, style=filled, fontname=\"Helvetica\", fontsize=10];\n  edge [color=\"#57606a\"];",
        quoted(&label)
    );
    dot
}

struct Out<'a> {
    dot: String,
    facts: &'a Facts<'a>,
    colours: Vec<&'static str>,
    last: usize,
}

/// A part as it was written: a node that stands for it, its cluster, and the same at its end.
struct Written {
    first: usize,
    end: usize,
    cluster: Option<usize>,
}

impl Out<'_> {
    fn list(&mut self, parts: &[Part], depth: usize) {
        let written: Vec<Written> = parts.iter().map(|part| self.part(part, depth)).collect();
        for flow in flows(self.facts, parts) {
            let (from, to) = (&written[flow.from], &written[flow.to]);
            let tail = from.cluster.map(|cluster| format!("ltail=cluster_{cluster}"));
            let head = to.cluster.map(|cluster| format!("lhead=cluster_{cluster}"));
            let options: Vec<String> = tail.into_iter().chain(head).collect();
            let indent = "  ".repeat(depth);
            let _ = write!(self.dot, "{indent}n{} -> n{}", from.end, to.first);
            match options.is_empty() {
                true => self.dot.push_str(";\n"),
                false => _ = writeln!(self.dot, " [{}];", options.join(", ")),
            }
        }
    }

    fn part(&mut self, part: &Part, depth: usize) -> Written {
        let facts = self.facts;
        let indent = "  ".repeat(depth);
        self.last += 1;
        let id = self.last;
        let colour = self.colours[facts.main_phase(&part.one)];
        let mut label = [part.name.as_str(), part.class.as_str()].join(" ").trim().to_owned();
        if part.times > 1 {
            label = format!("{label} x {}", part.times).trim().to_owned();
        }
        let tooltip = quoted(&facts.told(&part.one, &part.all, part.times).join("\n"));
        if part.kind == Kind::Read {
            let _ =
                writeln!(self.dot, "{indent}n{id} [label=\"read\", shape=plaintext, style=solid];");
            return Written { first: id, end: id, cluster: None };
        }
        if part.parts.is_empty() {
            let names: Vec<String> = facts
                .op_runs(&part.one)
                .into_iter()
                .take(OPS_CHARS_MAX)
                .map(
                    |(name, times)| {
                        if times > 1 { format!("{name} x {times}") } else { name.into() }
                    },
                )
                .collect();
            let ops = shortened(&names.join(" "), OPS_CHARS_MAX);
            let label = if label.is_empty() { ops } else { format!("{label}\n{ops}") };
            let _ = writeln!(
                self.dot,
                "{indent}n{id} [label={}, fillcolor=\"{}\", color=\"{colour}\", tooltip={tooltip}];",
                quoted(&label),
                tint(colour, 46)
            );
            return Written { first: id, end: id, cluster: None };
        }
        if part.kind == Kind::Panel {
            let name = if label.is_empty() { "no phase" } else { &label };
            label = format!(
                "{name}: {}, {}",
                plural(facts.ops(&part.all), "op"),
                amount(facts.flops(&part.all), "FLOP")
            );
        }
        let style = if part.kind == Kind::Group { "dashed" } else { "solid" };
        let _ = writeln!(
            self.dot,
            "{indent}subgraph cluster_{id} {{\n{indent}  label={}; color=\"{colour}\"; style={style}; tooltip={tooltip};",
            quoted(&label)
        );
        let first = self.last + 1;
        self.list(&part.parts, depth + 1);
        let _ = writeln!(self.dot, "{indent}}}");
        // A cluster is no node: edges go to what is first in it, from what is last.
        let (first, end) = (first + opened(&part.parts), self.last);
        Written { first, end, cluster: Some(id) }
    }
}

/// How many clusters open before the first node.
fn opened(parts: &[Part]) -> usize {
    match parts.first() {
        Some(part) if !part.parts.is_empty() => 1 + opened(&part.parts),
        _ => 0,
    }
}

/// A string of DOT.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
