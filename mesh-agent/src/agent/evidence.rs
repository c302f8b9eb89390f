//! What a turn contributes to this node's evidence ([`mesh_core::evidence`]).

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_core::diff::Observed;
use mesh_core::evidence::{Configured, Engine, Facts, Note, Rotation};
use mesh_core::key::PublicKey;
use mesh_core::name::NodeName;
use mesh_core::plan::Desired;
use mesh_core::problem::Problem;
use mesh_core::slot::Slot;
use mesh_core::view::{ClusterView, NodeFacts};

use super::Agent;
use crate::config::{Config, DataPath};
use crate::wireguard::Implementation;

/// Seconds since 1970; zero where the clock is before that.
pub(crate) fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Since when each peer's present keys are seen announced.
#[derive(Debug)]
pub(super) struct Known {
    started: u64,
    since: BTreeMap<NodeName, [(PublicKey, u64); 2]>,
}

impl Default for Known {
    fn default() -> Self {
        Self { started: unix(), since: BTreeMap::new() }
    }
}

impl Known {
    /// Takes in what is announced now. Who has left is forgotten once the list of Nodes is complete.
    fn look(&mut self, view: &ClusterView, now: u64) {
        for (name, node) in &view.nodes {
            let Some(announced) = node.announced() else { continue };
            let keys = Slot::ALL.map(|slot| announced.slot(slot).public_key);
            let before = self.since.get(name).copied();
            let since = Slot::ALL.map(|slot| {
                let key = keys[slot.index()];
                match before.map(|before| before[slot.index()]) {
                    Some((known, since)) if known == key => (key, since),
                    Some(_) | None => (key, now),
                }
            });
            self.since.insert(name.clone(), since);
        }
        if view.synced {
            // A node whose announcement cannot be read for a moment has not another key for that.
            self.since.retain(|name, _| view.nodes.contains_key(name));
        }
    }

    fn times(&self, view: &ClusterView) -> BTreeMap<NodeName, [u64; 2]> {
        let announces =
            |(name, _): &(&NodeName, _)| view.nodes.get(*name).and_then(NodeFacts::announced).is_some();
        let times =
            |(name, since): (&NodeName, &[(PublicKey, u64); 2])| (name.clone(), since.map(|(_, at)| at));
        self.since.iter().filter(announces).map(times).collect()
    }
}

impl Agent {
    /// What is known after a turn besides what [`crate::http::Snapshot`] has.
    pub(super) fn evidence(
        &mut self,
        (view, observed): (&ClusterView, &Observed),
        desired: &Desired,
        problems: &[Problem],
        guard: &crate::guard::Turn,
    ) -> Facts {
        // Ages are of then, and a turn may take seconds.
        let at = self.memory.observed_at;
        self.memory.known.look(view, at);
        let wrong = problems.iter().map(|p| Note { code: p.code().to_owned(), text: p.to_string() });
        let found = guard.findings.iter().map(|(code, text)| Note { code: code.clone(), text: text.clone() });
        Facts {
            at,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.memory.known.started,
            wireguard: match self.wireguard.implementation() {
                Implementation::Kernel => Engine::Kernel,
                Implementation::Userspace => Engine::Userspace,
            },
            settings: configured(&self.config),
            made_at: Slot::ALL.map(|slot| self.keys.made(slot)),
            known_since: self.memory.known.times(view),
            psks: self.psks.evidence(view, observed),
            modes: self.psks.modes(),
            firewall: guard.closed && guard.firewall,
            firewall_counts: self.guard.counted(),
            exempt: crate::plane::exempt(&crate::guard::nft_input(&self.config, desired)).unwrap_or_default(),
            problems: wrong.chain(found).collect(),
            pools: self.table.lock().unwrap_or_else(PoisonError::into_inner).ipam.usage(crate::cni::now()),
        }
    }
}

fn configured(config: &Config) -> Configured {
    let rotation = &config.rotation;
    Configured {
        cluster: config.cluster_name.to_string(),
        pod_cidrs: config.settings.pod_cidrs.clone(),
        non_masquerade_cidrs: config.settings.non_masquerade.clone(),
        post_quantum: config.post_quantum,
        rotation: Rotation {
            period_seconds: (!rotation.period.is_zero()).then_some(rotation.period.as_secs()),
            quiet_seconds: rotation.quiet.as_secs(),
            deadline_seconds: rotation.deadline.as_secs(),
            answers: rotation.proof == keyring::rotation::Proof::Answers,
        },
        data_path: config.data_path == DataPath::Enforce,
        host_traffic: config.settings.host_traffic.on,
        host_traffic_required: config.settings.host_traffic.require,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::announcement::{Announcement, Epoch, SlotAnnouncement};
    use mesh_core::host::HostState;
    use mesh_core::view::{AnnouncementFact, LocalFacts, Settings};

    fn announcement(keys: [u8; 2]) -> Announcement {
        let slot = |key: u8| SlotAnnouncement {
            epoch: Epoch(u64::from(key)),
            public_key: PublicKey::from_bytes([key; 32]),
            port: 51880,
            draining: false,
        };
        Announcement {
            slots: keys.map(slot),
            endpoints: Vec::new(),
            kem: None,
            kem_required: false,
            host_traffic: false,
        }
    }

    fn view(b: Option<AnnouncementFact>) -> ClusterView {
        let node = |announcement| NodeFacts { announcement, ..NodeFacts::default() };
        let nodes = b.map(|fact| ("b".parse().unwrap(), node(fact)));
        let local = LocalFacts {
            name: "a".parse().unwrap(),
            cluster: "west".parse().unwrap(),
            announcement: announcement([1, 2]),
            uplink_mtu: None,
            host: HostState::default(),
        };
        ClusterView {
            settings: Settings::default(),
            local,
            nodes: nodes.into_iter().collect(),
            attachments: BTreeMap::new(),
            synced: true,
            pairs: BTreeMap::new(),
        }
    }

    #[test]
    fn a_key_is_known_since_it_was_first_announced_and_its_node_has_not_left_since() {
        let valid = |keys| view(Some(AnnouncementFact::Valid(announcement(keys))));
        let unreadable = view(Some(AnnouncementFact::Malformed { reason: "no".into() }));
        let mut known = Known { started: 5, since: BTreeMap::new() };
        let mut at = |view: &ClusterView, now| {
            known.look(view, now);
            known.times(view).get(&"b".parse().unwrap()).copied()
        };
        assert_eq!(at(&valid([3, 4]), 10), Some([10, 10]));
        assert_eq!(at(&valid([3, 5]), 20), Some([10, 20]));
        assert_eq!(at(&unreadable, 30), None, "nothing is announced");
        assert_eq!(at(&valid([3, 5]), 40), Some([10, 20]));
        assert_eq!(at(&view(None), 50), None);
        assert_eq!(at(&valid([3, 5]), 60), Some([60, 60]));
    }
}
