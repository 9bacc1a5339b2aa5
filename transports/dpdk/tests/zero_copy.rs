//! The life of a packet that carries memory of a GPU without a copy, proven on net_ring: the only
//! software device that hands on the very packets it was given.
//!
//! The GPU is fake, but its memory is honest about one thing: its device address has no access
//! rights. A processor that read or wrote the payload on its way would die of SIGSEGV.

#![cfg(feature = "fake-gpu")]

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use genie_bulk::{Config, Protection, Role, Span};
use genie_dpdk::eal::Eal;
use genie_dpdk::external::External;
use genie_dpdk::framing::{HEADER_BYTES, Path};
use genie_dpdk::gpu::{Gpu, fake};
use genie_dpdk::lane::{Shared, time};
use genie_dpdk::memories::Prepared;
use genie_dpdk::packet::{Lease, Packet, Pool};
use genie_dpdk::port::Port;
use genie_dpdk::settings::Settings;
use genie_dpdk::tail::Tail;
use genie_transport::transport::{Completion, Memory, Part};

const CHUNK: usize = 1024;
const CHUNKS: usize = 16;

/// One EAL for the process; the counters of the fake GPU are shared, so one test at a time.
fn on_dpdk_thread<R: Send + 'static>(test: impl FnOnce(&Settings) -> R + Send + 'static) -> R {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let given: BTreeMap<String, String> = [("device", "net_ring"), ("ip", "10.0.0.1/24")]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let settings = Settings::read(&given).unwrap();
    let eal = Eal::start(&settings.eal).expect("DPDK starts without hugepages");
    eal.run(move |_| test(&settings)).expect("the test did not panic (its message is above)")
}

fn path(from: &Port, to: &Port) -> Path {
    Path {
        from_mac: from.mac(),
        to_mac: to.mac(),
        from: SocketAddrV4::new([10, 0, 0, 1].into(), 4000),
        to: SocketAddrV4::new([10, 0, 0, 2].into(), 5000),
    }
}

fn receive_all(port: &mut Port) -> Vec<Packet> {
    let mut packets = Vec::new();
    while port.receive(|packet| packets.push(packet)) > 0 {}
    packets
}

#[test]
fn gpu_memory_crosses_without_a_touch_and_is_given_back_once() {
    on_dpdk_thread(|settings| {
        let before = fake::counts();
        let gpu = fake::add("fake0").unwrap();
        assert_eq!(gpu.facts().unwrap().name, "fake0");
        assert!(Gpu::all().contains(&gpu));
        let memory = Arc::new(gpu.allocate(CHUNK * CHUNKS, 0).unwrap());
        let (mut left, mut right) = Port::ring_pair("zc", &settings.device).unwrap();

        // The NIC's side of registration: the memory is made known to DPDK, as for a real GPU.
        // SAFETY: page-aligned memory of the fake GPU; it and the port outlive the registration.
        let external =
            unsafe { External::register(&left, memory.address(), memory.bytes(), 4096).unwrap() };
        // SAFETY: as above; refused, since the range is known already.
        let again = unsafe { External::register(&left, memory.address(), memory.bytes(), 4096) };
        assert!(again.unwrap_err().to_string().contains("registered with DPDK"));

        // What the GPU computed. (The mapping stands for the GPU's own writes.)
        let mapping = memory.map().unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let payload: Vec<u8> = (0..CHUNK * CHUNKS)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random as u8
            })
            .collect();
        // SAFETY: the mapping is as long as the memory, and nobody else uses it now.
        unsafe {
            std::ptr::copy_nonoverlapping(payload.as_ptr(), mapping.address(), payload.len());
        }
        gpu.write_barrier().unwrap();

        let freed = Arc::new(AtomicUsize::new(0));
        let on_free = freed.clone();
        // SAFETY: the memory lives while its reference does; nobody holds Rust references to it.
        let lease = unsafe {
            Lease::new(memory.address(), memory.bytes(), memory.clone(), move || {
                on_free.fetch_add(1, Ordering::SeqCst);
            })
        };
        assert_eq!(lease.references(), 1);

        // Headers in one buffer, payload where it lies: one packet of two segments a chunk.
        let way = path(&left, &right);
        for chunk in 0..CHUNKS {
            let head = (chunk as u32).to_be_bytes();
            assert!(left.send_attached(&way, &head, &lease, chunk * CHUNK, CHUNK as u16));
        }
        assert_eq!(usize::from(lease.references()), 1 + CHUNKS, "one each, before sending");
        assert_eq!(left.flush(), CHUNKS);
        assert_eq!(
            usize::from(lease.references()),
            1 + CHUNKS,
            "sent, but not free: the device has the packets"
        );
        assert!(!left.is_drained());

        let mut packets = receive_all(&mut right);
        assert_eq!(packets.len(), CHUNKS);
        for (chunk, packet) in packets.iter().enumerate() {
            let segments: Vec<_> = packet.segments().collect();
            assert_eq!(segments.len(), 2, "header and payload are apart");
            let [head, body] = segments[..] else { unreachable!() };
            assert!(!head.external && body.external);
            assert_eq!(head.bytes, HEADER_BYTES + 4);
            assert_eq!(body.bytes, CHUNK);
            let at = memory.address().wrapping_add(chunk * CHUNK);
            assert_eq!(body.address, at.cast_const(), "the very memory of the GPU, not a copy");
            // The bytes, through the mapping, since the address itself cannot be read.
            let offset = body.address as usize - memory.address() as usize;
            // SAFETY: within the mapping; nobody writes now.
            let seen =
                unsafe { std::slice::from_raw_parts(mapping.address().add(offset), body.bytes) };
            assert_eq!(seen, &payload[chunk * CHUNK..][..CHUNK]);
        }

        // Half is freed by the receiver: half the references go, and nothing is given back.
        packets.truncate(CHUNKS / 2);
        assert_eq!(usize::from(lease.references()), 1 + CHUNKS / 2);
        assert_eq!(freed.load(Ordering::SeqCst), 0);

        // The owner gives up first: the memory is still not free, packets are out.
        drop(lease);
        assert_eq!(freed.load(Ordering::SeqCst), 0, "not reusable until the last packet is freed");
        let last = packets.pop().unwrap();
        drop(packets);
        assert_eq!(freed.load(Ordering::SeqCst), 0);
        drop(last);
        assert_eq!(freed.load(Ordering::SeqCst), 1, "given back exactly once");
        assert!(left.is_drained() && right.is_drained(), "every buffer is back");

        drop(external);
        drop(mapping);
        drop(memory);
        drop((left, right));
        assert_eq!(freed.load(Ordering::SeqCst), 1);
        let after = fake::counts();
        assert_eq!(after.allocated - before.allocated, 1);
        assert_eq!(after.freed - before.freed, 1, "the memory went with its last user");
        assert_eq!(after.mapped - before.mapped, 1);
        assert_eq!(after.unmapped - before.unmapped, 1);
        assert_eq!(after.barriers - before.barriers, 1);
    });
}

#[test]
fn packets_that_the_device_never_takes_give_their_memory_back() {
    on_dpdk_thread(|settings| {
        let gpu = fake::add("fake-drop").unwrap();
        let memory = Arc::new(gpu.allocate(CHUNK, 0).unwrap());
        let (mut left, right) = Port::ring_pair("drop", &settings.device).unwrap();
        let freed = Arc::new(AtomicUsize::new(0));
        let on_free = freed.clone();
        // SAFETY: as in the first test.
        let lease = unsafe {
            Lease::new(memory.address(), memory.bytes(), memory.clone(), move || {
                on_free.fetch_add(1, Ordering::SeqCst);
            })
        };
        let way = path(&left, &right);
        for _ in 0..5 {
            assert!(left.send_attached(&way, b"", &lease, 0, CHUNK as u16));
        }
        assert_eq!(lease.references(), 6);
        left.drop_queued();
        assert_eq!((lease.references(), left.refused), (1, 5));
        assert_eq!(freed.load(Ordering::SeqCst), 0);
        drop(lease);
        assert_eq!(freed.load(Ordering::SeqCst), 1);
        assert!(left.is_drained());
    });
}

#[test]
fn a_full_pool_refuses_and_recovers() {
    on_dpdk_thread(|settings| {
        let gpu = fake::add("fake-full").unwrap();
        let memory = Arc::new(gpu.allocate(CHUNK, 0).unwrap());
        let (mut left, right) = Port::ring_pair("full", &settings.device).unwrap();
        // SAFETY: as in the first test.
        let lease = unsafe { Lease::new(memory.address(), memory.bytes(), memory.clone(), || {}) };
        let way = path(&left, &right);
        let mut sent = 0;
        while left.send_attached(&way, b"", &lease, 0, CHUNK as u16) {
            sent += 1;
            assert!(sent < 100_000, "the pool is bounded");
        }
        assert_eq!(usize::from(lease.references()), 1 + sent, "a refused packet holds nothing");
        left.drop_queued();
        assert_eq!(lease.references(), 1);
        assert!(left.send_attached(&way, b"", &lease, 0, CHUNK as u16));
        left.drop_queued();
    });
}

/// The peer has a message while the device still has its packets: the sender is not told, and its
/// memory stays registered, until they are freed; also when the connection ends first.
#[test]
fn a_message_is_written_when_the_device_is_done_with_it_too() {
    const BYTES: usize = 20_000;
    for ends_first in [false, true] {
        on_dpdk_thread(move |_| {
            let pool = Pool::new("late", 255, 0).unwrap();
            let mut tail = Tail::new(None);
            let [sender, receiver] = [Role::Client, Role::Server].map(|role| {
                let config = Config::new(1, role, Protection::Trusted, [role as u8 + 1; 16]);
                let bulk = genie_bulk::Connection::new(config, time(Instant::now())).unwrap();
                Shared::new(bulk, None, "the peer".to_owned(), true).unwrap()
            });
            let mut kept = Vec::new();
            let talk = |tail: &mut Tail, kept: &mut Vec<Packet>| {
                for _ in 0..20 {
                    for (from, to) in [(&sender, &receiver), (&receiver, &sender)] {
                        let (mut buffer, now) = (vec![0; 1472], Instant::now());
                        let mut state = from.lock();
                        state.round(now, true);
                        loop {
                            assert!(tail.refill(&pool));
                            let sent = state.transmit(now, &mut buffer, Some(tail));
                            let Some((bytes, flow)) = sent else { break };
                            let mut datagram = buffer[..bytes].to_vec();
                            for packet in tail.take() {
                                let mut behind = Vec::new();
                                packet.copy_to(&mut behind);
                                datagram.extend(behind);
                                kept.push(packet);
                            }
                            to.lock().bulk.handle(time(now), flow, &mut datagram);
                        }
                        state.round(now, true);
                    }
                }
                // What the last datagram brought.
                sender.lock().round(Instant::now(), true);
            };
            let completions = |of: &Shared| {
                let mut completions = Vec::new();
                let outcome = of.lock().poll(of, &mut completions).map(|_| ());
                (completions, outcome)
            };
            let mut window = vec![0u8; BYTES];
            // SAFETY: the vector outlives the connection.
            let span = unsafe { Span::new(window.as_mut_ptr(), window.len()) };
            receiver.lock().bulk.offer(1, Arc::new(span)).unwrap();
            talk(&mut tail, &mut kept);
            let (memory, shared) = Memory::allocate(BYTES as u64).unwrap();
            shared.write(0, &[9; BYTES]).unwrap();
            let key = {
                let mut state = sender.lock();
                let key = state.memories.register(Prepared::new(memory).unwrap()).unwrap();
                let part = Part { key, offset: 0, bytes: BYTES as u64 };
                let spans = vec![state.memories.span(part).unwrap()];
                state.bulk.write(5, spans, 1, 0).unwrap();
                state.memories.hold_for_message(5, &[part]);
                key
            };
            assert!(matches!(completions(&sender).0[..], [Completion::Connected]));
            // The first packets find the rate; the peer's word comes within these rounds.
            let until = Instant::now() + Duration::from_secs(60);
            while receiver.lock().bulk.statistics().messages_placed == 0
                || sender.lock().bulk.statistics().messages_written == 0
            {
                assert!(Instant::now() < until, "the message arrives");
                talk(&mut tail, &mut kept);
            }
            let out = sender.lock().memories.references();
            assert!(out > 10 && out == kept.len(), "{out} of {} packets are out", kept.len());
            assert!(completions(&sender).0.is_empty(), "told while the device has packets");
            assert!(sender.lock().memories.unregister(key).is_err());
            if ends_first {
                sender.lock().end("enough");
                let (told, outcome) = completions(&sender);
                assert!(told.is_empty() && outcome.is_ok(), "the failure comes behind");
            }
            assert!(sender.lock().memories.is_only_out(key));
            kept.truncate(1);
            sender.lock().round(Instant::now(), true);
            assert!(completions(&sender).0.is_empty(), "one packet is enough");
            kept.clear();
            sender.lock().round(Instant::now(), true);
            let (told, _) = completions(&sender);
            assert!(matches!(told[..], [Completion::Written { message: 5 }]), "{told:?}");
            sender.lock().memories.unregister(key).unwrap();
            assert_eq!((Arc::strong_count(&shared), window), (1, vec![9; BYTES]));
            assert_eq!(completions(&sender).1.is_err(), ends_first);
            tail.clear();
            assert_eq!(pool.available(), pool.count(), "every buffer is back");
        });
    }
}

#[test]
fn packets_can_lie_in_a_gpus_memory_to_begin_with() {
    const COUNT: u32 = 31;
    const ELEMENT: u16 = 2048;
    on_dpdk_thread(|_| {
        let before = fake::counts();
        let gpu = fake::add("fake-pool").unwrap();
        let bytes = (COUNT + 1) as usize * usize::from(ELEMENT);
        let memory = Arc::new(gpu.allocate(bytes, 0).unwrap());
        // SAFETY: the memory lives while its reference does; nobody holds references to its bytes.
        let pool = unsafe {
            Pool::over("gpu", COUNT, ELEMENT, memory.address(), bytes, memory.clone()).unwrap()
        };
        let device = memory.address() as usize..memory.address() as usize + bytes;
        drop(memory);
        let mut packets: Vec<Packet> = std::iter::from_fn(|| Packet::new(&pool)).collect();
        assert_eq!(packets.len(), COUNT as usize);
        let mut places: Vec<usize> = Vec::new();
        for packet in &mut packets {
            let segment = packet.segments().next().unwrap();
            assert!(segment.external, "pinned external memory, in DPDK's words");
            assert!(device.contains(&(segment.address as usize)));
            places.push(segment.address as usize);
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), COUNT as usize, "each has a place of its own");
        assert_eq!(pool.available(), 0);
        drop(packets);
        assert_eq!(pool.available(), COUNT);
        assert_eq!(fake::counts().freed, before.freed, "the pool keeps its memory");
        drop(pool);
        assert_eq!(fake::counts().freed, before.freed + 1);

        let small = Arc::new(gpu.allocate(4096, 0).unwrap());
        // SAFETY: as above; refused before it is used.
        let refused =
            unsafe { Pool::over("small", COUNT, ELEMENT, small.address(), 4096, small.clone()) };
        assert!(refused.unwrap_err().to_string().contains("fewer"));
    });
}

#[test]
fn host_memory_is_registered_with_the_gpu_and_given_up() {
    on_dpdk_thread(|_| {
        let before = fake::counts();
        let gpu = fake::add("fake-host").unwrap();
        let mut host = vec![0u8; 4096];
        // SAFETY: the vector outlives the registration.
        let registered = unsafe { gpu.register_host(host.as_mut_ptr(), host.len()) }.unwrap();
        assert_eq!(fake::counts().registered, before.registered + 1);
        drop(registered);
        assert_eq!(fake::counts().unregistered, before.unregistered + 1);
        // SAFETY: not memory of this GPU: refused, so nothing is mapped.
        let refused = unsafe { gpu.map_foreign(host.as_mut_ptr(), host.len()) };
        assert!(refused.unwrap_err().to_string().contains("map its memory"));
        let number = i32::from(gpu.number());
        assert_eq!(Gpu::by_number(number), Some(gpu));
        assert_eq!(Gpu::by_number(9999), None);
    });
}
