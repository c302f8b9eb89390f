//! Which crate may depend on which (ARCHITECTURE.md).

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

use super::Faults;
use crate::run::output;
use crate::workspace::{Package, Workspace, cargo};

/// The arrows of one member.
struct Rule {
    package: &'static str,
    /// Members that it may depend on.
    members: &'static [&'static str],
    /// Members that its tests may depend on besides.
    test_members: &'static [&'static str],
    /// Crates that its normal dependencies must not reach, however indirectly.
    banned: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        package: "mesh-core",
        members: &[],
        test_members: &[],
        // Decisions do no I/O: an async runtime, an API client or a system call has no business there.
        banned: &[
            "tokio",
            "kube",
            "aya",
            "tonic",
            "rustls",
            "libc",
            "rtnetlink",
            "nix",
            "rustix",
            "socket2",
            "rand",
        ],
    },
    Rule {
        package: "keyring",
        members: &["mesh-core"],
        test_members: &[],
        banned: &["tokio", "kube", "rustls"],
    },
    Rule {
        package: "proto",
        members: &["mesh-core"],
        test_members: &[],
        banned: &["tokio", "tonic", "kube"],
    },
    Rule { package: "tunnel", members: &[], test_members: &["netlab"], banned: &["kube"] },
    Rule {
        package: "datapath",
        members: &["mesh-core"],
        // Its bench gives rows as all benches do.
        test_members: &["netlab", "xtask"],
        // System calls that return at once need no runtime.
        banned: &["tokio", "kube"],
    },
    Rule {
        package: "clustermesh",
        // Reads what nodes announce.
        members: &["mesh-core", "proto", "keyring"],
        test_members: &["netlab", "kubeapi"],
        // Without its feature `daemon`: an agent that follows needs no API client, authority or server for that.
        banned: &["openssl", "native-tls", "kube", "rcgen", "axum"],
    },
    Rule {
        package: "mesh-agent",
        // Of clustermesh what follows, without its feature `daemon`.
        members: &["mesh-core", "keyring", "proto", "datapath", "clustermesh"],
        test_members: &["netlab", "kubeapi"],
        banned: &["openssl", "native-tls"],
    },
    Rule {
        package: "cni",
        members: &["mesh-core", "proto"],
        test_members: &["netlab"],
        // Started for every pod: it must be small and start at once.
        banned: &["tokio", "tonic", "kube", "rustls"],
    },
    Rule {
        package: "cli",
        members: &["mesh-core", "proto", "keyring"],
        test_members: &[],
        banned: &["openssl", "native-tls"],
    },
    Rule { package: "netlab", members: &[], test_members: &[], banned: &["kube"] },
    Rule { package: "kubeapi", members: &[], test_members: &["netlab"], banned: &[] },
    Rule {
        package: "chaos-tests",
        members: &[
            "mesh-core",
            "keyring",
            "proto",
            "tunnel",
            "datapath",
            "clustermesh",
            "mesh-agent",
            "cni",
            "netlab",
            "kubeapi",
            "xtask",
        ],
        test_members: &[],
        banned: &["openssl", "native-tls"],
    },
    Rule { package: "xtask", members: &[], test_members: &[], banned: &["tokio", "kube"] },
];

/// Members may depend on the members of their rule alone.
pub(super) fn workspace_arrows(workspace: &Workspace) -> Faults {
    workspace.packages.iter().flat_map(|package| package_arrows(package, RULES)).collect()
}

fn package_arrows(package: &Package, rules: &[Rule]) -> Faults {
    let Some(rule) = rules.iter().find(|rule| rule.package == package.name) else {
        return vec![format!("{} has no arrows; draw them in xtask/src/tidy/arrows.rs", package.name)];
    };
    let local = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
    local
        .filter(|dependency| {
            let name = dependency.name.as_str();
            let for_tests = dependency.kind.as_deref() == Some("dev") && rule.test_members.contains(&name);
            // A crate's tests may ask for its own features.
            let itself = dependency.kind.as_deref() == Some("dev") && name == package.name;
            !rule.members.contains(&name) && !for_tests && !itself
        })
        .map(|dependency| {
            let kind = dependency.kind.as_deref().unwrap_or("normal");
            format!("{} must not depend on {} ({kind} dependency)", package.name, dependency.name)
        })
        .collect()
}

/// No member reaches a crate that its rule bans.
pub(super) fn banned_dependencies() -> Result<Faults> {
    let mut faults = Faults::new();
    for rule in RULES.iter().filter(|rule| !rule.banned.is_empty()) {
        // Each by itself: a build of the whole workspace would unify features.
        let tree = output(
            cargo()
                .args(["tree", "--locked", "--package", rule.package])
                .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"]),
        )
        .with_context(|| format!("the dependencies of {}", rule.package))?;
        faults.extend(reached(&tree, rule.banned).map(|name| {
            format!(
                "{} reaches {name}, which it must not; see: cargo tree -p {} -e normal -i {name}",
                rule.package, rule.package
            )
        }));
    }
    Ok(faults)
}

/// Those of `banned` that a tree (lines of `name v1.2.3 …`) contains.
fn reached<'a>(tree: &str, banned: &'a [&'static str]) -> impl Iterator<Item = &'a &'static str> {
    let names: BTreeSet<String> =
        tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    banned.iter().filter(move |name| names.contains(**name))
}

/// TLS is aws-lc-rs everywhere: two providers in one process make rustls panic when it has to choose.
pub(super) fn one_tls_provider() -> Result<Faults> {
    let tree = output(
        cargo()
            .args(["tree", "--locked", "--workspace", "--edges", "normal,dev"])
            .args(["--prefix", "none", "--format", "{p} {f}"]),
    )?;
    Ok(ring_in_rustls(&tree))
}

/// Crates of TLS that have the feature `ring`, in lines of `name v1.2.3 feature,feature`.
fn ring_in_rustls(tree: &str) -> Faults {
    let mut faults = BTreeSet::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        if !["rustls", "rustls-webpki", "tokio-rustls", "hyper-rustls"].contains(&name) {
            continue;
        }
        if words.any(|word| word.split(',').any(|feature| feature == "ring")) {
            faults.insert(format!("{name} {version} has the feature `ring`; TLS is aws-lc-rs alone"));
        }
    }
    faults.into_iter().collect()
}

/// Every dependency is a released version from a registry: what comes from elsewhere can change under us.
pub(super) fn sources_of_dependencies(workspace: &Workspace) -> Result<Faults> {
    let file = workspace.path("Cargo.lock");
    let lock = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(foreign_sources(&lock))
}

fn foreign_sources(lock: &str) -> Faults {
    let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    let foreign: BTreeSet<&str> = sources.filter(|source| !source.starts_with("\"registry+")).collect();
    foreign
        .into_iter()
        .map(|source| format!("Cargo.lock: a dependency from {source}; released versions only"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;
    use std::path::PathBuf;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.to_owned(),
            manifest_path: PathBuf::from("/Cargo.toml"),
            targets: vec![],
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).to_owned(),
                    kind: kind.map(str::to_owned),
                    path: Some(PathBuf::from("/")),
                })
                .collect(),
        }
    }

    #[test]
    fn nothing_but_chaos_tests_depends_on_the_agent() {
        for rule in RULES {
            for kind in [None, Some("dev"), Some("build")] {
                for forbidden in ["mesh-agent", "chaos-tests"] {
                    let faults = package_arrows(&package(rule.package, &[(forbidden, kind)]), RULES);
                    let itself = rule.package == forbidden && kind == Some("dev");
                    let allowed = (rule.package == "chaos-tests" && forbidden == "mesh-agent") || itself;
                    assert_eq!(faults.is_empty(), allowed, "{} -> {forbidden} {kind:?}", rule.package);
                }
            }
        }
    }

    #[test]
    fn arrows_for_tests_are_for_tests_only() {
        assert!(package_arrows(&package("mesh-agent", &[("kubeapi", Some("dev"))]), RULES).is_empty());
        assert_eq!(
            package_arrows(&package("mesh-agent", &[("kubeapi", None)]), RULES),
            ["mesh-agent must not depend on kubeapi (normal dependency)"]
        );
    }

    #[test]
    fn a_new_member_needs_arrows() {
        assert!(package_arrows(&package("datapath2", &[]), RULES)[0].contains("draw them"));
    }

    #[test]
    fn the_arrows_allow_no_circle() {
        // A member may reach only members that cannot reach it back.
        let reach = |start: &'static str| {
            let mut seen = BTreeSet::new();
            let mut todo = vec![start];
            while let Some(name) = todo.pop() {
                let rule = RULES.iter().find(|rule| rule.package == name).unwrap();
                todo.extend(rule.members.iter().filter(|member| seen.insert(**member)));
            }
            seen
        };
        for rule in RULES {
            assert!(!reach(rule.package).contains(rule.package), "{}", rule.package);
        }
    }

    #[test]
    fn a_banned_crate_is_found_by_its_whole_name() {
        let tree = "mesh-core v0.1.0 (/x)\ntokio-util v0.7.0\nlibc v0.2.0 (*)\n";
        assert_eq!(reached(tree, &["tokio", "libc"]).collect::<Vec<_>>(), [&"libc"]);
    }

    #[test]
    fn ring_in_rustls_is_found() {
        let tree = "rustls v0.23.1 aws_lc_rs,std\nring v0.17.0 alloc\nsnow v0.9.0 ring\n";
        assert!(ring_in_rustls(tree).is_empty());
        assert_eq!(
            ring_in_rustls("rustls v0.23.1 aws_lc_rs,ring,std (*)\n"),
            ["rustls v0.23.1 has the feature `ring`; TLS is aws-lc-rs alone"]
        );
    }

    #[test]
    fn a_dependency_from_git_is_found() {
        assert!(foreign_sources("source = \"registry+https://example\"\n").is_empty());
        assert_eq!(foreign_sources("name = \"x\"\nsource = \"git+https://example#1\"\n").len(), 1);
    }
}
