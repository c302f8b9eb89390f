//! Services of one backend each: policy is asked about the backend and its port (rows 24, 32, 36).

use serde_json::{Value, json};

use super::network::policy;
use crate::case::{Case, Step};

/// A Service and its slices: port 80 of TCP and UDP leads to port 8080 of `pod`, port 9000 of SCTP to itself.
fn service(number: u8, namespace: &str, pod: [&str; 2]) -> Vec<Value> {
    let name = format!("s{number}");
    let ips = [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")];
    let port = |name: &str, protocol: &str, port: u16, target: u16| json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
    let mut all = vec![
        json!({"kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": {
        "type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
        "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "clusterIP": ips[0], "clusterIPs": ips,
        "ports": [port("tcp", "TCP", 80, 8080), port("udp", "UDP", 80, 8080), port("sctp", "SCTP", 9000, 9000)]}}),
    ];
    for (family, address) in ["IPv4", "IPv6"].iter().zip(pod) {
        let port =
            |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port});
        all.push(json!({"kind": "EndpointSlice",
            "metadata": {"namespace": namespace, "name": format!("{name}-{}", family.to_lowercase()), "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
            "addressType": family,
            "ports": [port("tcp", "TCP", 8080), port("udp", "UDP", 8080), port("sctp", "SCTP", 9000)],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}}]}));
    }
    all
}

/// Backends: y/b on node 2 and z/a on node 1.
const Y_B: [&str; 2] = ["10.244.2.12", "fd00:10:244:2::12"];
const Z_A: [&str; 2] = ["10.244.1.13", "fd00:10:244:1::13"];
const X_A: [&str; 2] = ["10.244.1.11", "fd00:10:244:1::11"];

/// `S1` and `S2` in lines: both addresses of a Service.
fn case(name: &str, rows: &[u32], short: bool, steps: Vec<(Vec<Value>, &str)>) -> Case {
    let service = |number: u8| format!("10.96.0.{number},fd00:10:96::{number}");
    let step = |(objects, flows): (Vec<Value>, &str)| Step {
        objects,
        flows: flows.replace("S1", &service(1)).replace("S2", &service(2)),
        ..Step::default()
    };
    let steps = steps.into_iter().map(step).collect();
    Case { name: name.to_owned(), rows: rows.to_vec(), short, ask: None, steps, by_address: false }
}

fn two() -> Vec<Value> {
    [service(1, "y", Y_B), service(2, "z", Z_A)].concat()
}

fn egress(rules: &Value) -> Vec<Value> {
    vec![policy("x", "p", &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules}))]
}

fn ingress(namespace: &str, rules: &Value) -> Vec<Value> {
    vec![policy(namespace, "in", &json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules}))]
}

const OPEN: &str = "x/a,x/b,y/a > S1,S2 TCP/80,UDP/80,SCTP/9000 allow\n";

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let of_y = json!([{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]);
    let cluster = |rule: Value| {
        vec![
            json!({"kind": "ClusterNetworkPolicy", "metadata": {"name": "c"}, "spec": {"tier": "Admin", "priority": 3,
            "subject": {"namespaces": {"matchLabels": {"ns": "x"}}}, "egress": [rule]}}),
        ]
    };
    vec![
        case(
            "egress to a Service is egress to its backend",
            &[36],
            true,
            vec![
                (two(), OPEN),
                (
                    egress(&json!([{"to": of_y}])),
                    "x/a,x/b > S1 TCP/80,UDP/80,SCTP/9000 allow\nx/a,x/b > S2 TCP/80,UDP/80,SCTP/9000 deny\n\
                 y/a > S2 TCP/80 allow\n",
                ),
            ],
        ),
        case(
            "the port that counts is the backend's",
            &[24, 36],
            true,
            vec![
                (two(), OPEN),
                (
                    egress(&json!([{"ports": [{"port": 8080}, {"protocol": "SCTP", "port": 9000}]}])),
                    "x/a > S1,S2 TCP/80,SCTP/9000 allow\nx/a > S1,S2 UDP/80 deny\nx/a > y/b TCP/8080 allow\nx/a > y/b TCP/80 deny\n",
                ),
                (
                    egress(&json!([{"ports": [{"port": 80}, {"protocol": "UDP", "port": 80}]}])),
                    "x/a > S1,S2 TCP/80,UDP/80,SCTP/9000 deny\nx/a > y/b TCP/80 allow\n",
                ),
            ],
        ),
        case(
            "a Service's own address is in no block that counts",
            &[18, 20, 36],
            false,
            vec![
                (two(), OPEN),
                (
                    egress(
                        &json!([{"to": [{"ipBlock": {"cidr": "10.96.0.0/16"}}, {"ipBlock": {"cidr": "fd00:10:96::/64"}}]}]),
                    ),
                    "x/a > S1,S2 TCP/80,UDP/80,SCTP/9000 deny\n",
                ),
                (
                    egress(
                        &json!([{"to": [{"ipBlock": {"cidr": "10.244.2.12/32"}}, {"ipBlock": {"cidr": "fd00:10:244:1::/64"}}]}]),
                    ),
                    "x/a > 10.96.0.1,fd00:10:96::2 TCP/80,UDP/80,SCTP/9000 allow\n\
                 x/a > fd00:10:96::1,10.96.0.2 TCP/80,UDP/80,SCTP/9000 deny\n",
                ),
            ],
        ),
        case(
            "the backend's ingress sees the client, on its node and on others",
            &[10, 11, 36],
            true,
            vec![
                (two(), OPEN),
                (
                    [
                        ingress("y", &json!([{"from": [{"podSelector": {}}]}])),
                        ingress("z", &json!([{"from": of_y}])),
                    ]
                    .concat(),
                    "y/a,y/c > S1,S2 TCP/80,UDP/80,SCTP/9000 allow\nx/a,x/b,x/c,z/b > S1 TCP/80,UDP/80,SCTP/9000 deny\n\
                 x/a,x/b,z/c > S2 TCP/80,UDP/80,SCTP/9000 deny\n",
                ),
            ],
        ),
        case(
            "a port's name is the backend's behind a Service",
            &[25, 26, 36],
            false,
            vec![
                (two(), OPEN),
                (
                    egress(&json!([{"ports": [{"port": "web"}]}])),
                    "x/a > S1 TCP/80 allow\nx/a > S1 UDP/80,SCTP/9000 deny\nx/a > S2 TCP/80,UDP/80 deny\n",
                ),
                (
                    ingress("z", &json!([{"ports": [{"protocol": "SCTP", "port": "sig"}]}])),
                    "x/a > S1 TCP/80 allow\ny/a > S2 SCTP/9000 allow\ny/a > S2 TCP/80,UDP/80 deny\n",
                ),
            ],
        ),
        case(
            "a pod reaches itself by its Service, and others as policy says",
            &[32, 36],
            true,
            vec![
                (service(1, "x", X_A), "x/a,x/b,y/a > S1 TCP/80,UDP/80,SCTP/9000 allow\n"),
                (
                    vec![policy("x", "p", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))],
                    "x/b,y/a > S1 TCP/80,UDP/80,SCTP/9000 deny\n",
                ),
            ],
        ),
        case(
            "a Service gets another backend, and policy is asked about that",
            &[36, 38],
            false,
            vec![
                (two(), OPEN),
                (egress(&json!([{"to": of_y}])), "x/a > S1 TCP/80 allow\nx/a > S2 TCP/80 deny\n"),
                (service(1, "y", Z_A), "x/a > S1,S2 TCP/80,UDP/80,SCTP/9000 deny\ny/a > S1 TCP/80 allow\n"),
            ],
        ),
        case(
            "a ClusterNetworkPolicy is asked about the backend",
            &[36],
            true,
            vec![
                (two(), OPEN),
                (
                    cluster(
                        json!({"action": "Deny", "to": [{"networks": ["10.244.1.0/24", "fd00:10:244:1::/64", "10.96.0.1/32"]}]}),
                    ),
                    "x/b > S1 TCP/80,UDP/80 allow\nx/b > S2 TCP/80,UDP/80,SCTP/9000 deny\n",
                ),
                (
                    cluster(
                        json!({"action": "Deny", "to": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "web"}]}),
                    ),
                    "x/b > S1 TCP/80 deny\nx/b > S1 UDP/80,SCTP/9000 allow\nx/b > S2 TCP/80,UDP/80,SCTP/9000 allow\n",
                ),
            ],
        ),
    ]
}
