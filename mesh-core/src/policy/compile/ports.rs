//! From rules in their order to a port function: who comes first paints, and what is painted stays.

use std::collections::{BTreeMap, BTreeSet};

use super::normal::PortMatch;
use crate::policy::model::Protocol;
use crate::policy::tables::{PortFunction, PortPrefix, PortVerdict};

/// What is said of a port so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing.
    Open,
    /// A Pass: this tier says no more.
    Passed,
    /// The last word.
    Said(PortVerdict),
}

/// How many ports there are.
const PORTS: u32 = 1 << 16;

/// All ports of one protocol: from each key to the next one the same mark. Zero is always a key.
#[derive(Clone, Debug)]
struct Channel(BTreeMap<u32, Mark>);

impl Channel {
    fn split(&mut self, at: u32) {
        if at < PORTS
            && let Some((_, mark)) = self.0.range(..=at).next_back()
        {
            let mark = *mark;
            self.0.insert(at, mark);
        }
    }

    fn paint(&mut self, first: u32, last: u32, mark: Mark) {
        self.split(first);
        self.split(last + 1);
        for cell in self.0.range_mut(first..=last).map(|(_, cell)| cell) {
            if *cell == Mark::Open {
                *cell = mark;
            }
        }
    }
}

/// What is said of every protocol and port.
#[derive(Clone, Debug)]
pub(crate) struct Painting {
    /// Protocols without ports.
    other: Mark,
    /// As [`Protocol::ALL`].
    channels: [Channel; 3],
}

/// What a painting comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Deny,
    Allow,
    Ports(PortFunction),
}

impl Painting {
    pub(crate) fn new() -> Self {
        let blank = Channel(BTreeMap::from([(0, Mark::Open)]));
        Self { other: Mark::Open, channels: [blank.clone(), blank.clone(), blank] }
    }

    /// Every protocol and port that is still open.
    pub(crate) fn all(&mut self, mark: Mark) {
        if self.other == Mark::Open {
            self.other = mark;
        }
        for channel in &mut self.channels {
            channel.paint(0, PORTS - 1, mark);
        }
    }

    /// What is still open of one entry. A name is nothing here: it is resolved before.
    pub(crate) fn some(&mut self, ports: &PortMatch, mark: Mark) {
        match ports {
            PortMatch::Protocol(protocol) => self.channel(*protocol).paint(0, PORTS - 1, mark),
            PortMatch::Range(protocol, first, last) => {
                self.channel(*protocol).paint(u32::from(*first), u32::from(*last), mark);
            }
            PortMatch::Name(..) => {}
        }
    }

    /// The next tier begins: what was passed is open again.
    pub(crate) fn next_tier(&mut self) {
        let cells = self.channels.iter_mut().flat_map(|channel| channel.0.values_mut());
        for mark in cells.chain([&mut self.other]) {
            if *mark == Mark::Passed {
                *mark = Mark::Open;
            }
        }
    }

    fn channel(&mut self, protocol: Protocol) -> &mut Channel {
        match protocol {
            Protocol::Tcp => &mut self.channels[0],
            Protocol::Udp => &mut self.channels[1],
            Protocol::Sctp => &mut self.channels[2],
        }
    }

    /// What it says in the end; `rest` of whatever nobody painted.
    pub(crate) fn outcome(mut self, rest: PortVerdict) -> Outcome {
        self.next_tier();
        self.all(Mark::Said(rest));
        let verdict = |mark: &Mark| match mark {
            Mark::Said(verdict) => *verdict,
            Mark::Open | Mark::Passed => rest,
        };
        let other = verdict(&self.other);
        let mut cells = self.channels.iter().flat_map(|channel| channel.0.values());
        if cells.all(|mark| verdict(mark).allow == other.allow) {
            return if other.allow { Outcome::Allow } else { Outcome::Deny };
        }
        let mut function = PortFunction::from([(PortPrefix::ANY, other)]);
        for (protocol, channel) in Protocol::ALL.iter().zip(&self.channels) {
            let mut cells: Vec<(u32, PortVerdict)> = Vec::new();
            for (start, mark) in &channel.0 {
                let verdict = verdict(mark);
                if cells.last().is_none_or(|(_, last)| *last != verdict) {
                    cells.push((*start, verdict));
                }
            }
            Branch::grow(&cells, 0, 16).emit(protocol.number(), 0, 0, other, &mut function);
        }
        Outcome::Ports(function)
    }
}

/// A binary tree over ports that finds the fewest prefixes ("Constructing Optimal IP Routing Tables", Draves, King,
/// Venkatachary, Zill, 1999): each node knows which verdicts it could inherit at the least cost.
struct Branch {
    wanted: BTreeSet<PortVerdict>,
    halves: Option<Box<(Self, Self)>>,
}

impl Branch {
    /// Of the `2^bits` ports from `first`. Cells are (start, verdict), the first at or before `first`.
    fn grow(cells: &[(u32, PortVerdict)], first: u32, bits: u32) -> Self {
        let from = cells.partition_point(|(start, _)| *start <= first).saturating_sub(1);
        let to = cells.partition_point(|(start, _)| *start < first + (1 << bits));
        let cells = cells.get(from..to).unwrap_or_default();
        if let [(_, verdict)] = cells {
            return Self { wanted: BTreeSet::from([*verdict]), halves: None };
        }
        let half = bits.saturating_sub(1);
        let (low, high) = (Self::grow(cells, first, half), Self::grow(cells, first + (1 << half), half));
        let both: BTreeSet<_> = low.wanted.intersection(&high.wanted).copied().collect();
        let wanted = if both.is_empty() { low.wanted.union(&high.wanted).copied().collect() } else { both };
        Self { wanted, halves: Some(Box::new((low, high))) }
    }

    fn emit(&self, protocol: u8, first: u32, bits: u8, inherited: PortVerdict, function: &mut PortFunction) {
        let mut verdict = inherited;
        if !self.wanted.contains(&inherited)
            && let (Some(own), Ok(port)) = (self.wanted.first(), u16::try_from(first))
        {
            verdict = *own;
            function.insert(PortPrefix::of(protocol, port, bits), verdict);
        }
        if let Some(halves) = &self.halves {
            let half = PORTS >> (bits + 1);
            halves.0.emit(protocol, first, bits + 1, verdict, function);
            halves.1.emit(protocol, first + half, bits + 1, verdict, function);
        }
    }
}

#[cfg(test)]
mod tests;
