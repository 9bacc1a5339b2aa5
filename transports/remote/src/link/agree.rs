//! How the two ends agree on a way for payloads: hello, welcome, and one attempt after another.
//!
//! The host chooses and asks (`Open`), the node listens (`Listening`) or says that its data connection
//! failed (`Gone`). Before either end tells what arrived, it has ended the old connection, so that
//! nothing is placed in between.

use std::collections::VecDeque;
use std::sync::Arc;

use genie_transport::transport::{Cause, Connection, Options, Transport, TransportError};

use super::{RemoteLink, Role, decode, protocol, shortened, watching};
use crate::data::Path;
use crate::message::{
    self, Arrived, Gone, Hello, LINK_VERSION, LINK_VERSION_OLDEST, Listening, OVER_CONTROL, Open,
    TRANSPORTS_MAX, Welcome,
};

/// Attempts to open a data connection on one link.
const ATTEMPTS_MAX: u32 = 64;

impl RemoteLink {
    pub(super) fn message(&mut self, kind: u8, body: &[u8]) -> Result<(), TransportError> {
        match (self.role, kind) {
            (Role::Node, message::HELLO) => self.hello(decode(body)?),
            (Role::Node, message::OPEN) => self.open(decode(body)?),
            (Role::Host, message::WELCOME) => self.welcomed(decode(body)?),
            (Role::Host, message::LISTENING) => self.listening(decode(body)?),
            (Role::Host, message::GONE) => {
                let gone: Gone = decode(body)?;
                match gone.attempt == self.attempt {
                    true => self.try_next(shortened(gone.reason)),
                    false => Ok(()),
                }
            }
            _ => Err(protocol(format!("the peer sent a message of the unexpected kind {kind}"))),
        }
    }

    /// On the node: the host introduces itself.
    fn hello(&mut self, hello: Hello) -> Result<(), TransportError> {
        let version = hello.version.min(LINK_VERSION);
        let software = self.settings.software.clone();
        let mut welcome = Welcome { version, software, ..Welcome::default() };
        if version < LINK_VERSION_OLDEST || version < hello.oldest {
            welcome.refused = format!(
                "{} speaks versions {LINK_VERSION_OLDEST} to {LINK_VERSION} of the link protocol, \
                 {} speaks {} to {}; install the same version of Genie on both machines",
                self.settings.software, hello.software, hello.oldest, hello.version
            );
        } else {
            let name = |transport: &Arc<dyn Transport>| transport.facts().name;
            welcome.transports = self.settings.transports.iter().map(name).collect();
            welcome.instance = self.settings.instance;
        }
        self.send(message::WELCOME, &welcome)
    }

    /// On the host: the node answered.
    fn welcomed(&mut self, welcome: Welcome) -> Result<(), TransportError> {
        if !welcome.refused.is_empty() {
            return Err(TransportError::new(Cause::Version, shortened(welcome.refused)));
        }
        if !(LINK_VERSION_OLDEST..=LINK_VERSION).contains(&welcome.version) {
            let message = format!(
                "the node ({}) answered in version {} of the link protocol, this host speaks \
                 {LINK_VERSION_OLDEST} to {LINK_VERSION}; install the same version of Genie on \
                 both machines",
                shortened(welcome.software),
                welcome.version
            );
            return Err(TransportError::new(Cause::Version, message));
        }
        if self.welcome.is_some() || welcome.transports.len() > TRANSPORTS_MAX {
            return Err(protocol("the node's welcome makes no sense".to_owned()));
        }
        let ours = self.settings.transports.iter().map(|transport| transport.facts().name);
        let mut ours: VecDeque<String> = ours.collect();
        // Only what would have been the strongest is worth a word.
        let strongest = ours.front().filter(|name| **name != self.control_name);
        self.not = strongest
            .filter(|name| !welcome.transports.contains(name))
            .map(|name| (name.clone(), "the node has no such transport".to_owned()));
        ours.retain(|name| welcome.transports.contains(name));
        self.candidates = ours;
        self.welcome = Some(welcome);
        match self.path {
            Path::Shared => Ok(()),
            _ => self.ask(),
        }
    }

    /// On the host: asks for the next candidate, the control connection at last.
    fn ask(&mut self) -> Result<(), TransportError> {
        self.drop_data();
        let next = self.candidates.pop_front();
        // The control connection's own transport, or nothing is left: the same connection.
        self.data_name =
            next.filter(|name| *name != self.control_name).unwrap_or(OVER_CONTROL.to_owned());
        if let Some((name, reason)) = self.not.take() {
            let next = match self.data_name.as_str() {
                OVER_CONTROL => self.control_name.as_str(),
                name => name,
            };
            tracing::warn!("tensors go over {next}, not over {name}: {reason}");
            self.downgraded = Some((name, reason));
        }
        self.attempt += 1;
        if self.attempt > ATTEMPTS_MAX {
            return Err(protocol("the data connection failed too often".to_owned()));
        }
        let open = Open {
            attempt: self.attempt,
            transport: self.data_name.clone(),
            connection: self.data_options("")?.connection,
            arrived: Some(Arrived::from(&self.arrivals)),
        };
        self.path = Path::Asked;
        self.send(message::OPEN, &open)
    }

    /// On the host: what was tried does not work.
    fn try_next(&mut self, reason: String) -> Result<(), TransportError> {
        if matches!(self.path, Path::OverControl | Path::Shared) {
            return Err(protocol(format!("payloads cannot be moved: {reason}")));
        }
        self.not = Some((self.data_name.clone(), reason));
        self.ask()
    }

    /// On the host: the node listens, or cannot.
    fn listening(&mut self, listening: Listening) -> Result<(), TransportError> {
        if listening.attempt != self.attempt || !matches!(self.path, Path::Asked) {
            return Ok(());
        }
        if !listening.refused.is_empty() {
            return self.try_next(shortened(listening.refused));
        }
        self.posted.start_again(&listening.arrived.unwrap_or_default());
        if self.data_name == OVER_CONTROL {
            return self.open_over_control();
        }
        let address = self.resolve(&listening.address);
        let options = self.data_options(&address)?;
        let connected = match self.transport() {
            Some(transport) => transport.connect(&options),
            None => return Err(protocol(format!("{} vanished", self.data_name))),
        };
        match connected.and_then(|data| self.watch_data(data)) {
            Ok(data) => {
                self.path = Path::Connecting(data);
                Ok(())
            }
            Err(error) => self.try_next(error.message),
        }
    }

    /// On the node: the host wants a data connection.
    fn open(&mut self, open: Open) -> Result<(), TransportError> {
        if open.attempt <= self.attempt || open.attempt > ATTEMPTS_MAX {
            return Err(protocol("attempts to open a data connection must count up".to_owned()));
        }
        // First the old connection ends, then it is told what arrived: nothing is placed between.
        self.drop_data();
        self.attempt = open.attempt;
        self.data_name = open.transport;
        self.posted.start_again(&open.arrived.unwrap_or_default());
        let mut answer = Listening {
            attempt: open.attempt,
            arrived: Some(Arrived::from(&self.arrivals)),
            ..Listening::default()
        };
        if self.data_name == OVER_CONTROL {
            self.send(message::LISTENING, &answer)?;
            return self.open_over_control();
        }
        match self.listen() {
            Ok(address) => answer.address = address,
            Err(error) => answer.refused = error.message,
        }
        self.send(message::LISTENING, &answer)
    }

    fn listen(&mut self) -> Result<String, TransportError> {
        let options = self.data_options(&self.settings.data_address)?;
        let transport = self.transport().ok_or_else(|| {
            let message = format!("this node has no transport {:?}", shortened(&self.data_name));
            TransportError::new(Cause::Unsupported, message)
        })?;
        let listener = transport.listen(&options)?;
        self.watch.add(listener.event_fd()).map_err(watching)?;
        let address = listener.address();
        self.path = Path::Listening(listener);
        Ok(address)
    }

    fn open_over_control(&mut self) -> Result<(), TransportError> {
        self.path = Path::OverControl;
        self.regions.forget_keys();
        self.regions.offer_all(self.control.as_mut())
    }

    pub(super) fn transport(&self) -> Option<Arc<dyn Transport>> {
        self.settings.transport(&self.data_name).cloned()
    }

    /// Number and secret of the data connection come from the control connection's.
    fn data_options(&self, address: &str) -> Result<Options, TransportError> {
        let attempt = self.attempt;
        let number =
            self.control.export_secret(format!("genie data number {attempt}").as_bytes())?;
        let secret =
            self.control.export_secret(format!("genie data secret {attempt}").as_bytes())?;
        let number = number.first_chunk::<8>().expect("a secret has 32 bytes");
        let number = u64::from_le_bytes(*number);
        Ok(self.settings.data_options(&self.data_name, address, number, secret))
    }

    fn watch_data(&self, data: Box<dyn Connection>) -> Result<Box<dyn Connection>, TransportError> {
        self.watch.add(data.event_fd()).map_err(watching)?;
        Ok(data)
    }

    /// Ends the data connection, if there is one: nothing is placed by it any more.
    fn drop_data(&mut self) {
        match std::mem::replace(&mut self.path, Path::None) {
            Path::Open(data) | Path::Connecting(data) => self.watch.remove(data.event_fd()),
            Path::Listening(listener) => self.watch.remove(listener.event_fd()),
            Path::None | Path::Asked | Path::OverControl | Path::Shared => {}
        }
        self.regions.forget_keys();
    }

    /// The data connection failed: the host chooses anew, the node says so.
    pub(super) fn data_failed(&mut self, error: TransportError) -> Result<(), TransportError> {
        match self.role {
            Role::Host => self.try_next(error.message),
            Role::Node => {
                self.drop_data();
                let gone = Gone { attempt: self.attempt, reason: error.message };
                self.send(message::GONE, &gone)
            }
        }
    }

    pub(super) fn accepted(&mut self, data: Box<dyn Connection>) -> Result<(), TransportError> {
        if let Path::Listening(listener) = &self.path {
            self.watch.remove(listener.event_fd());
        }
        match self.watch_data(data) {
            Ok(data) => {
                self.path = Path::Connecting(data);
                Ok(())
            }
            Err(error) => self.data_failed(error),
        }
    }

    pub(super) fn connected(&mut self) -> Result<(), TransportError> {
        if let Path::Connecting(mut data) = std::mem::replace(&mut self.path, Path::None) {
            let offered = self.regions.offer_all(data.as_mut());
            self.path = Path::Open(data);
            tracing::debug!(transport = self.data_name, "payloads have a connection");
            if let Err(error) = offered {
                return self.data_failed(error);
            }
        }
        Ok(())
    }
}
