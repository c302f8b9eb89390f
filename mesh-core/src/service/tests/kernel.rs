//! The maps, as the data path reads them (`frontend_of` and `choose` in `datapath/src/bpf/translate.h`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::oracle::{Answer, World};
use crate::policy::model::Protocol;
use crate::service::tables::{FRONT_ADDRESS, FRONT_DROP};
use crate::service::{Backend, BackendId, Delta, Frontend, FrontendKey, State};

#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    frontends: BTreeMap<FrontendKey, Frontend>,
    places: BTreeMap<u32, BackendId>,
    backends: BTreeMap<BackendId, Backend>,
    pub(super) commit: u64,
    /// Regions that packets may still look at: base and count.
    resting: Vec<(u32, u32)>,
    /// Every number ever used for a backend, and for whom.
    ever: BTreeMap<BackendId, SocketAddr>,
}

impl Kernel {
    /// Applies a delta in its order; after each step every table must lead to backends that exist.
    pub(super) fn apply(&mut self, delta: &Delta) -> Result<(), TestCaseError> {
        prop_assert!(delta.commit > self.commit);
        self.commit = delta.commit;
        for (id, backend) in &delta.backends_set {
            let was = self.ever.insert(*id, backend.addr);
            prop_assert!(was.is_none_or(|was| was == backend.addr), "number {:?} means another backend", id);
            self.backends.insert(*id, *backend);
        }
        let before = self.regions();
        for run in &delta.places {
            for (place, id) in (run.first..).zip(&run.backends) {
                let looked_at =
                    self.resting.iter().any(|(base, count)| (*base..base + count).contains(&place));
                prop_assert!(!looked_at, "place {} is written while packets may look at it", place);
                self.places.insert(place, *id);
                self.leads_somewhere()?;
            }
        }
        for (key, front) in &delta.frontends_set {
            self.frontends.insert(*key, *front);
            self.leads_somewhere()?;
        }
        for key in &delta.frontends_removed {
            prop_assert!(self.frontends.remove(key).is_some());
        }
        for id in &delta.backends_removed {
            prop_assert!(self.backends.remove(id).is_some());
        }
        self.leads_somewhere()?;
        let now = self.regions();
        self.resting.extend(before.difference(&now));
        self.regions_are_apart()
    }

    /// A grace period has passed.
    pub(super) fn quiesce(&mut self) -> u64 {
        self.resting.clear();
        self.commit
    }

    fn regions(&self) -> BTreeSet<(u32, u32)> {
        self.frontends
            .values()
            .filter(|front| front.count > 0)
            .map(|front| (front.base, front.count))
            .collect()
    }

    fn leads_somewhere(&self) -> Result<(), TestCaseError> {
        // Each place is looked at in the end; the ends of a region are enough in between.
        for front in self.frontends.values().filter(|front| front.count > 0) {
            for place in [front.base, front.base + front.count - 1] {
                let id = self.places.get(&place);
                prop_assert!(
                    id.is_some_and(|id| self.backends.contains_key(id)),
                    "place {} of {:?}",
                    place,
                    front
                );
            }
        }
        Ok(())
    }

    fn regions_are_apart(&self) -> Result<(), TestCaseError> {
        let of = |front: &Frontend| (front.base, front.count, front.service);
        let regions: BTreeSet<_> = self.frontends.values().filter(|f| f.count > 0).map(of).collect();
        for ((base, count, _), (next, _, _)) in regions.iter().zip(regions.iter().skip(1)) {
            prop_assert!(base + count <= *next, "{:?}", regions);
        }
        Ok(())
    }

    fn table(&self, front: &Frontend) -> Vec<SocketAddr> {
        let places = self.places.range(front.base..front.base + front.count);
        places.map(|(_, id)| self.backends.get(id).expect("a place leads to a backend").addr).collect()
    }

    pub(super) fn answer(&self, world: &World, addr: IpAddr, port: u16, protocol: Protocol) -> Answer {
        let exact = FrontendKey { addr, port, protocol: Some(protocol) };
        let front = self.frontends.get(&exact).or_else(|| {
            let other = if world.nodes.contains(&addr) {
                FrontendKey::node_port(addr, port, protocol)
            } else {
                FrontendKey::address(addr)
            };
            self.frontends.get(&other)
        });
        match front {
            None => Answer::Untouched,
            Some(front) if front.flags & FRONT_ADDRESS != 0 => Answer::Refused,
            Some(front) if front.count == 0 && front.flags & FRONT_DROP != 0 => Answer::Dropped,
            Some(front) if front.count == 0 => Answer::Refused,
            Some(front) => Answer::To(self.table(front).into_iter().collect(), front.affinity),
        }
    }

    /// Is this what the compiler believes?
    pub(super) fn holds(&self, state: &State) -> bool {
        let read = self.read();
        let tables = read.tables.iter().all(|(base, table)| state.tables.get(base) == Some(table));
        tables && (&read.frontends, &read.backends) == (&state.frontends, &state.backends)
    }

    /// The agent is another one.
    pub(super) fn restart(&mut self) -> State {
        self.commit = 0;
        self.read()
    }

    /// What an agent reads that starts.
    pub(super) fn read(&self) -> State {
        let tables = self.frontends.values().filter(|front| front.count > 0).map(|front| {
            let places = self.places.range(front.base..front.base + front.count);
            (front.base, places.map(|(_, id)| *id).collect())
        });
        State { frontends: self.frontends.clone(), tables: tables.collect(), backends: self.backends.clone() }
    }
}

type Normal = (BTreeMap<FrontendKey, (u32, u32, Vec<SocketAddr>)>, Vec<(SocketAddr, bool)>);

/// A state without numbers and places.
pub(super) fn normal(state: &State) -> Normal {
    let frontends = state.frontends.iter().map(|(key, front)| {
        let ids = state.tables.get(&front.base).filter(|_| front.count > 0).into_iter().flatten();
        (*key, (front.flags, front.affinity, ids.map(|id| state.backends[id].addr).collect()))
    });
    let mut backends: Vec<_> = state.backends.values().map(|b| (b.addr, b.leaving)).collect();
    backends.sort_unstable();
    (frontends.collect(), backends)
}
