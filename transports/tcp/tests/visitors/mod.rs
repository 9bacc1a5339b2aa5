//! Who gets in, and who is told why not: the same for every transport with certificates.
#![allow(dead_code)]

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use genie_transport::transport::{
    Cause, Completion, Connection, Listener, Options, Transport, TransportError,
};

use crate::certificates::{self, issue_node, node_dir, now_s, options_of, own_site, sites};

const STEP: Duration = Duration::from_secs(60);

/// What became of a connection, as each end was told.
pub struct Outcome {
    pub connecting: Result<Box<dyn Connection>, TransportError>,
    pub accepting: Result<Box<dyn Connection>, TransportError>,
}

pub fn sleep(fds: &[i32]) {
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| {
            // SAFETY: the ends live in the caller.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)
        })
        .collect();
    let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    // An interrupted sleep is one that ended early.
    let _ = rustix::event::poll(&mut fds, Some(&second));
}

/// Lets one end try to reach the other; both are driven until each has its answer. The connecting
/// end has a frame to send from the first moment.
pub fn meet(transport: &dyn Transport, listen: &Options, connect: &Options) -> Outcome {
    let mut listener = transport.listen(listen).unwrap();
    meet_at(transport, listener.as_mut(), connect)
}

pub fn meet_at(
    transport: &dyn Transport,
    listener: &mut dyn Listener,
    connect: &Options,
) -> Outcome {
    let begin = Instant::now();
    let connect = Options { address: listener.address(), ..connect.clone() };
    let mut ours = transport.connect(&connect).unwrap();
    ours.send_frame(1, &[b"secret words"], None).unwrap();
    let (mut connecting, mut accepting) = (None, None);
    while connecting.is_none() || accepting.is_none() {
        assert!(begin.elapsed() < STEP, "no answer in time");
        if accepting.is_none() {
            accepting = listener.accept().transpose();
        }
        let mut completions = Vec::new();
        if connecting.is_none() {
            match ours.poll(&mut completions) {
                Err(error) => connecting = Some(Err(error)),
                Ok(()) if matches!(completions.first(), Some(Completion::Connected)) => {
                    connecting = Some(Ok(()));
                }
                Ok(()) => {}
            }
        }
        let waiting = connecting.is_none() || accepting.is_none();
        if waiting && !ours.arm().unwrap_or(true) {
            sleep(&[listener.event_fd().as_raw_fd(), ours.event_fd().as_raw_fd()]);
        }
    }
    let connecting = connecting.expect("the loop ended").map(|()| ours);
    Outcome { connecting, accepting: accepting.expect("the loop ended") }
}

fn refusal(end: Result<Box<dyn Connection>, TransportError>) -> String {
    let error = end.err().expect("it must not be connected");
    assert_eq!(error.cause, Cause::Refused, "{error}");
    error.message
}

pub fn identities_are_told(transport: &dyn Transport) {
    let (listen, connect) = certificates::options();
    let met = meet(transport, &listen, &connect);
    assert_eq!(met.connecting.unwrap().peer_identity(), "node/worker");
    assert_eq!(met.accepting.unwrap().peer_identity(), "host/me");
}

/// The host of a strange authority, and a node where hosts are wanted: refused before any frame,
/// at both ends. (That an expired certificate of the peer's is refused, genie-tls tests.)
pub fn wrong_certificates_are_refused(transport: &dyn Transport) {
    let sites = sites();
    for host in [sites.strange.clone(), node_dir(&sites.ours)] {
        let (listen, connect) = options_of(&sites.ours, &host);
        let met = meet(transport, &listen, &connect);
        refusal(met.connecting);
        refusal(met.accepting);
    }
}

/// An end whose own certificate has expired says so before it connects.
pub fn expired_certificates_are_told(transport: &dyn Transport) {
    let (_, connect) = options_of(&sites().ours, &sites().expired);
    let error = transport.connect(&connect).err().expect("it must not connect");
    assert_eq!(error.cause, Cause::Refused);
    assert!(error.message.contains("expired"), "{error}");
}

/// A node whose certificate names another address than the one that is dialled.
pub fn wrong_names_are_refused(transport: &dyn Transport) {
    let (listen, connect) = certificates::options();
    let connect = Options { peer_name: Some("elsewhere.example".into()), ..connect };
    let met = meet(transport, &listen, &connect);
    let message = refusal(met.connecting);
    assert!(message.contains("elsewhere.example"), "{message}");
    refusal(met.accepting);
}

/// Without certificates there is no connection that is not `trusted`.
pub fn absent_certificates_are_told(transport: &dyn Transport) {
    let options = Options { address: "127.0.0.1:0".into(), ..Options::default() };
    let error = transport.listen(&options).err().expect("it must not listen");
    assert_eq!(error.cause, Cause::Invalid);
    assert!(error.message.contains("genie-host certs"), "{error}");
}

/// Both ends of a data connection must know its secret, encrypted or not.
pub fn wrong_secrets_are_refused(transport: &dyn Transport, trusted: bool) {
    let (listen, connect) = match trusted {
        false => certificates::options(),
        true => {
            let address = "127.0.0.1:0".into();
            let options = Options { address, trusted, ..Options::default() };
            (options.clone(), options)
        }
    };
    let with =
        |options: &Options, connection, secret| Options { connection, secret, ..options.clone() };
    let listen = with(&listen, 7, Some([1; 32]));
    let good = meet(transport, &listen, &with(&connect, 7, Some([1; 32])));
    assert!(good.connecting.is_ok() && good.accepting.is_ok());
    for (connection, secret) in [(7, Some([2; 32])), (8, Some([1; 32])), (7, None)] {
        let met = meet(transport, &listen, &with(&connect, connection, secret));
        refusal(met.connecting);
        refusal(met.accepting);
    }
}

/// New files count from the next connection on, and the old connection goes on.
pub fn certificates_are_followed(transport: &dyn Transport) {
    let site = own_site();
    let (listen, connect) = options_of(&site, &site);
    let mut listener = transport.listen(&listen).unwrap();
    let first = meet_at(transport, listener.as_mut(), &connect);
    let (mut ours, mut theirs) = (first.connecting.unwrap(), first.accepting.unwrap());
    // From now on the node is known under another address alone.
    issue_node(&site, now_s(), "10.9.8.7");
    assert!(node_dir(&site).join("cert.pem").exists());
    let second = meet_at(transport, listener.as_mut(), &connect);
    refusal(second.connecting);
    refusal(second.accepting);
    let third = meet_at(
        transport,
        listener.as_mut(),
        &Options { peer_name: Some("10.9.8.7".into()), ..connect },
    );
    assert!(third.connecting.is_ok() && third.accepting.is_ok());
    ours.send_frame(2, &[b"still here"], None).unwrap();
    let (begin, mut completions) = (Instant::now(), Vec::new());
    while completions.len() < 3 {
        assert!(begin.elapsed() < STEP);
        ours.poll(&mut Vec::new()).unwrap();
        theirs.poll(&mut completions).unwrap();
        if completions.len() < 3 && !theirs.arm().unwrap() {
            sleep(&[theirs.event_fd().as_raw_fd(), ours.event_fd().as_raw_fd()]);
        }
    }
}
