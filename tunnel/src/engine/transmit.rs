//! From the host to the underlay.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::peer::{Encapsulated, Peer, PeerInner};
use super::{Engine, MAX_PACKET, SCRATCH, Sink, lock, read};
use crate::clock::Moment;
use crate::counters::Counter;
use crate::noise::Unsealed;
use crate::noise::bulk::{self, Bulk};
use crate::noise::messages::{INITIATION, OVERHEAD};
use crate::offload::split::{self, Plan, Segments};
use crate::offload::train::{Train, Yard};
use crate::offload::vnet::Header;
use crate::{packet, path};

/// Bytes of an outbox: three full super-packets as they leave; it stays in a second-level cache.
const OUTBOX: usize = 4 * SCRATCH;
/// Padding reaches a multiple of this.
const PADDING: usize = 16;
/// Messages that are laid out before they are encrypted: as many as a first-level cache has room for, beside what they were made of.
const TOGETHER: usize = 8;

/// Encrypted datagrams that wait for [`Engine::flush`].
#[derive(Debug)]
pub struct Outbox {
    lane: usize,
    yard: Yard<Owner>,
    /// Those that are not encrypted yet: with helpers until the outbox is sent, else none but while a packet of the host is handled.
    unsealed: bulk::Unsealed,
    bulk: Bulk,
}

/// Whose a train is, and what its datagrams count as.
#[derive(Clone)]
struct Owner(Arc<Peer>, Counter);

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id && self.1 == other.1
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.0.public_key, self.1)
    }
}

impl Outbox {
    /// An empty one, of the first lane.
    #[must_use]
    pub fn new() -> Self {
        Self::of_lane(0, Bulk::default())
    }

    /// An empty one, of the thread with this lane.
    #[must_use]
    pub fn of_lane(lane: usize, bulk: Bulk) -> Self {
        Self { lane, yard: Yard::new(OUTBOX), unsealed: bulk::Unsealed::default(), bulk }
    }

    /// Encrypts what is laid out in it. Nothing is sent of it before.
    fn seal(&mut self) {
        self.bulk.seal(&mut self.unsealed, self.yard.waiting_mut());
    }

    /// Whether it is time to send, though there may be more: half of it is full.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.yard.waiting() >= OUTBOX / 2
    }

    /// Whether one datagram is all that waits in it.
    #[must_use]
    pub fn has_one(&self) -> bool {
        self.yard.has_one()
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// What is sent of one packet of the host.
#[allow(clippy::large_enum_variant, reason = "on the stack for one packet; a box would be made for each")]
enum Cut {
    Whole(Option<usize>),
    Segments(Segments),
}

impl Cut {
    fn next_in(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        match self {
            Self::Whole(len) => len.take().map(|len| 0..len),
            Self::Segments(segments) => segments.next_in(buffer),
        }
    }

    fn longest(&self) -> usize {
        match self {
            Self::Whole(len) => len.unwrap_or_default(),
            Self::Segments(segments) => segments.longest(),
        }
    }

    fn remaining(&self) -> usize {
        match self {
            Self::Whole(len) => usize::from(len.is_some()),
            Self::Segments(segments) => segments.remaining(),
        }
    }
}

impl Engine {
    /// Takes what the host wants sent: one packet, or a super-packet that `header` tells how to cut.
    ///
    /// `buffer[..len]` is the packet, which may be overwritten. What goes to the underlay lies in `outbox` until
    /// [`Engine::flush`], which is called here only when it is full.
    pub fn handle_tun_packet(
        &self,
        header: &Header,
        buffer: &mut [u8],
        len: usize,
        outbox: &mut Outbox,
        sink: &mut impl Sink,
    ) {
        let planned = buffer.get_mut(..len).and_then(|p| split::plan(header, p));
        let (Some(plan), Some(parsed)) = (planned, buffer.get(..len).and_then(packet::parse)) else {
            return self.counters.add(Counter::Malformed);
        };
        let mut cut = match plan {
            Plan::Whole(len) => Cut::Whole(Some(len)),
            Plan::Segments(segments) => Cut::Segments(segments),
        };
        let Some(peer) = read(&self.lanes[outbox.lane].routes).lookup(parsed.destination).cloned() else {
            return self.counters.add_many(Counter::NoPeer, cut.remaining() as u64);
        };
        if let Some(told) = self.too_long(&peer, &buffer[..len], cut.longest(), sink) {
            self.counters.add_many(Counter::TooLong, cut.remaining() as u64);
            let error = cut.next_in(buffer).and_then(|first| path::error(&buffer[first], told));
            // One for all segments, and shorter than each of them.
            if error.is_some_and(|error| sink.write_tun(&Header::PLAIN, &[&error]).is_err()) {
                self.counters.add(Counter::TunWrite);
            }
            return;
        }
        let needed = (cut.longest() + PADDING + OVERHEAD).max(INITIATION);
        let now = Moment::now();
        let owner = Owner(peer, Counter::DataSent);
        while cut.remaining() > 0 {
            // Not with the lock held: sending may wait, and so does encrypting.
            if outbox.yard.room().len() < needed {
                self.flush(outbox, sink);
            }
            let mut inner = lock(&owner.0.inner);
            for _ in 0..TOGETHER {
                if outbox.yard.room().len() < needed {
                    break;
                }
                let Some(at) = cut.next_in(buffer) else { break };
                self.pack(&owner, &mut inner, &buffer[at], outbox, now);
            }
            drop(inner);
            if !outbox.bulk.has_crew() {
                outbox.seal();
            }
        }
    }

    /// What the sender of a packet is told that would go to this peer in pieces of `longest` bytes, if that is too long.
    fn too_long(&self, peer: &Peer, packet: &[u8], longest: usize, sink: &impl Sink) -> Option<u16> {
        let mut room = peer.room();
        // A super-packet's pieces are as long as its connection agreed on, maybe before the device's MTU was lowered.
        if longest > self.mtu.load(Ordering::Relaxed)
            && let Some(mtu) = sink.tun_mtu()
        {
            self.set_mtu(mtu);
            room = room.min(mtu);
        }
        if longest > room { path::told(packet, longest, room) } else { None }
    }

    /// Puts a packet into the outbox.
    fn pack(&self, owner: &Owner, inner: &mut PeerInner, packet: &[u8], outbox: &mut Outbox, now: Moment) {
        let padded = packet::padded_len(
            packet.len(),
            self.mtu.load(Ordering::Relaxed).min(owner.0.room()).min(MAX_PACKET),
        );
        match inner.encapsulate(packet, padded, outbox.yard.room(), now) {
            Encapsulated::Send(to, Unsealed { len, key }) => {
                let at = outbox.yard.commit(to, owner, len);
                outbox.unsealed.push(key, at);
            }
            Encapsulated::Queued(initiation, dropped) => {
                if let Some((to, n)) = initiation {
                    outbox.yard.commit(to, &Owner(Arc::clone(&owner.0), Counter::InitiationSent), n);
                }
                if let Some(counter) = dropped {
                    self.counters.add(counter);
                }
            }
            Encapsulated::Dropped(counter) => self.counters.add(counter),
        }
    }

    /// Sends what lies in the outbox.
    pub fn flush(&self, outbox: &mut Outbox, sink: &mut impl Sink) {
        outbox.seal();
        outbox.yard.drain(|train, datagrams| self.send_train(train, datagrams, sink));
    }

    fn send_train(&self, train: &Train<Owner>, datagrams: &[u8], sink: &mut impl Sink) {
        let Owner(peer, counter) = &train.owner;
        if *counter == Counter::InitiationSent && train.count == 1 {
            // By itself, so that it is known why it did not leave.
            self.send(peer, train.to, datagrams, Moment::now(), sink);
            return;
        }
        let sent = sink.send_train(train.to, datagrams, train.segment).min(train.count);
        peer.add_tx((sent * train.segment).min(datagrams.len()));
        self.counters.add_many(*counter, sent as u64);
        if sent < train.count {
            self.counters.add_many(Counter::UdpSend, (train.count - sent) as u64);
        }
    }
}
