//! Two ends in one thread with nothing between them: what the protocol costs a core.
//!
//! `cargo run --release -p genie-bulk --example pair [-- GIGABYTES DATAGRAM_BYTES]`
//!
//! On a busy machine the wall clock says little: the kernel's count of this thread's processor time stands beside it.

use std::sync::Arc;
use std::time::Instant;

use genie_bulk::{Config, Connection, Event, Protection, Role, Span};

const WINDOW_BYTES: usize = 64 << 20;
const SEGMENTS: usize = 40;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let gigabytes: f64 = arguments.next().map_or(4.0, |text| text.parse().expect("gigabytes"));
    let datagram: usize = arguments.next().map_or(1472, |text| text.parse().expect("bytes"));
    for (name, protection) in
        [("sealed", Protection::Sealed { secret: [7; 32] }), ("trusted", Protection::Trusted)]
    {
        let (seconds, busy, bytes, packets) = run(protection, gigabytes, datagram);
        println!(
            "{name:8} {datagram} B: {:.2} Gb/s of payload by the clock, {:.2} by processor time of one core for both ends, {:.0} ns a packet",
            bytes as f64 * 8e-9 / seconds,
            bytes as f64 * 8e-9 / busy,
            busy * 1e9 / packets as f64,
        );
    }
}

fn run(protection: Protection, gigabytes: f64, datagram: usize) -> (f64, f64, u64, u64) {
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let end = |role, nonce: u8| {
        let mut config = Config::new(1, role, protection.clone(), [nonce; 16]);
        config.datagram_bytes = datagram;
        config.rate_initial = 10_000_000_000;
        Connection::new(config, now()).expect("a configuration that works")
    };
    let (mut sender, mut receiver) = (end(Role::Client, 1), end(Role::Server, 2));
    let mut source = vec![3_u8; WINDOW_BYTES];
    let mut target = vec![0_u8; WINDOW_BYTES];
    // SAFETY: both vectors outlive both connections' use of them and are not touched meanwhile.
    let (from, to) = unsafe {
        (Span::new(source.as_mut_ptr(), source.len()), Span::new(target.as_mut_ptr(), target.len()))
    };
    receiver.offer(1, Arc::new(to)).expect("offered");
    let messages = (gigabytes * 1e9 / WINDOW_BYTES as f64).ceil() as u64;
    let (mut written, mut placed) = (0, 0);
    let mut buf = vec![0; SEGMENTS * datagram];
    let (began, busy) = (Instant::now(), processor_seconds());
    while placed < messages {
        while written < messages && written < placed + 2 {
            sender.write(written, vec![from], 1, 0).expect("room");
            written += 1;
        }
        carry(&mut sender, &mut receiver, &mut buf, datagram, &now);
        carry(&mut receiver, &mut sender, &mut buf, datagram, &now);
        while let Some(event) = receiver.poll_event() {
            placed += u64::from(matches!(event, Event::Placed { .. }));
        }
        while let Some(event) = sender.poll_event() {
            assert!(!matches!(event, Event::Closed(_)), "{event:?}");
        }
    }
    let statistics = sender.statistics();
    let busy = processor_seconds() - busy;
    let bytes = messages * WINDOW_BYTES as u64;
    (began.elapsed().as_secs_f64(), busy, bytes, statistics.packets_sent)
}

/// Processor time of this thread so far, in seconds.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split(' ').next().expect("three numbers");
    nanoseconds.parse::<f64>().expect("a number") * 1e-9
}

fn carry(
    from: &mut Connection,
    to: &mut Connection,
    buf: &mut [u8],
    datagram: usize,
    now: &impl Fn() -> u64,
) {
    let time = now();
    if from.poll_timeout().is_some_and(|at| at <= time) {
        from.handle_timeout(time);
    }
    while let Some(transmit) = from.poll_transmit(time, &mut buf[..SEGMENTS * datagram], SEGMENTS) {
        for packet in buf[..transmit.bytes].chunks_mut(transmit.segment_bytes) {
            to.handle(time, transmit.flow, packet);
        }
    }
}
