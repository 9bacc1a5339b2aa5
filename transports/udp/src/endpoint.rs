//! Sockets, their waking and the addresses behind the flows: the edge between the protocol, which
//! does no input or output, and the kernel.
//!
//! System calls are what a small message costs, so none is made on suspicion: a receive that did
//! not fill its buffers is not repeated, the timer is left alone while it fires in time, and with
//! one socket nobody asks which one is ready.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use genie_bulk::Time;
use genie_transport::transport::Result;
use rustix::event::epoll;

use crate::settings::FLOWS_MAX;
use crate::socket::{RECEIVE_BUFFERS, Received, SEND_BYTES_MAX, Socket};
use crate::wake::{Wake, now};

/// System calls that send, of one [`Endpoint::transmit`].
const SENDS_MAX: usize = 16;
/// System calls that receive, of one [`Endpoint::receive`] and socket.
const RECEIVES_MAX: usize = 2;
/// Received bytes that are handled sooner than a clock is worth reading for.
const SOON_BYTES_MAX: usize = 2048;
/// How long a full socket buffer is waited for, at most, before a poll looks again.
const ROOM_WAIT: Time = genie_bulk::MILLISECOND;

/// Where the datagrams of a flow go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// Index of the socket.
    socket: usize,
    pub to: SocketAddr,
    /// The address of ours that the peer used, where the socket has several.
    from: Option<IpAddr>,
}

/// The flows' routes, in their order.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    routes: Vec<Route>,
    /// Unknown addresses become further flows of the peer, if what they send is authentic.
    pub learning: bool,
}

impl Routes {
    fn of(&self, flow: u16) -> Option<Route> {
        // An end with fewer flows than the other's configuration says uses those it has.
        self.routes.get(usize::from(flow) % self.routes.len().max(1)).copied()
    }

    pub fn first(&self) -> Option<Route> {
        self.routes.first().copied()
    }

    pub fn set_first(&mut self, route: Route) {
        self.routes.clear();
        self.routes.push(route);
    }

    /// Gives what arrived to the connection.
    pub fn feed(&mut self, bulk: &mut genie_bulk::Connection, arrival: Arrival<'_>) {
        let Arrival { route, stride, bytes, at } = arrival;
        let known = self.routes.iter().position(|known| *known == route);
        let new = self.routes.len();
        let of_peer = self.first().is_none_or(|first| first.to.ip() == route.to.ip());
        let room = self.learning && new < usize::from(FLOWS_MAX);
        let flow = match known {
            Some(flow) => flow,
            None if room && of_peer => new,
            None => return,
        };
        let authentic = |bulk: &genie_bulk::Connection| bulk.statistics().packets_received;
        let before = if known.is_none() { authentic(bulk) } else { 0 };
        for datagram in bytes.chunks_mut(stride) {
            bulk.handle(at, flow as u16, datagram);
        }
        if known.is_none() && authentic(bulk) > before {
            self.routes.push(route);
        }
    }
}

/// Datagrams of one source that the kernel put together.
pub(crate) struct Arrival<'a> {
    /// How the source is reached.
    pub route: Route,
    /// Bytes of each datagram but the last.
    pub stride: usize,
    pub bytes: &'a mut [u8],
    /// When it was taken from the kernel.
    pub at: Time,
}

/// What happened at the edge.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub sends: u64,
    pub receives: u64,
    /// Times a socket's buffer was full.
    pub blocked: u64,
    /// Errors that the network reported (port unreachable, message too long): not an end.
    pub errors: u64,
}

/// A batch that found the socket's buffer full; its bytes stay in `outgoing`.
struct Unsent {
    route: Route,
    bytes: usize,
    segment_bytes: usize,
}

pub(crate) struct Endpoint {
    sockets: Vec<Socket>,
    wake: Wake,
    pub routes: Routes,
    /// Bound to any address: answers must name the one that the peer used.
    any_address: bool,
    received: Received,
    outgoing: Vec<u8>,
    unsent: Option<Unsent>,
    pub counters: Counters,
    pub last_error: Option<io::Error>,
    /// The time of the last receive, if what it brought was too little to take time.
    just_now: Option<Time>,
}

impl Endpoint {
    /// Sockets that are connected to `peer`, one for each flow.
    pub fn connected(sockets: Vec<Socket>, peer: SocketAddr) -> io::Result<Self> {
        let mut endpoint = Endpoint::new(sockets)?;
        for (socket, opened) in endpoint.sockets.iter_mut().enumerate() {
            opened.connect(peer)?;
            endpoint.routes.routes.push(Route { socket, to: peer, from: None });
        }
        Ok(endpoint)
    }

    /// A socket that learns its peer.
    pub fn listening(socket: Socket) -> io::Result<Self> {
        let any_address = socket.local()?.ip().is_unspecified();
        let mut endpoint = Endpoint::new(vec![socket])?;
        endpoint.routes.learning = true;
        endpoint.any_address = any_address;
        Ok(endpoint)
    }

    fn new(sockets: Vec<Socket>) -> io::Result<Self> {
        let wake = watching(&sockets)?;
        Ok(Endpoint {
            sockets,
            wake,
            routes: Routes::default(),
            any_address: false,
            received: Received::new(),
            outgoing: vec![0; SEND_BYTES_MAX],
            unsent: None,
            counters: Counters::default(),
            last_error: None,
            just_now: None,
        })
    }

    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// The sockets move to a new epoll set; the old one, which watches nothing more, is returned.
    pub fn renew_wake(&mut self) -> io::Result<Wake> {
        let mut old = std::mem::replace(&mut self.wake, watching(&self.sockets)?);
        for socket in &self.sockets {
            old.remove(socket.fd())?;
        }
        old.at(None, now())?;
        Ok(old)
    }

    pub fn clipped_bytes(&self) -> usize {
        self.sockets.iter().map(Socket::clipped_bytes).max().unwrap_or(0)
    }

    /// The time after [`Endpoint::receive`]: a look at the clock, unless there was one just now.
    pub fn time(&mut self) -> Time {
        self.just_now.take().unwrap_or_else(now)
    }

    /// Hands over what arrived, a bounded amount. `true`: more waits.
    pub fn receive(&mut self, mut take: impl FnMut(&mut Routes, Arrival<'_>)) -> Result<bool> {
        self.just_now = None;
        if let [_one] = self.sockets.as_slice() {
            return Ok(self.receive_from(0, &mut take));
        }
        let mut ready = [const { std::mem::MaybeUninit::uninit() }; FLOWS_MAX as usize + 1];
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let (ready, _) = epoll::wait(self.wake.fd(), &mut ready, Some(&at_once))
            .map_err(|errno| crate::io("look for ready sockets", &errno))?;
        let mut more = false;
        for event in ready.iter() {
            let (index, flags) = (event.data.u64(), event.flags);
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR)
                && index < self.sockets.len() as u64
            {
                more |= self.receive_from(index as usize, &mut take);
            }
        }
        Ok(more)
    }

    fn receive_from(
        &mut self,
        socket: usize,
        take: &mut impl FnMut(&mut Routes, Arrival<'_>),
    ) -> bool {
        for _ in 0..RECEIVES_MAX {
            self.counters.receives += 1;
            let count = match self.sockets[socket].receive(&mut self.received) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) => {
                    self.note(error);
                    continue;
                }
            };
            let peer = self.routes.of(socket as u16).filter(|_| !self.routes.learning);
            let at = now();
            let mut handled = 0;
            for (meta, bytes) in self.received.batches(count) {
                handled += bytes.len();
                let from = meta.dst_ip.filter(|_| self.any_address);
                let route = peer.unwrap_or(Route { socket, to: meta.addr, from });
                let stride = meta.stride.max(1);
                take(&mut self.routes, Arrival { route, stride, bytes, at });
            }
            self.just_now = (handled <= SOON_BYTES_MAX).then_some(at);
            if count < RECEIVE_BUFFERS {
                return false;
            }
        }
        true
    }

    /// Sends what the connection has to send, a bounded amount. `true`: there is more.
    /// `now` must be fresh: it is what round trips are measured from.
    pub fn transmit(&mut self, bulk: &mut genie_bulk::Connection, mut now: Time) -> Result<bool> {
        if let Some(unsent) = self.unsent.take() {
            let socket = unsent.route.socket;
            if !self.send(unsent)? {
                return Ok(false);
            }
            self.wake
                .want_room(self.sockets[socket].fd(), socket as u64, false)
                .map_err(|errno| crate::io("watch a socket", &errno))?;
        }
        for _ in 0..SENDS_MAX {
            let segments = self.sockets[0].segments_max();
            let Some(out) = bulk.poll_transmit(now, &mut self.outgoing, segments) else {
                return Ok(false);
            };
            if out.segments > 1 {
                // It takes longer than a look at the clock.
                now = self::now();
            }
            let Some(route) = self.routes.of(out.flow) else { continue };
            let unsent = Unsent { route, bytes: out.bytes, segment_bytes: out.segment_bytes };
            if !self.send(unsent)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `false`: the socket's buffer is full; the batch is kept, and room wakes.
    fn send(&mut self, batch: Unsent) -> Result<bool> {
        let Unsent { route, bytes, segment_bytes } = batch;
        let socket = &self.sockets[route.socket];
        let bytes_out = &self.outgoing[..bytes];
        self.counters.sends += 1;
        let mut sent = socket.send(route.to, route.from, bytes_out, segment_bytes);
        if sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            // The report of an earlier datagram; this one was not tried.
            self.counters.errors += 1;
            sent = socket.send(route.to, route.from, bytes_out, segment_bytes);
        }
        if sent.is_err() && socket.segments_max() == 1 && bytes > segment_bytes {
            // The device refused a batch: quinn-udp makes none any more, this one goes in pieces.
            let mut pieces = bytes_out.chunks(segment_bytes);
            sent = pieces.try_for_each(|one| socket.send(route.to, route.from, one, one.len()));
        }
        match sent {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.counters.blocked += 1;
                self.wake
                    .want_room(socket.fd(), route.socket as u64, true)
                    .map_err(|errno| crate::io("watch a socket", &errno))?;
                self.unsent = Some(batch);
                Ok(false)
            }
            Err(error) => {
                // Lost, like any datagram: it is sent again, and the deadline is the end.
                self.note(error);
                Ok(true)
            }
        }
    }

    /// Wakes at `wanted`. `true`: that has come already.
    pub fn wake_at(&mut self, wanted: Option<Time>, now: Time) -> Result<bool> {
        let wanted = match &self.unsent {
            // What is due may have to wait for room.
            Some(_) => wanted.map(|at| at.max(now + ROOM_WAIT)),
            None => wanted,
        };
        if wanted.is_some_and(|at| at <= now) {
            return Ok(true);
        }
        self.wake.at(wanted, now).map_err(|errno| crate::io("set a timer", &errno))?;
        Ok(false)
    }

    /// Makes the event descriptor readable at once.
    pub fn wake_now(&mut self) -> Result<()> {
        self.wake.at(Some(1), now()).map_err(|errno| crate::io("set a timer", &errno))
    }

    fn note(&mut self, error: io::Error) {
        self.counters.errors += 1;
        self.last_error = Some(error);
    }
}

fn watching(sockets: &[Socket]) -> io::Result<Wake> {
    let wake = Wake::new()?;
    for (index, socket) in sockets.iter().enumerate() {
        wake.add(socket.fd(), index as u64)?;
    }
    Ok(wake)
}
