//! Userspace WireGuard on TUN: a library and the program `mesh-tunnel`.
//!
//! The noise protocol, its timers and its cookies are boringtun's (`boringtun::noise::Tunn`). Everything
//! around it is here: the device's one allowed-IPs table, peers that can be changed while they carry
//! traffic, the cross-platform configuration protocol (UAPI) that `wg` speaks, and the packet I/O.
//!
//! ```text
//!   wg, agent ──► io::server ──► uapi::parse ──► state::State::apply ──► Changes ─┐
//!                                                                                 ▼
//!   TUN ──► io::device ──► engine::Engine::handle_tun_packet ──► Sink::send_datagram ──► UDP
//!   UDP ──► io::device ──► engine::Engine::handle_datagram  ──► Sink::write_tun ──► TUN
//! ```
//!
//! [`engine`] knows neither sockets nor threads: it is handed packets and hands packets to a
//! [`engine::Sink`], so tests and fuzz targets run it in memory. [`io`] owns descriptors and threads and
//! takes no decision about a packet.
//!
//! # What `Tunn` does not do, and what follows
//!
//! * `REJECT_AFTER_MESSAGES`: data packets with a counter at or above it are dropped before `Tunn` sees
//!   them. Our own counters cannot reach `REKEY_AFTER_MESSAGES` (2^60) within the 180 s of a session.
//! * The replay window is 1024 packets (the kernel's is 8192): a packet reordered by more is dropped.
//! * Padding to 16 bytes is done here, before encryption ([`packet::padded_len`]).
//! * Peers with a public key of low order never get a session: `Tunn` would accept the zero secret.
//! * A pre-shared key inside `Tunn` is not wiped from memory when its peer goes away; ours are.
//! * Sent datagrams leave from the address that the routing table picks, which on a host with several
//!   addresses need not be the one that the peer wrote to.

pub mod counters;
pub mod engine;
pub mod io;
pub mod keys;
pub mod offload;
pub mod packet;
pub mod state;
pub mod table;
pub mod uapi;
