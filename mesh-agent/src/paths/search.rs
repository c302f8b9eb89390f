//! Which size is tried next towards one peer, and what follows from what came back: pure.

use mesh_core::evidence::PathResult;
use mesh_core::numbers::MIN_MTU;

/// Size of the echo that every path takes, in bytes.
const SMALL: u32 = 128;
/// A small one is sent so often before the peer counts as silent.
const SMALL_TRIES: u32 = 3;
/// A whole one is sent so often before the path counts as narrow: of a narrow path that says so the kernel knows after the first, and
/// `mesh-tunnel`, which asks it once a second, after the third.
const WHOLE_TRIES: u32 = 4;
/// The same for the sizes between.
const BETWEEN_TRIES: u32 = 2;
/// The largest size that passes is known so far: WireGuard fills packets up to 16 bytes.
const NEAR: u32 = 8;

/// What came back of one echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its answer.
    Answered,
    /// That it is too large, and what is not.
    Told(u32),
    /// Nothing.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Small,
    Whole,
    /// This size passes, the other one does not.
    Between {
        passes: Option<u32>,
        fails: u32,
        tried: u32,
    },
    Done,
}

/// The search for the largest echo that a peer answers.
#[derive(Clone, Debug)]
pub(super) struct Search {
    mtu: u32,
    stage: Stage,
    /// Echoes of this size that nobody answered.
    lost: u32,
    told: Option<u32>,
    result: Option<PathResult>,
}

impl Search {
    pub(super) const fn new(mtu: u32) -> Self {
        Self { mtu, stage: Stage::Small, lost: 0, told: None, result: None }
    }

    /// The size to send; none: nothing is left to try.
    pub(super) fn next(&self) -> Option<u32> {
        match self.stage {
            Stage::Small => Some(SMALL),
            Stage::Whole => Some(self.mtu),
            Stage::Between { tried, .. } => Some(tried),
            Stage::Done => None,
        }
    }

    /// What is known; none: nothing yet.
    pub(super) const fn result(&self) -> Option<PathResult> {
        self.result
    }

    /// Takes in what came back of the size that was sent.
    pub(super) fn take(&mut self, outcome: Outcome) {
        if let Outcome::Told(mtu) = outcome
            && (SMALL..self.mtu).contains(&mtu)
        {
            self.told = Some(self.told.map_or(mtu, |told| told.min(mtu)));
        }
        let answered = outcome == Outcome::Answered;
        // Who is told need not be asked again.
        let tries = match (self.stage, outcome) {
            (_, Outcome::Told(_)) => 1,
            (Stage::Small, _) => SMALL_TRIES,
            (Stage::Whole, _) => WHOLE_TRIES,
            (Stage::Between { .. } | Stage::Done, _) => BETWEEN_TRIES,
        };
        self.lost = if answered { 0 } else { self.lost + 1 };
        if !answered && self.lost < tries {
            return;
        }
        self.lost = 0;
        match (self.stage, answered) {
            (Stage::Small, true) => self.stage = Stage::Whole,
            (Stage::Small, false) => self.end(PathResult::Silent),
            (Stage::Whole, true) => self.end(PathResult::Fits),
            (Stage::Whole, false) => self.between(None, self.mtu),
            (Stage::Between { passes, fails, tried }, true) => {
                self.between(passes.max(Some(tried)), fails);
            }
            (Stage::Between { passes, fails, tried }, false) => self.between(passes, fails.min(tried)),
            (Stage::Done, _) => {}
        }
    }

    fn end(&mut self, result: PathResult) {
        (self.stage, self.result) = (Stage::Done, Some(result));
    }

    /// Goes on between a size that passes and one that does not.
    fn between(&mut self, passes: Option<u32>, fails: u32) {
        let narrow = PathResult::Narrow { passes, told: self.told };
        // What is known already is worth something if the rest cannot be tried any more.
        self.result = Some(narrow);
        let hint = self.told.filter(|told| passes.is_none_or(|passes| passes < *told) && *told < fails);
        let tried = match (hint, passes) {
            (Some(hint), _) => Some(hint),
            (None, None) => (MIN_MTU < fails).then_some(MIN_MTU),
            (None, Some(passes)) => {
                let named = self.told == Some(passes);
                (fails - passes > NEAR && !named).then(|| passes + (fails - passes) / 2)
            }
        };
        match tried {
            Some(tried) => self.stage = Stage::Between { passes, fails, tried },
            None => self.end(narrow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a search over a path that takes `takes` bytes; how many echoes it took, and what it found. Every `loses`th echo is lost.
    fn run(mtu: u32, takes: u32, tells: bool, loses: Option<u32>) -> (u32, PathResult) {
        let (mut search, mut sent) = (Search::new(mtu), 0);
        while let Some(size) = search.next() {
            sent += 1;
            assert!(sent < 100, "{search:?}");
            let lost = loses.is_some_and(|every| sent % every == 0);
            search.take(match size <= takes {
                _ if lost => Outcome::Nothing,
                true => Outcome::Answered,
                // The first is dropped by a router whose word takes a moment.
                false if tells && sent > 2 => Outcome::Told(takes),
                false => Outcome::Nothing,
            });
        }
        (sent, search.result().unwrap())
    }

    #[test]
    fn a_path_that_fits_takes_two_echoes_and_one_that_does_not_is_measured() {
        assert_eq!(run(1420, 1420, false, None), (2, PathResult::Fits));
        assert_eq!(run(1420, 0, false, None), (SMALL_TRIES, PathResult::Silent));
        assert_eq!(run(1420, 1000, false, None).1, PathResult::Narrow { passes: None, told: None });
        let told = PathResult::Narrow { passes: Some(1372), told: Some(1372) };
        assert_eq!(run(1420, 1372, true, None), (4, told));
        let (_, PathResult::Narrow { passes: Some(passes), told: None }) = run(1420, 1372, false, None)
        else {
            panic!("it is narrow, and nobody says so");
        };
        assert!((1372 - NEAR..=1372).contains(&passes), "{passes}");
    }

    proptest! {
        #[test]
        fn what_is_found_passes_and_little_more_does(
            mtu in MIN_MTU..9000_u32, takes in 0..9500_u32, tells: bool, loses in prop::option::of(3..9_u32),
        ) {
            let (sent, result) = run(mtu, takes, tells, loses);
            // Packets of a node stay few: twice the steps of the bisection, and the first tries.
            prop_assert!(sent <= 2 * 14 + WHOLE_TRIES + SMALL_TRIES, "{sent}");
            match result {
                PathResult::Fits => prop_assert!(takes >= mtu),
                PathResult::Silent => prop_assert!(takes < SMALL),
                PathResult::Narrow { passes, told } => {
                    prop_assert!(takes < mtu, "a lost echo makes no path narrow");
                    prop_assert!(passes.is_none_or(|passes| passes <= takes));
                    prop_assert!(passes.is_some() || takes < MIN_MTU || told.is_some());
                    if loses.is_none() && told.is_none() && takes >= MIN_MTU {
                        prop_assert!(passes.unwrap() + NEAR >= takes, "{passes:?}");
                    }
                }
            }
        }
    }
}
