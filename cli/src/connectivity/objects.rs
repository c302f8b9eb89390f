//! The objects of a run. All bear [`LABEL`], all are in a namespace of the run's own.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plan::{Role, SERVICE};
use super::question::PORT;

/// Label of everything that a run makes.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/name", "hawser-connectivity-test");
/// Label with a pod's role.
const ROLE: &str = "hawser.dev/role";

fn made<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("invariant: objects of this module are of their kinds")
}

/// The namespace. Pods in their node's network are not let in where Pod Security is stricter.
pub fn namespace(name: &str) -> Namespace {
    made(json!({"metadata": {"name": name, "labels": {
        LABEL.0: LABEL.1, "pod-security.kubernetes.io/enforce": "privileged",
    }}}))
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
