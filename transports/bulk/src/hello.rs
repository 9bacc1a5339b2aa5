//! Getting to know each other: versions, fresh nonces, and the proof that both ends are alive and know the secret.
//!
//! A hello names its sender's nonce in the clear and is sealed under keys made from it. A hello that echoes
//! the receiver's own nonce is fresh; any other may be a replay and changes nothing that is established.

use crate::config::{Config, MILLISECOND, Role, Time};
use crate::protect::{Keys, Purpose, TAG_BYTES_MAX, tag_bytes};
use crate::wire::{HEADER_BYTES, Header, Hello, Kind, Writer};

/// A nonce that means none.
const NO_NONCE: [u8; 16] = [0; 16];
const NONCE_BYTES: usize = 16;
/// The client's first hello is repeated after this, then after twice as long, and so on up to the cap.
const REPEAT_AFTER: Time = 20 * MILLISECOND;
const REPEAT_AFTER_MAX: Time = 250 * MILLISECOND;
/// Answers to what may be replays go at most this often.
const ANSWER_EVERY: Time = 5 * MILLISECOND;

/// The longest hello.
pub(crate) const HELLO_BYTES_MAX: usize = HEADER_BYTES + TAG_BYTES_MAX + NONCE_BYTES + Hello::BYTES;

/// A hello that opened.
pub(crate) struct Heard {
    pub(crate) nonce: [u8; 16],
    pub(crate) hello: Hello,
    /// It echoes this end's nonce: it was made after ours was heard.
    pub(crate) is_fresh: bool,
}

/// This end's part in the exchange of hellos.
pub(crate) struct Greeter {
    keys: Keys,
    number: u64,
    echo: [u8; 16],
    wanted_at: Option<Time>,
    repeat_after: Option<Time>,
    last_sent_at: Option<Time>,
    tries: u32,
}

impl Greeter {
    pub(crate) fn new(config: &Config, now: Time) -> Self {
        let is_client = config.role == Role::Client;
        Self {
            keys: hello_keys(config, config.role, &config.nonce),
            number: 0,
            echo: NO_NONCE,
            wanted_at: is_client.then_some(now),
            repeat_after: is_client.then_some(REPEAT_AFTER),
            last_sent_at: None,
            tries: 0,
        }
    }

    /// When a hello should go.
    pub(crate) fn wanted_at(&self) -> Option<Time> {
        self.wanted_at
    }

    /// Answers a hello, or (`None`) asks who is there, but not too often.
    pub(crate) fn answer(&mut self, now: Time, nonce: Option<[u8; 16]>) {
        if let Some(nonce) = nonce {
            self.echo = nonce;
        }
        let soonest = self.last_sent_at.map_or(now, |at| now.max(at + ANSWER_EVERY));
        self.wanted_at = Some(self.wanted_at.map_or(soonest, |at| at.min(soonest)));
    }

    /// The peer answered: hellos need not be repeated.
    pub(crate) fn rest(&mut self) {
        self.repeat_after = None;
        self.wanted_at = None;
    }

    /// The time since the only hello sent, for a first guess at the round trip.
    pub(crate) fn round_trip(&self, now: Time) -> Option<Time> {
        (self.tries == 1).then_some(now.saturating_sub(self.last_sent_at?))
    }

    /// Writes a hello if one should go; gives its length.
    pub(crate) fn write(&mut self, config: &Config, now: Time, buf: &mut [u8]) -> Option<usize> {
        if self.wanted_at? > now {
            return None;
        }
        self.last_sent_at = Some(now);
        self.tries += 1;
        self.wanted_at = self.repeat_after.map(|after| now + after);
        self.repeat_after = self.repeat_after.map(|after| (2 * after).min(REPEAT_AFTER_MAX));
        let header = Header {
            kind: Kind::Hello,
            version: 0,
            number: self.number,
            connection_id: config.connection_id,
        }
        .encode();
        self.number += 1;
        let tag = tag_bytes(&config.protection);
        let body_at = HEADER_BYTES + tag + NONCE_BYTES;
        buf[..HEADER_BYTES].copy_from_slice(&header);
        buf[HEADER_BYTES + tag..body_at].copy_from_slice(&config.nonce);
        let mut writer = Writer::new(&mut buf[body_at..]);
        let hello = Hello {
            versions: config.versions,
            echo: self.echo,
            datagram_bytes: config.datagram_bytes as u32,
            messages_ahead: config.messages_ahead,
        };
        hello.encode(&mut writer);
        let len = body_at + writer.at();
        let (front, body) = buf[..len].split_at_mut(body_at);
        let said = clear_part(&header, &config.nonce);
        self.keys.seal(self.number - 1, &said, &mut front[HEADER_BYTES..HEADER_BYTES + tag], body);
        Some(len)
    }

    /// Opens a hello of the peer. `None`: it does not open, or is malformed.
    pub(crate) fn open(config: &Config, header: &Header, datagram: &mut [u8]) -> Option<Heard> {
        let tag = tag_bytes(&config.protection);
        let (front, body) = datagram.split_at_mut_checked(HEADER_BYTES + tag + NONCE_BYTES)?;
        let nonce: [u8; 16] = front[HEADER_BYTES + tag..].try_into().expect("16 bytes");
        let said = clear_part(&header.encode(), &nonce);
        let peer = match config.role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        };
        let mut keys = hello_keys(config, peer, &nonce);
        if !keys.open(header.number, &said, &front[HEADER_BYTES..HEADER_BYTES + tag], body) {
            return None;
        }
        let hello = Hello::decode(body).ok()?;
        Some(Heard { nonce, hello, is_fresh: hello.echo == config.nonce })
    }
}

fn hello_keys(config: &Config, sender: Role, nonce: &[u8; 16]) -> Keys {
    Keys::new(&config.protection, Purpose::Hello, sender, config.connection_id, &[nonce])
}

/// What a hello says in the clear and authenticates: its header and its sender's nonce.
fn clear_part(header: &[u8; HEADER_BYTES], nonce: &[u8; 16]) -> [u8; HEADER_BYTES + NONCE_BYTES] {
    let mut said = [0; HEADER_BYTES + NONCE_BYTES];
    said[..HEADER_BYTES].copy_from_slice(header);
    said[HEADER_BYTES..].copy_from_slice(nonce);
    said
}

/// The keys of a session: what this end seals with and what it opens with.
pub(crate) fn session_keys(config: &Config, peer_nonce: &[u8; 16]) -> (Keys, Keys) {
    let (client, server) = match config.role {
        Role::Client => (&config.nonce, peer_nonce),
        Role::Server => (peer_nonce, &config.nonce),
    };
    let keys = |sender| {
        let Config { connection_id, ref protection, .. } = *config;
        Keys::new(protection, Purpose::Session, sender, connection_id, &[client, server])
    };
    match config.role {
        Role::Client => (keys(Role::Client), keys(Role::Server)),
        Role::Server => (keys(Role::Server), keys(Role::Client)),
    }
}

/// The newest version both ends speak.
pub(crate) fn common_version(ours: (u8, u8), theirs: (u8, u8)) -> Option<u8> {
    let newest = ours.1.min(theirs.1);
    (newest >= ours.0.max(theirs.0)).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Protection;

    #[test]
    fn the_newest_common_version_is_spoken() {
        for (ours, theirs, expect) in [
            ((1, 2), (1, 2), Some(2)),
            ((1, 2), (1, 1), Some(1)),
            ((2, 3), (1, 2), Some(2)),
            ((2, 2), (1, 1), None),
            ((1, 1), (2, 2), None),
        ] {
            assert_eq!(common_version(ours, theirs), expect, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn a_hello_opens_at_the_other_end_and_not_at_its_own() {
        for protection in [Protection::Sealed { secret: [1; 32] }, Protection::Trusted] {
            let client = Config::new(5, Role::Client, protection.clone(), [2; 16]);
            let server = Config::new(5, Role::Server, protection, [3; 16]);
            let mut buf = [0; 200];
            let len = Greeter::new(&client, 0).write(&client, 0, &mut buf).expect("a hello");
            let header = Header::decode(buf[..HEADER_BYTES].try_into().unwrap()).unwrap();
            let mut datagram = buf[..len].to_vec();
            let heard = Greeter::open(&server, &header, &mut datagram).expect("opens");
            assert_eq!((heard.nonce, heard.is_fresh), ([2; 16], false));
            assert!(Greeter::open(&client, &header, &mut buf[..len].to_vec()).is_none());
            for cut in HEADER_BYTES..len {
                assert!(Greeter::open(&server, &header, &mut buf[..cut].to_vec()).is_none());
            }
        }
    }
}
