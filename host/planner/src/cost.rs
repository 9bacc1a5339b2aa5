//! What a plan costs on a cluster: a simulation, the same for the same input.
//!
//! Devices compute by the roofline ([`crate::work::operator_ns`]), links carry one transfer at a
//! time in each direction, the plan's transfer order first, and everything starts as soon as it
//! may (list scheduling). Estimates rank plans against each other; they promise no time.

use std::collections::BTreeMap;
use std::fmt;

use genie_plugin::plan::PROGRAM;
use genie_plugin::{Annotations, Cluster, Graph, Link, NodeId, Origin, StorageId, ValueId};

use crate::check::{Legal, Reason};
use crate::schedule::{self, Task};
use crate::work::{Class, classes, duration_ns, is_constant_weight, operator_ns};

/// Which execution of the graph is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The next one: content is where the cluster says; what is nowhere comes from the program.
    First,
    /// One of many alike, as in a decode loop: content from before the graph is where the plan
    /// wants it.
    Steady,
    /// Every one, in a system that knows nothing of content: what a region uses comes from the
    /// program each time, weights and caches too, and what it makes for later goes back.
    Blind,
}

/// Bytes over links, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    pub weights: u64,
    pub activations: u64,
    pub kv: u64,
    /// From the program: uploads.
    pub inputs: u64,
    /// To the program: what it reads.
    pub outputs: u64,
}

impl Traffic {
    pub fn total(&self) -> u64 {
        [self.weights, self.activations, self.kv, self.inputs, self.outputs]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    fn add(&mut self, class: Class, bytes: u64) {
        let slot = match class {
            Class::Weights => &mut self.weights,
            Class::Activations => &mut self.activations,
            Class::Kv => &mut self.kv,
            Class::Inputs => &mut self.inputs,
            Class::Outputs => &mut self.outputs,
        };
        *slot = slot.saturating_add(bytes);
    }
}

/// The prediction for one execution.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Predicted {
    pub latency_us: f64,
    /// Time from one result to the next where executions follow each other: less than the latency
    /// where a pipeline's stages work on different ones.
    pub interval_us: f64,
    pub traffic: Traffic,
    /// Time each device computes.
    pub busy_us: Vec<f64>,
    /// Bytes each device holds at most, beyond what is there already.
    pub peak_bytes: Vec<u64>,
}

impl fmt::Display for Predicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Predicted { latency_us, interval_us, traffic, .. } = self;
        let total = traffic.total();
        write!(f, "{latency_us:.0} us, {total} bytes moved")?;
        if interval_us < latency_us {
            write!(f, ", one every {interval_us:.0} us")?;
        }
        Ok(())
    }
}

/// Latency and bytes an execution on average, over the first and `runs - 1` steady ones.
pub fn amortised(first: &Predicted, steady: &Predicted, runs: u32) -> (f64, f64) {
    let runs = f64::from(runs.max(1));
    let mean = |one: f64, more: f64| (one + (runs - 1.0) * more) / runs;
    let bytes = |predicted: &Predicted| predicted.traffic.total() as f64;
    (mean(first.latency_us, steady.latency_us), mean(bytes(first), bytes(steady)))
}

/// Predicts one execution of a legal plan.
pub fn simulate(
    graph: &Graph,
    notes: &Annotations,
    cluster: &Cluster,
    legal: &Legal<'_>,
    mode: Mode,
) -> Predicted {
    let mut simulation = Simulation::new(graph, notes, cluster, legal);
    match mode {
        Mode::Blind => simulation.move_blindly(),
        Mode::First | Mode::Steady => simulation.move_by_plan(mode),
    }
    simulation.exchange_with_program();
    simulation.keep_order();
    simulation.finish()
}

struct Simulation<'a> {
    graph: &'a Graph,
    cluster: &'a Cluster,
    legal: &'a Legal<'a>,
    classes: Vec<Class>,
    /// Regions first, by their number.
    tasks: Vec<Task>,
    /// Lanes of links by their ends, after those of the devices.
    lanes: BTreeMap<(u32, u32), u32>,
    /// When each node is done after its region started.
    done_in_region: Vec<u64>,
    urgency: Vec<u32>,
    /// The transfers of a value to a device.
    arrivals: BTreeMap<(ValueId, u32), u32>,
    /// The transfers to the program, by read.
    reads: BTreeMap<NodeId, u32>,
    traffic: Traffic,
}

impl<'a> Simulation<'a> {
    fn new(
        graph: &'a Graph,
        notes: &Annotations,
        cluster: &'a Cluster,
        legal: &'a Legal<'a>,
    ) -> Self {
        let regions = &legal.plan.regions;
        let mut tasks: Vec<Task> = vec![Task::default(); regions.len()];
        for (rank, region) in legal.order.iter().enumerate() {
            let task = &mut tasks[*region as usize];
            task.lane = Some(regions[*region as usize].device);
            task.urgency = (rank as u32, *region);
        }
        for again in &legal.movement.again {
            let device = &cluster.devices[again.on as usize];
            let time = operator_ns(graph, graph.producer(again.value), device);
            let task = &mut tasks[again.regions[0] as usize];
            task.busy_ns = task.busy_ns.saturating_add(time);
        }
        let mut done_in_region = vec![0; graph.len()];
        for node in graph.nodes() {
            let region = legal.region_of[node.0 as usize] as usize;
            let device = &cluster.devices[legal.device(node) as usize];
            let busy = &mut tasks[region].busy_ns;
            *busy = busy.saturating_add(operator_ns(graph, node, device));
            done_in_region[node.0 as usize] = *busy;
        }
        let mut urgency = vec![u32::MAX; graph.values().len()];
        for (rank, value) in legal.plan.transfer_order.iter().enumerate() {
            urgency[*value as usize] = rank as u32;
        }
        Simulation {
            graph,
            cluster,
            legal,
            classes: classes(graph, notes),
            tasks,
            lanes: BTreeMap::new(),
            done_in_region,
            urgency,
            arrivals: BTreeMap::new(),
            reads: BTreeMap::new(),
            traffic: Traffic::default(),
        }
    }

    /// Weights and caches to their homes, results to where they are used.
    fn move_by_plan(&mut self, mode: Mode) {
        let movement = &self.legal.movement;
        for source in &movement.sources {
            let (value, storage, home) = (source.value, source.storage, source.home);
            let bytes = self.graph.storage_bytes(storage);
            let class = self.classes[storage.0 as usize];
            let leaves = |device| self.legal.leaves(storage.0, device);
            let from = match (mode, leaves(home)) {
                (Mode::Steady, false) => None,
                (Mode::Steady, true) => Some(PROGRAM),
                (_, leaves) => source.comes_from.or(leaves.then_some(PROGRAM)),
            };
            if let (true, Some(from)) = (source.used, from) {
                let arrival = self.transfer(value, from, home, bytes, class, None);
                self.arrivals.extend(arrival.map(|task| ((value, home), task)));
            }
            for (device, there) in &source.copies {
                if !there && mode == Mode::First {
                    let arrival = self.transfer(value, PROGRAM, *device, bytes, class, None);
                    self.arrivals.extend(arrival.map(|task| ((value, *device), task)));
                }
            }
            for device in &source.gone {
                if mode == Mode::First && !is_constant_weight(self.graph, storage) {
                    self.transfer(value, *device, PROGRAM, bytes, class, None);
                }
            }
        }
        for copy in &movement.copies {
            let storage = self.graph.storage(copy.value);
            let producer = self.graph.producer(copy.value);
            let source = self.graph.op(producer) == "genie::source";
            // A storage that is written elsewhere than at home is there after the first time.
            if source && copy.written_on && mode == Mode::Steady {
                continue;
            }
            let after = match source {
                true => self.arrivals.get(&(copy.value, copy.from)).map(|task| (*task, None)),
                false => Some(self.made(producer)),
            };
            let class = self.classes[storage.0 as usize];
            let arrival = self.transfer(copy.value, copy.from, copy.to, copy.bytes, class, after);
            self.arrivals.extend(arrival.map(|task| ((copy.value, copy.to), task)));
        }
        self.send_spilled_back();
        self.wait_for_inputs();
    }

    /// What was changed and is not to stay goes to the program.
    fn send_spilled_back(&mut self) {
        for (storage, device) in &self.legal.wishes.spilled {
            let storage = StorageId(*storage);
            let Some(last) = self.graph.values_of(storage).last() else { continue };
            let producer = self.graph.producer(*last);
            let source = self.graph.op(producer) == "genie::source";
            if source || self.legal.device(producer) != *device || !self.graph.is_alive(storage) {
                continue;
            }
            let (bytes, class) =
                (self.graph.storage_bytes(storage), self.classes[storage.0 as usize]);
            let after = Some(self.made(producer));
            self.transfer(*last, *device, PROGRAM, bytes, class, after);
        }
    }

    /// A region starts when everything that it uses is on its device.
    fn wait_for_inputs(&mut self) {
        for node in self.graph.nodes() {
            let device = self.legal.device(node);
            let region = self.legal.region_of[node.0 as usize];
            for input in self.graph.inputs(node) {
                self.wait_for(input.value, device, region);
            }
        }
        for again in &self.legal.movement.again {
            let producer = self.graph.producer(again.value);
            for input in self.graph.inputs(producer) {
                self.wait_for(input.value, again.on, again.regions[0]);
            }
            for region in &again.regions[1..] {
                self.tasks[again.regions[0] as usize].then.push((*region, None));
            }
        }
    }

    fn wait_for(&mut self, value: ValueId, device: u32, region: u32) {
        let producer = self.graph.producer(value);
        let task = match self.arrivals.get(&(value, device)) {
            Some(arrival) => *arrival,
            None if self.legal.device(producer) == device => {
                self.legal.region_of[producer.0 as usize]
            }
            None => return,
        };
        if task != region {
            self.tasks[task as usize].then.push((region, None));
        }
    }

    fn move_blindly(&mut self) {
        let mut home: BTreeMap<ValueId, Option<u32>> = BTreeMap::new();
        for node in self.graph.nodes() {
            let region = self.legal.region_of[node.0 as usize];
            let device = self.legal.device(node);
            let outputs: Vec<ValueId> =
                self.graph.outputs(node).map(|output| output.value).collect();
            for value in outputs {
                let storage = self.graph.storage(value);
                let last = self.graph.values_of(storage).last() == Some(&value);
                let elsewhere = |user: &NodeId| self.legal.region_of[user.0 as usize] != region;
                let used = self.graph.consumers(value).iter().any(elsewhere);
                let source = self.graph.op(node) == "genie::source";
                if source || !(used || (last && self.graph.is_alive(storage))) {
                    continue;
                }
                let (bytes, class) =
                    (self.graph.storage_bytes(storage), self.classes[storage.0 as usize]);
                let after = Some(self.made(node));
                let task = self.transfer(value, device, PROGRAM, bytes, class, after);
                home.insert(value, task);
            }
        }
        let mut brought: BTreeMap<(ValueId, u32), ()> = BTreeMap::new();
        for node in self.graph.nodes() {
            let region = self.legal.region_of[node.0 as usize];
            let device = self.legal.device(node);
            let inputs: Vec<ValueId> = self.graph.inputs(node).map(|input| input.value).collect();
            for value in inputs {
                let producer = self.graph.producer(value);
                let source = self.graph.op(producer) == "genie::source";
                let inside = self.legal.region_of[producer.0 as usize] == region;
                if (inside && !source) || brought.insert((value, region), ()).is_some() {
                    continue;
                }
                let storage = self.graph.storage(value);
                let (bytes, class) =
                    (self.graph.storage_bytes(storage), self.classes[storage.0 as usize]);
                let after = home.get(&value).copied().flatten().map(|task| (task, None));
                if let Some(task) = self.transfer(value, PROGRAM, device, bytes, class, after) {
                    self.tasks[task as usize].then.push((region, None));
                }
            }
        }
    }

    /// What the program uploads and reads.
    fn exchange_with_program(&mut self) {
        let mut uploads: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for node in self.graph.nodes() {
            let device = self.legal.device(node);
            let region = self.legal.region_of[node.0 as usize];
            let op = self.graph.op(node);
            match op {
                "genie::upload" | "genie::weight" => {
                    let Some(output) = self.graph.output(node, 0) else { continue };
                    let storage = self.graph.storage(output.value);
                    let class = match op {
                        "genie::weight" => Class::Weights,
                        _ => Class::Inputs,
                    };
                    let bytes = self.graph.storage_bytes(storage);
                    let task = self.transfer(output.value, PROGRAM, device, bytes, class, None);
                    if let Some(task) = task {
                        self.tasks[task as usize].then.push((region, None));
                        uploads.entry(region).or_default().push(task);
                    }
                }
                "genie::read" => {
                    let Some(input) = self.graph.input(node, 0) else { continue };
                    let size = input.bytes();
                    let storage = self.graph.storage(input.value);
                    let bytes = self.graph.storage_bytes(storage).min(size);
                    let after = Some(self.made(node));
                    let (value, class) = (input.value, Class::Outputs);
                    let task = self.transfer(value, device, PROGRAM, bytes, class, after);
                    self.reads.extend(task.map(|task| (node, task)));
                }
                _ => {}
            }
        }
        // An upload is issued after what the program read before.
        for wait in self.legal.waits.iter().filter(|wait| wait.reason == Reason::Read) {
            let Some(read) = self.reads.get(&wait.before).copied() else { continue };
            let region = self.legal.region_of[wait.after.0 as usize];
            for upload in uploads.get(&region).into_iter().flatten() {
                self.tasks[read as usize].then.push((*upload, None));
            }
        }
    }

    /// Order between regions that no data flows along.
    fn keep_order(&mut self) {
        for wait in &self.legal.waits {
            let before = self.legal.region_of[wait.before.0 as usize];
            let after = self.legal.region_of[wait.after.0 as usize];
            if wait.reason != Reason::Flow {
                self.tasks[before as usize].then.push((after, None));
            }
            if wait.reason == Reason::Read
                && let Some(read) = self.reads.get(&wait.before)
            {
                self.tasks[*read as usize].then.push((after, None));
            }
        }
    }

    fn made(&self, node: NodeId) -> (u32, Option<u64>) {
        let region = self.legal.region_of[node.0 as usize];
        (region, Some(self.done_in_region[node.0 as usize]))
    }

    /// Adds the hops of a transfer and gives the last one.
    fn transfer(
        &mut self,
        value: ValueId,
        from: u32,
        to: u32,
        bytes: u64,
        class: Class,
        after: Option<(u32, Option<u64>)>,
    ) -> Option<u32> {
        let mut after = after;
        for Link { from, to, bytes_per_s, rtt_us } in self.cluster.route(from, to)? {
            self.traffic.add(class, bytes);
            let lanes = self.cluster.devices.len() + self.lanes.len();
            let lane = *self.lanes.entry((from, to)).or_insert(lanes as u32);
            let task = self.tasks.len() as u32;
            self.tasks.push(Task {
                lane: Some(lane),
                busy_ns: duration_ns(bytes, bytes_per_s),
                after_ns: u64::from(rtt_us) * 500,
                urgency: (self.urgency[value.0 as usize], task),
                then: vec![],
            });
            if let Some((before, offset)) = after {
                self.tasks[before as usize].then.push((task, offset));
            }
            after = Some((task, None));
        }
        after.map(|(task, _)| task)
    }

    fn finish(self) -> Predicted {
        let devices = self.cluster.devices.len();
        let lanes = devices + self.lanes.len();
        let times = schedule::run(&self.tasks, lanes);
        let mut busy = vec![0u64; lanes];
        for task in &self.tasks {
            if let Some(lane) = task.lane {
                busy[lane as usize] = busy[lane as usize].saturating_add(task.busy_ns);
            }
        }
        let us = |ns: u64| ns as f64 / 1_000.0;
        let latency_us = us(times.done_ns.iter().copied().max().unwrap_or(0));
        let pipelined = self.legal.plan.regions.iter().any(|region| region.pipeline > 0);
        let interval_us = match pipelined && !carries_state(self.graph) {
            true => us(busy.iter().copied().max().unwrap_or(0)).min(latency_us),
            false => latency_us,
        };
        Predicted {
            latency_us,
            interval_us,
            traffic: self.traffic,
            busy_us: busy[..devices].iter().copied().map(us).collect(),
            peak_bytes: self.legal.peak_bytes.clone(),
        }
    }
}

/// Whether an execution needs what the one before it made: then they cannot overlap.
pub fn carries_state(graph: &Graph) -> bool {
    graph.storages().any(|storage| {
        let [first, written @ ..] = graph.values_of(storage) else { return false };
        let source = graph.op(graph.producer(*first)) == "genie::source";
        let given = matches!(graph.origin(storage), Origin::Weight | Origin::Upload);
        source && (!written.is_empty() || !given)
    })
}
