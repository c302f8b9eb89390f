//! The threads that carry a device's packets: one for each lane ([`lanes`](crate::engine::lanes)), in both directions.
//!
//! One thread for both, so that nobody else wants a peer's lock while packets of that peer are encrypted, and a burst runs to its end
//! without a hand-over. Measured on two cores, a thread for each direction costs more processor time per byte and carries no
//! more. It takes turns: a burst from each socket, then a burst from the host.
//!
//! ```text
//!   one lane:      TUN ──► carry ──► UDP                 several:   TUN ──► read ──► Queue of each lane ──► carry ──► its UDP socket
//!                  UDP ──► carry ──► TUN                            UDP socket of each lane ──► carry ──► TUN
//! ```
//!
//! Of several lanes each has a socket, and the kernel knows by a datagram which one it goes to; what it mistakes is passed on. The host's
//! packets are read by a thread of its own ([`read`](super::read) says why).
//!
//! Back-pressure: the host's packets stay in the TUN device's queue while a socket has no room for a burst, for a while ([`PATIENCE`]),
//! and what that queue cannot hold the kernel drops there (`tx_dropped` of the interface). Receiving goes on meanwhile. Of several lanes
//! each has a queue of its own besides, and what is for that lane stays there.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::event::PollFlags;

use super::device::{Lane, Shared};
use super::pulse::Pulse;
use super::queue::{Packet, Parcel, Queue, Stray};
use super::ready_for;
use super::udp::{self, Sockets};
use super::watch::Watch;
use crate::counters::Counter;
use crate::engine::{Inbox, MAX_PACKET, Outbox, Sink, lock, read};
use crate::noise::bulk::Bulk;
use crate::noise::wipe_below;
use crate::offload::coalesce::MAX_RUN;
use crate::offload::{Offloads, vnet};

/// Packets, or calls that bring datagrams, before it is the other side's turn.
const BURST: usize = 64;
/// Datagrams before it is the other side's turn: a call may bring 64 of them, and each may be a handshake.
const DATAGRAMS: usize = 256;
/// For so long an MTU that the kernel was asked for is believed: a pod may send packets that are too long without end.
const MTU_HOLDS: Duration = Duration::from_millis(100);
/// How long what the host sends waits for a socket without room; then it is sent, and lost where there still is none. An uplink of half a
/// Gbit/s makes room in that time, and its connections are not to lose anything. A path that takes longer (a slow one, or neighbours that
/// do not answer, whose packets the kernel keeps for seconds) must not stop all others.
const PATIENCE: Duration = Duration::from_millis(20);
/// Turns without asking which descriptors have something, while each turn ends with more to come. They take a few milliseconds, and so
/// long everything else waits that this thread is asked for.
const UNASKED: u32 = 16;
/// Failing calls in a row after which a descriptor is given up.
const MAX_ERRORS: u32 = 1000;

/// Hands packets to the descriptors, datagrams to those of a lane.
pub(super) struct Wire<'a>(pub(super) &'a Shared, pub(super) &'a Lane);

impl Sink for Wire<'_> {
    fn send_datagram(&mut self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let sockets = read(&self.1.sockets).clone();
        sockets.ok_or(io::ErrorKind::NotConnected)?.send(to, datagram)
    }

    fn send_train(&mut self, to: SocketAddr, datagrams: &[u8], segment: usize) -> usize {
        let sockets = read(&self.1.sockets).clone();
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
        let mut asked = lock(&self.1.mtu);
        if let Some((at, mtu)) = *asked
            && at.elapsed() < MTU_HOLDS
            // The timers may have seen another one since.
            && self.0.engine.mtu() == mtu
        {
            return Some(mtu);
        }
        let mtu = self.0.mtu().ok()?;
        *asked = Some((Instant::now(), mtu));
        Some(mtu)
    }
}

/// Carries the packets of one lane until the device stops.
pub(super) fn run(shared: &Arc<Shared>, number: usize, pulse: &Pulse) -> io::Result<()> {
    let lane = &shared.lanes[number];
    let bulk = || Bulk::with_crew(shared.techniques.many, shared.crew.clone());
    let mut outbound = Outbound::new(number, lane.queue.is_none(), bulk());
    let mut inbound = Inbound::new(number, shared.offloads, bulk());
    let mut sockets: Option<Arc<Sockets>> = None;
    // Which socket has no room, and since when any has none.
    let mut full = [false; 2];
    let mut since: Option<Instant> = None;
    // Whether the last turn ended with more to come, turns since somebody was asked, and whether there was IPv6 then.
    let (mut more, mut unasked, mut six) = (false, 0, false);
    let mut watch = Watch::new()?;
    loop {
        let stop = shared.stop.as_fd();
        let v4 = sockets.as_ref().and_then(|s| s.v4.as_ref());
        let v6 = sockets.as_ref().and_then(|s| s.v6.as_ref());
        let left = since.and_then(|since| PATIENCE.checked_sub(since.elapsed()));
        // Only of the full one: the other always has room, and would never let this thread wait.
        let wanted =
            |full| if full && left.is_some() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let wanted = full.map(wanted);
        let host = if left.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let fds = [
            (Some(stop), PollFlags::IN),
            (Some(lane.called.as_fd()), PollFlags::IN),
            (Some(lane.queue.as_ref().map_or(shared.tun.as_fd(), |queue| queue.filled.as_fd())), host),
            (v4.map(AsFd::as_fd), wanted[0]),
            (v6.map(AsFd::as_fd), wanted[1]),
            (Some(pulse.as_fd()), PollFlags::IN),
        ];
        let busy = since.is_none() && more;
        let [stopped, called, from_host, from_v4, from_v6, asked] = if busy && unasked < UNASKED {
            unasked += 1;
            // To try in vain costs a fraction of asking. Strays have little room.
            [false, lane.strays.any(), true, true, six, false]
        } else {
            unasked = 0;
            if !busy {
                wipe_below();
            }
            let ready = watch.ready(&fds, if busy { Some(Duration::ZERO) } else { left })?;
            six = ready[4];
            ready
        };
        more = false;
        if stopped {
            return Ok(());
        }
        if asked {
            pulse.answer();
        }
        if called {
            lane.called.lower();
            inbound.strays(shared, lane);
            let present = read(&lane.sockets).clone();
            if present.as_ref().map(Arc::as_ptr) != sockets.as_ref().map(Arc::as_ptr) {
                // Of those that were, the kernel forgets by itself.
                (sockets, watch) = (present, Watch::new()?);
                (full, since) = ([false; 2], None);
                continue;
            }
        }
        for socket in [v4.filter(|_| from_v4), v6.filter(|_| from_v6)].into_iter().flatten() {
            more |= inbound.burst(shared, lane, socket)?;
        }
        if from_host || full.contains(&true) {
            let known = sockets.as_ref().is_some_and(|sockets| sockets.has_credit());
            if full.contains(&true) || !known {
                let room = [poll_for(v4, PollFlags::OUT, stop), poll_for(v6, PollFlags::OUT, stop)];
                let [in_v4, in_v6] = ready_for(&room, Some(Duration::ZERO))?;
                full = [v4.is_some() && !in_v4, v6.is_some() && !in_v6];
                since = full.contains(&true).then(|| since.unwrap_or_else(Instant::now));
                if let (None, Some(sockets)) = (since, &sockets) {
                    sockets.have_room();
                }
            }
            let waits = since.is_some_and(|since| since.elapsed() < PATIENCE);
            if let Some(queue) = &lane.queue {
                queue.set_blocked(waits);
            }
            if !waits {
                more |= match &lane.queue {
                    None => outbound.burst(shared, lane)?,
                    Some(queue) => outbound.parcels(shared, lane, queue),
                };
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

/// Whether packets come alone: the first of a burst goes on before anybody looks for a second, and where there was none for some time,
/// nobody looks but now and then. To look in vain costs a lone packet as much as half of what it is encrypted with.
#[derive(Debug, Default)]
struct Alone {
    /// Bursts in a row of which one look showed that they were of one packet.
    seen: u8,
    /// Bursts since then.
    unseen: u8,
}

impl Alone {
    /// Bursts after which it is believed, and after which it is looked at again.
    const BELIEVED: u8 = 4;
    const STALE: u8 = 16;

    /// Whether the first packet goes on at once.
    const fn is_likely(&self) -> bool {
        self.seen > 0
    }

    /// Whether a second one is looked for after the first went on.
    const fn looks(&self) -> bool {
        self.seen < Self::BELIEVED || self.unseen >= Self::STALE
    }

    /// A burst of so many was carried.
    const fn note(&mut self, packets: usize, looked: bool) {
        match packets {
            0 => {}
            1 if looked => *self = Self { seen: self.seen.saturating_add(1), unseen: 0 },
            1 => self.unseen += 1,
            _ => *self = Self { seen: 0, unseen: 0 },
        }
    }
}

/// What it takes to send.
struct Outbound {
    /// The header, then the packet.
    frame: Vec<u8>,
    outbox: Outbox,
    alone: Alone,
    errors: u32,
}

impl Outbound {
    /// With a frame if it is to read by itself.
    fn new(lane: usize, reads: bool, bulk: Bulk) -> Self {
        let frame = if reads { vnet::LEN + MAX_PACKET } else { 0 };
        Self {
            frame: vec![0; frame],
            outbox: Outbox::of_lane(lane, bulk),
            alone: Alone::default(),
            errors: 0,
        }
    }

    /// Sends what the host has, up to a burst; whether there may be more.
    fn burst(&mut self, shared: &Shared, lane: &Lane) -> io::Result<bool> {
        let at = if shared.offloads.vnet { vnet::LEN } else { 0 };
        let (mut more, mut looked, mut read) = (true, true, 0);
        for _ in 0..burst(shared) {
            match rustix::io::read(&shared.tun, &mut self.frame) {
                Ok(n) => {
                    self.errors = 0;
                    read += 1;
                    encrypt(shared, lane, &mut self.frame, at, n, &mut self.outbox);
                    if read == 1 && self.alone.is_likely() && self.outbox.has_one() {
                        shared.engine.flush(&mut self.outbox, &mut Wire(shared, lane));
                        if !self.alone.looks() {
                            (more, looked) = (false, false);
                            break;
                        }
                    }
                }
                Err(rustix::io::Errno::AGAIN) => {
                    more = false;
                    break;
                }
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
        self.alone.note(read, looked);
        shared.engine.flush(&mut self.outbox, &mut Wire(shared, lane));
        Ok(more)
    }

    /// Sends what was read for this lane, up to a burst; whether there may be more.
    fn parcels(&mut self, shared: &Shared, lane: &Lane, queue: &Queue) -> bool {
        let at = if shared.offloads.vnet { vnet::LEN } else { 0 };
        let mut more = true;
        // What is answered to its sender fills no outbox, and may come without end.
        for _ in 0..burst(shared) {
            if self.outbox.is_due() {
                break;
            }
            let Some(mut parcel) = queue.pop() else {
                more = false;
                break;
            };
            let Parcel { bytes, packets, .. } = &mut parcel;
            for Packet { at: place, .. } in packets.iter() {
                encrypt(shared, lane, &mut bytes[place.clone()], at, place.len(), &mut self.outbox);
            }
            if queue.give_back(parcel) {
                shared.room.raise();
            }
        }
        shared.engine.flush(&mut self.outbox, &mut Wire(shared, lane));
        more
    }
}

/// Encrypts the packet that begins at `at` of the frame's first `n` bytes.
fn encrypt(shared: &Shared, lane: &Lane, frame: &mut [u8], at: usize, n: usize, outbox: &mut Outbox) {
    let header =
        if at == 0 { Some(vnet::Header::PLAIN) } else { frame.first_chunk().and_then(vnet::Header::decode) };
    let (Some(header), Some(len)) = (header, n.checked_sub(at)) else {
        return shared.engine.counters().add(Counter::Malformed);
    };
    shared.engine.handle_tun_packet(&header, &mut frame[at..], len, outbox, &mut Wire(shared, lane));
}

/// What it takes to receive.
struct Inbound {
    lane: usize,
    datagrams: Vec<u8>,
    control: Vec<u8>,
    inbox: Inbox,
    alone: Alone,
    errors: u32,
}

impl Inbound {
    fn new(lane: usize, offloads: Offloads, bulk: Bulk) -> Self {
        Self {
            lane,
            datagrams: vec![0; MAX_PACKET],
            control: udp::control_room(),
            inbox: Inbox::of_lane(lane, offloads, bulk),
            alone: Alone::default(),
            errors: 0,
        }
    }

    /// Receives what a socket has, up to a burst; whether there may be more.
    fn burst(&mut self, shared: &Shared, lane: &Lane, socket: &UdpSocket) -> io::Result<bool> {
        let mut left = DATAGRAMS;
        let (mut more, mut looked, mut calls) = (true, true, 0);
        for _ in 0..burst(shared) {
            match udp::receive(socket, &mut self.datagrams, &mut self.control) {
                Ok(received) => {
                    self.errors = 0;
                    let Some(udp::Received { from, len, segment }) = received else { continue };
                    let datagrams = &self.datagrams[..len.min(MAX_PACKET)];
                    let engine = &shared.engine;
                    if !pass_on(shared, self.lane, datagrams, segment, from) {
                        let wire = &mut Wire(shared, lane);
                        engine.handle_datagrams(datagrams, segment, from, &mut self.inbox, wire);
                    }
                    calls += 1;
                    if calls == 1 && self.alone.is_likely() && len <= segment {
                        shared.engine.deliver(&mut self.inbox, &mut Wire(shared, lane));
                        if !self.alone.looks() {
                            (more, looked) = (false, false);
                            break;
                        }
                    }
                    left = left.saturating_sub(len.div_ceil(segment.max(1)));
                    if left == 0 || self.inbox.is_due() {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => {
                    more = false;
                    break;
                }
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
        self.alone.note(calls, looked);
        shared.engine.deliver(&mut self.inbox, &mut Wire(shared, lane));
        Ok(more)
    }

    /// Handles what came to other threads.
    fn strays(&mut self, shared: &Shared, lane: &Lane) {
        let wire = &mut Wire(shared, lane);
        for Stray { from, segment, bytes } in lane.strays.take() {
            shared.engine.handle_datagrams(&bytes, segment, from, &mut self.inbox, wire);
        }
        shared.engine.deliver(&mut self.inbox, wire);
    }
}

/// Passes on what is for another lane's peer; whether it was. Only one of several threads gets such things: while sockets are made, or
/// where the kernel was not told who is who.
fn pass_on(shared: &Shared, lane: usize, datagrams: &[u8], segment: usize, from: SocketAddr) -> bool {
    if shared.lanes.len() == 1 {
        return false;
    }
    let Some(owner) = shared.engine.lanes().of_datagram(datagrams).filter(|owner| *owner != lane) else {
        return false;
    };
    let count = datagrams.len().div_ceil(segment.max(1)) as u64;
    let owner = &shared.lanes[owner];
    let taken = owner.strays.push(from, segment, datagrams);
    owner.called.raise();
    let counters = shared.engine.counters();
    counters.add_many(if taken { Counter::Strayed } else { Counter::Busy }, count);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_alone_is_not_looked_behind_but_now_and_then_and_company_is_noticed() {
        let mut alone = Alone::default();
        assert!(!alone.is_likely() && alone.looks());
        for _ in 0..Alone::BELIEVED {
            assert!(alone.looks());
            alone.note(1, true);
            assert!(alone.is_likely());
        }
        for _ in 0..3 {
            for _ in 0..Alone::STALE {
                assert!(!alone.looks());
                alone.note(0, true);
                alone.note(1, false);
            }
            assert!(alone.looks());
            alone.note(1, true);
        }
        alone.note(2, true);
        assert!(!alone.is_likely() && alone.looks());
    }
}
