//! What fits together, within an object and between those of one installation. An API server refuses the one; the other it takes,
//! and nothing runs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::rules::Rule;

/// Kinds that are in no namespace.
const OF_THE_CLUSTER: [&str; 6] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(path).and_then(Value::as_array).into_iter().flatten()
}

fn map(value: &Value, path: &str) -> Map<String, Value> {
    value.pointer(path).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// An object with pods: its template's specification.
fn pod(object: &Value) -> Option<&Value> {
    object
        .pointer("/spec/template/spec")
        .filter(|_| ["DaemonSet", "Deployment"].contains(&text(object, "/kind")))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/initContainers").chain(list(pod, "/containers"))
}

/// What is wrong with an object by itself.
pub(crate) fn faults(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let (kind, name) = (text(object, "/kind"), &object["metadata"]["name"]);
    let like = match kind {
        "Service" => Rule::Like("[a-z]([-a-z0-9]*[a-z0-9])?", 63),
        "Namespace" => Rule::Like("[a-z0-9]([-a-z0-9]*[a-z0-9])?", 63),
        "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding" => Rule::Like("[^/%]+", 253),
        _ => Rule::Like(SUBDOMAIN, 253),
    };
    out.extend(like.judge(name).err().map(|why| format!("metadata.name: {why}")));
    if !name.is_string() {
        out.push("metadata.name is missing".to_owned());
    }
    let inside = object["metadata"].get("namespace").is_some();
    if inside == OF_THE_CLUSTER.contains(&kind) {
        out.push(format!("metadata.namespace: {kind} {}", if inside { "is in none" } else { "is in one" }));
    }
    match kind {
        "Service" => service(object, &mut out),
        "CustomResourceDefinition" => definition(object, &mut out),
        "ClusterRole" | "Role" => {
            for rule in list(object, "/rules") {
                if rule.get("resources").is_some() && list(rule, "/apiGroups").next().is_none() {
                    out.push(format!("rules: resources of no API group: {rule}"));
                }
                if kind == "Role" && rule.get("nonResourceURLs").is_some() {
                    out.push(format!("rules: a Role has no nonResourceURLs: {rule}"));
                }
            }
        }
        _ => {}
    }
    if let Some(pod) = pod(object) {
        workload(object, &mut out);
        inside_pod(pod, &mut out);
    }
    out
}

fn service(object: &Value, out: &mut Vec<String>) {
    let ports: Vec<&Value> = list(object, "/spec/ports").collect();
    let names: BTreeSet<&str> = ports.iter().map(|port| text(port, "/name")).collect();
    if names.len() < ports.len() || ports.len() > 1 && names.contains("") {
        out.push("spec.ports: each has a name of its own".to_owned());
    }
    let cluster_only = matches!(text(object, "/spec/type"), "" | "ClusterIP");
    if cluster_only && ports.iter().any(|port| port.get("nodePort").is_some()) {
        out.push("spec.ports: a nodePort, though the type is ClusterIP".to_owned());
    }
}

fn definition(object: &Value, out: &mut Vec<String>) {
    let name = format!("{}.{}", text(object, "/spec/names/plural"), text(object, "/spec/group"));
    if object["metadata"]["name"] != name.as_str() {
        out.push(format!("metadata.name is not {name}"));
    }
    let stored = list(object, "/spec/versions").filter(|version| version["storage"] == true).count();
    if stored != 1 {
        out.push(format!("spec.versions: {stored} are stored, instead of one"));
    }
    for version in list(object, "/spec/versions") {
        if text(version, "/schema/openAPIV3Schema/type") != "object" {
            out.push(format!("spec.versions: {} has no schema of an object", version["name"]));
        }
    }
}

/// The object around the pods.
fn workload(object: &Value, out: &mut Vec<String>) {
    let labels = map(object, "/spec/template/metadata/labels");
    let wanted = map(object, "/spec/selector/matchLabels");
    if wanted.is_empty() || wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
        out.push("spec.selector does not match the pods of its own template".to_owned());
    }
    // And what Kubernetes takes where nothing is said.
    let (field, unavailable, surge) = match text(object, "/kind") {
        "DaemonSet" => ("updateStrategy", 1, 0),
        _ => ("strategy", 25, 25),
    };
    let rolling = &object["spec"][field]["rollingUpdate"];
    let zero = |name: &str, unsaid: i64| {
        let value = &rolling[name];
        if value.is_null() { unsaid == 0 } else { value == 0 || value == "0%" }
    };
    if rolling.is_object() && zero("maxSurge", surge) && zero("maxUnavailable", unavailable) {
        out.push(format!(
            "spec.{field}.rollingUpdate: neither maxSurge nor maxUnavailable lets anything go on"
        ));
    }
    let pod = &object["spec"]["template"]["spec"];
    let beside = field == "updateStrategy" && pod["hostNetwork"] == true && !zero("maxSurge", surge);
    if beside && containers(pod).any(|container| container.get("ports").is_some()) {
        out.push("spec.updateStrategy: two pods of one node cannot have one port".to_owned());
    }
}

fn inside_pod(pod: &Value, out: &mut Vec<String>) {
    let volumes: BTreeSet<&str> = list(pod, "/volumes").map(|volume| text(volume, "/name")).collect();
    let (mut mounted, mut names, mut ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for container in containers(pod) {
        let name = text(container, "/name");
        if !names.insert(name) {
            out.push(format!("two containers are called {name}"));
        }
        let mounts = list(container, "/volumeMounts").map(|mount| text(mount, "/name"));
        mounted.extend(mounts);
        let image = text(container, "/image");
        if !image.contains(':') || image.ends_with(":latest") {
            out.push(format!("{name}: {image} is no certain image"));
        }
        for port in list(container, "/ports").filter_map(|port| port["name"].as_str()) {
            if !ports.insert(port) {
                out.push(format!("{name}: two ports are called {port}"));
            }
        }
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            let port = container[probe]["httpGet"]["port"].as_str();
            if let Some(port) =
                port.filter(|port| !list(container, "/ports").any(|named| named["name"] == *port))
            {
                out.push(format!("{name}: {probe} asks at a port {port} that is not there"));
            }
            if probe != "readinessProbe"
                && container[probe]["successThreshold"].as_i64().is_some_and(|n| n != 1)
            {
                out.push(format!("{name}: successThreshold of {probe} has to be 1"));
            }
        }
        for (resource, wanted) in map(container, "/resources/requests") {
            let most = amount(&container["resources"]["limits"][&resource]);
            if most.zip(amount(&wanted)).is_some_and(|(most, wanted)| wanted > most) {
                out.push(format!("{name}: it wants {wanted} of {resource}, more than it may have"));
            }
        }
        let context = |field: &str| {
            container["securityContext"].get(field).or_else(|| pod["securityContext"].get(field)).cloned()
        };
        if context("runAsNonRoot") == Some(true.into()) && context("runAsUser") == Some(0.into()) {
            out.push(format!("{name}: runAsNonRoot, as user 0"));
        }
    }
    for volume in volumes.symmetric_difference(&mounted) {
        out.push(format!("the volume {volume} is not there, or nobody mounts it"));
    }
}

/// A quantity, of what containers ask for here.
fn amount(value: &Value) -> Option<f64> {
    const UNITS: [(&str, f64); 5] =
        [("m", 1e-3), ("Ki", 1024.0), ("Mi", 1_048_576.0), ("Gi", 1_073_741_824.0), ("", 1.0)];
    let text = value.as_str()?;
    UNITS.iter().find_map(|(unit, times)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * times))
}

/// What is missing among the objects of one installation.
pub(crate) fn missing(objects: &[Value]) -> Vec<String> {
    let mut there: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for object in objects {
        there.entry(text(object, "/kind")).or_default().insert(text(object, "/metadata/name"));
    }
    let mut out = Vec::new();
    let mut want = |by: &Value, kind: &str, name: &str| {
        if !there.get(kind).is_some_and(|names| names.contains(name)) {
            let (of, who) = (text(by, "/kind"), text(by, "/metadata/name"));
            out.push(format!("{of} {who}: there is no {kind} {name}"));
        }
    };
    for object in objects {
        match text(object, "/kind") {
            "RoleBinding" | "ClusterRoleBinding" => {
                want(object, text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
                for subject in list(object, "/subjects").filter(|subject| subject["kind"] == "ServiceAccount")
                {
                    want(object, "ServiceAccount", text(subject, "/name"));
                }
            }
            "ValidatingAdmissionPolicyBinding" => {
                want(object, "ValidatingAdmissionPolicy", text(object, "/spec/policyName"));
            }
            _ => {}
        }
        let Some(pod) = pod(object) else { continue };
        // Without one it is `default`, which every namespace has.
        if let Some(account) = pod["serviceAccountName"].as_str() {
            want(object, "ServiceAccount", account);
        }
        for volume in list(pod, "/volumes") {
            let maps = list(volume, "/projected/sources").chain([volume]).map(|source| &source["configMap"]);
            // Every namespace has that one.
            let own = |map: &&Value| map["optional"] != true && map["name"] != "kube-root-ca.crt";
            for map in maps.filter(|map| map.is_object()).filter(own) {
                want(object, "ConfigMap", text(map, "/name"));
            }
        }
    }
    for service in objects.iter().filter(|object| object["kind"] == "Service") {
        let mut selector = map(service, "/spec/selector");
        if selector.is_empty() {
            // Its slices are written by the program that it is named for.
            selector = map(service, "/metadata/labels");
            selector.retain(|key, _| key.as_str() == "app.kubernetes.io/name");
        }
        let selected = objects.iter().find(|object| {
            let labels = map(object, "/spec/template/metadata/labels");
            pod(object).is_some() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        let name = text(service, "/metadata/name");
        let Some(pod) = selected.and_then(pod) else {
            out.push(format!("Service {name}: it selects no pods"));
            continue;
        };
        let ports: BTreeSet<(String, &str)> = containers(pod)
            .flat_map(|container| list(container, "/ports"))
            .flat_map(|port| {
                let number = port["containerPort"].as_u64().unwrap_or_default().to_string();
                [text(port, "/name").to_owned(), number].map(|one| (one, text(port, "/protocol")))
            })
            .collect();
        for port in list(service, "/spec/ports") {
            let target =
                port["targetPort"].as_str().map_or_else(|| port["targetPort"].to_string(), str::to_owned);
            let target = (target, text(port, "/protocol"));
            if !ports.contains(&target) {
                out.push(format!("Service {name}: its pods have no port {} {}", target.0, target.1));
            }
        }
    }
    out
}
