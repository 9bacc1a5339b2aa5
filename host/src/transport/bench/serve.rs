//! The listening side: answers small messages, counts large ones.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use genie_transport::transport::{
    Capabilities, Cause, Completion, Listener, Options, Transport, TransportError,
};
use serde_json::json;

use super::side::{self, Echo, ThrowAway};
use super::wire::{
    BULK, Block, Interrupted, REPLIES, REPORT, REPORT_BYTES, REQUESTS, Request, SMALL, STEP, Wire,
    cpu_seconds, sleep,
};
use super::{BenchArgs, REGISTERED_BYTES_MAX};
use crate::signals::StopSignals;
use crate::told::told;

/// How long the server sleeps at a time where it waits for clients.
const FOREVER: Duration = Duration::from_secs(3_600);
/// What stands before an address that has no side connection.
pub const DIRECT: &str = "direct:";

struct Server<'a> {
    args: &'a BenchArgs,
    transport: &'a dyn Transport,
    stop: StopSignals,
    options: Options,
    throw_away: Option<ThrowAway>,
    /// Of a transport that serves all clients by one listener.
    listener: Option<Box<dyn Listener>>,
    connections: u64,
}

pub fn run(args: &BenchArgs, transport: &dyn Transport, address: &str) -> anyhow::Result<()> {
    let stop = StopSignals::block()?;
    let mut options = Options { address: address.to_owned(), ..args.options() };
    let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    let throw_away = match args.throw_away() {
        true => Some(ThrowAway::make(host)?),
        false => None,
    };
    if let Some(made) = &throw_away {
        options.certificates = Some(made.dir.path().to_owned());
    }
    let side = side::listen(address)?;
    let (listener, connections) = (None, 0);
    let mut server = Server { args, transport, stop, options, throw_away, listener, connections };
    if transport.facts().capabilities.has(Capabilities::CONTROL) {
        server.listener = Some(server.listen(&server.options)?);
    }
    let served = match side {
        Some(side) => server.with_side(&side),
        None => server.direct(),
    };
    match served {
        Err(error) if error.is::<Interrupted>() => Ok(()),
        served => served,
    }
}

fn ready(address: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready {address}").and_then(|()| out.flush()).context("print the address")
}

impl Server<'_> {
    fn listen(&self, options: &Options) -> anyhow::Result<Box<dyn Listener>> {
        let listen = |options: &Options| self.transport.listen(options);
        let listener = listen(options).or_else(|error: TransportError| {
            // The side connection may have the port already.
            match options.address.rsplit_once(':') {
                Some((host, port)) if error.cause == Cause::Io && port != "0" => {
                    let address = format!("{host}:0");
                    listen(&Options { address, ..options.clone() })
                }
                _ => Err(error),
            }
        });
        listener.with_context(|| format!("listen at {}", options.address))
    }

    fn with_side(&mut self, side: &TcpListener) -> anyhow::Result<()> {
        side.set_nonblocking(true).context("side connection")?;
        ready(&side.local_addr().context("side connection")?.to_string())?;
        loop {
            match side.accept() {
                Ok((stream, from)) => self.log(&from.to_string(), |this| this.client(stream))?,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let fds = [Some(side.as_fd()), Some(self.stop.event_fd())];
                    if sleep(&fds, Instant::now() + FOREVER)? {
                        return Err(Interrupted.into());
                    }
                }
                Err(error) => return Err(error).context("accept a side connection"),
            }
        }
    }

    /// Without a side connection: one client after the other, with a secret that is no secret
    /// unless it was given.
    fn direct(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.listener.is_none() || !self.args.throw_away(),
            "{} is no address of this machine, so no certificates can be handed out; give --certs \
             or --trusted on both sides",
            self.options.address
        );
        let mut first = true;
        loop {
            let options = direct_options(self.transport, &self.options);
            let mut listener = match self.listener.take() {
                Some(listener) => listener,
                None => self.listen(&options)?,
            };
            if std::mem::take(&mut first) {
                ready(&format!("{DIRECT}{}", listener.address()))?;
            }
            self.log("a client", |this| this.session(listener.as_mut(), Instant::now() + FOREVER))?;
            if self.transport.facts().capabilities.has(Capabilities::CONTROL) {
                self.listener = Some(listener);
            }
        }
    }

    /// Serves one client; its failure is told and is not the server's.
    fn log(
        &mut self,
        who: &str,
        serve: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match serve(self) {
            Err(error) if error.is::<Interrupted>() => Err(error),
            Err(error) => {
                eprintln!("genie-host: {who}: {}", told(&error));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn client(&mut self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nonblocking(false).context("side connection")?;
        let asked = side::hear(&stream)?;
        let ours = json!({"transport": self.args.name, "trusted": self.args.trusted});
        for what in ["transport", "trusted"] {
            if asked[what] != ours[what] {
                let error = format!("{what} is {} here and {} there", ours[what], asked[what]);
                side::say(&mut stream, &json!({"error": error}))?;
                anyhow::bail!("{error}");
            }
        }
        let mut answer = json!({});
        let kept = self.listener.take();
        let shared = kept.is_some();
        let mut listener = match kept {
            Some(listener) => listener,
            // A data connection of its own, with a number and a secret.
            None => {
                self.connections += 1;
                let secret = self.args.secret.map_or_else(side::random, Ok)?;
                let (connection, secret) = (self.connections, Some(secret));
                let options = Options { connection, secret, ..self.options.clone() };
                answer["connection"] = connection.into();
                if let (None, Some(secret)) = (self.args.secret, secret) {
                    answer["secret"] = side::hex(&secret).into();
                }
                match self.listen(&options) {
                    Ok(listener) => listener,
                    Err(error) => {
                        side::say(&mut stream, &json!({"error": told(&error)}))?;
                        return Err(error);
                    }
                }
            }
        };
        let here = stream.local_addr().context("side connection")?;
        answer["address"] = reachable(&listener.address(), here).into();
        if let Some(made) = &self.throw_away {
            answer["certificates"] = made.theirs.clone();
        }
        side::say(&mut stream, &answer)?;
        let end = stream.try_clone().context("side connection")?;
        let echo = Echo::new(stream)?;
        let served = std::thread::scope(|scope| {
            scope.spawn(move || echo.answer());
            let served = self.session(listener.as_mut(), Instant::now() + STEP);
            // Ends the thread, whatever the client does.
            let _ = end.shutdown(std::net::Shutdown::Both);
            served
        });
        if shared {
            self.listener = Some(listener);
        }
        served
    }

    fn session(&self, listener: &mut dyn Listener, until: Instant) -> anyhow::Result<()> {
        let connection = loop {
            if let Some(connection) = listener.accept()? {
                break connection;
            }
            anyhow::ensure!(Instant::now() < until, "the client did not connect");
            if sleep(&[Some(listener.event_fd()), Some(self.stop.event_fd())], until)? {
                return Err(Interrupted.into());
            }
        };
        let mut wire = Wire::new(connection, Some(self.stop.event_fd()));
        wire.connected()?;
        let requests = wire.block(SMALL)?;
        let (reply, report) = (wire.block(SMALL)?, wire.block(REPORT_BYTES)?);
        wire.connection.offer(REQUESTS, requests.whole())?;
        let mut count = Count::default();
        loop {
            let completion = match wire.next(Instant::now() + FOREVER) {
                Ok(Some(completion)) => completion,
                Ok(None) => continue,
                Err(error) => match error.downcast_ref::<TransportError>() {
                    Some(end) if end.cause == Cause::Closed => return Ok(()),
                    _ => return Err(error),
                },
            };
            match completion {
                Completion::Placed { window: REQUESTS, .. } => {
                    match Request::decode(&requests.get(0)?)? {
                        Request::Echo => {}
                        Request::Begin { in_flight, bytes } => {
                            count.bulk = Some(begin(&mut wire, &count, in_flight, bytes)?);
                            count.message_bytes = bytes;
                        }
                        Request::Mark => count.mark(),
                        Request::Report => {
                            let text = count.report(&wire).to_string();
                            anyhow::ensure!(text.len() as u64 <= REPORT_BYTES, "a long report");
                            report.put(0, text.as_bytes())?;
                            post(&mut wire, report.part(0, text.len() as u64), REPORT)?;
                        }
                    }
                    post(&mut wire, reply.whole(), REPLIES)?;
                }
                Completion::Placed { message, window: BULK, offset, bytes } => {
                    count.placed(message, offset, bytes)?;
                }
                _ => {}
            }
        }
    }
}

/// Replies are few: there is always credit for one.
fn post(
    wire: &mut Wire<'_>,
    part: genie_transport::transport::Part,
    window: u32,
) -> anyhow::Result<()> {
    wire.post(part, window, 0)?.context("no credit for a reply")?;
    Ok(())
}

fn begin(wire: &mut Wire<'_>, count: &Count, slots: u64, bytes: u64) -> anyhow::Result<Block> {
    anyhow::ensure!(count.bulk.is_none(), "the client begins twice");
    let total = slots.checked_mul(bytes).filter(|total| (1..=REGISTERED_BYTES_MAX).contains(total));
    let total = total.context("the client asks for more memory than is given to one")?;
    let block = wire.block(total)?;
    wire.connection.offer(BULK, block.whole())?;
    Ok(block)
}

/// The options of both sides where there is no side connection.
pub fn direct_options(transport: &dyn Transport, options: &Options) -> Options {
    if transport.facts().capabilities.has(Capabilities::CONTROL) {
        return options.clone();
    }
    let secret = options.secret.unwrap_or([0x47; 32]);
    Options { connection: 1, secret: Some(secret), ..options.clone() }
}

/// The listener's address as the client can use it: where it listens on any address, the one that
/// the client has reached.
fn reachable(address: &str, side: SocketAddr) -> String {
    match address.parse::<SocketAddr>() {
        Ok(any) if any.ip().is_unspecified() => SocketAddr::new(side.ip(), any.port()).to_string(),
        _ => address.to_owned(),
    }
}

/// What arrived since the mark.
#[derive(Default)]
struct Count {
    bulk: Option<Block>,
    message_bytes: u64,
    marked: Option<(Instant, f64)>,
    last: Option<(Instant, f64)>,
    bytes: u64,
    messages: u64,
    damaged: u64,
}

impl Count {
    fn mark(&mut self) {
        self.marked = Some((Instant::now(), cpu_seconds()));
        self.last = self.marked;
        (self.bytes, self.messages) = (0, 0);
    }

    /// Each message has its number at its beginning and its end.
    fn placed(&mut self, message: u64, offset: u64, bytes: u64) -> anyhow::Result<()> {
        let block = self.bulk.as_ref().context("a large message came before memory for it")?;
        let ends = [block.get(offset)?, block.get(offset + bytes - 8)?];
        if bytes != self.message_bytes || ends != [message.to_le_bytes(); 2] {
            self.damaged += 1;
        }
        self.bytes += bytes;
        self.messages += 1;
        self.last = Some((Instant::now(), cpu_seconds()));
        Ok(())
    }

    fn report(&self, wire: &Wire<'_>) -> serde_json::Value {
        let (begin, end) = (self.marked, self.last);
        let seconds = begin.zip(end).map_or(0.0, |(b, e)| e.0.duration_since(b.0).as_secs_f64());
        let cpu = begin.zip(end).map_or(0.0, |(b, e)| e.1 - b.1);
        let statistics: serde_json::Map<_, _> =
            wire.connection.statistics().into_iter().map(|(k, v)| (k, v.into())).collect();
        json!({
            "bytes": self.bytes,
            "messages": self.messages,
            "damaged": self.damaged,
            "seconds": seconds,
            "cpu_s": cpu,
            "statistics": statistics,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_any_becomes_the_one_that_was_reached() {
        let side: SocketAddr = "10.1.2.3:9".parse().unwrap();
        assert_eq!(reachable("0.0.0.0:77", side), "10.1.2.3:77");
        assert_eq!(reachable("10.9.9.9:77", side), "10.9.9.9:77");
        assert_eq!(reachable("/a/path", side), "/a/path");
    }
}
