//! The thread that reads what the host sends, for all lanes of a device: only where there are several.
//!
//! It parses a header, looks a peer up and passes a buffer on ([`consign`](crate::engine::Consignee)), so it keeps as many lanes busy as
//! encrypting costs more than reading.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::device::Shared;
use super::pulse::Pulse;
use super::queue::Parcel;
use super::ready_for;
use crate::counters::Counter;
use crate::engine::{Consignee, Verdict, verdict};
use crate::offload::vnet;

/// Packets before others are looked at: who asks whether this goes on, and who stops it.
const BURST: usize = 256;
/// Failing calls in a row after which a descriptor is given up.
const MAX_ERRORS: u32 = 1000;
/// For so long after another peer's packet nobody is alone.
const COMPANY: Duration = Duration::from_millis(10);
/// How long all packets wait for a lane that makes no progress, though its sockets have room; and how often that is looked at.
///
/// A busy machine lets a thread wait for its processor for tens of milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// Who has sent lately.
#[derive(Debug, Default)]
struct Company {
    last: Option<u64>,
    /// When it was another one than before.
    changed: Option<Instant>,
}

impl Company {
    /// Notes who sends. Whether nobody else has for a while.
    fn is_alone(&mut self, peer: u64, now: Instant) -> bool {
        if self.last != Some(peer) {
            self.changed = self.last.map(|_| now);
            self.last = Some(peer);
        }
        self.changed.is_none_or(|at| now.saturating_duration_since(at) >= COMPANY)
    }
}

/// Whether a packet may wait for a lane. Lanes count what they have dealt with.
#[derive(Clone, Debug, Default)]
struct Confidence {
    /// How far the lane was when waiting for it was given up; as long as it has not moved, nobody waits again.
    stuck: Option<usize>,
}

impl Confidence {
    /// May a packet wait on that has waited for so long? Sockets that are full are the network's doing, and last.
    fn holds(&self, turns: usize, waited: Duration, blocked: bool) -> bool {
        blocked || (self.stuck != Some(turns) && waited < PATIENCE)
    }

    /// A packet was dropped.
    const fn lost(&mut self, turns: usize) {
        self.stuck = Some(turns);
    }
}

/// A packet that waits for room.
struct Held {
    len: usize,
    to: Consignee,
    since: Instant,
}

struct Reader<'a> {
    shared: &'a Shared,
    /// A buffer without packets, but for the one that is held.
    buffer: Parcel,
    held: Option<Held>,
    company: Company,
    /// In each lane.
    confidence: Vec<Confidence>,
    errors: u32,
}

/// Reads packets until the device stops.
pub(super) fn run(shared: &Arc<Shared>, pulse: &Pulse) -> io::Result<()> {
    let Some(first) = shared.lanes.first().and_then(|lane| lane.queue.as_ref()) else { return Ok(()) };
    let mut reader = Reader {
        shared,
        buffer: first.buffer(),
        held: None,
        company: Company::default(),
        confidence: vec![Confidence::default(); shared.lanes.len()],
        errors: 0,
    };
    loop {
        let host = if reader.held.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let fds = [
            (shared.stop.as_fd(), PollFlags::IN),
            (shared.tun.as_fd(), host),
            (shared.room.as_fd(), PollFlags::IN),
            (pulse.as_fd(), PollFlags::IN),
        ];
        let [stopped, _, room, asked] = ready_for(&fds, reader.held.as_ref().map(|_| PATIENCE))?;
        if stopped {
            return Ok(());
        }
        if asked {
            pulse.answer();
        }
        if room {
            shared.room.lower();
        }
        reader.burst()?;
    }
}

impl Reader<'_> {
    /// Passes on what there is, up to a burst, or until a packet is to be held.
    fn burst(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if let Some(held) = self.held.take() {
            self.consign(held.len, held.to, held.since, now);
        }
        let at = self.packet_at();
        for _ in 0..BURST {
            if self.held.is_some() {
                break;
            }
            match rustix::io::read(&self.shared.tun, &mut self.buffer.bytes[..]) {
                Ok(len) => {
                    self.errors = 0;
                    if let Some(to) = self.whose(at, len) {
                        self.consign(len, to, now, now);
                    }
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
                    self.shared.engine.counters().add(Counter::Malformed);
                    tracing::debug!(interface = self.shared.name, error = %e, "packet of the host not read");
                    break;
                }
            }
        }
        Ok(())
    }

    const fn packet_at(&self) -> usize {
        if self.shared.offloads.vnet { vnet::LEN } else { 0 }
    }

    /// What the kernel says of the packet in the buffer.
    fn header(&self, at: usize) -> Option<vnet::Header> {
        if at == 0 {
            Some(vnet::Header::PLAIN)
        } else {
            self.buffer.bytes.first_chunk().and_then(vnet::Header::decode)
        }
    }

    fn whose(&mut self, at: usize, len: usize) -> Option<Consignee> {
        let (Some(header), true) = (self.header(at), len >= at) else {
            self.shared.engine.counters().add(Counter::Malformed);
            return None;
        };
        self.shared.engine.consignee(&header, &mut self.buffer.bytes[at..len])
    }

    /// Passes the packet in the buffer on, which waits since then, or holds or drops it.
    fn consign(&mut self, len: usize, to: Consignee, since: Instant, now: Instant) {
        let alone = self.company.is_alone(to.id(), now);
        let (shared, lane) = (self.shared, to.lane());
        let Some(queue) = shared.lanes.get(lane).and_then(|lane| lane.queue.as_ref()) else { return };
        let turns = queue.turns();
        let waited = now.saturating_duration_since(since);
        let patient = self.confidence[lane].holds(turns, waited, queue.is_blocked());
        let judge = || {
            let all = queue.waiting();
            verdict(len, to.waiting(), all, alone && patient)
        };
        let mut judged = judge();
        if judged == Verdict::Wait {
            queue.want_room();
            judged = judge();
        }
        match judged {
            Verdict::Take => queue.push(&mut self.buffer, len, to),
            Verdict::Wait => self.held = Some(Held { len, to, since }),
            Verdict::Drop => {
                if alone {
                    self.confidence[lane].lost(turns);
                }
                let at = self.packet_at();
                if let Some(header) = self.header(at) {
                    shared.engine.count_as(Counter::Busy, &header, &mut self.buffer.bytes[at..len]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_wait_for_a_lane_that_moves_or_whose_sockets_are_full_and_for_no_other() {
        let mut lane = Confidence::default();
        let (none, just, long) = (Duration::ZERO, PATIENCE - Duration::from_millis(1), PATIENCE);
        assert!(lane.holds(0, none, false) && lane.holds(0, just, false));
        assert!(!lane.holds(0, long, false), "it does not move");
        assert!(lane.holds(0, 10 * long, true), "the network does not");
        lane.lost(0);
        assert!(
            !lane.holds(0, none, false),
            "the next packet does not wait for what the last one waited for"
        );
        assert!(lane.holds(0, none, true));
        assert!(lane.holds(1, none, false), "it moved");
        assert!(!lane.holds(1, long, false));
        lane.lost(1);
        assert!(!lane.holds(1, none, false) && lane.holds(2, just, false));
    }

    #[test]
    fn nobody_is_alone_for_a_while_after_another_has_sent() {
        let (mut company, start) = (Company::default(), Instant::now());
        let mut alone = |peer, millis| company.is_alone(peer, start + Duration::from_millis(millis));
        assert!(alone(1, 0) && alone(1, 1), "there was never another");
        assert!(!alone(2, 2) && !alone(2, 11));
        assert!(alone(2, 12) && alone(2, 1000));
        assert!(!alone(1, 1001) && !alone(2, 1002) && !alone(2, 1011));
        assert!(alone(2, 1012));
    }
}
