//! The objects of a run. All bear [`LABEL`], all are in a namespace of the run's own.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::{Role, SERVICE};
use super::question::PORT;

/// Label of everything that a run makes.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/name", "hawser-connectivity-test");
/// Label with a pod's role.
const ROLE: &str = "hawser.dev/role";
/// Label of the namespace with the mark of its run.
const RUN: &str = "hawser.dev/run";

fn made<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("invariant: objects of this module are of their kinds")
}

/// The namespace of the run with this mark. Pods in their node's network are not let in where Pod Security is stricter.
pub fn namespace(name: &str, mark: &str) -> Namespace {
    made(json!({"metadata": {"name": name, "labels": {
        LABEL.0: LABEL.1, RUN: mark, "pod-security.kubernetes.io/enforce": "privileged",
    }}}))
}

/// Whose a namespace is that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The run has made it.
    ThisRun,
    /// Another run has.
    AnotherRun,
    /// It has nothing to do with this command.
    SomebodyElse,
}

/// Says it to the run with this mark.
pub fn owner(namespace: &Namespace, mark: &str) -> Owner {
    let has = |label: &str, value: &str| namespace.labels().get(label).is_some_and(|found| found == value);
    match (has(LABEL.0, LABEL.1), has(RUN, mark)) {
        (true, true) => Owner::ThisRun,
        (true, false) => Owner::AnotherRun,
        (false, _) => Owner::SomebodyElse,
    }
}

fn metadata(name: &str, role: Option<Role>) -> Value {
    let mut labels = json!({LABEL.0: LABEL.1});
    if let Some(role) = role {
        labels[ROLE] = json!(role.word());
    }
    json!({"name": name, "labels": labels})
}

/// The Service in front of all servers, in all families that the cluster has.
pub fn service() -> Service {
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "targetPort": PORT});
    made(json!({"metadata": metadata(SERVICE, None), "spec": {
        "ipFamilyPolicy": "PreferDualStack", "selector": {LABEL.0: LABEL.1, ROLE: Role::Server.word()},
        "ports": [port("TCP"), port("UDP")],
    }}))
}

/// What guards guarded pods and mutes mute ones.
pub fn policies() -> [NetworkPolicy; 2] {
    let of = |role: Role| json!({"matchLabels": {LABEL.0: LABEL.1, ROLE: role.word()}});
    let ports = ["TCP", "UDP"].map(|protocol| json!({"protocol": protocol, "port": PORT}));
    [
        made(json!({"metadata": metadata(Role::Guarded.word(), None), "spec": {
            "podSelector": of(Role::Guarded), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": of(Role::Asker)}], "ports": ports}],
        }})),
        made(json!({"metadata": metadata(Role::Mute.word(), None), "spec": {
            "podSelector": of(Role::Mute), "policyTypes": ["Egress"], "egress": [],
        }})),
    ]
}

/// How pods of a run are made.
#[derive(Clone, Debug)]
pub struct Mould {
    /// Their image.
    pub image: String,
    /// The run's token, in hexadecimal.
    pub token: String,
    /// When a kubelet ends them, whoever forgot them.
    pub lifetime: Duration,
}

impl Mould {
    /// A pod of this role, on this node. It needs no right at all, in the API or on its node.
    pub fn pod(&self, role: Role, name: &str, node: &str, args: &[String]) -> Pod {
        let verb = match role {
            Role::Server | Role::Guarded => "serve",
            Role::Asker | Role::Host | Role::Stranger | Role::Mute => "ask",
        };
        let mut all = vec!["connectivity".to_owned(), verb.to_owned(), format!("--token={}", self.token)];
        all.extend(args.iter().cloned());
        made(json!({"metadata": metadata(name, Some(role)), "spec": {
            "nodeName": node, "hostNetwork": role == Role::Host, "restartPolicy": "Never",
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            // The program is the first of its container, which a SIGTERM does not end.
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": self.lifetime.as_secs(),
            // A node that was chosen is tested, whatever it is tainted with.
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": role.word(), "image": self.image, "imagePullPolicy": "IfNotPresent",
                "command": ["/hawser"], "args": all,
                "terminationMessagePath": super::MESSAGE_FILE, "terminationMessagePolicy": "File",
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]}},
            }],
        }}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_knows_its_own_namespace_by_its_mark_and_takes_no_other_for_it() {
        let ours = namespace("n", "aa");
        assert_eq!(owner(&ours, "aa"), Owner::ThisRun);
        assert_eq!(owner(&ours, "bb"), Owner::AnotherRun);
        let of_an_earlier_release: Namespace =
            made(json!({"metadata": {"name": "n", "labels": {LABEL.0: LABEL.1}}}));
        assert_eq!(owner(&of_an_earlier_release, "aa"), Owner::AnotherRun);
        let labels = [json!({}), json!({RUN: "aa"}), json!({LABEL.0: "shop", RUN: "aa"})];
        for labels in labels {
            let foreign: Namespace = made(json!({"metadata": {"name": "n", "labels": labels}}));
            assert_eq!(owner(&foreign, "aa"), Owner::SomebodyElse, "{labels}");
        }
    }
}
