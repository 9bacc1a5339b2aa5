//! Several segments in a row as one graph: what recognizers look at.

use std::collections::HashMap;
use std::sync::Arc;

use genie_wire::record::StorageId;
use genie_wire::template::OutputSpec;
use genie_wire::{Template, TemplateId};

use crate::hash::SegmentHashes;
use crate::trace::{LocalStorage, Origin, Step, StepKind, Trace};
use crate::{Hash128, Srg};

/// A finished segment, kept together with the templates it names.
#[derive(Debug, Clone, PartialEq)]
pub struct Noted {
    pub hashes: SegmentHashes,
    trace: Trace,
    /// Named by the trace's steps, by index.
    templates: Vec<Arc<Template>>,
}

impl Noted {
    /// Keeps a finished segment. `template` finds the session's templates.
    pub fn new(
        mut trace: Trace,
        hashes: SegmentHashes,
        template: impl Fn(TemplateId) -> Option<Arc<Template>>,
    ) -> Noted {
        let mut templates = Vec::new();
        let mut known: HashMap<TemplateId, u32> = HashMap::new();
        for step in &mut trace.steps {
            let StepKind::Op(id) = &mut step.kind else { continue };
            let Some(found) = template(*id) else { continue };
            let index = *known.entry(*id).or_insert_with(|| {
                templates.push(found);
                templates.len() as u32 - 1
            });
            *id = TemplateId(index);
        }
        // It is kept for long and grows no more.
        trace.shrink_to_fit();
        Noted { hashes, trace, templates }
    }

    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Whether the synchronous operator that may make storages from `first` on is one of these.
    pub fn runs(&self, first: StorageId) -> bool {
        self.trace.run_first.contains(&first)
    }

    /// A synchronous operator of this segment answered; whether it is of this segment.
    pub fn run_made(&mut self, first: StorageId, bytes: &[u64], outputs: &[OutputSpec]) -> bool {
        let Some(index) = self.trace.run_first.iter().position(|id| *id == first) else {
            return false;
        };
        let template = Arc::make_mut(&mut self.trace.run_templates[index]);
        template.new_storages = bytes.to_vec();
        template.outputs = outputs.to_vec();
        true
    }
}

/// The graph of consecutive segments.
#[derive(Debug)]
pub struct Window {
    pub srg: Srg,
    /// The session's id of each local storage.
    pub storages: Vec<StorageId>,
    /// For each node of the graph, the index of its segment: of what lies between two reads.
    pub segments: Vec<u32>,
    /// For each node of the graph, the index of the kept segment that it is from.
    pub noted: Vec<u32>,
}

impl Window {
    /// Builds the graph over all segments; `origin` says where content from before them came
    /// from.
    pub fn build(segments: &[Arc<Noted>], origin: impl Fn(StorageId) -> Origin) -> Window {
        let mut joined = Joined::default();
        for (index, noted) in segments.iter().enumerate() {
            joined.append(noted);
            joined.step_noted.resize(joined.trace.steps.len(), index as u32);
        }
        let Joined { trace, templates, step_segments, step_noted, .. } = joined;
        let hashes =
            SegmentHashes { exact: Hash128(0), topology: Hash128(0), records: trace.steps.len() };
        let (srg, steps) = Srg::build_with_steps(
            &trace,
            hashes,
            |id| templates.get(id.0 as usize).cloned(),
            origin,
        );
        // A source belongs to the segment that first uses it: that of the next step's node.
        let (mut segment, mut kept) = (0, 0);
        let mut of_nodes = vec![0; srg.graph.node_count()];
        let mut noted = of_nodes.clone();
        for (node, step) in steps.iter().enumerate().rev() {
            if let Some(step) = step {
                segment = step_segments[*step as usize];
                kept = step_noted[*step as usize];
            }
            of_nodes[node] = segment;
            noted[node] = kept;
        }
        let storages = trace.storages.iter().map(|(id, _)| *id).collect();
        Window { srg, storages, segments: of_nodes, noted }
    }
}

#[derive(Default)]
struct Joined {
    trace: Trace,
    templates: Vec<Arc<Template>>,
    known: HashMap<*const Template, u32>,
    locals: HashMap<StorageId, LocalStorage>,
    step_segments: Vec<u32>,
    step_noted: Vec<u32>,
    segments: u32,
}

impl Joined {
    fn append(&mut self, noted: &Noted) {
        let from = &noted.trace;
        let first_context = self.trace.contexts.len() as u32;
        self.trace.contexts.extend(from.contexts.iter().cloned());
        for step in &from.steps {
            let start = step.operands as usize;
            let inputs_end = start + step.inputs as usize;
            let outputs_end = inputs_end + step.outputs as usize;
            let operands = self.trace.operands.len() as u32;
            for local in &from.operands[start..inputs_end] {
                let id = from.storages[local.0 as usize].0;
                let local = self.local(id, false);
                self.trace.operands.push(local);
            }
            let mut outputs = step.outputs;
            for local in &from.operands[inputs_end..outputs_end] {
                let id = from.storages[local.0 as usize].0;
                let local = self.local(id, true);
                self.trace.operands.push(local);
            }
            let kind = match step.kind {
                StepKind::Op(id) => StepKind::Op(self.template(&noted.templates[id.0 as usize])),
                StepKind::Run(index) => {
                    let template = &from.run_templates[index as usize];
                    let first = from.run_first[index as usize];
                    outputs = template.new_storages.len() as u32;
                    for index in 0..u64::from(outputs) {
                        let local = self.local(StorageId(first.0 + index), true);
                        self.trace.operands.push(local);
                    }
                    StepKind::Op(self.template(template))
                }
                other => other,
            };
            self.trace.steps.push(Step {
                kind,
                operands,
                inputs: step.inputs,
                outputs,
                context: first_context + step.context,
            });
            self.step_segments.push(self.segments);
            // What lies between two reads of the program is a segment, as plugins count.
            self.segments += u32::from(step.kind == StepKind::Read);
        }
    }

    fn template(&mut self, template: &Arc<Template>) -> TemplateId {
        let next = self.templates.len() as u32;
        let index = *self.known.entry(Arc::as_ptr(template)).or_insert(next);
        if index == next {
            self.templates.push(template.clone());
        }
        TemplateId(index)
    }

    fn local(&mut self, id: StorageId, made: bool) -> LocalStorage {
        let next = LocalStorage(self.trace.storages.len() as u32);
        let local = *self.locals.entry(id).or_insert(next);
        if local == next {
            self.trace.storages.push((id, made));
        }
        local
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_place, unary};
    use crate::{NodeKind, SegmentHasher, Version};

    fn segment(hasher: &mut SegmentHasher, templates: &[Arc<Template>]) -> Arc<Noted> {
        let hashes = hasher.finish();
        let trace = hasher.take_trace();
        hasher.begin();
        Arc::new(Noted::new(trace, hashes, |id| templates.get(id.0 as usize).cloned()))
    }

    #[test]
    fn values_pass_from_one_segment_to_the_next() {
        let templates = [unary("aten::relu", &[4]), in_place("aten::add_", &[4])];
        let mut hasher = SegmentHasher::new();
        templates.iter().for_each(|template| hasher.define(template));
        hasher.begin();
        hasher.op(TemplateId(0), &[StorageId(1)], StorageId(2), 1);
        hasher.read(StorageId(2), 16);
        let first = segment(&mut hasher, &templates);
        hasher.op(TemplateId(1), &[StorageId(2)], StorageId(3), 0);
        let second = segment(&mut hasher, &templates);
        let window = Window::build(&[first, second], |_| Origin::Upload);
        let names: Vec<_> =
            window.srg.graph.node_weights().map(|node| node.kind.name().to_owned()).collect();
        assert_eq!(names, ["source", "aten::relu", "read", "aten::add_"]);
        assert_eq!(window.segments, [0, 0, 0, 1]);
        let written = window.srg.graph.node_weights().last().unwrap().writes[0];
        assert_eq!(written, (LocalStorage(1), Version(1)));
        assert_eq!(window.storages, [StorageId(1), StorageId(2)]);
    }

    #[test]
    fn what_a_synchronous_operator_made_is_wired() {
        let template = unary("aten::nonzero", &[4]);
        let unknown = Arc::new(Template {
            new_storages: vec![],
            outputs: vec![],
            ..Template::clone(&template)
        });
        let mut hasher = SegmentHasher::new();
        hasher.define(&template);
        hasher.begin();
        hasher.run(&unknown, &[StorageId(1)], StorageId(10));
        let hashes = hasher.finish();
        let trace = hasher.take_trace();
        let mut noted = Noted::new(trace, hashes, |_| None);
        assert!(!noted.run_made(StorageId(11), &[16], &template.outputs));
        assert!(noted.run_made(StorageId(10), &[16], &template.outputs));
        let window = Window::build(&[Arc::new(noted)], |_| Origin::Upload);
        let run = window.srg.graph.node_weights().last().unwrap();
        assert!(
            matches!(&run.kind, NodeKind::Op { template, .. } if template.op == "aten::nonzero")
        );
        assert_eq!(run.writes, [(LocalStorage(1), Version(0))]);
    }
}
