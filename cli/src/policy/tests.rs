use std::collections::BTreeMap;

use expect_test::expect;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use mesh_core::clusters::{ClusterPeer, ClusterPeerSpec};
use mesh_core::evidence::{DataPath, NodeEvidence};
use mesh_core::policy::model::Protocol;

use super::clusters::Read;
use super::facts::Objects;
use super::*;
use crate::agents::Answer;
use crate::audit::fixture::evidence;

fn objects<T: DeserializeOwned>(values: Vec<Value>) -> Vec<T> {
    values.into_iter().map(|value| serde_json::from_value(value).unwrap()).collect()
}

fn node(number: u8) -> Value {
    json!({"metadata": {"name": format!("node-{number}"), "creationTimestamp": "2026-11-28T10:00:00Z"},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")},
            {"type": "InternalIP", "address": format!("2001:db8::{number}")}]}})
}

fn pod(namespace: &str, name: &str, node: u8, last: u8) -> Value {
    let ips = format!("10.244.{node}.{last},fd00:10:244:{node}::{last}");
    json!({"metadata": {"namespace": namespace, "name": name, "labels": {"app": name}, "annotations": {"hawser.dev/ips": ips}},
        "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "c", "ports": [{"name": "sql", "containerPort": 5432}]}]}})
}

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// Two nodes, a shop with a database that only the web may reach, and an audited namespace.
fn shop() -> Objects {
    let from_web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let ports = json!([{"port": "sql"}]);
    let only_web = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": from_web, "ports": ports}]});
    let to_v4 = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]);
    let v4_only = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to_v4}]});
    let mut host = pod("shop", "monitor", 1, 0);
    host["spec"]["hostNetwork"] = json!(true);
    let mut waiting = pod("shop", "waiting", 1, 0);
    waiting["metadata"]["annotations"] = json!({});
    Objects {
        cluster: None,
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        nodes: objects(vec![node(1), node(2)]),
        pods: objects(vec![
            pod("shop", "web", 1, 2),
            pod("shop", "db", 2, 3),
            pod("shop", "cron", 1, 4),
            pod("tryout", "new", 2, 5),
            host,
            waiting,
        ]),
        namespaces: objects(vec![
            json!({"metadata": {"name": "shop"}}),
            json!({"metadata": {"name": "tryout", "annotations": {"hawser.dev/policy": "audit"}}}),
        ]),
        services: objects(vec![
            json!({"metadata": {"namespace": "shop", "name": "db"}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}}),
        ]),
        policies: objects(vec![policy("shop", "db", only_web), policy("tryout", "v4-only", v4_only)]),
        cluster_policies: objects(vec![
            json!({"metadata": {"name": "no-ssh"}, "spec": {"tier": "Admin", "priority": 1,
            "subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": [{"namespaces": {}}],
            "protocols": [{"tcp": {"destinationPort": {"number": 22}}}]}]}}),
        ]),
    }
}

fn ask(objects: &Objects, from: &str, to: &str, port: Option<u16>) -> Result<Explained, ExplainError> {
    let protocol = if port.is_some() { Transport::Ports(Protocol::Tcp) } else { Transport::Icmp };
    explained(&alone(objects), (&from.parse().unwrap(), &to.parse().unwrap()), protocol, port)
}

fn read(objects: &Objects, peers: Vec<ClusterPeer>) -> Read {
    Read { world: facts::world(objects), peers }
}

fn alone(objects: &Objects) -> Worlds {
    Worlds::new(read(objects, Vec::new()), None).unwrap()
}

fn peer(name: &str, cidrs: [&str; 2]) -> ClusterPeer {
    let spec = ClusterPeerSpec { pod_cidrs: cidrs.map(str::to_owned).into(), ..ClusterPeerSpec::default() };
    ClusterPeer::parse(name, 0, &spec).0.unwrap()
}

const WEST: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
const EAST: [&str; 2] = ["10.245.0.0/16", "fd00:10:245::/48"];

/// The shop is the cluster west; what it sells is made in the cluster east, whose pods have the same labels.
fn west_and_east() -> [Objects; 2] {
    let mut west = shop();
    west.cluster = Some("west".parse().unwrap());
    let text = serde_json::to_string(&json!([node(1), pod("shop", "web", 1, 2), pod("make", "tool", 1, 3)]))
        .unwrap();
    let objects_of_east: [Value; 3] = serde_json::from_str(
        &text.replace("10.244.", "10.245.").replace(":244:", ":245:").replace("192.0.2.1", "192.0.2.101"),
    )
    .unwrap();
    let [node, web, tool] = objects_of_east;
    let from_west = json!([{"namespaceSelector": {"matchLabels": {"hawser.dev/cluster": "west"}}, "podSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "tool"}}, "ingress": [{"from": from_west}]});
    let east = Objects {
        cluster: Some("east".parse().unwrap()),
        pod_cidrs: EAST.map(|cidr| cidr.parse().unwrap()).into(),
        nodes: objects(vec![node]),
        pods: objects(vec![web, tool]),
        namespaces: objects(vec![
            json!({"metadata": {"name": "shop"}}),
            json!({"metadata": {"name": "make"}}),
        ]),
        policies: objects(vec![policy("make", "tool", spec)]),
        ..Objects::default()
    };
    [west, east]
}

fn joined([west, east]: &[Objects; 2]) -> Result<Worlds, ExplainError> {
    Worlds::new(read(west, vec![peer("east", EAST)]), Some(read(east, vec![peer("west", WEST)])))
}

#[test]
fn each_end_of_joined_clusters_is_judged_by_its_own_policies_which_find_the_others_pods_by_their_cluster() {
    let mut clusters = west_and_east();
    let explain = |clusters: &[Objects; 2], from: &str, to: &str| {
        let ends = (&from.parse().unwrap(), &to.parse().unwrap());
        explained(&joined(clusters).unwrap(), ends, Transport::Ports(Protocol::Tcp), Some(5432)).unwrap()
    };
    let mut all = vec![
        render(&explain(&clusters, "shop/web", "make/tool@east")),
        render(&explain(&clusters, "shop/cron", "10.245.1.3")),
        render(&explain(&clusters, "shop/web@east", "shop/db@west")),
        render(&explain(&clusters, "node:node-1@east", "shop/web")),
    ];
    // A Deny of others' pods holds for whoever in their CIDRs nobody tells of, such as their nodes' mesh addresses.
    let all_of_east = json!([{"namespaces": {"matchLabels": {"hawser.dev/cluster": "east"}}}]);
    clusters[0].cluster_policies =
        objects(vec![json!({"metadata": {"name": "no-east"}, "spec": {"tier": "Admin", "priority": 1,
        "subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": all_of_east}]}})]);
    all.push(render(&explain(&clusters, "node:node-1@east", "shop/web")));
    expect![[r#"
        shop/web to make/tool@east: it may pass

        10.244.1.2 to 10.245.1.3
          egress of shop/web to 10.245.1.3 (pod make/tool@east), TCP port 5432: allowed: no policy says anything of it
          ingress of make/tool from 10.244.1.2 (pod shop/web@west), TCP port 5432: allowed: NetworkPolicy make/tool ingress[0]

        fd00:10:244:1::2 to fd00:10:245:1::3
          egress of shop/web to fd00:10:245:1::3 (pod make/tool@east), TCP port 5432: allowed: no policy says anything of it
          ingress of make/tool from fd00:10:244:1::2 (pod shop/web@west), TCP port 5432: allowed: NetworkPolicy make/tool ingress[0]

        shop/cron to 10.245.1.3: it is denied

        10.244.1.4 to 10.245.1.3
          egress of shop/cron to 10.245.1.3 (pod make/tool@east), TCP port 5432: allowed: no policy says anything of it
          ingress of make/tool from 10.244.1.4 (pod shop/cron@west), TCP port 5432: denied: NetworkPolicy make/tool isolates the pod, and no rule allows

        shop/web@east to shop/db@west: it is denied

        10.245.1.2 to 10.244.2.3
          egress of shop/web to 10.244.2.3 (pod shop/db@west), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from 10.245.1.2 (pod shop/web@east), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        fd00:10:245:1::2 to fd00:10:244:2::3
          egress of shop/web to fd00:10:244:2::3 (pod shop/db@west), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from fd00:10:245:1::2 (pod shop/web@east), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        node:node-1@east to shop/web: it may pass

        10.245.1.1 to 10.244.1.2
          source: no pod that is known, so no policy of its own
          ingress of shop/web from 10.245.1.1 (outside the cluster), TCP port 5432: allowed: no policy says anything of it

        fd00:10:245:1::1 to fd00:10:244:1::2
          source: no pod that is known, so no policy of its own
          ingress of shop/web from fd00:10:245:1::1 (outside the cluster), TCP port 5432: allowed: no policy says anything of it

        node:node-1@east to shop/web: it is denied

        10.245.1.1 to 10.244.1.2
          source: no pod that is known, so no policy of its own
          ingress of shop/web from 10.245.1.1 (unknown), TCP port 5432: denied: ClusterNetworkPolicy no-east ingress[0]

        fd00:10:245:1::1 to fd00:10:244:1::2
          source: no pod that is known, so no policy of its own
          ingress of shop/web from fd00:10:245:1::1 (unknown), TCP port 5432: denied: ClusterNetworkPolicy no-east ingress[0]
    "#]].assert_eq(&all.join("\n"));
}

#[test]
fn clusters_that_do_not_know_each_other_are_named_with_the_remedy() {
    let clusters = west_and_east();
    let [west, east] = &clusters;
    let why = |worlds: Result<Worlds, ExplainError>| worlds.unwrap_err().to_string();
    let deaf = Worlds::new(read(west, vec![peer("east", EAST)]), Some(read(east, Vec::new())));
    assert!(why(deaf).contains("cluster east has no ClusterPeer west"));
    let twice = Worlds::new(read(west, Vec::new()), Some(read(west, Vec::new())));
    assert!(why(twice).contains("both kubeconfigs lead to clusters called west"));
    let asked = |worlds: &Worlds, to: &str| {
        let ends = (&"shop/web".parse().unwrap(), &to.parse().unwrap());
        explained(worlds, ends, Transport::Icmp, None)
    };
    let unread = asked(&alone(west), "make/tool@east").unwrap_err().to_string();
    assert!(
        unread.contains("make/tool@east: the policies of cluster east were not read (only those of west)"),
        "{unread}"
    );
    assert!(unread.contains("--remote-context"), "{unread}");
    assert!(
        asked(&joined(&clusters).unwrap(), "make/tool@north")
            .unwrap_err()
            .to_string()
            .contains("west and east")
    );
    // Who asks for other clusters' pods without reading them is told so.
    let lonely = asked(&alone(east), "10.244.1.2").unwrap();
    assert!(lonely.verdict.exit_code() == 4 && lonely.doubts[0].contains("--remote-context"), "{lonely:?}");
}

fn text(from: &str, to: &str, port: Option<u16>) -> String {
    render(&ask(&shop(), from, to, port).unwrap())
}

#[test]
fn both_sides_are_explained_with_the_rule_that_decides() {
    let all = [
        text("shop/web", "shop/db", Some(5432)),
        text("shop/cron", "shop/db", Some(5432)),
        text("shop/web", "shop/cron", Some(22)),
        text("tryout/new", "shop/cron", None),
        text("node:node-2", "shop/db", Some(5432)),
        text("shop/monitor", "shop/db", Some(80)),
        text("198.51.100.7", "shop/db", Some(5432)),
        text("shop/web", "10.244.2.77", Some(80)),
    ];
    expect![[r#"
        shop/web to shop/db: it may pass

        10.244.1.2 to 10.244.2.3
          egress of shop/web to 10.244.2.3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from 10.244.1.2 (pod shop/web), TCP port 5432: allowed: NetworkPolicy shop/db ingress[0]

        fd00:10:244:1::2 to fd00:10:244:2::3
          egress of shop/web to fd00:10:244:2::3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from fd00:10:244:1::2 (pod shop/web), TCP port 5432: allowed: NetworkPolicy shop/db ingress[0]

        shop/cron to shop/db: it is denied

        10.244.1.4 to 10.244.2.3
          egress of shop/cron to 10.244.2.3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from 10.244.1.4 (pod shop/cron), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        fd00:10:244:1::4 to fd00:10:244:2::3
          egress of shop/cron to fd00:10:244:2::3 (pod shop/db), TCP port 5432: allowed: no policy says anything of it
          ingress of shop/db from fd00:10:244:1::4 (pod shop/cron), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        shop/web to shop/cron: it is denied

        10.244.1.2 to 10.244.1.4
          egress of shop/web to 10.244.1.4 (pod shop/cron), TCP port 22: allowed: no policy says anything of it
          ingress of shop/cron from 10.244.1.2 (pod shop/web), TCP port 22: denied: ClusterNetworkPolicy no-ssh ingress[0]

        fd00:10:244:1::2 to fd00:10:244:1::4
          egress of shop/web to fd00:10:244:1::4 (pod shop/cron), TCP port 22: allowed: no policy says anything of it
          ingress of shop/cron from fd00:10:244:1::2 (pod shop/web), TCP port 22: denied: ClusterNetworkPolicy no-ssh ingress[0]

        tryout/new to shop/cron: it may pass

        10.244.2.5 to 10.244.1.4
          egress of tryout/new to 10.244.1.4 (pod shop/cron), protocol 1: allowed: NetworkPolicy tryout/v4-only egress[0]
          ingress of shop/cron from 10.244.2.5 (pod tryout/new), protocol 1: allowed: no policy says anything of it

        fd00:10:244:2::5 to fd00:10:244:1::4
          egress of tryout/new to fd00:10:244:1::4 (pod shop/cron), protocol 58: passes, audited: NetworkPolicy tryout/v4-only isolates the pod, and no rule allows
          ingress of shop/cron from fd00:10:244:2::5 (pod tryout/new), protocol 58: allowed: no policy says anything of it

        node:node-2 to shop/db: it may pass

        192.0.2.2 to 10.244.2.3
          source: no pod that is known, so no policy of its own
          ingress of shop/db from 192.0.2.2 (node node-2), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows; it passes all the same, since it comes from the pod's own node

        2001:db8::2 to fd00:10:244:2::3
          source: no pod that is known, so no policy of its own
          ingress of shop/db from 2001:db8::2 (node node-2), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows; it passes all the same, since it comes from the pod's own node

        shop/monitor to shop/db: it is denied

        10.244.1.1 to 10.244.2.3
          source: no pod that is known, so no policy of its own
          ingress of shop/db from 10.244.1.1 (node node-1), TCP port 80: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        fd00:10:244:1::1 to fd00:10:244:2::3
          source: no pod that is known, so no policy of its own
          ingress of shop/db from fd00:10:244:1::1 (node node-1), TCP port 80: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        198.51.100.7 to shop/db: it is denied

        198.51.100.7 to 10.244.2.3
          source: no pod that is known, so no policy of its own
          ingress of shop/db from 198.51.100.7 (outside the cluster), TCP port 5432: denied: NetworkPolicy shop/db isolates the pod, and no rule allows

        shop/web to 10.244.2.77: it may pass

        10.244.1.2 to 10.244.2.77
          egress of shop/web to 10.244.2.77 (unknown), TCP port 80: allowed: no policy says anything of it
          destination: no pod that is known, so no policy of its own
    "#]].assert_eq(&all.join("\n"));
}

/// A change of an agent's evidence, or why it is silent.
type Agent<'a> = Result<fn(&mut NodeEvidence), &'a str>;

/// The shop, where the agents of both nodes have said something.
fn enforced(agents: [Agent<'_>; 2], from: &str, to: &str) -> Explained {
    let mut worlds = alone(&shop());
    let ends = (&from.parse().unwrap(), &to.parse().unwrap());
    let [asked, _] = worlds.enforcers([ends.0, ends.1]).unwrap();
    let answer = |number: u8, agent: Agent<'_>| -> Answer {
        let mut evidence = evidence(number, 2);
        agent.map_err(str::to_owned)?(&mut evidence);
        Ok(Box::new(evidence))
    };
    let answers = (1..).zip(agents).map(|(number, agent)| (format!("node-{number}"), answer(number, agent)));
    worlds.told([answers.filter(|(node, _)| asked.contains(node)).collect(), BTreeMap::new()]);
    explained(&worlds, ends, Transport::Ports(Protocol::Tcp), Some(5432)).unwrap()
}

#[test]
fn what_policy_denies_is_denied_only_where_its_node_is_known_to_enforce_it() {
    let well: Result<fn(&mut NodeEvidence), &str> = Ok(|_| {});
    let off: Result<fn(&mut NodeEvidence), &str> = Ok(|all| {
        all.settings.data_path = false;
        all.guard.data_path = DataPath::Off;
    });
    let silent = Err("no answer in 20 s");
    let told = |agents, from: &str, to: &str| {
        let explained = enforced(agents, from, to);
        (explained.verdict.exit_code(), render(&explained))
    };
    let check = |(code, text): (u8, String), wanted: u8, words: &[&str]| {
        let missing: Vec<&&str> = words.iter().filter(|word| !text.contains(**word)).collect();
        assert!(code == wanted && missing.is_empty(), "wanted {wanted} and {missing:?}, got {code}: {text}");
        text
    };
    let text =
        check(told([well, well], "shop/cron", "shop/db"), 3, &["shop/cron to shop/db: it is denied\n"]);
    assert!(!text.contains("Not known"), "{text}");
    check(
        told([well, off], "shop/cron", "shop/db"),
        4,
        &[
            "policy denies it, and nothing enforces that: it may pass",
            "and no rule allows; it passes all the same, since nothing enforces that on node node-2\n",
            "Not known\n  node node-2: no policy is enforced",
        ],
    );
    check(
        told([well, silent], "shop/cron", "shop/db"),
        3,
        &[
            "policy denies it, and whether that is in force is not known",
            "and no rule allows; whether that is in force on node node-2 is not known\n",
            "its agent is silent: no answer in 20 s",
        ],
    );
    // Of the node that denies it is known; what is not known of the other does not let it pass.
    let text =
        check(told([silent, well], "shop/cron", "shop/db"), 3, &["it is denied\n", "node node-1: whether"]);
    assert!(!text.contains("whether that is in force"), "{text}");
    // What may pass may be held up by what is in force in place of policy.
    check(told([well, silent], "shop/web", "shop/db"), 4, &["it may pass, as far as is known\n"]);
    check(told([well, well], "shop/web", "shop/db"), 0, &["it may pass\n"]);
    // Who is no pod has no policy, and his node nothing to enforce.
    check(told([silent, well], "node:node-1", "shop/db"), 3, &["it is denied\n"]);
    let json = serde_json::to_value(enforced([well, off], "shop/cron", "shop/db")).unwrap();
    let side = &json["flows"][0]["ingress"];
    assert_eq!((&side["enforcement"], &side["passes"]), (&json!("nothing"), &json!(true)), "{side}");
    assert_eq!(side["verdict"], "Deny", "{side}");
}

#[test]
fn the_agents_of_both_ends_nodes_are_asked_each_in_its_own_cluster() {
    let nodes = |worlds: &Worlds, from: &str, to: &str| {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        worlds.enforcers([&from, &to]).unwrap().map(|nodes| nodes.into_iter().collect::<Vec<_>>().join(" "))
    };
    let here = alone(&shop());
    assert_eq!(nodes(&here, "shop/web", "shop/db"), ["node-1 node-2", ""]);
    assert_eq!(nodes(&here, "shop/web", "shop/cron"), ["node-1", ""]);
    assert_eq!(nodes(&here, "shop/monitor", "10.244.2.3"), ["node-2", ""]);
    assert_eq!(nodes(&here, "node:node-1", "198.51.100.7"), ["", ""]);
    let both = joined(&west_and_east()).unwrap();
    assert_eq!(nodes(&both, "shop/db", "make/tool@east"), ["node-2", "node-1"]);
    assert_eq!(nodes(&both, "10.245.1.2", "shop/db@west"), ["node-2", "node-1"]);
    assert!(here.enforcers([&"shop/nobody".parse().unwrap(), &"shop/db".parse().unwrap()]).is_err());
}

#[test]
fn exit_codes_tell_what_may_pass_from_what_is_denied_and_what_is_not_known() {
    let code = |objects: &Objects, from, to| ask(objects, from, to, Some(5432)).unwrap().verdict.exit_code();
    let mut objects = shop();
    assert_eq!(code(&objects, "shop/web", "shop/db"), 0);
    assert_eq!(code(&objects, "shop/cron", "shop/db"), 3);
    objects
        .policies
        .push(serde_json::from_value(policy("shop", "broken", json!({"ingress": "all"}))).unwrap());
    assert_eq!(code(&objects, "shop/web", "shop/db"), 4);
    assert_eq!(code(&objects, "shop/cron", "shop/db"), 3);
}

#[test]
fn what_cannot_be_asked_for_is_named_with_its_remedy() {
    let why = |from: &str, to: &str| ask(&shop(), from, to, Some(80)).unwrap_err().to_string();
    assert!(why("shop/web", "shop/nobody").contains("no pod shop/nobody; `kubectl get pods -n shop`"));
    assert!(why("shop/web", "shop/waiting").contains("hawser.dev/ips"));
    assert!(why("shop/web", "10.96.0.9").contains("an address of Service shop/db"));
    assert!(why("node:nobody", "shop/web").contains("no node nobody"));
    assert!(why("192.0.2.77", "2001:db8::77").contains("no address of one family"));
    assert!("10.245.1.3@east".parse::<End>().unwrap_err().to_string().contains("leave the @ away"));
    assert!("shop/web@East!".parse::<End>().unwrap_err().to_string().contains("no cluster behind its @"));
    for wrong in ["web", "a/b/c", "/web", "shop/", "node:", "10.0.0.0/8"] {
        let error = wrong.parse::<End>().expect_err(wrong).to_string();
        assert!(error.contains("NAMESPACE/POD"), "{error}");
    }
    assert_eq!("TCP".parse(), Ok(Transport::Ports(Protocol::Tcp)));
    assert_eq!("6".parse(), Ok(Transport::Ports(Protocol::Tcp)));
    assert_eq!("47".parse(), Ok(Transport::Number(47)));
    assert!("gre".parse::<Transport>().is_err() && "256".parse::<Transport>().is_err());
}

#[test]
fn a_node_speaks_to_pods_of_others_by_its_mesh_address_and_to_all_else_by_its_internal_ips() {
    let mut objects = shop();
    let nodes_only = json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8::/64"}}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "cron"}}, "ingress": [{"from": nodes_only}]});
    objects.policies.push(serde_json::from_value(policy("shop", "nodes-only", spec)).unwrap());
    let sources = |from: &str, to: &str| -> Vec<String> {
        let explained = ask(&objects, from, to, Some(80)).unwrap();
        explained.flows.iter().map(|flow| format!("{} {}", flow.flow.source, flow.passes)).collect()
    };
    // What is on the wire bears the mesh address, which is not in the nodes' network.
    assert_eq!(sources("node:node-2", "shop/cron"), ["10.244.2.1 false", "fd00:10:244:2::1 false"]);
    // Pods of its own node it reaches whatever policy says.
    assert_eq!(sources("shop/monitor", "shop/cron"), ["192.0.2.1 true", "2001:db8::1 true"]);
    assert_eq!(sources("node:node-2", "node:node-1"), ["192.0.2.2 true", "2001:db8::2 true"]);
    assert_eq!(sources("node:node-2", "10.244.1.77"), ["10.244.2.1 true"]);
}

#[test]
fn every_address_and_node_port_of_a_service_is_asked_for_by_its_backends() {
    let mut objects = shop();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalIPs": ["203.0.113.8"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
    objects.services.push(
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}}))
        .unwrap(),
    );
    let why = |to: &str, port| {
        ask(&objects, "shop/cron", to, Some(port)).map(drop).map_err(|error| error.to_string())
    };
    for address in ["10.96.0.10", "203.0.113.7", "203.0.113.8"] {
        assert!(why(address, 80).unwrap_err().contains("an address of Service shop/web"), "{address}");
    }
    for node in ["node:node-1", "192.0.2.2", "10.244.2.1"] {
        assert!(why(node, 30080).unwrap_err().contains("node port of Service shop/web"), "{node}");
    }
    assert_eq!(why("node:node-1", 80), Ok(()));
    assert_eq!(why("198.51.100.7", 30080), Ok(()));
}

#[test]
fn of_two_nodes_that_claim_one_address_the_older_has_it() {
    let mut objects = shop();
    let mut thief = node(2);
    thief["metadata"] = json!({"name": "a-thief", "creationTimestamp": "2026-11-29T10:00:00Z"});
    objects.nodes.push(serde_json::from_value(thief).unwrap());
    let world = facts::world(&objects);
    assert_eq!(world.addresses(&Party::Node("node-2".to_owned())).unwrap().len(), 2);
    assert!(world.addresses(&Party::Node("a-thief".to_owned())).is_err());
}
