//! The engine: how components are compiled and stopped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wasmtime::{Config, Engine, OptLevel, RegallocAlgorithm};

/// How often a running guest looks at its deadline.
const TICK: Duration = Duration::from_millis(1);
/// The ticker goes on this long after the last call, so that calls in a row need not wake it.
const LINGER: Duration = Duration::from_millis(50);

/// Components above this size bring an interpreter along. Where loading may not take
/// [`LARGE_LOAD`], they are compiled for quick loading instead of quick running.
const LARGE_COMPONENT_BYTES: usize = 6 << 20;
const LARGE_LOAD: Duration = Duration::from_secs(20);

/// An engine that runs what [`precompile`] made.
pub(crate) fn engine(stack_bytes: usize) -> wasmtime::Result<Engine> {
    Engine::new(config(stack_bytes).cranelift_opt_level(OptLevel::Speed))
}

/// Compiles a component for [`engine`] of the same stack.
pub(crate) fn precompile(
    component: &[u8],
    stack_bytes: usize,
    time: Duration,
) -> wasmtime::Result<Vec<u8>> {
    let mut config = config(stack_bytes);
    match component.len() > LARGE_COMPONENT_BYTES && time < LARGE_LOAD {
        false => config.cranelift_opt_level(OptLevel::Speed),
        true => config
            .cranelift_opt_level(OptLevel::None)
            .cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass),
    };
    Engine::new(&config)?.precompile_component(component)
}

fn config(stack_bytes: usize) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).max_wasm_stack(stack_bytes).generate_address_map(false);
    config
}

/// What compiled code depends on besides the component.
pub(crate) fn compatibility(engine: &Engine) -> [u8; 32] {
    struct Blake(blake3::Hasher);
    impl std::hash::Hasher for Blake {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Blake(blake3::Hasher::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
    *hasher.0.finalize().as_bytes()
}

/// A thread that moves the engine's epoch while guests run, and sleeps otherwise. Guests that
/// see a new epoch look at a clock themselves, so a late tick makes no deadline longer than the
/// lateness.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    engine: Engine,
    running: AtomicUsize,
    asleep: AtomicBool,
    stop: Mutex<bool>,
    wake: Condvar,
}

impl Ticker {
    pub fn start(engine: Engine) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared {
            engine,
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            stop: Mutex::new(false),
            wake: Condvar::new(),
        });
        let ticking = shared.clone();
        let thread = std::thread::Builder::new()
            .name("plugin-ticker".into())
            .stack_size(128 << 10)
            .spawn(move || ticking.run())?;
        Ok(Ticker { shared, thread: Some(thread) })
    }

    /// Ticks until the guard goes.
    pub fn running(&self) -> RunningGuard<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            let _stop = self.shared.stop.lock().unwrap_or_else(|error| error.into_inner());
            self.shared.wake.notify_one();
        }
        RunningGuard(&self.shared)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        *self.shared.stop.lock().unwrap_or_else(|error| error.into_inner()) = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) struct RunningGuard<'a>(&'a Shared);

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn run(&self) {
        let mut stop = self.stop.lock().unwrap_or_else(|error| error.into_inner());
        let mut needed_at = Instant::now();
        while !*stop {
            let is_needed = || self.running.load(Ordering::SeqCst) > 0;
            if is_needed() {
                needed_at = Instant::now();
            }
            if needed_at.elapsed() < LINGER {
                let waited = self.wake.wait_timeout(stop, TICK);
                stop = waited.unwrap_or_else(|error| error.into_inner()).0;
                self.engine.increment_epoch();
                continue;
            }
            // A call that begins now sees `asleep` and notifies, or is seen here.
            self.asleep.store(true, Ordering::SeqCst);
            while !is_needed() && !*stop {
                stop = self.wake.wait(stop).unwrap_or_else(|error| error.into_inner());
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
    }
}
