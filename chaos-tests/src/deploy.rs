//! The manifests of `deploy/`: what the lab proves is what is shipped.

use anyhow::{Context as _, Result, anyhow};
use kubeapi::{Store, User};
use mesh_core::numbers::NAMESPACE;
use serde_json::{Value, json};

use crate::Lab;
use crate::cluster::node_name;

/// Name and text, in the order in which `kubectl apply -f deploy/` needs no second try.
pub const MANIFESTS: [(&str, &str); 12] = [
    ("00-namespace.yaml", include_str!("../../deploy/00-namespace.yaml")),
    ("crds/clusterpeers.yaml", include_str!("../../deploy/crds/clusterpeers.yaml")),
    ("crds/serviceexports.yaml", include_str!("../../deploy/crds/serviceexports.yaml")),
    ("crds/serviceimports.yaml", include_str!("../../deploy/crds/serviceimports.yaml")),
    ("rbac.yaml", include_str!("../../deploy/rbac.yaml")),
    ("audit.yaml", include_str!("../../deploy/audit.yaml")),
    ("cli.yaml", include_str!("../../deploy/cli.yaml")),
    ("admission.yaml", include_str!("../../deploy/admission.yaml")),
    ("config.yaml", include_str!("../../deploy/config.yaml")),
    ("mesh-agent.yaml", include_str!("../../deploy/mesh-agent.yaml")),
    ("mesh-tunnel.yaml", include_str!("../../deploy/mesh-tunnel.yaml")),
    ("clustermesh/clustermesh.yaml", include_str!("../../deploy/clustermesh/clustermesh.yaml")),
];

/// What takes Hawser off the nodes again; no part of an installation.
pub const UNINSTALL: (&str, &str) =
    ("uninstall/uninstall.yaml", include_str!("../../deploy/uninstall/uninstall.yaml"));

/// Operators' roles in the whole cluster, and in `hawser-system`. The manifests bind them to nobody.
const ROLES: [(&str, &[&str]); 4] = [
    ("hawser-viewer", &["hawser-viewer"]),
    ("hawser-operator", &["hawser-operator"]),
    ("hawser-tester", &["hawser-tester"]),
    ("hawser-auditor", &["hawser-auditor", "hawser-audit-signer"]),
];

/// Installs them.
///
/// # Errors
/// The API refused an object; the message names its file.
pub fn apply(store: &Store) -> Result<()> {
    for (name, text) in MANIFESTS {
        store.apply_manifests(text).with_context(|| format!("could not apply deploy/{name}"))?;
    }
    // As an administrator does: to accounts of these names.
    for (user, roles) in ROLES {
        bind(store, user, "Cluster", user)?;
        roles.iter().try_for_each(|role| bind(store, user, "", role))?;
    }
    Ok(())
}

fn bind(store: &Store, user: &str, cluster: &str, role: &str) -> Result<()> {
    let metadata = match cluster {
        "" => json!({"name": role, "namespace": NAMESPACE}),
        _ => json!({"name": role}),
    };
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{cluster}RoleBinding"), "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{cluster}Role"), "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": user, "namespace": NAMESPACE}],
    });
    store.create(&binding).map(drop).map_err(|error| anyhow!("binding of {role}: {error}"))
}

impl Lab {
    /// Fails if the API ever refused an agent anything, by rights or by policy.
    ///
    /// # Errors
    /// What it was refused.
    pub fn agents_were_refused_nothing(&self) -> Result<()> {
        let mut refusals = self.api().faults().refusals();
        refusals.retain(|(user, _)| user.ends_with(":mesh-agent"));
        if refusals.is_empty() { Ok(()) } else { Err(anyhow!("agents were refused: {refusals:?}")) }
    }

    /// Replaces the agent's pod on node `number`: a new token, of the Node object that is there now, and a new process.
    ///
    /// # Errors
    /// There is no Node object, or the agent would not end or start.
    pub fn replace_agent_pod(&mut self, number: u8) -> Result<()> {
        let object: Value =
            self.api().store().get("nodes", None, &node_name(number)).map_err(|e| anyhow!("{e}"))?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        let kubeconfig = self.kubeconfig(&User::agent_of_node(&node_name(number), uid));
        self.node(number).write_file("/etc/hawser/kubeconfig", &kubeconfig)?;
        self.node_mut(number).stop_agent()?;
        self.node_mut(number).start_agent()
    }
}
