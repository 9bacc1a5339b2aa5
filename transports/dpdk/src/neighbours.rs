//! Which interface address belongs to which IP address on the link (ARP). Pure: the clock is
//! passed in, frames are returned.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::framing::{Arp, Mac};

/// Addresses remembered; more are not learnt.
pub const NEIGHBOURS_MAX: usize = 1024;
/// How long an address is believed before it is asked for again (it is used meanwhile).
const FRESH: Duration = Duration::from_secs(30);
/// The first pause between two requests for an address, doubled up to the last.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(20);
const ASK_AGAIN_LAST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Neighbours {
    mac: Mac,
    ip: Ipv4Addr,
    known: HashMap<Ipv4Addr, Entry>,
}

#[derive(Debug)]
struct Entry {
    mac: Option<Mac>,
    /// When to ask for it (again), if it is wanted.
    ask_at: Instant,
    pause: Duration,
    fixed: bool,
}

impl Neighbours {
    pub fn new(mac: Mac, ip: Ipv4Addr) -> Self {
        Neighbours { mac, ip, known: HashMap::new() }
    }

    /// An address by configuration: never asked for, never changed.
    pub fn fix(&mut self, ip: Ipv4Addr, mac: Mac, now: Instant) {
        let entry = Entry { mac: Some(mac), ask_at: now, pause: ASK_AGAIN_FIRST, fixed: true };
        self.known.insert(ip, entry);
    }

    /// Where `ip` is, if known, and the request to send, if one is due.
    pub fn look_up(&mut self, ip: Ipv4Addr, now: Instant) -> (Option<Mac>, Option<Arp>) {
        if !self.known.contains_key(&ip) {
            if self.known.len() >= NEIGHBOURS_MAX {
                return (None, None);
            }
            let new = Entry { mac: None, ask_at: now, pause: ASK_AGAIN_FIRST, fixed: false };
            self.known.insert(ip, new);
        }
        let entry = self.known.get_mut(&ip).expect("inserted above");
        if entry.fixed || now < entry.ask_at {
            return (entry.mac, None);
        }
        entry.ask_at = now + entry.pause;
        entry.pause = (entry.pause * 2).min(ASK_AGAIN_LAST);
        let ask = Arp {
            is_request: true,
            from_mac: self.mac,
            from: self.ip,
            to_mac: Mac([0; 6]),
            to: ip,
        };
        (entry.mac, Some(ask))
    }

    /// When the request for `ip` is due again.
    pub fn ask_at(&self, ip: Ipv4Addr) -> Option<Instant> {
        self.known.get(&ip).filter(|entry| !entry.fixed).map(|entry| entry.ask_at)
    }

    /// Learns from a message that concerns us; the answer to send, if it was a question.
    pub fn heard(&mut self, arp: &Arp, now: Instant) -> Option<Arp> {
        if arp.to != self.ip || !arp.from_mac.is_unicast() || arp.from == self.ip {
            return None;
        }
        // Only what was asked for, or who asks for us (and will hear from us next), is learnt.
        let known = self.known.contains_key(&arp.from);
        if known || (arp.is_request && self.known.len() < NEIGHBOURS_MAX) {
            let entry = self.known.entry(arp.from).or_insert(Entry {
                mac: None,
                ask_at: now,
                pause: ASK_AGAIN_FIRST,
                fixed: false,
            });
            if !entry.fixed {
                entry.mac = Some(arp.from_mac);
                entry.ask_at = now + FRESH;
                entry.pause = ASK_AGAIN_FIRST;
            }
        }
        arp.is_request.then_some(Arp {
            is_request: false,
            from_mac: self.mac,
            from: self.ip,
            to_mac: arp.from_mac,
            to: arp.from,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    #[test]
    fn two_sides_find_each_other_with_one_question() {
        let now = Instant::now();
        let (mut a, mut b) = (Neighbours::new(OURS, IP), Neighbours::new(THEIRS, PEER));
        let (None, Some(question)) = a.look_up(PEER, now) else { panic!("not asked") };
        let answer = b.heard(&question, now).expect("a question gets its answer");
        assert_eq!(a.heard(&answer, now), None);
        assert_eq!(a.look_up(PEER, now), (Some(THEIRS), None));
        assert_eq!(b.look_up(IP, now), (Some(OURS), None), "learnt from the question");
    }

    #[test]
    fn an_unanswered_question_is_repeated_ever_more_slowly() {
        let start = Instant::now();
        let mut table = Neighbours::new(OURS, IP);
        let (mut asked, mut now) = (0, start);
        while now < start + Duration::from_secs(3) {
            asked += usize::from(table.look_up(PEER, now).1.is_some());
            now += Duration::from_millis(5);
        }
        assert!((5..=10).contains(&asked), "{asked} questions in 3 s");
    }

    #[test]
    fn an_old_address_is_used_while_it_is_asked_for_again() {
        let now = Instant::now();
        let mut table = Neighbours::new(OURS, IP);
        let heard =
            Arp { is_request: true, from_mac: THEIRS, from: PEER, to_mac: Mac([0; 6]), to: IP };
        table.heard(&heard, now);
        let (mac, ask) = table.look_up(PEER, now + FRESH);
        assert_eq!(mac, Some(THEIRS));
        assert!(ask.is_some());
    }

    #[test]
    fn what_nobody_asked_for_is_not_believed() {
        let now = Instant::now();
        let mut table = Neighbours::new(OURS, IP);
        let gift = Arp { is_request: false, from_mac: THEIRS, from: PEER, to_mac: OURS, to: IP };
        assert_eq!(table.heard(&gift, now), None);
        assert_eq!(table.look_up(PEER, now).0, None);

        table.fix(PEER, OURS, now);
        table.heard(&gift, now);
        assert_eq!(table.look_up(PEER, now), (Some(OURS), None), "configuration stays");
    }

    #[test]
    fn the_table_is_bounded() {
        let now = Instant::now();
        let mut table = Neighbours::new(OURS, IP);
        for n in 0..2 * NEIGHBOURS_MAX as u32 {
            let from = Ipv4Addr::from(0x0b00_0000 + n);
            let question =
                Arp { is_request: true, from_mac: THEIRS, from, to_mac: Mac([0; 6]), to: IP };
            table.heard(&question, now);
            table.look_up(Ipv4Addr::from(0x0c00_0000 + n), now);
        }
        assert_eq!(table.known.len(), NEIGHBOURS_MAX);
    }
}
