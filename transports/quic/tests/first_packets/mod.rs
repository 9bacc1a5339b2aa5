//! First packets of QUIC, made by hand: what anybody can send, from any address.

use std::sync::Arc;

use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{ClientConnection, Suite, Version};
use rustls::{Side, SupportedCipherSuite};

/// Bytes of the datagram of a first packet.
const DATAGRAM_BYTES: usize = 1200;
const NUMBER_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// The sender's name for the connection, and what it says of it in the handshake.
const OWN_ID: [u8; 8] = *b"stranger";
const INITIAL_SOURCE_CONNECTION_ID: u8 = 0x0f;
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
const CRYPTO_FRAME: u8 = 6;

/// The first words of a handshake, which are the same for all strangers.
pub struct Stranger {
    hello: Vec<u8>,
    suite: Suite,
}

impl Stranger {
    pub fn new(config: rustls::ClientConfig) -> Stranger {
        let mut parameters = vec![INITIAL_SOURCE_CONNECTION_ID, OWN_ID.len() as u8];
        parameters.extend_from_slice(&OWN_ID);
        let name = "127.0.0.1".try_into().unwrap();
        let config = Arc::new(config);
        let mut client = ClientConnection::new(config, Version::V1, name, parameters).unwrap();
        let mut hello = Vec::new();
        client.write_hs(&mut hello);
        let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256;
        Stranger { hello, suite: suite.quic_suite().expect("it is one for QUIC") }
    }

    /// The datagram that opens a connection to `peer_id`, with a token that came in a Retry.
    pub fn first_packet(&self, peer_id: &[u8], token: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc0 | (NUMBER_BYTES as u8 - 1)];
        packet.extend_from_slice(&VERSION_1);
        for id in [peer_id, &OWN_ID] {
            packet.push(id.len() as u8);
            packet.extend_from_slice(id);
        }
        packet.extend_from_slice(&two_bytes(token.len()));
        packet.extend_from_slice(token);
        packet.extend_from_slice(&two_bytes(DATAGRAM_BYTES - packet.len() - 2));
        packet.extend_from_slice(&[0; NUMBER_BYTES]);
        let head = packet.len();
        packet.extend_from_slice(&[CRYPTO_FRAME, 0]);
        packet.extend_from_slice(&two_bytes(self.hello.len()));
        packet.extend_from_slice(&self.hello);
        packet.resize(DATAGRAM_BYTES - TAG_BYTES, 0);
        let keys = self.suite.keys(peer_id, Side::Client, Version::V1).local;
        let (header, payload) = packet.split_at_mut(head);
        let tag = keys.packet.encrypt_in_place(0, header, payload).unwrap();
        packet.extend_from_slice(tag.as_ref());
        let (header, payload) = packet.split_at_mut(head);
        // The sample begins where the payload would with a number of four bytes, which it has.
        let sample = &payload[..keys.header.sample_len()];
        let (first, rest) = header.split_at_mut(1);
        let number = &mut rest[head - 1 - NUMBER_BYTES..];
        keys.header.encrypt_in_place(sample, &mut first[0], number).unwrap();
        packet
    }
}

/// A number in QUIC's form of two bytes.
fn two_bytes(number: usize) -> [u8; 2] {
    (0x4000 | number as u16).to_be_bytes()
}

/// The id to go on with, and the token, if the datagram asks for a proof of the address.
pub fn retry(datagram: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if datagram.first()? & 0xf0 != 0xf0 {
        return None;
    }
    let own = usize::from(*datagram.get(5)?);
    let rest = datagram.get(6 + own..)?;
    let (len, rest) = rest.split_first()?;
    let (peer_id, rest) = rest.split_at_checked(usize::from(*len))?;
    let token = rest.get(..rest.len().checked_sub(TAG_BYTES)?)?;
    Some((peer_id.to_vec(), token.to_vec()))
}
