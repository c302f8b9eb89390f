//! A node is as it was before Hawser, whatever was on it meanwhile, and what others put there is untouched.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::cluster::node_name;
use chaos_tests::matrix::Party;
use chaos_tests::pod::PodSpec;
use chaos_tests::witness::{Witness, difference};
use chaos_tests::{Lab, LabOptions, Node, Pod};
use kubeapi::Patch;
use netlab::eventually;
use serde_json::{Value, json};

use crate::{MESH, none};

/// What somebody else has on the node, each beside something of ours and like it.
const OTHERS: &str = "\
nft add table inet foreign
nft 'add chain inet foreign forward { type filter hook forward priority 0 ; policy drop ; }'
nft add rule inet foreign forward iifname eth7 counter accept comment hawser
ip route add unreachable 10.99.0.0/16 table 77
ip route add 198.51.100.0/24 dev eth0 table 51999
ip rule add to 10.99.0.0/16 lookup 77 priority 49
ip rule add to 198.51.100.0/24 lookup 51999 priority 53
ip addr add 192.0.2.77/32 dev lo
ip link add hwaccess type veth peer name access
ip link add wgbridge type bridge
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol all prio 7 u32 match u32 0 0 flowid 1:1
mkdir -p /run/wireguard
cp /etc/hostname /etc/cni/net.d/99-other.conflist
cp /etc/hostname /opt/cni/bin/bridge
cp /etc/hostname /run/wireguard/wg0.sock
";

/// What a runtime has made, and `mount` will; and no state directory, unless it is a mount of the lab's.
const USUAL: &str =
    "mkdir -p /etc/cni/net.d /opt/cni/bin /run/mount /run/netns; rmdir /var/lib/hawser 2>/dev/null || true";

/// Everything that the kernel and the file system show of a node, a line each.
fn everything(node: &Node) -> Result<Vec<String>> {
    let settings =
        "grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf || true";
    // What is not there is not listed.
    let pins = node.pins().display();
    let files = format!(
        "find /etc/cni /opt/cni /run /var/lib/hawser {pins} -printf '%p %y %m %l\\n' 2>/dev/null || true"
    );
    let mut lines = Vec::new();
    eventually(Duration::from_secs(20), "no address is on trial any more", || {
        let trial = node.sh("ip -6 addr show tentative").map_err(|error| format!("{error:#}"))?;
        if trial.trim().is_empty() { Ok(()) } else { Err(trial) }
    })?;
    for words in [
        "ip -d link",
        "ip -d addr",
        "ip -4 -d route show table all",
        "ip -6 -d route show table all",
        "ip -4 -d rule",
        "ip -6 -d rule",
        // Without what counters have counted meanwhile.
        "nft --stateless list ruleset",
        "tc qdisc",
        "tc filter show dev eth0 ingress",
        "tc filter show dev eth0 egress",
        settings,
        files.as_str(),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", words]);
        let text = node.run(shell)?;
        lines.extend(text.lines().map(|line| format!("{words}: {line}")));
    }
    lines.sort();
    Ok(lines)
}

/// Numbers that the kernel has given to what a node's data path has pinned.
#[derive(Debug, Default)]
struct Ids {
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
    programs: BTreeSet<u32>,
}

fn pinned(node: &Node) -> Result<Ids> {
    let pins = node.pins().to_owned();
    node.namespace.run(move || -> Result<Ids> {
        let mut ids = Ids::default();
        for layout in std::fs::read_dir(&pins)? {
            for pin in std::fs::read_dir(layout?.path())? {
                let pin = pin?.path();
                if !pin.is_dir() {
                    ids.maps.insert(aya::maps::MapInfo::from_pin(&pin)?.id());
                    continue;
                }
                for link in std::fs::read_dir(pin)? {
                    let link = aya::programs::links::PinnedLink::from_pin(link?.path())?;
                    let info = aya::programs::links::FdLink::from(link).info()?;
                    ids.links.insert(info.id());
                    ids.programs.insert(info.program_id());
                }
            }
        }
        Ok(ids)
    })
}

/// Which of them are still in the kernel.
fn alive(ids: &Ids) -> Result<usize> {
    let mut count = 0;
    for map in aya::maps::loaded_maps() {
        count += usize::from(map.is_ok_and(|map| ids.maps.contains(&map.id())));
    }
    for program in aya::programs::loaded_programs() {
        count += usize::from(program.is_ok_and(|program| ids.programs.contains(&program.id())));
    }
    for link in aya::programs::loaded_links() {
        count += usize::from(link.is_ok_and(|link| ids.links.contains(&link.id())));
    }
    Ok(count)
}

fn shell(node: &Node, script: &str) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-euc", script]);
    node.run(command).map(drop)
}

/// A pod with a hostPort, and with rates in both directions.
fn busy_pod(lab: &Lab, name: &str) -> Result<Pod> {
    let runtime = json!({
        "portMappings": [{"hostPort": 30_123, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000},
    });
    lab.add_pod_of(&PodSpec::new(1, name).runtime_config(runtime))
}

fn node_object(lab: &Lab, number: u8) -> Result<Value> {
    lab.api().store().get("nodes", None, &node_name(number)).map_err(|error| anyhow!("{error}"))
}

/// Refused, for this reason; and nothing has changed.
fn refused(node: &Node, flags: &[&str], reason: &str) -> Result<()> {
    let before = everything(node)?;
    let (done, said) = node.uninstall(flags)?;
    ensure!(!done && said.contains("refused: ") && said.contains(reason), "{flags:?}: {said}");
    none(&difference(&before, &everything(node)?))
}

#[test]
fn a_node_is_as_it_was_before_and_what_others_have_on_it_is_untouched() -> Result<()> {
    let options = LabOptions { bare: true, ..LabOptions::new(netlab::unique_name("uninstall")).nodes(2) };
    // With this on, the agent loosens the uplink's check of sources.
    let options = LabOptions { config: "hostTraffic:\n  mode: on\n".into(), ..options };
    let mut lab = Lab::up(options)?;
    let node = lab.node(1);
    node.namespace.sysctl("net.ipv4.conf.eth0.rp_filter", "1")?;
    shell(node, USUAL)?;
    shell(node, OTHERS)?;
    let before = everything(node)?;
    ensure!(before.len() > 300, "that is not everything: {before:?}");

    for number in [1, 2] {
        lab.install(number)?;
    }
    lab.await_settled(MESH)?;
    let [a, b] = [busy_pod(&lab, "a")?, lab.add_pod(2, "b")?];
    let left = lab.add_pod(1, "left")?;
    let mut witness = Witness::new(&lab)?;
    none(&witness.failures(&Party::pod(&a)?, &Party::pod(&b)?, 5))?;
    none(&witness.failures(&Party::pod(&b)?, &Party::pod(&left)?, 5))?;
    let installed = difference(&before, &everything(lab.node(1))?);
    for sign in
        ["link hawser0", "table inet hawser", "hawser_hostports", "hawser: pods", "lookup 51880", "05-hawser"]
    {
        let mut words = sign.split_whitespace();
        let has = installed.iter().any(|line| words.all(|word| line.contains(word)));
        ensure!(has, "no {sign} in {installed:#?}");
    }
    let ids = pinned(lab.node(1))?;
    ensure!(!ids.links.is_empty() && !ids.maps.is_empty() && alive(&ids)? > 10, "{ids:?}");

    // While anything of it lives, nothing is touched.
    refused(
        lab.node(1),
        &["--cut-pods"],
        "mesh-agent runs, it has the state directory /var/lib/hawser: end it first",
    )?;
    lab.node_mut(1).stop_agent()?;
    refused(lab.node(1), &["--cut-pods"], "mesh-tunnel runs, it answers on /run/wireguard/hawser0.sock")?;
    lab.node_mut(1).stop_tunnel()?;
    refused(lab.node(1), &[], "2 pods are connected (")?;
    // A runtime takes a pod down without an agent; another pod outlives the drain.
    a.remove(&lab)?;
    // The kernel takes a namespace down after nobody has it any more.
    eventually(Duration::from_secs(20), "the pod's link is gone", || {
        let links = lab.node(1).sh("ip -brief link").map_err(|error| format!("{error:#}"))?;
        let pods = links.lines().filter(|line| line.starts_with("hw") && line.contains('@')).count();
        // The other pod's, and both ends of somebody's pair.
        if pods == 2 { Ok(()) } else { Err(links) }
    })?;
    refused(lab.node(1), &[], "1 pods are connected (default/left)")?;

    let taints = json!({"spec": {"taints": [{"key": "hawser.dev/agent-not-ready", "effect": "NoSchedule"},
        {"key": "dedicated", "value": "x", "effect": "NoSchedule"}]}});
    lab.api().store().patch("nodes", None, &node_name(1), &Patch::Merge(taints))?;
    let (done, planned) = lab.node(1).uninstall(&["--cut-pods", "--dry-run"])?;
    ensure!(done && !planned.contains("would remove: link hawser0"), "its tunnel is gone: {planned}");
    ensure!(planned.contains("would remove: nf_tables table inet hawser\n"), "{planned}");

    let flags = ["--cut-pods", "--reset-forwarding"];
    let (done, said) = lab.node(1).uninstall(&flags)?;
    ensure!(done && said.contains("removed: link hw") && said.contains("done: nothing"), "{said}");
    let plugin = lab.node(1).uninstall_cni()?;
    ensure!(plugin.contains("removed: /etc/cni/net.d/05-hawser.conflist"), "{plugin}");
    netlab::Namespace::unpin(&lab.node(1).namespace, &left.sandbox.netns)?;
    left.namespace.close()?;
    eventually(Duration::from_secs(20), "the node is as it was", || {
        let now = everything(lab.node(1)).map_err(|error| format!("{error:#}"))?;
        none(&difference(&before, &now)).map_err(|error| format!("{error:#}\n{said}"))
    })?;
    eventually(Duration::from_secs(20), "programs, maps and links are out of the kernel", || {
        match alive(&ids) {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let object = node_object(&lab, 1)?;
    ensure!(object["metadata"]["annotations"].get("hawser.dev/wireguard").is_none(), "{object}");
    ensure!(
        object["spec"]["taints"] == json!([{"key": "dedicated", "value": "x", "effect": "NoSchedule"}]),
        "{object}"
    );
    lab.agents_were_refused_nothing()?;

    let (done, again) = lab.node(1).uninstall(&flags)?;
    ensure!(done && !again.contains("removed: link"), "{again}");
    none(&difference(&before, &everything(lab.node(1))?))?;
    let frames = witness.clean(&lab)?;
    println!(
        "{} lines of links, addresses, routes, rules, firewall, queues, settings and files as before, {} of them were \
         different meanwhile; {} maps, {} links, {} programs gone; {frames} frames, none in clear",
        before.len(),
        installed.len(),
        ids.maps.len(),
        ids.links.len(),
        ids.programs.len()
    );
    Ok(())
}

/// Has the agent of this node locked the state directory?
fn has_state(node: &Node) -> Result<()> {
    let agent = node.agent().context("no agent was started")?.id();
    let inode = node.sh("stat -c %i /var/lib/hawser")?;
    // proc_locks(5): number, kind, mode, access, process, device and inode, range.
    let locks = std::fs::read_to_string("/proc/locks")?;
    let held = locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(4) == Some(&agent.to_string().as_str())
            && fields.get(5).and_then(|file| file.rsplit(':').next()) == Some(inode.trim())
    });
    ensure!(held, "agent {agent}, inode {inode}: {locks}");
    Ok(())
}

#[test]
fn what_cannot_be_taken_away_is_named_the_rest_goes_and_a_second_try_finishes() -> Result<()> {
    let options = LabOptions { bare: true, ..LabOptions::new(netlab::unique_name("stuck")).nodes(1) };
    let mut lab = Lab::up(options)?;
    shell(lab.node(1), USUAL)?;
    let before = everything(lab.node(1))?;
    lab.install(1)?;
    lab.await_settled(MESH)?;
    lab.node_mut(1).stop_agent()?;
    lab.node_mut(1).stop_tunnel()?;
    // A file that is mounted cannot be deleted, and nobody answers for the API.
    shell(
        lab.node(1),
        "echo another > /run/another; mount --bind /run/another /var/lib/hawser/keys/epoch; \
         echo mine > /var/lib/hawser/keys/notes",
    )?;
    lab.api().faults().refuse_connections(true);
    let flags = ["--reset-forwarding"];
    // An agent that waits for the API answers on no socket yet, and is noticed all the same; who takes Hawser off is by an agent,
    // so that none is asked before there is one.
    lab.node_mut(1).start_agent()?;
    eventually(Duration::from_secs(20), "the agent has its state directory", || {
        has_state(lab.node(1)).map_err(|error| format!("{error:#}"))
    })?;
    refused(lab.node(1), &flags, "mesh-agent runs, it has the state directory /var/lib/hawser")?;
    lab.node_mut(1).kill_agent()?;
    let (done, said) = lab.node(1).uninstall(&flags)?;
    ensure!(!done, "{said}");
    for line in [
        "FAILED: file /var/lib/hawser/keys/epoch: ",
        "FAILED: annotation and start-up taint of the Node object: ",
        "kubectl annotate node node-1 hawser.dev/wireguard-",
        "stays: /var/lib/hawser/keys/notes: it is not Hawser's",
        "removed: nf_tables table inet hawser\n",
        "removed: file /var/lib/hawser/keys/slot0.key\n",
    ] {
        ensure!(said.contains(line), "no {line:?} in {said}");
    }
    lab.api().faults().refuse_connections(false);
    ensure!(lab.node(1).sh("cat /run/another")? == "another\n", "what is mounted there is not ours");
    shell(
        lab.node(1),
        "rm -f /run/another; umount /var/lib/hawser/keys/epoch; rm /var/lib/hawser/keys/notes",
    )?;
    let (done, said) = lab.node(1).uninstall(&flags)?;
    ensure!(done && said.contains("removed: directory /var/lib/hawser/keys\n"), "{said}");
    lab.node(1).uninstall_cni()?;
    none(&difference(&before, &everything(lab.node(1))?)).context(said)
}
