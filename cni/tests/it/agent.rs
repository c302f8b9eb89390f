//! Round trips with the agent, and agents that misbehave.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use expect_test::expect;
use proto::cni::{self, ExpectedRoute, Outcome, Verb};
use serde_json::{Value, json};

use crate::support::{Agent, BINARY, Netns, Reply, call, success, verb, with};

#[test]
fn add_passes_the_namespace_and_prints_the_result_of_each_version() {
    let (agent, netns) = (Agent::good(), Netns::new());
    let result = |version| {
        let output = verb("ADD", &netns.path, &agent.config(version));
        assert_eq!(output.exit, 0, "{output:?}");
        output.stdout.replace(&netns.path, "NETNS")
    };
    expect![[r#"
        {"cniVersion":"0.3.1","dns":{},"interfaces":[{"mac":"02:00:00:00:00:01","name":"hwd72e032fedd94"},{"mac":"02:00:00:00:00:02","name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"10.1.0.7/32","gateway":"10.1.0.1","interface":1,"version":"4"},{"address":"fd00:1::7/128","gateway":"fd00:1::1","interface":1,"version":"6"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0","gw":"fd00:1::1"}]}
    "#]].assert_eq(&result("0.3.1"));
    expect![[r#"
        {"cniVersion":"0.4.0","dns":{},"interfaces":[{"mac":"02:00:00:00:00:01","name":"hwd72e032fedd94"},{"mac":"02:00:00:00:00:02","name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"10.1.0.7/32","gateway":"10.1.0.1","interface":1,"version":"4"},{"address":"fd00:1::7/128","gateway":"fd00:1::1","interface":1,"version":"6"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0","gw":"fd00:1::1"}]}
    "#]].assert_eq(&result("0.4.0"));
    expect![[r#"
        {"cniVersion":"1.0.0","dns":{},"interfaces":[{"mac":"02:00:00:00:00:01","name":"hwd72e032fedd94"},{"mac":"02:00:00:00:00:02","name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"10.1.0.7/32","gateway":"10.1.0.1","interface":1},{"address":"fd00:1::7/128","gateway":"fd00:1::1","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0","gw":"fd00:1::1"}]}
    "#]].assert_eq(&result("1.0.0"));
    expect![[r#"
        {"cniVersion":"1.1.0","dns":{},"interfaces":[{"mac":"02:00:00:00:00:01","mtu":1420,"name":"hwd72e032fedd94"},{"mac":"02:00:00:00:00:02","mtu":1420,"name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"10.1.0.7/32","gateway":"10.1.0.1","interface":1},{"address":"fd00:1::7/128","gateway":"fd00:1::1","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0","gw":"fd00:1::1"}]}
    "#]].assert_eq(&result("1.1.0"));
    for got in agent.got() {
        assert_eq!(got.netns_inode, Some(netns.inode));
    }
}

#[test]
fn add_hands_over_what_containerd_sends() {
    let (agent, netns) = (Agent::good(), Netns::new());
    let stdin = with(
        agent.config("1.0.0"),
        json!({
            "capabilities": {"portMappings": true},
            "somethingUnknown": [1, null],
            "ipMasq": "true",
            "runtimeConfig": {
                "portMappings": [
                    {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""},
                    {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": "192.0.2.1"},
                    {"HostPort": 0, "ContainerPort": 9, "Protocol": "tcp", "HostIP": ""},
                ],
                "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 0, "EgressBurst": 0},
                "dns": {"Servers": ["10.96.0.10"], "Searches": ["default.svc"], "Options": ["ndots:5"]},
                "io.kubernetes.cri.pod-annotations": {"Team": "a", "team": "b"},
                "ips": ["10.1.0.9/24", "fd00:1::9"],
                "mac": "02-00-00-00-00-AA",
                "cgroupPath": "/kubepods/x",
            },
        }),
    );
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", netns.path.as_str()),
        (
            "CNI_ARGS",
            "K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-pod-a;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-a;IP=10.9.9.9",
        ),
    ];
    let output = call(BINARY, &environment, stdin.to_string().as_bytes());
    assert_eq!(output.exit, 0, "{output:?}");
    let dns = output.json()["dns"].to_string();
    assert_eq!(dns, r#"{"nameservers":["10.96.0.10"],"options":["ndots:5"],"search":["default.svc"]}"#);
    let Verb::Add(attach) = agent.got().remove(0).verb else { panic!("an ADD") };
    expect![[r#"
        {
          "id": {
            "containerId": "c1",
            "ifname": "eth0"
          },
          "network": "hawser",
          "netns": "NETNS",
          "pod": {
            "namespace": "default",
            "name": "pod-a",
            "uid": "u-pod-a"
          },
          "requestedIps": [
            "10.1.0.9",
            "fd00:1::9"
          ],
          "requestedMac": "02:00:00:00:00:aa",
          "portMappings": [
            {
              "hostPort": 8080,
              "containerPort": 80,
              "protocol": "tcp"
            },
            {
              "hostPort": 5353,
              "containerPort": 53,
              "protocol": "udp",
              "hostIp": "192.0.2.1"
            }
          ],
          "bandwidth": {
            "ingressRate": 1000000,
            "ingressBurst": 4294967295,
            "egressRate": 0,
            "egressBurst": 0
          },
          "podAnnotations": {
            "Team": "a",
            "team": "b"
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&attach).unwrap().replace(&netns.path, "NETNS"));
}

#[test]
fn check_passes_namespace_and_the_addresses_of_our_interface_alone() {
    let (agent, netns) = (Agent::good(), Netns::new());
    let previous = json!({
        "interfaces": [
            {"name": "eth0", "mac": "02:00:00:00:00:09"},
            {"name": "eth0", "sandbox": netns.path},
            {"name": "net1", "sandbox": netns.path},
        ],
        "ips": [
            {"address": "192.0.2.3/24", "interface": 0},
            {"address": "10.1.0.7/32", "interface": 1},
            {"address": "192.0.2.4/24", "interface": 2},
            {"address": "fd00:1::7/128", "interface": 1},
            {"address": "192.0.2.5/24"},
        ],
    });
    let output = verb("CHECK", &netns.path, &with(agent.config("0.4.0"), json!({"prevResult": previous})));
    assert_eq!((output.exit, output.stdout.as_str()), (0, ""), "{output:?}");
    let got = agent.got().remove(0);
    assert_eq!(got.netns_inode, Some(netns.inode));
    let Verb::Check(attach) = got.verb else { panic!("a CHECK") };
    let expected: Vec<std::net::IpAddr> = vec!["10.1.0.7".parse().unwrap(), "fd00:1::7".parse().unwrap()];
    assert_eq!(attach.expected_ips, expected);
}

#[test]
fn check_passes_the_routes_that_the_result_has() {
    let netns = Netns::new();
    let interfaces = json!([{"name": "eth0", "sandbox": netns.path}]);
    let asked = |routes: Value| {
        let agent = Agent::good();
        let previous = with(json!({"interfaces": interfaces}), routes);
        let stdin = with(agent.config("1.1.0"), json!({"prevResult": previous}));
        let output = verb("CHECK", &netns.path, &stdin);
        assert_eq!(output.exit, 0, "{output:?}");
        let Verb::Check(attach) = agent.got().remove(0).verb else { panic!("a CHECK") };
        attach.expected_routes
    };
    let route = |dst: &str, gw: Option<&str>| ExpectedRoute {
        dst: dst.parse().unwrap(),
        gw: gw.map(|gw| gw.parse().unwrap()),
    };
    // None would mean a plugin that does not tell them.
    for nothing in [json!({}), json!({"routes": null}), json!({"routes": []})] {
        assert_eq!(asked(nothing), Some(Vec::new()));
    }
    let routes = json!([
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
        {"dst": "::/0", "gw": "", "mtu": 1400},
        {"dst": "198.51.100.0/24"},
    ]);
    let wanted =
        vec![route("0.0.0.0/0", Some("10.1.0.1")), route("::/0", None), route("198.51.100.0/24", None)];
    assert_eq!(asked(json!({"routes": routes})), Some(wanted));
}

#[test]
fn what_the_agent_refuses_is_printed_with_its_code() {
    let netns = Netns::new();
    for (command, code) in [("ADD", 101), ("CHECK", 100), ("STATUS", 51), ("STATUS", 50), ("GC", 5)] {
        let agent = Agent::failing(code);
        let previous = json!({"interfaces": [{"name": "eth0", "sandbox": netns.path}]});
        let more = if command == "ADD" { json!({}) } else { json!({"prevResult": previous}) };
        let stdin = with(agent.config("1.1.0"), with(more, json!({"cni.dev/valid-attachments": []})));
        let output = verb(command, &netns.path, &stdin);
        assert_eq!(output.exit, 1, "{command}");
        let wanted = json!({"cniVersion": "1.1.0", "code": code, "msg": "no", "details": "because"});
        assert_eq!(output.json(), wanted, "{command}");
    }
}

#[test]
fn gc_keeps_the_union_of_both_spellings() {
    let agent = Agent::good();
    let stdin = with(
        agent.config("1.1.0"),
        json!({
            "cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}],
            "cni.dev/attachments": [{"ContainerID": "a", "IfName": "eth0"}, {"containerID": "b", "ifname": "eth0"}],
        }),
    );
    assert_eq!(call(BINARY, &[("CNI_COMMAND", "GC")], stdin.to_string().as_bytes()).exit, 0);
    let Verb::Gc(gc) = agent.got().remove(0).verb else { panic!("a GC") };
    let ids: Vec<_> = gc.valid.iter().map(|id| id.container_id.as_str()).collect();
    assert_eq!((gc.network.as_str(), ids), ("hawser", vec!["a", "b"]));
}

#[test]
fn gc_with_an_empty_list_is_legal_and_null_is_one() {
    for (lists, wanted) in [
        (json!({"cni.dev/attachments": []}), 0),
        (json!({"cni.dev/attachments": null}), 0),
        (json!({"cni.dev/valid-attachments": null}), 0),
        (json!({"cni.dev/valid-attachments": null, "cni.dev/attachments": null}), 0),
        (
            json!({
                "cni.dev/valid-attachments": null,
                "cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}],
            }),
            1,
        ),
    ] {
        let agent = Agent::good();
        let stdin = with(agent.config("1.1.0"), lists.clone());
        assert_eq!(call(BINARY, &[("CNI_COMMAND", "GC")], stdin.to_string().as_bytes()).exit, 0, "{lists}");
        let Verb::Gc(gc) = agent.got().remove(0).verb else { panic!("a GC") };
        assert_eq!(gc.valid.len(), wanted, "{lists}");
    }
}

/// Code and message of every verb but DEL against an agent of this behaviour.
fn check_misbehaviour(behaviour: impl Fn() -> Reply + Send + Copy + 'static, wanted: &str) {
    let netns = Netns::new();
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        let agent = Agent::start(move |_, _| behaviour());
        let previous = json!({"interfaces": [{"name": "eth0", "sandbox": netns.path}]});
        let more = if command == "ADD" { json!({}) } else { json!({"prevResult": previous}) };
        let stdin = with(agent.config("1.1.0"), with(more, json!({"cni.dev/valid-attachments": []})));
        let started = Instant::now();
        let output = verb(command, &netns.path, &stdin);
        assert!(started.elapsed() < Duration::from_secs(10), "{command} returns in time");
        assert_eq!(output.code(), code, "{command}: {output:?}");
        let message = output.json()["msg"].as_str().unwrap().to_owned();
        assert!(message.contains(wanted), "{command}: {message}");
        assert!(message.contains("cni.sock"), "{command} names the socket: {message}");
    }
}

#[test]
fn an_agent_that_hangs_is_code_11() {
    check_misbehaviour(|| Reply::Hang, "no complete answer within 1 s");
}

#[test]
fn an_agent_that_closes_at_once_is_code_11() {
    check_misbehaviour(|| Reply::Close, "connection closed before the answer was complete");
}

#[test]
fn an_agent_that_closes_inside_the_frame_is_code_11() {
    let frame = || Reply::Raw(b"\0\0\0\x20{\"v\":1,".to_vec());
    check_misbehaviour(frame, "connection closed before the answer was complete");
}

#[test]
fn an_agent_that_answers_garbage_is_code_11() {
    check_misbehaviour(|| Reply::Raw(b"\0\0\0\x04junk".to_vec()), "answer cannot be read");
    check_misbehaviour(|| Reply::Raw(b"HTTP/1.1 400 Bad Request".to_vec()), "longer than");
}

#[test]
fn an_agent_of_a_newer_version_is_code_11() {
    let newer = || {
        let body = json!({"v": 2, "outcome": {"somethingNew": {"a": 1}}}).to_string();
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(body.as_bytes());
        Reply::Raw(frame)
    };
    check_misbehaviour(newer, "speaks version 2 of the plugin's protocol, this plugin version 1");
}

#[test]
fn a_newer_agent_that_refuses_is_quoted() {
    let agent = Agent::start(|_, _| {
        let failure = json!({"code": 1, "msg": "plugin speaks 1, agent 2", "details": ""});
        let body = json!({"v": 2, "outcome": {"failed": failure}}).to_string();
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(body.as_bytes());
        Reply::Raw(frame)
    });
    let output = call(BINARY, &[("CNI_COMMAND", "STATUS")], agent.config("1.1.0").to_string().as_bytes());
    // STATUS has but two codes; the sentence says which version is wrong.
    assert_eq!((output.code(), &output.json()["msg"]), (50, &json!("plugin speaks 1, agent 2")));
}

#[test]
fn an_answer_that_belongs_to_another_verb_is_code_11() {
    check_misbehaviour_of_add();
    let agent = Agent::start(|_, _| {
        let add = json!({"v": 1, "verb": {"add": {"id": {"containerId": "c", "ifname": "e"}, "network": "n", "netns": "/n", "pod": null}}});
        Reply::Answer(success(&serde_json::from_value(add).unwrap()))
    });
    let output = call(BINARY, &[("CNI_COMMAND", "STATUS")], agent.config("1.1.0").to_string().as_bytes());
    assert_eq!(output.code(), 50, "{output:?}");
}

fn check_misbehaviour_of_add() {
    let (agent, netns) = (Agent::start(|_, _| Reply::Answer(Outcome::Done)), Netns::new());
    let output = verb("ADD", &netns.path, &agent.config("1.1.0"));
    assert_eq!(output.code(), 11, "{output:?}");
}

#[test]
fn a_socket_that_nobody_serves_is_code_11_and_a_full_backlog_ends_in_time() {
    let netns = Netns::new();
    let dir = tempfile::TempDir::new().unwrap();
    let config = crate::support::config(dir.path(), "1.1.0");
    assert_eq!(verb("ADD", &netns.path, &config).code(), 11, "absent");
    drop(UnixListener::bind(dir.path().join("cni.sock")).unwrap());
    let refused = verb("ADD", &netns.path, &config);
    assert_eq!(refused.code(), 11, "refusing");
    assert!(refused.json()["msg"].as_str().unwrap().contains("Connection refused"), "{refused:?}");
    std::fs::remove_file(dir.path().join("cni.sock")).unwrap();
    let listener = UnixListener::bind(dir.path().join("cni.sock")).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(std::os::unix::net::UnixStream::connect(dir.path().join("cni.sock")).unwrap());
    }
    let output = verb("ADD", &netns.path, &config);
    assert_eq!(output.code(), 11, "backlog full");
    assert!(output.json()["msg"].as_str().unwrap().contains("not accepted within 5 s"), "{output:?}");
}

#[test]
fn an_answer_that_drips_is_cut_at_the_deadline() {
    let dir = tempfile::TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("cni.sock")).unwrap();
    let dripping = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        let mut sent = stream.write_all(&[0, 0, 1, 0]);
        // Each byte is well within any timeout of a single read; only a deadline over all ends this.
        while sent.is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            sent = stream.write_all(b" ");
        }
    });
    let config: Value = crate::support::config(dir.path(), "1.1.0");
    let started = Instant::now();
    let output = call(BINARY, &[("CNI_COMMAND", "STATUS")], config.to_string().as_bytes());
    assert_eq!(output.code(), 50);
    assert!(started.elapsed() < Duration::from_secs(5));
    dripping.join().unwrap();
}

#[test]
fn a_request_over_the_frame_limit_is_refused_before_it_is_sent() {
    // Just under the limit of stdin, and over it as a frame, because the frame escapes what stdin need not.
    let (agent, netns) = (Agent::good(), Netns::new());
    let annotation = "\\u007f".repeat(10) + &"x".repeat(usize::try_from(cni::MAX_FRAME).unwrap());
    let stdin = with(
        agent.config("1.0.0"),
        json!({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"a": annotation}}}),
    );
    assert_eq!(verb("ADD", &netns.path, &stdin).code(), 6);
    assert!(agent.got().is_empty());
}
