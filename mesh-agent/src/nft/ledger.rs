//! Counters that only grow, over rulesets that come and go.

use std::collections::BTreeMap;

use super::observe::Counter;

/// Sums by name. The kernel's values carry the sum on (each new table starts its counters there), so a restarted agent
/// goes on where the last one stopped; what a stranger's flush or reset took away is kept here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Entry {
    /// Counted by rules that are gone.
    base: Counter,
    /// Last value read from the kernel.
    last: Counter,
}

impl Ledger {
    /// Takes in what the kernel's counters say now.
    pub(crate) fn read(&mut self, kernel: &BTreeMap<String, Counter>) {
        for name in kernel.keys() {
            self.entries.entry(name.clone()).or_default();
        }
        for (name, entry) in &mut self.entries {
            let now = kernel.get(name).copied().unwrap_or_default();
            if now.packets < entry.last.packets || now.bytes < entry.last.bytes {
                entry.base = entry.base.plus(entry.last);
            }
            entry.last = now;
        }
    }

    /// The sums.
    pub(crate) fn totals(&self) -> BTreeMap<String, Counter> {
        self.entries.iter().map(|(name, entry)| (name.clone(), entry.base.plus(entry.last))).collect()
    }

    /// The kernel now counts on from [`Self::totals`] for `names`.
    pub(crate) fn seeded(&mut self, names: impl Fn(&str) -> bool) {
        for (name, entry) in &mut self.entries {
            let total = entry.base.plus(entry.last);
            *entry = if names(name) {
                Entry { base: Counter::default(), last: total }
            } else {
                Entry { base: total, last: Counter::default() }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counter(packets: u64) -> Counter {
        Counter { packets, bytes: packets * 100 }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Count(u64),
        StrangerResets,
        StrangerRemoves,
        Read,
        Replace { keeps_the_rule: bool },
    }

    proptest! {
        #[test]
        fn totals_never_shrink_and_never_count_twice(steps in prop::collection::vec(prop_oneof![
            (1u64..50).prop_map(Step::Count), Just(Step::StrangerResets), Just(Step::StrangerRemoves), Just(Step::Read),
            any::<bool>().prop_map(|keeps_the_rule| Step::Replace { keeps_the_rule }),
        ], 0..40)) {
            let (mut ledger, mut kernel) = (Ledger::default(), Some(0));
            let (mut counted, mut before) = (0, 0);
            for step in steps {
                let dump = |kernel: &Option<u64>| kernel.map(|now| ("a".to_owned(), counter(now))).into_iter().collect();
                match step {
                    Step::Count(more) => if let Some(now) = &mut kernel { *now += more; counted += more; },
                    Step::StrangerResets => kernel = kernel.map(|_| 0),
                    Step::StrangerRemoves => kernel = None,
                    Step::Read => ledger.read(&dump(&kernel)),
                    Step::Replace { keeps_the_rule } => {
                        ledger.read(&dump(&kernel));
                        kernel = keeps_the_rule.then(|| ledger.totals().get("a").map_or(0, |total| total.packets));
                        ledger.seeded(|_| keeps_the_rule);
                    }
                }
                let total = ledger.totals().get("a").map_or(0, |total| total.packets);
                prop_assert!(total >= before);
                before = total;
            }
            prop_assert!(before <= counted, "nothing is counted twice");
        }
    }

    #[test]
    fn a_flush_between_two_reads_keeps_what_was_read() {
        let mut ledger = Ledger::default();
        ledger.read(&BTreeMap::from([("drop".into(), counter(7))]));
        ledger.read(&BTreeMap::new());
        ledger.read(&BTreeMap::from([("drop".into(), counter(2))]));
        assert_eq!(ledger.totals(), BTreeMap::from([("drop".into(), counter(9))]));
    }

    #[test]
    fn a_first_read_takes_over_what_an_earlier_agent_counted() {
        let mut ledger = Ledger::default();
        ledger.read(&BTreeMap::from([("drop".into(), counter(7))]));
        ledger.seeded(|_| true);
        ledger.read(&BTreeMap::from([("drop".into(), counter(8))]));
        assert_eq!(ledger.totals(), BTreeMap::from([("drop".into(), counter(8))]));
    }
}
