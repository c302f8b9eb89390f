//! What is in the image: a bill of materials in CycloneDX 1.5, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// The part of `cargo metadata --format-version 1` that is read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
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

/// The bill of materials of programs that the packages `roots` give: all crates that are linked into one of them. Features are those
/// of the whole workspace, so it may name a crate too many, never one too few.
///
/// # Errors
/// The text is not what `cargo metadata` prints, or has no such package.
pub fn cyclonedx(metadata: &str, roots: &[&str], version: &str) -> Result<Value> {
    let metadata: Metadata = serde_json::from_str(metadata).context("cargo metadata gave unexpected JSON")?;
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let mut open = Vec::new();
    for root in roots {
        let found =
            metadata.packages.iter().find(|package| package.name == *root && package.source.is_none());
        open.push(found.with_context(|| format!("the workspace has no package {root}"))?.id.as_str());
    }
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    while let Some(id) = open.pop() {
        if reached.contains_key(id) {
            continue;
        }
        let node = nodes.get(id).with_context(|| format!("cargo metadata does not resolve {id}"))?;
        let linked = node.deps.iter().filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        let linked: BTreeSet<&str> = linked.map(|edge| edge.pkg.as_str()).collect();
        open.extend(linked.iter().copied());
        reached.insert(id, linked);
    }
    let purl =
        |id: &str| packages.get(id).map(|package| format!("pkg:cargo/{}@{}", package.name, package.version));
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for (id, linked) in &reached {
        let package = packages.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
        let reference = format!("pkg:cargo/{}@{}", package.name, package.version);
        let mut component = json!({
            "type": "library", "bom-ref": reference, "name": package.name, "version": package.version,
            "purl": reference,
        });
        if let Some(license) = &package.license {
            component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
        }
        components.insert(reference.clone(), component);
        let on: BTreeSet<String> = linked.iter().filter_map(|id| purl(id)).collect();
        dependencies.insert(reference.clone(), json!({"ref": reference, "dependsOn": on}));
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "hawser", "name": "hawser", "version": version}},
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_or_tests_is_not() {
        let package = |name: &str, source: Option<&str>| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source});
        let edge = |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("ours", None), package("linked", Some("r")), package("deep", Some("r")),
                package("builds", Some("r")), package("tests", Some("r"))],
            "resolve": {"nodes": [
                {"id": "ours", "deps": [edge("linked", None), edge("builds", Some("build")), edge("tests", Some("dev"))]},
                {"id": "linked", "deps": [edge("deep", None)]},
                {"id": "deep", "deps": []}, {"id": "builds", "deps": []}, {"id": "tests", "deps": []},
            ]},
        });
        let bill = cyclonedx(&metadata.to_string(), &["ours"], "1.0.0").unwrap();
        let names: Vec<&str> =
            bill["components"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["deep", "linked", "ours"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][1]["dependsOn"][0], "pkg:cargo/deep@1.0.0");
        let error = cyclonedx(&metadata.to_string(), &["nobody"], "1.0.0").unwrap_err().to_string();
        assert!(error.contains("no package nobody"), "{error}");
    }
}
