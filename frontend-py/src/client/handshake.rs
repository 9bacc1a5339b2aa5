//! From a link to a session: hello, welcome, regions.

use std::path::Path;
use std::time::{Duration, Instant};

use genie_transport::{Frame, Link, LinkError, SharedMemory};
use genie_wire::control::{Hello, Refusal, Region, Welcome};
use genie_wire::frame::FrameKind;
use genie_wire::limits::REGION_BYTES_MAX;
use genie_wire::{ErrorCode, PROTOCOL_OLDEST, PROTOCOL_SETTINGS, PROTOCOL_VERSION};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::core::{Core, DOWNLOAD_REGION, UPLOAD_REGION};
use crate::client::limits::{REGION_BYTES_DEFAULT, REGION_BYTES_MIN, WAIT_SLICE, WELCOME_TIMEOUT};
use crate::client::transfer::{Download, UploadRing};
use crate::client::{ClientError, Hooks, Pause, Session};

/// What a session is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// `torch.__version__`.
    pub torch: String,
    /// PyTorch's intra-op threads.
    pub threads: u32,
    /// Which device of the node.
    pub device: u32,
    pub upload_bytes: u64,
    pub download_bytes: u64,
    pub welcome_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            torch: String::new(),
            threads: 1,
            device: 0,
            upload_bytes: REGION_BYTES_DEFAULT,
            download_bytes: REGION_BYTES_DEFAULT,
            welcome_timeout: WELCOME_TIMEOUT,
        }
    }
}

impl Session {
    /// Joins the host listening at `path`.
    pub fn connect(
        path: &Path,
        options: &Options,
        hooks: &'static Hooks,
    ) -> Result<Session, ClientError> {
        let peer = format!("unix:{}", path.display());
        let link = genie_shm::connect(path).map_err(|error| {
            let text = format!(
                "no Genie host answers at {peer}: {error}. Start one with `genie-host serve \
                 --listen {peer}`, or unset GENIE_HOST to have one started for this program"
            );
            ClientError::new(ErrorCode::NodeLost, text)
        })?;
        Session::open(Box::new(link), peer, options, hooks)
    }

    /// Begins a session over a fresh link; `peer` names the other end in messages.
    pub fn open(
        mut link: Box<dyn Link>,
        peer: String,
        options: &Options,
        hooks: &'static Hooks,
    ) -> Result<Session, ClientError> {
        let failed = |error: LinkError| start_failed(&peer, error);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            software: concat!("genie-frontend ", env!("CARGO_PKG_VERSION")).into(),
            torch: options.torch.clone(),
            threads: options.threads,
            pid: std::process::id(),
            device: options.device,
            ..Hello::default()
        };
        match link.post_send(FrameKind::Hello, &[&hello.encode_to_vec()], None) {
            // What it said before it closed is still to be read.
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => return Err(failed(error)),
        }
        let welcome = await_welcome(&mut *link, &peer, options.welcome_timeout, hooks)?;
        let upload = region(&mut *link, UPLOAD_REGION, options.upload_bytes, &peer)?;
        let download = region(&mut *link, DOWNLOAD_REGION, options.download_bytes, &peer)?;
        let event = link.event_fd().try_clone_to_owned().map_err(|source| {
            failed(LinkError::Io { doing: "duplicate the link's descriptor", source })
        })?;
        let carries_settings = welcome.protocol >= PROTOCOL_SETTINGS;
        let core = Core::new(link, event, peer, options.threads, carries_settings);
        Ok(Session::assemble(
            core,
            welcome,
            UploadRing::new(upload),
            Download::new(download),
            hooks,
        ))
    }
}

fn await_welcome(
    link: &mut dyn Link,
    peer: &str,
    timeout: Duration,
    hooks: &'static Hooks,
) -> Result<Welcome, ClientError> {
    let deadline = Instant::now() + timeout;
    let mut pause = Pause::new(hooks);
    loop {
        if let Some(frame) = link.poll().map_err(|error| start_failed(peer, error))? {
            return welcome_of(&frame, peer);
        }
        pause.enter();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!(
                "the host at {peer} did not answer the hello within {} s. Its log says why \
                 (GENIE_START_TIMEOUT_S gives it longer)",
                timeout.as_secs()
            );
            return Err(ClientError::new(ErrorCode::NodeLost, text));
        }
        let write = if link.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
        let slice = left.min(WAIT_SLICE);
        let slice = Timespec { tv_sec: 0, tv_nsec: slice.as_nanos() as i64 };
        let ready = poll(&mut [PollFd::new(&link.event_fd(), PollFlags::IN | write)], Some(&slice));
        if !matches!(ready, Ok(1..)) {
            pause.check()?;
        }
        match link.flush() {
            Ok(()) | Err(LinkError::Closed) => {}
            Err(error) => return Err(start_failed(peer, error)),
        }
    }
}

fn welcome_of(frame: &Frame, peer: &str) -> Result<Welcome, ClientError> {
    let malformed = |error: prost::DecodeError| {
        ClientError::protocol(format!("the host at {peer} sent a malformed answer: {error}"))
    };
    match frame.kind {
        FrameKind::Welcome => {
            let welcome = Welcome::decode(&*frame.body).map_err(malformed)?;
            if (PROTOCOL_OLDEST..=PROTOCOL_VERSION).contains(&welcome.protocol) {
                return Ok(welcome);
            }
            Err(ClientError::protocol(format!(
                "the host at {peer} ({}) speaks protocol {}, this front end {PROTOCOL_OLDEST} to \
                 {PROTOCOL_VERSION}; install the same version of Genie on both sides",
                welcome.software, welcome.protocol
            )))
        }
        FrameKind::Refusal => {
            let refusal = Refusal::decode(&*frame.body).map_err(malformed)?;
            let code = ErrorCode::from_u8(refusal.code as u8).unwrap_or(ErrorCode::Runtime);
            let text = format!("the host at {peer} refused the session: {}", refusal.message);
            Err(ClientError::new(code, text))
        }
        kind => Err(ClientError::protocol(format!(
            "the process at {peer} answered the hello with a {kind:?} frame"
        ))),
    }
}

fn region(
    link: &mut dyn Link,
    id: u32,
    bytes: u64,
    peer: &str,
) -> Result<SharedMemory, ClientError> {
    let bytes = bytes.clamp(REGION_BYTES_MIN, REGION_BYTES_MAX).next_multiple_of(4096);
    let memory = SharedMemory::create(bytes).map_err(|error| {
        let text = format!("no shared memory of {bytes} bytes for tensors: {error}");
        ClientError::new(ErrorCode::OutOfMemory, text)
    })?;
    let body = Region { id, bytes }.encode_to_vec();
    match link.post_send(FrameKind::Region, &[&body], Some(&memory)) {
        // A host that closed after its welcome said why; the session's first use tells.
        Ok(()) | Err(LinkError::Closed) => Ok(memory),
        Err(error) => Err(start_failed(peer, error)),
    }
}

fn start_failed(peer: &str, error: LinkError) -> ClientError {
    let text = format!("the host at {peer} did not start a session: {error}");
    ClientError::new(ErrorCode::NodeLost, text)
}
