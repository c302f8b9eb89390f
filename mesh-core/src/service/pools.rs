//! Backends and Maglev tables of the ports of services, with their numbers and places.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::compile::AdoptError;
use super::maglev;
use super::places::Places;
use super::problem::{Owner, ServiceProblem};
use super::tables::{
    Backend, BackendId, Delta, FRONT_DROP, Frontend, FrontendKey, Limits, PlaceRun, ServiceNumber, State,
};
use super::wanted::{Claim, Members, PoolKey, Target};

/// The maps as they will be, and the way there.
pub(super) struct Maps<'a> {
    pub(super) state: &'a mut State,
    pub(super) delta: &'a mut Delta,
}

/// Unchanged places between two changed ones that are written along: as many cost less than a run of their own.
const GAP: usize = 8;

impl Maps<'_> {
    fn set_backend(&mut self, id: BackendId, backend: Backend) {
        if self.state.backends.get(&id) != Some(&backend) {
            self.state.backends.insert(id, backend);
            self.delta.backends_set.insert(id, backend);
        }
    }

    fn remove_backend(&mut self, id: BackendId) {
        if self.state.backends.remove(&id).is_some() {
            self.delta.backends_set.remove(&id);
            self.delta.backends_removed.insert(id);
        }
    }

    /// Backends of this commit's beginning and end are in the map at once while it is applied.
    fn backends(&self) -> usize {
        self.state.backends.len() + self.delta.backends_removed.len()
    }

    fn write_table(&mut self, base: u32, table: Vec<BackendId>) {
        let had = self.state.tables.get(&base).filter(|had| had.len() == table.len());
        let differs = |at: usize| had.is_none_or(|had| had[at] != table[at]);
        let mut at = 0;
        while at < table.len() {
            if !differs(at) {
                at += 1;
                continue;
            }
            let mut end = at + 1; // after the last one that differs
            let mut next = end;
            while next < table.len() && next - end < GAP {
                next += 1;
                if differs(next - 1) {
                    end = next;
                }
            }
            let first = base.saturating_add(u32::try_from(at).unwrap_or(u32::MAX));
            self.delta.places.push(PlaceRun { first, backends: table[at..end].to_vec() });
            at = end;
        }
        self.state.tables.insert(base, table);
    }
}

/// Backends that frontends share.
#[derive(Clone, Debug)]
struct Pool {
    number: ServiceNumber,
    /// Base and count.
    region: Option<(u32, u32)>,
    backends: BTreeMap<SocketAddr, BackendId>,
    /// Those in the table.
    placed: BTreeSet<SocketAddr>,
    silent: bool,
}

/// What a former agent left in the maps and nobody has claimed yet.
#[derive(Clone, Debug, Default)]
struct Adopted {
    numbers: BTreeMap<FrontendKey, ServiceNumber>,
    /// By number; none: a port without backends.
    regions: BTreeMap<ServiceNumber, Option<(u32, u32)>>,
    /// Backends in no table, for those that are leaving.
    loose: BTreeMap<SocketAddr, BTreeSet<BackendId>>,
    all: BTreeSet<BackendId>,
}

/// All pools.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    limits: Limits,
    places: Places,
    by_owner: BTreeMap<Owner, BTreeMap<PoolKey, Pool>>,
    numbers: BTreeSet<ServiceNumber>,
    last_number: u32,
    last_backend: u32,
    /// Who did not get all that it wanted.
    short: BTreeMap<Owner, BTreeSet<ServiceProblem>>,
    /// Room came free since those were asked.
    freed: bool,
    adopted: Adopted,
}

impl Pools {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            places: Places::new(limits.places),
            by_owner: BTreeMap::new(),
            numbers: BTreeSet::new(),
            last_number: 0,
            last_backend: 0,
            short: BTreeMap::new(),
            freed: false,
            adopted: Adopted::default(),
        }
    }

    /// Begins with what is in the maps.
    pub(super) fn adopt(installed: &State, highest: u32, limits: Limits) -> Result<Self, AdoptError> {
        let mut pools = Self::new(limits);
        let mut adopted = Adopted { all: installed.backends.keys().copied().collect(), ..Adopted::default() };
        let mut placed = BTreeSet::new();
        for (key, front) in installed.frontends.iter().filter(|(_, front)| front.service.0 != 0) {
            let region = (front.count > 0).then_some((front.base, front.count));
            adopted.numbers.insert(*key, front.service);
            match adopted.regions.get(&front.service) {
                Some(known) if *known == region => continue,
                Some(_) => return Err(AdoptError::Number { number: front.service.0 }),
                None => adopted.regions.insert(front.service, region),
            };
            if let Some((base, count)) = region {
                let table = installed.tables.get(&base).filter(|t| u32::try_from(t.len()) == Ok(count));
                let (Some(table), true) = (table, pools.places.take_at(base, count)) else {
                    return Err(AdoptError::Region { base, count });
                };
                placed.extend(table.iter().copied());
            }
        }
        let loose = installed.backends.iter().filter(|(id, _)| !placed.contains(id));
        for (id, backend) in loose {
            adopted.loose.entry(backend.addr).or_default().insert(*id);
        }
        let seen = adopted.all.iter().map(|id| id.0).chain(adopted.regions.keys().map(|number| number.0));
        let last = seen.max().unwrap_or(0).max(highest);
        (pools.last_backend, pools.last_number) = (last, last);
        pools.adopted = adopted;
        Ok(pools)
    }

    /// A commit begins: who must be asked again, since there is room now.
    pub(super) fn begin(&mut self) -> BTreeSet<Owner> {
        if std::mem::take(&mut self.freed) { self.short.keys().cloned().collect() } else { BTreeSet::new() }
    }

    /// Gives an owner the pools that it wants. Returns how many tables were built.
    pub(super) fn settle(
        &mut self,
        owner: &Owner,
        wanted: BTreeMap<PoolKey, Members>,
        claims: &BTreeMap<FrontendKey, Claim>,
        maps: &mut Maps<'_>,
    ) -> usize {
        let mut had = self.by_owner.remove(owner).unwrap_or_default();
        let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut had).into_iter().partition(|(key, _)| wanted.contains_key(key));
        for pool in go.into_values() {
            self.retire(pool, maps);
        }
        had = stay;
        let mut short = BTreeSet::new();
        let mut tables = 0;
        for (key, members) in wanted {
            let mut pool = had.remove(&key).unwrap_or_else(|| self.open(&key, claims, maps.state));
            let missing = self.fill(&mut pool, &members, maps);
            if missing > 0 {
                short.insert(ServiceProblem::NoBackends {
                    owner: owner.clone(),
                    port: key.port.clone(),
                    endpoints: members.chosen.len(),
                    missing,
                    limit: self.limits.backends,
                });
            }
            let placed: BTreeSet<SocketAddr> =
                members.chosen.into_iter().filter(|addr| pool.backends.contains_key(addr)).collect();
            let wanted = maglev::size_for(placed.len());
            tables += usize::from(self.place(&mut pool, placed, wanted, maps));
            let given = pool.region.map_or(0, |(_, count)| count);
            if given < wanted {
                short.insert(ServiceProblem::NoPlaces {
                    owner: owner.clone(),
                    port: key.port.clone(),
                    endpoints: pool.placed.len(),
                    wanted,
                    given,
                    limit: self.limits.places,
                });
            }
            self.by_owner.entry(owner.clone()).or_default().insert(key, pool);
        }
        if short.is_empty() {
            self.short.remove(owner);
        } else {
            self.short.insert(owner.clone(), short);
        }
        tables
    }

    /// A pool's beginning: what was in the maps under one of its keys, or a new number.
    fn open(&mut self, key: &PoolKey, claims: &BTreeMap<FrontendKey, Claim>, state: &State) -> Pool {
        let mut pool = Pool {
            number: ServiceNumber(0),
            region: None,
            backends: BTreeMap::new(),
            placed: BTreeSet::new(),
            silent: false,
        };
        let mine =
            claims.iter().filter(|(_, claim)| matches!(&claim.target, Target::Pool(pool) if pool == key));
        for (front, _) in mine {
            let Some(number) = self.adopted.numbers.get(front).copied() else { continue };
            let Some(region) = self.adopted.regions.remove(&number) else { continue };
            let table = region.and_then(|(base, _)| state.tables.get(&base));
            for id in table.into_iter().flatten() {
                if let Some(backend) = state.backends.get(id)
                    && self.adopted.all.remove(id)
                {
                    pool.backends.insert(backend.addr, *id);
                }
            }
            self.numbers.insert(number);
            return Pool { number, region, ..pool };
        }
        pool.number = self.new_number();
        pool
    }

    fn new_number(&mut self) -> ServiceNumber {
        loop {
            self.last_number = self.last_number.checked_add(1).unwrap_or(1);
            let number = ServiceNumber(self.last_number);
            if !self.adopted.regions.contains_key(&number) && self.numbers.insert(number) {
                return number;
            }
        }
    }

    /// Backends come and go. Returns how many of the chosen ones found no room.
    fn fill(&mut self, pool: &mut Pool, members: &Members, maps: &mut Maps<'_>) -> usize {
        pool.silent = members.silent;
        let Members { chosen, leaving, .. } = members;
        let gone: Vec<SocketAddr> = {
            let stays = |addr: &SocketAddr| chosen.contains(addr) || leaving.contains(addr);
            pool.backends.keys().filter(|addr| !stays(addr)).copied().collect()
        };
        for addr in gone {
            if let Some(id) = pool.backends.remove(&addr) {
                maps.remove_backend(id);
                self.freed = true;
            }
        }
        let mut missing = 0;
        for addr in chosen.iter().chain(leaving) {
            let leaving = !chosen.contains(addr);
            let known = pool.backends.get(addr).copied();
            match known.or_else(|| self.new_backend(*addr, maps)) {
                Some(id) => {
                    pool.backends.insert(*addr, id);
                    maps.set_backend(id, Backend { addr: *addr, leaving });
                }
                None => missing += usize::from(!leaving),
            }
        }
        missing
    }

    fn new_backend(&mut self, addr: SocketAddr, maps: &Maps<'_>) -> Option<BackendId> {
        if let Some(loose) = self.adopted.loose.get_mut(&addr)
            && let Some(id) = loose.pop_first()
        {
            self.adopted.all.remove(&id);
            return Some(id);
        }
        if maps.backends() >= usize::try_from(self.limits.backends).unwrap_or(usize::MAX) {
            return None;
        }
        loop {
            self.last_backend = self.last_backend.checked_add(1).unwrap_or(1);
            let id = BackendId(self.last_backend);
            if !maps.state.backends.contains_key(&id) && !maps.delta.backends_removed.contains(&id) {
                return Some(id);
            }
        }
    }

    /// Puts the placed backends into a table. True if one was built.
    fn place(
        &mut self,
        pool: &mut Pool,
        placed: BTreeSet<SocketAddr>,
        wanted: u32,
        maps: &mut Maps<'_>,
    ) -> bool {
        let had = pool.region.map_or(0, |(_, count)| count);
        if pool.placed == placed && had == wanted {
            return false;
        }
        let region = self.region(pool.region, wanted, placed.len());
        if region != pool.region
            && let Some((base, count)) = pool.region
        {
            self.places.give_back(base, count, maps.delta.commit);
            maps.state.tables.remove(&base);
        }
        pool.region = region;
        pool.placed = placed;
        let Some((base, count)) = region else { return false };
        let backends: Vec<SocketAddr> = pool.placed.iter().copied().collect();
        let ids: Vec<BackendId> =
            backends.iter().filter_map(|addr| pool.backends.get(addr).copied()).collect();
        let table = maglev::table(&backends, count);
        let of = |index: &u32| usize::try_from(*index).ok().and_then(|index| ids.get(index).copied());
        maps.write_table(base, table.iter().filter_map(of).collect());
        true
    }

    /// A region of the wanted size; else what there was or the next smaller one, as long as each backend has a place.
    fn region(&mut self, had: Option<(u32, u32)>, wanted: u32, backends: usize) -> Option<(u32, u32)> {
        if wanted == 0 || had.is_some_and(|(_, count)| count == wanted) {
            return had.filter(|_| wanted > 0);
        }
        let enough = |count: u32| usize::try_from(count).is_ok_and(|count| count >= backends);
        for size in maglev::SIZES.into_iter().rev().filter(|size| *size <= wanted && enough(*size)) {
            if size < wanted
                && let Some((base, count)) = had
                && count >= size
            {
                return Some((base, count));
            }
            if let Some(base) = self.places.take(size) {
                return Some((base, size));
            }
        }
        None
    }

    fn retire(&mut self, pool: Pool, maps: &mut Maps<'_>) {
        for id in pool.backends.into_values() {
            maps.remove_backend(id);
        }
        if let Some((base, count)) = pool.region {
            self.places.give_back(base, count, maps.delta.commit);
            maps.state.tables.remove(&base);
        }
        self.numbers.remove(&pool.number);
        maps.delta.services_removed.insert(pool.number);
        self.freed = true;
    }

    /// Takes away what was adopted and nobody wants.
    pub(super) fn drop_unadopted(&mut self, maps: &mut Maps<'_>) {
        let Adopted { regions, all, .. } = std::mem::take(&mut self.adopted);
        for (number, region) in regions {
            let pool =
                Pool { number, region, backends: BTreeMap::new(), placed: BTreeSet::new(), silent: false };
            self.retire(pool, maps);
        }
        for id in all {
            maps.remove_backend(id);
        }
    }

    pub(super) fn quiesced(&mut self, commit: u64) {
        self.freed |= self.places.quiesced(commit);
    }

    pub(super) fn frontend(&self, owner: &Owner, key: &PoolKey, affinity: u32) -> Option<Frontend> {
        let pool = self.by_owner.get(owner)?.get(key)?;
        let (base, count) = pool.region.unwrap_or((0, 0));
        let flags = if count == 0 && pool.silent { FRONT_DROP } else { 0 };
        Some(Frontend { base, count, service: pool.number, affinity, flags })
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = ServiceProblem> + '_ {
        self.short.values().flatten().cloned()
    }
}
