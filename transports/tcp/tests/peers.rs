//! Who gets in, and who is told why not.

mod certificates;
mod visitors;

use genie_tcp::Tcp;

#[test]
fn identities_are_told() {
    visitors::identities_are_told(&Tcp);
}

#[test]
fn wrong_certificates_are_refused() {
    visitors::wrong_certificates_are_refused(&Tcp);
}

#[test]
fn expired_certificates_are_told() {
    visitors::expired_certificates_are_told(&Tcp);
}

#[test]
fn wrong_names_are_refused() {
    visitors::wrong_names_are_refused(&Tcp);
}

#[test]
fn absent_certificates_are_told() {
    visitors::absent_certificates_are_told(&Tcp);
}

#[test]
fn wrong_secrets_are_refused() {
    for trusted in [false, true] {
        visitors::wrong_secrets_are_refused(&Tcp, trusted);
    }
}

#[test]
fn certificates_are_followed() {
    visitors::certificates_are_followed(&Tcp);
}

/// A peer of another version, and a program that speaks something else: both are told apart.
#[test]
fn strangers_are_told_apart() {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use genie_transport::transport::{Cause, Options, Transport};

    let address = "127.0.0.1:0".into();
    let options = Options { address, trusted: true, ..Options::default() };
    let mut listener = Tcp.listen(&options).unwrap();
    let mut next_version = vec![1, 2, 0, 0, 16, 0, 0, 0];
    next_version.extend_from_slice(b"something new...");
    for (said, cause, words) in [
        (next_version, Cause::Version, "version 2"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Cause::Protocol, "unknown kind"),
        (vec![4, 1, 0, 0, 255, 255, 3, 0], Cause::Protocol, "bytes"),
    ] {
        let mut stranger = std::net::TcpStream::connect(listener.address()).unwrap();
        stranger.write_all(&said).unwrap();
        let begin = Instant::now();
        let error = loop {
            match listener.accept() {
                Err(error) => break error,
                Ok(accepted) => assert!(accepted.is_none(), "a stranger was accepted"),
            }
            assert!(begin.elapsed() < Duration::from_secs(60));
            visitors::sleep(&[std::os::fd::AsRawFd::as_raw_fd(&listener.event_fd())]);
        };
        assert_eq!(error.cause, cause, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert!(error.message.contains("127.0.0.1"), "{error}");
    }
}
