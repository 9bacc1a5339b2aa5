//! Loads plugins again when their files change.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::host::{PluginHost, Rescan};

/// How often the directory is looked at, by default.
pub const WATCH_EVERY: Duration = Duration::from_millis(300);

/// A thread that looks at a host's directory every so often, and rescans once a change has
/// settled: two looks in a row see the same. It ends with this value.
pub struct Watch {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// `seen` is told of every rescan that changed something.
    pub fn start(
        host: Arc<PluginHost>,
        every: Duration,
        mut seen: impl FnMut(Rescan) + Send + 'static,
    ) -> std::io::Result<Watch> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = stop.clone();
        // A rescan starts instances; a thread of the usual size has stack for guests.
        let thread = std::thread::Builder::new().name("plugin-watch".into()).spawn(move || {
            let (mut last, mut loaded) = (None, None);
            let mut stop = stopped.0.lock().unwrap_or_else(|error| error.into_inner());
            while !*stop {
                let waited = stopped.1.wait_timeout(stop, every);
                stop = waited.unwrap_or_else(|error| error.into_inner()).0;
                let now = Some(host.fingerprint());
                if now != loaded && now == last {
                    // What changes during the rescan is seen at the next look.
                    let rescan = host.rescan();
                    if rescan != Rescan::default() {
                        seen(rescan);
                    }
                    loaded = now;
                }
                last = now;
            }
        })?;
        Ok(Watch { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(|error| error.into_inner()) = true;
        self.stop.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
