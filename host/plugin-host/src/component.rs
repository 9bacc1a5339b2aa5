//! A compiled component and its instances.

use std::sync::Arc;
use std::time::Duration;

use genie_plugin::annotations::AnnotationColumns;
use genie_plugin::{Annotations, Cluster, Columns, Edit, Hint, Info, Sample};
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Engine, Store};

use crate::check::PlanColumns;
use crate::limits::Limits;
use crate::manifest::{Capability, Kind, Manifest};
use crate::since::{self, Answer};
use crate::since_v0_1;
use crate::state::{State, on_epoch};

const PACKAGE: &str = "genie:plugin/";
const METADATA: &str = "genie:plugin/metadata@";
/// Handles a component may hold; the interface has none.
const HANDLES_MAX: usize = 1_000;

/// What a component says of itself before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The version of the interface, such as `0.3.0`; empty where it exports none.
    pub wit: String,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

impl Shape {
    pub(crate) fn of(engine: &Engine, component: &Component) -> Shape {
        let kind = component.component_type();
        let imports: Vec<String> = kind.imports(engine).map(|(name, _)| name.to_owned()).collect();
        let exports: Vec<String> = kind.exports(engine).map(|(name, _)| name.to_owned()).collect();
        let wit = exports.iter().find_map(|name| name.strip_prefix(METADATA)).unwrap_or_default();
        Shape { wit: wit.to_owned(), imports, exports }
    }
}

enum Exports {
    V0_1(since_v0_1::Exports),
    V0_2(since::v0_2::Exports),
    V0_3(since::v0_3::Exports),
}

/// A component that links, ready to be instantiated.
pub(crate) struct Prepared {
    pre: InstancePre<State>,
    exports: Exports,
    config: String,
    plugin: Arc<str>,
    limits: Arc<Limits>,
}

impl Prepared {
    /// Links a component as its manifest says; an error says why it is refused.
    pub fn new(
        engine: &Engine,
        component: &Component,
        manifest: &Manifest,
        grants: &[Capability],
        limits: Arc<Limits>,
    ) -> Result<Prepared, String> {
        let shape = Shape::of(engine, component);
        let granted: Vec<Capability> =
            grants.iter().copied().filter(|grant| manifest.asks_for(*grant)).collect();
        check_imports(&shape, manifest, &granted)?;
        let mut linker = Linker::new(engine);
        let minor = shape.wit.rsplit_once('.').map_or("", |(minor, _)| minor);
        let (pre, exports) = match minor {
            "0.3" => {
                since::v0_3::link(&mut linker, &granted).map_err(misfit)?;
                let pre = linker.instantiate_pre(component).map_err(misfit)?;
                let exports = since::v0_3::Exports::find(&pre, &manifest.kinds).map_err(misfit)?;
                (pre, Exports::V0_3(exports))
            }
            "0.2" => {
                since::v0_2::link(&mut linker, &granted).map_err(misfit)?;
                let pre = linker.instantiate_pre(component).map_err(misfit)?;
                let exports = since::v0_2::Exports::find(&pre, &manifest.kinds).map_err(misfit)?;
                (pre, Exports::V0_2(exports))
            }
            "0.1" if manifest.kinds == [Kind::Recognizer] => {
                since_v0_1::link(&mut linker).map_err(misfit)?;
                let pre = linker.instantiate_pre(component).map_err(misfit)?;
                let exports = since_v0_1::Exports::find(&pre).map_err(misfit)?;
                (pre, Exports::V0_1(exports))
            }
            "0.1" => return Err("version 0.1 of the interface knows recognizers only".into()),
            "" => return Err(format!("it exports no {METADATA}x.y.z, so it is no plugin")),
            _ => {
                return Err(format!(
                    "it is built for genie:plugin@{}; this host knows 0.1, 0.2 and 0.3: build it \
                     with an SDK of these, or take a newer host",
                    shape.wit
                ));
            }
        };
        let (config, plugin) = (manifest.config_json(), Arc::from(manifest.name.as_str()));
        Ok(Prepared { pre, exports, config, plugin, limits })
    }

    /// A fresh, configured instance.
    pub fn start(&self, limit: Duration) -> Result<Running, Failure> {
        let mut store =
            Store::new(self.pre.engine(), State::new(self.plugin.clone(), self.limits.clone()));
        store.limiter(|state| state);
        store.epoch_deadline_callback(on_epoch);
        store.set_hostcall_fuel(self.limits.output_bytes);
        store.set_max_component_handles(HANDLES_MAX);
        store.data_mut().begin(limit);
        store.set_epoch_deadline(1);
        let instance = self.pre.instantiate(&mut store);
        let instance = instance.map_err(|error| Failure::of(error, &store))?;
        let guest = match &self.exports {
            Exports::V0_1(exports) => exports.load(&mut store, &instance).map(Guest::V0_1),
            Exports::V0_2(exports) => exports.load(&mut store, &instance).map(Guest::V0_2),
            Exports::V0_3(exports) => exports.load(&mut store, &instance).map(Guest::V0_3),
        };
        let guest = guest.map_err(|error| Failure::Said(misfit(error)))?;
        let mut running = Running { store, guest };
        let configured = match &running.guest {
            Guest::V0_1(guest) => guest.configure(&mut running.store, &self.config),
            Guest::V0_2(guest) => guest.configure(&mut running.store, &self.config),
            Guest::V0_3(guest) => guest.configure(&mut running.store, &self.config),
        };
        running.store.data_mut().end();
        match configured {
            Ok(Ok(())) => Ok(running),
            Ok(Err(message)) => Err(Failure::Said(message)),
            Err(error) => Err(Failure::of(error, &running.store)),
        }
    }
}

fn misfit(error: wasmtime::Error) -> String {
    format!("it does not fit the interface: {error:#}")
}

fn check_imports(shape: &Shape, manifest: &Manifest, granted: &[Capability]) -> Result<(), String> {
    for import in &shape.imports {
        let name = import.strip_prefix(PACKAGE).map(|name| name.split('@').next().unwrap_or(name));
        match name {
            Some("types" | "log") => {}
            Some("clock") if granted.contains(&Capability::Clock) => {}
            Some("clock") if manifest.asks_for(Capability::Clock) => {
                return Err("it asks for the capability `clock`, which this host does not grant; \
                            start the host with --grant clock"
                    .into());
            }
            Some("clock") => {
                return Err("it uses the clock but its manifest does not ask for it; write \
                            `capabilities = [\"clock\"]`"
                    .into());
            }
            _ => {
                return Err(format!(
                    "it wants {import}, which plugins do not get; build it for \
                     wasm32-unknown-unknown, without WASI"
                ));
            }
        }
    }
    Ok(())
}

enum Guest {
    V0_1(since_v0_1::Guest),
    V0_2(since::v0_2::Guest),
    V0_3(since::v0_3::Guest),
}

/// Why an instance cannot go on; it is thrown away.
pub(crate) enum Failure {
    Overrun(crate::state::Overrun),
    Memory,
    Trap(String),
    /// The plugin's own words.
    Said(String),
}

impl Failure {
    fn of(error: wasmtime::Error, store: &Store<State>) -> Failure {
        match error.downcast::<crate::state::Overrun>() {
            Ok(overrun) => Failure::Overrun(overrun),
            Err(_) if store.data().memory_denied => Failure::Memory,
            Err(error) => Failure::Trap(error.root_cause().to_string()),
        }
    }
}

/// One instance.
pub(crate) struct Running {
    store: Store<State>,
    guest: Guest,
}

fn since_0_2<T>() -> Answer<T> {
    Ok(Err("version 0.1 of the interface knows recognizers only".to_owned()))
}

impl Running {
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    pub fn describe(&mut self, limit: Duration) -> Result<Info, Failure> {
        self.call(limit, |guest, store| match guest {
            Guest::V0_1(guest) => guest.describe(store).map(Ok),
            Guest::V0_2(guest) => guest.describe(store).map(Ok),
            Guest::V0_3(guest) => guest.describe(store).map(Ok),
        })
        .and_then(|answer| answer.map_err(Failure::Said))
    }

    pub fn recognize(
        &mut self,
        limit: Duration,
        graph: &Columns,
    ) -> Result<Result<AnnotationColumns, String>, Failure> {
        self.call(limit, |guest, store| match guest {
            Guest::V0_1(guest) => guest.recognize(store, graph),
            Guest::V0_2(guest) => guest.recognize(store, graph),
            Guest::V0_3(guest) => guest.recognize(store, graph),
        })
    }

    pub fn schedule(
        &mut self,
        limit: Duration,
        graph: &Columns,
        notes: &Annotations,
        now: &Cluster,
    ) -> Result<Result<PlanColumns, String>, Failure> {
        self.call(limit, |guest, store| match guest {
            Guest::V0_1(_) => since_0_2(),
            Guest::V0_2(guest) => guest.schedule(store, graph, notes, now),
            Guest::V0_3(guest) => guest.schedule(store, graph, notes, now),
        })
    }

    pub fn rewrite(
        &mut self,
        limit: Duration,
        graph: &Columns,
        notes: &Annotations,
    ) -> Result<Result<Vec<Edit>, String>, Failure> {
        self.call(limit, |guest, store| match guest {
            Guest::V0_1(_) => since_0_2(),
            Guest::V0_2(guest) => guest.rewrite(store, graph, notes),
            Guest::V0_3(guest) => guest.rewrite(store, graph, notes),
        })
    }

    pub fn adapt(
        &mut self,
        limit: Duration,
        now: &Cluster,
        samples: &[Sample],
        current: &[Hint],
    ) -> Result<Result<Vec<Hint>, String>, Failure> {
        self.call(limit, |guest, store| match guest {
            Guest::V0_1(_) => since_0_2(),
            Guest::V0_2(guest) => guest.adapt(store, now, samples, current),
            Guest::V0_3(guest) => guest.adapt(store, now, samples, current),
        })
    }

    fn call<T>(
        &mut self,
        limit: Duration,
        call: impl FnOnce(&Guest, &mut Store<State>) -> Answer<T>,
    ) -> Result<Result<T, String>, Failure> {
        self.store.data_mut().begin(limit);
        self.store.set_epoch_deadline(1);
        let answer = call(&self.guest, &mut self.store);
        self.store.data_mut().end();
        answer.map_err(|error| Failure::of(error, &self.store))
    }
}
