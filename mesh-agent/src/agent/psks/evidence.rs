//! What evidence says of pre-shared keys: their names and states, never the keys.

use std::collections::BTreeMap;

use keyring::psk::{Effective, Exchange, Mode, NodeId, Standing};
use mesh_core::evidence::{PskEvidence, PskState};
use mesh_core::name::NodeName;
use mesh_core::view::ClusterView;

use super::{At, OVERDUE, Psks};

impl Psks {
    /// How far the key of each pair and slot is.
    pub(in crate::agent) fn evidence(&self, view: &ClusterView) -> BTreeMap<NodeName, [PskEvidence; 2]> {
        let mut all: BTreeMap<NodeName, [PskEvidence; 2]> = BTreeMap::new();
        for (at, machine) in &self.machines {
            all.entry(at.0.clone()).or_default()[at.1.index()] = self.of_slot(view, at, machine);
        }
        all
    }

    fn of_slot(&self, view: &ClusterView, at: &At, machine: &Exchange) -> PskEvidence {
        let state = match machine.standing() {
            Standing::Open => PskState::Open,
            Standing::Proven => PskState::Proven,
            Standing::Unproven => PskState::Installed,
            Standing::Lost => PskState::Lost,
            Standing::Untried | Standing::Plain | Standing::Answered => self.missing(view, at, machine),
        };
        let record = machine.record();
        let peer = NodeId { node: at.0.clone(), cluster: self.us.cluster.clone() };
        PskEvidence {
            state,
            id: record.map(|record| record.id),
            recorded_at: record.and_then(|_| self.store.written(&peer, at.1)),
        }
    }

    /// Why there is none.
    fn missing(&self, view: &ClusterView, at: &At, machine: &Exchange) -> PskState {
        let them = self.pair(view, &at.0).map_or(Mode::Off, |pair| pair.them);
        let overdue = self.conditions(view, at).is_some_and(|now| machine.overdue(now, OVERDUE).is_some());
        match Effective::of(self.mode, them) {
            Effective::Off => PskState::Off,
            Effective::Prefer | Effective::Require if overdue => PskState::Overdue,
            // One insists, the other takes no part: it is missing, and will be.
            Effective::Conflict => PskState::Overdue,
            Effective::Prefer | Effective::Require => PskState::Waiting,
        }
    }

    /// What each peer's last letter said.
    pub(in crate::agent) const fn modes(&self) -> &BTreeMap<NodeName, Mode> {
        &self.modes
    }
}
