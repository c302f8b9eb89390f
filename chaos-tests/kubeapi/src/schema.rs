//! What merges need to know of a type: which lists are maps by a key, which are sets, what is atomic.
//!
//! For built-in kinds the facts are the `patchMergeKey`, `listType` and `listMapKey` markers of `k8s.io/api`;
//! for custom resources the `x-kubernetes-list-type` family of the schema in the CRD.

use serde_json::Value;

/// How server-side apply sees a list (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// Scalars, each owned on its own.
    Set,
    /// Objects told apart by these fields.
    Map(Vec<String>),
}

/// How strategic merge sees a list (`patchStrategy`, `patchMergeKey`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strategic {
    /// Replaced as a whole.
    Replace,
    /// Scalars, merged as a set.
    MergePrimitive,
    /// Objects, merged by this field.
    MergeBy(&'static str),
}

/// The type at one place of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Schema<'a> {
    /// A type of `k8s.io/api`, by its Go name.
    Builtin(&'static str),
    /// An OpenAPI v3 schema out of a CRD.
    Open(&'a Value),
    /// Nothing is known: maps merge, lists are atomic.
    Unknown,
    /// One value, whatever its shape.
    Atomic,
}

/// One field of a built-in type.
struct Field {
    child: &'static str,
    list: ListKind,
    strategic: Strategic,
}

fn object(child: &'static str) -> Field {
    Field { child, list: ListKind::Atomic, strategic: Strategic::Replace }
}

fn map_list(child: &'static str, keys: &[&str], merge: &'static str) -> Field {
    let keys = keys.iter().map(|k| (*k).to_owned()).collect();
    Field { child, list: ListKind::Map(keys), strategic: Strategic::MergeBy(merge) }
}

fn set() -> Field {
    Field { child: "", list: ListKind::Set, strategic: Strategic::MergePrimitive }
}

/// The part of `k8s.io/api` that merges depend on. A type or field that is not listed merges as a map, or is
/// replaced if it is a list.
fn builtin(ty: &str, field: &str) -> Field {
    match (ty, field) {
        ("ObjectMeta", "ownerReferences") => map_list("OwnerReference", &["uid"], "uid"),
        ("ObjectMeta", "finalizers") => set(),
        (_, "metadata") => object("ObjectMeta"),
        (_, "selector") if ty != "ServiceSpec" => object("Atomic"),
        ("ServiceSpec" | "PodSpec", "selector" | "nodeSelector") => object("Atomic"),

        ("Node", "spec") => object("NodeSpec"),
        ("Node", "status") => object("NodeStatus"),
        ("NodeSpec", "podCIDRs") => set(),
        // `taints` have no merge key, whatever their shape suggests: they are replaced.
        ("NodeStatus", "addresses") => map_list("NodeAddress", &["type"], "type"),
        (_, "conditions") if ty.ends_with("Status") && ty != "NetworkPolicyStatus" => {
            map_list("Condition", &["type"], "type")
        }

        ("Pod" | "PodTemplateSpec", "spec") => object("PodSpec"),
        ("Pod", "status") => object("PodStatus"),
        ("PodSpec", "containers" | "initContainers" | "ephemeralContainers") => {
            map_list("Container", &["name"], "name")
        }
        ("PodSpec", "volumes") => map_list("Volume", &["name"], "name"),
        ("PodSpec", "imagePullSecrets") => map_list("LocalObjectReference", &["name"], "name"),
        ("PodSpec", "hostAliases") => map_list("HostAlias", &["ip"], "ip"),
        ("PodSpec", "schedulingGates") => map_list("PodSchedulingGate", &["name"], "name"),
        ("PodSpec", "resourceClaims") => map_list("PodResourceClaim", &["name"], "name"),
        ("PodSpec", "topologySpreadConstraints") => {
            map_list("TopologySpreadConstraint", &["topologyKey", "whenUnsatisfiable"], "topologyKey")
        }
        ("PodStatus", "podIPs") => map_list("PodIP", &["ip"], "ip"),
        ("PodStatus", "hostIPs") => {
            Field { child: "HostIP", list: ListKind::Atomic, strategic: Strategic::MergeBy("ip") }
        }
        ("Container", "ports") => map_list("ContainerPort", &["containerPort", "protocol"], "containerPort"),
        ("Container", "env") => map_list("EnvVar", &["name"], "name"),
        ("Container", "volumeMounts") => map_list("VolumeMount", &["mountPath"], "mountPath"),
        ("Container", "volumeDevices") => map_list("VolumeDevice", &["devicePath"], "devicePath"),

        ("Service", "spec") => object("ServiceSpec"),
        ("Service", "status") => object("ServiceStatus"),
        ("ServiceSpec", "ports") => map_list("ServicePort", &["port", "protocol"], "port"),
        ("ServiceAccount", "secrets") => map_list("ObjectReference", &["name"], "name"),

        ("Namespace", "spec") => object("NamespaceSpec"),
        ("Namespace", "status") => object("NamespaceStatus"),
        ("Deployment" | "DaemonSet", "spec") => object("WorkloadSpec"),
        ("Deployment" | "DaemonSet", "status") => object("WorkloadStatus"),
        ("WorkloadSpec", "template") => object("PodTemplateSpec"),
        ("CustomResourceDefinition", "status") => object("CustomResourceDefinitionStatus"),
        (_, "involvedObject" | "regarding" | "related" | "targetRef") => object("Atomic"),
        _ => object(""),
    }
}

impl<'a> Schema<'a> {
    /// The type of `field` inside an object of this type.
    pub(crate) fn field(self, field: &str) -> Schema<'a> {
        match self {
            Schema::Builtin(ty) => match builtin(ty, field).child {
                "" => Schema::Unknown,
                "Atomic" => Schema::Atomic,
                child => Schema::Builtin(child),
            },
            Schema::Open(schema) => {
                let known = schema.get("properties").and_then(|p| p.get(field));
                match known.or_else(|| schema.get("additionalProperties").filter(|a| a.is_object())) {
                    Some(child) if child["x-kubernetes-map-type"] == "atomic" => Schema::Atomic,
                    Some(child) => Schema::Open(child),
                    None => Schema::Unknown,
                }
            }
            Schema::Unknown => Schema::Unknown,
            Schema::Atomic => Schema::Atomic,
        }
    }

    /// As [`Self::field`], at the root of an object, whose `metadata` has one type for every kind.
    pub(crate) fn root_field(self, field: &str) -> Schema<'a> {
        if field == "metadata" { Schema::Builtin("ObjectMeta") } else { self.field(field) }
    }

    /// What server-side apply makes of the list in `field`, and the type of its items.
    pub(crate) fn list(self, field: &str) -> (ListKind, Schema<'a>) {
        match self {
            Schema::Builtin(ty) => (builtin(ty, field).list, self.field(field)),
            Schema::Open(schema) => {
                let Some(list) = schema.get("properties").and_then(|p| p.get(field)) else {
                    return (ListKind::Atomic, Schema::Unknown);
                };
                let items = list.get("items").map_or(Schema::Unknown, Schema::Open);
                let kind = match list["x-kubernetes-list-type"].as_str() {
                    Some("set") => ListKind::Set,
                    Some("map") => ListKind::Map(
                        list["x-kubernetes-list-map-keys"]
                            .as_array()
                            .into_iter()
                            .flatten()
                            .filter_map(|k| k.as_str().map(str::to_owned))
                            .collect(),
                    ),
                    Some(_) | None => ListKind::Atomic,
                };
                (kind, items)
            }
            Schema::Unknown | Schema::Atomic => (ListKind::Atomic, Schema::Unknown),
        }
    }

    /// What strategic merge makes of the list in `field`. Custom resources have no strategic merge.
    pub(crate) fn strategic(self, field: &str) -> Strategic {
        match self {
            Schema::Builtin(ty) => builtin(ty, field).strategic,
            Schema::Open(_) | Schema::Unknown | Schema::Atomic => Strategic::Replace,
        }
    }
}
