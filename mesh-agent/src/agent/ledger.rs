//! Which keys peers have replaced ([`Retired`]), kept in a file.

use std::path::Path;

use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::problem::Problem;
use mesh_core::psk::PskId;
use mesh_core::retired::Retired;
use mesh_core::slot::Slot;
use mesh_core::view::ClusterView;

use super::Psks;
use crate::kept::Kept;

/// Name of the file in the state directory.
const FILE: &str = "retired.json";

/// The file and what is in it. Without a good one the agent takes what the API says.
#[derive(Debug)]
pub struct Ledger(Kept<Retired>);

impl Ledger {
    /// Reads the file.
    pub fn load(state_dir: &Path) -> Self {
        Self(Kept::load(state_dir.join(FILE), "which keys peers have replaced"))
    }

    /// Refuses announcements that go back. What they were instead stands in the view.
    pub(super) fn review(&mut self, view: &mut ClusterView, psks: &Psks) -> Vec<Problem> {
        let agreed = |node: &NodeName, slot| psks.agreed(node, slot);
        let (problems, news) = self.0.value.review(&view.local.name, &mut view.nodes, agreed, view.synced);
        self.0.touch(news);
        problems
    }

    /// Takes note of keys that are at work with a pre-shared key that both sides have seen.
    pub(super) fn note(&mut self, at_work: impl Iterator<Item = (NodeName, Slot, PublicKey, PskId)>) {
        for (node, slot, key, psk) in at_work {
            let news = self.0.value.at_work(&node, slot, key, psk);
            self.0.touch(news);
        }
    }

    /// Writes the file if there is news. What fails is tried again with the next turn.
    pub(super) async fn save(&mut self) {
        self.0.save().await;
    }
}
