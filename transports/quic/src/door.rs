//! The listening endpoint.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use genie_records::{Course, Door, Tally, io};
use genie_transport::transport::{Cause, Options, Result, TransportError};
use quinn::{Endpoint, EndpointConfig, TokioRuntime};
use rustix::net::sockopt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::carrier::Carrier;
use crate::config::{self, Tuning};
use crate::handshakes::{Arrival, Handshakes};
use crate::ids::RandomIds;
use crate::wake::Bell;
use crate::{course, runtime};

/// Datagrams that wait for quinn's thread: in a burst of strangers' the kernel drops friends' too
/// when it is full. The kernel allows `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;

pub(crate) struct QuicDoor {
    bell: Arc<Bell>,
    address: SocketAddr,
    options: Options,
    runtime: Handle,
    endpoint: Endpoint,
    handshakes: Arc<Handshakes>,
    arrivals: Receiver<Arrival>,
    taking: JoinHandle<()>,
}

impl QuicDoor {
    pub fn open(options: &Options, tally: Arc<Tally>) -> Result<Self> {
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
        let socket = std::net::UdpSocket::bind(address).map_err(at)?;
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)
            .map_err(io("size a receive buffer"))?;
        let mut ids = EndpointConfig::default();
        ids.cid_generator(|| Box::new(RandomIds));
        let endpoint =
            Endpoint::new(ids, Some(config), socket, Arc::new(TokioRuntime)).map_err(at)?;
        let address = endpoint.local_addr().map_err(at)?;
        let patience = Duration::from_millis(options.connect_ms);
        let (handshakes, arrivals) = Handshakes::new(judge, patience, tally, bell.clone());
        let taking = runtime.spawn(handshakes.clone().take_from(endpoint.clone()));
        let options = options.clone();
        let runtime = runtime.clone();
        Ok(QuicDoor { bell, address, options, runtime, endpoint, handshakes, arrivals, taking })
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

    fn next(&mut self) -> Result<Option<Course<Carrier>>> {
        self.bell.clear();
        let Ok(arrival) = self.arrivals.try_recv() else { return Ok(None) };
        // There may be more.
        self.bell.ring();
        let carrier = Carrier::accept(self.runtime.clone(), arrival?, self.options.trusted)?;
        course(carrier, &self.options, false).map(Some)
    }
}

impl Drop for QuicDoor {
    fn drop(&mut self) {
        self.taking.abort();
        self.handshakes.end_all();
        // Who knocks from now on is refused; connections that stand go on, and the socket is given
        // up with the last of them.
        let _inside = self.runtime.enter();
        self.endpoint.set_server_config(None);
    }
}
