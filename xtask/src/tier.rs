//! The tiers of tests, and which test belongs to which.

use std::fmt;

use crate::workspace::Target;

/// A tier: tests that need the same of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Tier {
    /// Decisions, codecs, files: no network.
    Pure,
    /// The programs of the data path in the kernel: its verifier, test runs, devices in namespaces of a test's own.
    Bpf,
    /// Real binaries in network namespaces.
    Netns,
    /// Pods through containerd.
    Cri,
}

impl Tier {
    /// All, in the order in which they run.
    pub(crate) const ALL: [Self; 4] = [Self::Pure, Self::Bpf, Self::Netns, Self::Cri];
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pure => "pure",
            Self::Bpf => "bpf",
            Self::Netns => "netns",
            Self::Cri => "cri",
        })
    }
}

/// How the tests of one target run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tier: Tier,
    /// They give files to other users, mount or make namespaces.
    pub(crate) root: bool,
    /// They wait for most of their time: for leases, handshakes, probes.
    pub(crate) waits: bool,
}

/// Where a target of a package belongs; `None` for a package without a place, which is an error of this table.
pub(crate) fn place(package: &str, target: &Target) -> Option<Place> {
    let integration = target.kind.iter().any(|kind| kind == "test");
    let (tier, root) = match package {
        // It runs this tool, which asks for the packages of the tier.
        "xtask" if integration && target.name == "tiers" => (Tier::Netns, false),
        // It runs kubectl.
        "kubeapi" if integration => (Tier::Netns, false),
        "mesh-core" | "proto" | "cli" | "clustermesh" | "kubeapi" | "xtask" => (Tier::Pure, false),
        "keyring" => (Tier::Pure, true),
        "datapath" => (Tier::Bpf, true),
        "cni" if !integration => (Tier::Pure, true),
        "cni" | "tunnel" | "netlab" | "mesh-agent" => (Tier::Netns, true),
        "chaos-tests" if integration && target.name == "cri" => (Tier::Cri, true),
        "chaos-tests" => (Tier::Netns, true),
        _ => return None,
    };
    // Streams of followers, with the leases and silences that a cluster has.
    let waits = tier == Tier::Netns || (package == "clustermesh" && integration);
    Some(Place { tier, root, waits })
}

/// Whether a target has tests that cargo runs.
pub(crate) fn is_tested(target: &Target) -> bool {
    target.test
        && target.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "bin" | "test" | "proc-macro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, kind: &str) -> Target {
        Target { name: name.to_owned(), kind: vec![kind.to_owned()], test: true }
    }

    #[test]
    fn each_kind_of_test_has_its_tier() {
        let tier = |package, name, kind| place(package, &target(name, kind)).map(|place| place.tier);
        assert_eq!(tier("mesh-core", "mesh_core", "lib"), Some(Tier::Pure));
        assert_eq!(tier("cni", "cni", "lib"), Some(Tier::Pure));
        assert_eq!(tier("cli", "flows", "test"), Some(Tier::Pure));
        assert_eq!(tier("cni", "verbs", "test"), Some(Tier::Netns));
        assert_eq!(tier("chaos-tests", "cri", "test"), Some(Tier::Cri));
        assert_eq!(tier("chaos-tests", "mesh", "test"), Some(Tier::Netns));
        assert_eq!(tier("chaos-tests", "cri", "bin"), Some(Tier::Netns));
        assert_eq!(tier("datapath", "datapath", "lib"), Some(Tier::Bpf));
        assert_eq!(tier("datapath2", "datapath2", "lib"), None);
    }
}
