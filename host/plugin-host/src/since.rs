//! Plugins built against releases of the interface that know every kind of plugin.
//!
//! What differs from release to release is the columns of a graph: an older plugin sees those of
//! its own. [`v0_2`] and [`v0_3`] are the same text over different bindings.

/// What a call gives: the guest's result, or the reason why it trapped.
pub(crate) type Answer<T> = wasmtime::Result<Result<T, String>>;

macro_rules! since {
    ($path:tt, $($column:ident),*) => {
        use genie_plugin::annotations::AnnotationColumns;
        use genie_plugin::{Annotations, Cluster, Columns, Directive, Edit, Hint, Info, Sample};
        use wasmtime::Store;
        use wasmtime::component::{HasSelf, Instance, InstancePre, Linker};

        use crate::check::PlanColumns;
        use crate::manifest::{Capability, Kind};
        use crate::since::Answer;
        use crate::state::{Level, State};

        mod bindings {
            wasmtime::component::bindgen!({
                path: $path,
                world: "plugin",
                ownership: Borrowing { duplicate_if_necessary: true },
            });
        }

        use bindings::exports::genie::plugin as exports;
        use bindings::genie::plugin as imports;
        use imports::types as wit;

        impl imports::types::Host for State {}

        impl imports::log::Host for State {
            fn write(&mut self, level: imports::log::Level, message: String) {
                let level = match level {
                    imports::log::Level::Debug => Level::Debug,
                    imports::log::Level::Info => Level::Info,
                    imports::log::Level::Warn => Level::Warn,
                };
                self.log(level, &message);
            }
        }

        impl imports::clock::Host for State {
            fn now_us(&mut self) -> u64 {
                State::now_us(self)
            }
        }

        /// Offers what was granted, and nothing else.
        pub(crate) fn link(linker: &mut Linker<State>, grants: &[Capability]) -> wasmtime::Result<()> {
            imports::types::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
            imports::log::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
            if grants.contains(&Capability::Clock) {
                imports::clock::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
            }
            Ok(())
        }

        /// Where the component's exports are.
        #[derive(Clone)]
        pub(crate) struct Exports {
            metadata: exports::metadata::GuestIndices,
            recognizer: Option<exports::recognizer::GuestIndices>,
            policy: Option<exports::policy::GuestIndices>,
            rewrite: Option<exports::rewrite::GuestIndices>,
            hints: Option<exports::hints::GuestIndices>,
        }

        impl Exports {
            /// Finds what the kinds need.
            pub fn find(pre: &InstancePre<State>, kinds: &[Kind]) -> wasmtime::Result<Exports> {
                let is = |kind| kinds.contains(&kind);
                Ok(Exports {
                    metadata: exports::metadata::GuestIndices::new(pre)?,
                    recognizer: is(Kind::Recognizer)
                        .then(|| exports::recognizer::GuestIndices::new(pre))
                        .transpose()?,
                    policy: is(Kind::Policy)
                        .then(|| exports::policy::GuestIndices::new(pre))
                        .transpose()?,
                    rewrite: is(Kind::Rewrite)
                        .then(|| exports::rewrite::GuestIndices::new(pre))
                        .transpose()?,
                    hints: is(Kind::Hints).then(|| exports::hints::GuestIndices::new(pre)).transpose()?,
                })
            }

            /// Checks the types of what was found, in an instance.
            pub fn load(&self, store: &mut Store<State>, at: &Instance) -> wasmtime::Result<Guest> {
                Ok(Guest {
                    metadata: self.metadata.load(&mut *store, at)?,
                    recognizer: self.recognizer.as_ref().map(|i| i.load(&mut *store, at)).transpose()?,
                    policy: self.policy.as_ref().map(|i| i.load(&mut *store, at)).transpose()?,
                    rewrite: self.rewrite.as_ref().map(|i| i.load(&mut *store, at)).transpose()?,
                    hints: self.hints.as_ref().map(|i| i.load(&mut *store, at)).transpose()?,
                })
            }
        }

        /// The functions of one instance.
        pub(crate) struct Guest {
            metadata: exports::metadata::Guest,
            recognizer: Option<exports::recognizer::Guest>,
            policy: Option<exports::policy::Guest>,
            rewrite: Option<exports::rewrite::Guest>,
            hints: Option<exports::hints::Guest>,
        }

        fn no_such_kind<T>() -> Answer<T> {
            Ok(Err("the plugin's manifest does not name this kind".to_owned()))
        }

        impl Guest {
            pub fn describe(&self, store: &mut Store<State>) -> wasmtime::Result<Info> {
                let info = self.metadata.call_describe(store)?;
                Ok(Info {
                    name: info.name,
                    version: info.version,
                    summary: info.summary,
                    provides: info.provides,
                })
            }

            pub fn configure(&self, store: &mut Store<State>, json: &str) -> Answer<()> {
                self.metadata.call_configure(store, json)
            }

            pub fn recognize(
                &self,
                store: &mut Store<State>,
                graph: &Columns,
            ) -> Answer<AnnotationColumns> {
                let Some(guest) = &self.recognizer else { return no_such_kind() };
                let extra = extra(graph);
                let answer = guest.call_recognize(store, graph_param(graph, &extra))?;
                Ok(answer.map(annotation_columns))
            }

            pub fn schedule(
                &self,
                store: &mut Store<State>,
                graph: &Columns,
                notes: &Annotations,
                now: &Cluster,
            ) -> Answer<PlanColumns> {
                let Some(guest) = &self.policy else { return no_such_kind() };
                let (extra, notes) = (extra(graph), AnnotationColumns::from(notes));
                let (devices, links) = (devices(now), links(now));
                let cluster = wit::Cluster { devices: &devices, links: &links, resident: &now.resident };
                let graph = graph_param(graph, &extra);
                let answer = guest.call_schedule(store, graph, annotations_param(&notes), cluster)?;
                Ok(answer.map(plan_columns))
            }

            pub fn rewrite(
                &self,
                store: &mut Store<State>,
                graph: &Columns,
                notes: &Annotations,
            ) -> Answer<Vec<Edit>> {
                let Some(guest) = &self.rewrite else { return no_such_kind() };
                let (extra, notes) = (extra(graph), AnnotationColumns::from(notes));
                let graph = graph_param(graph, &extra);
                let answer = guest.call_rewrite(store, graph, annotations_param(&notes))?;
                Ok(answer.map(|edits| edits.into_iter().map(edit).collect()))
            }

            pub fn adapt(
                &self,
                store: &mut Store<State>,
                now: &Cluster,
                samples: &[Sample],
                current: &[Hint],
            ) -> Answer<Vec<Hint>> {
                let Some(guest) = &self.hints else { return no_such_kind() };
                let (devices, links) = (devices(now), links(now));
                let cluster = wit::Cluster { devices: &devices, links: &links, resident: &now.resident };
                let sample = |s: &Sample| wit::Sample {
                    link: s.link,
                    rtt_us: s.rtt_us,
                    bytes_per_s: s.bytes_per_s,
                    queued_bytes: s.queued_bytes,
                };
                let samples: Vec<wit::Sample> = samples.iter().map(sample).collect();
                let current: Vec<wit::HintParam> = current
                    .iter()
                    .map(|h| wit::HintParam { link: h.link, key: &h.key, value: h.value })
                    .collect();
                let answer = guest.call_adapt(store, cluster, &samples, &current)?;
                Ok(answer.map(|hints| {
                    let hint = |h: wit::HintResult| Hint { link: h.link, key: h.key, value: h.value };
                    hints.into_iter().map(hint).collect()
                }))
            }
        }

        fn extra(graph: &Columns) -> Vec<(&str, &[u64])> {
            graph.extra.iter().map(|(name, column)| (name.as_str(), column.as_slice())).collect()
        }

        /// The columns, borrowed.
        fn graph_param<'a>(c: &'a Columns, extra: &'a [(&'a str, &'a [u64])]) -> wit::Graph<'a> {
            wit::Graph {
                blob: &c.blob,
                symbol_ends: &c.symbol_ends,
                op: &c.op,
                module: &c.module,
                class: &c.class,
                mark: &c.mark,
                stage: &c.stage,
                segment: &c.segment,
                flops: &c.flops,
                bytes: &c.bytes,
                input_ends: &c.input_ends,
                input_value: &c.input_value,
                input_geometry: &c.input_geometry,
                input_offset: &c.input_offset,
                output_ends: &c.output_ends,
                output_value: &c.output_value,
                output_geometry: &c.output_geometry,
                output_offset: &c.output_offset,
                arg_ends: &c.arg_ends,
                arg_kind: &c.arg_kind,
                arg_bits: &c.arg_bits,
                value_storage: &c.value_storage,
                value_producer: &c.value_producer,
                storage_bytes: &c.storage_bytes,
                storage_origin: &c.storage_origin,
                storage_alive: &c.storage_alive,
                geometry_dtype: &c.geometry_dtype,
                geometry_ends: &c.geometry_ends,
                sizes: &c.sizes,
                strides: &c.strides,
                $($column: &c.$column,)*
                extra,
            }
        }

        fn annotations_param(c: &AnnotationColumns) -> wit::AnnotationsParam<'_> {
            wit::AnnotationsParam {
                blob: &c.blob,
                symbol_ends: &c.symbol_ends,
                workload: &c.workload,
                workload_confidence: &c.workload_confidence,
                pattern: &c.pattern,
                phase: &c.phase,
                modality: &c.modality,
                confidence: &c.confidence,
                node_ends: &c.node_ends,
                nodes: &c.nodes,
                storage: &c.storage,
                residency: &c.residency,
                residency_confidence: &c.residency_confidence,
                attribute_key: &c.attribute_key,
                attribute_value: &c.attribute_value,
            }
        }

        fn annotation_columns(notes: wit::AnnotationsResult) -> AnnotationColumns {
            AnnotationColumns {
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
            }
        }

        fn devices(cluster: &Cluster) -> Vec<wit::Device<'_>> {
            fn device(d: &genie_plugin::Device) -> wit::Device<'_> {
                wit::Device {
                    name: &d.name,
                    node: &d.node,
                    memory_bytes: d.memory_bytes,
                    memory_free_bytes: d.memory_free_bytes,
                    flops_per_s: d.flops_per_s,
                    memory_bytes_per_s: d.memory_bytes_per_s,
                }
            }
            cluster.devices.iter().map(device).collect()
        }

        fn links(cluster: &Cluster) -> Vec<wit::Link> {
            let link = |l: &genie_plugin::Link| wit::Link {
                from: l.from,
                to: l.to,
                bytes_per_s: l.bytes_per_s,
                rtt_us: l.rtt_us,
            };
            cluster.links.iter().map(link).collect()
        }

        fn plan_columns(plan: wit::Plan) -> PlanColumns {
            let directive = |d: wit::Directive| {
                let wit::Directive { kind, storage, device, why } = d;
                Directive { kind, storage, device, why }
            };
            PlanColumns {
                region_ends: plan.region_ends,
                region_nodes: plan.region_nodes,
                region_device: plan.region_device,
                region_pipeline: plan.region_pipeline,
                directives: plan.directives.into_iter().map(directive).collect(),
                transfer_order: plan.transfer_order,
                why: plan.why,
            }
        }

        fn edit(edit: wit::Edit) -> Edit {
            match edit {
                wit::Edit::DropDead(node) => Edit::DropDead { node },
                wit::Edit::MergeCommon((kept, dropped)) => Edit::MergeCommon { kept, dropped },
                wit::Edit::Recompute((node, consumer)) => Edit::Recompute { node, consumer },
                wit::Edit::MoveBefore((node, before)) => Edit::MoveBefore { node, before },
            }
        }
    };
}

pub(crate) mod v0_2 {
    since!("../../plugin-sdk/wit/v0.2",);
}

/// Nodes know their model, and values whether they cross to or from another.
pub(crate) mod v0_3 {
    since!("../../plugin-sdk/wit/v0.3", model, value_edge);
}
