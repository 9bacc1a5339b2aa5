//! A program as parts in parts: phases, modules, repeats, runs of operators.
//!
//! Each part covers one stretch of nodes in program order. What repeats is folded to one part;
//! what is too much for a picture is folded deeper, and at last joined.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::facts::{Facts, shortened};
use super::fold::stretches;

/// Parts of a picture. With more, modules fold to one box from the innermost outwards, and at
/// last neighbours are joined.
pub const BOXES_MAX: usize = 320;
/// Phases side by side; with more, the shortest join the one before.
const PANELS_MAX: usize = 12;
/// Parts above which also modules fold whose names differ in a number: `layer1` and `layer2`.
const LOOSE_BOXES: usize = 140;
/// Shorter stretches of a phase, in operators and as a share of all, join the one before if
/// the phase has a longer one.
const SHORT_OPS: usize = 5;
const SHORT_SHARE: usize = 100;
/// Operators that a repeat outside modules has to save.
const SAVED_OPS_MIN: usize = 6;
/// Characters of a name.
const NAME_CHARS_MAX: usize = 44;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A stretch of the program in one phase.
    Panel,
    /// A module; without parts of its own, it is told in one box.
    Module,
    /// Parts that repeat together.
    Group,
    /// Operators outside inner modules.
    Ops,
    /// The program reads a value.
    Read,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub kind: Kind,
    /// The last part of the path; for a repeat, of the first to the last.
    pub name: String,
    pub class: String,
    pub path: String,
    /// Nodes of the first time, and of all times.
    pub one: Range<usize>,
    pub all: Range<usize>,
    pub times: u32,
    pub parts: Vec<Part>,
    /// Equal for parts of one structure.
    signature: u64,
}

impl Part {
    fn new(kind: Kind, nodes: Range<usize>, signature: u64) -> Part {
        Part {
            kind,
            name: String::new(),
            class: String::new(),
            path: String::new(),
            one: nodes.clone(),
            all: nodes,
            times: 1,
            parts: Vec::new(),
            signature,
        }
    }

    /// This part and those within.
    pub fn count(&self) -> usize {
        1 + count(&self.parts)
    }
}

pub fn count(parts: &[Part]) -> usize {
    parts.iter().map(Part::count).sum()
}

/// The panels of the picture (or groups of panels), at most `most` parts.
pub fn parts(facts: &Facts, most: usize) -> Vec<Part> {
    let mut builder = Builder { facts, classes: facts.classes(), loose: false };
    let mut panels = builder.panels();
    if count(&panels) > LOOSE_BOXES.min(most) {
        builder.loose = true;
        panels = builder.panels();
    }
    bound(facts, &mut panels, most);
    panels
}

struct Builder<'a> {
    facts: &'a Facts<'a>,
    classes: HashMap<&'a str, &'a str>,
    loose: bool,
}

impl Builder<'_> {
    fn panels(&self) -> Vec<Part> {
        let shown = self.facts.shown();
        let mut least = SHORT_OPS.max(shown.len() / SHORT_SHARE);
        let mut strictly = false;
        loop {
            let runs = self.phase_runs(&shown, least, strictly);
            let panels = runs.iter().map(|run| self.panel(&shown[run.clone()])).collect();
            let panels = self.folded(panels);
            if runs.len() <= PANELS_MAX || count_panels(&panels) <= PANELS_MAX {
                return panels;
            }
            least *= 2;
            strictly = least > shown.len() / PANELS_MAX;
        }
    }

    /// Stretches of one phase. What is in none belongs to what is before, but after the last
    /// read to what is next. A stretch shorter than `least` joins the one before if its phase has
    /// a longer one; with `strictly`, in any case.
    fn phase_runs(&self, shown: &[usize], least: usize, strictly: bool) -> Vec<Range<usize>> {
        let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
        for (index, node) in shown.iter().enumerate() {
            match (self.facts.phase[*node], runs.last_mut()) {
                (phase, Some((last, run))) if *last == phase => run.end = index + 1,
                (phase, _) => runs.push((phase, index..index + 1)),
            }
        }
        let mut joined: Vec<(usize, Range<usize>)> = Vec::new();
        let mut begin = 0;
        for (index, (phase, run)) in runs.iter().enumerate() {
            let is_last = index + 1 == runs.len();
            if *phase == 0 && !is_last {
                let is_read = |place: &usize| self.facts.is_read(shown[*place]);
                let cut = run.clone().rev().find(is_read).map_or(run.end, |read| read + 1);
                if let Some((_, before)) = joined.last_mut() {
                    before.end = cut;
                    begin = cut;
                }
                continue;
            }
            match joined.last_mut() {
                Some((last, before)) if *phase == 0 || last == phase => before.end = run.end,
                _ => joined.push((*phase, begin..run.end)),
            }
            begin = run.end;
        }
        let mut longest: HashMap<usize, usize> = HashMap::new();
        for (phase, run) in &joined {
            let longest = longest.entry(*phase).or_default();
            *longest = run.len().max(*longest);
        }
        let mut out: Vec<(usize, Range<usize>)> = Vec::new();
        for (phase, run) in joined {
            let short = run.len() < least && (strictly || run.len() < longest[&phase]);
            match out.last_mut() {
                Some((last, before)) if short || *last == phase => before.end = run.end,
                _ => out.push((phase, run)),
            }
        }
        out.into_iter().map(|(_, run)| run).collect()
    }

    fn panel(&self, shown: &[usize]) -> Part {
        let range = shown[0]..shown[shown.len() - 1] + 1;
        let parts = self.level(shown, 0);
        let phase = self.facts.main_phase(&range);
        let mut panel = Part::new(Kind::Panel, range, sign(Kind::Panel, &phase, &parts));
        panel.name = self.facts.phases[phase].clone();
        panel.parts = parts;
        panel
    }

    /// The parts of these nodes, whose modules agree in the first `depth` parts of their paths.
    fn level(&self, shown: &[usize], depth: usize) -> Vec<Part> {
        let facts = self.facts;
        let mut parts = Vec::new();
        let mut index = 0;
        while index < shown.len() {
            let path = facts.path(shown[index]);
            let Some(name) = path.get(depth) else {
                parts.push(self.atom(shown[index]));
                index += 1;
                continue;
            };
            let inside = |node: &usize| facts.path(*node).get(depth) == Some(name);
            let len = shown[index..].iter().take_while(|node| inside(node)).count();
            let nodes = &shown[index..index + len];
            let path = path[..=depth].join(".");
            parts.push(self.module(name, path, self.level(nodes, depth + 1)));
            index += len;
        }
        lines(self.folded(parts), facts)
    }

    fn atom(&self, node: usize) -> Part {
        let kind = if self.facts.is_read(node) { Kind::Read } else { Kind::Ops };
        let op = self.facts.graph.columns().op[node];
        Part::new(kind, node..node + 1, sign(kind, &(op, self.facts.phase[node]), &[]))
    }

    fn module(&self, name: &str, path: String, mut parts: Vec<Part>) -> Part {
        let class = self.classes.get(path.as_str()).copied().unwrap_or("");
        // A list of modules, or a wrapper, with one thing in it.
        let repeats = |part: &Part| part.times > 1 && !class.is_empty();
        if parts.len() == 1 && parts[0].kind == Kind::Module && !repeats(&parts[0]) {
            let mut inner = parts.remove(0);
            inner.name = shortened(&format!("{name}.{}", inner.name), NAME_CHARS_MAX);
            inner.signature = sign(Kind::Module, &(self.pattern(name), inner.signature), &[]);
            return inner;
        }
        let nodes = parts[0].all.start..parts[parts.len() - 1].all.end;
        let leaf = parts.len() == 1 && parts[0].kind == Kind::Ops;
        let named = if leaf && !self.loose { strict(name) } else { self.pattern(name) };
        let mut part = Part::new(Kind::Module, nodes, sign(Kind::Module, &(named, class), &parts));
        part.name = shortened(name, NAME_CHARS_MAX);
        part.class = class.to_owned();
        part.path = path;
        part.parts = if leaf { Vec::new() } else { parts };
        part
    }

    fn pattern(&self, name: &str) -> String {
        if self.loose { name.replace(|c: char| c.is_ascii_digit(), "#") } else { strict(name) }
    }

    /// Repeats become one part each.
    fn folded(&self, parts: Vec<Part>) -> Vec<Part> {
        let signatures: Vec<u64> = parts.iter().map(|part| part.signature).collect();
        let atoms: Vec<usize> = std::iter::once(0)
            .chain(parts.iter().scan(0, |sum, part| {
                *sum += usize::from(matches!(part.kind, Kind::Ops | Kind::Read));
                Some(*sum)
            }))
            .collect();
        // How many from each place on are alike: a name with a count tells them better.
        let mut alike = vec![1usize; parts.len()];
        for index in (1..parts.len()).rev() {
            if signatures[index - 1] == signatures[index] {
                alike[index - 1] = alike[index] + 1;
            }
        }
        let worth = |start: usize, period: usize, times: usize| {
            let only_atoms = atoms[start + period] - atoms[start] == period;
            let saved = period * (times - 1);
            !only_atoms || alike[start] < period && saved >= SAVED_OPS_MIN
        };
        let begins = |start: usize| atoms[start + 1] == atoms[start];
        let stretches = stretches(&signatures, worth, begins);
        let mut rest = parts.into_iter();
        let mut out = Vec::new();
        for stretch in stretches {
            let items: Vec<Part> = rest.by_ref().take(stretch.period * stretch.times).collect();
            if stretch.times == 1 {
                out.extend(items);
                continue;
            }
            out.push(self.group(items, stretch.period, stretch.times as u32));
        }
        out
    }

    fn group(&self, mut items: Vec<Part>, period: usize, times: u32) -> Part {
        let all = items[0].all.start..items[items.len() - 1].all.end;
        let one = items[0].all.start..items[period - 1].all.end;
        let last = items[items.len() - period].name.clone();
        let signature = sign(Kind::Group, &times, &items[..period]);
        items.truncate(period);
        if period == 1 && items[0].kind == Kind::Module && items[0].times == 1 {
            let mut part = items.remove(0);
            part.name = from_to(&part.name, &last);
            (part.one, part.all, part.times, part.signature) = (one, all, times, signature);
            return part;
        }
        let mut part = Part::new(Kind::Group, all, signature);
        (part.one, part.times) = (one, times);
        part.parts = if items[0].kind == Kind::Panel {
            items
        } else {
            // A repeat may hold shorter ones.
            lines(self.folded(items), self.facts)
        };
        part
    }
}

/// Neighbouring operators of one phase become one part.
fn lines(parts: Vec<Part>, facts: &Facts) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in parts {
        let phase = |part: &Part| facts.phase[part.all.start];
        match out.last_mut() {
            Some(last)
                if last.kind == Kind::Ops
                    && part.kind == Kind::Ops
                    && phase(last) == phase(&part) =>
            {
                last.signature = sign(Kind::Ops, &(last.signature, part.signature), &[]);
                last.all.end = part.all.end;
                last.one.end = part.all.end;
            }
            Some(last) if last.kind == Kind::Read && part.kind == Kind::Read => {
                last.signature = sign(Kind::Read, &(last.signature, part.signature), &[]);
                last.all.end = part.all.end;
                last.one.end = part.all.end;
            }
            _ => out.push(part),
        }
    }
    out
}

/// `0` and `11` are `0-11`; `a` and `a` are `a`.
fn from_to(first: &str, last: &str) -> String {
    if first == last {
        return first.to_owned();
    }
    let tail = match (first.rsplit_once('.'), last.rsplit_once('.')) {
        (Some((a, _)), Some((b, tail))) if a == b => tail,
        (None, None) => last,
        _ => return shortened(&format!("{first} \u{2026} {last}"), NAME_CHARS_MAX),
    };
    shortened(&format!("{first}\u{2013}{tail}"), NAME_CHARS_MAX)
}

/// Numbers of layers are alike.
fn strict(name: &str) -> String {
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { "#".to_owned() } else { name.to_owned() }
}

fn sign(kind: Kind, own: &impl Hash, parts: &[Part]) -> u64 {
    // Its keys are zeros: the same in each run.
    let mut hasher = DefaultHasher::new();
    kind.hash(&mut hasher);
    own.hash(&mut hasher);
    for part in parts {
        (part.signature, part.times).hash(&mut hasher);
    }
    hasher.finish()
}

fn count_panels(parts: &[Part]) -> usize {
    let inside = |part: &Part| if part.kind == Kind::Panel { 1 } else { count_panels(&part.parts) };
    parts.iter().map(inside).sum()
}

/// Folds until the parts are at most `most`.
fn bound(facts: &Facts, panels: &mut [Part], most: usize) {
    let mut depth = panels.iter().map(height).max().unwrap_or(0);
    while count(panels) > most && depth > 1 {
        depth -= 1;
        panels.iter_mut().for_each(|panel| shut(panel, depth));
    }
    let total = count(panels);
    if total > most {
        for_each_panel(panels, &mut |panel| {
            let room = most.saturating_sub(2 * PANELS_MAX) * panel.parts.len() / total;
            join(facts, &mut panel.parts, room.max(1));
        });
    }
}

fn for_each_panel(parts: &mut [Part], f: &mut impl FnMut(&mut Part)) {
    for part in parts {
        if part.kind == Kind::Panel { f(part) } else { for_each_panel(&mut part.parts, f) }
    }
}

/// Levels of parts below a panel.
fn height(part: &Part) -> usize {
    let below = part.parts.iter().map(height).max().unwrap_or(0);
    below + usize::from(part.kind != Kind::Panel)
}

/// Takes away what is more than `depth` levels below the panel.
fn shut(part: &mut Part, depth: usize) {
    let own = usize::from(part.kind != Kind::Panel);
    if depth == 0 || depth == own {
        part.parts.clear();
        return;
    }
    part.parts.iter_mut().for_each(|inner| shut(inner, depth - own));
}

/// Joins neighbours so that at most `room` are left.
fn join(facts: &Facts, parts: &mut Vec<Part>, room: usize) {
    if parts.len() <= room {
        return;
    }
    let each = parts.len().div_ceil(room);
    *parts = parts
        .chunks(each)
        .map(|chunk| {
            let (first, last) = (&chunk[0], &chunk[chunk.len() - 1]);
            let nodes = first.all.start..last.all.end;
            let has_ops = facts.ops(&nodes) > 0;
            let mut part = Part::new(if has_ops { Kind::Ops } else { Kind::Read }, nodes, 0);
            if !first.name.is_empty() && !last.name.is_empty() {
                part.name = from_to(&first.name, &last.name);
            }
            part
        })
        .collect();
}
