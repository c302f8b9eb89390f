//! Who wants which key, and who gets it: the same on every node and in whatever order they came.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::{Owner, ServiceProblem};
use super::tables::FrontendKey;
use super::wanted::{Claim, Rank};

/// All claims.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    by_key: BTreeMap<FrontendKey, BTreeMap<(Rank, Owner), Claim>>,
    by_owner: BTreeMap<Owner, BTreeMap<FrontendKey, Rank>>,
}

impl Claims {
    /// Replaces what an owner claims. Keys whose frontend may be another now go to `touched`: all of the owner's, since
    /// its pools may have changed, and with a whole address whatever is claimed at it.
    pub(super) fn set(
        &mut self,
        owner: &Owner,
        claims: BTreeMap<FrontendKey, Claim>,
        touched: &mut BTreeSet<FrontendKey>,
    ) {
        let had = self.by_owner.remove(owner).unwrap_or_default();
        for (key, rank) in &had {
            let (key, rank) = (*key, *rank);
            if let Some(all) = self.by_key.get_mut(&key) {
                all.remove(&(rank, owner.clone()));
                if all.is_empty() {
                    self.by_key.remove(&key);
                }
            }
            if key.protocol.is_none() && !claims.contains_key(&key) {
                self.touch_address(key, touched);
            }
            touched.insert(key);
        }
        let ranks: BTreeMap<FrontendKey, Rank> =
            claims.iter().map(|(key, claim)| (*key, claim.rank)).collect();
        for (key, claim) in claims {
            let all = self.by_key.entry(key).or_default();
            all.insert((claim.rank, owner.clone()), claim);
            touched.insert(key);
            if key.protocol.is_none() && !had.contains_key(&key) {
                self.touch_address(key, touched);
            }
        }
        if !ranks.is_empty() {
            self.by_owner.insert(owner.clone(), ranks);
        }
    }

    fn touch_address(&self, of: FrontendKey, touched: &mut BTreeSet<FrontendKey>) {
        let from = FrontendKey::address(of.addr);
        touched.extend(self.by_key.range(from..).map(|(key, _)| *key).take_while(|key| key.addr == of.addr));
    }

    /// The service whose cluster IP this is: nobody else can have a port of it.
    fn holder(&self, key: &FrontendKey) -> Option<&Owner> {
        let ((_, owner), _) = self.by_key.get(&FrontendKey::address(key.addr))?.first_key_value()?;
        Some(owner)
    }

    /// Who gets the key: at a cluster IP its service; else the strongest rank, and of equals the smaller name.
    pub(super) fn winner(&self, key: &FrontendKey) -> Option<(&Owner, &Claim)> {
        let holder = self.holder(key);
        let mut all = self.by_key.get(key)?.iter().map(|((_, owner), claim)| (owner, claim));
        all.find(|(owner, _)| holder.is_none_or(|holder| holder == *owner))
    }

    /// Who is refused the key, each with the reason. A pod whose hostPort is a service's address is not: that happens
    /// when hostPorts implement load balancers.
    pub(super) fn losers(&self, key: &FrontendKey) -> BTreeSet<ServiceProblem> {
        let mut refused = BTreeSet::new();
        let (Some(all), Some(protocol)) = (self.by_key.get(key), key.protocol) else { return refused };
        let winner = self.winner(key).map(|(owner, _)| owner).or_else(|| self.holder(key));
        let Some(winner) = winner else { return refused };
        for (rank, owner) in all.keys() {
            let shadowed = matches!((owner, winner), (Owner::Pod(_), Owner::Service(_)));
            if owner != winner && !shadowed {
                refused.insert(ServiceProblem::Claimed {
                    owner: owner.clone(),
                    field: rank.field(),
                    addr: key.addr,
                    port: key.port,
                    protocol,
                    holder: winner.clone(),
                });
            }
        }
        refused
    }
}
