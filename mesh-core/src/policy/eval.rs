//! The oracle: what policy says about one flow, read from the API's objects each time anew.
//!
//! It is slow and obvious on purpose. It shares no code with the compiler, and each line names what it says: `row n` is
//! a row of the table of corner cases of NetworkPolicy (`standards.md` §2.2), `§3` a sentence about ClusterNetworkPolicy
//! there, and "model" the header of [`model`](super::model), which says what malformed objects mean.
//!
//! What it does not know is the packet's history and way. Replies (row 30), what the pod's own node generates
//! (row 33) and flows that were allowed before (row 42) are the data path's; addresses are those after the translation
//! of services (rows 24, 36). Audit ([`NamespaceFacts::audit`]) does not change a verdict, only what is done with it.
//!
//! What the sources leave open is closed here:
//! - an address with more than one owner, of whatever kinds, is *unknown*, and so is the address of a pod whose
//!   namespace nobody has told us of, since nobody can say which selectors match it;
//! - an unknown peer matches every Deny rule that has a peer and whose ports fit (for a port's name in an unknown
//!   destination: any port), and nothing else: no Accept, no rule of a NetworkPolicy, and no Pass, which could only help it;
//! - a pod that is not known, or not known well enough to say which policies select it, is denied everything;
//! - an empty list of `networks` and an empty name of a port are bad values.

use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{
    ClusterNetworkPolicySpec, ClusterPeer, ClusterPort, ClusterProtocol, ClusterProtocolPorts, ClusterRule,
    ClusterSubject, Direction, Flow, IpBlock, LabelSelector, Labels, NamedPort, NamespaceFacts,
    NamespacedPods, NetworkPolicySpec, ObjectName, PodFacts, PolicyFacts, PolicyPeer, PolicyPort, PortRef,
    Protocol, Verdict,
};

/// What the policy of one side says: of the destination ([`Direction::Ingress`]) or of the source.
///
/// A side that is no pod has no policy and allows. A side whose address is claimed by several owners, or by a pod of an
/// unknown namespace, denies: nobody can say whose policy holds.
pub fn eval(facts: &PolicyFacts, flow: Flow, direction: Direction) -> Verdict {
    let own = match direction {
        Direction::Ingress => flow.destination,
        Direction::Egress => flow.source,
    };
    let claimed = facts.pods.values().any(|pod| pod.ips.contains(&own));
    match party(facts, own) {
        Party::Pod(subject) => eval_pod(facts, subject.name, flow, direction),
        Party::Node(_) | Party::Outside => Verdict::Allow,
        Party::Unknown if claimed => Verdict::Deny,
        Party::Unknown => Verdict::Allow,
    }
}

/// Row 31: both sides must allow.
pub fn eval_both(facts: &PolicyFacts, flow: Flow) -> Verdict {
    match (eval(facts, flow, Direction::Egress), eval(facts, flow, Direction::Ingress)) {
        (Verdict::Allow, Verdict::Allow) => Verdict::Allow,
        (Verdict::Deny, _) | (_, Verdict::Deny) => Verdict::Deny,
    }
}

/// What the policy of the pod `subject` says, whoever else claims its address: the flow's destination for
/// [`Direction::Ingress`], its source otherwise. A pod that is not known, or whose namespace is not, denies.
pub fn eval_pod(facts: &PolicyFacts, subject: &ObjectName, flow: Flow, direction: Direction) -> Verdict {
    let Some(subject) = known_pod(facts, subject) else { return Verdict::Deny };
    // Row 32, §3 (hairpin to the own address): a pod cannot be kept from itself.
    if flow.source == flow.destination {
        return Verdict::Allow;
    }
    let address = match direction {
        Direction::Ingress => flow.source,
        Direction::Egress => flow.destination,
    };
    let peer = party(facts, address);
    let asked = Asked { subject, peer, address, direction, protocol: flow.protocol, port: flow.port };

    // §3: Admin tier, then NetworkPolicy, which decides finally for pods that it isolates, then Baseline, then allow.
    match cluster_tier(facts, &asked, "Admin") {
        Some(Action::Accept) => return Verdict::Allow,
        Some(Action::Deny) => return Verdict::Deny,
        Some(Action::Pass) | None => {}
    }
    if let Some(verdict) = network_policies(facts, &asked) {
        return verdict;
    }
    match cluster_tier(facts, &asked, "Baseline") {
        Some(Action::Deny) => Verdict::Deny,
        Some(Action::Accept | Action::Pass) | None => Verdict::Allow,
    }
}

/// One question to the policy of one pod.
struct Asked<'a> {
    subject: Pod<'a>,
    peer: Party<'a>,
    /// The peer's.
    address: IpAddr,
    direction: Direction,
    protocol: u8,
    /// The flow's destination port, in both directions.
    port: Option<u16>,
}

impl Asked<'_> {
    fn is(&self, protocol: Protocol) -> bool {
        self.protocol == protocol.number()
    }

    /// The flow has a port, and it lies between these, inclusive.
    fn port_within(&self, first: i64, last: i64) -> bool {
        self.port.is_some_and(|port| (first..=last).contains(&i64::from(port)))
    }

    /// One of these ports of the destination pod bears this name, and the flow goes there by its protocol.
    fn port_named(&self, name: &str, ports: impl IntoIterator<Item = NamedPort>) -> bool {
        ports.into_iter().any(|p| p.name == name && self.is(p.protocol) && self.port == Some(p.port))
    }
}

// ---------------------------------------------------------------- who is who

/// A pod of which everything is known.
#[derive(Clone, Copy)]
struct Pod<'a> {
    name: &'a ObjectName,
    facts: &'a PodFacts,
    namespace: &'a NamespaceFacts,
}

/// Who is at an address.
enum Party<'a> {
    Pod(Pod<'a>),
    /// A node, with its labels. Row 35: hostNetwork pods are their node.
    Node(&'a Labels),
    /// Nobody of the cluster.
    Outside,
    /// In the cluster, and nobody knows who.
    Unknown,
}

fn known_pod<'a>(facts: &'a PolicyFacts, name: &ObjectName) -> Option<Pod<'a>> {
    let (name, pod) = facts.pods.get_key_value(name)?;
    let namespace = facts.namespaces.get(&name.namespace)?;
    Some(Pod { name, facts: pod, namespace })
}

/// Row 47: every address of a pod counts.
fn party(facts: &PolicyFacts, address: IpAddr) -> Party<'_> {
    let pods: Vec<_> = facts.pods.iter().filter(|(_, pod)| pod.ips.contains(&address)).collect();
    let nodes: Vec<_> = facts.nodes.values().filter(|node| node.ips.contains(&address)).collect();
    match (pods.as_slice(), nodes.as_slice()) {
        ([(name, _)], []) => known_pod(facts, name).map_or(Party::Unknown, Party::Pod),
        ([], [node]) => Party::Node(&node.labels),
        ([], []) if facts.guarded.iter().any(|prefix| prefix.contains(&address)) => Party::Unknown,
        // Row 46: pods of other clusters, as long as nobody has told us who they are.
        ([], []) => Party::Outside,
        (_, _) => Party::Unknown,
    }
}

/// Row 15. None: malformed, whatever the labels.
fn selects(selector: &LabelSelector, labels: &Labels) -> Option<bool> {
    // Row 14: an empty selector matches all.
    let mut all = selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
    for requirement in &selector.match_expressions {
        let value = labels.get(&requirement.key);
        let values = &requirement.values;
        let holds = match (requirement.operator.as_str(), values.is_empty()) {
            ("In", false) => value.is_some_and(|v| values.contains(v)),
            // Row 15: NotIn and DoesNotExist match objects that lack the key.
            ("NotIn", false) => value.is_none_or(|v| !values.contains(v)),
            ("Exists", true) => value.is_some(),
            ("DoesNotExist", true) => value.is_none(),
            _ => return None,
        };
        all = all && holds;
    }
    Some(all)
}

/// Row 46: a namespace of another cluster is selected by who asks for clusters, and by nobody else.
fn selects_namespace(selector: &LabelSelector, pod: Pod<'_>) -> Option<bool> {
    let mut keys = selector.match_labels.keys().chain(selector.match_expressions.iter().map(|r| &r.key));
    let asks_for_clusters = keys.any(|key| key == "hawser.dev/cluster");
    let selected = selects(selector, &pod.namespace.labels)?;
    Some(selected && (asks_for_clusters || !pod.name.namespace.contains('@')))
}

/// Row 21: a block of one family contains no address of the other. None: not a CIDR.
fn contains(cidr: &str, address: IpAddr) -> Option<bool> {
    cidr.parse::<IpNet>().ok().map(|block| block.contains(&address))
}

// ------------------------------------------------------------- NetworkPolicy

/// Rows 1 and 2. None: no policy isolates the subject in this direction.
fn network_policies(facts: &PolicyFacts, asked: &Asked<'_>) -> Option<Verdict> {
    let selecting: Vec<_> = facts
        .network_policies
        .iter()
        // Model: pods of other clusters are judged there.
        .filter(|(name, _)| !name.namespace.contains('@'))
        .filter(|(name, _)| name.namespace == asked.subject.name.namespace)
        // Model: a malformed podSelector selects every pod of the namespace.
        .filter(|(_, policy)| selects(&policy.pod_selector, &asked.subject.facts.labels).unwrap_or(true))
        .filter(|(_, policy)| has_type(policy, asked.direction))
        .collect();
    if selecting.is_empty() {
        return None;
    }
    // Row 2: the union of all rules of all of them; none of them denies.
    let allowed = selecting.iter().any(|(_, policy)| any_rule_allows(policy, asked));
    Some(if allowed { Verdict::Allow } else { Verdict::Deny })
}

fn has_type(policy: &NetworkPolicySpec, direction: Direction) -> bool {
    let wanted = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    match policy.policy_types.as_deref() {
        // Row 3: absent: Ingress always; Egress only if there is an egress rule.
        None | Some([]) => match direction {
            Direction::Ingress => true,
            Direction::Egress => policy.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        },
        // Row 4. Model: an unknown type isolates nothing.
        Some(types) => types.iter().any(|t| t == wanted),
    }
}

/// Row 5: without rules nothing. Row 9: OR within each list, AND between peers and ports of one rule.
fn any_rule_allows(policy: &NetworkPolicySpec, asked: &Asked<'_>) -> bool {
    // Model: no allowing rule is for an unknown address, not even that of everybody.
    if matches!(asked.peer, Party::Unknown) {
        return false;
    }
    match asked.direction {
        Direction::Ingress => policy
            .ingress
            .iter()
            .flatten()
            .any(|rule| any_peer(rule.from.as_deref(), asked) && any_port(rule.ports.as_deref(), asked)),
        Direction::Egress => policy
            .egress
            .iter()
            .flatten()
            .any(|rule| egress_rule_allows(rule.to.as_deref(), rule.ports.as_deref(), asked)),
    }
}

fn egress_rule_allows(to: Option<&[PolicyPeer]>, ports: Option<&[PolicyPort]>, asked: &Asked<'_>) -> bool {
    let foreign = matches!(asked.peer, Party::Pod(pod) if pod.name.namespace.contains('@'));
    if !foreign {
        return any_peer(to, asked) && any_port(ports, asked);
    }
    // Model: names of ports of another cluster's pod go with a selector that has found it; else it is like any address outside.
    let address = Asked { peer: Party::Outside, ..*asked };
    match to {
        None | Some([]) => any_port(ports, &address),
        Some(peers) => peers.iter().any(|peer| {
            let as_what = if peer.ip_block.is_some() { &address } else { asked };
            peer_matches(peer, asked) && any_port(ports, as_what)
        }),
    }
}

fn any_peer(peers: Option<&[PolicyPeer]>, asked: &Asked<'_>) -> bool {
    match peers {
        // Rows 6 and 7: all, in and outside the cluster.
        None | Some([]) => true,
        // Rows 9 and 13.
        Some(peers) => peers.iter().any(|peer| peer_matches(peer, asked)),
    }
}

fn peer_matches(peer: &PolicyPeer, asked: &Asked<'_>) -> bool {
    let own_namespace = &asked.subject.name.namespace;
    match (&peer.pod_selector, &peer.namespace_selector, &peer.ip_block, &asked.peer) {
        (None, None, Some(block), _) => in_block(block, asked.address),
        // Row 10: pods of the policy's namespace, which is the subject's.
        (Some(pods), None, None, Party::Pod(pod)) => {
            pod.name.namespace == *own_namespace && selects(pods, &pod.facts.labels) == Some(true)
        }
        // Rows 11, 16 and 17: the namespace's labels alone decide.
        (None, Some(namespaces), None, Party::Pod(pod)) => selects_namespace(namespaces, *pod) == Some(true),
        // Row 12.
        (Some(pods), Some(namespaces), None, Party::Pod(pod)) => {
            selects_namespace(namespaces, *pod) == Some(true)
                && selects(pods, &pod.facts.labels) == Some(true)
        }
        // Rows 14, 34, 35: selectors are for pods.
        (_, _, None, Party::Node(_) | Party::Outside | Party::Unknown) => false,
        // §2.1: nothing at all, or a block beside a selector. Model: malformed, matches nothing.
        (None, None, None, Party::Pod(_)) | (Some(_), _, Some(_), _) | (_, Some(_), Some(_), _) => false,
    }
}

/// Row 18: whoever has the address.
fn in_block(block: &IpBlock, address: IpAddr) -> bool {
    let inside = contains(&block.cidr, address) == Some(true);
    let excepted: Vec<Option<bool>> = block.except.iter().map(|e| contains(e, address)).collect();
    // Row 19: taken from this block, not denied. Model: what is no CIDR voids the peer.
    inside && excepted.iter().all(|e| *e == Some(false))
}

fn any_port(ports: Option<&[PolicyPort]>, asked: &Asked<'_>) -> bool {
    match ports {
        // Row 8: all ports of all protocols. Row 29: ICMP and others pass here alone.
        None | Some([]) => true,
        Some(ports) => ports.iter().any(|port| port_matches(port, asked)),
    }
}

fn port_matches(port: &PolicyPort, asked: &Asked<'_>) -> bool {
    let protocol = match port.protocol.as_deref() {
        // Row 22.
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        // Row 28.
        Some("SCTP") => Protocol::Sctp,
        // Model: matches nothing.
        Some(_) => return false,
    };
    asked.is(protocol)
        && match (&port.port, port.end_port) {
            // Row 23.
            (None, None) => true,
            // Row 24.
            (Some(PortRef::Number(number)), None) => is_port(*number) && asked.port_within(*number, *number),
            // Row 27.
            (Some(PortRef::Number(first)), Some(last)) => {
                is_port(*first) && is_port(last) && *first <= last && asked.port_within(*first, last)
            }
            // Rows 25 and 26: name and protocol must match.
            (Some(PortRef::Name(name)), None) => asked.port_named(name, destination_ports(asked)),
            // Row 27: endPort without a port, or beside a name.
            (None | Some(PortRef::Name(_)), Some(_)) => false,
        }
}

fn is_port(number: i64) -> bool {
    (1..=65535).contains(&number)
}

/// The ports that the destination's containers name. Row 25: of the selected pod; row 26: of the pod it goes to,
/// and no other destination has any.
fn destination_ports(asked: &Asked<'_>) -> Vec<NamedPort> {
    let pod = match (asked.direction, &asked.peer) {
        (Direction::Ingress, _) => asked.subject,
        (Direction::Egress, Party::Pod(pod)) => *pod,
        (Direction::Egress, Party::Node(_) | Party::Outside | Party::Unknown) => return Vec::new(),
    };
    pod.facts.ports.iter().cloned().collect()
}

// ------------------------------------------------------ ClusterNetworkPolicy

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Accept,
    Deny,
    Pass,
}

/// §3: the first rule that matches, of the strongest policy. None: no rule of this tier matches.
fn cluster_tier(facts: &PolicyFacts, asked: &Asked<'_>, tier: &str) -> Option<Action> {
    let mut policies: Vec<(&String, &ClusterNetworkPolicySpec)> = facts
        .cluster_policies
        .iter()
        // Model: an unknown tier is Admin.
        .filter(|(_, policy)| (policy.tier == "Baseline") == (tier == "Baseline"))
        .filter(|(_, policy)| is_subject(&policy.subject, asked.subject))
        .collect();
    // §3: lower is stronger. Model: of two with the same priority the smaller name comes first.
    policies.sort_by_key(|(name, policy)| (policy.priority, *name));
    policies
        .iter()
        .flat_map(|(_, policy)| match asked.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        })
        .find_map(|rule| cluster_rule(rule, asked))
}

fn is_subject(subject: &ClusterSubject, pod: Pod<'_>) -> bool {
    // Model: pods of other clusters are judged there.
    if pod.name.namespace.contains('@') {
        return false;
    }
    let matches = match (&subject.namespaces, &subject.pods) {
        (Some(namespaces), None) => selects_namespace(namespaces, pod),
        (None, Some(pods)) => selects_pod(pods, pod),
        (None, None) | (Some(_), Some(_)) => None,
    };
    // Model: a malformed subject selects every pod.
    matches.unwrap_or(true)
}

fn selects_pod(pods: &NamespacedPods, pod: Pod<'_>) -> Option<bool> {
    let namespace = selects_namespace(&pods.namespace_selector, pod)?;
    let labels = selects(&pods.pod_selector, &pod.facts.labels)?;
    Some(namespace && labels)
}

/// What a rule says about this flow; nothing if it does not match.
fn cluster_rule(rule: &ClusterRule, asked: &Asked<'_>) -> Option<Action> {
    let action = match rule.action.as_str() {
        "Accept" => Action::Accept,
        "Deny" => Action::Deny,
        "Pass" => Action::Pass,
        // Model: an unknown action denies everything of everybody.
        _ => return Some(Action::Deny),
    };
    let peers = match asked.direction {
        Direction::Ingress => &rule.from,
        Direction::Egress => &rule.to,
    };
    // §3, unknown peers, and model: in an Accept what is malformed matches nothing, in a Deny or Pass everything is denied.
    let well_formed = peers.iter().all(|peer| cluster_peer(peer, asked).is_some())
        && match rule.protocols.as_deref() {
            None => true,
            Some([]) => false,
            Some(entries) => entries.iter().all(|entry| cluster_ports(entry, asked).is_some()),
        };
    if !well_formed && action != Action::Accept {
        return Some(Action::Deny);
    }
    let unknown = matches!(asked.peer, Party::Unknown);
    // Model: for an unknown address there is no Accept, and no Pass helps it.
    if unknown && action != Action::Deny {
        return None;
    }
    // §3: peers are OR, and so are protocols; both must match.
    let matches = peers.iter().any(|peer| {
        // Model: it matches every Deny.
        let this_one = unknown || cluster_peer(peer, asked) == Some(true);
        this_one
            && match rule.protocols.as_deref() {
                // §3: absent is any, ICMP too.
                None => true,
                Some(entries) => entries.iter().any(|entry| {
                    // §3: a port's name goes with no peer that is no pod.
                    let fits = entry.destination_named_port.is_none()
                        || (peer.networks.is_none() && peer.nodes.is_none());
                    fits && cluster_ports(entry, asked) == Some(true)
                }),
            }
    });
    matches.then_some(action)
}

/// §3: exactly one of the fields. None: malformed.
fn cluster_peer(peer: &ClusterPeer, asked: &Asked<'_>) -> Option<bool> {
    let ClusterPeer { namespaces, pods, networks, nodes, domain_names } = peer;
    let empty = Labels::new();
    match (namespaces, pods, networks, nodes, domain_names, asked.direction) {
        (Some(selector), None, None, None, None, _) => match asked.peer {
            Party::Pod(pod) => selects_namespace(selector, pod),
            Party::Node(_) | Party::Outside | Party::Unknown => selects(selector, &empty).and(Some(false)),
        },
        (None, Some(selectors), None, None, None, _) => match asked.peer {
            Party::Pod(pod) => selects_pod(selectors, pod),
            Party::Node(_) | Party::Outside | Party::Unknown => {
                selects(&selectors.namespace_selector, &empty)?;
                selects(&selectors.pod_selector, &empty).and(Some(false))
            }
        },
        // §3: networks match traffic in the cluster as well.
        (None, None, Some(networks), None, None, Direction::Egress) if !networks.is_empty() => {
            let inside: Option<Vec<bool>> = networks.iter().map(|n| contains(n, asked.address)).collect();
            Some(inside?.contains(&true))
        }
        (None, None, None, Some(selector), None, Direction::Egress) => match asked.peer {
            Party::Node(labels) => selects(selector, labels),
            Party::Pod(_) | Party::Outside | Party::Unknown => selects(selector, &empty).and(Some(false)),
        },
        // None, several, domain names (which nobody here knows), or those of an egress rule in an ingress rule.
        _ => None,
    }
}

/// §3: exactly one of the fields. None: malformed.
fn cluster_ports(entry: &ClusterProtocol, asked: &Asked<'_>) -> Option<bool> {
    let ClusterProtocol { tcp, udp, sctp, destination_named_port } = entry;
    match (tcp, udp, sctp, destination_named_port) {
        (Some(ports), None, None, None) => Some(port_of(ports, asked)? && asked.is(Protocol::Tcp)),
        (None, Some(ports), None, None) => Some(port_of(ports, asked)? && asked.is(Protocol::Udp)),
        (None, None, Some(ports), None) => Some(port_of(ports, asked)? && asked.is(Protocol::Sctp)),
        (None, None, None, Some(name)) if !name.is_empty() => {
            let could_be_any = asked.direction == Direction::Egress
                && matches!(asked.peer, Party::Unknown)
                && asked.port.is_some();
            Some(could_be_any || asked.port_named(name, destination_ports(asked)))
        }
        _ => None,
    }
}

fn port_of(ports: &ClusterProtocolPorts, asked: &Asked<'_>) -> Option<bool> {
    let Some(ClusterPort { number, range }) = &ports.destination_port else { return Some(true) };
    match (number, range) {
        (Some(number), None) if is_port(*number) => Some(asked.port_within(*number, *number)),
        (None, Some(range)) if is_port(range.start) && is_port(range.end) && range.start < range.end => {
            Some(asked.port_within(range.start, range.end))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
