//! Lines of several agents, one order.
//!
//! Each agent's lines come oldest first. The oldest of the heads is next once every open source has shown its head; a source
//! that is silent is waited for no longer than `patience`, or without end where the sources end by themselves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::client::Record;

/// A source that is ahead by this many lines is not read until the others have caught up.
pub const AHEAD: usize = 16 << 10;

/// Puts records of several sources in order.
#[derive(Debug)]
pub struct Merge {
    sources: Vec<Source>,
    patience: Option<Duration>,
}

#[derive(Debug)]
struct Source {
    open: bool,
    waiting: VecDeque<(Record, Instant)>,
}

impl Merge {
    /// `count` open sources. `patience`: how long a line waits for silent sources; None: until they speak or close.
    pub fn new(count: usize, patience: Option<Duration>) -> Merge {
        let source = || Source { open: true, waiting: VecDeque::new() };
        Merge { sources: std::iter::repeat_with(source).take(count).collect(), patience }
    }

    /// A record of source number `source` has come. A number of no source is ignored.
    pub fn push(&mut self, source: usize, record: Record, now: Instant) {
        if let Some(source) = self.sources.get_mut(source) {
            source.waiting.push_back((record, now));
        }
    }

    /// Nothing more comes from this source.
    pub fn close(&mut self, source: usize) {
        if let Some(source) = self.sources.get_mut(source) {
            source.open = false;
        }
    }

    /// May more of this source be read?
    pub fn wants(&self, source: usize) -> bool {
        self.sources.get(source).is_some_and(|source| source.open && source.waiting.len() < AHEAD)
    }

    /// Is any source open?
    pub fn is_open(&self) -> bool {
        self.sources.iter().any(|source| source.open)
    }

    /// The next record in order, if it need not wait.
    pub fn pop(&mut self, now: Instant) -> Option<Record> {
        let (oldest, since) = self.oldest()?;
        let all_shown = self.sources.iter().all(|source| !source.open || !source.waiting.is_empty());
        let waited = self.patience.is_some_and(|patience| now.saturating_duration_since(since) >= patience);
        let ready = all_shown || waited;
        ready.then(|| self.sources[oldest].waiting.pop_front()).flatten().map(|(record, _)| record)
    }

    /// When [`Merge::pop`] has something without anything more coming.
    pub fn deadline(&self) -> Option<Instant> {
        let (_, since) = self.oldest()?;
        since.checked_add(self.patience?)
    }

    /// The source with the oldest head, and since when that is here.
    fn oldest(&self) -> Option<(usize, Instant)> {
        let heads = self.sources.iter().enumerate();
        let heads = heads.filter_map(|(number, source)| source.waiting.front().map(|head| (number, head)));
        heads
            .min_by_key(|(number, (record, _))| (record.time, *number))
            .map(|(number, (_, since))| (number, *since))
    }
}

#[cfg(test)]
mod tests;
