//! Objects whose content is read field by field by mesh-core: policies, Services and their slices.

use std::sync::Arc;

use kube::api::DynamicObject;
use mesh_core::clusters::ClusterPeerSpec;
use mesh_core::numbers::{ANNOTATION_POLICY, POLICY_AUDIT};
use mesh_core::policy::model::{
    ClusterNetworkPolicySpec, ClusterRule, ClusterSubject, LabelSelector, NamespaceFacts, NetworkPolicySpec,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::shown;
use crate::joined::Peer;
use crate::service_cidrs::ServiceCidr;

/// What could be read of an object.
pub type Decoded<T> = Result<Arc<T>, Unreadable<T>>;

/// Nothing could be read of an object: its former version stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable<T> {
    /// Field, value and what was wanted, as serde says it.
    pub reason: String,
    /// Stands in for it where there is no former version: something that is not more open than the object can be.
    pub instead: Option<Arc<T>>,
}

fn spec_of(object: &DynamicObject) -> Value {
    let mut spec = object.data.get("spec").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    without_nulls(&mut spec);
    spec
}

/// Reads a NetworkPolicy.
pub fn network_policy(object: &DynamicObject) -> Decoded<NetworkPolicySpec> {
    let spec = spec_of(object);
    read(&spec).map_err(|reason| Unreadable { reason, instead: Some(Arc::new(closed_network_policy(&spec))) })
}

/// Reads a ClusterNetworkPolicy.
pub fn cluster_policy(object: &DynamicObject) -> Decoded<ClusterNetworkPolicySpec> {
    let spec = spec_of(object);
    read(&spec).map_err(|reason| Unreadable { reason, instead: Some(Arc::new(closed_cluster_policy(&spec))) })
}

/// Reads a whole object, labels included.
pub fn whole<T: DeserializeOwned>(object: &DynamicObject) -> Decoded<T> {
    let mut value = object.data.clone();
    let labels = object.metadata.labels.clone().unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("metadata".to_owned(), serde_json::json!({ "labels": labels }));
    }
    without_nulls(&mut value);
    read(&value).map_err(|reason| Unreadable { reason, instead: None })
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<Arc<T>, String> {
    T::deserialize(value).map(Arc::new).map_err(|error| shown(&error.to_string()))
}

/// A field that is null is one that is not there.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Isolates whom the policy selects (all of its namespace, if that cannot be read either) and allows nothing.
fn closed_network_policy(spec: &Value) -> NetworkPolicySpec {
    let selector = spec.get("podSelector").and_then(|value| LabelSelector::deserialize(value).ok());
    let both = vec!["Ingress".to_owned(), "Egress".to_owned()];
    NetworkPolicySpec {
        pod_selector: selector.unwrap_or_default(),
        policy_types: Some(both),
        ..NetworkPolicySpec::default()
    }
}

/// Denies everything of whom the policy selects; what cannot be read of that is as for any malformed object.
fn closed_cluster_policy(spec: &Value) -> ClusterNetworkPolicySpec {
    let subject = spec.get("subject").and_then(|value| ClusterSubject::deserialize(value).ok());
    let tier = spec.get("tier").and_then(Value::as_str);
    // A rule without an action that we know denies everything of everybody.
    let deny = || vec![ClusterRule { name: "unreadable".to_owned(), ..ClusterRule::default() }];
    ClusterNetworkPolicySpec {
        tier: tier.unwrap_or_default().to_owned(),
        priority: spec.get("priority").and_then(Value::as_i64).unwrap_or(0),
        subject: subject.unwrap_or_default(),
        ingress: deny(),
        egress: deny(),
    }
}

/// Reads a ClusterPeer.
pub fn cluster_peer(object: &DynamicObject) -> Peer {
    let spec = read(&spec_of(object)).map(|spec| ClusterPeerSpec::clone(&spec));
    (super::created(&object.metadata), spec)
}

/// Reads a ServiceCIDR.
pub fn service_cidr(object: &DynamicObject) -> ServiceCidr {
    let spec = read::<k8s_openapi::api::networking::v1::ServiceCIDRSpec>(&spec_of(object))?;
    Ok(spec.cidrs.clone().unwrap_or_default())
}

/// Reads a Namespace's metadata.
pub fn namespace(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> NamespaceFacts {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(ANNOTATION_POLICY));
    NamespaceFacts {
        labels: meta.labels.clone().unwrap_or_default(),
        audit: annotation.is_some_and(|value| value == POLICY_AUDIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::service::model::ServiceFacts;
    use serde_json::json;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn absent_empty_and_null_are_told_apart_as_the_api_does() {
        let policy = |spec: Value| {
            let object = object(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "a", "name": "p"}, "spec": spec}));
            network_policy(&object)
        };
        let ingress = |spec| policy(spec).unwrap().ingress.clone().map(|rules| rules.len());
        assert_eq!(ingress(json!({"podSelector": {}})), None);
        assert_eq!(ingress(json!({"podSelector": {}, "ingress": []})), Some(0));
        assert_eq!(ingress(json!({"podSelector": {}, "ingress": null})), None);
        assert_eq!(ingress(json!({"podSelector": {}, "ingress": [{"from": null}]})), Some(1));
        let wrong =
            policy(json!({"podSelector": {"matchLabels": {"a": "b"}}, "ingress": "all"})).unwrap_err();
        assert!(wrong.reason.starts_with("invalid type: string \"all\""), "{wrong:?}");
        let instead = wrong.instead.unwrap();
        assert_eq!((instead.pod_selector.match_labels["a"].as_str(), &instead.ingress), ("b", &None));
        assert_eq!(instead.policy_types.as_ref().map(Vec::len), Some(2));
        let without = object(json!({"metadata": {"name": "p"}}));
        assert_eq!(*network_policy(&without).unwrap(), NetworkPolicySpec::default());
    }

    #[test]
    fn a_cluster_policy_that_cannot_be_read_denies_whom_it_selects() {
        let object =
            object(json!({"metadata": {"name": "p"}, "spec": {"tier": "Baseline", "priority": "high",
            "subject": {"namespaces": {"matchLabels": {"a": "b"}}}}}));
        let instead = cluster_policy(&object).unwrap_err().instead.unwrap();
        assert_eq!(instead.tier, "Baseline");
        assert_eq!(instead.subject.namespaces.as_ref().unwrap().match_labels["a"], "b");
        assert_eq!((instead.ingress.len(), instead.egress[0].action.as_str()), (1, ""));
    }

    #[test]
    fn a_service_comes_with_its_labels() {
        let service = object(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "a", "name": "s", "labels": {"x": "y"}, "managedFields": []},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "nodePort": null}]},
            "status": {"loadBalancer": {}}}));
        let facts = whole::<ServiceFacts>(&service).unwrap();
        assert_eq!(facts.metadata.labels["x"], "y");
        assert_eq!(facts.spec.ports[0].port, 80);
    }

    #[test]
    fn only_the_word_audit_audits() {
        let audit = |value: &str| {
            namespace(&serde_json::from_value(json!({"annotations": {"hawser.dev/policy": value}})).unwrap())
                .audit
        };
        assert_eq!(["audit", "Audit", "enforce", ""].map(audit), [true, false, false, false]);
    }
}
