//! Objects that are wrong: somebody is told which field of which object, and every other policy stays in force.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use chaos_tests::Lab;
use netlab::eventually;
use serde_json::{Value, json};

use crate::support::objects::{
    apply, cluster_policy, delete_cluster_policy, delete_policy, ingress_only, network_policy, peer, selector,
};
use crate::support::{Namer, settle};
use crate::{SOON, lab};

const PORT: u16 = 8080;

/// A wrong object, and what has to be said about it.
struct Wrong {
    name: &'static str,
    spec: Value,
    says: &'static [&'static str],
    cluster: bool,
}

fn wrong(name: &'static str, spec: Value, says: &'static [&'static str]) -> Wrong {
    Wrong { name, spec, says, cluster: false }
}

/// Each lets in nobody by its wrong part, and isolates nobody else than `victim`.
fn wrong_objects() -> Vec<Wrong> {
    let of_victim = |rule: Value| {
        json!({
            "podSelector": selector("app", "victim"), "policyTypes": ["Ingress"], "ingress": [rule],
        })
    };
    let block = |block: Value| of_victim(json!({"from": [{"ipBlock": block}]}));
    let ports = |port: Value| of_victim(json!({"from": [peer("nobody")], "ports": [port]}));
    let many: Vec<String> = (0..1500).map(|number| format!("value-{number}")).collect();
    let huge = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": many}]});
    let baseline = |rule: Value| {
        json!({
            "tier": "Baseline", "priority": 900,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": selector("app", "victim")}},
            "ingress": [rule],
        })
    };
    let network = json!({"tier": "Baseline", "priority": 901,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": selector("app", "victim")}},
        "egress": [{"action": "Accept", "to": [{"networks": ["10.0.0.0/40"]}]}]});
    let mut all = vec![
        wrong(
            "bad-cidr",
            block(json!({"cidr": "10.0.0.0/33"})),
            &["spec.ingress[0].from[0].ipBlock.cidr", "10.0.0.0/33"],
        ),
        wrong(
            "bad-except",
            block(json!({"cidr": "198.51.100.0/25", "except": ["203.0.113.0/24"]})),
            &["spec.ingress[0].from[0].ipBlock.except[0]", "203.0.113.0/24"],
        ),
        wrong(
            "no-port",
            ports(json!({"protocol": "TCP", "port": "nobody-has-it"})),
            &["spec.ingress[0].ports[0].port", "nobody-has-it"],
        ),
        wrong(
            "end-port",
            ports(json!({"protocol": "TCP", "port": 2000, "endPort": 1000})),
            &["spec.ingress[0].ports[0].endPort", "1000"],
        ),
        wrong(
            "huge",
            of_victim(json!({"from": [{"podSelector": huge}]})),
            &["spec.ingress[0].from[0].podSelector"],
        ),
    ];
    let cluster = |name, spec, says| Wrong { name, spec, says, cluster: true };
    all.push(cluster("bad-network", network, &["spec.egress[0].to[0].networks[0]", "10.0.0.0/40"]));
    all.push(cluster(
        "bad-action",
        baseline(json!({"action": "Perhaps", "from": [{"pods": {"namespaceSelector": {}, "podSelector": selector("app", "nobody")}}]})),
        &["spec.ingress[0].action", "Perhaps"],
    ));
    all
}

/// Waits until the API holds a message about this object with all these words: an Event, or a condition of its status.
fn said(lab: &Lab, wrong: &Wrong) -> Result<String> {
    let what = format!("somebody says what is wrong with {}", wrong.name);
    let message = eventually(SOON, &what, || -> Result<String, String> {
        let texts = if wrong.cluster { conditions(lab, wrong.name) } else { events_about(lab, wrong.name) };
        let texts = texts.map_err(|error| format!("{error:#}"))?;
        let right = texts.iter().find(|text| wrong.says.iter().all(|word| text.contains(word)));
        right.cloned().ok_or_else(|| format!("{texts:?} instead of {:?}", wrong.says))
    })?;
    Ok(message)
}

fn events_about(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let all: Vec<Value> = lab.api().store().list("events", None).map_err(|error| anyhow!("{error}"))?;
    let about = |event: &&Value| {
        event["involvedObject"]["name"] == name && event["involvedObject"]["kind"] == "NetworkPolicy"
    };
    let text = |event: &Value| event["message"].as_str().unwrap_or_default().to_owned();
    Ok(all.iter().filter(about).map(text).collect())
}

/// Which agents have written Events about NetworkPolicies of this name; of none: of any.
fn speakers(lab: &Lab, name: Option<&str>) -> Result<BTreeSet<String>> {
    let all: Vec<Value> = lab.api().store().list("events", None).map_err(|error| anyhow!("{error}"))?;
    let about = all.iter().filter(|event| {
        let of = &event["involvedObject"];
        of["kind"] == "NetworkPolicy" && name.is_none_or(|name| of["name"] == name)
    });
    Ok(about.map(|event| event["reportingInstance"].as_str().unwrap_or_default().to_owned()).collect())
}

fn conditions(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let object: Value =
        lab.api().store().get("clusternetworkpolicies", None, name).map_err(|error| anyhow!("{error}"))?;
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(all.iter().map(|condition| condition["message"].as_str().unwrap_or_default().to_owned()).collect())
}

#[test]
fn a_wrong_object_is_named_with_its_field_and_costs_no_other_policy() -> Result<()> {
    let mut lab = lab("wrong", 2)?;
    let [client, stranger, victim] =
        [lab.add_pod(1, "client")?, lab.add_pod(1, "stranger")?, lab.add_pod(2, "victim")?];
    let others = [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?];
    let mut servers = vec![Namer::new(&victim.namespace, "victim", &victim.ips, PORT)?];
    for pod in &others {
        servers.push(Namer::new(&pod.namespace, &pod.name, &pod.ips, PORT)?);
        apply(&lab, &network_policy(&pod.name, ingress_only(&pod.name, &["client"])))?;
    }
    // The victim's own right policy goes on letting in its client beside every wrong one.
    apply(&lab, &network_policy("right", ingress_only("victim", &["client"])))?;
    let in_force = |what: &str| -> Result<()> {
        for pod in others.iter().chain([&victim]) {
            settle(&client.namespace, &pod.ips, PORT, true)
                .map_err(|error| error.context(what.to_owned()))?;
            settle(&stranger.namespace, &pod.ips, PORT, false)
                .map_err(|error| error.context(what.to_owned()))?;
        }
        Ok(())
    };
    in_force("before")?;
    let wrong = wrong_objects();
    for one in &wrong {
        let object = if one.cluster {
            cluster_policy(one.name, one.spec.clone())
        } else {
            network_policy(one.name, one.spec.clone())
        };
        apply(&lab, &object)?;
        println!("{}: {}", one.name, said(&lab, one)?);
        in_force(one.name)?;
    }
    for one in &wrong {
        if one.cluster { delete_cluster_policy(&lab, one.name)? } else { delete_policy(&lab, one.name)? }
    }
    // What is changed now is in force too: the wrong ones hold nothing up.
    apply(&lab, &network_policy("right", ingress_only("victim", &["stranger"])))?;
    settle(&stranger.namespace, &victim.ips, PORT, true)?;
    settle(&client.namespace, &victim.ips, PORT, false)?;
    // One agent has said all of it. When it dies, another one does.
    let spoke = speakers(&lab, None)?;
    let numbers: Vec<u8> =
        lab.nodes.iter().filter(|node| spoke.contains(&node.name)).map(|node| node.number).collect();
    let [speaker] = numbers[..] else { bail!("not one agent has written all Events: {spoke:?}") };
    lab.node_mut(speaker).kill_agent()?;
    let late = &wrong[0];
    apply(&lab, &network_policy("late", late.spec.clone()))?;
    eventually(3 * SOON, "another agent says what is wrong", || {
        let now = speakers(&lab, Some("late")).map_err(|error| format!("{error:#}"))?;
        if now.len() == 1 && now.is_disjoint(&spoke) {
            Ok(())
        } else {
            Err(format!("{now:?} after {spoke:?}"))
        }
    })?;
    lab.agents_were_refused_nothing()
}
