//! `cargo xtask bench datapath`: what policy, services and the tunnel cost, beside plain routing and beside nf_tables, in turns.
//!
//! - What each program costs per packet, by test runs (`datapath/examples/test_run.rs`).
//! - From pod to pod of one node, and of two: ours with 0, 100 and 10,000 rules in force for both pods, in each direction, and
//!   10,000 services in every map; the reference are namespaces that a third one routes between, with the same MTU and
//!   nothing else, and the same with nf_tables.
//! - To a service among none and among 10,000, beside the way straight to its pod.
//!
//! A round measures one quantity of every subject once, for a fraction of a second, beginning with another one each time. Other work
//! on the machine moves all of them; the ratio to the reference of the same round is what to look at. Client and server share one CPU, so that a round measures what the path
//! costs and not how the scheduler wakes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::bench::Row;

use crate::cluster::{Lab, LabOptions};

mod ours;
mod reference;
mod rounds;

use ours::Group;
use reference::{Firewall, Reference};
use rounds::{Path as Way, Plan};

/// Name of the bench.
const BENCH: &str = "datapath";
/// Where servers of pods listen.
const PORT: u16 = 9000;
/// Where those listen whom services lead to: what a client says by one port to a pod and to its service would meet the
/// same TIME_WAIT with another sequence.
const BACKEND_PORT: u16 = 9001;
/// Both ends of a connection stay on this CPU: where the scheduler puts them makes a difference of a factor of eight, and
/// not the path. What a tunnel does is on any.
const CPU: usize = 0;
/// Rules in force, one group of pods for each.
const RULES: [u32; 3] = [0, 100, 10_000];
/// Services beside the one that is asked.
const SERVICES: u32 = 10_000;
/// MTU of every pod: what the tunnel leaves of 1500 (`mtu` of the configuration).
const MTU: u32 = 1420;

/// How long.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Rounds of test runs.
    programs: u32,
    one_node: Plan,
    two_nodes: Plan,
    services: Plan,
}

const FULL: Effort = Effort {
    programs: 30,
    one_node: Plan { rounds: 40, exchange: Duration::from_millis(60), bulk: Duration::from_millis(200) },
    two_nodes: Plan { rounds: 25, exchange: Duration::from_millis(80), bulk: Duration::from_millis(250) },
    services: Plan { rounds: 25, exchange: Duration::from_millis(60), bulk: Duration::from_millis(200) },
};

const QUICK: Effort = Effort {
    programs: 5,
    one_node: Plan { rounds: 5, exchange: Duration::from_millis(40), bulk: Duration::from_millis(60) },
    two_nodes: Plan { rounds: 4, exchange: Duration::from_millis(60), bulk: Duration::from_millis(150) },
    services: Plan { rounds: 4, exchange: Duration::from_millis(40), bulk: Duration::from_millis(60) },
};

/// Measures; `quick` in about a minute, with wider spread.
///
/// # Errors
/// A lab or a reference cannot be made, or a path is broken.
pub fn run(quick: bool, say: &mut dyn FnMut(&str)) -> Result<Vec<Row>> {
    let effort = if quick { QUICK } else { FULL };
    let mut load = vec![load_average()?];
    say("Programs, by test runs");
    let mut rows = programs(effort.programs)?;
    load.push(load_average()?);

    say(&format!("Starting six nodes with {SERVICES} services, and groups of pods with {RULES:?} rules"));
    let lab = ours::lab("many", SERVICES, &RULES)?;
    let mut groups = Vec::new();
    for (rules, node) in RULES.into_iter().zip([1, 3, 5]) {
        groups.push(Group::new(&lab, rules, node)?);
    }
    say(&ours::sizes(&lab)?);
    let one = [Firewall::None, Firewall::Rules(0), Firewall::Rules(100), Firewall::Rules(10_000)];
    let one = one.into_iter().chain([Firewall::Set(10_000)]);
    let one = one.map(|firewall| Reference::one_node(&lab, firewall)).collect::<Result<Vec<_>>>()?;
    let ways: Vec<Way<'_>> =
        one.iter().map(Reference::way).chain(groups.iter().map(Group::way_here)).collect();
    say(&format!("One node: {} rounds of {} subjects", effort.one_node.rounds, ways.len()));
    rows.extend(rounds::measure("one node", &ways, effort.one_node)?);
    drop(ways);
    drop(one);
    load.push(load_average()?);

    let two = [Firewall::None, Firewall::Rules(10_000)].into_iter().enumerate();
    let two =
        two.map(|(at, firewall)| Reference::two_nodes(&lab, firewall, at)).collect::<Result<Vec<_>>>()?;
    let ways: Vec<Way<'_>> =
        two.iter().map(Reference::way).chain(groups.iter().map(Group::way_there)).collect();
    say(&format!("Two nodes: {} rounds of {} subjects", effort.two_nodes.rounds, ways.len()));
    rows.extend(rounds::measure("two nodes", &ways, effort.two_nodes)?);
    drop(ways);
    drop(two);
    load.push(load_average()?);

    say("Starting a node with one service");
    let few = ours::lab("few", 0, &[])?;
    let alone = Group::new(&few, 0, 1)?;
    let mut ways = vec![alone.way_here().named("straight to the pod, no other service")];
    ways.push(alone.way_to_service().named("to a service, no other"));
    ways.push(groups[0].way_here().named(&format!("straight to the pod, {SERVICES} services")));
    ways.push(groups[0].way_to_service().named(&format!("to a service among {SERVICES}")));
    ways.push(groups[2].way_to_service().named(&format!("to a service among {SERVICES}, 10000 rules")));
    say(&format!("Services: {} rounds of {} subjects", effort.services.rounds, ways.len()));
    rows.extend(rounds::measure("services", &ways, effort.services)?);
    drop(ways);
    load.push(load_average()?);
    drop((alone, groups, few, lab));
    rows.extend(Row::of(BENCH, "this machine", "load average of a minute", "", &load));
    Ok(rows)
}

/// What other work the machine has.
fn load_average() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().unwrap_or_default().parse().context("/proc/loadavg")
}

/// Runs the bench of the programs, which is beside this program.
fn programs(rounds: u32) -> Result<Vec<Row>> {
    let own = std::env::current_exe()?;
    let program: PathBuf = own.parent().unwrap_or(Path::new(".")).join("examples/test_run");
    if !program.is_file() {
        bail!(
            "{} is missing; build it with: cargo build --release -p datapath --example test_run",
            program.display()
        );
    }
    let output = Command::new(&program).arg(rounds.to_string()).output()?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("rows of {}", program.display()))
}

/// A server in a pod or what stands for one, until it is dropped.
fn serve(place: &netlab::Namespace, at: SocketAddr) -> Result<netlab::Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["load", "--serve", &at.to_string(), "--cpu", &CPU.to_string()]);
    Ok(place.spawn(command, netlab::Output::Null)?)
}

/// Options of a lab of this bench.
fn options(name: &str) -> LabOptions {
    let mut options = LabOptions::new(netlab::unique_name(name)).nodes(0);
    options.end_on_signal = true;
    options
}

/// Brings its nodes up, when its objects are there.
fn add_nodes(lab: &mut Lab, nodes: u8) -> Result<()> {
    for number in 1..=nodes {
        lab.add_node(number)?;
    }
    lab.await_settled(Duration::from_secs(120))
}
