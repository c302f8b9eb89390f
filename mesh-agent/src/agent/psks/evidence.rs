//! What evidence says of pre-shared keys: their names and states, never the keys.

use std::collections::BTreeMap;

use keyring::psk::{Effective, Mode, Pact, Sight, Standing};
use mesh_core::diff::Observed;
use mesh_core::evidence::{PskEvidence, PskState};
use mesh_core::name::NodeName;
use mesh_core::slot::Slot;
use mesh_core::view::ClusterView;

use super::{OVERDUE, Psks, sight};

impl Psks {
    /// How far the key of each pair and slot is.
    pub(in crate::agent) fn evidence(
        &self,
        view: &ClusterView,
        observed: &Observed,
    ) -> BTreeMap<NodeName, [PskEvidence; 2]> {
        let met = self.pacts.iter().filter(|(_, pact)| pact.machines().next().is_some());
        met.map(|(name, pact)| {
            let sight = sight(view, observed, name);
            (name.clone(), Slot::ALL.map(|slot| self.of_slot(sight.as_ref(), name, pact, slot)))
        })
        .collect()
    }

    fn of_slot(&self, sight: Option<&Sight>, name: &NodeName, pact: &Pact, slot: Slot) -> PskEvidence {
        let Some(machine) = pact.machine(slot) else { return PskEvidence::default() };
        let state = match machine.standing() {
            Standing::Open => PskState::Open,
            Standing::Proven => PskState::Proven,
            Standing::Unproven => PskState::Installed,
            Standing::Lost => PskState::Lost,
            Standing::Untried | Standing::Plain | Standing::Answered => self.missing(sight, pact, slot),
        };
        let record = machine.record();
        let peer = name.id(&self.us.cluster);
        PskEvidence {
            state,
            id: record.map(|record| record.id),
            recorded_at: record.and_then(|_| self.store.written(&peer, slot)),
        }
    }

    /// Why there is none.
    fn missing(&self, sight: Option<&Sight>, pact: &Pact, slot: Slot) -> PskState {
        let Some(sight) = sight else { return PskState::Off };
        let overdue = pact.overdue(sight, slot, self.started.elapsed(), OVERDUE).is_some();
        match pact.effective(sight) {
            Effective::Off => PskState::Off,
            Effective::Prefer | Effective::Require if overdue => PskState::Overdue,
            // One insists, the other takes no part: it is missing, and will be.
            Effective::Conflict => PskState::Overdue,
            Effective::Prefer | Effective::Require => PskState::Waiting,
        }
    }

    /// What each peer's last letter said.
    pub(in crate::agent) fn modes(&self) -> BTreeMap<NodeName, Mode> {
        self.pacts.iter().filter_map(|(name, pact)| Some((name.clone(), pact.said()?))).collect()
    }
}
