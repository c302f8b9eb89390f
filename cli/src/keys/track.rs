//! How far the nodes are that were asked, and what there is to say about it: pure.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use mesh_core::announcement::Announcement;
use serde::Serialize;

use super::{Before, Listed, Stage, announced, stage};

/// How far a node is, for programs.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    stage: Stage,
    epochs_before: [u64; 2],
    epochs: [u64; 2],
}

/// The nodes that were asked.
#[derive(Debug)]
pub(super) struct Tracker {
    before: BTreeMap<String, Before>,
    told: BTreeMap<String, Told>,
}

fn epochs(of: &Announcement) -> [u64; 2] {
    of.slots.each_ref().map(|slot| slot.epoch.0)
}

impl Tracker {
    pub(super) fn new(before: BTreeMap<String, Before>) -> Self {
        let told = |(node, before): (&String, &Before)| {
            let epochs = epochs(&before.announced);
            (node.clone(), Told { stage: Stage::Asked, epochs_before: epochs, epochs })
        };
        let told = before.iter().map(told).collect();
        Self { before, told }
    }

    pub(super) fn count(&self) -> usize {
        self.before.len()
    }

    pub(super) const fn told(&self) -> &BTreeMap<String, Told> {
        &self.told
    }

    pub(super) fn stage(&self, node: &str) -> Stage {
        self.told.get(node).map_or(Stage::Gone, |told| told.stage)
    }

    /// Who is neither done nor gone.
    pub(super) fn late(&self) -> Vec<String> {
        let late = self.told.iter().filter(|(_, told)| !matches!(told.stage, Stage::Done | Stage::Gone));
        late.map(|(node, _)| node.clone()).collect()
    }

    /// Looks at the nodes that there are now; a line for each that is elsewhere than before. A Node of the same name that was made
    /// anew is another one, and was not asked. What a node announces may be unreadable for a moment: then it is where it was.
    pub(super) fn look(&mut self, nodes: &[Listed]) -> Vec<String> {
        let now: BTreeMap<String, &Listed> = nodes.iter().map(|node| (node.name_any(), node)).collect();
        let mut lines = Vec::new();
        for (name, before) in &self.before {
            let Some(told) = self.told.get_mut(name) else { continue };
            let node = now.get(name).filter(|node| node.uid() == before.uid);
            let seen = match node.map(|node| announced(node)) {
                None => Stage::Gone,
                Some(Err(_)) => continue,
                Some(Ok(now)) => {
                    told.epochs = epochs(&now);
                    stage(&before.announced, &now)
                }
            };
            if std::mem::replace(&mut told.stage, seen) == seen {
                continue;
            }
            let words = |of: [u64; 2]| of.map(|epoch| epoch.to_string()).join(", ");
            lines.push(if seen == Stage::Gone {
                format!("{name}: {seen}")
            } else {
                format!("{name}: {seen} (epochs {}, were {})", words(told.epochs), words(told.epochs_before))
            });
        }
        lines
    }
}

/// What keeps a node from beginning; `running`: where agents run, if that is known.
pub(super) fn obstacle(
    node: &str,
    not_ready: &BTreeSet<String>,
    running: Option<&BTreeSet<String>>,
) -> Option<String> {
    let mut all = Vec::new();
    if not_ready.contains(node) {
        all.push(format!("node {node} is not Ready"));
    }
    if running.is_some_and(|running| !running.contains(node)) {
        all.push(format!("no pod of mesh-agent runs on node {node}"));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

/// Why a node is late, as far as it can be seen from here.
pub(super) fn why_late(node: &str, stage: Stage, obstacle: Option<String>) -> String {
    match obstacle {
        Some(why) => {
            format!("{stage}; {why}: it goes on once that is put right; the request stays on its Node")
        }
        None => format!(
            "{stage}; its agent goes on. Events of the Node say who is in the way (reason RotationOverdue: kubectl get events -A --field-selector involvedObject.name={node})"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyring::codec;
    use mesh_core::announcement::{Epoch, SlotAnnouncement};
    use mesh_core::key::PublicKey;
    use mesh_core::numbers::ANNOTATION_WIREGUARD;

    fn announcement(epochs: [u64; 2]) -> Announcement {
        let slot = |(index, epoch): (u8, u64)| SlotAnnouncement {
            epoch: Epoch(epoch),
            public_key: PublicKey::from_bytes([index * 64 + u8::try_from(epoch).unwrap(); 32]),
            port: 51880 + u16::from(index),
            draining: false,
        };
        Announcement {
            slots: [slot((0, epochs[0])), slot((1, epochs[1]))],
            endpoints: Vec::new(),
            kem: None,
            kem_required: false,
            host_traffic: false,
        }
    }

    fn node(name: &str, uid: &str, text: &str) -> Listed {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": name, "uid": uid, "annotations": {ANNOTATION_WIREGUARD: text}},
        }))
        .unwrap()
    }

    fn at(name: &str, uid: &str, epochs: [u64; 2]) -> Listed {
        node(name, uid, &codec::encode(&announcement(epochs)))
    }

    #[test]
    fn of_a_half_dead_cluster_who_is_gone_is_dropped_and_who_is_late_stays() {
        let before = |uid: &str| Before { uid: Some(uid.to_owned()), announced: announcement([1, 2]) };
        let all = ["done", "gone", "late", "anew"].map(|name| (name.to_owned(), before(name)));
        let mut tracker = Tracker::new(all.into());
        assert_eq!(tracker.late().len(), 4);
        let mut nodes = vec![
            at("done", "done", [3, 4]),
            at("late", "late", [1, 2]),
            at("anew", "another", [1, 2]),
            at("stranger", "s", [1, 2]),
        ];
        let lines = tracker.look(&nodes);
        assert_eq!(
            lines,
            [
                "anew: there is no such Node any more; it is not waited for",
                "done: both keys replaced (epochs 3, 4, were 1, 2)",
                "gone: there is no such Node any more; it is not waited for",
            ]
        );
        assert_eq!((tracker.late(), tracker.count()), (vec!["late".to_owned()], 4));
        assert!(tracker.look(&nodes).is_empty(), "said once");
        // What cannot be read is no progress and no end.
        nodes[1] = node("late", "late", "{");
        assert!(tracker.look(&nodes).is_empty());
        nodes[1] = at("late", "late", [3, 2]);
        assert_eq!(tracker.look(&nodes), ["late: one key replaced (epochs 3, 2, were 1, 2)"]);
        assert_eq!(tracker.stage("late"), Stage::Half);
    }

    #[test]
    fn what_keeps_a_node_is_named_as_far_as_it_is_known() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let (dead, running) = (set(&["a", "b"]), set(&["b", "d"]));
        let of = |node: &str| obstacle(node, &dead, Some(&running));
        assert_eq!(of("a").unwrap(), "node a is not Ready and no pod of mesh-agent runs on node a");
        assert_eq!(of("b").unwrap(), "node b is not Ready");
        assert_eq!(of("c").unwrap(), "no pod of mesh-agent runs on node c");
        assert_eq!(of("d"), None);
        assert_eq!(obstacle("c", &dead, None), None, "nobody says");
        assert!(why_late("a", Stage::Asked, of("a")).starts_with("asked; node a is not Ready"));
        assert!(why_late("d", Stage::Draining, None).contains("RotationOverdue"));
    }
}
