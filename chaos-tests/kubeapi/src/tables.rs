//! `meta.k8s.io/v1` tables, which `kubectl get` prints.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::store::partial;

/// What a row carries besides its cells (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Metadata,
    Object,
    Nothing,
}

struct Column {
    name: String,
    kind: &'static str,
    /// 0 is always printed, 1 with `-o wide`.
    priority: i64,
    cell: Box<dyn Fn(&Value) -> Value>,
}

fn column(name: &str, priority: i64, cell: impl Fn(&Value) -> Value + 'static) -> Column {
    let kind = if priority < 0 { "integer" } else { "string" };
    Column { name: name.to_owned(), kind, priority: priority.max(0), cell: Box::new(cell) }
}

fn text(name: &str, priority: i64, pointer: &'static str, absent: &'static str) -> Column {
    column(name, priority, move |o| match o.pointer(pointer) {
        None | Some(Value::Null) => json!(absent),
        Some(value) => value.clone(),
    })
}

/// Builds the table of `objects`.
pub(crate) fn table<'v>(
    resource: &Resource,
    version: &str,
    objects: impl Iterator<Item = &'v Value>,
    metadata: &Value,
    include: Include,
) -> Value {
    let columns = columns(resource, version);
    let rows: Vec<Value> = objects
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|c| (c.cell)(object)).collect();
            let mut row = json!({"cells": cells});
            match include {
                Include::Metadata => row["object"] = partial(object),
                Include::Object => row["object"] = object.clone(),
                Include::Nothing => {}
            }
            row
        })
        .collect();
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| {
            let format = if c.name == "Name" { "name" } else { "" };
            json!({"name": c.name, "type": c.kind, "format": format, "description": "", "priority": c.priority})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows})
}

fn age(o: &Value) -> Value {
    json!(since(o["metadata"]["creationTimestamp"].as_str()))
}

/// `5m`, `3h12m`, `4d`: as kubectl prints durations.
fn since(time: Option<&str>) -> String {
    let Some(then) = time.and_then(|t| t.parse::<jiff::Timestamp>().ok()) else { return "<unknown>".into() };
    human(jiff::Timestamp::now().duration_since(then).as_secs().max(0))
}

/// `duration.HumanDuration` of apimachinery.
fn human(seconds: i64) -> String {
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |a: i64, au: &str, b: i64, bu: &str| {
        if b == 0 { format!("{a}{au}") } else { format!("{a}{au}{b}{bu}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(m, "m", seconds % 60, "s"),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => two(h, "h", m % 60, "m"),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => two(d, "d", h % 24, "h"),
        _ if d < 730 => format!("{d}d"),
        _ => two(d / 365, "y", d % 365, "d"),
    }
}

fn name() -> Column {
    text("Name", 0, "/metadata/name", "")
}

fn count(value: &Value) -> usize {
    value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len)).unwrap_or(0)
}

fn join<'v>(items: impl Iterator<Item = &'v str>, absent: &str) -> Value {
    let items: Vec<&str> = items.collect();
    if items.is_empty() { json!(absent) } else { json!(items.join(",")) }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn columns(resource: &Resource, version: &str) -> Vec<Column> {
    if resource.custom {
        return custom(resource, version);
    }
    let age = || column("Age", 0, age);
    match resource.kind.as_str() {
        "Node" => node_columns(),
        "Pod" => pod_columns(),
        "Namespace" => vec![name(), text("Status", 0, "/status/phase", ""), age()],
        "Service" => vec![
            name(),
            text("Type", 0, "/spec/type", "ClusterIP"),
            text("Cluster-IP", 0, "/spec/clusterIP", "<none>"),
            column("External-IP", 0, |o| {
                let external = items(&o["spec"]["externalIPs"]).filter_map(Value::as_str);
                let balancer =
                    items(&o["status"]["loadBalancer"]["ingress"]).filter_map(|i| i["ip"].as_str());
                join(external.chain(balancer), "<none>")
            }),
            column("Port(s)", 0, |o| {
                let ports: Vec<String> = items(&o["spec"]["ports"])
                    .map(|p| {
                        let protocol = p["protocol"].as_str().unwrap_or("TCP");
                        match p["nodePort"].as_u64() {
                            Some(node) => format!("{}:{node}/{protocol}", p["port"]),
                            None => format!("{}/{protocol}", p["port"]),
                        }
                    })
                    .collect();
                join(ports.iter().map(String::as_str), "<none>")
            }),
            age(),
            column("Selector", 1, |o| labels(&o["spec"]["selector"])),
        ],
        "ConfigMap" => {
            vec![name(), column("Data", -1, |o| json!(count(&o["data"]) + count(&o["binaryData"]))), age()]
        }
        "Secret" => {
            vec![
                name(),
                text("Type", 0, "/type", ""),
                column("Data", -1, |o| json!(count(&o["data"]))),
                age(),
            ]
        }
        "ServiceAccount" => vec![name(), column("Secrets", -1, |o| json!(count(&o["secrets"]))), age()],
        "Lease" => vec![name(), text("Holder", 0, "/spec/holderIdentity", ""), age()],
        "NetworkPolicy" => {
            vec![
                name(),
                column("Pod-Selector", 0, |o| labels(&o["spec"]["podSelector"]["matchLabels"])),
                age(),
            ]
        }
        "ServiceCIDR" => vec![
            name(),
            column("CIDRs", 0, |o| join(items(&o["spec"]["cidrs"]).filter_map(Value::as_str), "<none>")),
            age(),
        ],
        "EndpointSlice" => vec![
            name(),
            text("AddressType", 0, "/addressType", ""),
            column("Ports", 0, |o| {
                let ports: Vec<String> = items(&o["ports"]).map(|p| p["port"].to_string()).collect();
                join(ports.iter().map(String::as_str), "<unset>")
            }),
            column("Endpoints", 0, |o| {
                let addresses = items(&o["endpoints"]).flat_map(|e| items(&e["addresses"]));
                join(addresses.filter_map(Value::as_str), "<unset>")
            }),
            age(),
        ],
        "Event" => {
            let core = resource.group.is_empty();
            let object = if core { "involvedObject" } else { "regarding" };
            let message = if core { "/message" } else { "/note" };
            let last = if core { "lastTimestamp" } else { "deprecatedLastTimestamp" };
            vec![
                column("Last Seen", 0, move |o| {
                    json!(since(o[last].as_str().or_else(|| o["metadata"]["creationTimestamp"].as_str())))
                }),
                text("Type", 0, "/type", ""),
                text("Reason", 0, "/reason", ""),
                column("Object", 0, move |o| {
                    let kind = o[object]["kind"].as_str().unwrap_or_default().to_lowercase();
                    json!(format!("{kind}/{}", o[object]["name"].as_str().unwrap_or_default()))
                }),
                text("Message", 0, message, ""),
                text("Name", 1, "/metadata/name", ""),
            ]
        }
        "CustomResourceDefinition" => vec![name(), text("Created At", 0, "/metadata/creationTimestamp", "")],
        "DaemonSet" => vec![
            name(),
            number("Desired", "/status/desiredNumberScheduled"),
            number("Current", "/status/currentNumberScheduled"),
            number("Ready", "/status/numberReady"),
            age(),
        ],
        "Deployment" => vec![
            name(),
            column("Ready", 0, |o| {
                let ready = o["status"]["readyReplicas"].as_u64().unwrap_or(0);
                json!(format!("{ready}/{}", o["spec"]["replicas"].as_u64().unwrap_or(1)))
            }),
            number("Up-to-date", "/status/updatedReplicas"),
            number("Available", "/status/availableReplicas"),
            age(),
        ],
        _ => vec![name(), age()],
    }
}

fn number(name: &str, pointer: &'static str) -> Column {
    column(name, -1, move |o| o.pointer(pointer).cloned().unwrap_or_else(|| json!(0)))
}

fn labels(map: &Value) -> Value {
    let pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    join(pairs.iter().map(String::as_str), "<none>")
}

fn node_columns() -> Vec<Column> {
    let address = |kind: &'static str| {
        move |o: &Value| {
            let found = items(&o["status"]["addresses"]).find(|a| a["type"] == kind);
            found.map_or_else(|| json!("<none>"), |a| a["address"].clone())
        }
    };
    vec![
        name(),
        column("Status", 0, |o| {
            let ready = items(&o["status"]["conditions"]).find(|c| c["type"] == "Ready");
            let mut status = match ready.and_then(|c| c["status"].as_str()) {
                Some("True") => "Ready".to_owned(),
                Some(_) => "NotReady".to_owned(),
                None => "Unknown".to_owned(),
            };
            if o["spec"]["unschedulable"] == true {
                status.push_str(",SchedulingDisabled");
            }
            json!(status)
        }),
        column("Roles", 0, |o| {
            let labels = o["metadata"]["labels"].as_object();
            let roles = labels.into_iter().flatten();
            join(roles.filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/")), "<none>")
        }),
        column("Age", 0, age),
        text("Version", 0, "/status/nodeInfo/kubeletVersion", ""),
        column("Internal-IP", 1, address("InternalIP")),
        column("External-IP", 1, address("ExternalIP")),
        text("OS-Image", 1, "/status/nodeInfo/osImage", "<unknown>"),
        text("Kernel-Version", 1, "/status/nodeInfo/kernelVersion", "<unknown>"),
        text("Container-Runtime", 1, "/status/nodeInfo/containerRuntimeVersion", "<unknown>"),
    ]
}

fn pod_columns() -> Vec<Column> {
    let statuses = |o: &Value| o["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    vec![
        name(),
        column("Ready", 0, move |o| {
            let ready = statuses(o).iter().filter(|s| s["ready"] == true).count();
            json!(format!("{ready}/{}", count(&o["spec"]["containers"])))
        }),
        column("Status", 0, |o| {
            if !o["metadata"]["deletionTimestamp"].is_null() {
                return json!("Terminating");
            }
            o["status"]["reason"].as_str().or(o["status"]["phase"].as_str()).map_or(json!(""), |s| json!(s))
        }),
        column("Restarts", 0, move |o| {
            let restarts: u64 = statuses(o).iter().filter_map(|s| s["restartCount"].as_u64()).sum();
            json!(restarts.to_string())
        }),
        column("Age", 0, age),
        text("IP", 1, "/status/podIP", "<none>"),
        text("Node", 1, "/spec/nodeName", "<none>"),
        text("Nominated Node", 1, "/status/nominatedNodeName", "<none>"),
        column("Readiness Gates", 1, |_| json!("<none>")),
    ]
}

/// Columns of a custom resource: name, `additionalPrinterColumns`, or age.
fn custom(resource: &Resource, version: &str) -> Vec<Column> {
    let defined = resource.version(version).map(|v| v.columns.clone()).unwrap_or_default();
    let mut out = vec![name()];
    if defined.is_empty() {
        out.push(column("Age", 0, age));
    }
    for definition in defined {
        let path = definition["jsonPath"].as_str().unwrap_or_default().to_owned();
        let is_date = definition["type"] == "date";
        let priority = definition["priority"].as_i64().unwrap_or(0).max(0);
        let mut one = column(definition["name"].as_str().unwrap_or_default(), priority, move |o| {
            let found = json_path(o, &path);
            if is_date {
                json!(since(found.and_then(Value::as_str)))
            } else {
                found.cloned().unwrap_or(json!(""))
            }
        });
        one.kind = match definition["type"].as_str() {
            Some("integer") => "integer",
            Some("number") => "number",
            Some("boolean") => "boolean",
            Some("date") => "date",
            Some(_) | None => "string",
        };
        out.push(one);
    }
    out
}

/// The simple JSON paths that printer columns use: fields, indices, `[?(@.type=="Ready")]`.
fn json_path<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut at = object;
    let mut rest = path.trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix("[?(@.") {
            let (condition, tail) = tail.split_once(")]")?;
            let (field, wanted) = condition.split_once("==")?;
            let wanted = wanted.trim().trim_matches(['"', '\'']);
            at = at.as_array()?.iter().find(|i| i[field.trim()] == wanted)?;
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('[') {
            let (index, tail) = tail.split_once(']')?;
            at = match index.parse::<usize>() {
                Ok(index) => at.get(index)?,
                Err(_) => at.get(index.trim_matches(['"', '\'']))?,
            };
            rest = tail;
        } else {
            let tail = rest.strip_prefix('.').unwrap_or(rest);
            // A dot that belongs to a name is escaped: `.metadata.annotations.hawser\.dev/x`.
            let mut name = String::new();
            let mut chars = tail.char_indices().peekable();
            let mut end = tail.len();
            while let Some((i, c)) = chars.next() {
                match c {
                    '\\' => name.extend(chars.next().map(|(_, c)| c)),
                    '.' | '[' => {
                        end = i;
                        break;
                    }
                    _ => name.push(c),
                }
            }
            at = at.get(&name)?;
            rest = &tail[end..];
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_kubectl_does() {
        let cases = [(0, "0s"), (119, "119s"), (120, "2m"), (130, "2m10s"), (600, "10m"), (10_800, "3h")];
        for (seconds, expected) in cases {
            assert_eq!(human(seconds), expected);
        }
        assert_eq!(human(11_520), "3h12m");
        assert_eq!(human(86_400 * 8), "8d");
        assert_eq!(human(86_400 * 800), "2y70d");
    }

    #[test]
    fn json_paths_of_printer_columns() {
        let o = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "a.b": [1, 2]}});
        assert_eq!(json_path(&o, ".status.conditions[?(@.type==\"Ready\")].status"), Some(&json!("True")));
        assert_eq!(json_path(&o, ".status.a\\.b[1]"), Some(&json!(2)));
        assert_eq!(json_path(&o, ".spec.x"), None);
    }
}
