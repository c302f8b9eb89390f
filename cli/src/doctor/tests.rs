use expect_test::expect;
use mesh_core::evidence::{CniEvidence, DataPath, Note, OtherNetwork, PathEvidence, PathResult};

use super::examine::examine;
use super::*;
use crate::audit::fixture::{inputs, of, says, says_of_east};

fn said(nodes: u8) -> Said {
    let node = |node: u8| {
        let said = NodeSaid {
            internal_ips: vec![format!("192.0.2.{node}").parse().unwrap()],
            pod_cidrs: vec![format!("10.244.{node}.0/24").parse().unwrap()],
            kernel: Some("6.12.48".to_owned()),
        };
        (format!("node-{node}"), said)
    };
    Said {
        nodes: (1..=nodes).map(node).collect(),
        services: Ok(BTreeMap::from([("10.96.0.1".parse().unwrap(), "default/kubernetes".to_owned())])),
        api_servers: Ok(BTreeSet::from(["192.0.2.1".parse().unwrap()])),
    }
}

/// Codes of what is found, but for those of healthy clusters.
fn codes(inputs: Inputs, said: &Said) -> (Vec<String>, u8) {
    let found = examine(&inputs, said);
    let codes = found.checks.iter().flat_map(|check| &check.findings).map(|finding| finding.code.clone());
    (codes.collect(), found.verdict.exit_code())
}

/// What the installer of node 1 says.
fn plugin(inputs: &mut Inputs) -> &mut CniEvidence {
    of(inputs, 1).host.as_mut().unwrap().cni.as_mut().unwrap()
}

fn other(file: &str, first: bool) -> OtherNetwork {
    OtherNetwork { file: file.to_owned(), network: "network n, plugin p".to_owned(), first }
}

/// What node 1 has found of its path to node 2.
fn path(inputs: &mut Inputs, result: PathResult) {
    says(inputs, 1, 2).path = Some(PathEvidence { at: 1, size: 1420, result });
}

#[test]
fn a_healthy_cluster_has_no_finding() {
    let found = examine(&inputs(3), &said(3));
    expect![[r#"
        12 checks: 12 well, 0 with faults, 0 not known

        agents: well
          whether each node's agent answers and is in step: 3 of 3 do

        control plane: well
          whether API servers are nodes of the mesh: 1 addresses

        kernels: well
          releases, tested are 6.1 and later, and WireGuard

        data path: well
          policy, guards and firewall of 3 of 3 nodes

        hosts: well
          what agents report of themselves and their hosts, of 3 of 3 nodes

        tunnel: well
          sessions of all pairs by UDP 51880 and 51881, both sides, of 3 of 3 nodes

        plugin: well
          whether runtimes connect new pods by Hawser of 3 of 3 nodes

        keys: well
          keys and pre-shared keys of 3 of 3 nodes

        mtu: well
          MTUs of tunnels and of the devices beneath them, as agents see them; whether echoes of the tunnel's MTU come through: 6 of 6 ways between nodes were tried

        prefixes: well
          pod CIDRs of configuration and nodes against InternalIPs, addresses of Services, and each other

        headroom: well
          addresses left for pods on each node, and pod CIDRs left for nodes

        leftovers: well
          devices of other cluster networks on the nodes
    "#]].assert_eq(&render(&found));
    assert_eq!(found.verdict.exit_code(), 0);
}

#[test]
fn each_finding_comes_with_its_remedy() {
    let (mut inputs, mut said) = (inputs(3), said(3));
    inputs.nodes.get_mut("node-3").unwrap().answer =
        Err("no pod of mesh-agent in hawser-system is on it".into());
    says(&mut inputs, 1, 2).slots[0].entry.as_mut().unwrap().handshake_at = None;
    let host = of(&mut inputs, 1).host.as_mut().unwrap();
    host.foreign_links = vec!["cali12".into(), "flannel.1".into()];
    host.pools[0].used = 240;
    of(&mut inputs, 2).host.as_mut().unwrap().uplink_mtu = Some(1450);
    said.api_servers = Ok(BTreeSet::from(["198.51.100.1".parse().unwrap()]));
    let found = examine(&inputs, &said);
    expect![[r#"
        12 checks: 1 well, 4 with faults, 7 not known

        agents: not known
          whether each node's agent answers and is in step: 2 of 3 do
          not known  node-silent  node node-3: no pod of mesh-agent in hawser-system is on it
                     remedy       kubectl -n hawser-system get pods -o wide: is a pod of mesh-agent on that node, and does it run? Its log says why not; where none is, see tolerations and nodeSelector of the DaemonSet; where it runs, metricsAddress of its configuration has to be one that the API server reaches

        control plane: well
          whether API servers are nodes of the mesh: 1 addresses
          to know  control-plane-outside  the API server at 198.51.100.1 is no node: it cannot reach pods, so webhooks and aggregated APIs that are pods do not work
                   remedy                 join its host as a Node with a pod of mesh-agent, or run webhooks in the nodes' network (hostNetwork), or let it reach pods in plaintext (nonMasqueradeCIDRs, and routes to pod CIDRs on its host: deploy/README.md); without any of them nothing is to be done

        kernels: not known
          releases, tested are 6.1 and later, and WireGuard

        data path: not known
          policy, guards and firewall of 2 of 3 nodes

        hosts: not known
          what agents report of themselves and their hosts, of 2 of 3 nodes

        tunnel: FAULT
          sessions of all pairs by UDP 51880 and 51881, both sides, of 2 of 3 nodes
          fault  pair-without-handshake  node-1 has had no handshake with node-2 on hawser0; does UDP pass between them?
                 remedy                  let UDP 51880 and 51881 pass between the two nodes, both ways (firewalls, security groups); where one is behind NAT, set hawser.dev/endpoint on it

        plugin: not known
          whether runtimes connect new pods by Hawser of 2 of 3 nodes

        keys: not known
          keys and pre-shared keys of 2 of 3 nodes

        mtu: FAULT
          MTUs of tunnels and of the devices beneath them, as agents see them; whether echoes of the tunnel's MTU come through: 4 of 4 ways between nodes were tried
          fault  mtu-too-large  tunnels of node-1, node-2 have an MTU of 1420, with 80 bytes of WireGuard that is more than the 1450 of node-2: large packets to it are fragmented or lost
                 remedy         set mtu in the configuration of all agents to the smallest MTU between nodes less 80, or give all nodes one MTU

        prefixes: not known
          pod CIDRs of configuration and nodes against InternalIPs, addresses of Services, and each other

        headroom: FAULT
          addresses left for pods on each node, and pod CIDRs left for nodes
          fault  pool-nearly-full  node node-1: 240 of 253 addresses of 10.244.1.0/24 are in use, 1 more rest after their pods
                 remedy            move pods away, lower maxPods of its kubelet, or plan larger pod CIDRs (hawser plan)

        leftovers: FAULT
          devices of other cluster networks on the nodes
          fault  other-network  node node-1: cali12 of Calico
                 remedy         uninstall it; delete its files in /etc/cni/net.d and restart pods that it connected, or reboot the node, which also takes its devices and rules away
          fault  other-network  node node-1: flannel.1 of Flannel
                 remedy         uninstall it; delete its files in /etc/cni/net.d and restart pods that it connected, or reboot the node, which also takes its devices and rules away
    "#]].assert_eq(&render(&found));
    for finding in found.checks.iter().flat_map(|check| &check.findings) {
        assert!(!finding.remedy.is_empty(), "{finding:?}");
    }
    assert_eq!(found.verdict.exit_code(), 3);
}

#[test]
fn each_cause_is_found_by_its_check_and_nothing_else_is() {
    type Break = fn(&mut Inputs, &mut Said);
    let cases: [(Break, &[&str], u8); 24] = [
        (
            |_, said| said.api_servers = Ok(BTreeSet::from(["192.0.2.9".parse().unwrap()])),
            &["control-plane-outside"],
            0,
        ),
        (
            |inputs, said| {
                said.api_servers = Ok(BTreeSet::from(["192.0.2.9".parse().unwrap()]));
                for node in 1..=2 {
                    of(inputs, node).exemptions.prefixes = vec!["192.0.2.9/32".parse().unwrap()];
                }
            },
            &["control-plane-exempt"],
            0,
        ),
        (
            |inputs, said| {
                said.api_servers = Ok(BTreeSet::from(["192.0.2.9".parse().unwrap()]));
                of(inputs, 1).exemptions.prefixes = vec!["192.0.2.9/32".parse().unwrap()];
            },
            &["control-plane-outside"],
            0,
        ),
        (|_, said| said.api_servers = Err("no".into()), &["api-servers-unread"], 4),
        (|_, said| said.services = Err("no".into()), &["services-unread"], 4),
        (
            |inputs, _| of(inputs, 1).host.as_mut().unwrap().kernel = Some("5.15.0-generic".into()),
            &["kernel-untested"],
            0,
        ),
        (
            |inputs, _| of(inputs, 1).wireguard = mesh_core::evidence::Engine::Userspace,
            &["wireguard-userspace"],
            0,
        ),
        (
            |inputs, _| of(inputs, 1).guard.data_path = DataPath::Failed { reason: "x".into() },
            &["data-path-failed"],
            3,
        ),
        (
            |inputs, _| of(inputs, 1).problems = vec![Note { code: "X".into(), text: "x".into() }],
            &["problem"],
            3,
        ),
        (|inputs, _| of(inputs, 1).host.as_mut().unwrap().tunnel_mtu = 1400, &["mtu-differs"], 0),
        (|inputs, _| of(inputs, 1).host.as_mut().unwrap().uplink_mtu = None, &["mtu-unknown"], 4),
        (
            |_, said| said.services = Ok(BTreeMap::from([("10.244.9.1".parse().unwrap(), "a/b".into())])),
            // Whatever lies in the configured pod CIDRs: also where no node has that part yet.
            &["service-inside-pods"],
            3,
        ),
        (
            |_, said| {
                said.nodes.get_mut("node-1").unwrap().internal_ips = vec!["10.244.0.9".parse().unwrap()]
            },
            &["control-plane-outside", "node-inside-pods"],
            3,
        ),
        (
            |_, said| {
                said.nodes.get_mut("node-1").unwrap().pod_cidrs = vec!["10.245.1.0/24".parse().unwrap()]
            },
            &["cidr-outside"],
            3,
        ),
        (
            |_, said| {
                said.nodes.get_mut("node-1").unwrap().pod_cidrs = vec!["10.244.2.0/25".parse().unwrap()]
            },
            &["cidr-twice"],
            3,
        ),
        (|_, said| said.nodes.get_mut("node-1").unwrap().pod_cidrs = Vec::new(), &["node-without-cidr"], 3),
        (|inputs, _| plugin(inputs).others.push(other("05-cilium.conflist", true)), &["cni-unused"], 3),
        (|inputs, _| plugin(inputs).others.push(other("10-flannel.conflist", false)), &["cni-other"], 0),
        (
            |inputs, _| plugin(inputs).trouble = Some("the agent is not ready".into()),
            &["cni-not-installed"],
            3,
        ),
        (|inputs, _| plugin(inputs).at -= 600, &["cni-stale"], 4),
        (|inputs, _| of(inputs, 1).host.as_mut().unwrap().cni = None, &["cni-unknown"], 4),
        (
            |inputs, _| path(inputs, PathResult::Narrow { passes: Some(1372), told: None }),
            &["path-narrow"],
            3,
        ),
        (
            |inputs, _| path(inputs, PathResult::Narrow { passes: Some(1372), told: Some(1372) }),
            &["path-narrow-told"],
            0,
        ),
        (|inputs, _| path(inputs, PathResult::Silent), &["path-silent"], 0),
    ];
    for (number, (change, wanted, code)) in cases.into_iter().enumerate() {
        let (mut inputs, mut said) = (inputs(2), said(2));
        change(&mut inputs, &mut said);
        assert_eq!(
            codes(inputs, &said),
            (wanted.iter().map(|w| (*w).to_owned()).collect(), code),
            "case {number}"
        );
    }
}

#[test]
fn a_narrow_path_is_named_with_the_mtu_that_it_takes() {
    let remedy = |result| {
        let mut inputs = inputs(2);
        path(&mut inputs, result);
        let found = examine(&inputs, &said(2));
        let check = found.checks.into_iter().find(|check| check.name == "mtu").unwrap();
        assert!(check.looked.contains("2 of 2 ways between nodes were tried"), "{}", check.looked);
        let finding = check.findings.into_iter().next().map(|finding| (finding.text, finding.remedy));
        finding.unwrap_or_default()
    };
    let (text, cure) = remedy(PathResult::Narrow { passes: Some(1372), told: None });
    assert!(
        text.contains("between node-1 and node-2") && text.contains("those of 1372 bytes come through"),
        "{text}"
    );
    assert!(
        cure.contains("mtu in the configuration of all agents to 1372") && cure.contains("let ICMP pass"),
        "{cure}"
    );
    let (text, cure) = remedy(PathResult::Narrow { passes: None, told: None });
    assert!(
        text.contains("so are those of 1280 bytes") && cure.contains("at least 1360 bytes"),
        "{text} {cure}"
    );
    let (text, cure) = remedy(PathResult::Narrow { passes: None, told: Some(1392) });
    assert!(text.contains("packets of 1392 bytes") && cure.contains("to 1392 or less"), "{text} {cure}");
    assert_eq!(remedy(PathResult::Fits), Default::default());
}

#[test]
fn ways_that_were_not_tried_are_named_and_a_round_that_failed_is_not_well() {
    let mtu = |change: fn(&mut Inputs)| {
        let mut inputs = inputs(3);
        change(&mut inputs);
        let found = examine(&inputs, &said(3));
        let check = found.checks.into_iter().find(|check| check.name == "mtu").unwrap();
        assert!(check.findings.iter().all(|finding| finding.code == "paths-untried"), "{check:?}");
        let texts = check.findings.iter().map(|finding| format!("{:?}: {}", finding.effect, finding.text));
        (check.verdict, texts.collect::<Vec<_>>())
    };
    assert_eq!(mtu(|_| {}), (Verdict::Holds, Vec::new()));
    let some: fn(&mut Inputs) = |inputs| says(inputs, 1, 2).path = None;
    let words = "Note: 5 of 6 ways between nodes were tried so far: what the others take is not known";
    assert_eq!(mtu(some), (Verdict::Holds, vec![words.to_owned()]));
    let none: fn(&mut Inputs) = |inputs| {
        for other in [1, 3] {
            says(inputs, 2, other).path = None;
        }
    };
    let words = "Missing: node node-2: none of its 2 ways to others was tried";
    assert_eq!(mtu(none), (Verdict::Incomplete, vec![words.to_owned()]));
    // What an earlier round has found is no excuse for the last one.
    let failed: fn(&mut Inputs) = |inputs| {
        of(inputs, 3).host.as_mut().unwrap().path_trouble = Some("no raw socket".to_owned());
    };
    let words = "Missing: node node-3: its agent could not try what its paths take, 2 of 2 ways were tried before: no raw socket";
    assert_eq!(mtu(failed), (Verdict::Incomplete, vec![words.to_owned()]));
    // Who has no peer has nothing to try.
    let found = examine(&inputs(1), &said(1));
    assert_eq!(found.verdict, Verdict::Holds);
}

#[test]
fn a_joined_cluster_that_does_not_answer_is_a_fault_of_the_tunnel_where_it_answers_others() {
    let tunnel = |inputs: &Inputs| {
        let found = examine(inputs, &said(2));
        let check = found.checks.into_iter().find(|check| check.name == "tunnel").unwrap();
        let codes: Vec<String> = check.findings.iter().map(|finding| finding.code.clone()).collect();
        (check.verdict, codes, check.looked)
    };
    let mut all = inputs(2);
    says_of_east(&mut all, 1);
    let (verdict, codes, looked) = tunnel(&all);
    assert_eq!((verdict, codes.len()), (Verdict::Holds, 0));
    assert!(looked.contains("; 1 pairs with nodes of joined clusters, by this side alone"), "{looked}");
    says_of_east(&mut all, 1).slots[0].entry.as_mut().unwrap().unanswered = Some(60);
    let (verdict, codes, _) = tunnel(&all);
    assert_eq!((verdict, codes), (Verdict::Incomplete, vec!["joined-node-silent".to_owned()]));
    says_of_east(&mut all, 2);
    let (verdict, codes, _) = tunnel(&all);
    assert_eq!((verdict, codes), (Verdict::DoesNotHold, vec!["pair-unanswered".to_owned()]));
    let mut all = inputs(2);
    all.clusters = Ok(BTreeMap::from([("east".to_owned(), "Refused: no route".to_owned())]));
    let (verdict, codes, _) = tunnel(&all);
    assert_eq!((verdict, codes), (Verdict::Incomplete, vec!["cluster-not-connected".to_owned()]));
}

#[test]
fn of_hundreds_of_nodes_with_one_fault_some_are_named_and_all_are_counted() {
    let (mut inputs, said) = (inputs(30), said(30));
    for node in 1..=30 {
        of(&mut inputs, node).host.as_mut().unwrap().foreign_links = vec!["weave".into()];
    }
    let found = examine(&inputs, &said);
    let check = found.checks.iter().find(|check| check.name == "leftovers").unwrap();
    assert_eq!(check.findings.len(), 21);
    assert_eq!(check.findings[20].text, "and 10 more");
}

#[test]
fn of_who_is_silent_no_check_says_that_all_is_well() {
    for silent in 1..=3 {
        let mut inputs = inputs(3);
        inputs.nodes.get_mut(&format!("node-{silent}")).unwrap().answer = Err("away".into());
        let found = examine(&inputs, &said(3));
        let well: Vec<&str> = found
            .checks
            .iter()
            .filter(|check| check.verdict == Verdict::Holds)
            .map(|check| check.name)
            .collect();
        assert_eq!((well, found.verdict), (vec!["control plane"], Verdict::Incomplete));
    }
}
