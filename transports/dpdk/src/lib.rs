//! The transport over DPDK: Genie's bulk protocol ([`genie_bulk`]) on devices that a thread of this
//! process polls, without the kernel in between. It carries placed writes and no frames.
//!
//! A workspace of its own: building it needs libdpdk (`make dpdk-deps`). The host and the node load
//! it like any native transport.
//!
//! Start reading at [`transport`] (what the loader sees), then [`eal`] (the one thread and how it
//! sleeps), [`endpoint`] (a device and its connections) and [`lane`] (one connection). The floor
//! below, usable alone: [`port`], [`packet`] (mbufs, and foreign memory attached to them without a
//! copy), [`gpu`] (GPUDev), [`framing`] and [`neighbours`] (pure).
//!
//! It speaks IPv4 and UDP on untagged Ethernet and answers ARP for its own address only. It is no
//! network stack: no routing beyond one gateway, no fragments, no VLANs, no IPv6.

pub mod eal;
pub mod endpoint;
pub mod error;
pub mod external;
pub mod framing;
pub mod gpu;
pub mod lane;
pub mod memories;
pub mod neighbours;
pub mod packet;
pub mod port;
pub mod settings;
pub mod tail;
pub mod transport;
