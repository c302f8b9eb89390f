use expect_test::expect;
use mesh_core::evidence::Note;
use mesh_core::slot::Slot as Which;

use super::*;
use crate::audit::fixture::{NOW, inputs, of, says, says_of_east};

fn known(nodes: u8) -> BTreeMap<String, Known> {
    let known = Known { ready: Some(true), kubelet: Some("v1.36.0".to_owned()) };
    (1..=nodes).map(|node| (format!("node-{node}"), known.clone())).collect()
}

#[test]
fn a_healthy_mesh_is_a_table_and_nothing_else() {
    let status = status(inputs(3), &known(3));
    expect![[r#"
        Cluster lab: 3 of 3 agents answered; all is well
        postQuantum: prefer, hostTraffic: off

        Nodes
          NODE    READY  KUBELET  AGENT  WIREGUARD  DATA PATH  HAWSER0         HAWSER1         PEERS  OLDEST HANDSHAKE  PODS
          node-1  yes    v1.36.0  0.1.0  kernel     enforced   epoch 10, 1h0m  epoch 10, 1h0m  2/2    30s ago           7 of 253
          node-2  yes    v1.36.0  0.1.0  kernel     enforced   epoch 20, 1h0m  epoch 20, 1h0m  2/2    30s ago           7 of 253
          node-3  yes    v1.36.0  0.1.0  kernel     enforced   epoch 30, 1h0m  epoch 30, 1h0m  2/2    30s ago           7 of 253
    "#]].assert_eq(&text::render(&status));
    assert_eq!(status.verdict.exit_code(), 0);
}

#[test]
fn what_is_wrong_and_who_is_silent_is_named_beneath_what_is_known() {
    let mut inputs = inputs(4);
    of(&mut inputs, 1)
        .problems
        .push(Note { code: "CidrClaimedTwice".into(), text: "node x: pod CIDR refused".into() });
    says(&mut inputs, 1, 2).slots[0].entry.as_mut().unwrap().handshake_at = Some(NOW - 4000);
    for slot in Which::ALL {
        says(&mut inputs, 2, 3).slots[slot.index()].entry = None;
    }
    of(&mut inputs, 2).slots[1].draining = true;
    of(&mut inputs, 3).guard.data_path = DataPath::Failed { reason: "no BPF".into() };
    inputs.nodes.get_mut("node-4").unwrap().answer = Err("pod hawser-system/x: 503".into());
    let mut known = known(4);
    known.insert("node-4".into(), Known { ready: Some(false), kubelet: None });
    let status = status(inputs, &known);
    expect![[r#"
        Cluster lab: 3 of 4 agents answered; something is wrong
        postQuantum: prefer, hostTraffic: off

        Nodes
          NODE    READY  KUBELET  AGENT   WIREGUARD  DATA PATH  HAWSER0         HAWSER1                   PEERS          OLDEST HANDSHAKE  PODS
          node-1  yes    v1.36.0  0.1.0   kernel     enforced   epoch 10, 1h0m  epoch 10, 1h0m            2/3, 1 idle    1h6m ago          7 of 253
          node-2  yes    v1.36.0  0.1.0   kernel     enforced   epoch 20, 1h0m  epoch 20, 1h0m, draining  2/3, 1 silent  30s ago           7 of 253
          node-3  yes    v1.36.0  0.1.0   kernel     failed     epoch 30, 1h0m  epoch 30, 1h0m            3/3            30s ago           7 of 253
          node-4  no     -        silent

        Problems
          data-path-failed    node node-3: no policy is enforced: no BPF
          pair-without-entry  hawser0 of node-2 has no entry for node-3
          psk-differs         hawser0: node-2 and node-3 have different pre-shared keys there, so no handshake can succeed
          problem             node node-1: CidrClaimedTwice: node x: pod CIDR refused

        Not known
          node-silent  node node-4: pod hawser-system/x: 503
    "#]].assert_eq(&text::render(&status));
    assert_eq!(status.verdict.exit_code(), 3);
}

#[test]
fn silence_alone_is_no_fault_and_not_well_either() {
    let mut inputs = inputs(2);
    inputs.nodes.get_mut("node-2").unwrap().answer = Err("away".into());
    let status = status(inputs, &known(2));
    assert_eq!((status.verdict.exit_code(), status.problems.len()), (4, 0));
    assert!(
        status.missing.iter().any(|finding| finding.text.contains("node-2: away")),
        "{:?}",
        status.missing
    );
}

#[test]
fn a_joined_cluster_that_is_silent_is_not_well() {
    let mut all = inputs(2);
    says_of_east(&mut all, 1).slots[0].entry.as_mut().unwrap().handshake_at = None;
    let silent = status(all, &known(2));
    assert_eq!(silent.verdict.exit_code(), 3);
    let found = silent.problems.iter().map(|problem| (problem.code.as_str(), problem.text.as_str()));
    let text = "node-1 has had no handshake with gw@east on hawser0; does UDP pass between them?";
    assert_eq!(found.collect::<Vec<_>>(), [("pair-without-handshake", text)]);
    assert_eq!(
        (silent.nodes[0].agent.as_ref().unwrap().peers.silent, silent.nodes[0].silent.clone()),
        (1, None)
    );
    let mut all = inputs(2);
    all.clusters = Ok(BTreeMap::from([("east".to_owned(), "Refused: no route".to_owned())]));
    let apart = status(all, &known(2));
    assert_eq!((apart.verdict.exit_code(), apart.missing[0].code.as_str()), (4, "cluster-not-connected"));
}

#[test]
fn a_node_is_ready_as_its_kubelet_says_and_nobody_says_of_one_without() {
    let read = |status: serde_json::Value| {
        let node = serde_json::json!({"metadata": {"name": "n"}, "status": status});
        Known::of(&serde_json::from_value(node).unwrap())
    };
    let condition = |status| serde_json::json!({"conditions": [{"type": "Ready", "status": status}]});
    assert_eq!(read(condition("True")).ready, Some(true));
    assert_eq!(read(condition("Unknown")).ready, Some(false));
    assert_eq!(read(serde_json::json!({})), Known::default());
}
