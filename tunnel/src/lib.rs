//! Userspace WireGuard on TUN: a library and the program `mesh-tunnel`.
//!
//! The noise protocol, its timers and its cookies are boringtun's (`boringtun::noise::Tunn`). Everything
//! around it is here: the device's one allowed-IPs table, peers that can be changed while they carry
//! traffic, the cross-platform configuration protocol (UAPI) that `wg` speaks, and the packet I/O.
//!
//! ```text
//!   wg, agent ──► io::server ──► uapi::parse ──► state::State::apply ──► Changes ─┐
//!                                                                                 ▼
//!   TUN ──► io::carry (or read, queue, carry) ──► split ──► engine::Engine::handle_tun_packet ──► Outbox ──► Sink::send_train ──► UDP
//!   UDP ──► io::carry ──► engine::Engine::handle_datagrams ──► Inbox, coalesce ──► Sink::write_tun ──► TUN
//! ```
//!
//! [`engine`] knows neither sockets nor threads: it is handed packets and hands packets to a
//! [`engine::Sink`], so tests and fuzz targets run it in memory. [`io`] owns descriptors and threads and
//! takes no decision about a packet.
//!
//! # Many at a time
//!
//! System calls and the host's stack cost more than the cipher, so packets cross descriptors in bulk: the host hands over
//! TCP and UDP payload of up to 64 KiB under one header and leaves the checksum to us ([`offload::split`]), datagrams of a
//! peer leave and arrive as trains ([`offload::train`]), and what was decrypted is joined again before it is written
//! ([`offload::coalesce`]). Segments are what the host's own kernel would have made, so the peer may be anybody. What a
//! kernel does not have is not used: UDP on TUN needs Linux 6.2, trains need 4.18 to leave and 5.0 to arrive; a train
//! that a device or path refuses is sent one by one. `--offload off` does without all of it.
//!
//! # Threads
//!
//! One thread carries both directions of a device ([`io`]); where there are four processors or more, several do (`--threads`), each with
//! peers of its own ([`engine::lanes`]). A peer is carried by one thread for as long as it lives: what it sends and is sent runs to its
//! end there, in order, and nobody else wants its lock. What arrives goes to the right thread by the kernel's hand (`SO_REUSEPORT`
//! with a classic BPF program that looks at the receiver index); what the host sends is read by one more thread and passed on in
//! bounded queues, fair between peers ([`engine::verdict`], `drops.busy`). Handshakes are answered by whichever thread they come to.
//!
//! Not several queues of the TUN device: the kernel learns a flow's queue from what is written to the device, and changes it between
//! two packets, of which the later one may then be read first. To tell it otherwise takes an eBPF program and CAP_BPF, which this process
//! does not have. Not several threads for one peer: `Tunn` wants to be had alone (`&mut`) for each packet and keeps its session's keys to itself.
//!
//! Memory: 0.8 MiB of buffers for each device, the same for any number of peers. A peer without a session keeps at most 256 packets, for the 90 s
//! in which a handshake is tried: 1,000 peers that all are away while all are sent packets of 1,420 bytes, 364 MB at worst.
//! Of N threads each has so much, a copy of the allowed-IPs table, socket buffers as large as the one thread has, and while it is busy
//! up to 8 MiB of packets of the host and 1 MiB of datagrams that came to others.
//!
//! # Paths narrower than the uplink
//!
//! Datagrams leave with "don't fragment", so the kernel learns what a path takes from routers that say so. Once a second the
//! engine asks it about the peers that something is sent to ([`engine::Engine::look_at_paths`]), and from then on answers
//! packets that would not fit as a router would ([`path`]): by ICMP, to their senders, and drops them (`drops.too_long`). Packets
//! that may be fragmented, or whose senders cannot go lower (1280 bytes of IPv6, 576 of IPv4), are sent, and their datagrams
//! fragmented by the kernel; so is everything in the second before. A path whose routers' ICMP is lost on the way stays unknown,
//! as for any other sender: there the MTU has to be configured.
//!
//! # What `Tunn` does not do, and what follows
//!
//! * `REJECT_AFTER_MESSAGES`: data packets with a counter at or above it are dropped before `Tunn` sees
//!   them. Our own counters cannot reach `REKEY_AFTER_MESSAGES` (2^60) within the 180 s of a session.
//! * The replay window is 1024 packets (the kernel's is 8192): a packet reordered by more is dropped.
//! * Padding to 16 bytes is done here, before encryption ([`packet::padded_len`]).
//! * Peers with a public key of low order never get a session: `Tunn` would accept the zero secret.
//! * It begins a handshake when it sends after 15 s in which it heard nothing, where the kernel first waits 15 s for an answer:
//!   peers that seldom talk shake hands more often than they need, at most every 15 s from each side.
//! * The timestamps of initiations go on from the wall clock as it was when the peer's state was made: by a new process, a new
//!   pre-shared key, a new key of the device. Where that clock was set back since an earlier state, the peer refuses them until
//!   they have caught up (as it refuses the kernel's), and only the peer can begin. After 90 s of such attempts a session ends,
//!   though it may be in use by what the peer sends.
//! * Its timestamps are 27 s ahead of those of the kernel and of wireguard-go, which take another count of leap seconds. Where a key
//!   moves from here to one of these, peers refuse its initiations for so long.
//! * It puts a session wherever its index says, in use or not: places in use are passed over here (`engine::places`).
//! * Its clock moves with its timers, every 250 ms: a session ends up to so much late, and a lone packet of that moment is lost
//!   where the peer was earlier; after a machine has slept, the same holds of older keys.
//! * A pre-shared key inside `Tunn` is not wiped from memory when its peer goes away; ours are.
//! * Sent datagrams leave from the address that the routing table picks, which on a host with several
//!   addresses need not be the one that the peer wrote to.

pub mod clock;
pub mod counters;
pub mod engine;
pub mod io;
pub mod keys;
pub mod noise;
pub mod offload;
pub mod packet;
pub mod path;
pub mod state;
pub mod table;
pub mod uapi;
