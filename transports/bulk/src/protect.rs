//! Keys, and the check that every packet carries.
//!
//! Sealed: AES-128-GCM. Keys and initialisation vectors come from HKDF-SHA256 over the secret of the
//! control session, salted with both ends' fresh nonces; each direction has its own, and each 2^23 packets
//! have the next (RFC 9001 section 6.6 lets 2^23 packets be sealed by one AES-GCM key). A packet number is used once a key.
//! Trusted: CRC-32, seeded with the same names, so that another instance's packets fail it.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use crate::config::{Protection, Role};
use crate::split::{Piece, read_through};

/// Packets sealed by one key: 2 to this power.
const GENERATION_BITS: u32 = 23;
/// Failed openings after which the keys count as worn (RFC 9001 section 6.6 allows 2^52 for AES-GCM).
pub(crate) const FORGERIES_MAX: u64 = 1 << 36;
const SEALED_TAG_BYTES: usize = 16;
const TRUSTED_TAG_BYTES: usize = 4;
/// The longest tag.
pub(crate) const TAG_BYTES_MAX: usize = SEALED_TAG_BYTES;

/// What keys are for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Hello,
    Session,
}

/// How long the tag is under a protection.
pub(crate) fn tag_bytes(protection: &Protection) -> usize {
    match protection {
        Protection::Sealed { .. } => SEALED_TAG_BYTES,
        Protection::Trusted => TRUSTED_TAG_BYTES,
    }
}

/// The keys of one direction.
pub(crate) struct Keys {
    scheme: Scheme,
}

enum Scheme {
    Sealed(Box<Ladder>),
    Trusted { seed: u32 },
}

/// The key in use with its neighbours, so that packets reordered around a change open.
struct Ladder {
    prk: Prk,
    context: [u8; CONTEXT_BYTES],
    generation: u64,
    previous: Option<Key>,
    current: Key,
    next: Key,
}

struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
}

/// Label, connection id, purpose and direction.
const CONTEXT_BYTES: usize = 16 + 8 + 2;

impl Keys {
    /// Keys for what `sender` sends. `salt`: the hello's nonce, or the client's and the server's.
    pub(crate) fn new(
        protection: &Protection,
        purpose: Purpose,
        sender: Role,
        connection_id: u64,
        salt: &[&[u8; 16]],
    ) -> Self {
        let mut context = [0; CONTEXT_BYTES];
        context[..16].copy_from_slice(b"genie bulk keys ");
        context[16..24].copy_from_slice(&connection_id.to_be_bytes());
        context[24] = purpose as u8;
        context[25] = sender as u8;
        let salt: Vec<u8> = salt.iter().flat_map(|nonce| nonce.iter().copied()).collect();
        let scheme = match protection {
            Protection::Sealed { secret } => {
                let prk = Salt::new(HKDF_SHA256, &salt).extract(secret);
                let current = Key::derive(&prk, &context, 0);
                let next = Key::derive(&prk, &context, 1);
                let ladder = Ladder { prk, context, generation: 0, previous: None, current, next };
                Scheme::Sealed(Box::new(ladder))
            }
            Protection::Trusted => {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&context);
                hasher.update(&salt);
                Scheme::Trusted { seed: hasher.finalize() }
            }
        };
        Self { scheme }
    }

    /// Seals `body` in place and writes the tag. `number` must not have been sealed before by these keys.
    pub(crate) fn seal(&mut self, number: u64, header: &[u8], tag: &mut [u8], body: &mut [u8]) {
        match &mut self.scheme {
            Scheme::Sealed(ladder) => {
                ladder.climb_to(number >> GENERATION_BITS);
                let key = &ladder.current;
                let sealed = key
                    .key
                    .seal_in_place_separate_tag(key.nonce(number), Aad::from(header), body)
                    .expect("a datagram is far below the longest input of AES-GCM");
                tag.copy_from_slice(sealed.as_ref());
            }
            Scheme::Trusted { seed } => {
                tag.copy_from_slice(&checksum(*seed, number, header, body).to_be_bytes());
            }
        }
    }

    /// Writes the tag of a body that goes on in `pieces`. Trusted keys only: sealing changes bytes.
    pub(crate) fn sign(
        &self,
        number: u64,
        header: &[u8],
        tag: &mut [u8],
        body: &[u8],
        pieces: &[Piece],
    ) {
        let Scheme::Trusted { seed } = &self.scheme else {
            unreachable!("sealed packets are whole");
        };
        let mut hasher = begin_checksum(*seed, number, header, body);
        read_through(pieces, |bytes| hasher.update(bytes));
        tag.copy_from_slice(&hasher.finalize().to_be_bytes());
    }

    /// Checks, and opens `body` in place. `false`: damaged or not made by the peer; `body` is then rubbish.
    pub(crate) fn open(&mut self, number: u64, header: &[u8], tag: &[u8], body: &mut [u8]) -> bool {
        match &mut self.scheme {
            Scheme::Sealed(ladder) => {
                let Ok(tag) = Tag::try_from(tag) else { return false };
                let generation = number >> GENERATION_BITS;
                let key = if generation == ladder.generation {
                    &ladder.current
                } else if generation == ladder.generation + 1 {
                    &ladder.next
                } else if generation + 1 == ladder.generation {
                    let Some(key) = &ladder.previous else { return false };
                    key
                } else {
                    return false;
                };
                let nonce = key.nonce(number);
                let opened = key
                    .key
                    .open_in_place_separate_tag(nonce, Aad::from(header), tag, body, 0..)
                    .is_ok();
                if opened {
                    // Only a packet of the peer moves the ladder.
                    ladder.climb_to(generation.max(ladder.generation));
                }
                opened
            }
            Scheme::Trusted { seed } => tag == checksum(*seed, number, header, body).to_be_bytes(),
        }
    }
}

impl Ladder {
    fn climb_to(&mut self, generation: u64) {
        while self.generation < generation {
            self.generation += 1;
            let after = Key::derive(&self.prk, &self.context, self.generation + 1);
            let current = std::mem::replace(&mut self.next, after);
            self.previous = Some(std::mem::replace(&mut self.current, current));
        }
    }
}

impl Key {
    fn derive(prk: &Prk, context: &[u8], generation: u64) -> Self {
        let generation = generation.to_be_bytes();
        let mut key = [0; 16];
        expand(prk, &[context, &generation, b"key"], &mut key);
        let mut iv = [0; 12];
        expand(prk, &[context, &generation, b"iv"], &mut iv);
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("16 bytes are an AES-128 key");
        Self { key: LessSafeKey::new(key), iv }
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

fn expand(prk: &Prk, info: &[&[u8]], to: &mut [u8]) {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    prk.expand(info, Length(to.len()))
        .and_then(|output| output.fill(to))
        .expect("HKDF gives up to 255 hashes");
}

/// The packet number is in the header too; named again so that no caller can forget it.
fn checksum(seed: u32, number: u64, header: &[u8], body: &[u8]) -> u32 {
    begin_checksum(seed, number, header, body).finalize()
}

fn begin_checksum(seed: u32, number: u64, header: &[u8], body: &[u8]) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&number.to_be_bytes());
    hasher.update(header);
    hasher.update(body);
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(protection: &Protection) -> (Keys, Keys) {
        let keys =
            || Keys::new(protection, Purpose::Session, Role::Client, 7, &[&[1; 16], &[2; 16]]);
        (keys(), keys())
    }

    fn sealed(keys: &mut Keys, number: u64, tag_bytes: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut tag, mut body) = (vec![0; tag_bytes], b"some payload".to_vec());
        keys.seal(number, b"header", &mut tag, &mut body);
        (tag, body)
    }

    #[test]
    fn what_was_sealed_opens_and_any_flipped_bit_does_not() {
        for protection in [Protection::Sealed { secret: [9; 32] }, Protection::Trusted] {
            let (mut from, mut to) = pair(&protection);
            let (tag, body) = sealed(&mut from, 5, tag_bytes(&protection));
            let mut opened = body.clone();
            assert!(to.open(5, b"header", &tag, &mut opened));
            assert_eq!(opened, b"some payload");
            assert!(!to.open(6, b"header", &tag, &mut body.clone()), "another number");
            assert!(!to.open(5, b"Header", &tag, &mut body.clone()), "another header");
            for bit in 0..body.len() * 8 {
                let mut body = body.clone();
                body[bit / 8] ^= 1 << (bit % 8);
                assert!(!to.open(5, b"header", &tag, &mut body), "bit {bit}");
            }
            for bit in 0..tag.len() * 8 {
                let mut tag = tag.clone();
                tag[bit / 8] ^= 1 << (bit % 8);
                assert!(!to.open(5, b"header", &tag, &mut body.clone()), "tag bit {bit}");
            }
        }
    }

    #[test]
    fn directions_purposes_instances_and_connections_do_not_open_each_other() {
        for protection in [Protection::Sealed { secret: [9; 32] }, Protection::Trusted] {
            let (mut from, _) = pair(&protection);
            let (tag, body) = sealed(&mut from, 5, tag_bytes(&protection));
            let others = [
                Keys::new(&protection, Purpose::Session, Role::Server, 7, &[&[1; 16], &[2; 16]]),
                Keys::new(&protection, Purpose::Hello, Role::Client, 7, &[&[1; 16], &[2; 16]]),
                Keys::new(&protection, Purpose::Session, Role::Client, 8, &[&[1; 16], &[2; 16]]),
                Keys::new(&protection, Purpose::Session, Role::Client, 7, &[&[1; 16], &[3; 16]]),
            ];
            for mut other in others {
                assert!(!other.open(5, b"header", &tag, &mut body.clone()));
            }
        }
    }

    #[test]
    fn keys_change_by_packet_number_and_reordering_around_the_change_opens() {
        let protection = Protection::Sealed { secret: [9; 32] };
        let (mut from, mut to) = pair(&protection);
        let change = 1 << GENERATION_BITS;
        let packets: Vec<_> = [change - 2, change - 1, change, change + 1, 2 * change]
            .map(|number| (number, sealed(&mut from, number, 16)))
            .into();
        let mut open = |at: usize| {
            let (number, (tag, body)) = &packets[at];
            to.open(*number, b"header", tag, &mut body.clone())
        };
        assert!(!open(4), "two generations ahead is nobody's packet");
        assert!(open(2) && open(0) && open(3) && open(1) && open(4));
        assert!(!open(0), "two generations behind");
    }
}
