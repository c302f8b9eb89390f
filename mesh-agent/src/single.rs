//! What only one may do at a time, and nobody waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A door for one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Single(Arc<AtomicBool>);

impl Single {
    /// Goes in; none: somebody is inside.
    pub(crate) fn enter(&self) -> Option<Inside> {
        (!self.0.swap(true, Ordering::AcqRel)).then(|| Inside(Arc::clone(&self.0)))
    }
}

/// Is inside until it is dropped, by a panic, too.
#[derive(Debug)]
pub(crate) struct Inside(Arc<AtomicBool>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_inside_until_it_goes_or_panics() {
        let single = Single::default();
        let inside = single.enter().unwrap();
        assert!(single.enter().is_none() && single.clone().enter().is_none());
        let thread = std::thread::spawn(move || {
            let _inside = inside;
            panic!("wanted by a test");
        });
        assert!(thread.join().is_err());
        assert!(single.enter().is_some() && single.enter().is_some());
    }
}
