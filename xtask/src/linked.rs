//! What cargo links into programs, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The part of `cargo metadata --format-version 1` that is read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
    resolve: Resolve,
}

/// A crate that is linked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Crate {
    /// What cargo calls it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// An SPDX expression, as its authors write it.
    pub license: Option<String>,
    /// Where it comes from; `None`: a folder of the workspace.
    pub source: Option<String>,
    /// Its Cargo.toml.
    pub manifest_path: PathBuf,
    /// Where it is developed.
    pub repository: Option<String>,
    /// What it is linked with itself, by [`Crate::purl`].
    #[serde(skip)]
    pub on: BTreeSet<String>,
}

impl Crate {
    /// Its package URL.
    pub fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }

    /// Its licence as SPDX writes it today: a slash was an OR once.
    pub fn expression(&self) -> Option<String> {
        let words = self.license.as_ref()?.replace('/', " OR ");
        Some(words.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `None`: linked into the program.
    kind: Option<String>,
}

/// All crates that are linked into a program of the packages `roots`, by [`Crate::purl`]. Features are those of the whole workspace,
/// so it may be a crate too many, never one too few.
///
/// # Errors
/// The text is not what `cargo metadata` prints, or has no such package.
pub fn linked(metadata: &str, roots: &[&str]) -> Result<BTreeMap<String, Crate>> {
    let metadata: Metadata = serde_json::from_str(metadata).context("cargo metadata gave unexpected JSON")?;
    let packages: BTreeMap<&str, &Crate> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut open = Vec::new();
    for root in roots {
        let found =
            metadata.packages.iter().find(|package| package.name == *root && package.source.is_none());
        open.push(found.with_context(|| format!("the workspace has no package {root}"))?.id.as_str());
    }
    let (mut reached, mut crates) = (BTreeSet::new(), BTreeMap::new());
    while let Some(id) = open.pop() {
        if !reached.insert(id) {
            continue;
        }
        let node = nodes.get(id).with_context(|| format!("cargo metadata does not resolve {id}"))?;
        let package = packages.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
        let linked = node.deps.iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        let linked: BTreeSet<&str> = linked.map(|edge| edge.pkg.as_str()).collect();
        let on = linked.iter().filter_map(|id| Some(packages.get(id)?.purl())).collect();
        open.extend(linked);
        crates.insert(package.purl(), Crate { on, ..Crate::clone(package) });
    }
    Ok(crates)
}
