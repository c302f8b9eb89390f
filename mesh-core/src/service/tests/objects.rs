//! Objects as the API server writes them.

use crate::service::model::{EndpointSliceFacts, ServiceFacts};

#[test]
fn a_service_is_read_from_its_json() {
    let json = r#"{
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "x", "labels": {"app": "web"}, "resourceVersion": "7"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "ipFamilies": ["IPv4", "IPv6"], "selector": {"app": "web"}, "externalIPs": null,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080}],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Cluster",
            "trafficDistribution": "PreferClose", "loadBalancerSourceRanges": ["10.0.0.0/8"]
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}, {"hostname": "lb.example"}]}}
    }"#;
    let facts: ServiceFacts = serde_json::from_str(json).unwrap();
    expect_test::expect![[r#"
        ServiceFacts {
            metadata: Meta {
                labels: {
                    "app": "web",
                },
            },
            spec: ServiceSpec {
                kind: "LoadBalancer",
                cluster_ip: "10.96.0.1",
                cluster_ips: [
                    "10.96.0.1",
                    "fd00:96::1",
                ],
                external_ips: [],
                ports: [
                    ServicePort {
                        name: "http",
                        protocol: "TCP",
                        port: 80,
                        node_port: 30080,
                    },
                ],
                session_affinity: "ClientIP",
                session_affinity_config: SessionAffinityConfig {
                    client_ip: ClientIpConfig {
                        timeout_seconds: Some(
                            60,
                        ),
                    },
                },
                internal_traffic_policy: "Local",
                external_traffic_policy: "Cluster",
                traffic_distribution: "PreferClose",
                load_balancer_source_ranges: [
                    "10.0.0.0/8",
                ],
            },
            status: ServiceStatus {
                load_balancer: LoadBalancerStatus {
                    ingress: [
                        LoadBalancerIngress {
                            ip: "198.51.100.1",
                            ip_mode: "VIP",
                        },
                        LoadBalancerIngress {
                            ip: "",
                            ip_mode: "",
                        },
                    ],
                },
            },
        }
    "#]]
    .assert_debug_eq(&facts);
}

#[test]
fn a_slice_is_read_from_its_json() {
    let json = r#"{
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"port": null}],
        "endpoints": [
            {"addresses": ["10.2.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true},
             "nodeName": "n1", "zone": "z1", "targetRef": {"kind": "Pod", "name": "web-abc"},
             "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}},
            {"addresses": ["10.2.0.2"], "conditions": {}, "hints": null}
        ]
    }"#;
    let facts: EndpointSliceFacts = serde_json::from_str(json).unwrap();
    expect_test::expect![[r#"
        EndpointSliceFacts {
            metadata: Meta {
                labels: {
                    "kubernetes.io/service-name": "web",
                },
            },
            address_type: "IPv4",
            ports: [
                SlicePort {
                    name: "http",
                    protocol: "TCP",
                    port: Some(
                        8080,
                    ),
                },
                SlicePort {
                    name: "",
                    protocol: "",
                    port: None,
                },
            ],
            endpoints: [
                EndpointFacts {
                    addresses: [
                        "10.2.0.1",
                    ],
                    conditions: Conditions {
                        ready: Some(
                            false,
                        ),
                        serving: Some(
                            true,
                        ),
                        terminating: Some(
                            true,
                        ),
                    },
                    node_name: Some(
                        "n1",
                    ),
                    zone: Some(
                        "z1",
                    ),
                    hints: Hints {
                        for_zones: [
                            Hint {
                                name: "z1",
                            },
                        ],
                        for_nodes: [
                            Hint {
                                name: "n1",
                            },
                        ],
                    },
                },
                EndpointFacts {
                    addresses: [
                        "10.2.0.2",
                    ],
                    conditions: Conditions {
                        ready: None,
                        serving: None,
                        terminating: None,
                    },
                    node_name: None,
                    zone: None,
                    hints: Hints {
                        for_zones: [],
                        for_nodes: [],
                    },
                },
            ],
        }
    "#]]
    .assert_debug_eq(&facts);
}

#[test]
fn what_is_absent_or_null_is_nothing() {
    for json in ["{}", r#"{"metadata": {"labels": null}, "spec": {"clusterIPs": null, "ports": null}}"#] {
        assert_eq!(serde_json::from_str::<ServiceFacts>(json).unwrap(), ServiceFacts::default());
    }
    for json in ["{}", r#"{"endpoints": null, "ports": null, "metadata": {}}"#] {
        assert_eq!(serde_json::from_str::<EndpointSliceFacts>(json).unwrap(), EndpointSliceFacts::default());
    }
}
