//! Where the boxes of a picture stand. Time runs down a column, then to the next column.

use super::facts::{Facts, Signs, amount, plural, shortened};
use super::flow::{Flow, flows};
use super::parts::{Kind, Part};

/// Heights and widths in pixels of the picture.
pub const ROW: f64 = 15.0;
pub const PAD: f64 = 6.0;
pub const GAP: f64 = 8.0;
pub const HEAD: f64 = 19.0;
pub const PANEL_HEAD: f64 = 40.0;
pub const STRIP: f64 = 4.0;
const PANEL_GAP: f64 = 34.0;
const COLUMN_GAP: f64 = 18.0;
const LANE: f64 = 7.0;
const READ: f64 = 9.0;
/// Lanes for data that passes over neighbours; more are left out.
const LANES_MAX: usize = 4;
/// The width of a digit at 11 px, what bold adds, and the width of a character of operators.
const CHAR: f64 = 7.0;
const BOLD: f64 = 1.12;
const MONO: f64 = 6.4;
/// Characters of operators in one row, and rows.
const OPS_CHARS: usize = 46;
const OPS_ROWS_MAX: usize = 3;
/// The narrowest and widest a row of panels gets before the next begins.
const ROW_WIDTH_MIN: f64 = 2600.0;
const ROW_WIDTH_MAX: f64 = 5200.0;
/// By how much a row may be wider than a picture of that area should be.
const ROW_STRETCH: f64 = 2.2;
/// How high columns get: no less and no more.
const COLUMN_MIN: f64 = 420.0;
const COLUMN_MAX: f64 = 1500.0;
/// By how much of its height a column may be higher than that before it breaks.
const COLUMN_SLACK: f64 = 0.4;
/// A column does not break if one box is this much of it.
const TALLEST_SHARE: f64 = 0.75;
/// A picture is this much wider than high, where that can be chosen.
const ASPECT: f64 = 1.5;

/// A box with its content, placed relative to its parent.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed<'a> {
    pub part: &'a Part,
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
    pub phase: usize,
    pub signs: Signs,
    /// Operators in rows; the first stands beside the name if `ops_beside`.
    pub ops: Vec<String>,
    pub ops_beside: bool,
    pub children: Vec<Placed<'a>>,
    pub arrows: Vec<Arrow>,
}

/// Points of a line, relative to the parent of what it joins; it ends in an arrow head.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrow {
    pub points: Vec<(f64, f64)>,
    /// Passes over neighbours.
    pub is_side: bool,
}

/// The whole picture: its boxes, width and height.
pub struct Layout<'a> {
    pub boxes: Vec<Placed<'a>>,
    pub arrows: Vec<Arrow>,
    pub w: f64,
    pub h: f64,
}

/// Places panels, below a header of `top`.
pub fn layout<'a>(facts: &Facts, panels: &'a [Part], top: f64, margin: f64) -> Layout<'a> {
    let area: f64 = panels
        .iter()
        .map(|panel| place(facts, panel, f64::INFINITY))
        .map(|placed| placed.w * placed.h)
        .sum();
    let column = (area / ASPECT).sqrt().clamp(COLUMN_MIN, COLUMN_MAX);
    let mut boxes: Vec<Placed> = panels.iter().map(|panel| place(facts, panel, column)).collect();
    let flow = flows(facts, panels);
    let widest = (ROW_STRETCH * (area * ASPECT).sqrt()).clamp(ROW_WIDTH_MIN, ROW_WIDTH_MAX);
    let (arrows, w, h) = across(&mut boxes, &flow, margin, top, widest);
    Layout { boxes, arrows, w: w + margin, h: h + margin }
}

fn place<'a>(facts: &Facts, part: &'a Part, column: f64) -> Placed<'a> {
    let mut placed = Placed {
        part,
        x: 0.0,
        y: 0.0,
        w: 0.0,
        h: 0.0,
        phase: facts.main_phase(&part.one),
        signs: Signs::default(),
        ops: Vec::new(),
        ops_beside: false,
        children: Vec::new(),
        arrows: Vec::new(),
    };
    if part.kind == Kind::Read {
        (placed.w, placed.h) = (60.0, READ);
    } else if part.parts.is_empty() && part.kind != Kind::Panel {
        leaf(facts, &mut placed);
    } else {
        nest(facts, &mut placed, column);
    }
    placed
}

/// One line for each leaf module, and a few for runs of operators.
fn leaf(facts: &Facts, placed: &mut Placed) {
    let part = placed.part;
    placed.signs = facts.signs(&part.one);
    let own = own_width(part);
    let names: Vec<String> = facts
        .op_runs(&part.one)
        .into_iter()
        .map(|(name, times)| {
            let name = shortened(name, 30);
            if times > 1 { format!("{name}\u{d7}{times}") } else { name }
        })
        .collect();
    placed.ops = rows(&names, facts.ops(&part.one));
    let first = placed.ops.first().map_or(0, |row| row.chars().count()) as f64 * MONO;
    let signs = signs_width(&placed.signs);
    placed.ops_beside = own == 0.0 || placed.ops.len() == 1 && own + first < 300.0;
    let widest = placed.ops.iter().map(|row| row.chars().count()).max().unwrap_or(0) as f64 * MONO;
    let lines = placed.ops.len().max(1) + usize::from(!placed.ops_beside);
    let content = match placed.ops_beside {
        true => own + widest + signs,
        false => widest.max(own + signs),
    };
    placed.w = STRIP + 2.0 * PAD + content + 4.0;
    placed.h = 5.0 + lines as f64 * ROW;
}

/// Names of operators in rows; the last tells how many there are if not all fit.
fn rows(names: &[String], total: u64) -> Vec<String> {
    let mut rows = vec![String::new()];
    for (index, name) in names.iter().enumerate() {
        let row = rows.last_mut().expect("there is a row");
        let len = row.chars().count() + name.chars().count();
        if row.is_empty() || len + 1 < OPS_CHARS {
            row.push_str(if row.is_empty() { "" } else { " " });
            row.push_str(name);
            continue;
        }
        if rows.len() == OPS_ROWS_MAX {
            let more = format!(" \u{2026} ({})", plural(total, "op"));
            let row = rows.last_mut().expect("there is a row");
            if index < names.len() {
                row.push_str(&more);
            }
            break;
        }
        rows.push(name.clone());
    }
    rows
}

/// The width of name, class and repeats in a header.
pub fn own_width(part: &Part) -> f64 {
    let padded = |width: f64| if width > 0.0 { width + 8.0 } else { 0.0 };
    let name = padded(text_width(&part.name) * BOLD);
    let times = if part.times > 1 { badge_width(part.times) + 7.0 } else { 0.0 };
    name + padded(text_width(&shown_class(part))) + times
}

/// How wide a text of 11 px is in the widest font of the picture.
fn text_width(text: &str) -> f64 {
    let width = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | '\'' | '|' => 3.6,
        'f' | 't' | 'r' | ' ' => 4.6,
        'm' | 'w' | 'M' | 'W' | '@' => 10.8,
        '_' | 's' | 'c' | 'z' => 6.2,
        c if c.is_ascii_uppercase() => 8.2,
        c if c.is_ascii() => 7.0,
        // Letters of other scripts may be as wide as high.
        _ => 11.0,
    };
    text.chars().map(width).sum()
}

pub fn shown_class(part: &Part) -> String {
    shortened(&part.class, 36)
}

pub fn badge_width(times: u32) -> f64 {
    (times.to_string().len() as f64 + 2.0) * CHAR + 6.0
}

pub fn weight_text(signs: &Signs) -> String {
    amount(signs.weight_bytes, "B")
}

fn signs_width(signs: &Signs) -> f64 {
    let weight =
        if signs.reads_weights { weight_text(signs).len() as f64 * 5.8 + 20.0 } else { 0.0 };
    weight + if signs.kv_cache { 34.0 } else { 0.0 }
}

fn nest<'a>(facts: &Facts, placed: &mut Placed<'a>, column: f64) {
    let part = placed.part;
    let inner = (column - HEAD - 2.0 * PAD).max(COLUMN_MIN / 2.0);
    let children: Vec<Placed> = part.parts.iter().map(|each| place(facts, each, inner)).collect();
    placed.children = children;
    let flow = flows(facts, &part.parts);
    let is_row = part.parts.iter().any(|each| each.kind == Kind::Panel);
    let head = match part.kind {
        Kind::Panel => PANEL_HEAD,
        _ => HEAD,
    };
    let (w, h);
    (placed.arrows, w, h) = match is_row {
        true => across(&mut placed.children, &flow, PAD, head + PAD, ROW_WIDTH_MAX),
        false => down(&mut placed.children, &flow, head + 3.0, inner),
    };
    let title = match part.kind {
        Kind::Panel => 180.0_f64.max(part.name.chars().count() as f64 * 8.6 + 20.0),
        _ => own_width(part) + 40.0,
    };
    placed.w = w + PAD;
    placed.h = h + PAD;
    let titled = (title + 2.0 * PAD).max(placed.w);
    stretch(placed, titled);
}

/// Makes a box wider, and what stands in one column in it too.
fn stretch(placed: &mut Placed, w: f64) {
    let more = w - placed.w;
    placed.w = w;
    if more <= 0.0 || placed.children.iter().any(|child| child.x != PAD) {
        return;
    }
    for arrow in placed.arrows.iter_mut().filter(|arrow| arrow.is_side) {
        arrow.points.iter_mut().for_each(|point| point.0 += more);
    }
    for child in &mut placed.children {
        let w = child.w + more;
        stretch(child, w);
    }
}

/// Columns of boxes; returns arrows, right and lower end.
fn down(boxes: &mut [Placed], flow: &[Flow], top: f64, limit: f64) -> (Vec<Arrow>, f64, f64) {
    let total: f64 = boxes.iter().map(|placed| placed.h + GAP).sum();
    let tallest = boxes.iter().map(|placed| placed.h).fold(0.0, f64::max);
    let columns = match tallest < TALLEST_SHARE * total {
        true => (total / limit - COLUMN_SLACK).ceil().max(1.0),
        // Beside the one that is most of it, the rest would leave a column empty.
        false => 1.0,
    };
    let target = if columns > 1.0 { (total / columns * 1.06).max(tallest) } else { f64::INFINITY };
    let (mut x, mut bottom) = (PAD, top);
    let mut arrows = Vec::new();
    let mut start = 0;
    while start < boxes.len() {
        let mut end = start;
        let mut y = top;
        let fits = |placed: &Placed, y: f64| {
            placed.part.kind == Kind::Read || y + placed.h - top <= target
        };
        while end < boxes.len() && (end == start || fits(&boxes[end], y)) {
            boxes[end].x = x;
            boxes[end].y = y;
            y += boxes[end].h + GAP;
            end += 1;
        }
        let column = &mut boxes[start..end];
        let w = column.iter().map(|placed| placed.w).fold(0.0, f64::max);
        column.iter_mut().for_each(|placed| stretch(placed, w));
        let lanes = side_arrows(column, start, flow, x + w, &mut arrows);
        for index in start + 1..end {
            if flow.iter().any(|flow| flow.from == index - 1 && flow.to == index) {
                let (above, below) = (&boxes[index - 1], &boxes[index]);
                let middle = x + 18.0;
                let points = vec![(middle, above.y + above.h), (middle, below.y)];
                arrows.push(Arrow { points, is_side: false });
            }
        }
        let right = x + w + lanes as f64 * LANE + if lanes > 0 { 2.0 } else { 0.0 };
        if end < boxes.len() && flow.iter().any(|flow| flow.from == end - 1 && flow.to == end) {
            let last = &boxes[end - 1];
            let turn = right + COLUMN_GAP / 2.0;
            let next = (right + COLUMN_GAP, top + 10.0);
            let from = last.y + last.h / 2.0;
            let points = vec![(x + w, from), (turn, from), (turn, next.1), next];
            arrows.push(Arrow { points, is_side: false });
        }
        bottom = f64::max(bottom, y - GAP);
        x = right + COLUMN_GAP;
        start = end;
    }
    (arrows, x - COLUMN_GAP, bottom)
}

/// Data that passes over neighbours, on lanes at the right of a column; how many lanes.
fn side_arrows(
    column: &[Placed],
    start: usize,
    flow: &[Flow],
    right: f64,
    arrows: &mut Vec<Arrow>,
) -> usize {
    let end = start + column.len();
    let mut spans: Vec<(usize, Vec<usize>)> = Vec::new();
    for flow in flow {
        if flow.from < start || flow.to >= end || flow.to == flow.from + 1 {
            continue;
        }
        match spans.iter_mut().find(|(from, _)| *from == flow.from) {
            Some((_, to)) => to.push(flow.to),
            None => spans.push((flow.from, vec![flow.to])),
        }
    }
    spans.sort();
    let mut lanes: Vec<usize> = Vec::new();
    for (from, to) in spans {
        let last = *to.iter().max().expect("a span ends somewhere");
        let free = lanes.iter().position(|busy| *busy < from);
        let lane = match free {
            Some(lane) => lane,
            None if lanes.len() < LANES_MAX => {
                lanes.push(0);
                lanes.len() - 1
            }
            None => continue,
        };
        lanes[lane] = last;
        let x = right + (lane + 1) as f64 * LANE;
        let begin = &column[from - start];
        let y = begin.y + begin.h - 5.0_f64.min(begin.h / 2.0);
        for to in to {
            let target = &column[to - start];
            let into = target.y + 6.0_f64.min(target.h / 2.0);
            let points = vec![(right, y), (x, y), (x, into), (right, into)];
            arrows.push(Arrow { points, is_side: true });
        }
    }
    lanes.len()
}

/// Rows of boxes; returns arrows, right and lower end.
fn across(
    boxes: &mut [Placed],
    flow: &[Flow],
    left: f64,
    top: f64,
    widest: f64,
) -> (Vec<Arrow>, f64, f64) {
    let mut arrows = Vec::new();
    let (mut right, mut y) = (left, top);
    let mut start = 0;
    while start < boxes.len() {
        let mut x = left;
        let mut end = start;
        while end < boxes.len() && (end == start || x + boxes[end].w <= widest) {
            boxes[end].x = x;
            x += boxes[end].w + PANEL_GAP;
            end += 1;
        }
        let skips: Vec<&Flow> = flow
            .iter()
            .filter(|flow| flow.from >= start && flow.to < end && flow.to > flow.from + 1)
            .take(LANES_MAX)
            .collect();
        let row = y + if skips.is_empty() { 0.0 } else { skips.len() as f64 * LANE + 8.0 };
        for placed in &mut boxes[start..end] {
            placed.y = row;
        }
        for (lane, flow) in skips.iter().enumerate() {
            let (from, to) = (&boxes[flow.from], &boxes[flow.to]);
            let height = row - 6.0 - lane as f64 * LANE;
            let out = from.x + from.w - 14.0 - lane as f64 * 8.0;
            let into = to.x + 14.0 + lane as f64 * 8.0;
            let points = vec![(out, row), (out, height), (into, height), (into, row)];
            arrows.push(Arrow { points, is_side: true });
        }
        for index in start + 1..end {
            if flow.iter().any(|flow| flow.from == index - 1 && flow.to == index) {
                let (before, after) = (&boxes[index - 1], &boxes[index]);
                let middle = row + PANEL_HEAD / 2.0;
                let points = vec![(before.x + before.w, middle), (after.x, middle)];
                arrows.push(Arrow { points, is_side: false });
            }
        }
        right = f64::max(right, x - PANEL_GAP);
        let tallest = boxes[start..end].iter().map(|placed| placed.h).fold(0.0, f64::max);
        y = row + tallest + PANEL_GAP;
        start = end;
    }
    (arrows, right, y - if boxes.is_empty() { 0.0 } else { PANEL_GAP })
}
