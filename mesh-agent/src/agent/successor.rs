//! A new `mesh-tunnel` that waits for this node's devices (design D4), and the hand-over of each while its slot is silent.
//!
//! Whoever waits holds a lock on `NAME.next` beside the device's socket. That begins a rotation of the keys, since a rotation leaves
//! each slot in turn and knows when nobody uses it: then, before the slot gets its next key, the socket is removed, by which a
//! `mesh-tunnel` is asked to go. It stays away while another one waits; the new one has the device within moments, and is
//! programmed like any that was restarted. No packet is on a slot that is handed over: one that was not silent at its deadline is kept.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keyring::rotation::{Cause, Stage, State, Verdict};
use mesh_core::slot::Slot;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Agent;
use crate::wireguard::Implementation;

/// For the one that goes to see that its socket is gone (a second), and for the other to take the device.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a slot is tried to be handed over in one rotation; then it goes on with the one that it has.
const TRIES: u8 = 3;
/// Between two rotations for a waiting tunnel, from the end of one on: one that cannot be handed anything shall not keep its node
/// busy for ever.
const AGAIN: Duration = Duration::from_secs(600);

/// What is remembered of it.
#[derive(Debug, Default)]
pub(super) struct Succession {
    /// When each slot was last handed over, and how often in this rotation.
    asked: [(Option<Instant>, u8); 2],
    /// When a rotation for it was last under way.
    tried: Option<Instant>,
}

impl Succession {
    /// A rotation has begun.
    pub(super) fn begun(&mut self) {
        self.asked = Default::default();
    }

    /// How the rotation stands, at each turn.
    pub(super) fn sees(&mut self, state: &State, now: Instant) {
        if state.rotation.as_ref().is_some_and(|rotation| rotation.cause == Cause::Tunnel) {
            self.tried = Some(now);
        }
    }

    /// May a rotation begin for it?
    fn may_begin(&self, now: Instant) -> bool {
        self.tried.is_none_or(|tried| now.duration_since(tried) >= AGAIN)
    }

    /// What to do about a slot for which somebody waits and which `verdict` lets go: ask for it, wait, or go on without.
    fn next(&mut self, slot: Slot, verdict: Option<&Verdict>, now: Instant) -> HandOver {
        let (at, tries) = &mut self.asked[slot.index()];
        // Not silent: somebody would lose packets.
        if verdict.is_none_or(Verdict::in_use) {
            return HandOver::No;
        }
        match at {
            Some(at) if now.duration_since(*at) < PATIENCE => HandOver::Wait,
            _ if *tries == TRIES => HandOver::No,
            _ => {
                (*at, *tries) = (Some(now), *tries + 1);
                HandOver::Ask
            }
        }
    }
}

/// See [`Succession::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandOver {
    Ask,
    Wait,
    No,
}

/// A file beside the sockets of `mesh-tunnel`.
fn beside(slot: Slot, suffix: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{slot}.{suffix}"))
}

/// Does a process hold the lock of who waits for a device?
fn is_awaited(slot: Slot) -> bool {
    let Ok(file) = File::open(beside(slot, "next")) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

impl Agent {
    /// Is a rotation to begin for a tunnel that waits?
    pub(super) fn tunnel_waits(&self) -> bool {
        self.wireguard.implementation() == Implementation::Userspace
            && self.memory.succession.may_begin(Instant::now())
            && Slot::ALL.into_iter().any(is_awaited)
    }

    /// Hands a slot over that is about to get its next key, if somebody waits for it. True: it is under way, and the key has to
    /// wait for it.
    pub(super) fn hands_over(&mut self, slot: Slot, next: &State) -> bool {
        if self.wireguard.implementation() != Implementation::Userspace || !is_awaited(slot) {
            return false;
        }
        let stage = next.rotation.as_ref().map(|rotation| &rotation.stage);
        let verdict = match stage {
            Some(Stage::Draining { verdict, .. }) => verdict.as_ref(),
            Some(Stage::Waiting) | None => None,
        };
        match self.memory.succession.next(slot, verdict, Instant::now()) {
            HandOver::No => {
                tracing::warn!(device = %slot, "A mesh-tunnel waits for a device that cannot be handed over; it stays where it is");
                false
            }
            HandOver::Wait => true,
            HandOver::Ask => match std::fs::remove_file(beside(slot, "sock")) {
                Ok(()) => {
                    tracing::info!(device = %slot, "Handing a silent device over to the mesh-tunnel that waits for it");
                    true
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
                Err(error) => {
                    tracing::warn!(device = %slot, err = %error, "Could not ask mesh-tunnel for a device; it stays where it is");
                    false
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyring::rotation::Laggard;

    #[test]
    fn a_silent_slot_is_asked_for_three_times_and_one_that_is_in_use_never() {
        use HandOver::{Ask, No, Wait};
        let (mut succession, begun) = (Succession::default(), Instant::now());
        let silent = Verdict::default();
        let mut next = |verdict: Option<&Verdict>, seconds| {
            succession.next(Slot::One, verdict, begun + Duration::from_secs(seconds))
        };
        let used = Verdict { noisy: true, ..Verdict::default() };
        let late =
            Verdict { overdue: [("a".parse().unwrap(), Laggard::Present)].into(), ..Verdict::default() };
        for verdict in [None, Some(&used), Some(&late)] {
            assert_eq!(next(verdict, 0), No);
        }
        // Whoever is gone loses none.
        let silent = Verdict { gone: ["a".parse().unwrap()].into(), ..silent };
        let answers = [0, 9, 10, 19, 20, 29, 30, 90].map(|seconds| next(Some(&silent), seconds));
        assert_eq!(answers, [Ask, Wait, Ask, Wait, Ask, Wait, No, No]);
    }

    #[test]
    fn a_tunnel_that_goes_on_waiting_begins_a_rotation_ten_minutes_after_the_last_one_at_the_earliest() {
        let (mut succession, now) = (Succession::default(), Instant::now());
        let rotation = |cause| keyring::rotation::Rotation { cause, slot: Slot::One, stage: Stage::Waiting };
        let state = |cause| State { rotation: Some(rotation(cause)), ..State::default() };
        succession.sees(&state(Cause::Schedule), now);
        assert!(succession.may_begin(now));
        for later in [now, now + AGAIN] {
            succession.sees(&state(Cause::Tunnel), later);
            assert!(!succession.may_begin(later + AGAIN / 2) && succession.may_begin(later + AGAIN));
        }
    }
}
