//! The glue between the traits of [`crate::plugin`] and the component's exports. Plugins use the
//! macros at the end of this file and nothing else of it.

// The code that the bindings' generator writes cannot follow this crate's lints.
#[allow(clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, clippy::all)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit/v0.3",
        world: "plugin",
        pub_export_macro: true,
        default_bindings_module: "genie_plugin::guest::bindings",
    });
}

use bindings::genie::plugin::types as wit;

use crate::annotations::AnnotationColumns;
use crate::log::Level;
use crate::{Annotations, Cluster, Columns, Graph, Plan};

/// The plugin of this component, made and configured once.
pub struct Slot<T>(std::cell::RefCell<Option<T>>);

// SAFETY: a component's instance has one thread; natively a slot is never used (the macros call
// it from exports only, which exist on wasm32 only).
unsafe impl<T> Sync for Slot<T> {}

impl<T: crate::Plugin> Slot<T> {
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Slot(std::cell::RefCell::new(None))
    }

    pub fn configure(&self, json: &str) -> Result<(), String> {
        let mut plugin = T::default();
        plugin.configure(json)?;
        *self.0.borrow_mut() = Some(plugin);
        Ok(())
    }

    pub fn with<R>(&self, call: impl FnOnce(&T) -> R) -> R {
        call(self.0.borrow_mut().get_or_insert_with(T::default))
    }
}

pub(crate) fn write_log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    {
        use bindings::genie::plugin::log;
        let level = match level {
            Level::Debug => log::Level::Debug,
            Level::Info => log::Level::Info,
            Level::Warn => log::Level::Warn,
        };
        log::write(level, message);
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// The graph; the host has checked its columns.
pub fn graph(graph: wit::Graph) -> Graph {
    let columns = Columns {
        blob: graph.blob,
        symbol_ends: graph.symbol_ends,
        op: graph.op,
        module: graph.module,
        class: graph.class,
        mark: graph.mark,
        stage: graph.stage,
        model: graph.model,
        segment: graph.segment,
        flops: graph.flops,
        bytes: graph.bytes,
        input_ends: graph.input_ends,
        input_value: graph.input_value,
        input_geometry: graph.input_geometry,
        input_offset: graph.input_offset,
        output_ends: graph.output_ends,
        output_value: graph.output_value,
        output_geometry: graph.output_geometry,
        output_offset: graph.output_offset,
        arg_ends: graph.arg_ends,
        arg_kind: graph.arg_kind,
        arg_bits: graph.arg_bits,
        value_storage: graph.value_storage,
        value_producer: graph.value_producer,
        value_edge: graph.value_edge,
        storage_bytes: graph.storage_bytes,
        storage_origin: graph.storage_origin,
        storage_alive: graph.storage_alive,
        geometry_dtype: graph.geometry_dtype,
        geometry_ends: graph.geometry_ends,
        sizes: graph.sizes,
        strides: graph.strides,
        extra: graph.extra,
    };
    Graph::trusted(columns)
}

pub fn annotations_out(notes: &Annotations) -> wit::Annotations {
    let c = AnnotationColumns::from(notes);
    wit::Annotations {
        blob: c.blob,
        symbol_ends: c.symbol_ends,
        workload: c.workload,
        workload_confidence: c.workload_confidence,
        pattern: c.pattern,
        phase: c.phase,
        modality: c.modality,
        confidence: c.confidence,
        node_ends: c.node_ends,
        nodes: c.nodes,
        storage: c.storage,
        residency: c.residency,
        residency_confidence: c.residency_confidence,
        attribute_key: c.attribute_key,
        attribute_value: c.attribute_value,
    }
}

pub fn annotations_in(notes: wit::Annotations) -> Result<Annotations, String> {
    let columns = AnnotationColumns {
        blob: notes.blob,
        symbol_ends: notes.symbol_ends,
        workload: notes.workload,
        workload_confidence: notes.workload_confidence,
        pattern: notes.pattern,
        phase: notes.phase,
        modality: notes.modality,
        confidence: notes.confidence,
        node_ends: notes.node_ends,
        nodes: notes.nodes,
        storage: notes.storage,
        residency: notes.residency,
        residency_confidence: notes.residency_confidence,
        attribute_key: notes.attribute_key,
        attribute_value: notes.attribute_value,
    };
    Annotations::try_from(columns).map_err(|error| error.to_string())
}

pub fn info(info: crate::Info) -> wit::Info {
    let crate::Info { name, version, summary, provides } = info;
    wit::Info { name, version, summary, provides }
}

pub fn cluster(cluster: wit::Cluster) -> Cluster {
    Cluster {
        devices: cluster
            .devices
            .into_iter()
            .map(|device| crate::Device {
                name: device.name,
                node: device.node,
                memory_bytes: device.memory_bytes,
                memory_free_bytes: device.memory_free_bytes,
                flops_per_s: device.flops_per_s,
                memory_bytes_per_s: device.memory_bytes_per_s,
            })
            .collect(),
        links: cluster
            .links
            .into_iter()
            .map(|link| crate::Link {
                from: link.from,
                to: link.to,
                bytes_per_s: link.bytes_per_s,
                rtt_us: link.rtt_us,
            })
            .collect(),
        resident: cluster.resident,
    }
}

pub fn plan(plan: Plan) -> wit::Plan {
    let mut out = wit::Plan {
        region_ends: Vec::with_capacity(plan.regions.len()),
        region_nodes: Vec::new(),
        region_device: Vec::with_capacity(plan.regions.len()),
        region_pipeline: Vec::with_capacity(plan.regions.len()),
        directives: Vec::with_capacity(plan.directives.len()),
        transfer_order: plan.transfer_order,
        why: plan.why,
    };
    for region in &plan.regions {
        out.region_nodes.extend_from_slice(&region.nodes);
        out.region_ends.push(out.region_nodes.len() as u32);
        out.region_device.push(region.device);
        out.region_pipeline.push(region.pipeline);
    }
    for directive in plan.directives {
        let crate::Directive { kind, storage, device, why } = directive;
        out.directives.push(wit::Directive { kind, storage, device, why });
    }
    out
}

pub fn edits(edits: Vec<crate::Edit>) -> Vec<wit::Edit> {
    edits
        .into_iter()
        .map(|edit| match edit {
            crate::Edit::DropDead { node } => wit::Edit::DropDead(node),
            crate::Edit::MergeCommon { kept, dropped } => wit::Edit::MergeCommon((kept, dropped)),
            crate::Edit::Recompute { node, consumer } => wit::Edit::Recompute((node, consumer)),
            crate::Edit::MoveBefore { node, before } => wit::Edit::MoveBefore((node, before)),
        })
        .collect()
}

pub fn samples(samples: Vec<wit::Sample>) -> Vec<crate::Sample> {
    let sample = |s: wit::Sample| crate::Sample {
        link: s.link,
        rtt_us: s.rtt_us,
        bytes_per_s: s.bytes_per_s,
        queued_bytes: s.queued_bytes,
    };
    samples.into_iter().map(sample).collect()
}

pub fn hints_in(hints: Vec<wit::Hint>) -> Vec<crate::Hint> {
    hints.into_iter().map(|h| crate::Hint { link: h.link, key: h.key, value: h.value }).collect()
}

pub fn hints_out(hints: Vec<crate::Hint>) -> Vec<wit::Hint> {
    hints.into_iter().map(|h| wit::Hint { link: h.link, key: h.key, value: h.value }).collect()
}

/// Exports a type that implements [`crate::Recognizer`] as this component.
#[macro_export]
macro_rules! recognizer {
    ($plugin:ty) => {
        const _: fn() = || {
            fn implements<T: $crate::Recognizer>() {}
            implements::<$plugin>();
        };
        $crate::component!($plugin, recognizer);
    };
}

/// Exports a type that implements [`crate::Policy`] as this component.
#[macro_export]
macro_rules! policy {
    ($plugin:ty) => {
        const _: fn() = || {
            fn implements<T: $crate::Policy>() {}
            implements::<$plugin>();
        };
        $crate::component!($plugin, policy);
    };
}

/// Exports a type that implements [`crate::Rewriter`] as this component.
#[macro_export]
macro_rules! rewriter {
    ($plugin:ty) => {
        const _: fn() = || {
            fn implements<T: $crate::Rewriter>() {}
            implements::<$plugin>();
        };
        $crate::component!($plugin, rewrite);
    };
}

/// Exports a type that implements [`crate::HintGiver`] as this component.
#[macro_export]
macro_rules! hint_giver {
    ($plugin:ty) => {
        const _: fn() = || {
            fn implements<T: $crate::HintGiver>() {}
            implements::<$plugin>();
        };
        $crate::component!($plugin, hints);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! component {
    ($plugin:ty, $kind:ident) => {
        // Natively a plugin is an ordinary library: the exports' names are for components only.
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            use $crate::guest::bindings::exports::genie::plugin as exports;
            use $crate::guest::bindings::genie::plugin::types;
            static PLUGIN: $crate::guest::Slot<$plugin> = $crate::guest::Slot::new();
            struct Component;
            impl exports::metadata::Guest for Component {
                fn describe() -> types::Info {
                    $crate::guest::info(<$plugin as $crate::Plugin>::info())
                }
                fn configure(json: String) -> Result<(), String> {
                    PLUGIN.configure(&json)
                }
            }
            impl exports::recognizer::Guest for Component {
                fn recognize(graph: types::Graph) -> Result<types::Annotations, String> {
                    $crate::call_recognizer!($kind, PLUGIN, graph)
                }
            }
            impl exports::policy::Guest for Component {
                fn schedule(
                    graph: types::Graph,
                    notes: types::Annotations,
                    now: types::Cluster,
                ) -> Result<types::Plan, String> {
                    $crate::call_policy!($kind, PLUGIN, graph, notes, now)
                }
            }
            impl exports::rewrite::Guest for Component {
                fn rewrite(
                    graph: types::Graph,
                    notes: types::Annotations,
                ) -> Result<Vec<types::Edit>, String> {
                    $crate::call_rewriter!($kind, PLUGIN, graph, notes)
                }
            }
            impl exports::hints::Guest for Component {
                fn adapt(
                    now: types::Cluster,
                    samples: Vec<types::Sample>,
                    current: Vec<types::Hint>,
                ) -> Result<Vec<types::Hint>, String> {
                    $crate::call_hint_giver!($kind, PLUGIN, now, samples, current)
                }
            }
    $crate::guest::bindings::export!(Component with_types_in $crate::guest::bindings);
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! call_recognizer {
    (recognizer, $plugin:ident, $graph:ident) => {{
        let graph = $crate::guest::graph($graph);
        let notes = $plugin.with(|plugin| $crate::Recognizer::recognize(plugin, &graph))?;
        Ok($crate::guest::annotations_out(&notes))
    }};
    ($other:ident, $plugin:ident, $graph:ident) => {{
        let _ = $graph;
        Err("this plugin is no recognizer".to_owned())
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! call_policy {
    (policy, $plugin:ident, $graph:ident, $notes:ident, $now:ident) => {{
        let graph = $crate::guest::graph($graph);
        let notes = $crate::guest::annotations_in($notes)?;
        let now = $crate::guest::cluster($now);
        $plugin
            .with(|plugin| $crate::Policy::schedule(plugin, &graph, &notes, &now))
            .map($crate::guest::plan)
    }};
    ($other:ident, $plugin:ident, $graph:ident, $notes:ident, $now:ident) => {{
        let _ = ($graph, $notes, $now);
        Err("this plugin is no policy".to_owned())
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! call_rewriter {
    (rewrite, $plugin:ident, $graph:ident, $notes:ident) => {{
        let graph = $crate::guest::graph($graph);
        let notes = $crate::guest::annotations_in($notes)?;
        $plugin
            .with(|plugin| $crate::Rewriter::rewrite(plugin, &graph, &notes))
            .map($crate::guest::edits)
    }};
    ($other:ident, $plugin:ident, $graph:ident, $notes:ident) => {{
        let _ = ($graph, $notes);
        Err("this plugin is no rewriter".to_owned())
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! call_hint_giver {
    (hints, $plugin:ident, $now:ident, $samples:ident, $current:ident) => {{
        let now = $crate::guest::cluster($now);
        let samples = $crate::guest::samples($samples);
        let current = $crate::guest::hints_in($current);
        $plugin
            .with(|plugin| $crate::HintGiver::adapt(plugin, &now, &samples, &current))
            .map($crate::guest::hints_out)
    }};
    ($other:ident, $plugin:ident, $now:ident, $samples:ident, $current:ident) => {{
        let _ = ($now, $samples, $current);
        Err("this plugin gives no hints".to_owned())
    }};
}
