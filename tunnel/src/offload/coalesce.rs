//! Joins packets of one flow that follow each other into super-packets, so that the host's stack is entered once for many.
//!
//! The inverse of [`split`](super::split): what is joined can be cut into the very packets that arrived, and the rules are
//! those of Linux's GRO. Two things alone may come back otherwise, and no stack can tell: PSH within a run moves to its
//! end (RFC 9293, section 3.9.1.2: it delimits nothing), and where IPv4 may not fragment, identifications that were all
//! the same count up (RFC 6864, section 4.1: they have no meaning).
//!
//! * TCP with payload, ACK and no other flag than PSH, FIN, ECE; all else of IP and TCP headers the same (addresses, ports,
//!   traffic class with ECN, hop limit, flow label, window, acknowledgement, options), sequence numbers in a row,
//!   identifications in a row or meaningless. FIN ends a run, and so does a payload shorter than the first one's.
//! * UDP likewise, if it has a checksum.
//! * Checksums of what is joined are verified first: a partial checksum vouches for its packet.
//! * All else is handed on as it is: fragments, IPv4 options, IPv6 extension headers, SYN, RST, URG, CWR, bare ACKs.
//!
//! Within a flow the order stays; a packet that ports cannot be read of stays in order with all of its two addresses.

use std::ops::Range;

use super::Offloads;
use super::checksum::{Sum, TCP, UDP};
use super::vnet::{Header, Segmentation};

/// Most packets of a run: Linux before 6.9 takes no more in one UDP super-packet, and at the usual size 47 fill one.
pub const MAX_RUN: usize = 64;
/// Flows that a run may be open for; with more, the oldest is closed.
const MAX_OPEN: usize = 16;
/// Most bytes of an IP packet.
const MAX_LEN: usize = 65535;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// What is known of a packet that can be joined to others.
#[derive(Clone, Copy, Debug)]
struct Shape {
    six: bool,
    protocol: u8,
    /// Where TCP's or UDP's header begins: 20 or 40.
    transport: usize,
    headers: usize,
    payload: usize,
}

/// One packet, or several to be written as one.
#[derive(Debug)]
struct Run {
    first: Range<usize>,
    /// Payloads of the others.
    more: Vec<Range<usize>>,
    /// Of the first packet; `None` if it stays alone.
    shape: Option<Shape>,
    /// Whether the first packet's checksum was found right.
    verified: bool,
    /// Bytes of all as one packet.
    len: usize,
    /// Identifications count up, stand still (`None`: not known yet).
    counts: Option<bool>,
    /// FIN and PSH of all.
    flags: u8,
}

/// Collects packets that lie in one buffer, and says how to write them.
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    /// The first `used` are in use; the others keep their memory.
    runs: Vec<Run>,
    used: usize,
    /// Runs that may grow.
    open: Vec<usize>,
}

impl Coalescer {
    /// Joins what the offloads permit.
    #[must_use]
    pub const fn new(offloads: Offloads) -> Self {
        Self { offloads, runs: Vec::new(), used: 0, open: Vec::new() }
    }

    /// Whether nothing has been collected.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Adds the packet `buffer[at]`, whose IP header has been checked and which ends where its length field says.
    pub fn push(&mut self, buffer: &[u8], at: Range<usize>) {
        let packet = &buffer[at.clone()];
        let shape = Shape::of(packet).filter(|s| match s.protocol {
            TCP => self.offloads.tcp,
            _ => self.offloads.udp,
        });
        let Some(shape) = shape else {
            let close = |run: &Run| may_be_of_one_flow(&buffer[run.first.clone()], packet);
            self.open.retain(|&run| !close(&self.runs[run]));
            return self.begin(at, None, 0);
        };
        let flow = shape.flow(packet);
        let found = self.open.iter().position(|&run| {
            let run = &self.runs[run];
            run.shape.is_some_and(|s| {
                s.six == shape.six
                    && s.protocol == shape.protocol
                    && s.flow(&buffer[run.first.clone()]) == flow
            })
        });
        if let Some(place) = found {
            let run = self.open[place];
            match self.runs[run].append(buffer, packet, at.clone(), shape) {
                Appended::Open => return,
                Appended::Last => {
                    self.open.remove(place);
                    return;
                }
                Appended::No => {
                    self.open.remove(place);
                }
            }
        }
        let flags = if shape.protocol == TCP { packet[shape.transport + 13] } else { 0 };
        self.begin(at, Some(shape), flags & (FIN | PSH));
        if flags & FIN == 0 {
            if self.open.len() == MAX_OPEN {
                self.open.remove(0);
            }
            self.open.push(self.used - 1);
        }
    }

    fn begin(&mut self, first: Range<usize>, shape: Option<Shape>, flags: u8) {
        let mut more = self.runs.get_mut(self.used).map(|r| std::mem::take(&mut r.more)).unwrap_or_default();
        more.clear();
        let len = first.len();
        let run = Run { first, more, shape, verified: false, len, counts: None, flags };
        match self.runs.get_mut(self.used) {
            Some(old) => *old = run,
            None => self.runs.push(run),
        }
        self.used += 1;
    }

    /// Hands out all that was collected, in order, and forgets it: a header, the pieces that are written after it, and
    /// how many packets they were.
    pub fn drain(&mut self, buffer: &mut [u8], mut write: impl FnMut(&Header, &[&[u8]], usize)) {
        for run in &self.runs[..self.used] {
            let header = run.seal(buffer);
            let mut pieces = [&[][..]; MAX_RUN];
            pieces[0] = &buffer[run.first.clone()];
            for (piece, at) in pieces[1..].iter_mut().zip(&run.more) {
                *piece = &buffer[at.clone()];
            }
            let count = 1 + run.more.len();
            write(&header, &pieces[..count], count);
        }
        self.used = 0;
        self.open.clear();
    }
}

/// Whether the order of two packets might matter to somebody: one of them shows no ports.
fn may_be_of_one_flow(one: &[u8], other: &[u8]) -> bool {
    let addresses = |p: &[u8]| if p[0] >> 4 == 4 { 12..20 } else { 8..40 };
    one[0] >> 4 == other[0] >> 4 && one[addresses(one)] == other[addresses(other)]
}

enum Appended {
    /// It is part of the run, which may grow.
    Open,
    /// It is part of the run and ends it.
    Last,
    /// It begins another run.
    No,
}

impl Shape {
    fn of(packet: &[u8]) -> Option<Self> {
        let six = packet.first()? >> 4 == 6;
        let (protocol, transport) = if six {
            (*packet.get(6)?, 40)
        } else {
            // No options, no fragment, and the bit that must be zero is.
            let fragment = [*packet.get(6)? & 0xbf, *packet.get(7)?];
            if packet[0] != 0x45 || fragment != [0, 0] {
                return None;
            }
            (*packet.get(9)?, 20)
        };
        let headers = match protocol {
            TCP => {
                let [data_offset, flags] = *packet.get(transport + 12..)?.first_chunk()?;
                if flags & !(PSH | FIN | ECE) != ACK || data_offset < 0x50 {
                    return None;
                }
                transport + usize::from(data_offset >> 4) * 4
            }
            UDP => {
                let [l0, l1, s0, s1] = *packet.get(transport + 4..)?.first_chunk()?;
                let all = usize::from(u16::from_be_bytes([l0, l1])) == packet.len() - transport;
                if !all || [s0, s1] == [0, 0] {
                    return None;
                }
                transport + 8
            }
            _ => return None,
        };
        let payload = packet.len().checked_sub(headers).filter(|p| *p > 0)?;
        Some(Self { six, protocol, transport, headers, payload })
    }

    /// Addresses and ports, which lie side by side.
    fn flow<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.six { &packet[8..44] } else { &packet[12..24] }
    }

    /// What must be equal of two packets of a run besides their flow.
    fn rest(&self, p: &[u8]) -> ([u8; 4], [u8; 2]) {
        if self.six { ([p[0], p[1], p[2], p[3]], [p[7], 0]) } else { ([p[0], p[1], p[6], p[7]], [p[8], 0]) }
    }

    fn verifies(&self, packet: &[u8]) -> bool {
        let covered = u16::try_from(packet.len() - self.transport).unwrap_or(u16::MAX);
        let addresses = if self.six { &packet[8..40] } else { &packet[12..20] };
        let sum = Sum::default().pseudo(addresses, self.protocol, covered);
        let header = self.six || Sum::default().bytes(&packet[..20]).verifies();
        header && sum.bytes(&packet[self.transport..]).verifies()
    }

    fn id(&self, packet: &[u8]) -> u16 {
        u16::from_be_bytes([packet[4], packet[5]])
    }

    fn sequence(&self, packet: &[u8]) -> u32 {
        let at = self.transport + 4;
        u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
    }
}

impl Run {
    /// Takes a packet of the same flow in, if it goes on where the run ends.
    fn append(&mut self, buffer: &[u8], packet: &[u8], at: Range<usize>, shape: Shape) -> Appended {
        let Some(own) = self.shape else { return Appended::No };
        let first = &buffer[self.first.clone()];
        let fits = shape.headers == own.headers
            && shape.payload <= own.payload
            && self.len + shape.payload <= MAX_LEN
            && 1 + self.more.len() < MAX_RUN
            && own.rest(first) == own.rest(packet);
        if !fits || !self.continues(own, first, packet) {
            return Appended::No;
        }
        let counts = if own.six { Some(None) } else { self.identified(own, first, packet).map(Some) };
        let Some(counts) = counts else { return Appended::No };
        if !self.verified && !own.verifies(first) || !shape.verifies(packet) {
            return Appended::No;
        }
        self.verified = true;
        if counts.is_some() {
            self.counts = counts;
        }
        self.len += shape.payload;
        self.more.push(at.start + shape.headers..at.end);
        if own.protocol == TCP {
            self.flags |= packet[own.transport + 13] & (FIN | PSH);
        }
        if shape.payload < own.payload || self.flags & FIN != 0 || 1 + self.more.len() == MAX_RUN {
            Appended::Last
        } else {
            Appended::Open
        }
    }

    /// Whether TCP's header is the first one's but for what a stack counts up by itself.
    fn continues(&self, own: Shape, first: &[u8], packet: &[u8]) -> bool {
        if own.protocol == UDP {
            return true;
        }
        let sent = u32::try_from(self.len - own.headers).unwrap_or(u32::MAX);
        let header = |p: &[u8]| {
            let t = &p[own.transport..];
            let ack = [t[8], t[9], t[10], t[11]];
            let offset_flags_window = [t[12], t[13] & !(FIN | PSH), t[14], t[15]];
            (ack, offset_flags_window, [t[18], t[19]])
        };
        own.sequence(packet) == own.sequence(first).wrapping_add(sent)
            && header(first) == header(packet)
            && first[own.transport + 20..own.headers] == packet[own.transport + 20..own.headers]
    }

    /// Whether the identification goes on: counting up, or, where it means nothing, standing still.
    fn identified(&self, own: Shape, first: &[u8], packet: &[u8]) -> Option<bool> {
        let (was, is) = (own.id(first), own.id(packet));
        let place = u16::try_from(1 + self.more.len()).unwrap_or(u16::MAX);
        let unfragmentable = first[6] & 0x40 != 0;
        if is == was.wrapping_add(place) && self.counts != Some(false) {
            Some(true)
        } else if is == was && unfragmentable && self.counts != Some(true) {
            Some(false)
        } else {
            None
        }
    }

    /// Makes the first packet's headers those of the whole; what the kernel is to be told of it.
    fn seal(&self, buffer: &mut [u8]) -> Header {
        let (Some(shape), false) = (self.shape, self.more.is_empty()) else { return Header::PLAIN };
        let first = &mut buffer[self.first.clone()];
        let field = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let covered = field(self.len - shape.transport);
        let addresses = if shape.six {
            first[4..6].copy_from_slice(&covered.to_be_bytes());
            8..40
        } else {
            first[2..4].copy_from_slice(&field(self.len).to_be_bytes());
            first[10..12].fill(0);
            let sum = Sum::default().bytes(&first[..20]).finish();
            first[10..12].copy_from_slice(&sum);
            12..20
        };
        let sum = Sum::default().pseudo(&first[addresses], shape.protocol, covered).fold();
        let (offset, segmentation) = if shape.protocol == TCP {
            first[shape.transport + 13] |= self.flags;
            (16, if shape.six { Segmentation::Tcp6 } else { Segmentation::Tcp4 })
        } else {
            first[shape.transport + 4..shape.transport + 6].copy_from_slice(&covered.to_be_bytes());
            (6, Segmentation::Udp)
        };
        let at = shape.transport + offset;
        first[at..at + 2].copy_from_slice(&sum);
        Header {
            checksum: Some((field(shape.transport), field(offset))),
            segmentation,
            segment: field(shape.payload),
            headers: field(shape.headers),
        }
    }
}

#[cfg(test)]
mod tests;
