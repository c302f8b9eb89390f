//! Threads that help with much to encrypt or decrypt, so that one peer's packets are no one core's work alone.
//!
//! Whoever carries the packets deals the messages of a burst out, takes a part itself, and goes on when all are done: they leave in the
//! order in which they were laid out, whoever encrypted them, and nothing waits for a helper but what was dealt to it. Only helpers that have
//! nothing to do are asked, so that a device whose lanes are all busy spends nothing on it.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon_core::{Scope, ThreadPool, ThreadPoolBuilder};

use super::Hand;

/// Most helpers of a device.
pub const MAX_HELPERS: u8 = 16;

thread_local! {
    /// What a helper encrypts with.
    static HAND: RefCell<Option<Hand>> = const { RefCell::new(None) };
}

/// The helpers of a device.
#[derive(Debug)]
pub struct Crew {
    pool: ThreadPool,
    idle: AtomicUsize,
    many: bool,
}

/// Helpers that were taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    crew: &'a Crew,
    pub(super) count: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.crew.idle.fetch_add(self.count, Ordering::AcqRel);
    }
}

/// How many helpers suit a process that may use so many processors: half of them carry packets, a quarter helps, and the applications and the
/// kernel need the others.
#[must_use]
pub fn for_processors(count: usize) -> u8 {
    const ENOUGH: usize = 4;
    u8::try_from((count / 4).min(ENOUGH)).unwrap_or(0)
}

impl Crew {
    /// Starts so many threads, `None` for none of them. `many` as of [`Bulk::new`](super::Bulk::new).
    ///
    /// # Errors
    /// A thread cannot be made.
    pub fn new(name: &str, helpers: u8, many: bool) -> io::Result<Option<Arc<Self>>> {
        if helpers == 0 {
            return Ok(None);
        }
        let (helpers, name) = (usize::from(helpers.min(MAX_HELPERS)), name.to_owned());
        let pool = ThreadPoolBuilder::new()
            .num_threads(helpers)
            .thread_name(move |n| format!("{name}-help{n}"))
            .build()
            .map_err(io::Error::other)?;
        Ok(Some(Arc::new(Self { pool, idle: AtomicUsize::new(helpers), many })))
    }

    /// Takes up to so many that have nothing to do.
    pub(super) fn take(&self, most: usize) -> Option<Taken<'_>> {
        let mut count = 0;
        let taken = self.idle.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |idle| {
            count = idle.min(most);
            (count > 0).then(|| idle - count)
        });
        taken.is_ok().then_some(Taken { crew: self, count })
    }
}

impl Taken<'_> {
    /// Runs what `deal` gives to helpers, and itself here; returns when all is done. A panic of any is one of this.
    pub(super) fn share<'scope, R>(&self, deal: impl FnOnce(&Scope<'scope>) -> R) -> R {
        self.crew.pool.in_place_scope(deal)
    }

    /// Of helpers' threads: does it with what the thread has.
    pub(super) const fn many(&self) -> bool {
        self.crew.many
    }
}

/// Does something with what this helper has to encrypt with.
pub(super) fn with_hand<R>(many: bool, work: impl FnOnce(&mut Hand) -> R) -> R {
    let result = HAND.with_borrow_mut(|hand| work(hand.get_or_insert_with(|| Hand::new(many))));
    crate::noise::wipe_below();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_helper_is_taken_twice_and_all_come_back() {
        let crew = Crew::new("test", 3, true).unwrap().unwrap();
        let two = crew.take(2).unwrap();
        let one = crew.take(2).unwrap();
        assert_eq!((two.count, one.count), (2, 1));
        assert!(crew.take(1).is_none());
        drop(two);
        assert_eq!(crew.take(9).map(|taken| taken.count), Some(2));
        drop(one);
        assert_eq!(crew.take(9).map(|taken| taken.count), Some(3));
        assert!(Crew::new("test", 0, true).unwrap().is_none());
    }

    #[test]
    fn few_processors_have_no_helper_and_many_have_four() {
        assert_eq!([1, 2, 3, 4, 8, 16, 64].map(for_processors), [0, 0, 0, 1, 2, 4, 4]);
    }
}
