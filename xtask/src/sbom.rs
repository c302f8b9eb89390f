//! What is in the image: a bill of materials in CycloneDX 1.5.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::linked::Crate;

/// What comes from this machine's packages and not from cargo.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct System {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Its package URL.
    pub purl: String,
    /// An SPDX expression.
    pub license: String,
}

/// The bill of materials of programs into which these are linked.
pub fn cyclonedx(crates: &BTreeMap<String, Crate>, system: &[System], version: &str) -> Value {
    let of_cargo = crates.iter().map(|(purl, one)| {
        let mut component = json!({
            "type": "library", "bom-ref": purl, "name": one.name, "version": one.version, "purl": purl,
        });
        if let Some(expression) = one.expression() {
            component["licenses"] = json!([{ "expression": expression }]);
        }
        component
    });
    let of_system = system.iter().map(|System { package, version, purl, license }| {
        json!({"type": "library", "bom-ref": purl, "name": package, "version": version, "purl": purl,
            "licenses": [{ "expression": license }]})
    });
    let whole: Vec<&String> = crates
        .iter()
        .filter(|(_, one)| one.source.is_none())
        .map(|(purl, _)| purl)
        .chain(system.iter().map(|one| &one.purl))
        .collect();
    let mut dependencies = vec![json!({"ref": "hawser", "dependsOn": whole})];
    dependencies.extend(crates.iter().map(|(purl, one)| json!({"ref": purl, "dependsOn": one.on})));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": "hawser", "name": "hawser", "version": version}},
        "components": of_cargo.chain(of_system).collect::<Vec<_>>(),
        "dependencies": dependencies,
    })
}

/// The licence of all of it together: each has to be kept.
pub fn licence(crates: &BTreeMap<String, Crate>, system: &[System]) -> String {
    let of_cargo = crates.values().filter_map(Crate::expression);
    let all: BTreeSet<String> = of_cargo.chain(system.iter().map(|one| one.license.clone())).collect();
    let alone = |expression: &String| {
        if expression.contains(" OR ") { format!("({expression})") } else { expression.clone() }
    };
    all.iter().map(alone).collect::<Vec<_>>().join(" AND ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linked::linked;

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_or_tests_is_not() {
        let package = |name: &str, source: Option<&str>| {
            json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT / Apache-2.0", "source": source,
                "manifest_path": "/x/Cargo.toml", "repository": null})
        };
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
        let crates = linked(&metadata.to_string(), &["ours"]).unwrap();
        let c = System {
            package: "libc6-dev".to_owned(),
            version: "2.36-9".to_owned(),
            purl: "pkg:deb/debian/libc6-dev@2.36-9?arch=amd64".to_owned(),
            license: "LGPL-2.1-or-later".to_owned(),
        };
        let bill = cyclonedx(&crates, std::slice::from_ref(&c), "1.0.0");
        let names: Vec<&str> =
            bill["components"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["deep", "linked", "ours", "libc6-dev"]);
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][0]["dependsOn"], json!(["pkg:cargo/ours@1.0.0", c.purl]));
        assert_eq!(bill["dependencies"][2]["dependsOn"][0], "pkg:cargo/deep@1.0.0");
        assert_eq!(licence(&crates, &[c]), "LGPL-2.1-or-later AND (MIT OR Apache-2.0)");
        let error = linked(&metadata.to_string(), &["nobody"]).unwrap_err().to_string();
        assert!(error.contains("no package nobody"), "{error}");
    }
}
