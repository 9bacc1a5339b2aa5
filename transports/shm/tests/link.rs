//! What a link promises, over real sockets.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use genie_shm::{BindError, Listener, UnixLink, connect};
use genie_transport::{Frame, Link, LinkError, SEND_QUEUE_BYTES_MAX, SharedMemory};
use genie_wire::control::Region;
use genie_wire::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use genie_wire::limits::FRAME_BYTES_MAX;
use proptest::prelude::*;
use prost::Message;
use rustix::event::{PollFd, PollFlags};

/// Waits for the next frame (or error) of a link.
fn next(link: &mut UnixLink) -> Result<Frame, LinkError> {
    loop {
        if let Some(frame) = link.poll()? {
            return Ok(frame);
        }
        wait(link.event_fd(), PollFlags::IN);
    }
}

fn wait(fd: impl AsFd, flags: PollFlags) {
    let timeout = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let ready = rustix::event::poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "nothing happened within 10 s");
}

/// A server's link and a raw client stream that may send anything.
fn raw_pair() -> (UnixLink, UnixStream, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::bind(dir.path().join("s")).unwrap();
    let stream = UnixStream::connect(listener.path()).unwrap();
    (listener.accept().unwrap().unwrap(), stream, dir)
}

fn frame_bytes(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let header = FrameHeader { kind, body_bytes: body.len() as u32 }.encode();
    [&header, body].concat()
}

/// Sends bytes with descriptors beside them.
fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[&OwnedFd]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent =
        sendmsg(stream, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn frames_arrive_whole_and_in_order() {
    let (mut one, mut other) = UnixLink::pair().unwrap();
    one.post_send(FrameKind::Tape, &[b"ab", b"", b"cd"], None).unwrap();
    one.post_send(FrameKind::Reply, &[], None).unwrap();
    let many: Vec<&[u8]> = vec![b"x"; 20];
    one.post_send(FrameKind::Tape, &many, None).unwrap();
    let frame = next(&mut other).unwrap();
    assert_eq!((frame.kind, frame.body.as_slice()), (FrameKind::Tape, b"abcd".as_slice()));
    let frame = next(&mut other).unwrap();
    assert_eq!((frame.kind, frame.body.len()), (FrameKind::Reply, 0));
    assert_eq!(next(&mut other).unwrap().body, [b'x'; 20]);
    assert!(other.poll().unwrap().is_none());
}

#[test]
fn the_largest_frame_arrives_and_a_larger_one_is_not_sent() {
    let (mut one, mut other) = UnixLink::pair().unwrap();
    let body: Vec<u8> = (0..FRAME_BYTES_MAX).map(|i| (i % 251) as u8).collect();
    one.post_send(FrameKind::Tape, &[&body], None).unwrap();
    assert!(one.wants_write());
    let frame = loop {
        one.flush().unwrap();
        if let Some(frame) = other.poll().unwrap() {
            break frame;
        }
    };
    assert_eq!(frame.body, body);
    assert!(!one.wants_write() && one.queued_bytes() == 0);
    assert!(matches!(
        one.post_send(FrameKind::Tape, &[&body, b"x"], None),
        Err(LinkError::Wire(_))
    ));
}

#[test]
fn a_peer_that_does_not_read_costs_bounded_memory_and_loses_nothing() {
    let (mut one, mut other) = UnixLink::pair().unwrap();
    let mut sent = 0u32;
    loop {
        let body = [&sent.to_le_bytes()[..], &[7; 10_000]].concat();
        match one.post_send(FrameKind::Tape, &[&body], None) {
            Ok(()) => sent += 1,
            Err(LinkError::OutOfCredit { queued }) => break assert!(queued > 0),
            Err(error) => panic!("{error}"),
        }
        assert!(one.queued_bytes() <= SEND_QUEUE_BYTES_MAX);
    }
    for expected in 0..sent {
        one.flush().unwrap();
        let frame = loop {
            if let Some(frame) = other.poll().unwrap() {
                break frame;
            }
            one.flush().unwrap();
        };
        assert_eq!(frame.body[..4], expected.to_le_bytes());
    }
    one.post_send(FrameKind::Tape, &[b"again"], None).unwrap();
    assert_eq!(next(&mut other).unwrap().body, b"again");
}

#[test]
fn memory_travels_beside_its_region_frame_even_when_queued() {
    let (mut one, mut other) = UnixLink::pair().unwrap();
    let filler = vec![0u8; 1 << 20];
    one.post_send(FrameKind::Tape, &[&filler], None).unwrap();
    assert!(one.wants_write());
    let memories: Vec<_> = (1..=3u64)
        .map(|id| {
            let memory = SharedMemory::create(4096 * id).unwrap();
            let body = Region { id: id as u32, bytes: 4096 * id }.encode_to_vec();
            one.post_send(FrameKind::Region, &[&body], Some(&memory)).unwrap();
            one.post_send(FrameKind::Tape, &[b"t"], None).unwrap();
            memory
        })
        .collect();
    let mut frames = Vec::new();
    while frames.len() < 7 {
        one.flush().unwrap();
        frames.extend(other.poll().unwrap());
    }
    for (i, memory) in memories.iter().enumerate() {
        memory.write(8, b"hello").unwrap();
        let received = frames[1 + 2 * i].memory.as_ref().expect("a region has its memory");
        let mut bytes = [0; 5];
        received.read(8, &mut bytes).unwrap();
        assert_eq!((&bytes, received.bytes()), (b"hello", memory.bytes()));
        assert!(frames[2 + 2 * i].memory.is_none());
    }
}

/// What a peer may not send, and that the link says so and then stays closed.
#[test]
fn descriptors_that_are_not_announced_are_closed_and_refused() {
    let region = |bytes| frame_bytes(FrameKind::Region, &Region { id: 0, bytes }.encode_to_vec());
    let tape = frame_bytes(FrameKind::Tape, b"abc");
    let two = [tape.clone(), region(4096)].concat();
    let check = |what: &str, bytes: &[u8], fds: usize| {
        let (mut link, stream, _dir) = raw_pair();
        let (mut probe, given) = std::io::pipe().unwrap();
        let given = OwnedFd::from(given);
        if fds == 0 {
            (&stream).write_all(bytes).unwrap();
        } else {
            send_with(&stream, bytes, &vec![&given; fds]);
        }
        let mut result = next(&mut link);
        while result.is_ok() {
            result = next(&mut link);
        }
        let error = result.unwrap_err();
        assert!(matches!(error, LinkError::Wire(_) | LinkError::Memory(_)), "{what}: {error}");
        assert!(matches!(link.poll(), Err(LinkError::Closed)), "{what}");
        drop((link, given));
        // Every copy of the write end is closed, so the pipe reports its end.
        assert_eq!(probe.read(&mut [0]).unwrap(), 0, "{what}: a descriptor leaked");
    };
    check("beside a tape", &tape, 1);
    check("a region without one", &region(4096), 0);
    check("two beside a region", &region(4096), 2);
    check("more than any frame has", &region(4096), 8);
    check("not a memory file", &region(4096), 1);
    check("beside two frames of which the last is a region", &two, 1);
}

#[test]
fn memory_that_could_shrink_or_has_another_size_is_refused() {
    let body = Region { id: 0, bytes: 4096 }.encode_to_vec();
    let check = |fd: &OwnedFd| {
        let (mut link, stream, _dir) = raw_pair();
        send_with(&stream, &frame_bytes(FrameKind::Region, &body), &[fd]);
        assert!(matches!(next(&mut link), Err(LinkError::Memory(_))));
    };
    let unsealed = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 4096).unwrap();
    check(&unsealed);
    let other_size = SharedMemory::create(8192).unwrap();
    check(&other_size.fd().try_clone_to_owned().unwrap());
}

#[test]
fn what_arrived_before_the_end_is_returned_first() {
    let (mut one, mut other) = UnixLink::pair().unwrap();
    other.post_send(FrameKind::Tape, &[b"never read"], None).unwrap();
    one.post_send(FrameKind::Tape, &[b"1"], None).unwrap();
    one.post_send(FrameKind::Tape, &[b"2"], None).unwrap();
    drop(one);
    // Sending notices the end first; what arrived is still there.
    assert!(matches!(other.post_send(FrameKind::Tape, &[b"x"], None), Err(LinkError::Closed)));
    assert_eq!(next(&mut other).unwrap().body, b"1");
    assert_eq!(next(&mut other).unwrap().body, b"2");
    assert!(matches!(next(&mut other), Err(LinkError::Closed)));
    assert!(matches!(next(&mut other), Err(LinkError::Closed)));
}

#[test]
fn a_listener_is_private_refuses_a_living_one_and_replaces_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    // Stale: its listener is closed, its file remains.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Listener::bind(&path), Err(BindError::InUse { .. })));
    // The refused probe must not have disturbed it; its connection ends at once.
    let mut probe = listener.accept().unwrap().expect("the probe's connection");
    assert!(matches!(next(&mut probe), Err(LinkError::Closed)));
    let mut client = connect(&path).unwrap();
    wait(listener.event_fd(), PollFlags::IN);
    let mut server = listener.accept().unwrap().unwrap();
    assert!(listener.accept().unwrap().is_none());
    for link in [&client, &server] {
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(link.peer_credentials(), (std::process::id(), uid));
    }
    client.post_send(FrameKind::Hello, &[b"hi"], None).unwrap();
    assert_eq!(next(&mut server).unwrap().body, b"hi");
    drop(listener);
    assert!(!path.exists());
    assert!(matches!(connect(&path), Err(LinkError::Io { .. })));
}

#[test]
fn a_file_that_is_not_a_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Listener::bind(&long), Err(BindError::Io { .. })));
    assert!(matches!(connect(&long), Err(LinkError::Io { .. })));
}

#[test]
fn a_dropped_listener_leaves_the_socket_of_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let first = Listener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Listener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
}

/// `PROPTEST_CASES`, or a few.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(64), failure_persistence: None, ..Default::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_refused_or_read(chunks: Vec<Vec<u8>>) {
        let (mut link, stream, _dir) = raw_pair();
        for chunk in &chunks {
            if (&stream).write_all(chunk).is_err() {
                break;
            }
            while let Ok(Some(_)) = link.poll() {}
        }
        drop(stream);
        while next(&mut link).is_ok() {}
        prop_assert!(matches!(link.poll(), Err(LinkError::Closed)));
    }

    #[test]
    fn frames_survive_any_split(
        sizes in prop::collection::vec(prop_oneof![0usize..64, 0usize..300_000], 1..8),
        cuts in prop::collection::vec(1usize..200_000, 1..16),
    ) {
        let bodies: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(i, size)| vec![i as u8; *size]).collect();
        let stream_bytes: Vec<u8> =
            bodies.iter().flat_map(|body| frame_bytes(FrameKind::Tape, body)).collect();
        let (mut link, stream, _dir) = raw_pair();
        stream.set_nonblocking(true).unwrap();
        let (mut sent, mut received, mut cuts) = (0, Vec::new(), cuts.iter().cycle());
        while received.len() < bodies.len() {
            let end = stream_bytes.len().min(sent + cuts.next().unwrap());
            while sent < end {
                match (&stream).write(&stream_bytes[sent..end]) {
                    Ok(bytes) => sent += bytes,
                    Err(_) => break,
                }
            }
            received.extend(link.poll().unwrap().map(|frame| frame.body));
        }
        prop_assert_eq!(received, bodies);
    }
}

#[test]
fn a_header_is_refused_before_its_body_comes() {
    let mut header = FrameHeader { kind: FrameKind::Tape, body_bytes: 0 }.encode();
    header[..4].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
    let (mut link, stream, _dir) = raw_pair();
    (&stream).write_all(&header).unwrap();
    assert!(matches!(next(&mut link), Err(LinkError::Wire(_))));
    assert_eq!(header.len(), HEADER_BYTES);
}
