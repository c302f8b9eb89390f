//! From the underlay to the host.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::peer::Peer;
use super::{Engine, MAX_PACKET, SCRATCH, Sink, lock, read};
use crate::clock::Moment;
use crate::counters::Counter;
use crate::noise::bulk::{self, Bulk};
use crate::noise::messages::{self, Message, OVERHEAD, TYPE_DATA};
use crate::offload::coalesce::Coalescer;
use crate::offload::{Offloads, split, vnet};
use crate::packet;
use crate::uapi::canonical;

/// Bytes of an inbox: what four full calls of a socket bring; it stays in a second-level cache.
const INBOX: usize = 4 * SCRATCH;

/// Decrypted packets that wait for [`Engine::deliver`].
#[derive(Debug)]
pub struct Inbox {
    lane: usize,
    buffer: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
    /// What was decrypted in one go and has not been looked at.
    fresh: Vec<Range<usize>>,
    jobs: Vec<bulk::Open>,
    bulk: Bulk,
    scratch: Vec<u8>,
}

impl Inbox {
    /// An empty one, of the first lane, which joins packets as the offloads permit.
    #[must_use]
    pub fn new(offloads: Offloads) -> Self {
        Self::of_lane(0, offloads, Bulk::default())
    }

    /// The same, of the thread with this lane.
    #[must_use]
    pub fn of_lane(lane: usize, offloads: Offloads, bulk: Bulk) -> Self {
        Self {
            lane,
            buffer: vec![0; INBOX],
            used: 0,
            coalescer: Coalescer::new(offloads),
            fresh: Vec::new(),
            jobs: Vec::new(),
            bulk,
            scratch: vec![0; SCRATCH],
        }
    }

    /// Whether it is time to deliver, though there may be more: half of it is full.
    #[must_use]
    pub const fn is_due(&self) -> bool {
        self.used >= INBOX / 2
    }
}

/// What became of the datagrams of one go.
#[derive(Default)]
struct Opened {
    keepalives: u64,
    refused: u64,
    /// Bytes of those that authenticated.
    bytes: usize,
    authentic: bool,
    confirmed: bool,
}

/// The receiver index of what may be a data message.
fn data_receiver(datagram: &[u8]) -> Option<u32> {
    let [kind, 0, 0, 0, i0, i1, i2, i3] = *datagram.first_chunk()? else { return None };
    (kind == TYPE_DATA && (OVERHEAD..=MAX_PACKET).contains(&datagram.len()))
        .then_some(u32::from_le_bytes([i0, i1, i2, i3]))
}

impl Engine {
    /// Handles datagrams from one source on the underlay, which lie in a row, each of `segment` bytes but the last.
    ///
    /// Packets for the host lie in `inbox` until [`Engine::deliver`], which is called here only when it is full.
    pub fn handle_datagrams(
        &self,
        datagrams: &[u8],
        segment: usize,
        from: SocketAddr,
        inbox: &mut Inbox,
        sink: &mut impl Sink,
    ) {
        let from = canonical(from);
        let segment = segment.max(1);
        if datagrams.is_empty() {
            return self.counters.add(Counter::Malformed);
        }
        let mut rest = datagrams;
        while !rest.is_empty() {
            let first = &rest[..segment.min(rest.len())];
            let taken = if let Some(receiver) = data_receiver(first) {
                let same = rest.chunks(segment).take_while(|d| data_receiver(d) == Some(receiver));
                let taken = same.map(<[u8]>::len).sum();
                self.handle_data(&rest[..taken], segment, receiver, from, inbox, sink);
                taken
            } else {
                self.handle_other(first, from, &mut inbox.scratch, sink);
                first.len()
            };
            rest = &rest[taken..];
        }
    }

    /// Handles a datagram that is not data.
    fn handle_other(&self, datagram: &[u8], from: SocketAddr, scratch: &mut [u8], sink: &mut impl Sink) {
        if datagram.len() > MAX_PACKET {
            return self.counters.add(Counter::Malformed);
        }
        let Some(message) = messages::parse(datagram) else {
            return self.counters.add(Counter::Malformed);
        };
        let Some(identity) = read(&self.identity).clone() else {
            return self.counters.add(Counter::NoKey);
        };
        let now = Moment::now();
        match message {
            Message::Initiation(initiation) => {
                if !self.admit(&identity, initiation, from, now, sink) {
                    return;
                }
                let Some(half) = identity.own.recognise(initiation) else {
                    return self.counters.add(Counter::ReplayOrAuth);
                };
                let Some(peer) = read(&self.registry).by_key.get(half.peer()).cloned() else {
                    return self.counters.add(Counter::UnknownPeer);
                };
                // The endpoint does not follow yet: an initiation may be a replay that this process, freshly started, cannot
                // recognise. The first data packet proves the sender.
                let answer = lock(&peer.inner).answer(half, scratch, now);
                let Some(n) = answer else { return self.counters.add(Counter::ReplayOrAuth) };
                peer.add_rx(datagram.len());
                self.send(&peer, from, &scratch[..n], now, sink);
            }
            Message::Response(response) => {
                // Not admitted as initiations are: a hub that starts anew asks all its peers at once, and would take their answers
                // for load.
                let sender = messages::response_sender(response);
                let loaded = self.limiter.is_forged_for();
                if !self.knows_us(&identity, (response, sender), loaded, from, now, sink) {
                    return;
                }
                if loaded && !self.limiter.admit(from.ip(), now) {
                    return self.counters.add(Counter::RateLimited);
                }
                if let Some(peer) = self.by_receiver(messages::response_receiver(response), 1) {
                    self.handle_response(&peer, response, from, now, scratch, sink);
                }
            }
            Message::Cookie(reply) => {
                if let Some(peer) = self.by_receiver(messages::cookie_receiver(reply), 1) {
                    let accepted = lock(&peer.inner).take_cookie(reply, now);
                    if accepted {
                        peer.add_rx(datagram.len());
                    }
                    self.counters.add(if accepted { Counter::CookieReceived } else { Counter::ReplayOrAuth });
                }
            }
            // Data is told apart before.
            Message::Data(_) => self.counters.add(Counter::Malformed),
        }
    }

    /// Decrypts data of one session.
    fn handle_data(
        &self,
        datagrams: &[u8],
        segment: usize,
        receiver: u32,
        from: SocketAddr,
        inbox: &mut Inbox,
        sink: &mut impl Sink,
    ) {
        let count = datagrams.len().div_ceil(segment) as u64;
        if !self.keyed.load(Ordering::Relaxed) {
            return self.counters.add_many(Counter::NoKey, count);
        }
        let Some(peer) = self.by_receiver(receiver, count) else { return };
        if inbox.buffer.len() - inbox.used < datagrams.len() {
            self.deliver(inbox, sink);
        }
        let now = Moment::now();
        let Inbox { buffer, used, fresh, jobs, bulk, .. } = inbox;
        let key = {
            let mut inner = lock(&peer.inner);
            let key = inner.receiving(receiver, now);
            let mut at = *used;
            jobs.extend(datagrams.chunks(segment).enumerate().filter_map(|(n, datagram)| {
                let number = messages::counter(datagram);
                inner.is_new(receiver, number, now).then(|| {
                    let from = n * segment;
                    let into = at..at + datagram.len() - OVERHEAD;
                    at = into.end;
                    bulk::Open { from: from..from + datagram.len(), into, authentic: false }
                })
            }));
            key
        };
        let mut opened = Opened { refused: count - jobs.len() as u64, ..Opened::default() };
        if let Some(key) = key {
            // Without the lock: this is most of the work.
            bulk.open(&key, datagrams, jobs, buffer);
        }
        let mut inner = lock(&peer.inner);
        for bulk::Open { from, into, authentic } in jobs.drain(..) {
            let (len, content) = (from.len(), !into.is_empty());
            let number = messages::counter(&datagrams[from]);
            if !authentic || !inner.note(receiver, number, content, now) {
                opened.refused += 1;
                continue;
            }
            if content {
                *used = into.end;
                fresh.push(into);
            } else {
                opened.keepalives += 1;
            }
            opened.authentic = true;
            opened.bytes += len;
        }
        if opened.authentic {
            opened.confirmed = inner.confirm(receiver);
            self.roam(&peer, &mut inner, from);
        }
        drop(inner);
        peer.add_rx(opened.bytes);
        self.counters.add_many(Counter::KeepaliveReceived, opened.keepalives);
        self.counters.add_many(Counter::ReplayOrAuth, opened.refused);
        self.accept(&peer, inbox);
        if opened.confirmed {
            self.handshake_done(&peer, &mut inbox.scratch, now, sink);
        }
    }

    /// Of what was decrypted, keeps what its peer may say.
    fn accept(&self, peer: &Arc<Peer>, inbox: &mut Inbox) {
        if inbox.fresh.is_empty() {
            return;
        }
        let routes = read(&self.lanes[inbox.lane].routes);
        let mut last = None;
        for at in inbox.fresh.drain(..) {
            let Some(header) = packet::parse(&inbox.buffer[at.clone()]) else {
                self.counters.add(Counter::Malformed);
                continue;
            };
            // Most have the source of the one before.
            let owned = match last {
                Some((source, owned)) if source == header.source => owned,
                _ => routes.lookup(header.source).is_some_and(|owner| owner.id == peer.id),
            };
            last = Some((header.source, owned));
            if owned {
                inbox.coalescer.push(&inbox.buffer, at.start..at.start + header.len);
            } else {
                self.counters.add(Counter::WrongSource);
            }
        }
    }

    /// Hands to the host what lies in the inbox.
    pub fn deliver(&self, inbox: &mut Inbox, sink: &mut impl Sink) {
        inbox.coalescer.drain(&mut inbox.buffer, |header, pieces, count| {
            let outcome = sink.write_tun(header, pieces);
            match outcome {
                Ok(()) => self.counters.add_many(Counter::DataDelivered, count as u64),
                // Some kernels refuse super-packets that others take.
                Err(e) if count > 1 && e.raw_os_error() == Some(nix::libc::EINVAL) => {
                    self.deliver_each(header, pieces.concat(), sink);
                }
                Err(_) => self.counters.add_many(Counter::TunWrite, count as u64),
            }
        });
        inbox.used = 0;
    }

    /// Hands to the host, one by one, what was joined.
    fn deliver_each(&self, header: &vnet::Header, mut whole: Vec<u8>, sink: &mut impl Sink) {
        let Some(split::Plan::Segments(mut segments)) = split::plan(header, &mut whole) else {
            return self.counters.add(Counter::TunWrite);
        };
        while let Some(at) = segments.next_in(&mut whole) {
            let taken = sink.write_tun(&vnet::Header::PLAIN, &[&whole[at]]).is_ok();
            self.counters.add(if taken { Counter::DataDelivered } else { Counter::TunWrite });
        }
    }

    /// The peer that `count` datagrams are for, by their receiver index.
    fn by_receiver(&self, receiver: u32, count: u64) -> Option<Arc<Peer>> {
        let index = receiver >> 8;
        let peer = read(&self.lanes[self.count.of_index(index)].by_index).get(&index).cloned();
        if peer.is_none() {
            self.counters.add_many(Counter::UnknownSession, count);
        }
        peer
    }
}
