//! `hawser plan`: before installation, what fits into the addresses that are planned, what overlaps, and how far it grows. Pure:
//! nothing is asked of any cluster.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use mesh_core::ipam::{Ipam, Millis, WARN_PERCENT};
use mesh_core::prefix::{Family, overlap};
use serde::Serialize;

use crate::output::{self, EXIT_CODES, Form, Verdict, line, section, table};

/// What the document is, and its version: another one where a field changes its meaning or goes.
pub const FORMAT: &str = "hawser.dev/plan/v1";
/// The controller manager refuses to cut IPv6 prefixes more finely (`clusterSubnetMaxDiff` of its CIDR allocator).
const V6_BITS_MAX: u8 = 16;
/// Pods that a kubelet runs unless `maxPods` says otherwise.
const KUBELET_PODS: u64 = 110;
/// Prefixes whose addresses are nobody's in the world: RFC 1918, RFC 6598, RFC 4193.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];
/// Prefixes that no pod or service can have: this host, loopback, link-local, multicast and beyond.
const UNUSABLE: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// What is planned.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct PlanArgs {
    /// Nodes that the cluster is to have.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    nodes: u64,
    /// Pods that a node is to run, those of its own network apart.
    #[arg(long, default_value_t = KUBELET_PODS, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pods_per_node: u64,
    /// The cluster's pod CIDR; one for each family.
    #[arg(long, value_name = "CIDR", required = true)]
    pod_cidr: Vec<IpNet>,
    /// Length of a node's IPv4 pod CIDR (--node-cidr-mask-size-ipv4 of the controller manager).
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u8).range(1..=32))]
    node_mask: u8,
    /// The same of IPv6.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    node_mask_v6: u8,
    /// The cluster's service CIDR; may be given several times.
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<IpNet>,
    /// A network in which nodes are; may be given several times.
    #[arg(long, value_name = "CIDR")]
    node_network: Vec<IpNet>,
    /// A prefix of another cluster that is to be connected, or that nodes reach; may be given several times.
    #[arg(long, value_name = "NAME=CIDR")]
    other: Vec<Other>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// A prefix that is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Whose.
    pub name: String,
    /// The prefix.
    pub cidr: IpNet,
}

/// Why a text is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not NAME=CIDR (west=10.245.0.0/16)")]
pub struct OtherError(String);

impl FromStr for Other {
    type Err = OtherError;

    fn from_str(text: &str) -> Result<Self, OtherError> {
        let parsed = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let parsed = parsed.and_then(|(name, cidr)| Some((name, cidr.parse().ok()?)));
        let (name, cidr) = parsed.ok_or_else(|| OtherError(text.chars().take(120).collect()))?;
        Ok(Self { name: name.to_owned(), cidr })
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Nodes.
    pub nodes: u64,
    /// Pods on each.
    pub pods_per_node: u64,
    /// The cluster's pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Length of a node's IPv4 pod CIDR.
    pub mask_v4: u8,
    /// The same of IPv6.
    pub mask_v6: u8,
    /// Service CIDRs.
    pub services: Vec<IpNet>,
    /// Networks of nodes.
    pub node_networks: Vec<IpNet>,
    /// Prefixes of others.
    pub others: Vec<Other>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Whether it can be installed so.
    pub verdict: Verdict,
    /// The pod CIDRs, in order.
    pub pools: Vec<Pool>,
    /// What speaks against it, and the remedy.
    pub faults: Vec<Remark>,
    /// What has to be known.
    pub remarks: Vec<Remark>,
}

/// A pod CIDR of the cluster, cut into those of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The prefix.
    pub cidr: IpNet,
    /// Length of a node's prefix.
    pub node_mask: u8,
    /// Nodes for which there is one.
    pub nodes: u64,
    /// Pods on a node; network, mesh and broadcast address are not theirs.
    pub pods_per_node: u64,
    /// Pods on a node before its agent reports that addresses run out.
    pub pods_per_node_calm: u64,
}

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remark {
    /// A word for it.
    pub code: &'static str,
    /// What, and the remedy.
    pub text: String,
}

/// Runs the command; its exit code.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &PlanArgs, out: &mut (dyn Write + Send)) -> std::io::Result<u8> {
    let question = Question {
        nodes: args.nodes,
        pods_per_node: args.pods_per_node,
        pod_cidrs: args.pod_cidr.clone(),
        mask_v4: args.node_mask,
        mask_v6: args.node_mask_v6,
        services: args.service_cidr.clone(),
        node_networks: args.node_network.clone(),
        others: args.other.clone(),
    };
    let plan = plan(&question);
    output::write(out, args.output, &plan, || render(&question, &plan))?;
    Ok(plan.verdict.exit_code())
}

/// Whose a prefix is, for sentences.
#[derive(Clone, Debug)]
struct Named {
    words: String,
    cidr: IpNet,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.words, self.cidr)
    }
}

/// Plans.
pub fn plan(question: &Question) -> Plan {
    let (mut faults, mut remarks) = (Vec::new(), Vec::new());
    let mut pools = Vec::new();
    for cidr in &question.pod_cidrs {
        pools.extend(pool(question, cidr, &mut faults, &mut remarks));
    }
    for family in Family::BOTH {
        let of_family = question.pod_cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family);
        let all: Vec<String> = of_family.map(ToString::to_string).collect();
        if all.len() > 1 {
            let text = format!(
                "{} are of one family: the controller manager takes one --cluster-cidr of each; give one that is large enough",
                all.join(" and ")
            );
            faults.push(Remark { code: "family-twice", text });
        }
    }
    prefixes(question, &mut faults, &mut remarks);
    if question.pods_per_node > KUBELET_PODS {
        let text = format!(
            "a kubelet runs {KUBELET_PODS} pods: set maxPods of its configuration to {} or more",
            question.pods_per_node
        );
        remarks.push(Remark { code: "max-pods", text });
    }
    let verdict = if faults.is_empty() { Verdict::Holds } else { Verdict::DoesNotHold };
    Plan { format: FORMAT, verdict, pools, faults, remarks }
}

/// How many pods a node with this prefix can have, as its agent counts; none: too small for any.
pub fn capacity(cidr: IpNet) -> Option<u64> {
    let node = "plan".parse().expect("invariant: a name");
    Some(Ipam::new(node, &[cidr]).usage(Millis(0)).first()?.capacity)
}

/// That of a prefix of this family and length.
fn capacity_of(family: Family, mask: u8) -> Option<u64> {
    let any = match family {
        Family::V4 => IpNet::new(std::net::Ipv4Addr::UNSPECIFIED.into(), mask),
        Family::V6 => IpNet::new(std::net::Ipv6Addr::UNSPECIFIED.into(), mask),
    };
    capacity(any.ok()?)
}

/// Of so many addresses an agent reports that they run out beyond this.
const fn calm(capacity: u64) -> u64 {
    // In parts, since a /64 has more addresses than a number that is multiplied holds.
    let (hundreds, rest) = (capacity / 100, capacity % 100);
    let limit = hundreds * WARN_PERCENT + rest * WARN_PERCENT / 100;
    // At the limit it is reported already.
    if (rest * WARN_PERCENT).is_multiple_of(100) { limit.saturating_sub(1) } else { limit }
}

/// Two to this.
fn power(bits: u8) -> u64 {
    1_u64.checked_shl(bits.into()).unwrap_or(u64::MAX)
}

/// The longest mask whose nodes have room for so many pods without a report.
fn mask_for(family: Family, pods: u64) -> Option<u8> {
    let longest = match family {
        Family::V4 => 30,
        Family::V6 => 126,
    };
    (1..=longest).rev().find(|mask| capacity_of(family, *mask).is_some_and(|capacity| calm(capacity) >= pods))
}

/// Bits that number so many nodes.
const fn bits_for(nodes: u64) -> u8 {
    let bits = u64::BITS - nodes.saturating_sub(1).leading_zeros();
    #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
    {
        bits as u8
    }
}

fn pool(
    question: &Question,
    cidr: &IpNet,
    faults: &mut Vec<Remark>,
    remarks: &mut Vec<Remark>,
) -> Option<Pool> {
    let family = Family::of(cidr.addr());
    let mask = match family {
        Family::V4 => question.mask_v4,
        Family::V6 => question.mask_v6,
    };
    let flag = match family {
        Family::V4 => "--node-mask",
        Family::V6 => "--node-mask-v6",
    };
    let mut fault = |code, text| faults.push(Remark { code, text });
    let (nodes, wanted) = (question.nodes, question.pods_per_node);
    let remedy = remedy(cidr, nodes, wanted, flag);
    if mask < cidr.prefix_len() {
        fault(
            "mask-too-short",
            format!("a node's /{mask} ({flag}) is larger than the pod CIDR {cidr}; {remedy}"),
        );
        return None;
    }
    let room = IpNet::new(cidr.addr(), mask).ok().and_then(|net| capacity(net.trunc()));
    let Some(pods_per_node) = room else {
        fault(
            "mask-too-long",
            format!("a node's /{mask} ({flag}) has no room for a mesh address and a pod; {remedy}"),
        );
        return None;
    };
    let bits = mask - cidr.prefix_len();
    if family == Family::V6 && bits > V6_BITS_MAX {
        let least = mask - V6_BITS_MAX;
        fault(
            "cut-too-fine",
            format!(
                "the controller manager cuts an IPv6 prefix into at most 2^{V6_BITS_MAX}: with a node's /{mask} ({flag}) give a pod CIDR of /{least} or longer instead of {cidr}"
            ),
        );
    }
    let pool = Pool {
        cidr: *cidr,
        node_mask: mask,
        nodes: power(bits),
        pods_per_node,
        pods_per_node_calm: calm(pods_per_node),
    };
    if pool.nodes < nodes {
        fault(
            "nodes-do-not-fit",
            format!("{cidr} has a /{mask} for {} nodes, {nodes} are planned; {remedy}", pool.nodes),
        );
    } else if pool.nodes == nodes {
        let text = format!(
            "{cidr} has a /{mask} for exactly the planned nodes: none can join, also not while another is replaced"
        );
        remarks.push(Remark { code: "nodes-exact", text });
    }
    if pods_per_node < wanted {
        fault(
            "pods-do-not-fit",
            format!(
                "a node's /{mask} of {cidr} has room for {pods_per_node} pods, {wanted} are planned; {remedy}"
            ),
        );
    } else if pool.pods_per_node_calm < wanted {
        let text = format!(
            "{wanted} pods fill a node's /{mask} of {cidr} to more than {WARN_PERCENT} %, which agents report (PoolNearlyFull); an address rests 30 s after its pod, so replacing many pods at once may wait; {remedy}"
        );
        remarks.push(Remark { code: "pods-tight", text });
    }
    Some(pool)
}

/// What would fit.
fn remedy(cidr: &IpNet, nodes: u64, pods: u64, flag: &str) -> String {
    let family = Family::of(cidr.addr());
    let Some(mask) = mask_for(family, pods) else {
        return "no prefix has room for so many pods on a node".to_owned();
    };
    match mask.checked_sub(bits_for(nodes)) {
        // The usual cut is kept where the prefix has room for it.
        Some(prefix)
            if prefix >= cidr.prefix_len()
                && (family == Family::V4 || mask - cidr.prefix_len() <= V6_BITS_MAX) =>
        {
            format!("{flag} {mask} has room for both")
        }
        Some(prefix) => format!("with {flag} {mask} a pod CIDR of /{prefix} has room for both"),
        None => "no prefix has room for so many nodes with so many pods".to_owned(),
    }
}

/// What is wrong with the prefixes themselves, and which overlap.
fn prefixes(question: &Question, faults: &mut Vec<Remark>, remarks: &mut Vec<Remark>) {
    let named = |words: &str, cidrs: &[IpNet]| -> Vec<Named> {
        cidrs.iter().map(|cidr| Named { words: words.to_owned(), cidr: *cidr }).collect()
    };
    let pods = named("the pod CIDR", &question.pod_cidrs);
    let services = named("the service CIDR", &question.services);
    let nodes = named("the nodes' network", &question.node_networks);
    let others = question.others.iter();
    let others: Vec<Named> =
        others.map(|other| Named { words: format!("{}'s", other.name), cidr: other.cidr }).collect();
    let ours: Vec<&Named> = pods.iter().chain(&services).collect();
    for one in ours.iter().copied().chain(&nodes).chain(&others) {
        if one.cidr != one.cidr.trunc() {
            let text = format!("{one} has bits behind its length; {} is meant?", one.cidr.trunc());
            faults.push(Remark { code: "host-bits", text });
        }
    }
    for one in &ours {
        let inside = |list: &[&str]| {
            list.iter().filter_map(|text| text.parse::<IpNet>().ok()).find(|net| overlap(net, &one.cidr))
        };
        if let Some(net) = inside(&UNUSABLE) {
            let text =
                format!("{one} overlaps {net}, which hosts keep for themselves; take a private prefix");
            faults.push(Remark { code: "unusable", text });
        } else if !PRIVATE
            .iter()
            .filter_map(|text| text.parse::<IpNet>().ok())
            .any(|net| net.contains(&one.cidr))
        {
            let text = format!(
                "{one} is not private: whoever has these addresses in the world is out of reach of pods"
            );
            remarks.push(Remark { code: "not-private", text });
        }
    }
    let all: Vec<&Named> = ours.iter().copied().chain(&nodes).chain(&others).collect();
    for (index, one) in all.iter().enumerate() {
        for other in &all[index + 1..] {
            // Networks of nodes and of others among themselves are not ours to judge.
            let concerns_us = index < ours.len();
            if concerns_us && overlap(&one.cidr, &other.cidr) {
                let text = format!(
                    "{one} overlaps {other}: packets to what both have go astray or are refused; give one of the two another prefix"
                );
                faults.push(Remark { code: "overlap", text });
            }
        }
    }
}

fn render(question: &Question, plan: &Plan) -> String {
    let mut out = String::new();
    let fits = if plan.verdict == Verdict::Holds { "this fits" } else { "this does not fit" };
    let pods = question.nodes.saturating_mul(question.pods_per_node);
    line(
        &mut out,
        &format!("{} nodes with {} pods each ({pods} pods): {fits}", question.nodes, question.pods_per_node),
    );
    let many = |number: u64| {
        // More than anybody counts: a /64 has 2^64 addresses.
        if number >= 1 << 40 { "more than 10^12".to_owned() } else { number.to_string() }
    };
    let row = |pool: &Pool| {
        vec![
            pool.cidr.to_string(),
            format!("/{}", pool.node_mask),
            many(pool.nodes),
            many(pool.pods_per_node),
            many(pool.pods_per_node_calm),
            many(pool.nodes.saturating_mul(pool.pods_per_node)),
        ]
    };
    let rows: Vec<Vec<String>> = plan.pools.iter().map(row).collect();
    if !rows.is_empty() {
        let head = ["POD CIDR", "A NODE'S", "NODES", "PODS A NODE", "WITHOUT REPORT", "PODS"];
        section(&mut out, "Room", table(&head, &rows));
    }
    let grows = plan.pools.iter().map(|pool| pool.nodes).min().filter(|nodes| *nodes > question.nodes);
    if let (Some(nodes), Verdict::Holds) = (grows, plan.verdict) {
        section(
            &mut out,
            "Growth",
            vec![format!("{} more nodes can join, {} in all", many(nodes - question.nodes), many(nodes))],
        );
    }
    for (title, remarks) in [("Does not fit", &plan.faults), ("To know", &plan.remarks)] {
        if !remarks.is_empty() {
            let rows: Vec<Vec<String>> =
                remarks.iter().map(|remark| vec![remark.code.to_owned(), remark.text.clone()]).collect();
            section(&mut out, title, table(&[], &rows));
        }
    }
    out
}

#[cfg(test)]
mod tests;
