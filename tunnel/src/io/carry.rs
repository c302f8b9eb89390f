//! The thread that carries a device's packets, in both directions.
//!
//! One thread, so that nobody else wants a peer's lock while packets of that peer are encrypted, and a burst runs to its end
//! without a hand-over. Measured on two cores, a thread for each direction costs more processor time per byte and carries no
//! more. It takes turns: a burst from each socket, then a burst from the host.
//!
//! Back-pressure: the host's packets stay in the TUN device's queue while a socket has no room for a burst, and what that
//! queue cannot hold the kernel drops there (`tx_dropped` of the interface). Receiving goes on meanwhile.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use rustix::event::PollFlags;

use super::device::Shared;
use super::pulse::Pulse;
use super::udp::{self, Sockets};
use super::{link, ready_for};
use crate::counters::Counter;
use crate::engine::{Inbox, MAX_PACKET, Outbox, Sink, read};
use crate::offload::coalesce::MAX_RUN;
use crate::offload::{Offloads, vnet};

/// Packets, or calls that bring datagrams, before it is the other side's turn.
const BURST: usize = 64;
/// Datagrams before it is the other side's turn: a call may bring 64 of them, and each may be a handshake.
const DATAGRAMS: usize = 256;
/// Failing calls in a row after which a descriptor is given up.
const MAX_ERRORS: u32 = 1000;

/// Hands packets to the descriptors.
pub(super) struct Wire<'a>(pub(super) &'a Shared);

impl Sink for Wire<'_> {
    fn send_datagram(&mut self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let sockets = read(&self.0.sockets).clone();
        sockets.ok_or(io::ErrorKind::NotConnected)?.send(to, datagram)
    }

    fn send_train(&mut self, to: SocketAddr, datagrams: &[u8], segment: usize) -> usize {
        let sockets = read(&self.0.sockets).clone();
        sockets.map_or(0, |sockets| sockets.send_train(to, datagrams, segment))
    }

    fn write_tun(&mut self, header: &vnet::Header, pieces: &[&[u8]]) -> io::Result<()> {
        let header = header.encode();
        let mut all = [IoSlice::new(&[]); MAX_RUN + 1];
        all[0] = IoSlice::new(&header);
        for (to, from) in all[1..].iter_mut().zip(pieces) {
            *to = IoSlice::new(from);
        }
        let first = usize::from(!self.0.offloads.vnet);
        rustix::io::writev(&self.0.tun, &all[first..=pieces.len()])?;
        Ok(())
    }

    fn tun_mtu(&self) -> Option<usize> {
        link::mtu_of(self.0.index).ok()
    }
}

/// Carries packets until the device stops.
pub(super) fn run(shared: &Arc<Shared>, pulse: &Pulse) -> io::Result<()> {
    let mut outbound = Outbound::new();
    let mut inbound = Inbound::new(shared.offloads);
    let mut sockets: Option<Arc<Sockets>> = None;
    // Which socket has no room.
    let mut full = [false; 2];
    loop {
        let stop = shared.stop.as_fd();
        let v4 = sockets.as_ref().and_then(|s| s.v4.as_ref());
        let v6 = sockets.as_ref().and_then(|s| s.v6.as_ref());
        // Only of the full one: the other always has room, and would never let this thread wait.
        let wanted = full.map(|full| if full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN });
        let host = if full.contains(&true) { PollFlags::empty() } else { PollFlags::IN };
        let fds = [
            (stop, PollFlags::IN),
            (shared.rebound.as_fd(), PollFlags::IN),
            (shared.tun.as_fd(), host),
            poll_for(v4, wanted[0], stop),
            poll_for(v6, wanted[1], stop),
            (pulse.as_fd(), PollFlags::IN),
        ];
        let [stopped, rebound, tun, from_v4, from_v6, asked] = ready_for(&fds, None)?;
        if stopped {
            return Ok(());
        }
        if asked {
            pulse.answer();
        }
        if rebound {
            shared.rebound.lower();
            sockets.clone_from(&read(&shared.sockets));
            // They are others.
            full = [false; 2];
            continue;
        }
        for socket in [v4.filter(|_| from_v4), v6.filter(|_| from_v6)].into_iter().flatten() {
            inbound.burst(shared, socket)?;
        }
        if tun || full.contains(&true) {
            let room = [poll_for(v4, PollFlags::OUT, stop), poll_for(v6, PollFlags::OUT, stop)];
            let [in_v4, in_v6] = ready_for(&room, Some(Duration::ZERO))?;
            full = [v4.is_some() && !in_v4, v6.is_some() && !in_v6];
            if full == [false; 2] {
                outbound.burst(shared)?;
            }
        }
    }
}

/// Calls before it is the other side's turn.
fn burst(shared: &Shared) -> usize {
    if shared.techniques.bursts { BURST } else { 1 }
}

/// What to wait for of a socket. One that is not there never has anything: the flag stands in for it.
fn poll_for<'a>(
    socket: Option<&'a UdpSocket>,
    flags: PollFlags,
    stop: BorrowedFd<'a>,
) -> (BorrowedFd<'a>, PollFlags) {
    socket.map_or((stop, PollFlags::IN), |s| (s.as_fd(), flags))
}

/// What it takes to send.
struct Outbound {
    /// The header, then the packet.
    frame: Vec<u8>,
    outbox: Outbox,
    errors: u32,
}

impl Outbound {
    fn new() -> Self {
        Self { frame: vec![0; vnet::LEN + MAX_PACKET], outbox: Outbox::new(), errors: 0 }
    }

    /// Sends what the host has, up to a burst.
    fn burst(&mut self, shared: &Shared) -> io::Result<()> {
        let at = if shared.offloads.vnet { vnet::LEN } else { 0 };
        for _ in 0..burst(shared) {
            match rustix::io::read(&shared.tun, &mut self.frame) {
                Ok(n) => {
                    self.errors = 0;
                    self.encrypt(shared, at, n);
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::BADFD) => return Err(io::Error::other("the interface was deleted")),
                // A packet that the kernel cannot describe is gone already; the next one may be in order.
                Err(e) => {
                    self.errors += 1;
                    if self.errors > MAX_ERRORS {
                        return Err(e.into());
                    }
                    shared.engine.counters().add(Counter::Malformed);
                    tracing::debug!(interface = shared.name, error = %e, "packet of the host not read");
                    break;
                }
            }
            if self.outbox.is_due() {
                break;
            }
        }
        shared.engine.flush(&mut self.outbox, &mut Wire(shared));
        Ok(())
    }

    /// Encrypts the packet that begins at `at` of the frame's first `n` bytes.
    fn encrypt(&mut self, shared: &Shared, at: usize, n: usize) {
        let header = if at == 0 {
            Some(vnet::Header::PLAIN)
        } else {
            self.frame.first_chunk().and_then(vnet::Header::decode)
        };
        let (Some(header), Some(len)) = (header, n.checked_sub(at)) else {
            return shared.engine.counters().add(Counter::Malformed);
        };
        let packet = &mut self.frame[at..];
        shared.engine.handle_tun_packet(&header, packet, len, &mut self.outbox, &mut Wire(shared));
    }
}

/// What it takes to receive.
struct Inbound {
    datagrams: Vec<u8>,
    control: Vec<u8>,
    inbox: Inbox,
    errors: u32,
}

impl Inbound {
    fn new(offloads: Offloads) -> Self {
        Self {
            datagrams: vec![0; MAX_PACKET],
            control: udp::control_room(),
            inbox: Inbox::new(offloads),
            errors: 0,
        }
    }

    /// Receives what a socket has, up to a burst.
    fn burst(&mut self, shared: &Shared, socket: &UdpSocket) -> io::Result<()> {
        let mut left = DATAGRAMS;
        for _ in 0..burst(shared) {
            match udp::receive(socket, &mut self.datagrams, &mut self.control) {
                Ok(received) => {
                    self.errors = 0;
                    let Some(udp::Received { from, len, segment }) = received else { continue };
                    let datagrams = &self.datagrams[..len.min(MAX_PACKET)];
                    let engine = &shared.engine;
                    engine.handle_datagrams(datagrams, segment, from, &mut self.inbox, &mut Wire(shared));
                    left = left.saturating_sub(len.div_ceil(segment.max(1)));
                    if left == 0 || self.inbox.is_due() {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(e) => {
                    self.errors += 1;
                    if self.errors > MAX_ERRORS {
                        return Err(e.into());
                    }
                    tracing::debug!(interface = shared.name, error = %e, "datagram not received");
                    break;
                }
            }
        }
        shared.engine.deliver(&mut self.inbox, &mut Wire(shared));
        Ok(())
    }
}
