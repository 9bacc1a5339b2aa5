//! Writes a picture as SVG.

use std::fmt::Write;

use super::Framed;
use super::facts::{Facts, amount, plural, shortened};
use super::layout::{
    Arrow, HEAD, Layout, PAD, PANEL_HEAD, Placed, ROW, STRIP, badge_width, layout, own_width,
    shown_class, weight_text,
};
use super::palette::{NONE, colours, tint};
use super::parts::{Kind, Part};

const MARGIN: f64 = 16.0;
const WIDTH_MIN: f64 = 620.0;
/// The title of a model's frame.
const FRAME_HEAD: f64 = 34.0;
/// Characters of a title, and bytes of a tooltip.
const TITLE_CHARS_MAX: usize = 120;
const TOOLTIP_CHARS_MAX: usize = 1200;
/// Phases in the legend; the rest are one entry.
const LEGEND_MAX: usize = 24;

const STYLE: &str = "\
text{font-family:'DejaVu Sans',Verdana,Helvetica,Arial,sans-serif;font-size:11px;fill:#1b1f24}\
.t{font-size:17px;font-weight:bold}.n{font-weight:bold}.c{fill:#57606a}.s{font-size:10px;fill:#57606a}\
.o{font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:10.5px}\
.p{font-size:13px;font-weight:bold}\
.a{fill:none;stroke:#57606a;stroke-width:1.1}.f{fill:none;stroke:#8c959f;stroke-width:1}\
.h{fill:#57606a}.r{stroke:#57606a;stroke-width:1;stroke-dasharray:2 3}\
.w{fill:#57606a}.k{fill:#fff;stroke:#1b1f24;stroke-width:1}.b{fill:#1b1f24}.bt{fill:#fff;font-weight:bold}";

/// The picture of these panels.
pub fn write(facts: &Facts, panels: &[Part], title: &str) -> String {
    let placed = layout(facts, panels, 0.0, MARGIN);
    let colours = colours(&facts.phases);
    let (svg, top) = begin(facts, title, &colours, placed.w, placed.h);
    let mut out = Out { svg, facts, colours };
    out.layout(&placed, 0.0, top);
    out.svg.push_str("</svg>\n");
    out.svg
}

/// The picture of these models, the largest of so many, each in a frame of its own.
pub fn write_models(facts: &Facts, models: &[Framed<'_>], many: usize, title: &str) -> String {
    let placed: Vec<Layout<'_>> = models
        .iter()
        .map(|model| layout(&model.facts, &model.panels, FRAME_HEAD, MARGIN))
        .collect();
    let w = placed.iter().map(|placed| placed.w).fold(WIDTH_MIN, f64::max);
    let rest = if many > models.len() { MARGIN } else { 0.0 };
    let h: f64 = placed.iter().map(|placed| placed.h + MARGIN).sum::<f64>() + rest;
    let whole = colours(&facts.phases);
    let (mut svg, mut top) = begin(facts, title, &whole, w + 2.0 * MARGIN, h);
    for (model, placed) in models.iter().zip(&placed) {
        let (x, y, w, h) = (number(MARGIN), number(top), number(w), number(placed.h));
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"8\" fill=\"none\" \
             stroke=\"#57606a\" stroke-width=\"1.5\"/>\
             <text class=\"p\" x=\"{}\" y=\"{}\">{}</text>",
            number(2.0 * MARGIN),
            number(top + 21.0),
            escape(&model.title)
        );
        // A phase has one colour in all of them.
        let of_whole = |phase: &String| {
            facts.phases.iter().position(|each| each == phase).map_or(NONE, |at| whole[at])
        };
        let colours = model.facts.phases.iter().map(of_whole).collect();
        let mut out = Out { svg, facts: &model.facts, colours };
        out.layout(placed, MARGIN, top);
        svg = out.svg;
        top += placed.h + MARGIN;
    }
    if many > models.len() {
        let more = format!("and {} smaller", plural((many - models.len()) as u64, "model"));
        let _ = writeln!(svg, "<text x=\"16\" y=\"{}\">{}</text>", number(top), escape(&more));
    }
    svg.push_str("</svg>\n");
    svg
}

/// The picture's beginning and its header; and where that ends.
fn begin(facts: &Facts, title: &str, colours: &[&str], w: f64, h: f64) -> (String, f64) {
    let w = w.max(WIDTH_MIN);
    let (header, top) = header(facts, title, colours, w);
    let mut svg = String::new();
    let (width, height) = (number(w), number(h + top));
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<style>{STYLE}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{header}"
    );
    (svg, top)
}

/// Title, workload and legend; and where they end.
fn header(facts: &Facts, title: &str, colours: &[&str], w: f64) -> (String, f64) {
    let all = 0..facts.graph.len();
    let title = escape(&shortened(title, TITLE_CHARS_MAX));
    let mut svg =
        format!("<title>{title}</title>\n<text class=\"t\" x=\"16\" y=\"28\">{title}</text>\n");
    let workload = &facts.reading.workload;
    let said = match workload.by.is_empty() {
        true => "not recognized".to_owned(),
        false => format!(
            "{} ({:.0} % sure, says {})",
            shortened(&workload.word, 60),
            workload.confidence * 100.0,
            shortened(&workload.by, 60)
        ),
    };
    let line = format!(
        "{said} \u{b7} {} \u{b7} {} \u{b7} {} moved",
        plural(facts.ops(&all), "operator"),
        amount(facts.flops(&all), "FLOP"),
        amount(facts.bytes(&all), "B")
    );
    let _ = writeln!(svg, "<text x=\"16\" y=\"46\">{}</text>", escape(&line));
    let mut flops = vec![0u64; facts.phases.len()];
    let mut ops = vec![0u64; facts.phases.len()];
    for node in facts.operators(&all) {
        let phase = facts.phase[node];
        ops[phase] += 1;
        flops[phase] = flops[phase].saturating_add(facts.flops(&(node..node + 1)));
    }
    let total = facts.flops(&all).max(1);
    let (mut x, mut y) = (16.0, 68.0);
    let mut entry = |draw: &str, text: &str, bold: &str| {
        let chars = (text.chars().count() + bold.chars().count()) as f64;
        let width = 20.0 + chars * 6.9 + 18.0;
        if x + width > w && x > 16.0 {
            (x, y) = (16.0, y + 18.0);
        }
        let _ = writeln!(
            svg,
            "<g transform=\"translate({} {})\">{draw}<text x=\"20\" y=\"4\"><tspan class=\"n\">{}</tspan>{}</text></g>",
            number(x),
            number(y),
            escape(bold),
            escape(text)
        );
        x += width;
    };
    let phases = (1..facts.phases.len()).chain([0]).filter(|phase| ops[*phase] > 0);
    for phase in phases.take(LEGEND_MAX) {
        let (fill, line) = (tint(colours[phase], 70), colours[phase]);
        let draw = format!(
            "<rect y=\"-6\" width=\"14\" height=\"12\" fill=\"{fill}\" stroke=\"{line}\"/>\
             <rect y=\"-6\" width=\"4\" height=\"12\" fill=\"{line}\"/>"
        );
        let name = match facts.phases[phase].as_str() {
            "" => "no phase".to_owned(),
            name => shortened(name, 40),
        };
        let share = 100.0 * flops[phase] as f64 / total as f64;
        let text = format!(": {}, {} of FLOPs", plural(ops[phase], "op"), percent(share));
        entry(&draw, &text, &name);
    }
    entry("<rect class=\"w\" x=\"3\" y=\"-4\" width=\"8\" height=\"8\"/>", "weights read", "");
    if facts.reading.residencies.iter().any(|claim| claim.word == "kv_cache") {
        entry(&cylinder(2.0, -6.0), "KV cache", "");
    }
    if (0..facts.graph.len()).any(|node| facts.is_read(node)) {
        entry("<path class=\"r\" d=\"M0 0H16\"/>", "the program reads a value", "");
    }
    (svg, y + 22.0)
}

fn percent(share: f64) -> String {
    match share {
        share if share >= 9.95 => format!("{share:.0} %"),
        share if share >= 0.05 || share == 0.0 => format!("{share:.1} %"),
        _ => "< 0.1 %".to_owned(),
    }
}

struct Out<'a> {
    svg: String,
    facts: &'a Facts<'a>,
    colours: Vec<&'static str>,
}

impl Out<'_> {
    fn layout(&mut self, layout: &Layout<'_>, left: f64, top: f64) {
        let (x, y) = (number(left), number(top));
        let _ = writeln!(self.svg, "<g transform=\"translate({x} {y})\">");
        for each in &layout.boxes {
            self.placed(each);
        }
        self.arrows(&layout.arrows);
        self.svg.push_str("</g>\n");
    }

    fn placed(&mut self, placed: &Placed) {
        let (x, y) = (number(placed.x), number(placed.y));
        let _ = write!(self.svg, "<g transform=\"translate({x} {y})\">");
        self.tooltip(placed.part);
        match placed.part.kind {
            Kind::Read => self.read(placed),
            Kind::Panel => self.panel(placed),
            _ if placed.part.parts.is_empty() => self.leaf(placed),
            _ => self.nest(placed),
        }
        for child in &placed.children {
            self.placed(child);
        }
        self.arrows(&placed.arrows);
        self.svg.push_str("</g>\n");
    }

    fn tooltip(&mut self, part: &Part) {
        let mut lines = Vec::new();
        if part.kind == Kind::Read {
            lines.push("The program waits for a value here.".to_owned());
        } else {
            let head = if part.path.is_empty() { &part.name } else { &part.path };
            if !head.is_empty() {
                lines.push(format!("{} {}", shortened(head, 300), shortened(&part.class, 200)));
            }
            lines.extend(self.facts.told(&part.one, &part.all, part.times));
        }
        let text = shortened(&lines.join("\n"), TOOLTIP_CHARS_MAX);
        let _ = write!(self.svg, "<title>{}</title>", escape(text.trim_end()));
    }

    fn read(&mut self, placed: &Placed) {
        let (middle, right) = (number(placed.h / 2.0), number(placed.w));
        let _ = write!(self.svg, "<path class=\"r\" d=\"M0 {middle}H{right}\"/>");
    }

    fn panel(&mut self, placed: &Placed) {
        let colour = self.colours[placed.phase];
        let (w, h) = (number(placed.w), number(placed.h));
        let part = placed.part;
        let facts = self.facts;
        let name = match part.name.as_str() {
            "" => "no phase".to_owned(),
            name => shortened(name, 60),
        };
        let total = facts.flops(&(0..facts.graph.len())).max(1);
        let share = 100.0 * facts.flops(&part.all) as f64 / total as f64;
        let ops = plural(facts.ops(&part.all), "op");
        let head = number(PANEL_HEAD);
        let _ = write!(
            self.svg,
            "<rect width=\"{w}\" height=\"{h}\" rx=\"5\" fill=\"{}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <path d=\"M0 {head}V5a5 5 0 0 1 5 -5H{}a5 5 0 0 1 5 5V{head}z\" fill=\"{}\"/>\
             <rect y=\"{}\" width=\"{w}\" height=\"2.5\" fill=\"{colour}\"/>\
             <text class=\"p\" x=\"10\" y=\"17\">{}</text><text x=\"10\" y=\"31\">{}</text>",
            tint(colour, 8),
            number(placed.w - 5.0),
            tint(colour, 80),
            number(PANEL_HEAD - 2.0),
            escape(&name),
            escape(&format!("{ops} \u{b7} {} of FLOPs", percent(share)))
        );
    }

    fn nest(&mut self, placed: &Placed) {
        let colour = self.colours[placed.phase];
        let (w, h) = (number(placed.w), number(placed.h));
        let style = match placed.part.kind {
            Kind::Group => {
                "stroke=\"#1b1f24\" stroke-width=\"1.2\" stroke-dasharray=\"5 3\"".to_owned()
            }
            _ => format!("stroke=\"{colour}\" stroke-opacity=\"0.8\""),
        };
        let fill =
            if placed.part.kind == Kind::Group { "none".to_owned() } else { tint(colour, 20) };
        // A module that repeats has the edge of a second sheet behind it.
        if placed.part.times > 1 && placed.part.kind == Kind::Module {
            let _ = write!(
                self.svg,
                "<path d=\"M3 {h}v2.5H{}V3h-2.5\" fill=\"none\" stroke=\"{colour}\"/>",
                number(placed.w + 2.5)
            );
        }
        let _ = write!(
            self.svg,
            "<rect width=\"{w}\" height=\"{h}\" rx=\"3\" fill=\"{fill}\" {style}/>"
        );
        self.own(placed, PAD, HEAD - 5.5);
    }

    fn leaf(&mut self, placed: &Placed) {
        let colour = self.colours[placed.phase];
        let (w, h) = (number(placed.w), number(placed.h));
        let _ = write!(
            self.svg,
            "<rect width=\"{w}\" height=\"{h}\" fill=\"{}\" stroke=\"{colour}\" stroke-opacity=\"0.55\"/>\
             <rect width=\"{STRIP}\" height=\"{h}\" fill=\"{colour}\"/>",
            tint(colour, 46)
        );
        let x = STRIP + PAD;
        self.own(placed, x, 13.5);
        let beside = if placed.ops_beside { own_width(placed.part) } else { 0.0 };
        for (row, ops) in placed.ops.iter().enumerate() {
            let row = row + usize::from(!placed.ops_beside);
            let _ = write!(
                self.svg,
                "<text class=\"o\" x=\"{}\" y=\"{}\">{}</text>",
                number(x + beside),
                number(13.5 + row as f64 * ROW),
                escape(ops)
            );
        }
        let mut right = placed.w - PAD;
        if placed.signs.kv_cache {
            right -= 12.0;
            self.svg.push_str(&cylinder(right, 4.0));
            right -= 8.0;
        }
        if placed.signs.reads_weights {
            let _ = write!(
                self.svg,
                "<rect class=\"w\" x=\"{}\" y=\"6\" width=\"8\" height=\"8\"/>\
                 <text class=\"s\" text-anchor=\"end\" x=\"{}\" y=\"13.5\">{}</text>",
                number(right - 8.0),
                number(right - 11.0),
                weight_text(&placed.signs)
            );
        }
    }

    /// Name, class and repeats.
    fn own(&mut self, placed: &Placed, x: f64, y: f64) {
        let part = placed.part;
        let (name, class) = (escape(&part.name), escape(&shown_class(part)));
        if !name.is_empty() || !class.is_empty() {
            let gap = if name.is_empty() || class.is_empty() { "" } else { " dx=\"5\"" };
            let _ = write!(
                self.svg,
                "<text x=\"{}\" y=\"{}\"><tspan class=\"n\">{name}</tspan><tspan class=\"c\"{gap}>{class}</tspan></text>",
                number(x),
                number(y)
            );
        }
        if part.times > 1 {
            let width = badge_width(part.times);
            let left = match part.parts.is_empty() {
                true => x + own_width(part) - width - 7.0,
                false => placed.w - width - 3.0,
            };
            let _ = write!(
                self.svg,
                "<rect class=\"b\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"14\" rx=\"7\"/>\
                 <text class=\"bt\" text-anchor=\"middle\" x=\"{}\" y=\"{}\">\u{d7} {}</text>",
                number(left),
                number(y - 10.5),
                number(width),
                number(left + width / 2.0),
                number(y + 0.5),
                part.times
            );
        }
    }

    fn arrows(&mut self, arrows: &[Arrow]) {
        for arrow in arrows {
            let Some(points) = arrow.points.last_chunk::<2>() else { continue };
            let [before, end] = *points;
            let class = if arrow.is_side { "f" } else { "a" };
            let mut d = String::new();
            for (index, (x, y)) in arrow.points.iter().enumerate() {
                let letter = if index == 0 { 'M' } else { 'L' };
                let _ = write!(d, "{letter}{} {}", number(*x), number(*y));
            }
            let head = match (end.0 - before.0, end.1 - before.1) {
                (dx, 0.0) if dx < 0.0 => "l5 -3v6z",
                (_, 0.0) => "l-5 -3v6z",
                _ => "l-3 -5h6z",
            };
            let _ = write!(
                self.svg,
                "<path class=\"{class}\" d=\"{d}\"/><path class=\"h\" d=\"M{} {}{head}\"/>",
                number(end.0),
                number(end.1)
            );
        }
    }
}

/// The sign of a cache, 12 wide and 12 high.
fn cylinder(x: f64, y: f64) -> String {
    format!(
        "<path class=\"k\" d=\"M{} {}v7a5 2.2 0 0 0 10 0v-7\"/>\
         <ellipse class=\"k\" cx=\"{}\" cy=\"{}\" rx=\"5\" ry=\"2.2\"/>",
        number(x + 1.0),
        number(y + 3.0),
        number(x + 6.0),
        number(y + 3.0)
    )
}

/// With at most one digit behind the point.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// Text for XML; characters that it cannot hold become spaces.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            '\u{fffe}' | '\u{ffff}' => out.push(' '),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
