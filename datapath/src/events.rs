//! The ring of events: one for each new flow, drop, revocation and unknown address.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use mesh_core::policy::model::Direction;

use crate::abi::{
    CountIndex, DropReason, Event, HW_EGRESS, HW_EVENT_AUDIT, HW_EVENT_CHANGED, HW_EVENT_DROP, HW_EVENT_NEW,
    HW_EVENT_REVOKED, HW_EVENT_UNKNOWN,
};
use crate::error::{Error, Result};
use crate::load::Datapath;
use crate::map::Counters;

/// How often to look into the ring: nobody is woken, since that would cost more than all the rest of an event. A ring of
/// 1 MiB holds 10,000 events, so this loses none below two million a second.
pub const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A new flow passes.
    New,
    /// A packet was dropped.
    Drop,
    /// A known flow was judged again: it passes for another reason than before.
    Changed,
    /// A known flow was judged again, and cut.
    Revoked,
    /// An address inside a guarded prefix that nobody has told us of.
    Unknown,
    /// Denied by policy, and passed because of an audit.
    Audit,
}

impl EventKind {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            HW_EVENT_NEW => Some(Self::New),
            HW_EVENT_DROP => Some(Self::Drop),
            HW_EVENT_CHANGED => Some(Self::Changed),
            HW_EVENT_REVOKED => Some(Self::Revoked),
            HW_EVENT_UNKNOWN => Some(Self::Unknown),
            HW_EVENT_AUDIT => Some(Self::Audit),
            _ => None,
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// Nanoseconds of the monotonic clock ([`crate::now_ns`]).
    pub at_ns: u64,
    /// What happened.
    pub kind: EventKind,
    /// Why, if something was dropped, cut or would have been.
    pub reason: DropReason,
    /// Source.
    pub source: IpAddr,
    /// Destination, after translation.
    pub destination: IpAddr,
    /// Source port; the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port; the identifier of an ICMP echo.
    pub destination_port: u16,
    /// What the client called it: address and port of the service.
    pub service: Option<(IpAddr, u16)>,
    /// IANA number.
    pub protocol: u8,
    /// Which policy judged last.
    pub direction: Direction,
    /// Flags of the TCP header.
    pub tcp_flags: u8,
    /// The packet went against the first of its flow.
    pub reply: bool,
    /// Index of the link of the pod concerned, or of the device.
    pub ifindex: u32,
    /// Number of the rule that decided; 0: none.
    pub rule: u32,
    /// Classes of source and destination; 0: not looked up.
    pub classes: [u32; 2],
    /// Length of the packet in bytes from the IP header on.
    pub length: u32,
    /// Epoch of the policy that judged.
    pub epoch: u32,
}

impl FlowEvent {
    /// `None` for a kind or a reason that this agent does not know: the programs are a later agent's.
    pub fn from_record(event: &Event) -> Option<Self> {
        Some(Self {
            at_ns: event.at,
            kind: EventKind::from_number(event.kind)?,
            reason: DropReason::from_number(event.reason)?,
            source: event.src.ip(),
            destination: event.dst.ip(),
            source_port: event.sport.get(),
            destination_port: event.dport.get(),
            service: event.service.some_ip().map(|ip| (ip, event.service_port.get())),
            protocol: event.protocol,
            direction: if u32::from(event.direction) == HW_EGRESS {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            tcp_flags: event.tcp_flags,
            reply: event.flags & 1 != 0,
            ifindex: event.ifindex,
            rule: event.rule,
            classes: event.classes,
            length: event.length,
            epoch: event.epoch,
        })
    }
}

/// Reads the ring. There may be one at a time: whoever reads an event takes it away.
pub struct FlowReader {
    ring: RingBuf<MapData>,
    counters: Counters,
    lost: u64,
    strange: u64,
}

impl fmt::Debug for FlowReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ring: _, counters: _, lost, strange } = self;
        f.debug_struct("FlowReader").field("lost", lost).field("strange", strange).finish()
    }
}

impl Datapath {
    /// A reader of the ring, for a thread of its own. What was lost before does not count.
    pub fn flow_reader(&self) -> Result<FlowReader> {
        let unreadable = |error: aya::maps::MapError| Error::Map {
            map: "events",
            action: "map into memory".to_owned(),
            source: std::io::Error::other(error),
        };
        let data = MapData::from_fd(self.maps().ring()?).map_err(unreadable)?;
        let ring = RingBuf::try_from(Map::from_map_data(data).map_err(unreadable)?).map_err(unreadable)?;
        let counters = self.maps().counters.try_clone()?;
        let lost = counters.sum(CountIndex::FlowsLost as u32)?;
        Ok(FlowReader { ring, counters, lost, strange: 0 })
    }
}

impl FlowReader {
    /// Takes up to `limit` events out of the ring and appends them. Returns how many; does not wait.
    pub fn read(&mut self, limit: usize, events: &mut Vec<FlowEvent>) -> usize {
        let before = events.len();
        for _ in 0..limit {
            let Some(record) = self.ring.next() else { break };
            match Event::from_bytes(&record).as_ref().and_then(FlowEvent::from_record) {
                Some(event) => events.push(event),
                None => self.strange += 1,
            }
        }
        events.len() - before
    }

    /// How many events were lost since the last call: those that found the ring full, and those that nobody understands.
    pub fn lost(&mut self) -> Result<u64> {
        let lost = self.counters.sum(CountIndex::FlowsLost as u32)?;
        let since = lost.wrapping_sub(self.lost).saturating_add(self.strange);
        self.lost = lost;
        self.strange = 0;
        Ok(since)
    }
}
