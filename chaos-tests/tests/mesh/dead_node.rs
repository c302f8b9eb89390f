//! A Node whose kubelet is silent: with its machine, and without.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chaos_tests::Lab;
use chaos_tests::cluster::node_name;
use chaos_tests::matrix::Party;
use chaos_tests::witness::{Witness, events, flowing, lossless};
use kubeapi::Patch;
use netlab::eventually;
use serde_json::{Value, json};

use crate::none;
use crate::rotation::{keys, said};
use crate::upgrade::{HANDED_OVER, pid, serve, upgrading_with};

/// As the controller of node life cycles does when a kubelet is silent.
fn unheard(lab: &Lab, number: u8) -> Result<()> {
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status.",
    }]}});
    lab.api().store().patch_status("nodes", None, &node_name(number), &Patch::Merge(status))?;
    Ok(())
}

#[test]
fn a_dead_node_holds_up_no_tunnel_and_one_of_which_the_kubelet_alone_is_dead_loses_no_packet() -> Result<()> {
    let mut lab = upgrading_with("dead", 3, "  goneSeconds: 5\n")?;
    let pods = (1..=3).map(|n| lab.add_pod(n, &format!("pod-{n}"))).collect::<Result<Vec<_>>>()?;
    let mut witness = Witness::new(&lab)?;
    none(&witness.failures(&Party::pod(&pods[0])?, &Party::pod(&pods[2])?, 3))?;
    let mut streams = witness.streams(&pods[0].namespace, &pods[1].namespace, &pods[1].ips)?;
    streams.extend(witness.streams(&pods[1].namespace, &pods[0].namespace, &pods[0].ips)?);
    flowing(&streams, 20)?;
    let rest: Vec<_> =
        [lab.node(1).port, lab.node(2).port].into_iter().chain(lab.hosts.iter().copied()).collect();
    lab.switch.partition(&[&[lab.node(3).port], &rest])?;
    for number in [2, 3] {
        unheard(&lab, number)?;
    }
    let (old, begun) = (keys(lab.node(1))?, Instant::now());
    lab.node_mut(1).start_next_tunnel()?;
    let second = pid(lab.node(1).next_tunnel())?;
    eventually(HANDED_OVER, "the new tunnel has both devices", || match serve(lab.node(1)) {
        both if both == [Some(second); 2] => Ok(()),
        other => Err(format!("{other:?}; {}", said(lab.node(1)))),
    })?;
    lab.node_mut(1).retire_tunnel()?;
    let took = begun.elapsed();
    // A device that changes hands has no key for a moment, so the record is looked at.
    let record = eventually(HANDED_OVER, "both keys are in the record", || {
        let text = lab.node(1).sh("cat /var/lib/hawser/audit/keys.jsonl").map_err(|e| format!("{e:#}"))?;
        if text.lines().count() == 2 { Ok(text) } else { Err(text) }
    })?;
    let new = keys(lab.node(1))?;
    ensure!(new.iter().all(|key| !old.contains(key)), "{old:?} and then {new:?}");
    ensure!(events(&lab, "RotationOverdue")?.is_empty(), "a deadline came");
    for line in record.lines() {
        let line: Value = serde_json::from_str(line)?;
        ensure!(line["verdict"] == json!({"gone": [node_name(3)]}), "{line}");
    }
    flowing(&streams, 50)?;

    lab.switch.heal()?;
    let back = Instant::now();
    for (from, to) in [(0, 2), (2, 0)] {
        for ip in &pods[to].ips {
            let _echo = Party::pod(&pods[to])?;
            eventually(Duration::from_secs(60), "the node that came back talks again", || {
                witness.knock(&pods[from].namespace, *ip, Duration::from_millis(300))
            })?;
        }
    }
    let back = back.elapsed();
    let gap = lossless(streams)?;
    witness.clean(&lab)?;
    println!(
        "handed over after {took:?} without the dead node, which talks again {back:?} after it came back; the others: 0 lost, \
         longest gap {gap:?}"
    );
    Ok(())
}
