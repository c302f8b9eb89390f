//! From what was collected to findings with their remedies: pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_core::evidence::{Engine, NodeEvidence, PathResult};
use mesh_core::ipam::WARN_PERCENT;
use mesh_core::leftover;
use mesh_core::numbers::{MIN_MTU, OVERHEAD, SLOT_PORTS};
use mesh_core::prefix::{inside, overlap};

use super::{Check, Diagnosis, Examination, FORMAT, Said};
use crate::audit::judge::{Inputs, outcome, verdict};
use crate::audit::report::{Effect, Finding};
use crate::output::Verdict;

/// The oldest kernel on which Hawser is tested (major, minor).
const KERNEL: (u64, u64) = (6, 1);
/// Findings of one code that are written out; the rest is counted.
const NAMED: usize = 20;
/// Fewer free prefixes for nodes than this share of all is worth a word, in percent.
const SCARCE_PERCENT: u64 = 10;

/// The check that asks no agent.
const CONTROL_PLANE: &str = "control plane";

/// Evidence of the nodes whose agents have answered.
type Heard<'a> = BTreeMap<&'a str, &'a NodeEvidence>;

/// Findings of one check.
struct Findings {
    all: Vec<Diagnosis>,
}

impl Findings {
    fn push(&mut self, effect: Effect, code: &str, text: String, remedy: &str) {
        self.all.push(Diagnosis { effect, code: code.to_owned(), text, remedy: remedy.to_owned() });
    }
}

fn check(name: &'static str, looked: String, find: impl FnOnce(&mut Findings)) -> Check {
    let mut findings = Findings { all: Vec::new() };
    find(&mut findings);
    let mut all = findings.all;
    all.sort();
    let verdict = verdict(all.iter().map(|finding| finding.effect));
    // Of many nodes with the same fault some are named.
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for finding in all {
        let count = counts.entry(finding.code.clone()).or_insert(0);
        *count += 1;
        if *count <= NAMED {
            kept.push(finding);
        }
    }
    for (code, count) in counts.into_iter().filter(|(_, count)| *count > NAMED) {
        let like = kept.iter().rposition(|finding| finding.code == code).unwrap_or(0);
        let more = Diagnosis { text: format!("and {} more", count - NAMED), ..kept[like].clone() };
        kept.insert(like + 1, more);
    }
    Check { name, looked, verdict, findings: kept }
}

/// Examines.
pub fn examine(inputs: &Inputs, said: &Said) -> Examination {
    let answers = inputs.nodes.iter();
    let heard: Heard<'_> =
        answers.filter_map(|(name, node)| Some((name.as_str(), node.answer.as_deref().ok()?))).collect();
    let all = inputs.nodes.len();
    let report = outcome(inputs);
    let of = |list: &'static [&'static str]| {
        let matches = move |finding: &&Finding| list.iter().any(|code| finding.code.starts_with(code));
        report.findings.iter().filter(matches).cloned().collect::<Vec<Finding>>()
    };
    let judged = |name, looked: String, list| {
        let found = of(list);
        check(name, looked, |findings| {
            for finding in found {
                let effect = if finding.code == "problem" { Effect::Against } else { finding.effect };
                findings.push(effect, &finding.code, finding.text, remedy(&finding.code));
            }
        })
    };
    let of_heard = format!("of {} of {all} nodes", heard.len());
    let mut checks = vec![
        judged(
            "agents",
            format!("whether each node's agent answers and is in step: {} of {all} do", heard.len()),
            &AGENTS,
        ),
        control_plane(&heard, said),
        kernels(&heard, said),
        judged("data path", format!("policy, guards and firewall {of_heard}"), &DATA_PATH),
        judged(
            "hosts",
            format!("what agents report of themselves and their hosts, {of_heard}"),
            &["problem"],
        ),
        judged("tunnel", tunnel(report.summary.joined.pairs, &of_heard), &["pair-", "cluster", "joined-"]),
        judged("plugin", format!("whether runtimes connect new pods by Hawser {of_heard}"), &["cni-"]),
        judged("keys", format!("keys and pre-shared keys {of_heard}"), &KEYS),
        mtu(&heard),
        prefixes(&heard, said),
        headroom(&heard, said),
        leftovers(&heard),
    ];
    // Of who is silent nothing is known, whatever the others say; what the API alone says is known all the same.
    if heard.len() < all {
        let by_agents = checks.iter_mut().filter(|check| check.name != CONTROL_PLANE);
        by_agents.for_each(|check| check.verdict = check.verdict.max(Verdict::Incomplete));
    }
    let verdict = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Incomplete);
    Examination { format: FORMAT, generated_at: inputs.generated_at.clone(), verdict, checks }
}

/// What was looked at of pairs; `joined`: how many there are with nodes of joined clusters.
fn tunnel(joined: u64, of_heard: &str) -> String {
    let mut looked = format!(
        "sessions of all pairs by UDP {} and {}, both sides, {of_heard}",
        SLOT_PORTS[0], SLOT_PORTS[1]
    );
    if joined > 0 {
        looked.push_str(&format!(
            "; {joined} pairs with nodes of joined clusters, by this side alone, and whether those clusters are connected"
        ));
    }
    looked
}

/// Codes of the judge, by check.
const AGENTS: [&str; 9] = [
    "node-",
    "nodes-unread",
    "no-node",
    "stranger",
    "settings-differ",
    "not-settled",
    "evidence-stale",
    "announcement-differs",
    "counters-unread",
];
const DATA_PATH: [&str; 3] = ["data-path", "policy-not-in-force", "guard-missing"];
const KEYS: [&str; 6] = [
    "psk-",
    "device-key-differs",
    "key-over-age",
    "key-age-unknown",
    "key-destroyed-overdue",
    "record-unread",
];

/// What to do about a finding of the judge.
fn remedy(code: &str) -> &'static str {
    match code {
        "node-silent" => {
            "kubectl -n hawser-system get pods -o wide: is a pod of mesh-agent on that node, and does it run? Its log says why not; where none is, see tolerations and nodeSelector of the DaemonSet; where it runs, metricsAddress of its configuration has to be one that the API server reaches"
        }
        "node-unannounced" => {
            "see the log of mesh-agent on that node; admission policies of deploy/admission.yaml have to be installed with it"
        }
        "node-unsynced" | "not-settled" => {
            "ask again in some seconds; if it stays so, see the log of mesh-agent on that node"
        }
        "nodes-unread" | "clusters-unread" => {
            "have an administrator bind you to the roles of deploy/cli.yaml"
        }
        "stranger" => "two programs answer for one node: end the one that is no pod of the DaemonSet",
        "settings-differ" => {
            "give all nodes one ConfigMap hawser-config, and restart the agents that have another"
        }
        "evidence-stale" => "set the clocks right (NTP); if they are, see the log of mesh-agent on that node",
        "announcement-differs" => {
            "find who patches that Node besides its agent, and install deploy/admission.yaml"
        }
        "data-path-off" => {
            "set dataPath: enforce in the configuration, unless another program enforces policy"
        }
        "data-path-failed" => {
            "see the log of mesh-agent: the kernel has to have BPF with BTF, and clsact or tcx; the agent needs CAP_BPF and CAP_NET_ADMIN, and /sys/fs/bpf"
        }
        "guard-missing" => {
            "see the log of mesh-agent; the kernel has to have nf_tables, and nobody else may delete table inet hawser"
        }
        "pair-without-handshake" | "pair-unanswered" | "pair-old-handshake" => {
            "let UDP 51880 and 51881 pass between the two nodes, both ways (firewalls, security groups); where one is behind NAT, set hawser.dev/endpoint on it"
        }
        "joined-node-silent" => {
            "look at it in its own cluster (hawser status there): delete its Node if the machine is gone; else let UDP 51880 and 51881 pass between the clusters"
        }
        "pair-not-a-peer" => {
            "see the problems that the agents of the two report: one refuses what the other announces"
        }
        "pair-device-key" | "device-key-differs" => {
            "somebody else configures hawser0 or hawser1: find who; the agent puts it back within a minute"
        }
        "cluster-not-connected" => {
            "kubectl describe clusterpeer: its conditions say more, and so does the log of clustermesh here and in that cluster; TCP to its servers (spec.addresses) has to pass"
        }
        code if code.starts_with("pair-") => {
            "ask again in some seconds: a rotation may be under way; if it stays so, see the logs of both agents"
        }
        code if code.starts_with("psk-") => {
            "agents agree on keys over the mesh (TCP 51892 on mesh addresses): let it pass, and see the logs of both agents"
        }
        "cni-unused" | "cni-other" => {
            "uninstall that network and delete its file in the CNI directory of that node (cni.confDir, /etc/cni/net.d unless set), or give cni.confName a name that sorts before it; then make pods anew that it has connected"
        }
        "cni-not-installed" => {
            "as it says; kubectl -n hawser-system logs POD -c cni-installer of that node has more, and the log of mesh-agent says why it is not ready"
        }
        "cni-unknown" | "cni-stale" => {
            "kubectl -n hawser-system get pods -o wide: is the container cni-installer of that node's pod of mesh-agent running, and of the same release?"
        }
        "key-over-age" => {
            "hawser keys rotate NODE; Events of the node (RotationOverdue) say who was in the way"
        }
        "problem" => "as it says; hawser.dev Events of that Node have its history",
        _ => "see the log of mesh-agent on that node",
    }
}

fn control_plane(heard: &Heard<'_>, said: &Said) -> Check {
    let addresses = said.api_servers.as_ref().map(|all| all.len()).unwrap_or(0);
    check(
        "control plane",
        format!("whether API servers are nodes of the mesh: {addresses} addresses"),
        |findings| {
            let servers = match &said.api_servers {
                Ok(servers) => servers,
                Err(why) => {
                    let text = format!("where the API servers are is not known: {why}");
                    findings.push(
                        Effect::Missing,
                        "api-servers-unread",
                        text,
                        "have an administrator bind you to the roles of deploy/cli.yaml",
                    );
                    return;
                }
            };
            if servers.is_empty() {
                findings.push(
                    Effect::Missing,
                    "api-servers-unread",
                    "the Service default/kubernetes has no endpoints: the API servers are not named"
                        .to_owned(),
                    "see --endpoint-reconciler-type of the API servers",
                );
            }
            for server in servers {
                if said.nodes.values().any(|node| node.internal_ips.contains(server)) {
                    continue;
                }
                let exempt =
                    |node: &NodeEvidence| node.exemptions.prefixes.iter().any(|net| net.contains(server));
                if !heard.is_empty() && heard.values().copied().all(exempt) {
                    findings.push(
                        Effect::Note,
                        "control-plane-exempt",
                        format!("the API server at {server} is no node, and all agents exempt it (nonMasqueradeCIDRs): what it and pods say to each other is not encrypted by Hawser"),
                        "join its host as a Node with a pod of mesh-agent to have it encrypted",
                    );
                } else {
                    findings.push(
                        Effect::Note,
                        "control-plane-outside",
                        format!("the API server at {server} is no node: it cannot reach pods, so webhooks and aggregated APIs that are pods do not work"),
                        "join its host as a Node with a pod of mesh-agent, or run webhooks in the nodes' network (hostNetwork), or let it reach pods in plaintext (nonMasqueradeCIDRs, and routes to pod CIDRs on its host: deploy/README.md); without any of them nothing is to be done",
                    );
                }
            }
        },
    )
}

fn kernels(heard: &Heard<'_>, said: &Said) -> Check {
    check(
        "kernels",
        format!("releases, tested are {}.{} and later, and WireGuard", KERNEL.0, KERNEL.1),
        |findings| {
            for (name, node) in &said.nodes {
                let evidence = heard.get(name.as_str()).and_then(|evidence| evidence.host.as_ref());
                let release = evidence.and_then(|host| host.kernel.as_ref()).or(node.kernel.as_ref());
                let Some(release) = release else {
                    findings.push(
                        Effect::Missing,
                        "kernel-unknown",
                        format!("node {name}: its kernel is not known"),
                        "its agent, once it answers, says it",
                    );
                    continue;
                };
                if version(release).is_none_or(|version| version < KERNEL) {
                    findings.push(
                        Effect::Note,
                        "kernel-untested",
                        format!("node {name}: Linux {release}: Hawser is not tested on it"),
                        "update the kernel of that node; until then see whether its data path is in force",
                    );
                }
            }
            let slow: Vec<&str> = heard
                .iter()
                .filter(|(_, node)| node.wireguard == Engine::Userspace)
                .map(|(&name, _)| name)
                .collect();
            if !slow.is_empty() {
                findings.push(
                Effect::Note,
                "wireguard-userspace",
                format!("{} run WireGuard in user space (mesh-tunnel)", listed(&slow)),
                "where throughput matters, give them a kernel with the module wireguard; nothing else depends on it",
            );
            }
        },
    )
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u64, u64)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// How many of a node's ways to its peers were tried, and how many there are.
fn ways(node: &NodeEvidence) -> (usize, usize) {
    (node.peers.values().filter(|peer| peer.path.is_some()).count(), node.peers.len())
}

fn mtu(heard: &Heard<'_>) -> Check {
    let (tried, pairs) = heard.values().fold((0, 0), |(tried, pairs), node| {
        let (some, all) = ways(node);
        (tried + some, pairs + all)
    });
    let looked = format!(
        "MTUs of tunnels and of the devices beneath them, as agents see them; whether echoes of the tunnel's MTU come through: {tried} of {pairs} ways between nodes were tried{}",
        if tried < pairs { " (each run tries some more)" } else { "" }
    );
    check("mtu", looked, |findings| {
        paths(heard, findings);
        untried(heard, (tried, pairs), findings);
        let mut uplinks: Vec<(u32, &str)> = Vec::new();
        let mut tunnels: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
        for (&name, node) in heard {
            let Some(host) = &node.host else {
                findings.push(
                    Effect::Missing,
                    "mtu-unknown",
                    format!("node {name}: its agent is of an older release and says no MTU"),
                    "update its agent",
                );
                continue;
            };
            tunnels.entry(host.tunnel_mtu).or_default().push(name);
            match host.uplink_mtu {
                Some(mtu) => uplinks.push((mtu, name)),
                None => findings.push(
                    Effect::Missing,
                    "mtu-unknown",
                    format!("node {name}: no device holds its InternalIP, so the MTU beneath its tunnel is not known"),
                    "correct status.addresses of the Node (--node-ip of its kubelet)",
                ),
            }
        }
        // Whoever has the smallest device beneath is reached through it by all others.
        if let (Some((least, narrow)), Some((most, wide))) = (uplinks.iter().min(), tunnels.last_key_value())
            && most + OVERHEAD > *least
        {
            findings.push(
                Effect::Against,
                "mtu-too-large",
                format!("tunnels of {} have an MTU of {most}, with {OVERHEAD} bytes of WireGuard that is more than the {least} of {narrow}: large packets to it are fragmented or lost", listed(wide)),
                "set mtu in the configuration of all agents to the smallest MTU between nodes less 80, or give all nodes one MTU",
            );
        }
        if tunnels.len() > 1 {
            let words: Vec<String> =
                tunnels.iter().map(|(mtu, names)| format!("{mtu} on {}", listed(names))).collect();
            findings.push(
                Effect::Note,
                "mtu-differs",
                format!("tunnels have different MTUs: {}", words.join("; ")),
                "set mtu in the configuration of all agents to the least of them, so that no packet is too large anywhere",
            );
        }
    })
}

/// Ways that were not tried: nothing is known of them. Some have their turn in each run; of a node that has tried none, or could not,
/// another run may bring nothing either.
fn untried(heard: &Heard<'_>, (tried, pairs): (usize, usize), findings: &mut Findings) {
    const CODE: &str = "paths-untried";
    let mut left = 0;
    for (name, node) in heard {
        let (some, all) = ways(node);
        let trouble = node.host.as_ref().and_then(|host| host.path_trouble.as_ref());
        if let Some(why) = trouble {
            findings.push(
                Effect::Missing,
                CODE,
                format!("node {name}: its agent could not try what its paths take, {some} of {all} ways were tried before: {why}"),
                "see the log of mesh-agent on that node: it sends echoes from a raw socket, for which it needs CAP_NET_RAW",
            );
        } else if some == 0 && all > 0 {
            findings.push(
                Effect::Missing,
                CODE,
                format!("node {name}: none of its {all} ways to others was tried"),
                "run it again in some seconds; if it stays so, its agent is of an older release, or its log says why",
            );
        } else {
            left += all - some;
        }
    }
    if left > 0 {
        findings.push(
            Effect::Note,
            CODE,
            format!("{tried} of {pairs} ways between nodes were tried so far: what the others take is not known"),
            "run it again in some seconds, until all were: each run has every agent try some more, those first that were not tried",
        );
    }
}

/// What echoes have shown of the ways between nodes.
fn paths(heard: &Heard<'_>, findings: &mut Findings) {
    let ways =
        heard.iter().flat_map(|(from, node)| node.peers.iter().map(move |(to, peer)| (from, to, peer)));
    for (from, to, path) in ways.filter_map(|(from, to, peer)| Some((from, to, peer.path?))) {
        let size = path.size;
        match path.result {
            PathResult::Fits => {}
            PathResult::Silent => findings.push(
                Effect::Note,
                "path-silent",
                format!("{to} answers no echo of {from} through the tunnel, so what the path between them takes is not known"),
                "where the check of tunnels has no fault for the pair: let nodes answer ICMP echoes to their mesh addresses",
            ),
            PathResult::Narrow { passes, told } => {
                let passing = passes.map_or_else(
                    || format!("so are those of {MIN_MTU} bytes"),
                    |passes| format!("those of {passes} bytes come through"),
                );
                let value = passes.or(told).filter(|value| *value >= MIN_MTU);
                let lower = value.map_or_else(
                    || format!("give the network between them an MTU of at least {} bytes, which the tunnel needs", MIN_MTU + OVERHEAD),
                    |value| format!("set mtu in the configuration of all agents to {value} or less"),
                );
                if let Some(told) = told {
                    let text = format!(
                        "the path between {from} and {to} is narrower than the tunnel: it takes packets of {told} bytes, the tunnel's MTU is {size}; who sends larger ones is told so by ICMP"
                    );
                    findings.push(Effect::Note, "path-narrow-told", text, &format!("{lower}, which spares them the first lost packets"));
                } else {
                    let text = format!(
                        "the path between {from} and {to} is narrower than the tunnel: packets of {size} bytes, its MTU, are lost and nobody says so; {passing}"
                    );
                    let remedy = format!(
                        "{lower}, or let ICMP pass between the nodes (IPv4 type 3 code 4, IPv6 type 2), by which routers say what they take"
                    );
                    findings.push(Effect::Against, "path-narrow", text, &remedy);
                }
            }
        }
    }
}

fn prefixes(heard: &Heard<'_>, said: &Said) -> Check {
    let looked =
        "pod CIDRs of configuration and nodes against InternalIPs, addresses of Services, and each other";
    check("prefixes", looked.to_owned(), |findings| {
        let configured: BTreeSet<IpNet> =
            heard.values().flat_map(|node| node.settings.pod_cidrs.iter().copied()).collect();
        let of_nodes: Vec<(&String, IpNet)> = said
            .nodes
            .iter()
            .flat_map(|(name, node)| node.pod_cidrs.iter().map(move |cidr| (name, *cidr)))
            .collect();
        if configured.is_empty() {
            findings.push(
                Effect::Missing,
                "pod-cidrs-unknown",
                "no agent has said which pod CIDRs are configured".to_owned(),
                "see the check of agents",
            );
        }
        let configured: Vec<IpNet> = configured.into_iter().collect();
        let pods: Vec<IpNet> =
            configured.iter().copied().chain(of_nodes.iter().map(|(_, cidr)| *cidr)).collect();
        for (name, node) in &said.nodes {
            for ip in node.internal_ips.iter().filter(|ip| configured.iter().any(|net| net.contains(*ip))) {
                findings.push(
                    Effect::Against,
                    "node-inside-pods",
                    format!("node {name}: InternalIP {ip} lies in a pod CIDR of the cluster, so it is refused as a node's"),
                    "give the cluster a pod CIDR that does not overlap the nodes' network (hawser plan says which do)",
                );
            }
            if node.pod_cidrs.is_empty() {
                findings.push(
                    Effect::Against,
                    "node-without-cidr",
                    format!("node {name}: spec.podCIDRs is empty"),
                    "run the controller manager with --allocate-node-cidrs and --cluster-cidr",
                );
            }
        }
        match &said.services {
            Ok(services) => {
                for (ip, service) in
                    services.iter().filter(|(ip, _)| pods.iter().any(|net| net.contains(*ip)))
                {
                    findings.push(
                        Effect::Against,
                        "service-inside-pods",
                        format!("Service {service}: its address {ip} lies in a pod CIDR"),
                        "give API servers another --service-cluster-ip-range, and make the Service anew",
                    );
                }
            }
            Err(why) => {
                let text = format!("addresses of Services are not known: {why}");
                findings.push(
                    Effect::Missing,
                    "services-unread",
                    text,
                    "have an administrator bind you to the roles of deploy/cli.yaml",
                );
            }
        }
        for (index, (name, cidr)) in of_nodes.iter().enumerate() {
            if !configured.is_empty() && !inside(&configured, cidr) {
                findings.push(
                    Effect::Against,
                    "cidr-outside",
                    format!("node {name}: pod CIDR {cidr} is outside podCIDRs of the configuration"),
                    "add its prefix to podCIDRs of all agents, or correct --cluster-cidr of the controller manager",
                );
            }
            for (other, theirs) in of_nodes[index + 1..].iter().filter(|(_, theirs)| overlap(cidr, theirs)) {
                findings.push(
                    Effect::Against,
                    "cidr-twice",
                    format!("pod CIDR {cidr} of node {name} overlaps {theirs} of node {other}"),
                    "recreate the Node object of the younger one, so that it is given another",
                );
            }
        }
    })
}

fn headroom(heard: &Heard<'_>, said: &Said) -> Check {
    check(
        "headroom",
        "addresses left for pods on each node, and pod CIDRs left for nodes".to_owned(),
        |findings| {
            for (name, node) in heard {
                let Some(host) = &node.host else {
                    findings.push(
                        Effect::Missing,
                        "pool-unknown",
                        format!(
                            "node {name}: its agent is of an older release and says nothing of its addresses"
                        ),
                        "update its agent",
                    );
                    continue;
                };
                for pool in &host.pools {
                    let taken = pool.used.saturating_add(pool.resting);
                    if pool.capacity > 0
                        && u128::from(taken) * 100 >= u128::from(pool.capacity) * u128::from(WARN_PERCENT)
                    {
                        findings.push(
                        Effect::Against,
                        "pool-nearly-full",
                        format!("node {name}: {} of {} addresses of {} are in use, {} more rest after their pods", pool.used, pool.capacity, pool.cidr, pool.resting),
                        "move pods away, lower maxPods of its kubelet, or plan larger pod CIDRs (hawser plan)",
                    );
                    }
                }
            }
            let configured: BTreeSet<IpNet> =
                heard.values().flat_map(|node| node.settings.pod_cidrs.iter().copied()).collect();
            for cidr in configured {
                let cut: Vec<u8> = said
                    .nodes
                    .values()
                    .flat_map(|node| &node.pod_cidrs)
                    .filter(|own| cidr.contains(*own))
                    .map(IpNet::prefix_len)
                    .collect();
                let Some(mask) = cut.iter().max() else { continue };
                let room = 1_u128.checked_shl((mask - cidr.prefix_len()).into()).unwrap_or(u128::MAX);
                let used = u128::try_from(cut.len()).unwrap_or(u128::MAX);
                let left = room.saturating_sub(used);
                if left * 100 < room * u128::from(SCARCE_PERCENT) {
                    findings.push(
                        Effect::Note,
                        "node-cidrs-scarce",
                        format!("{cidr} has a /{mask} for {room} nodes, {used} are taken"),
                        "before more nodes join, plan a larger pod CIDR (hawser plan)",
                    );
                }
            }
        },
    )
}

fn leftovers(heard: &Heard<'_>) -> Check {
    check("leftovers", "devices of other cluster networks on the nodes".to_owned(), |findings| {
        for (name, node) in heard {
            let Some(host) = &node.host else {
                findings.push(
                    Effect::Missing,
                    "links-unknown",
                    format!("node {name}: its agent is of an older release and names no devices"),
                    "update its agent",
                );
                continue;
            };
            let mut by_owner: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for link in &host.foreign_links {
                if let Some(owner) = leftover::owner(link) {
                    by_owner.entry(owner).or_default().push(link);
                }
            }
            for (owner, links) in by_owner {
                findings.push(
                    Effect::Against,
                    "other-network",
                    format!("node {name}: {} of {owner}", links.join(", ")),
                    "uninstall it; delete its files in /etc/cni/net.d and restart pods that it connected, or reboot the node, which also takes its devices and rules away",
                );
            }
        }
    })
}
