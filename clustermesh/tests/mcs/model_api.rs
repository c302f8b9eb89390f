//! A model of an API server: objects, versions, preconditions, cluster IPs. It refuses what the real one would, and panics
//! where an operation touches what is not ours.

use std::collections::BTreeMap;

use clustermesh::mcs::Kind;
use clustermesh::mcs::diff::{Act, Op};
use clustermesh::mcs::seen::{Seen, Stamp};
use kube::api::DynamicObject;
use mesh_core::mcs::MANAGER;
use mesh_core::policy::model::ObjectName;
use serde_json::{Value, json};

#[derive(Clone, Debug, Default)]
pub(crate) struct ModelApi {
    pub(crate) objects: BTreeMap<(Kind, ObjectName), Value>,
    version: u64,
    /// Writes that were done by operations.
    pub(crate) writes: usize,
}

pub(crate) fn is_ours(object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    labels["app.kubernetes.io/managed-by"] == MANAGER
        || labels["endpointslice.kubernetes.io/managed-by"] == MANAGER
}

pub(crate) fn read(kind: Kind, object: &Value) -> Option<Seen> {
    let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    Seen::read(kind, &object)
}

impl ModelApi {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Somebody makes or replaces an object; `status` stays.
    pub(crate) fn put(&mut self, kind: Kind, name: &ObjectName, mut object: Value, created: i64) {
        let key = (kind, name.clone());
        let version = self.next();
        let before = self.objects.get(&key);
        let uid = before.map_or_else(|| format!("u{version}").into(), |one| one["metadata"]["uid"].clone());
        let status = before.map(|one| one["status"].clone()).filter(|status| !status.is_null());
        let created = before.map_or_else(
            || format!("1970-01-01T00:00:{created:02}Z").into(),
            |one| one["metadata"]["creationTimestamp"].clone(),
        );
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.name().into();
        object["metadata"]["name"] = name.name.clone().into();
        if kind != Kind::Namespace {
            object["metadata"]["namespace"] = name.namespace.clone().into();
        }
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        object["metadata"]["creationTimestamp"] = created;
        object["metadata"]["generation"] = 1.into();
        if let Some(status) = status {
            object["status"] = status;
        }
        if kind == Kind::Service {
            allocate(&mut object, version);
        }
        self.objects.insert(key, object);
    }

    pub(crate) fn remove(&mut self, kind: Kind, name: &ObjectName) {
        self.next();
        self.objects.remove(&(kind, name.clone()));
    }

    fn checked(&self, op: &Op, stamp: &Stamp) -> Value {
        let present = self
            .objects
            .get(&(op.kind, op.object.clone()))
            .unwrap_or_else(|| panic!("{op:?}: no such object"));
        let metadata = &present["metadata"];
        assert_eq!(
            (&metadata["uid"], &metadata["resourceVersion"]),
            (&stamp.uid.clone().into(), &stamp.version.clone().into())
        );
        present.clone()
    }

    /// Does an operation.
    pub(crate) fn apply(&mut self, op: &Op) {
        self.writes += 1;
        let stamp = |body: &Value| Stamp {
            uid: body["metadata"]["uid"].as_str().expect("a precondition").to_owned(),
            version: body["metadata"]["resourceVersion"].as_str().expect("a precondition").to_owned(),
        };
        match &op.act {
            Act::Create(body) => {
                assert!(!self.objects.contains_key(&(op.kind, op.object.clone())), "{op:?}: it is there");
                assert!(is_ours(body), "made without our label: {body}");
                self.put(op.kind, &op.object, body.clone(), 9);
            }
            Act::Patch(body) => {
                let mut object = self.checked(op, &stamp(body));
                assert!(is_ours(&object), "a stranger's: {object}");
                json_patch::merge(&mut object, body);
                assert!(is_ours(&object), "no longer ours: {object}");
                self.put(op.kind, &op.object, object, 9);
            }
            Act::Status(body) => {
                let mut object = self.checked(op, &stamp(body));
                assert!(op.kind == Kind::Export || is_ours(&object), "a stranger's: {object}");
                assert_eq!(
                    body.as_object().expect("a map").len(),
                    2,
                    "status and precondition alone: {body}"
                );
                object["metadata"]["resourceVersion"] = self.next().to_string().into();
                json_patch::merge(&mut object["status"], &body["status"]);
                self.objects.insert((op.kind, op.object.clone()), object);
            }
            Act::Delete(stamp) => {
                let object = self.checked(op, stamp);
                assert!(is_ours(&object), "a stranger's: {object}");
                self.remove(op.kind, &op.object);
            }
        }
    }

    /// What is not ours, without exports' status.
    pub(crate) fn strangers(&self) -> BTreeMap<(Kind, ObjectName), Value> {
        let mut all = self.objects.clone();
        all.retain(|_, object| !is_ours(object));
        for object in all.values_mut() {
            object["status"] = Value::Null;
            object["metadata"]["resourceVersion"] = Value::Null;
        }
        all
    }
}

/// As an API server of a dual-stack cluster does.
fn allocate(service: &mut Value, version: u64) {
    let spec = &mut service["spec"];
    if spec["clusterIP"] == "None" || spec["type"] == "ExternalName" {
        return;
    }
    let mut families = spec["ipFamilies"].as_array().cloned().unwrap_or_else(|| vec![json!("IPv4")]);
    if spec["ipFamilyPolicy"] == "PreferDualStack" {
        let missing = [json!("IPv4"), json!("IPv6")].into_iter().filter(|one| !families.contains(one));
        families.extend(missing.collect::<Vec<_>>());
    }
    let present: Vec<String> = spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip.as_str().map(str::to_owned))
        .collect();
    let ip = |family: &Value| {
        let v6 = family == "IPv6";
        let kept = present.iter().find(|ip| ip.contains(':') == v6).cloned();
        kept.unwrap_or_else(|| {
            if v6 {
                format!("fd00:96::{version:x}")
            } else {
                format!("10.96.{}.{}", version / 250, version % 250 + 2)
            }
        })
    };
    let ips: Vec<String> = families.iter().map(ip).collect();
    spec["clusterIP"] = json!(ips.first());
    spec["clusterIPs"] = json!(ips);
    spec["ipFamilies"] = json!(families);
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        port["targetPort"] = port["port"].clone();
    }
}
