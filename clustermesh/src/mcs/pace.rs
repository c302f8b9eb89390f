//! When a name may be written again: not before what was written last is seen, not at once after a failure, and ever more
//! slowly where somebody undoes it. Time is an argument.
//!
//! ```text
//!            begun               done                    all of it seen, or ECHO over
//!   free ───────────► busy ───────────────► waiting ───────────────────────────────────► free
//!    ▲                 │ failed                                                           ▲
//!    │                 └────────────────► resting, longer each time ──────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::ipam::Millis;
use mesh_core::policy::model::ObjectName;

use super::kind::Kind;
use super::seen::Stamp;

/// Milliseconds for which a watch may lag behind a write; then it is looked at as it is.
const ECHO: u64 = 10_000;
/// Milliseconds of the first rest after a failure; each further one is twice as long.
const FIRST_REST: u64 = 200;
/// Milliseconds of the longest rest after a failure that time may heal: API server away, or somebody was faster.
const LONGEST_REST: u64 = 15_000;
/// Milliseconds of the rest after a refusal, which a person must heal.
const REFUSED_REST: u64 = 60_000;
/// The same written again within so many milliseconds is a quarrel.
const QUARREL: u64 = 60_000;
/// Milliseconds of the first rest in a quarrel.
const FIRST_GAP: u64 = 1_000;
/// Milliseconds of the longest.
const LONGEST_GAP: u64 = 30_000;

/// An object.
pub type Place = (Kind, ObjectName);

/// What a write will look like when the watch has caught up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The object is there, in this version or a later one.
    Version(Stamp),
    /// The object of this UID is not there.
    Gone(String),
}

/// How writing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All was written.
    Done,
    /// Somebody was faster, or the server did not answer.
    Failed,
    /// The server refuses it.
    Refused,
}

impl Expect {
    /// Does what a watch says of the object show it?
    pub fn is_met(&self, stamp: Option<&Stamp>) -> bool {
        match (self, stamp) {
            (Self::Version(wanted), Some(stamp)) => {
                stamp.uid != wanted.uid || reached(&stamp.version, &wanted.version)
            }
            (Self::Version(_), None) => false,
            (Self::Gone(uid), stamp) => stamp.is_none_or(|stamp| stamp.uid != *uid),
        }
    }
}

/// Something that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrote {
    /// To which object.
    pub place: Place,
    /// Hash of what.
    pub content: u64,
    /// How it shows.
    pub expect: Expect,
}

#[derive(Clone, Debug, Default)]
struct Turn {
    busy: bool,
    awaited: BTreeSet<Place>,
    not_before: Millis,
    failures: u32,
}

/// What was written to an object last.
#[derive(Clone, Copy, Debug)]
struct Last {
    content: u64,
    at: Millis,
    gap: u64,
}

/// The pace of all names.
#[derive(Debug, Default)]
pub struct Pace {
    turns: BTreeMap<ObjectName, Turn>,
    /// What is awaited, and for which name.
    awaited: BTreeMap<Place, (ObjectName, Expect)>,
    last: BTreeMap<Place, Last>,
}

/// Versions are numbers that grow (KEP-5504); one that is none is as good as any.
fn reached(version: &str, wanted: &str) -> bool {
    match (version.parse::<u64>(), wanted.parse::<u64>()) {
        (Ok(version), Ok(wanted)) => version >= wanted,
        (Err(_), _) | (_, Err(_)) => true,
    }
}

impl Pace {
    /// May the name be written now?
    pub fn may(&self, name: &ObjectName, now: Millis) -> bool {
        self.turns.get(name).is_none_or(|turn| {
            let waits = !turn.awaited.is_empty() || turn.failures > 0;
            !turn.busy && (!waits || now >= turn.not_before)
        })
    }

    /// Writing of a name begins.
    pub fn begin(&mut self, name: &ObjectName) {
        self.turns.entry(name.clone()).or_default().busy = true;
    }

    /// It has ended: what was written until then, and how it went. `seen`: what watches have said of an object so far.
    pub fn end<'a>(
        &mut self,
        name: &ObjectName,
        wrote: Vec<Wrote>,
        outcome: Outcome,
        now: Millis,
        seen: impl Fn(&Place) -> Option<&'a Stamp>,
    ) {
        let mut turn = self.turns.remove(name).unwrap_or_default();
        for place in std::mem::take(&mut turn.awaited) {
            self.awaited.remove(&place);
        }
        turn.busy = false;
        for Wrote { place, content, expect } in wrote {
            let quarrel = self.last.get(&place).filter(|last| last.content == content && last.is_fresh(now));
            let gap = quarrel.map_or(0, |last| (last.gap * 2).clamp(FIRST_GAP, LONGEST_GAP));
            self.last.insert(place.clone(), Last { content, at: now, gap });
            if !expect.is_met(seen(&place)) {
                self.awaited.insert(place.clone(), (name.clone(), expect));
                turn.awaited.insert(place);
            }
        }
        let rest = match outcome {
            Outcome::Done => {
                turn.failures = 0;
                ECHO
            }
            Outcome::Failed => {
                turn.failures = turn.failures.saturating_add(1);
                (FIRST_REST << (turn.failures - 1).min(16)).min(LONGEST_REST)
            }
            Outcome::Refused => {
                turn.failures = turn.failures.saturating_add(1);
                REFUSED_REST
            }
        };
        turn.not_before = Millis(now.0.saturating_add(rest));
        if !turn.awaited.is_empty() || turn.failures > 0 {
            self.turns.insert(name.clone(), turn);
        }
    }

    /// A watch says that an object is so now; none: it is not there. The name that may be written again, if any.
    pub fn saw(&mut self, place: &Place, stamp: Option<&Stamp>) -> Option<ObjectName> {
        let (name, _) = self.awaited.get(place).filter(|(_, expect)| expect.is_met(stamp))?.clone();
        self.awaited.remove(place);
        let turn = self.turns.get_mut(&name)?;
        turn.awaited.remove(place);
        if !turn.awaited.is_empty() || turn.busy || turn.failures > 0 {
            return None;
        }
        self.turns.remove(&name);
        Some(name)
    }

    /// May this be written to an object, or was just the same written a moment ago and undone by somebody?
    pub fn may_write(&self, place: &Place, content: u64, now: Millis) -> bool {
        let last = self.last.get(place).filter(|last| last.content == content && last.is_fresh(now));
        last.is_none_or(|last| now.0 >= last.at.0.saturating_add(last.gap))
    }

    /// Nothing more can be written of a name just now, for a quarrel's sake.
    pub fn rest(&mut self, name: &ObjectName, now: Millis) {
        let turn = self.turns.entry(name.clone()).or_default();
        turn.failures = turn.failures.max(1);
        turn.not_before = Millis(now.0.saturating_add(FIRST_GAP));
    }

    /// Nothing is to be written of a name: failures are over.
    pub fn content(&mut self, name: &ObjectName) {
        if self.turns.get(name).is_some_and(|turn| !turn.busy && turn.awaited.is_empty()) {
            self.turns.remove(name);
        }
    }

    /// Is somebody known to undo what is written to an object?
    pub fn is_quarrel(&self, place: &Place) -> bool {
        self.last.get(place).is_some_and(|last| last.gap > 0)
    }

    /// Forgets quarrels that are over.
    pub fn tidy(&mut self, now: Millis) {
        self.last.retain(|_, last| last.is_fresh(now));
    }

    /// When the next name may be written that may not now, if no watch says anything before.
    pub fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let all = self.turns.values().filter(|turn| !turn.busy).map(|turn| turn.not_before);
        all.filter(|at| *at > now).min()
    }
}

impl Last {
    fn is_fresh(&self, now: Millis) -> bool {
        now.0 < self.at.0.saturating_add(QUARREL)
    }
}

#[cfg(test)]
mod tests;
