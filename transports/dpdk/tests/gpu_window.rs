//! A window on memory of a (fake) GPU: what a peer writes lands there through GPUDev's mapping, and
//! the GPU is told to look before the caller is.

#![cfg(feature = "fake-gpu")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_dpdk::eal::Eal;
use genie_dpdk::gpu::{Gpu, GpuMemory, fake};
use genie_dpdk::settings::Settings;
use genie_dpdk::transport::Dpdk;
use genie_transport::transport::{
    Cause, Completion, Connection, Memory, MemoryKind, Options, Part, Transport,
};

const BYTES: usize = 1 << 20;

fn options() -> Options {
    let settings = [("device", "net_ring"), ("ip", "10.77.0.1/24"), ("mtu", "1500")];
    let settings: BTreeMap<String, String> =
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Options {
        address: "10.77.0.1:0".to_owned(),
        trusted: true,
        connection: 7,
        settings,
        ..Options::default()
    }
}

/// Polls both ends until `wanted` is found at the second.
fn until(ends: &mut [Box<dyn Connection>; 2], wanted: impl Fn(&Completion) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    let mut completions = Vec::new();
    while Instant::now() < end {
        ends[0].poll(&mut completions).unwrap();
        completions.clear();
        ends[1].poll(&mut completions).unwrap();
        if completions.iter().any(&wanted) {
            return;
        }
        std::thread::yield_now();
    }
    panic!("what was waited for did not come");
}

fn gpu_memory(gpu: Gpu) -> (Memory, Arc<GpuMemory>) {
    let memory = Arc::new(gpu.allocate(BYTES, 0).unwrap());
    // SAFETY: a device pointer of so many bytes, valid while the reference lives.
    let registered = unsafe {
        Memory::from_raw(
            memory.address(),
            BYTES as u64,
            MemoryKind::Gpu,
            gpu.number().into(),
            -1,
            memory.clone(),
        )
    };
    (registered, memory)
}

#[test]
fn a_message_lands_in_memory_of_the_gpu() {
    let settings = Settings::read(&options().settings).unwrap();
    let eal = Eal::start(&settings.eal).unwrap();
    let gpu = eal.run(|_| fake::add("fake0").unwrap()).unwrap();

    let mut listener = Dpdk.listen(&options()).unwrap();
    let client = Dpdk.connect(&Options { address: listener.address(), ..options() }).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let server = loop {
        if let Some(server) = listener.accept().unwrap() {
            break server;
        }
        assert!(Instant::now() < end, "the connection is accepted");
        std::thread::yield_now();
    };
    let mut ends = [client, server];
    until(&mut ends, |completion| matches!(completion, Completion::Connected));

    let before = fake::counts();
    let (memory, gpu_memory) = gpu_memory(gpu);
    let window = ends[1].register(memory).unwrap();
    assert_eq!(fake::counts().mapped, before.mapped + 1);
    ends[1].offer(3, Part { key: window, offset: 0, bytes: BYTES as u64 }).unwrap();

    let (source, shared) = Memory::allocate(BYTES as u64).unwrap();
    let payload: Vec<u8> = (0..BYTES).map(|n| (n * 7 + n / 251) as u8).collect();
    shared.write(0, &payload).unwrap();
    let key = ends[0].register(source).unwrap();
    ends[0].write(1, &[Part { key, offset: 0, bytes: BYTES as u64 }], 3, 0).unwrap();
    until(&mut ends, |completion| matches!(completion, Completion::Placed { message: 1, .. }));
    assert_eq!(fake::counts().barriers, before.barriers + 1, "the GPU sees it before we are told");

    ends[1].withdraw(3).unwrap();
    ends[1].unregister(window).unwrap();
    assert_eq!(fake::counts().unmapped, before.unmapped + 1, "given up when unregistered");
    let seen = gpu_memory.map().unwrap();
    // SAFETY: the mapping is as long as the memory, and nobody writes now.
    let seen = unsafe { std::slice::from_raw_parts(seen.address(), BYTES) };
    assert!(seen == payload, "the bytes that were sent");
}

#[test]
fn memory_of_no_known_gpu_is_refused_with_the_reason() {
    let options = options();
    let mut connection =
        Dpdk.connect(&Options { address: "10.77.0.1:9".to_owned(), ..options }).unwrap();
    // SAFETY: never used as memory: there is no such GPU.
    let memory = unsafe {
        Memory::from_raw(
            std::ptr::without_provenance_mut(4096),
            4096,
            MemoryKind::Gpu,
            1234,
            -1,
            Arc::new(()),
        )
    };
    let refused = connection.register(memory).unwrap_err();
    assert_eq!(refused.cause, Cause::Unsupported);
    assert!(refused.message.contains("GPU 1234"), "{refused}");
}
