//! The verdicts by hand of mesh-core, in the lab: sentences about the tables become sentences about packets.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use mesh_core::policy::fixture::cases::About;

use crate::case::{Case, Step};
use crate::world::{in_the_lab, node_addresses};

/// Sentences that no lab can show, by their beginning, and why.
const ELSEWHERE: [(&str, &str); 8] = [
    ("flows are judged with the addresses they have after", "nobody is at the address; see services.rs"),
    ("what is not known yet is closed; a pod whose", "a pod's namespace is always there in the API"),
    ("a pod that ends is itself until it has ended", "a pod that has ended is not in the lab; see life.yaml"),
    ("an address without its pod is unknown", "nobody speaks from such an address"),
    ("an address that two pods claim", "a node gives no address twice"),
    ("pods of other clusters are strangers", "nobody speaks from there"),
    ("an unknown address of the cluster matches", "nobody speaks from such an address"),
    ("an unknown destination could have any port", "nobody is at such an address"),
];

/// Each sentence with something to see.
pub(super) fn cases() -> Result<Vec<Case>> {
    let mut out = Vec::new();
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut left_out = 0;
    for about in About::OF_ONE_CLUSTER {
        for case in about.cases() {
            let elsewhere = ELSEWHERE.iter().any(|(says, _)| case.says.starts_with(says));
            left_out += usize::from(elsewhere);
            if elsewhere || case.elsewhere.is_some() {
                continue;
            }
            let count = names.entry(case.says.clone()).or_default();
            *count += 1;
            ensure!(*count == 1, "two sentences {:?}", case.says);
            let flows = node_addresses(&case.flows).replace("node:n", "node:node-");
            out.push(Case {
                name: format!("by hand: {}", case.says),
                rows: case.row.into_iter().collect(),
                short: false,
                ask: None,
                steps: vec![Step {
                    says: case.says,
                    objects: case.objects.iter().map(in_the_lab).collect(),
                    flows,
                    ..Step::default()
                }],
                by_address: true,
            });
        }
    }
    let expected = ELSEWHERE.len();
    (left_out == expected)
        .then_some(out)
        .with_context(|| format!("{left_out} sentences are not in the lab, not {expected}"))
}
