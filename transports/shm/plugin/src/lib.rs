//! The transport between processes of one machine, as a plugin: frames over a Unix socket, payload
//! in shared memory.
//!
//! Memory that is offered as a window must lie in a memfd whose size is sealed; the descriptor goes
//! to the peer, which maps it and copies messages in: one copy, none by the kernel. A *gate* in
//! memory that both ends have mapped counts the copies under way, so that nothing is placed any
//! more when a withdrawal returns. That holds between ends that keep the rules: who was given the
//! descriptor of a memory has it mapped and can change its bytes. So only processes of one user
//! reach the socket (mode 0600), and the peer is named by the kernel as `uid/N`.
//!
//! `export_secret` derives from two random numbers that crossed the socket, which nobody else
//! reads. Certificates and `trusted` have no meaning here; there are no settings.
//!
//! Addresses are absolute paths. Start at [`Shm`]; `gates.rs` is how memory is shared.

mod carrier;
mod door;
mod gates;

use std::path::Path;
use std::time::{Duration, Instant};

use genie_records::{Course, Driven, Exchange, Reception, Setup, Tally, check_settings, nonce};
use genie_shm::connect_socket;
use genie_transport::transport::{
    Capabilities, Cause, Connection, Facts, Listener, Options, Result, Transport, TransportError,
};
use genie_transport::{LinkError, SharedMemory};

use crate::carrier::Carrier;
use crate::door::ShmDoor;
use crate::gates::Gates;

genie_transport::export_transport!(&Shm);

const NAME: &str = "shm";

/// Shared memory as a transport.
pub struct Shm;

impl Transport for Shm {
    fn facts(&self) -> Facts {
        let capabilities = Capabilities::CONTROL.with(Capabilities::DATA);
        Facts {
            name: NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: capabilities.with(Capabilities::SHARES_MEMORY),
        }
    }

    fn probe(&self, options: &Options) -> Result<String> {
        check_settings(options, NAME, &[])?;
        SharedMemory::create(4096)
            .map_err(|error| TransportError::new(Cause::Io, error.to_string()))?;
        Ok("Unix sockets and memfds of this machine".into())
    }

    fn listen(&self, options: &Options) -> Result<Box<dyn Listener>> {
        check_settings(options, NAME, &[])?;
        let door = ShmDoor::open(path_of(options)?, options)?;
        Ok(Box::new(Reception::new(door, options, Tally::new(NAME))?))
    }

    fn connect(&self, options: &Options) -> Result<Box<dyn Connection>> {
        check_settings(options, NAME, &[])?;
        let path = path_of(options)?;
        let timeout = Duration::from_millis(options.connect_ms.max(1));
        let socket = connect_socket(path, timeout).map_err(|error| failure(path, error))?;
        let carrier = Carrier::new(socket, path)?;
        Ok(Box::new(Driven::new(course(carrier, options, true)?)?))
    }
}

fn path_of(options: &Options) -> Result<&Path> {
    let path = Path::new(&options.address);
    match path.is_absolute() {
        true => Ok(path),
        false => {
            let message =
                format!("the address {:?} is not the absolute path of a socket", options.address);
            Err(TransportError::new(Cause::Invalid, message))
        }
    }
}

/// What went wrong with the socket at `path`.
pub(crate) fn failure(path: &Path, error: LinkError) -> TransportError {
    let cause = match error {
        LinkError::Closed => Cause::Closed,
        LinkError::Stranger { .. } => Cause::Refused,
        _ => Cause::Io,
    };
    TransportError::new(cause, format!("{}: {error}", path.display()))
}

/// A connection over a connected socket.
pub(crate) fn course(
    carrier: Carrier,
    options: &Options,
    initiator: bool,
) -> Result<Course<Carrier>> {
    let setup = Setup {
        transport: NAME,
        options,
        initiator,
        two_lanes: false,
        watch: true,
        sharing: Some(Box::new(Gates::new()?)),
        nonce: nonce()?,
        now: Instant::now(),
    };
    Ok(Course::new(carrier, Exchange::new(setup)))
}
