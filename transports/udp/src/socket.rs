//! One UDP socket, with its offloads and buffers.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::net::sockopt;

/// The most bytes one system call sends: one IP packet's worth, which the kernel cuts.
pub(crate) const SEND_BYTES_MAX: usize = 65_507;
/// Bytes one receive buffer holds: the largest datagram, or many that the kernel put together.
const RECEIVE_BYTES: usize = 65_536;
/// Receive buffers of one system call. Together they fit in a processor's second cache.
pub(crate) const RECEIVE_BUFFERS: usize = 8;
/// Bytes of IP and UDP headers.
const OVERHEAD_IPV4: usize = 28;
const OVERHEAD_IPV6: usize = 48;

/// What a receive fills: a few large buffers, each with one or more datagrams of one source.
pub(crate) struct Received {
    bytes: Vec<u8>,
    metas: [RecvMeta; RECEIVE_BUFFERS],
}

impl Received {
    pub fn new() -> Self {
        let bytes = vec![0; RECEIVE_BYTES * RECEIVE_BUFFERS];
        Received { bytes, metas: [RecvMeta::default(); RECEIVE_BUFFERS] }
    }

    /// The filled buffers, `count` of them: where from, to which address of ours, bytes, and the
    /// length of each datagram but the last.
    pub fn batches(&mut self, count: usize) -> impl Iterator<Item = (&RecvMeta, &mut [u8])> {
        let buffers = self.bytes.chunks_exact_mut(RECEIVE_BYTES);
        self.metas[..count]
            .iter()
            .zip(buffers)
            .map(|(meta, buffer)| (meta, &mut buffer[..meta.len]))
    }
}

pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    is_connected: bool,
    /// Bytes of the receive buffer that were asked for and that the kernel gave.
    wanted_bytes: usize,
    given_bytes: usize,
}

/// Any address of the family of `address`, and any port.
pub(crate) fn any_of(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

impl Socket {
    pub fn open(local: SocketAddr, buffer_bytes: usize) -> io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        // Sets non-blocking mode, receive offload and the don't-fragment bit.
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Nobody here reads marks of congestion, and each costs small messages time.
        match local {
            SocketAddr::V4(_) => sockopt::set_ip_recvtos(&socket, false)?,
            SocketAddr::V6(_) => sockopt::set_ipv6_recvtclass(&socket, false)?,
        }
        // Above the system's limit needs CAP_NET_ADMIN; without it the kernel gives what it may.
        if sockopt::set_socket_recv_buffer_size_force(&socket, buffer_bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, buffer_bytes)?;
        }
        if sockopt::set_socket_send_buffer_size_force(&socket, buffer_bytes).is_err() {
            sockopt::set_socket_send_buffer_size(&socket, buffer_bytes)?;
        }
        // The kernel doubles the number for its own book-keeping, and tells the doubled one.
        let given_bytes = sockopt::socket_recv_buffer_size(&socket)? / 2;
        let is_connected = false;
        Ok(Socket { socket, state, is_connected, wanted_bytes: buffer_bytes, given_bytes })
    }

    /// Only datagrams of `peer` arrive from now on.
    pub fn connect(&mut self, peer: SocketAddr) -> io::Result<()> {
        self.socket.connect(peer)?;
        self.is_connected = true;
        Ok(())
    }

    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Bytes that the receive buffer lacks of what was asked for.
    pub fn clipped_bytes(&self) -> usize {
        self.wanted_bytes.saturating_sub(self.given_bytes)
    }

    /// Datagrams that one send may carry.
    pub fn segments_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams of `segment_bytes` (the last may be shorter) in one system call.
    pub fn send(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        contents: &[u8],
        segment_bytes: usize,
    ) -> io::Result<()> {
        if contents.len() <= segment_bytes && from.is_none() {
            // One datagram needs neither control messages nor, if connected, another look for the
            // route: half a microsecond of a small message's few.
            let sent = match self.is_connected {
                true => self.socket.send(contents),
                false => self.socket.send_to(contents, to),
            };
            return sent.map(drop);
        }
        let segment_size = Some(segment_bytes);
        let transmit =
            Transmit { destination: to, ecn: None, contents, segment_size, src_ip: from };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    /// Receives what waits, as much as fits. Returns the number of buffers filled; fewer than
    /// [`RECEIVE_BUFFERS`] means that nothing waits any more.
    pub fn receive(&self, into: &mut Received) -> io::Result<usize> {
        let mut buffers = into.bytes.chunks_exact_mut(RECEIVE_BYTES);
        let mut slices: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().expect("made that large")));
        self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut into.metas)
    }

    /// What this socket can do, for people.
    pub fn describe(&self) -> String {
        let offload = match (self.state.max_gso_segments() > 1, self.state.gro_segments() > 1) {
            (true, true) => "segmentation and receive offload",
            (true, false) => "segmentation offload, no receive offload",
            (false, true) => "receive offload, no segmentation offload",
            (false, false) => "no offload",
        };
        let clipped = match self.clipped_bytes() {
            0 => String::new(),
            _ => format!(" of {} wanted (raise net.core.rmem_max)", self.wanted_bytes),
        };
        format!("kernel UDP, {offload}, receive buffer {} bytes{clipped}", self.given_bytes)
    }
}

/// Bytes of the largest datagram's payload on the way to `peer`, as the route's interface has it.
pub(crate) fn datagram_bytes(peer: SocketAddr, mtu: Option<u32>) -> io::Result<usize> {
    let mtu = match mtu {
        Some(mtu) => mtu,
        None => {
            let probe = UdpSocket::bind(any_of(peer))?;
            probe.connect(peer)?;
            match peer {
                SocketAddr::V4(_) => sockopt::ip_mtu(&probe)?,
                SocketAddr::V6(_) => sockopt::ipv6_mtu(&probe)?,
            }
        }
    };
    let overhead = if peer.is_ipv4() { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 };
    let most = SEND_BYTES_MAX.min(genie_bulk::DATAGRAM_BYTES_MAX);
    Ok((mtu as usize).saturating_sub(overhead).clamp(genie_bulk::DATAGRAM_BYTES_MIN, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_goes_through_the_loopback_in_one_call() {
        let to = Socket::open(([127, 0, 0, 1], 0).into(), 1 << 20).unwrap();
        let from = Socket::open(([127, 0, 0, 1], 0).into(), 1 << 20).unwrap();
        let sent: Vec<u8> = (0..10_000u32).map(|at| (at / 1000) as u8).collect();
        from.send(to.local().unwrap(), None, &sent, 1000).unwrap();
        let mut received = Received::new();
        let count = to.receive(&mut received).unwrap();
        let mut all = Vec::new();
        for (meta, bytes) in received.batches(count) {
            assert_eq!(meta.addr, from.local().unwrap());
            assert_eq!(meta.stride, 1000);
            all.extend_from_slice(bytes);
        }
        assert_eq!(all, sent);
    }

    #[test]
    fn datagrams_fit_the_route() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(datagram_bytes(loopback, Some(1500)).unwrap(), 1472);
        assert!(datagram_bytes(loopback, None).unwrap() > 1472);
        assert_eq!(datagram_bytes("[::1]:9".parse().unwrap(), Some(1500)).unwrap(), 1452);
    }
}
