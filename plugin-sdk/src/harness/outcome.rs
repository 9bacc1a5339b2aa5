//! What a plugin said, with assertions that explain themselves.

use std::fmt::Write;

use crate::operators::plain_name;
use crate::{Annotations, Graph, Match, NodeId, Plan};

/// Nodes that a snapshot lists of one match.
const LISTED_MAX: usize = 8;

/// What a recognizer said of a graph.
#[derive(Debug, Clone)]
pub struct Outcome<'g> {
    pub graph: &'g Graph,
    pub notes: Annotations,
}

impl<'g> Outcome<'g> {
    pub fn new(graph: &'g Graph, notes: Annotations) -> Self {
        Outcome { graph, notes }
    }

    /// The claim with the most confidence; of equal ones the first.
    pub fn workload(&self) -> Option<(&str, f32)> {
        let claims = self.notes.workload.iter();
        let best = claims.reduce(|a, b| if b.confidence > a.confidence { b } else { a })?;
        Some((&best.label, best.confidence))
    }

    /// The phase of a node, as the host would decide: that of the most confident match that names
    /// one; of equal ones the smallest, then by pattern. Empty where there is none.
    pub fn phase_of(&self, node: NodeId) -> &str {
        let holds = |found: &&Match| !found.phase.is_empty() && found.nodes.contains(&node.0);
        let better = |a: &&Match, b: &&Match| {
            (b.confidence.total_cmp(&a.confidence))
                .then(a.nodes.len().cmp(&b.nodes.len()))
                .then(a.pattern.cmp(&b.pattern))
                .then(a.nodes.cmp(&b.nodes))
        };
        let best = self.notes.matches.iter().filter(holds).min_by(better);
        best.map_or("", |found| &found.phase)
    }

    /// Matches of a pattern.
    pub fn matches<'o>(&'o self, pattern: &'o str) -> impl Iterator<Item = &'o Match> + 'o {
        self.notes.matches.iter().filter(move |found| found.pattern == pattern)
    }

    /// The most confident claim about the window is this label.
    #[track_caller]
    pub fn assert_workload(&self, label: &str) -> &Self {
        match self.workload() {
            Some((found, _)) if found == label => self,
            Some((found, confidence)) => self.fail(&format!(
                "the workload should be `{label}`, the plugin says `{found}` ({confidence:.2})"
            )),
            None => self.fail(&format!(
                "the workload should be `{label}`, the plugin says nothing about it; call \
                 `notes.workload(label, confidence)`"
            )),
        }
    }

    /// The plugin says nothing about the window as a whole.
    #[track_caller]
    pub fn assert_no_workload(&self) -> &Self {
        match self.workload() {
            None => self,
            Some((found, confidence)) => self.fail(&format!(
                "there should be no claim about the workload, the plugin says `{found}` \
                 ({confidence:.2})"
            )),
        }
    }

    /// Every node of this operator (plain name: `mm`) is in this phase, and there is one.
    #[track_caller]
    pub fn assert_phase_of(&self, op: &str, phase: &str) -> &Self {
        let is_it = |node: &NodeId| plain_name(self.graph.op(*node)) == plain_name(op);
        let mut nodes = self.graph.nodes().filter(is_it).peekable();
        if nodes.peek().is_none() {
            self.fail(&format!("the graph has no operator `{op}`"));
        }
        for node in nodes {
            let found = self.phase_of(node);
            if found != phase {
                let is = if found.is_empty() { "no phase".into() } else { format!("`{found}`") };
                self.fail(&format!("{} should be in `{phase}`, it has {is}", self.node(node.0)));
            }
        }
        self
    }

    /// The pattern was found at least once.
    #[track_caller]
    pub fn assert_matched(&self, pattern: &str) -> &Self {
        if self.matches(pattern).next().is_none() {
            self.fail(&format!("`{pattern}` should be found"));
        }
        self
    }

    /// The pattern was found exactly so often.
    #[track_caller]
    pub fn assert_count(&self, pattern: &str, count: usize) -> &Self {
        let found = self.matches(pattern).count();
        if found != count {
            self.fail(&format!("`{pattern}` should be found {count} times, not {found} times"));
        }
        self
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("{what}\n\nEverything the plugin said:\n{}", self.snapshot());
    }

    /// Everything the plugin said, as text that does not change from run to run.
    pub fn snapshot(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| writeln!(text, "{line}").expect("a string takes all writes");
        for claim in &self.notes.workload {
            line(format!("workload {} ({:.2})", claim.label, claim.confidence));
        }
        for found in &self.notes.matches {
            let said: Vec<&str> = [found.phase.as_str(), found.modality.as_str()]
                .into_iter()
                .filter(|word| !word.is_empty())
                .collect();
            let nodes = found.nodes.len();
            let Match { pattern, confidence, .. } = found;
            line(format!(
                "match {pattern} [{}] ({confidence:.2}), nodes: {nodes}",
                said.join(", ")
            ));
            for node in found.nodes.iter().take(LISTED_MAX) {
                line(format!("  {}", self.node(*node)));
            }
            if nodes > LISTED_MAX {
                line(format!("  and {} more", nodes - LISTED_MAX));
            }
        }
        for claim in &self.notes.residency {
            let (storage, residency) = (claim.storage, &claim.residency);
            line(format!("storage {storage} is {residency} ({:.2})", claim.confidence));
        }
        for (key, value) in &self.notes.attributes {
            line(format!("{key} = {value}"));
        }
        text
    }

    /// `#3 aten::mm [2, 3] in net.0`.
    fn node(&self, node: u32) -> String {
        let id = NodeId(node);
        let sizes = self.graph.output(id, 0).map(|tensor| format!(" {:?}", tensor.sizes));
        let module = match self.graph.module(id) {
            "" => String::new(),
            path => format!(" in {path}"),
        };
        format!("#{node} {}{}{module}", self.graph.op(id), sizes.unwrap_or_default())
    }
}

/// What a policy proposed: a plan that names each node once.
#[derive(Debug, Clone)]
pub struct Scheduled {
    pub plan: Plan,
}

impl Scheduled {
    pub fn new(plan: Plan) -> Self {
        Scheduled { plan }
    }

    /// The device of a node.
    pub fn device_of(&self, node: NodeId) -> Option<u32> {
        let region = self.plan.regions.iter().find(|region| region.nodes.contains(&node.0))?;
        Some(region.device)
    }

    /// All nodes run on this device.
    #[track_caller]
    pub fn assert_all_on(&self, device: u32) -> &Self {
        if let Some(region) = self.plan.regions.iter().find(|region| region.device != device) {
            panic!(
                "all nodes should run on device {device}; nodes {:?} run on {}: {}",
                &region.nodes[..region.nodes.len().min(LISTED_MAX)],
                region.device,
                self.plan.why
            );
        }
        self
    }

    /// At least so many devices have work.
    #[track_caller]
    pub fn assert_devices_used(&self, least: usize) -> &Self {
        let regions = self.plan.regions.iter().filter(|region| !region.nodes.is_empty());
        let devices: std::collections::BTreeSet<u32> =
            regions.map(|region| region.device).collect();
        assert!(
            devices.len() >= least,
            "at least {least} devices should have work, only {devices:?} do: {}",
            self.plan.why
        );
        self
    }

    /// There is a directive of this kind (`pin`, `keep`, ...).
    #[track_caller]
    pub fn assert_directive(&self, kind: &str) -> &Self {
        let kinds: Vec<&str> =
            self.plan.directives.iter().map(|directive| directive.kind.as_str()).collect();
        assert!(kinds.contains(&kind), "there should be a directive `{kind}`, there are {kinds:?}");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorageId;
    use crate::builder::GraphBuilder;

    fn graph() -> Graph {
        let mut g = GraphBuilder::new();
        let (x, w) = (g.input(&[2, 4]), g.weight(&[4, 3]));
        let y = g.module("net.0", "Linear", |g| g.op("aten::mm", &[x, w], &[2, 3]));
        g.op("aten::relu", &[y], &[2, 3]);
        g.build()
    }

    fn failure(check: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let payload = std::panic::catch_unwind(check).expect_err("the check should fail");
        payload.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn assertions_hold_or_say_why_not() {
        let graph = graph();
        let mut notes = Annotations::new();
        notes.workload("vision", 0.25);
        notes.workload("llm", 0.5);
        notes.matched("all", "llm.prefill", "", 0.5, [NodeId(2), NodeId(3)]);
        notes.matched("mm", "llm.decode", "text", 0.5, [NodeId(2)]);
        notes.residency(StorageId(1), "weight", 1.0);
        notes.attribute("architecture", "decoder-only");
        let seen = Outcome::new(&graph, notes);
        seen.assert_workload("llm").assert_phase_of("mm", "llm.decode");
        seen.assert_phase_of("aten::relu_", "llm.prefill").assert_matched("all");
        seen.assert_count("mm", 1);
        let expect = "workload vision (0.25)\nworkload llm (0.50)\n\
            match all [llm.prefill] (0.50), nodes: 2\n  \
            #2 aten::mm [2, 3] in net.0\n  #3 aten::relu [2, 3]\n\
            match mm [llm.decode, text] (0.50), nodes: 1\n  #2 aten::mm [2, 3] in net.0\n\
            storage 1 is weight (1.00)\narchitecture = decoder-only\n";
        assert_eq!(seen.snapshot(), expect);
        let nothing = Outcome::new(&graph, Annotations::new());
        for (message, expect) in [
            (failure(|| drop(seen.assert_workload("gnn").clone())), "the plugin says `llm` (0.50)"),
            (failure(|| drop(nothing.assert_workload("gnn").clone())), "notes.workload("),
            (failure(|| drop(seen.assert_no_workload().clone())), "there should be no claim"),
            (failure(|| drop(seen.assert_phase_of("conv", "x").clone())), "no operator `conv`"),
            (
                failure(|| drop(seen.assert_phase_of("relu", "x").clone())),
                "#3 aten::relu [2, 3] should be in `x`, it has `llm.prefill`",
            ),
            (failure(|| drop(nothing.assert_matched("all").clone())), "`all` should be found"),
            (failure(|| drop(seen.assert_count("all", 2).clone())), "2 times, not 1 times"),
        ] {
            assert!(message.contains(expect), "{message}");
        }
    }
}
