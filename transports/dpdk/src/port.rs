//! One device of DPDK: its buffers, one queue each way, and its framing of datagrams.

use std::ffi::{CStr, CString, c_char};
use std::net::SocketAddrV4;

use dpdk_sys as sys;

use crate::error::{DpdkError, Result, reason};
use crate::framing::{self, Arp, Checksum, Frame, HEADER_BYTES, Mac, Path, Sum};
use crate::packet::{Lease, Packet, Pool};
use crate::settings::{
    Checksums, DeviceSettings, MTU_MAX, frame_bytes, interface_of, is_pci_address, socket_made_by,
};
use crate::tail::Tail;

/// Packets taken from or given to a device at once.
pub const BURST: usize = 32;
/// Descriptors asked for, each way; drivers adjust it.
const DESCRIPTORS: u16 = 1024;
/// Buffers of a pool: both queues full, and what is in our hands.
const BUFFERS: u32 = 4095;
/// Drivers that copy a packet while it is given to them (or hand on the very packet), and so take
/// any memory that the processor can read.
const TAKE_ANY_MEMORY: [&str; 3] = ["net_ring", "net_af_packet", "net_vhost"];
/// The MTU when neither the settings nor the device say one.
const MTU_DEFAULT: u16 = 1500;

/// A started port. Used by the DPDK thread alone.
#[derive(Debug)]
pub struct Port {
    id: u16,
    device: String,
    mac: Mac,
    mtu: u16,
    driver: String,
    offloads: u64,
    checksums: Checksums,
    interrupts: bool,
    /// Made by us (a vdev or a PCI device that we probed), so taken away again.
    bus: Option<(&'static CStr, CString)>,
    /// Kept whole in order: closing the port gives the buffers back, then the pools go.
    pools: Pools,
    outgoing: Vec<*mut sys::Mbuf>,
    /// An empty packet, kept for the next time that there is something to send.
    spare: Option<Packet>,
    /// `None`: the device cannot send attached memory, or we are to sum all payloads.
    tail: Option<Tail>,
    /// Packets that the device did not take and that were dropped.
    pub refused: u64,
}

#[derive(Debug)]
struct Pools {
    rx: Pool,
    tx: Pool,
    attach: Pool,
}

/// A descriptor of a driver's. Valid while the port is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt {
    pub fd: i32,
    /// It counts interrupts and stays readable until it is read (an eventfd).
    pub counts: bool,
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Queued,
    /// There was nothing to send.
    Nothing,
    /// All buffers are in the device: try again when it has sent some.
    NoBuffer,
}

/// Counters of the device.
pub type PortStats = sys::PortStats;

impl Port {
    /// Probes and starts a device.
    pub fn open(settings: &DeviceSettings) -> Result<Port> {
        let device = settings.device.as_str();
        if let Some(socket) = socket_made_by(device) {
            clear_stale_socket(socket)?;
        }
        check_interface_mtu(settings)?;
        let (name, _) = device.split_once(',').unwrap_or((device, ""));
        let bus = if is_pci_address(device) { c"pci" } else { c"vdev" };
        let name = CString::new(name).map_err(|_| no_device(device, "it contains a zero byte"))?;
        let mut id = 0u16;
        // SAFETY: a terminated name and a place for the answer.
        let there = unsafe { sys::genie_port_by_name(name.as_ptr(), &mut id) } == 0;
        // PCI devices are probed when EAL starts; a vdev that is there already is another user's.
        if there && bus == c"vdev" {
            return Err(DpdkError::DeviceBusy { device: device.to_owned() });
        }
        if !there {
            let arguments = CString::new(device).expect("checked with the name");
            // SAFETY: a terminated string. (Runs on the EAL thread, as everything here.)
            let failed = unsafe { sys::rte_dev_probe(arguments.as_ptr()) };
            if failed != 0 {
                return Err(no_device(device, &reason(failed)));
            }
            // SAFETY: as above.
            if unsafe { sys::genie_port_by_name(name.as_ptr(), &mut id) } != 0 {
                return Err(no_device(device, "DPDK knows it, but not as a network port"));
            }
        }
        let port = Port::start(id, settings, Some((bus, name.clone())));
        if port.is_err() {
            // SAFETY: terminated names; the port was not handed out.
            unsafe { sys::rte_eal_hotplug_remove(bus.as_ptr(), name.as_ptr()) };
        }
        port
    }

    /// Starts a port that exists already.
    pub(crate) fn start(
        id: u16,
        settings: &DeviceSettings,
        bus: Option<(&'static CStr, CString)>,
    ) -> Result<Port> {
        let device = settings.device.clone();
        let failed = |step: &str, code: i32| DpdkError::Port {
            device: device.clone(),
            step: step.to_owned(),
            reason: reason(code),
        };
        let mut info = sys::PortInfo::default();
        // SAFETY: a valid place for the answer.
        let code = unsafe { sys::genie_port_info(id, &mut info) };
        if code != 0 {
            return Err(failed("read what the device can", code));
        }
        let mtu = match (settings.mtu, info.mtu) {
            (Some(mtu), _) => mtu,
            (None, 0) => MTU_DEFAULT,
            (None, mtu) => mtu.min(MTU_MAX),
        };
        let room = frame_bytes(mtu).next_multiple_of(64).max(2048) as u16;
        let pools = Pools {
            // af_packet wants room for a whole frame of its ring, whatever the MTU.
            rx: Pool::new("rx", BUFFERS, if mtu > MTU_DEFAULT { room.max(9216) } else { room })?,
            tx: Pool::new("tx", BUFFERS, room)?,
            attach: Pool::new("attach", BUFFERS, 0)?,
        };
        let mut setup = sys::PortSetup {
            rx_pool: pools.rx.raw(),
            rx_descriptors: DESCRIPTORS,
            tx_descriptors: DESCRIPTORS,
            mtu: settings.mtu.unwrap_or(0),
            interrupts: u8::from(settings.interrupts),
            checksum_offload: u8::from(settings.checksums == Checksums::Auto),
        };
        let mut offloads = 0;
        let mut step: *const c_char = std::ptr::null();
        // SAFETY: the pool is alive and stays beside the port; the places for answers are valid.
        let mut start = || unsafe { sys::genie_port_start(id, &setup, &mut offloads, &mut step) };
        let mut code = start();
        let mut interrupts = settings.interrupts;
        if code != 0 && interrupts {
            // The driver cannot interrupt: bounded sleep does.
            interrupts = false;
            setup.interrupts = 0;
            // SAFETY: as above.
            code = unsafe { sys::genie_port_start(id, &setup, &mut offloads, &mut step) };
        }
        if code != 0 {
            // SAFETY: the shim sets `step` to a constant string before its first call.
            let step = unsafe { CStr::from_ptr(step) }.to_string_lossy().into_owned();
            return Err(failed(&step, code));
        }
        // SAFETY: the shim ends the name with a zero within its 32 bytes.
        let driver = unsafe { CStr::from_ptr(info.driver.as_ptr()) };
        let driver = driver.to_string_lossy().into_owned();
        let tail = may_attach(id, &driver, offloads, bus.as_ref().is_some_and(|it| it.0 == c"pci"))
            .filter(|_| settings.checksums != Checksums::On);
        Ok(Port {
            id,
            device: device.clone(),
            mac: Mac(info.mac),
            mtu,
            driver,
            offloads,
            checksums: settings.checksums,
            interrupts,
            bus,
            pools,
            outgoing: Vec::with_capacity(4 * BURST),
            spare: None,
            tail,
            refused: 0,
        })
    }

    /// Two ports that receive what the other sends: the very same packets.
    pub fn ring_pair(name: &str, settings: &DeviceSettings) -> Result<(Port, Port)> {
        let name = CString::new(name).expect("names have no zero bytes");
        let (mut left, mut right) = (0, 0);
        // SAFETY: a terminated name and places for the answers.
        let failed = unsafe {
            sys::genie_ring_pair(name.as_ptr(), DESCRIPTORS.into(), &mut left, &mut right)
        };
        if failed != 0 {
            return Err(no_device("net_ring", &reason(failed)));
        }
        Ok((Port::start(left, settings, None)?, Port::start(right, settings, None)?))
    }

    pub fn id(&self) -> u16 {
        self.id
    }

    pub fn mac(&self) -> Mac {
        self.mac
    }

    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Whether datagrams may have [attached](Tail) payloads.
    pub fn attaches(&self) -> bool {
        self.tail.is_some()
    }

    /// `None`: the driver does not say.
    pub fn link_is_up(&self) -> Option<bool> {
        // SAFETY: takes a number of an open port.
        match unsafe { sys::genie_port_link_up(self.id) } {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub fn stats(&self) -> PortStats {
        let mut stats = PortStats::default();
        // SAFETY: a valid place for the answer; drivers without counters leave it zero.
        unsafe { sys::genie_port_stats(self.id, &mut stats) };
        stats
    }

    /// Whether every buffer is back in its pool (nothing in the device, nothing in our hands).
    pub fn is_drained(&self) -> bool {
        let Pools { rx: _, tx, attach } = &self.pools;
        let kept = u32::from(self.spare.is_some());
        let kept_tail = self.tail.as_ref().map_or(0, Tail::kept) as u32;
        tx.available() + kept == tx.count() && attach.available() + kept_tail == attach.count()
    }

    /// Takes what arrived, at most [`BURST`] packets.
    pub fn receive(&mut self, mut each: impl FnMut(Packet)) -> usize {
        let mut raw = [std::ptr::null_mut(); BURST];
        // SAFETY: room for BURST pointers; the first `count` are set to packets that become ours.
        let count = unsafe { sys::genie_rx_burst(self.id, raw.as_mut_ptr(), BURST as u16) };
        for &raw in &raw[..usize::from(count)] {
            // SAFETY: the driver gave the packet out to us alone.
            each(unsafe { Packet::from_raw(raw) });
        }
        usize::from(count)
    }

    /// Room for one datagram's frame; `None` while all buffers are in use.
    pub fn blank(&self) -> Option<Packet> {
        Packet::new(&self.pools.tx)
    }

    /// Queues a datagram whose payload `fill` writes in place, after room for headers. `fill` says
    /// how many bytes it wrote and where they go; `None`: there is nothing to send. With `attach`,
    /// and if the device can and has descriptors left, the payload may go on in a tail.
    pub fn send_with(
        &mut self,
        payload_max: usize,
        attach: bool,
        fill: impl FnOnce(&mut [u8], Option<&mut Tail>) -> Option<(usize, Path)>,
    ) -> Sent {
        let whole = HEADER_BYTES + payload_max;
        let Some(mut packet) = self.spare.take().or_else(|| self.blank()) else {
            return Sent::NoBuffer;
        };
        let pool = &self.pools.attach;
        let tail = self.tail.as_mut().filter(|_| attach);
        let mut tail = tail.and_then(|tail| tail.refill(pool).then_some(tail));
        let frame = packet.append(whole as u16).expect("pools have room for the MTU's frames");
        let (head, payload) = frame.split_at_mut(HEADER_BYTES);
        let Some((bytes, path)) = fill(payload, tail.as_deref_mut()) else {
            packet.trim(whole as u16);
            self.spare = Some(packet);
            return Sent::Nothing;
        };
        let behind = tail.map_or(0, |tail| tail.bytes());
        let sum = if behind > 0 {
            // Bulk's own check was made by reading it once; another pass would cost as much again.
            if self.device_sums_udp() { Sum::Device } else { Sum::None }
        } else {
            self.sum_of(|sum| sum.add(&payload[..bytes]))
        };
        let headers = framing::headers(&path, bytes + behind, sum, self.device_sums_ipv4());
        head.copy_from_slice(&headers);
        packet.trim((payload_max - bytes) as u16);
        for piece in self.tail.iter_mut().flat_map(Tail::take) {
            packet.chain(piece).expect("far fewer segments than a packet may have");
        }
        self.finish(packet, sum);
        Sent::Queued
    }

    /// Queues a datagram of `head` (copied) and a range of leased memory (not copied: the device
    /// reads it where it lies, now or later; the lease's references say when it is done).
    pub fn send_attached(
        &mut self,
        path: &Path,
        head: &[u8],
        lease: &Lease,
        offset: usize,
        bytes: u16,
    ) -> bool {
        let Some(mut packet) = self.blank() else { return false };
        let Some(tail) = Packet::attached(&self.pools.attach, lease, offset, bytes) else {
            return false;
        };
        let Some(room) = packet.append((HEADER_BYTES + head.len()) as u16) else { return false };
        // The processor perhaps cannot read the payload, so only the device may sum it.
        let sum = if self.device_sums_udp() { Sum::Device } else { Sum::None };
        let payload = head.len() + usize::from(bytes);
        room[..HEADER_BYTES].copy_from_slice(&framing::headers(
            path,
            payload,
            sum,
            self.device_sums_ipv4(),
        ));
        room[HEADER_BYTES..].copy_from_slice(head);
        if packet.chain(tail).is_err() {
            return false;
        }
        self.finish(packet, sum);
        true
    }

    /// Queues an ARP message.
    pub fn send_arp(&mut self, arp: &Arp) {
        let Some(mut packet) = self.blank() else { return };
        let frame = arp.frame();
        if let Some(room) = packet.append(frame.len() as u16) {
            room.copy_from_slice(&frame);
            self.outgoing.push(packet.into_raw());
        }
    }

    /// Packets queued and not yet given to the device.
    pub fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Gives queued packets to the device. What it does not take stays for the next time.
    pub fn flush(&mut self) -> usize {
        let mut done = 0;
        while done < self.outgoing.len() {
            let rest = &mut self.outgoing[done..];
            let count = rest.len().min(BURST) as u16;
            // SAFETY: `count` packets that are ours; those taken belong to the driver after.
            let taken = unsafe { sys::genie_tx_burst(self.id, rest.as_mut_ptr(), count) };
            done += usize::from(taken);
            if taken < count {
                break;
            }
        }
        self.outgoing.drain(..done);
        done
    }

    /// Drops queued packets that the device does not take: the protocol above sends them again.
    pub fn drop_queued(&mut self) {
        self.refused += self.outgoing.len() as u64;
        for raw in self.outgoing.drain(..) {
            // SAFETY: queued packets are ours; dropping frees them.
            drop(unsafe { Packet::from_raw(raw) });
        }
    }

    /// Asks the driver to give up packets that the device has sent; `false` if it cannot be asked
    /// (it does so by itself, when it sends the next).
    pub fn reclaim(&mut self) -> bool {
        // SAFETY: takes a number of an open port.
        unsafe { sys::genie_tx_done_cleanup(self.id) >= 0 }
    }

    /// Reads a packet's frame: what it is, and its bytes, copied to `scratch` only when they are
    /// not in one piece. Sums are checked unless the device did.
    pub fn read<'a>(
        &self,
        packet: &'a mut Packet,
        scratch: &'a mut Vec<u8>,
    ) -> (Frame, &'a mut [u8]) {
        let device = packet.device_checksum();
        let frame = if packet.is_contiguous() {
            packet.contiguous().expect("asked just now")
        } else {
            packet.copy_to(scratch);
            scratch.as_mut_slice()
        };
        let found = match device {
            Some(false) => Frame::Other(framing::NotOurs::BadChecksum),
            Some(true) => framing::parse(frame, false),
            None => framing::parse(frame, self.checksums != Checksums::Off),
        };
        (found, frame)
    }

    /// The path from our address to the peer's.
    pub fn path(&self, from: SocketAddrV4, to: SocketAddrV4, to_mac: Mac) -> Path {
        Path { from_mac: self.mac, to_mac, from, to }
    }

    /// The descriptor that becomes readable when packets arrive, if interrupts are on.
    pub fn interrupt_fd(&self) -> Option<Interrupt> {
        // vhost has its descriptor from its peer, so none before there is one.
        if !self.interrupts || (self.driver == "net_vhost" && self.link_is_up() != Some(true)) {
            return None;
        }
        // SAFETY: takes a number of an open port.
        let fd = unsafe { sys::genie_rx_interrupt_fd(self.id) };
        // mlx5 reads its completion channel itself when the interrupt is disarmed.
        let counts = !self.driver.starts_with("mlx5");
        (fd >= 0).then_some(Interrupt { fd, counts })
    }

    /// Arms or disarms the receive interrupt; `false` if the driver has none.
    pub fn set_interrupt(&self, on: bool) -> bool {
        // SAFETY: takes a number of an open port.
        let failed = unsafe {
            if on {
                sys::genie_rx_interrupt_enable(self.id)
            } else {
                sys::genie_rx_interrupt_disable(self.id)
            }
        };
        failed == 0
    }

    fn finish(&mut self, mut packet: Packet, sum: Sum) {
        if sum == Sum::Device || self.device_sums_ipv4() {
            let udp = if sum == Sum::Device { u64::MAX } else { !udp_offload() };
            packet.offload_checksums(self.offloads & udp);
        }
        self.outgoing.push(packet.into_raw());
    }

    fn sum_of(&self, add: impl FnOnce(&mut Checksum)) -> Sum {
        if self.checksums == Checksums::Off {
            return Sum::None;
        }
        if self.device_sums_udp() {
            return Sum::Device;
        }
        let mut sum = Checksum::default();
        add(&mut sum);
        Sum::Payload(sum)
    }

    fn device_sums_udp(&self) -> bool {
        self.offloads & udp_offload() != 0
    }

    fn device_sums_ipv4(&self) -> bool {
        // SAFETY: returns a constant.
        self.offloads & unsafe { sys::genie_tx_offload_ipv4_checksum() } != 0
    }
}

fn udp_offload() -> u64 {
    // SAFETY: returns a constant.
    unsafe { sys::genie_tx_offload_udp_checksum() }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.drop_queued();
        self.spare = None;
        self.tail = None;
        // SAFETY: the port is ours; nothing uses it after. Closing frees the packets the driver
        // holds; the pools are dropped behind this, and keep themselves if some are still out.
        unsafe {
            sys::genie_port_stop_and_close(self.id);
            if let Some((bus, name)) = &self.bus {
                sys::rte_eal_hotplug_remove(bus.as_ptr(), name.as_ptr());
            }
        }
        if let Some(socket) = socket_made_by(&self.device) {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// What attaches memory to datagrams for this device, if it can send that: it must take chains, read
/// foreign memory (a virtio backend sees EAL's alone), and give memory back when asked.
fn may_attach(id: u16, driver: &str, offloads: u64, is_pci: bool) -> Option<Tail> {
    if TAKE_ANY_MEMORY.contains(&driver) {
        return Some(Tail::new(None));
    }
    // SAFETY: returns a constant.
    let chains = offloads & unsafe { sys::genie_tx_offload_segments() } != 0;
    // SAFETY: takes a number of an open port.
    let gives_back = || unsafe { sys::genie_tx_done_cleanup(id) >= 0 };
    (is_pci && chains && gives_back()).then(|| Tail::new(Some(id)))
}

fn no_device(device: &str, reason: &str) -> DpdkError {
    let advice = if device.starts_with("net_af_packet") {
        "Check that the interface exists in this network namespace and is up, and that the process \
         has CAP_NET_RAW"
    } else if is_pci_address(device) {
        "Check `dpdk-devbind.py --status`: it must be bound to vfio-pci, or to its own driver for \
         mlx5 (docs/dpdk.md)"
    } else {
        "Check its name and arguments (docs/dpdk.md)"
    };
    DpdkError::NoDevice { device: device.to_owned(), reason: reason.to_owned(), advice }
}

/// af_packet takes the interface as it is.
fn check_interface_mtu(settings: &DeviceSettings) -> Result<()> {
    let (Some(wanted), Some(interface)) = (settings.mtu, interface_of(&settings.device)) else {
        return Ok(());
    };
    let path = format!("/sys/class/net/{interface}/mtu");
    let has = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    match has {
        Some(has) if u32::from(wanted) > has => Err(DpdkError::Port {
            device: settings.device.clone(),
            step: format!("use an MTU of {wanted}"),
            reason: format!("the interface has {has}: `ip link set {interface} mtu {wanted}`"),
        }),
        _ => Ok(()),
    }
}

/// Removes a socket that nobody listens on any more; drivers refuse to start over one.
fn clear_stale_socket(path: &str) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let in_the_way =
        |reason: &str| DpdkError::Socket { path: path.to_owned(), reason: reason.to_owned() };
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(in_the_way("it is not a socket; remove it or name another"));
    }
    match somebody_listens(path) {
        Ok(true) => Err(in_the_way("a process listens on it; stop that or name another")),
        Ok(false) => std::fs::remove_file(path).map_err(|error| in_the_way(&error.to_string())),
        Err(error) => Err(in_the_way(&error.to_string())),
    }
}

/// vhost's sockets are streams, memif's are SEQPACKET; asking with the wrong type says so.
fn somebody_listens(path: &str) -> std::io::Result<bool> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
            // AGAIN: its backlog is full, so it lives.
            Ok(()) | Err(rustix::io::Errno::AGAIN) => return Ok(true),
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => return Ok(false),
            Err(rustix::io::Errno::PROTOTYPE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let at = std::env::temp_dir().join(format!("genie-dpdk-stale-{}", std::process::id()));
        let path = at.to_str().unwrap();
        assert_eq!(clear_stale_socket(path), Ok(()), "nothing there");

        let listening = std::os::unix::net::UnixListener::bind(&at).unwrap();
        assert!(clear_stale_socket(path).is_err(), "in use");
        drop(listening);
        assert_eq!(clear_stale_socket(path), Ok(()), "left behind");
        assert!(!at.exists());

        std::fs::write(&at, "a file").unwrap();
        assert!(clear_stale_socket(path).is_err(), "not a socket");
        std::fs::remove_file(&at).unwrap();
    }
}
