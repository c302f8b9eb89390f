//! All cases.

mod cluster;
mod network;
mod replay;
mod services;

use anyhow::{Context, Result};

use crate::case::{Case, read};

/// Written one by one.
const WRITTEN: [(&str, &str); 3] = [
    ("life.yaml", include_str!("cases/life.yaml")),
    ("nodes.yaml", include_str!("cases/nodes.yaml")),
    ("cluster.yaml", include_str!("cases/cluster.yaml")),
];

/// Of those that are combined, every so many is among those for every day.
const SHORT: usize = 60;

/// Cases of this table: written one by one, or combined here.
pub(crate) fn own() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (file, text) in WRITTEN {
        cases.extend(read::<Case>(text).context(file)?);
    }
    let mut combined = [
        network::peers(),
        network::ports(),
        network::subjects(),
        network::types(),
        network::both_sides(),
        cluster::cases(),
    ]
    .concat();
    combined.iter_mut().step_by(SHORT).for_each(|case| case.short = true);
    cases.extend(combined);
    cases.extend(services::cases());
    Ok(cases)
}

/// All of them, with the sentences of mesh-core that have verdicts by hand.
pub(crate) fn all() -> Result<Vec<Case>> {
    Ok([own()?, replay::cases()?].concat())
}
