//! The listening endpoint.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use genie_records::{Door, Driven, GREETINGS_MAX};
use genie_transport::transport::{Cause, Options, Result, TransportError};
use quinn::{Connecting, Endpoint};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::carrier::Carrier;
use crate::config::{self, Judge, Tuning};
use crate::wake::Bell;
use crate::{driven, runtime};

pub(crate) struct QuicDoor {
    bell: Arc<Bell>,
    address: SocketAddr,
    options: Options,
    judge: Judge,
    runtime: Handle,
    endpoint: Endpoint,
    visitors: Receiver<Connecting>,
    accepting: JoinHandle<()>,
}

impl QuicDoor {
    pub fn open(options: &Options) -> Result<Self> {
        let tuning = Tuning::read(options)?;
        let (crypto, judge) = config::server(options)?;
        let address = config::resolve(&options.address)?;
        let bell = Bell::new()?;
        let runtime = runtime::handle()?;
        let _inside = runtime.enter();
        let at = |error: std::io::Error| {
            TransportError::new(Cause::Io, format!("listen at {address}: {error}"))
        };
        let config = config::with_transport(crypto, tuning.transport());
        let endpoint = Endpoint::server(config, address).map_err(at)?;
        let address = endpoint.local_addr().map_err(at)?;
        let (sender, visitors) = sync_channel(GREETINGS_MAX);
        let accepting = accept(endpoint.clone(), sender, bell.clone());
        let accepting = runtime.spawn(accepting);
        let options = options.clone();
        let runtime = runtime.clone();
        Ok(QuicDoor { bell, address, options, judge, runtime, endpoint, visitors, accepting })
    }
}

/// Begins the handshakes of visitors; turns away whom there is no room for.
async fn accept(endpoint: Endpoint, visitors: SyncSender<Connecting>, bell: Arc<Bell>) {
    while let Some(incoming) = endpoint.accept().await {
        // A first packet that makes no sense is nobody's connection.
        let Ok(connecting) = incoming.accept() else { continue };
        match visitors.try_send(connecting) {
            Ok(()) | Err(TrySendError::Full(_)) => bell.ring(),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

impl Door for QuicDoor {
    type Carrier = Carrier;

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd()
    }

    fn address(&self) -> String {
        self.address.to_string()
    }

    fn next(&mut self) -> Result<Option<Driven<Carrier>>> {
        self.bell.clear();
        let Ok(connecting) = self.visitors.try_recv() else { return Ok(None) };
        // There may be more.
        self.bell.ring();
        let carrier = Carrier::accept(self.runtime.clone(), connecting, self.judge.clone())?;
        driven(carrier, &self.options, false).map(Some)
    }
}

impl Drop for QuicDoor {
    fn drop(&mut self) {
        self.accepting.abort();
        // Who knocks from now on is refused; connections that stand go on, and the socket is given
        // up with the last of them.
        let _inside = self.runtime.enter();
        self.endpoint.set_server_config(None);
    }
}
