//! An API server that misbehaves: the agents keep the data path as it is and follow what was changed, later.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use chaos_tests::Lab;
use chaos_tests::cluster::API_PORT;
use kubeapi::{Fault, Faults, Filter, Verb};
use netlab::eventually;
use serde_json::json;

use crate::support::*;

/// What goes wrong, and on which requests about Nodes.
struct Case {
    name: &'static str,
    verb: Verb,
    fault: Fault,
    /// The fault meets requests only: the open watches have to be begun anew.
    cut: bool,
    /// Strikes after which it ends.
    strikes: u64,
}

/// Whether the change made under the fault may get lost with it, so that only the next one shows it.
fn swallows(fault: &Fault) -> bool {
    // kube's client takes half a line for the end of a stream and says nothing; no API server sends that and goes on.
    matches!(fault, Fault::TruncateLine { .. })
}

#[test]
fn no_fault_of_a_watch_costs_a_packet_or_a_peer_and_every_change_is_followed() -> Result<()> {
    let lab = lab(2)?;
    let status =
        |code, seconds: Option<u64>| Fault::Status { code, retry_after: seconds.map(Duration::from_secs) };
    let (list, watch) = (Verb::List, Verb::Watch);
    let stale = Fault::Stale(lab.api().store().snapshot());
    let case = |name, verb, fault, cut, strikes| Case { name, verb, fault, cut, strikes };
    let cases = [
        case("410 in the stream", watch, Fault::GoneStream, false, 2),
        case("410 on the request", watch, Fault::GoneHttp, true, 6),
        case("cut in the middle of an event", watch, Fault::DropMidEvent { after: 0 }, false, 2),
        case("half a line", watch, Fault::TruncateLine { after: 0 }, false, 2),
        case("old events again", watch, Fault::Replay { events: 6 }, true, 2),
        case("a list of long ago", list, stale, true, 2),
        case("reset", watch, Fault::Reset, true, 2),
        case("500", watch, status(500, None), true, 2),
        case("503 with Retry-After", watch, status(503, Some(1)), true, 2),
        case("429 with Retry-After", watch, status(429, Some(1)), true, 2),
        case("silence", watch, Fault::Freeze, false, 0),
    ];
    let steady = Steady::begin(&lab, 1, 2)?;
    let mut change = Harmless::of(2);
    for case in cases {
        let begun = Instant::now();
        strike(&lab, &case, &mut change).map_err(|error| error.context(case.name))?;
        println!("{:<32} followed after {:.1} s", case.name, begun.elapsed().as_secs_f64());
    }
    for node in &lab.nodes {
        assert_eq!(operations(node, "remove_peer")?, 0.0, "{} removed a peer", node.name);
        assert_eq!(operations(node, "remove_route")?, 0.0, "{} removed a route", node.name);
    }
    steady.end()
}

fn strike(lab: &Lab, case: &Case, change: &mut Harmless) -> Result<()> {
    let faults = lab.api().faults();
    let relist = case.verb == Verb::List;
    let id = faults.inject(Filter::on(case.verb, "nodes"), case.fault.clone());
    // A list is asked for only where a watch has lost its place.
    let gone = relist.then(|| faults.inject(Filter::on(Verb::Watch, "nodes"), Fault::GoneStream));
    if case.cut {
        faults.drop_connections();
    }
    change.make(lab)?;
    eventually(FOLLOW, "the fault strikes", || {
        let hits = faults.hits(id);
        if hits >= case.strikes { Ok(()) } else { Err(format!("{hits} of {}", case.strikes)) }
    })?;
    if matches!(case.fault, Fault::Freeze) {
        // Silence cannot be told from peace: it has to be seen that it is one.
        let seen = eventually(Duration::from_secs(2), "nobody is told", || change.followed(lab));
        anyhow::ensure!(seen.is_err(), "the change was followed through a frozen watch");
    }
    faults.remove(id);
    gone.into_iter().for_each(|id| faults.remove(id));
    if swallows(&case.fault) {
        change.make(lab)?;
    }
    eventually(FOLLOW, "the change is followed", || change.followed(lab))?;
    Ok(())
}

#[test]
fn a_node_that_a_stale_list_forgets_is_asked_for_and_stays_a_peer() -> Result<()> {
    let mut lab = Lab::up(chaos_tests::LabOptions::new(netlab::unique_name("api")).nodes(1))?;
    lab.await_mesh(UP)?;
    let alone = lab.api().store().snapshot();
    lab.add_node(2)?;
    lab.await_settled(UP)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    let faults = lab.api().faults();
    // The list knows node 1 alone, in the version of long ago; whoever asks for one object gets the truth.
    let id = faults.inject(Filter::on(Verb::List, "nodes"), Fault::Stale(alone));
    faults.inject_times(2, Filter::on(Verb::Watch, "nodes"), Fault::GoneStream);
    eventually(FOLLOW, "both agents have read the stale list", || at_least(&faults, id, 2))?;
    for node in &lab.nodes {
        eventually(FOLLOW, "the doubt is settled", || {
            let log = node.log("mesh-agent").map_err(|error| error.to_string())?;
            if log.contains("Settled a doubtful event") {
                Ok(())
            } else {
                Err("nothing in the log".to_owned())
            }
        })?;
    }
    faults.clear();
    let mut change = Harmless::of(2);
    change.make(&lab)?;
    eventually(FOLLOW, "a change is followed afterwards", || change.followed(&lab))?;
    for node in &lab.nodes {
        assert_eq!(operations(node, "remove_peer")?, 0.0, "{} removed a peer", node.name);
    }
    steady.end()
}

fn at_least(faults: &Faults, id: kubeapi::FaultId, wanted: u64) -> Result<(), String> {
    let hits = faults.hits(id);
    if hits >= wanted { Ok(()) } else { Err(format!("{hits} strikes of {wanted}")) }
}

#[test]
fn an_api_server_that_is_away_is_missed_by_nobody_and_what_changed_meanwhile_is_followed() -> Result<()> {
    let mut lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    let mut change = Harmless::of(2);
    let before = data_path(lab.node(1))?;

    // Away for ten seconds; an agent that starts meanwhile tears nothing down.
    lab.stop_api();
    let away = Instant::now();
    lab.node_mut(1).kill_agent()?;
    lab.node_mut(1).start_agent()?;
    eventually(SOON, "the new agent has planned without the API", || {
        plan(lab.node(1)).map(drop).map_err(|e| format!("{e:#}"))
    })?;
    eventually(SOON, "it says what it waits for", || match lab.node(1).ready() {
        Err(why) if why.contains("the list of Nodes has not been read") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    eventually(Duration::from_secs(12), "ten seconds have passed", || {
        if away.elapsed() >= Duration::from_secs(10) { Ok(()) } else { Err("not yet") }
    })?;
    assert_eq!(data_path(lab.node(1))?, before, "changed while the API was away");
    lab.restart_api()?;
    let back = Instant::now();
    change.make(&lab)?;
    eventually(FOLLOW, "what was changed is followed after the restart", || change.followed(&lab))?;
    println!("after a restart with continuity: followed in {:.1} s", back.elapsed().as_secs_f64());
    lab.await_mesh(UP)?;

    // Restored from a backup: versions are lower than what the agents know.
    let backup = lab.api().store().snapshot();
    for _ in 0..20 {
        change.make(&lab)?;
    }
    eventually(FOLLOW, "all that is followed", || change.followed(&lab))?;
    let ahead = lab.api().store().resource_version();
    lab.api().store().restore(&backup).map_err(|e| anyhow!("{e}"))?;
    change.make(&lab)?;
    assert!(lab.api().store().resource_version() < ahead, "versions did not go back");
    let back = Instant::now();
    eventually(FOLLOW, "a change after the restore is followed", || change.followed(&lab))?;
    println!("after a restore of lower versions: followed in {:.1} s", back.elapsed().as_secs_f64());

    // Another serving certificate of the same authority.
    lab.api().rotate_certificate()?;
    lab.api().faults().drop_connections();
    change.make(&lab)?;
    eventually(FOLLOW, "a change after the new certificate is followed", || change.followed(&lab))?;
    for node in &lab.nodes {
        assert_eq!(operations(node, "remove_peer")?, 0.0, "{} removed a peer", node.name);
    }
    assert_eq!(data_path(lab.node(1))?, before, "changed by faults of the API");
    steady.end()
}

#[test]
fn a_revoked_token_is_named_in_the_log_and_a_new_one_is_taken_at_the_next_start() -> Result<()> {
    let mut lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    let kubeconfig = lab.node(1).namespace.run(|| std::fs::read_to_string("/etc/hawser/kubeconfig"))?;
    let token = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap();
    lab.api().tokens().revoke(token).unwrap();
    lab.api().faults().drop_connections();
    eventually(FOLLOW, "the log says so", || {
        let log = lab.node(1).log("mesh-agent").map_err(|error| error.to_string())?;
        let line = log.lines().find(|line| line.contains("Unauthorized") && line.contains("watch"));
        let line = line.ok_or("no word of it")?;
        for word in ["API server refuses our credentials", "token"] {
            if !line.contains(word) {
                return Err(format!("no {word:?} in {line}"));
            }
        }
        Ok(())
    })?;
    let log = lab.node(1).log("mesh-agent")?;
    assert!(!log.contains(token), "the token is in the log");
    lab.replace_agent_pod(1)?;
    let mut change = Harmless::of(2);
    change.make(&lab)?;
    eventually(FOLLOW, "the agent follows with its new token", || change.followed(&lab))?;
    steady.end()
}

#[test]
fn a_node_that_comes_while_every_watch_is_broken_is_in_the_mesh_once_lists_work() -> Result<()> {
    let mut lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    let faults = lab.api().faults();
    // Lists work, so that the newcomer can be ready; nobody is told of it.
    let broken = Fault::Status { code: 500, retry_after: None };
    let watch = faults.inject(Filter::on(Verb::Watch, "nodes"), broken);
    faults.drop_connections();
    eventually(FOLLOW, "both agents have lost their watch", || at_least(&faults, watch, 2))?;
    lab.add_node(3)?;
    let ask = |number| lab.node(number).peers().map(|peers| peers.len());
    eventually(SOON, "the newcomer knows the others", || match ask(3) {
        Ok(4) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    assert_eq!((ask(1)?, ask(2)?), (2, 2), "peers of those who cannot hear of it");
    // Now the version is gone, on the request alone: kube's watcher would ask for it for ever.
    let gone = faults.inject(Filter::on(Verb::Watch, "nodes"), Fault::GoneHttp);
    faults.remove(watch);
    eventually(FOLLOW, "watches are refused with 410", || at_least(&faults, gone, 6))?;
    let begun = Instant::now();
    lab.await_mesh(FOLLOW)?;
    println!("joined after {:.1} s, by lists alone", begun.elapsed().as_secs_f64());
    faults.clear();
    let mut change = Harmless::of(3);
    change.make(&lab)?;
    eventually(FOLLOW, "the new node is followed", || change.followed(&lab))?;
    patch_node(&lab, 3, &json!({"metadata": {"labels": {"lab": "late"}}}))?;
    steady.end()
}

/// As behind a load balancer that has lost its table: what is open is answered by nobody, not even with a reset, and what is new gets
/// through. Whoever waits on such a connection hears nothing for as long as it believes in it.
#[test]
fn a_connection_that_was_forgotten_on_the_way_is_left_before_an_address_can_have_another_owner() -> Result<()>
{
    let lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    for node in &lab.nodes {
        let ports = node.sh(&format!("ss -tnHO state established dport = :{API_PORT}"))?;
        let local = |line: &str| Some(line.split_whitespace().nth(2)?.rsplit_once(':')?.1.to_owned());
        let ports: Vec<String> = ports.lines().filter_map(local).collect();
        anyhow::ensure!(!ports.is_empty(), "{} has connections", node.name);
        let ports = ports.join(", ");
        let table = format!(
            "table inet forgotten {{
                chain out {{ type filter hook output priority 0; tcp dport {API_PORT} tcp sport {{ {ports} }} drop; }}
                chain in {{ type filter hook input priority 0; tcp sport {API_PORT} tcp dport {{ {ports} }} drop; }}
            }}"
        );
        node.write_file("/run/forgotten.nft", &table)?;
        node.sh("nft -f /run/forgotten.nft")?;
    }
    let begun = Instant::now();
    let mut change = Harmless::of(2);
    change.make(&lab)?;
    let limit = Duration::from_millis(mesh_core::ipam::QUARANTINE);
    eventually(limit, "the change is followed", || change.followed(&lab))
        .map_err(|error| anyhow!("{error}"))?;
    println!("followed after {:.1} s", begun.elapsed().as_secs_f64());
    steady.end()
}

/// As a server that is stopped in its work, while its machine goes on: nothing ends the connection, and no error comes.
#[test]
fn a_list_that_is_never_answered_is_asked_for_again_and_the_data_path_waits_as_it_is() -> Result<()> {
    /// What `servers::connect` allows an answer, and a pause after it.
    const GIVEN_UP: Duration = Duration::from_secs(90 + 20);
    let mut lab = lab(2)?;
    let steady = Steady::begin(&lab, 1, 2)?;
    let faults = lab.api().faults();
    lab.node_mut(1).kill_agent()?;
    let frozen = faults.inject_times(1, Filter::on(Verb::List, "nodes"), Fault::Freeze);
    lab.node_mut(1).start_agent()?;
    eventually(SOON, "the list is asked for", || at_least(&faults, frozen, 1))?;
    let begun = Instant::now();
    let mut change = Harmless::of(2);
    change.make(&lab)?;
    eventually(GIVEN_UP, "the list is read and the change followed", || change.followed(&lab))?;
    println!("followed after {:.1} s", begun.elapsed().as_secs_f64());
    for node in &lab.nodes {
        assert_eq!(operations(node, "remove_peer")?, 0.0, "{} removed a peer", node.name);
    }
    steady.end()
}
