//! The resources that are served: a static table, and what CRDs add.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::schema::Schema;

/// One served version of a resource.
#[derive(Debug, Clone, Default)]
pub struct Version {
    /// Such as `v1`.
    pub name: String,
    /// Has a status subresource.
    pub status: bool,
    /// OpenAPI v3 schema of a custom resource.
    pub(crate) schema: Option<Value>,
    /// `additionalPrinterColumns` of a custom resource.
    pub(crate) columns: Vec<Value>,
    /// JSON paths of `selectableFields` of a custom resource.
    pub(crate) selectable: Vec<String>,
}

/// A resource of the API.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Group; empty for core.
    pub group: String,
    /// Plural, as in paths.
    pub plural: String,
    /// Singular.
    pub singular: String,
    /// Kind of its objects.
    pub kind: String,
    /// Short names that kubectl takes.
    pub short_names: Vec<String>,
    /// Such as `all`.
    pub categories: Vec<String>,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// Served versions, preferred first.
    pub versions: Vec<Version>,
    /// Version in which objects are stored.
    pub(crate) storage_version: String,
    /// Defined by a CRD.
    pub(crate) custom: bool,
}

/// `group/version`, or the version alone for core.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

impl Resource {
    /// `plural.group`, or the plural alone for core: the key of the store.
    #[must_use]
    pub fn key(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `group/version` of what is stored.
    #[must_use]
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.storage_version)
    }

    /// The served version of this name.
    #[must_use]
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// Has a status subresource in its stored version.
    pub(crate) fn has_status(&self) -> bool {
        self.version(&self.storage_version).or(self.versions.first()).is_some_and(|v| v.status)
    }

    /// How its objects merge.
    pub(crate) fn schema(&self) -> Schema<'_> {
        if self.custom {
            let version = self.version(&self.storage_version).or(self.versions.first());
            return version.and_then(|v| v.schema.as_ref()).map_or(Schema::Unknown, Schema::Open);
        }
        BUILTIN.iter().find(|b| b.kind == self.kind).map_or(Schema::Unknown, |b| Schema::Builtin(b.kind))
    }

    /// Reads the field `name` of a fieldSelector, or `None` if this resource cannot be selected by it.
    pub(crate) fn selectable(&self, name: &str) -> Option<Vec<String>> {
        let known = match (self.key().as_str(), name) {
            (_, "metadata.name") | (_, "metadata.namespace") => true,
            (
                "pods",
                "spec.nodeName"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.serviceAccountName"
                | "spec.hostNetwork"
                | "status.phase"
                | "status.podIP"
                | "status.nominatedNodeName",
            ) => true,
            ("nodes", "spec.unschedulable") | ("namespaces", "status.phase") | ("secrets", "type") => true,
            ("services", "spec.clusterIP" | "spec.type") => true,
            ("events", "reason" | "type" | "reportingComponent" | "source") => true,
            ("events.events.k8s.io", "reason" | "type" | "reportingController") => true,
            ("events", field) => is_reference_field(field, "involvedObject."),
            ("events.events.k8s.io", field) => is_reference_field(field, "regarding."),
            _ => self.versions.iter().any(|v| v.selectable.iter().any(|s| s.trim_start_matches('.') == name)),
        };
        let path = if name == "source" && self.kind == "Event" { "source.component" } else { name };
        known.then(|| path.split('.').map(str::to_owned).collect())
    }
}

fn is_reference_field(field: &str, prefix: &str) -> bool {
    field.strip_prefix(prefix).is_some_and(|f| {
        ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"].contains(&f)
    })
}

struct Builtin {
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    status: bool,
    all: bool,
}

const fn row(
    gv: (&'static str, &'static str),
    names: (&'static str, &'static str),
    short: &'static [&'static str],
    flags: (bool, bool, bool),
) -> Builtin {
    Builtin {
        group: gv.0,
        version: gv.1,
        plural: names.0,
        kind: names.1,
        short,
        namespaced: flags.0,
        status: flags.1,
        all: flags.2,
    }
}

/// Flags: namespaced, status subresource, category `all`.
const BUILTIN: &[Builtin] = &[
    row(("", "v1"), ("nodes", "Node"), &["no"], (false, true, false)),
    row(("", "v1"), ("pods", "Pod"), &["po"], (true, true, true)),
    row(("", "v1"), ("namespaces", "Namespace"), &["ns"], (false, true, false)),
    row(("", "v1"), ("services", "Service"), &["svc"], (true, true, true)),
    row(("", "v1"), ("endpoints", "Endpoints"), &["ep"], (true, false, false)),
    row(("", "v1"), ("configmaps", "ConfigMap"), &["cm"], (true, false, false)),
    row(("", "v1"), ("secrets", "Secret"), &[], (true, false, false)),
    row(("", "v1"), ("serviceaccounts", "ServiceAccount"), &["sa"], (true, false, false)),
    row(("", "v1"), ("events", "Event"), &["ev"], (true, false, false)),
    row(("apps", "v1"), ("daemonsets", "DaemonSet"), &["ds"], (true, true, true)),
    row(("apps", "v1"), ("deployments", "Deployment"), &["deploy"], (true, true, true)),
    row(("coordination.k8s.io", "v1"), ("leases", "Lease"), &[], (true, false, false)),
    row(("discovery.k8s.io", "v1"), ("endpointslices", "EndpointSlice"), &[], (true, false, false)),
    row(("events.k8s.io", "v1"), ("events", "Event"), &["ev"], (true, false, false)),
    row(("networking.k8s.io", "v1"), ("networkpolicies", "NetworkPolicy"), &["netpol"], (true, false, false)),
    row(("networking.k8s.io", "v1"), ("servicecidrs", "ServiceCIDR"), &[], (false, true, false)),
    row(("rbac.authorization.k8s.io", "v1"), ("clusterroles", "ClusterRole"), &[], (false, false, false)),
    row(
        ("rbac.authorization.k8s.io", "v1"),
        ("clusterrolebindings", "ClusterRoleBinding"),
        &[],
        (false, false, false),
    ),
    row(("rbac.authorization.k8s.io", "v1"), ("roles", "Role"), &[], (true, false, false)),
    row(("rbac.authorization.k8s.io", "v1"), ("rolebindings", "RoleBinding"), &[], (true, false, false)),
    row(
        ("admissionregistration.k8s.io", "v1"),
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
        &[],
        (false, true, false),
    ),
    row(
        ("admissionregistration.k8s.io", "v1"),
        ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
        &[],
        (false, false, false),
    ),
    row(
        ("apiextensions.k8s.io", "v1"),
        ("customresourcedefinitions", "CustomResourceDefinition"),
        &["crd", "crds"],
        (false, true, false),
    ),
];

/// The definition of ClusterNetworkPolicy, as if somebody had installed it. Its schema is open: the lab also wants to see
/// objects that a newer or older definition would let pass.
fn cluster_network_policy() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let condition = json!({"type": "object", "required": ["type", "status"],
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"type": {"type": "string"}, "status": {"type": "string"}}});
    let status = json!({"type": "object", "properties": {"conditions": {"type": "array", "items": condition,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}}});
    json!({"metadata": {"name": "clusternetworkpolicies.policy.networking.k8s.io"},
        "spec": {"group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {"plural": "clusternetworkpolicies", "kind": "ClusterNetworkPolicy", "shortNames": ["cnp"]},
            "versions": [{"name": "v1alpha2", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Tier", "type": "string", "jsonPath": ".spec.tier"},
                    {"name": "Priority", "type": "integer", "jsonPath": ".spec.priority"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"],
                    "description": "Policy of the cluster's administrator.",
                    "properties": {"spec": open, "status": status}}}}]}})
}

/// All resources served now.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    resources: BTreeMap<String, Arc<Resource>>,
}

impl Registry {
    pub(crate) fn builtin() -> Self {
        let resources = BUILTIN.iter().map(|b| {
            let owned = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect();
            let resource = Resource {
                group: b.group.into(),
                plural: b.plural.into(),
                singular: b.kind.to_lowercase(),
                kind: b.kind.into(),
                short_names: owned(b.short),
                categories: if b.all { vec!["all".into()] } else { Vec::new() },
                namespaced: b.namespaced,
                versions: vec![Version { name: b.version.into(), status: b.status, ..Version::default() }],
                storage_version: b.version.into(),
                custom: false,
            };
            (resource.key(), Arc::new(resource))
        });
        let mut registry = Self { resources: resources.collect() };
        registry.insert(custom(&cluster_network_policy()).expect("the definition above is well formed"));
        registry
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    pub(crate) fn insert(&mut self, resource: Resource) {
        self.resources.insert(resource.key(), Arc::new(resource));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.resources.remove(key);
    }

    /// By path.
    pub(crate) fn at(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let key = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        self.resources.get(&key).filter(|r| r.version(version).is_some())
    }

    /// By what `kubectl` would take: `nodes`, `leases.coordination.k8s.io`, or a plural that one group has.
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<Resource>, ApiError> {
        self.resources
            .get(name)
            .or_else(|| self.resources.values().find(|r| r.plural == name))
            .ok_or_else(|| ApiError::NoSuchResource { path: name.to_owned() })
    }

    /// By the type that an object claims.
    pub(crate) fn of(&self, object: &Value) -> Result<&Arc<Resource>, ApiError> {
        let kind = object["kind"].as_str().unwrap_or_default();
        let gv = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = gv.split_once('/').unwrap_or(("", gv));
        self.resources
            .values()
            .find(|r| r.kind == kind && r.group == group && r.version(version).is_some())
            .ok_or_else(|| ApiError::NoSuchResource { path: format!("{gv} {kind}") })
    }
}

/// Reads a CRD. Errors name the field.
pub(crate) fn custom(crd: &Value) -> Result<Resource, ApiError> {
    let name = crd["metadata"]["name"].as_str().unwrap_or_default();
    let invalid =
        |field: &str, message: &str| ApiError::invalid("CustomResourceDefinition", name, field, message);
    let text = |v: &Value, field: &str| match v.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        Some(_) | None => Err(invalid(field, "Required value")),
    };
    let spec = &crd["spec"];
    let names = &spec["names"];
    let group = text(&spec["group"], "spec.group")?;
    let plural = text(&names["plural"], "spec.names.plural")?;
    let kind = text(&names["kind"], "spec.names.kind")?;
    if name != format!("{plural}.{group}") {
        return Err(invalid("metadata.name", "must be spec.names.plural+\".\"+spec.group"));
    }
    let namespaced = match spec["scope"].as_str() {
        Some("Namespaced") => true,
        Some("Cluster") => false,
        Some(_) | None => return Err(invalid("spec.scope", "must be Cluster or Namespaced")),
    };
    let strings = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
    };
    let mut storage = None;
    let mut versions = Vec::new();
    for v in spec["versions"].as_array().into_iter().flatten() {
        let version = text(&v["name"], "spec.versions[].name")?;
        let schema = v["schema"]["openAPIV3Schema"].clone();
        if !schema.is_object() {
            return Err(invalid("spec.versions[].schema.openAPIV3Schema", "schemas are required"));
        }
        if v["storage"] == true && storage.replace(version.clone()).is_some() {
            return Err(invalid("spec.versions", "must have exactly one version marked as storage version"));
        }
        if v["served"] == true {
            versions.push(Version {
                name: version,
                status: v["subresources"]["status"].is_object(),
                schema: Some(schema),
                columns: v["additionalPrinterColumns"].as_array().cloned().unwrap_or_default(),
                selectable: v["selectableFields"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|f| f["jsonPath"].as_str().map(str::to_owned))
                    .collect(),
            });
        }
    }
    let storage_version = storage
        .ok_or_else(|| invalid("spec.versions", "must have exactly one version marked as storage version"))?;
    versions.sort_by_key(|v| std::cmp::Reverse(priority(&v.name)));
    let singular = names["singular"].as_str().filter(|s| !s.is_empty());
    Ok(Resource {
        group,
        plural,
        singular: singular.map_or_else(|| kind.to_lowercase(), str::to_owned),
        kind,
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        namespaced,
        versions,
        storage_version,
        custom: true,
    })
}

/// Order of versions: GA before beta before alpha, then the higher number.
fn priority(version: &str) -> (u8, u32, u32) {
    let digits =
        |s: &str| s.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    let rest = version.trim_start_matches('v');
    let major = digits(rest);
    let minor = |word: &str| rest.split_once(word).map(|(_, n)| digits(n));
    match (minor("alpha"), minor("beta")) {
        (Some(n), _) => (0, major, n),
        (_, Some(n)) => (1, major, n),
        (None, None) => (2, major, 0),
    }
}
