//! The thread that quinn runs on.

use std::sync::{Mutex, PoisonError};

use genie_transport::transport::{Cause, Result, TransportError};
use tokio::runtime::{Builder, Handle};

static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);

/// The process's runtime, which begins with its first use and never ends.
pub(crate) fn handle() -> Result<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*runtime {
        return Ok(handle.clone());
    }
    let failed = |error: std::io::Error| {
        TransportError::new(Cause::Io, format!("start the thread genie-quic: {error}"))
    };
    let made = Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
    let handle = made.handle().clone();
    let forever = move || made.block_on(std::future::pending::<()>());
    std::thread::Builder::new().name("genie-quic".into()).spawn(forever).map_err(failed)?;
    *runtime = Some(handle.clone());
    Ok(handle)
}
