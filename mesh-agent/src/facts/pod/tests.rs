use super::*;
use serde_json::json;

fn own(spec: serde_json::Value) -> OwnPod {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "a", "name": "p", "uid": "u", "labels": {"app": "x"},
            "annotations": {"hawser.dev/ips": "10.1.0.2"}},
        "spec": spec, "status": {"phase": "Running"}});
    OwnPod::of(&serde_json::from_value(pod).unwrap()).unwrap()
}

#[test]
fn ports_of_containers_and_of_sidecars_count_and_those_of_other_init_containers_do_not() {
    let port = |name: &str, port: u16| json!({"ports": [{"name": name, "containerPort": port}]});
    let mut sidecar = port("side", 3);
    sidecar["restartPolicy"] = json!("Always");
    let pod = own(json!({"containers": [port("web", 1), {"name": "without"}],
        "initContainers": [port("setup", 2), sidecar]}));
    let names: Vec<&str> = pod.ports.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["side", "web"]);
    assert!(!pod.host_network && !pod.finished);
    assert_eq!(pod.announced_ips.as_deref(), Some("10.1.0.2"));
}

#[test]
fn a_port_that_cannot_be_costs_itself_alone() {
    let pod = own(json!({"containers": [{"ports": [
        {"name": "a", "containerPort": 0}, {"name": "b", "containerPort": 70000}, {"name": "", "containerPort": 5},
        {"name": "c", "containerPort": 6, "protocol": "ICMP"}, {"name": "d", "containerPort": 7, "protocol": "UDP"},
        {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8081, "hostIP": "soup"},
        {"containerPort": 53, "hostPort": 53, "hostIP": "192.0.2.1", "protocol": "UDP"}]}]}));
    assert_eq!(pod.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["d"]);
    assert_eq!(pod.host_ports.iter().map(|p| p.host_port).collect::<Vec<_>>(), [8080, 53]);
}

#[test]
fn addresses_of_a_remote_pod_are_bounded_and_those_that_are_none_are_passed_over() {
    let read = |text: &str| {
        let meta = json!({"annotations": {"hawser.dev/ips": text, "hawser.dev/ports": "http=TCP/80"}});
        RemotePod::of(&serde_json::from_value(meta).unwrap())
    };
    assert_eq!(read("10.1.0.2,fd00::2").ips.len(), 2);
    assert_eq!(read(" 10.1.0.2 , soup,,").ips.len(), 1);
    let many = (1..200).map(|n| format!("10.1.0.{n}")).collect::<Vec<_>>().join(",");
    assert_eq!(read(&many).ips.len(), MAX_IPS);
    assert_eq!(read("").ports.len(), 1);
    assert_eq!(RemotePod::of(&ObjectMeta::default()), RemotePod::default());
}

#[test]
fn a_static_pod_is_known_by_its_mirrors_hash() {
    let mirror = PodMeta { uid: "u1".into(), config_hash: Some("hash".into()) };
    assert!(mirror.is(Some("hash")) && mirror.is(Some("u1")) && mirror.is(None) && !mirror.is(Some("other")));
}
