//! Plugins built against `plugin-sdk/wit/v0.1`, the first release: recognizers only, with fewer
//! columns. What it lacks is left out on the way in and empty on the way out.

use genie_plugin::annotations::AnnotationColumns;
use genie_plugin::{Columns, Info};
use wasmtime::Store;
use wasmtime::component::{HasSelf, Instance, InstancePre, Linker};

use crate::since::Answer;
use crate::state::{Level, State};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../plugin-sdk/wit/v0.1",
        world: "recognizer-plugin",
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

pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    imports::types::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    imports::log::add_to_linker::<_, HasSelf<_>>(linker, |state| state)
}

/// Where the component's exports are.
pub(crate) struct Exports {
    metadata: exports::metadata::GuestIndices,
    recognizer: exports::recognizer::GuestIndices,
}

impl Exports {
    pub fn find(pre: &InstancePre<State>) -> wasmtime::Result<Exports> {
        Ok(Exports {
            metadata: exports::metadata::GuestIndices::new(pre)?,
            recognizer: exports::recognizer::GuestIndices::new(pre)?,
        })
    }

    pub fn load(&self, store: &mut Store<State>, at: &Instance) -> wasmtime::Result<Guest> {
        Ok(Guest {
            metadata: self.metadata.load(&mut *store, at)?,
            recognizer: self.recognizer.load(&mut *store, at)?,
        })
    }
}

/// The functions of one instance.
pub(crate) struct Guest {
    metadata: exports::metadata::Guest,
    recognizer: exports::recognizer::Guest,
}

impl Guest {
    pub fn describe(&self, store: &mut Store<State>) -> wasmtime::Result<Info> {
        let wit::Info { name, version, summary } = self.metadata.call_describe(store)?;
        Ok(Info { name, version, summary, provides: vec![] })
    }

    pub fn configure(&self, store: &mut Store<State>, json: &str) -> Answer<()> {
        self.metadata.call_configure(store, json)
    }

    pub fn recognize(&self, store: &mut Store<State>, c: &Columns) -> Answer<AnnotationColumns> {
        let extra: Vec<(&str, &[u64])> =
            c.extra.iter().map(|(name, column)| (name.as_str(), column.as_slice())).collect();
        let graph = wit::Graph {
            blob: &c.blob,
            symbol_ends: &c.symbol_ends,
            op: &c.op,
            module: &c.module,
            flops: &c.flops,
            bytes: &c.bytes,
            input_ends: &c.input_ends,
            input_value: &c.input_value,
            input_geometry: &c.input_geometry,
            output_ends: &c.output_ends,
            output_value: &c.output_value,
            output_geometry: &c.output_geometry,
            value_storage: &c.value_storage,
            value_producer: &c.value_producer,
            storage_bytes: &c.storage_bytes,
            storage_origin: &c.storage_origin,
            geometry_dtype: &c.geometry_dtype,
            geometry_ends: &c.geometry_ends,
            sizes: &c.sizes,
            extra: &extra,
        };
        let answer = self.recognizer.call_recognize(store, graph)?;
        Ok(answer.map(|notes| AnnotationColumns {
            blob: notes.blob,
            symbol_ends: notes.symbol_ends,
            pattern: notes.pattern,
            phase: notes.phase,
            modality: notes.modality,
            confidence: notes.confidence,
            node_ends: notes.node_ends,
            nodes: notes.nodes,
            ..AnnotationColumns::default()
        }))
    }
}
