//! The socket: making, tuning, and moving bytes by raw addresses.

use std::cell::Cell;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use genie_records::{Outgoing, Span, check_settings, io, number};
use genie_transport::transport::{Cause, Options, PARTS_MAX, Result, TransportError};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

use crate::{NAME, ended};

/// What the kernel holds unsent by default: a frame waits behind no more than this and one chunk.
const UNSENT_BYTES: u64 = 512 << 10;

/// Settings of a socket.
#[derive(Clone)]
pub(crate) struct Tuning {
    pub congestion: Option<String>,
    buffer_bytes: Option<usize>,
    unsent_bytes: u32,
    deadline_ms: u32,
}

impl Tuning {
    pub fn read(options: &Options) -> Result<Self> {
        check_settings(options, NAME, &["congestion", "buffer_bytes", "unsent_bytes"])?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX >> 1);
        Ok(Tuning {
            congestion: options.settings.get("congestion").cloned(),
            buffer_bytes: number(options, "buffer_bytes")?.map(|bytes| small(bytes) as usize),
            unsent_bytes: small(number(options, "unsent_bytes")?.unwrap_or(UNSENT_BYTES)),
            deadline_ms: small(options.deadline_ms),
        })
    }

    /// Before connecting or listening; accepted sockets inherit it.
    pub fn apply(&self, fd: BorrowedFd<'_>) -> Result<()> {
        sockopt::set_tcp_nodelay(fd, true).map_err(io("turn off delays of a TCP socket"))?;
        if let Some(name) = &self.congestion {
            sockopt::set_tcp_congestion(fd, name).map_err(|errno| {
                TransportError::new(
                    Cause::Invalid,
                    format!(
                        "the kernel has no congestion control {name:?} ({}); see \
                         /proc/sys/net/ipv4/tcp_available_congestion_control",
                        std::io::Error::from(errno)
                    ),
                )
            })?;
        }
        if let Some(bytes) = self.buffer_bytes {
            sockopt::set_socket_send_buffer_size(fd, bytes).map_err(io("size a send buffer"))?;
            sockopt::set_socket_recv_buffer_size(fd, bytes).map_err(io("size a receive buffer"))?;
        }
        sockopt::set_tcp_user_timeout(fd, self.deadline_ms)
            .map_err(io("set the deadline of a TCP socket"))?;
        set_unsent(fd, self.unsent_bytes)
    }
}

/// Not in rustix.
fn set_unsent(fd: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    // SAFETY: the option takes a 32-bit number, which lives during the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(os("bound what is unsent on a TCP socket")),
    }
}

fn os(doing: &str) -> TransportError {
    TransportError::new(Cause::Io, format!("{doing}: {}", std::io::Error::last_os_error()))
}

/// The address that a name and port stand for: the first that the system gives.
pub(crate) fn resolve(address: &str) -> Result<SocketAddr> {
    let unknown = |why: String| {
        let message = format!("the address {address:?} is not understood: {why}; give HOST:PORT");
        TransportError::new(Cause::Invalid, message)
    };
    let mut all = address.to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
    all.next().ok_or_else(|| unknown("the name has no address".into()))
}

pub(crate) fn make(address: &SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))
        .map_err(io("make a TCP socket"))
}

/// A nonblocking socket with its peer.
pub(crate) struct Socket {
    fd: OwnedFd,
    peer: SocketAddr,
    connected: bool,
    ended: Cell<bool>,
}

impl Socket {
    /// Begins to connect.
    pub fn connect(address: &str, tuning: &Tuning) -> Result<Socket> {
        let peer = resolve(address)?;
        let fd = make(&peer)?;
        tuning.apply(fd.as_fd())?;
        match rustix::net::connect(&fd, &peer) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(unreachable(&peer, errno.into())),
        }
        Ok(Socket { fd, peer, connected: false, ended: Cell::new(false) })
    }

    pub fn accepted(fd: OwnedFd, peer: SocketAddr) -> Socket {
        Socket { fd, peer, connected: true, ended: Cell::new(false) }
    }

    /// Whether a socket can be made and tuned so.
    pub fn probe(tuning: &Tuning) -> Result<()> {
        let fd = make(&SocketAddr::from(([127, 0, 0, 1], 0)))?;
        tuning.apply(fd.as_fd())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether the connection stands by now.
    pub fn check_connected(&mut self) -> Result<bool> {
        if self.connected {
            return Ok(true);
        }
        let error = sockopt::socket_error(&self.fd).map_err(io("ask how connecting went"))?;
        error.map_err(|errno| unreachable(&self.peer, errno.into()))?;
        match rustix::net::getpeername(&self.fd) {
            Ok(_) => self.connected = true,
            Err(Errno::NOTCONN) => {}
            Err(errno) => return Err(unreachable(&self.peer, errno.into())),
        }
        Ok(self.connected)
    }

    /// The peer gets an end after all that was sent.
    pub fn end_sending(&self) {
        if !self.ended.replace(true) {
            // Fails only where there is no connection any more.
            let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
        }
    }

    /// Reads to `direct` first, the rest to `buffer`; 0 when there is nothing now.
    pub fn read(&self, direct: Option<Span>, buffer: &mut [u8]) -> Result<usize> {
        let rest = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut parts = [rest; 2];
        let mut count = 1;
        if let Some(Span { address, bytes }) = direct {
            parts = [libc::iovec { iov_base: address.cast(), iov_len: bytes }, rest];
            count = 2;
        }
        loop {
            // SAFETY: the buffer is ours alone; the span is registered memory, which the exchange
            // keeps alive and which holds that many bytes.
            let read = unsafe { libc::readv(self.fd.as_raw_fd(), parts.as_ptr(), count) };
            match read {
                0 => return Err(ended()),
                1.. => return Ok(read as usize),
                _ => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => return Ok(0),
                    other => return Err(broken("receive from the peer", other)),
                },
            }
        }
    }

    /// Sends what the peer takes of it; 0 when it takes nothing now.
    pub fn write(&self, outgoing: &Outgoing<'_>) -> Result<usize> {
        let records = outgoing.records;
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut parts = [empty; PARTS_MAX + 1];
        parts[0] =
            libc::iovec { iov_base: records.as_ptr().cast_mut().cast(), iov_len: records.len() };
        for (part, span) in parts[1..].iter_mut().zip(outgoing.payload) {
            *part = libc::iovec { iov_base: span.address.cast(), iov_len: span.bytes };
        }
        let skip = usize::from(records.is_empty());
        self.send(&mut parts[skip..=outgoing.payload.len()])
    }

    /// As [`Socket::write`], of private memory.
    pub fn write_slices(&self, slices: &[std::io::IoSlice<'_>]) -> Result<usize> {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut parts = [empty; PARTS_MAX + 1];
        let count = slices.len().min(parts.len());
        for (part, slice) in parts.iter_mut().zip(slices) {
            *part =
                libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        }
        self.send(&mut parts[..count])
    }

    fn send(&self, parts: &mut [libc::iovec]) -> Result<usize> {
        // SAFETY: all zeroes is a valid message header.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        loop {
            // SAFETY: the parts are lent slices or registered memory that the exchange keeps alive;
            // the kernel only reads them.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, flags) };
            if sent >= 0 {
                return Ok(sent as usize);
            }
            match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                Some(Errno::AGAIN) => return Ok(0),
                other => return Err(broken("send to the peer", other)),
            }
        }
    }

    pub fn statistics(&self) -> Vec<(String, u64)> {
        // SAFETY: all zeroes is a valid answer.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `info`.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &mut len,
            )
        };
        if result != 0 {
            return Vec::new();
        }
        vec![
            ("srtt_us".into(), info.tcpi_rtt.into()),
            ("retransmitted".into(), info.tcpi_total_retrans.into()),
            ("window_segments".into(), info.tcpi_snd_cwnd.into()),
            ("segment_bytes".into(), info.tcpi_snd_mss.into()),
        ]
    }
}

fn unreachable(peer: &SocketAddr, error: std::io::Error) -> TransportError {
    let cause = match error.kind() {
        std::io::ErrorKind::TimedOut => Cause::TimedOut,
        _ => Cause::Io,
    };
    let message = format!("connect to {peer}: {error}; does somebody listen there?");
    TransportError::new(cause, message)
}

fn broken(doing: &str, errno: Option<Errno>) -> TransportError {
    match errno {
        Some(Errno::PIPE | Errno::CONNRESET) => ended(),
        Some(Errno::TIMEDOUT) => {
            let message = format!("{doing}: it acknowledged nothing within the deadline");
            TransportError::new(Cause::TimedOut, message)
        }
        other => {
            let error = other.map(std::io::Error::from);
            let text = error.map_or("an unknown error".into(), |error| error.to_string());
            TransportError::new(Cause::Io, format!("{doing}: {text}"))
        }
    }
}
