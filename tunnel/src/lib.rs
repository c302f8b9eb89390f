//! Userspace WireGuard on TUN: a library and the program `mesh-tunnel`.
//!
//! WireGuard's protocol for one peer is [`noise`]: handshakes, sessions, cookies and timers; curve, hash and cipher are crates. Around
//! it: the device's one allowed-IPs table, peers that can be changed while they carry
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
//! does not have.
//!
//! A peer's packets leave in the order of their numbers, and are looked at in the order in which they came, by its thread. Its lock is held
//! while messages are laid out or noted, not while they are encrypted or decrypted ([`noise::bulk`]): that is most of the work, and where there is much of it
//! and helpers have nothing else to do (`--helpers`), they take parts of a burst ([`noise::bulk::crew`]). So one peer may have more than one core's work.
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
//! # What is not as in the kernel, and what follows
//!
//! * Peers with a public key of low order never get a session: the secret shared with them would be known to everybody.
//! * A new process knows nothing of the times of its initiations: where the clock was set back since an earlier one, peers refuse
//!   them until it has caught up (as they refuse the kernel's), and only the peer can begin.
//! * A session ends packet by packet, by a clock that goes on in sleep; its keys are wiped by the next turn of the timers, 100 ms
//!   later. The two ends' 180 s begin an answer's way apart, so a lone packet of that moment may be lost.
//! * Who answers handshakes that we began shows a cookie only where forged answers come as well.
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
