//! Sends datagrams whose payload a device reads where it lies, in memory of a GPU or of the host,
//! and checks them at the other end: what has to be run on hardware (docs/dpdk.md).
//!
//! ```text
//! attached receive --set device=... --set ip=10.0.0.1/24 [--count N]
//! attached send    --set device=... --set ip=10.0.0.2/24 --set peer_mac=02:.. --to 10.0.0.1
//!                  [--gpu NUMBER] [--count N]
//! ```
//!
//! The receiver copies what arrives and compares it; it prints how many datagrams were as sent. The
//! sender prints how long the device kept the memory.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_dpdk::eal::Eal;
use genie_dpdk::external::External;
use genie_dpdk::framing::{Frame, Mac, Path};
use genie_dpdk::gpu::{Gpu, GpuMemory};
use genie_dpdk::packet::Lease;
use genie_dpdk::port::Port;
use genie_dpdk::settings::Settings;

/// The UDP port of both ends.
const UDP: u16 = 4791;
const CHUNK: usize = 1024;
const CHUNKS: usize = 64;
/// Memory is registered in pages of this size: those of NVIDIA's GPUs, and a multiple of the host's.
const PAGE: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Default)]
struct Arguments {
    settings: BTreeMap<String, String>,
    to: Option<Ipv4Addr>,
    gpu: Option<i32>,
    count: usize,
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let role = words.next().unwrap_or_default();
    let mut arguments = Arguments { count: 10_000, ..Arguments::default() };
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        match name.as_str() {
            "--set" => {
                let (name, value) = value.split_once('=').ok_or("--set NAME=VALUE")?;
                arguments.settings.insert(name.to_owned(), value.to_owned());
            }
            "--to" => arguments.to = Some(value.parse()?),
            "--gpu" => arguments.gpu = Some(value.parse()?),
            "--count" => arguments.count = value.parse()?,
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let settings = Settings::read(&arguments.settings)?;
    let eal = Eal::start(&settings.eal)?;
    eal.run(move |_| match role.as_str() {
        "receive" => receive(&settings, arguments.count),
        "send" => send(&settings, &arguments),
        _ => Err("send or receive".into()),
    })?
}

fn byte(chunk: usize, at: usize) -> u8 {
    (chunk * 31 + at * 7 + at / 256) as u8
}

fn receive(settings: &Settings, count: usize) -> Result<(), Failure> {
    let mut port = Port::open(&settings.device)?;
    println!("ready {}", port.mac());
    let (mut good, mut bad) = (0, 0);
    let mut until = Instant::now() + PATIENCE;
    let (mut packets, mut scratch) = (Vec::new(), Vec::new());
    while good + bad < count && Instant::now() < until {
        if port.receive(|packet| packets.push(packet)) > 0 {
            until = Instant::now() + PATIENCE.min(Duration::from_secs(3));
        }
        for mut packet in packets.drain(..) {
            let (found, frame) = port.read(&mut packet, &mut scratch);
            let Frame::Datagram(datagram) = found else { continue };
            if datagram.to.port() != UDP || *datagram.to.ip() != settings.device.ip {
                continue;
            }
            let payload = &frame[datagram.payload_at..][..datagram.payload_len];
            let chunk = payload.first_chunk().map_or(0, |head| u64::from_be_bytes(*head)) as usize;
            let whole = payload.len() == 8 + CHUNK;
            let same = payload.iter().skip(8).enumerate().all(|(at, b)| *b == byte(chunk, at));
            if whole && same { good += 1 } else { bad += 1 }
        }
    }
    println!("{good} of {count} arrived as sent, {bad} damaged; driver {}", port.driver());
    if bad > 0 || good == 0 { Err("the payload is not what was sent".into()) } else { Ok(()) }
}

/// Memory to send from, and where the processor may write it.
fn memory(gpu: Option<i32>) -> Result<(*mut u8, Arc<dyn std::any::Any + Send + Sync>), Failure> {
    const BYTES: usize = CHUNK * CHUNKS;
    let fill = |at: *mut u8| {
        for n in 0..BYTES {
            // SAFETY: `at` is BYTES long, ours alone, and writable.
            unsafe { at.add(n).write(byte(n / CHUNK, n % CHUNK)) };
        }
    };
    if let Some(number) = gpu {
        let gpu = Gpu::by_number(number).ok_or("GPUDev knows no such GPU")?;
        println!("memory of {}", gpu.facts()?.name);
        let memory: Arc<GpuMemory> = Arc::new(gpu.allocate(BYTES, PAGE as u32)?);
        fill(memory.map()?.address());
        gpu.write_barrier()?;
        return Ok((memory.address(), memory));
    }
    println!("memory of the host");
    let mut host = vec![0u8; BYTES + PAGE];
    let spare = host.as_ptr().align_offset(PAGE);
    let at = host.as_mut_ptr().wrapping_add(spare);
    fill(at);
    Ok((at, Arc::new(host)))
}

fn send(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let to = arguments.to.ok_or("--to ADDRESS")?;
    let mut port = Port::open(&settings.device)?;
    let (address, owner) = memory(arguments.gpu)?;
    // SAFETY: `owner` keeps the memory until the end of this function, as the port is kept.
    let external = unsafe { External::register(&port, address, CHUNK * CHUNKS, PAGE)? };
    let (done, freed) = std::sync::mpsc::channel();
    // SAFETY: as above; nobody holds references to the bytes.
    let lease = unsafe {
        Lease::new(address, CHUNK * CHUNKS, owner.clone(), move || {
            let _ = done.send(());
        })
    };
    let way = Path {
        from_mac: port.mac(),
        to_mac: settings.peer_mac.unwrap_or(Mac::BROADCAST),
        from: SocketAddrV4::new(settings.device.ip, UDP),
        to: SocketAddrV4::new(to, UDP),
    };
    let (started, until) = (Instant::now(), Instant::now() + PATIENCE);
    let mut sent = 0;
    while sent < arguments.count && Instant::now() < until {
        let chunk = sent % CHUNKS;
        let head = (chunk as u64).to_be_bytes();
        if port.send_attached(&way, &head, &lease, chunk * CHUNK, CHUNK as u16) {
            sent += 1;
        } else {
            port.reclaim();
        }
        if port.queued() >= 32 || sent == arguments.count {
            port.flush();
        }
    }
    let mut asked = false;
    while lease.references() > 1 && Instant::now() < until {
        port.flush();
        asked |= port.reclaim();
    }
    let kept = lease.references() - 1;
    println!(
        "{sent} sent in {:?}, {kept} references kept; the driver {} be asked to give memory back",
        started.elapsed(),
        if asked { "can" } else { "cannot" },
    );
    drop(lease);
    let back = freed.try_recv().is_ok();
    drop((external, port));
    if kept == 0 && back { Ok(()) } else { Err("the device kept the memory".into()) }
}
