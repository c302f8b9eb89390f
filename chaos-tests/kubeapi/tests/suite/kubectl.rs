//! kubectl, as people use it. Any version from Debian's 1.20 on.

use std::path::PathBuf;
use std::process::Stdio;

use kubeapi::{Patch, Server, User};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::support::*;

/// One server and a home for kubectl's files.
struct Lab {
    server: Server,
    home: tempfile::TempDir,
    minor: u32,
}

async fn lab() -> Lab {
    let server = server().await;
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("config"), server.kubeconfig(&User::admin())).unwrap();
    let mut lab = Lab { server, home, minor: 0 };
    let version: Value = serde_json::from_str(&lab.run(&["version", "-o", "json"], "").await).unwrap();
    assert_eq!(version["serverVersion"]["minor"], "33");
    let minor = version["clientVersion"]["minor"].as_str().unwrap().trim_end_matches('+');
    lab.minor = minor.parse().unwrap();
    lab
}

impl Lab {
    fn config(&self) -> PathBuf {
        self.home.path().join("config")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl with `input` on its stdin; exit code, stdout, stderr.
    async fn try_run(&self, arguments: &[&str], input: &str) -> (bool, String, String) {
        let mut child = match self.command(arguments).spawn() {
            Ok(child) => child,
            Err(error) => panic!(
                "kubectl cannot be run ({error}); install it, on Debian with `apt-get install kubernetes-client`"
            ),
        };
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = within(&format!("kubectl {arguments:?}"), child.wait_with_output()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    async fn run(&self, arguments: &[&str], input: &str) -> String {
        let (success, out, err) = self.try_run(arguments, input).await;
        assert!(success, "kubectl {arguments:?} failed:\n{out}\n{err}");
        out
    }
}

#[tokio::test]
async fn kubectl_get_prints_tables_and_objects() {
    let lab = lab().await;
    lab.server.store().create(&node("n1")).unwrap();
    lab.server.store().create(&pod("p1", "n1")).unwrap();
    let out = lab.run(&["get", "nodes"], "").await;
    let rows: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
    assert_eq!((rows[1][0], rows[1][1], rows[1][4]), ("n1", "Ready", "v1.33.0"));
    let wide = lab.run(&["get", "no", "-o", "wide"], "").await;
    assert!(wide.contains("INTERNAL-IP") && wide.contains("192.0.2.1"), "{wide}");
    let yaml = lab.run(&["get", "node", "n1", "-o", "yaml"], "").await;
    assert!(yaml.contains("\n  - 10.0.1.0/24\n"), "{yaml}");
    let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    assert_eq!(lab.run(&["get", "node", "n1", "-o", path], "").await, "192.0.2.1");
    let all = lab.run(&["get", "pods", "-A", "-o", "wide", "-l", "app=p1"], "").await;
    assert!(all.contains("p1") && all.contains("0/1") && all.contains("Pending"), "{all}");
    let none = lab.run(&["get", "pods", "--field-selector", "spec.nodeName=n2", "-o", "name"], "").await;
    assert_eq!(none, "");
    let (success, _, err) = lab.try_run(&["get", "node", "gone"], "").await;
    assert!(!success && err.contains("nodes \"gone\" not found"), "{err}");
}

#[tokio::test]
async fn kubectl_get_watch_prints_each_change() {
    let lab = lab().await;
    lab.server.store().create(&node("n1")).unwrap();
    let mut child = lab.command(&["get", "nodes", "-w"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || within("a line of kubectl", lines.next_line()).await.unwrap().unwrap();
    assert!(next().await.starts_with("NAME"));
    assert!(next().await.starts_with("n1"));
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    lab.server.store().patch_status("nodes", None, "n1", &Patch::Strategic(not_ready)).unwrap();
    let line = next().await;
    assert!(line.starts_with("n1") && line.contains("NotReady"), "{line}");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn kubectl_apply_client_side_of_a_built_in_merges_by_key() {
    let lab = lab().await;
    let config = |taint: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"a": taint}},
            "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]}})
        .to_string()
    };
    assert_eq!(lab.run(&["apply", "-f", "-"], &config("x")).await, "node/n1 created\n");
    assert_eq!(lab.run(&["apply", "-f", "-"], &config("y")).await, "node/n1 configured\n");
    let node = lab.server.store().find("nodes", None, "n1").unwrap();
    assert_eq!(node["spec"]["taints"], json!([{"key": "y", "effect": "NoSchedule"}]));
    assert_eq!(node["metadata"]["labels"], json!({"a": "y"}));
    assert_eq!(lab.run(&["apply", "-f", "-"], &config("y")).await, "node/n1 unchanged\n");

    let config = |port: u16| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"ports": [{"port": port, "protocol": "TCP"}]}})
        .to_string()
    };
    lab.run(&["apply", "-f", "-"], &config(80)).await;
    let other = json!({"spec": {"ports": [{"port": 53, "protocol": "UDP", "name": "dns"}]}});
    lab.server.store().patch("services", None, "s", &Patch::Strategic(other)).unwrap();
    lab.run(&["apply", "-f", "-"], &config(81)).await;
    let service = lab.server.store().find("services", None, "s").unwrap();
    let mut ports: Vec<u64> =
        service["spec"]["ports"].as_array().unwrap().iter().map(|p| p["port"].as_u64().unwrap()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [53, 81], "the port of another hand stays, the own one is replaced");
}

#[tokio::test]
async fn kubectl_apply_server_side_and_its_conflict() {
    let lab = lab().await;
    let config = |value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": value}})
            .to_string()
    };
    let apply = ["apply", "--server-side", "-f", "-"];
    lab.run(&apply, &config("1")).await;
    lab.run(&apply, &config("2")).await;
    let by_other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let (success, _, err) = lab.try_run(&by_other, &config("3")).await;
    assert!(!success && err.contains("conflict"), "{err}");
    let forced = ["apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-"];
    lab.run(&forced, &config("3")).await;
    assert_eq!(lab.server.store().find("configmaps", None, "c").unwrap()["data"]["k"], "3");
}

#[tokio::test]
async fn kubectl_and_a_custom_resource_from_definition_to_deletion() {
    let lab = lab().await;
    lab.run(&["create", "-f", "-"], &crate::clients::crd().to_string()).await;
    let peer = |endpoint: &str| {
        json!({"apiVersion": "hawser.dev/v1alpha1", "kind": "ClusterPeer", "metadata": {"name": "east"},
            "spec": {"endpoint": endpoint}})
        .to_string()
    };
    lab.run(&["apply", "-f", "-"], &peer("e:1")).await;
    assert!(lab.run(&["apply", "-f", "-"], &peer("e:2")).await.contains("configured"));
    let out = lab.run(&["get", "cpeer"], "").await;
    assert!(out.contains("ENDPOINT") && out.contains("e:2"), "{out}");
    lab.run(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &peer("e:3")).await;
    assert!(lab.run(&["describe", "clusterpeer", "east"], "").await.contains("e:3"));
    let resources = lab.run(&["api-resources", "-o", "name"], "").await;
    assert!(resources.lines().any(|l| l == "clusterpeers.hawser.dev"), "{resources}");
    if lab.minor >= 27 {
        // Earlier ones explain from OpenAPI v2 alone, whose document is empty here.
        let out = lab.run(&["explain", "clusterpeers.spec"], "").await;
        assert!(out.contains("Where the peer listens."), "{out}");
        let out = lab.run(&["explain", "nodes"], "").await;
        assert!(out.contains("KIND:") && out.contains("Node"), "{out}");
    }
    lab.run(&["delete", "clusterpeer", "east"], "").await;
    assert!(lab.server.store().find("clusterpeers", None, "east").is_none());
}

#[tokio::test]
async fn kubectl_annotate_label_patch_taint_cordon() {
    let lab = lab().await;
    lab.server.store().create(&node("n1")).unwrap();
    lab.run(&["annotate", "node", "n1", "hawser.dev/rotate=now"], "").await;
    lab.run(&["label", "node", "n1", "zone=b", "--overwrite"], "").await;
    lab.run(&["label", "node", "n1", "gone=1"], "").await;
    lab.run(&["label", "node", "n1", "gone-"], "").await;
    lab.run(
        &["patch", "node", "n1", "-p", "{\"spec\":{\"taints\":[{\"key\":\"a\",\"effect\":\"NoSchedule\"}]}}"],
        "",
    )
    .await;
    lab.run(&["patch", "node", "n1", "--type=merge", "-p", "{\"metadata\":{\"labels\":{\"m\":\"1\"}}}"], "")
        .await;
    lab.run(
        &[
            "patch",
            "node",
            "n1",
            "--type=json",
            "-p",
            "[{\"op\":\"add\",\"path\":\"/metadata/labels/j\",\"value\":\"1\"}]",
        ],
        "",
    )
    .await;
    lab.run(&["cordon", "n1"], "").await;
    let node = lab.server.store().find("nodes", None, "n1").unwrap();
    assert_eq!(node["metadata"]["annotations"]["hawser.dev/rotate"], "now");
    assert_eq!(node["metadata"]["labels"], json!({"zone": "b", "m": "1", "j": "1"}));
    assert_eq!(
        (&node["spec"]["taints"][0]["key"], &node["spec"]["unschedulable"]),
        (&json!("a"), &json!(true))
    );
}

#[tokio::test]
async fn kubectl_describe_node_shows_pods_and_events() {
    let lab = lab().await;
    lab.server.store().create(&node("n1")).unwrap();
    lab.server.store().create(&pod("p1", "n1")).unwrap();
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": "e1", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Warning", "reason": "KeyMissing", "note": "node has no key", "action": "Plan",
        "reportingController": "mesh-agent", "reportingInstance": "n1",
        "regarding": {"kind": "Node", "name": "n1", "uid": "n1"}});
    lab.server.store().create(&event).unwrap();
    let out = lab.run(&["describe", "node", "n1"], "").await;
    for part in ["10.0.1.0/24", "p1", "KeyMissing", "node has no key", "mesh-agent"] {
        assert!(out.contains(part), "no {part} in:\n{out}");
    }
}

#[tokio::test]
async fn kubectl_wait_and_delete_return_when_it_has_happened() {
    let lab = lab().await;
    lab.server.store().create(&node("n1")).unwrap();
    lab.run(&["wait", "--for=condition=Ready", "node/n1", "--timeout=30s"], "").await;
    if lab.minor >= 23 {
        lab.run(&["wait", "--for=jsonpath={.spec.podCIDR}=10.0.1.0/24", "node/n1", "--timeout=30s"], "")
            .await;
    }
    lab.server.store().create(&pod("p1", "n1")).unwrap();
    let delete = lab.command(&["delete", "pod", "p1"]).spawn().unwrap();
    eventually("the graceful deletion", || {
        let pod = lab.server.store().find("pods", None, "p1");
        pod.is_some_and(|p| !p["metadata"]["deletionTimestamp"].is_null())
    })
    .await;
    lab.server.store().delete_now("pods", None, "p1").unwrap();
    let output = within("kubectl delete", delete.wait_with_output()).await.unwrap();
    assert!(output.status.success());
    lab.run(&["delete", "node", "--all"], "").await;
    assert!(lab.server.store().find("nodes", None, "n1").is_none());
}

#[tokio::test]
async fn kubectl_creates_generated_objects_through_a_file() {
    let lab = lab().await;
    // Typed generators send protobuf, which is not served: rendered on the client's side they are JSON.
    let map = ["create", "configmap", "c", "--from-literal=a=b", "--dry-run=client", "-o", "yaml"];
    let yaml = lab.run(&map, "").await;
    lab.run(&["create", "-f", "-"], &yaml).await;
    assert_eq!(lab.server.store().find("configmaps", None, "c").unwrap()["data"]["a"], "b");
}
