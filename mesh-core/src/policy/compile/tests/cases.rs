//! What is decided here and nowhere else: who is unknown, what is said of wrong objects, and what numbers do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use expect_test::{Expect, expect};

use super::worlds::{Event, World, guarded, tell};
use crate::policy::compile::Compiler;
use crate::policy::model::*;
use crate::policy::tables::{ClassId, FnId, judge};

pub(super) fn object(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName { namespace: namespace.into(), name: name.into() }
}

fn labels(text: &str) -> Labels {
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn selector(text: &str) -> LabelSelector {
    LabelSelector { match_labels: labels(text), match_expressions: Vec::new() }
}

/// `name:port` of TCP, separated by commas.
fn named(text: &str) -> BTreeSet<NamedPort> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once(':').unwrap());
    let port = |(name, port): (&str, &str)| NamedPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: port.parse().unwrap(),
    };
    pairs.map(port).collect()
}

fn ips(text: &str) -> BTreeSet<IpAddr> {
    text.split(',').filter(|ip| !ip.is_empty()).map(|ip| ip.parse().unwrap()).collect()
}

fn pod(name: &str, of: &str, at: &str, ports: &str) -> Event {
    let facts = PodFacts { labels: labels(of), ips: ips(at), ports: named(ports) };
    Event::Pod(object(name), Some(facts))
}

fn namespace(name: &str, of: &str) -> Event {
    Event::Namespace(name.into(), Some(NamespaceFacts { labels: labels(of), audit: false }))
}

fn node(name: &str, at: &str) -> Event {
    let facts = NodePolicyFacts { labels: Labels::new(), ips: ips(at) };
    Event::Node(name.parse().unwrap(), Some(facts))
}

fn subjects(names: &[&str]) -> Event {
    Event::Subjects(names.iter().map(|name| object(name)).collect())
}

fn peer_pods(of: &str) -> PolicyPeer {
    PolicyPeer { pod_selector: Some(selector(of)), ..PolicyPeer::default() }
}

fn peer_block(cidr: &str, except: &[&str]) -> PolicyPeer {
    let except = except.iter().map(|text| (*text).to_owned()).collect();
    PolicyPeer { ip_block: Some(IpBlock { cidr: cidr.into(), except }), ..PolicyPeer::default() }
}

fn tcp(port: PortRef, end_port: Option<i64>) -> PolicyPort {
    PolicyPort { protocol: None, port: Some(port), end_port }
}

fn allow(name: &str, from: Vec<PolicyPeer>, ports: Vec<PolicyPort>) -> Event {
    let rule = IngressRule { from: Some(from), ports: Some(ports) };
    let spec = NetworkPolicySpec { ingress: Some(vec![rule]), ..NetworkPolicySpec::default() };
    Event::Network(object(name), Some(spec))
}

fn allow_to(name: &str, to: Vec<PolicyPeer>, ports: Vec<PolicyPort>) -> Event {
    let rule = EgressRule { to: Some(to), ports: Some(ports) };
    let types = Some(vec!["Egress".to_owned()]);
    let spec =
        NetworkPolicySpec { egress: Some(vec![rule]), policy_types: types, ..NetworkPolicySpec::default() };
    Event::Network(object(name), Some(spec))
}

fn cluster(name: &str, tier: &str, rules: Vec<ClusterRule>) -> Event {
    let spec = ClusterNetworkPolicySpec {
        tier: tier.into(),
        subject: ClusterSubject { namespaces: Some(LabelSelector::default()), pods: None },
        egress: rules,
        ..ClusterNetworkPolicySpec::default()
    };
    Event::Cluster(name.into(), Some(spec))
}

fn to(action: &str, peer: ClusterPeer) -> ClusterRule {
    ClusterRule { action: action.into(), to: vec![peer], ..ClusterRule::default() }
}

fn networks(cidr: &str) -> ClusterPeer {
    ClusterPeer { networks: Some(vec![cidr.into()]), ..ClusterPeer::default() }
}

/// A world with something of everything.
pub(super) fn busy() -> Vec<Event> {
    vec![
        namespace("x", "team=red"),
        namespace("y", "team=blue"),
        pod("x/a", "app=db", "10.0.0.1,fd00::1", "web:80"),
        pod("x/b", "app=web", "10.0.0.2", "web:8080"),
        pod("y/a", "app=web", "10.0.0.3", ""),
        node("n1", "192.0.2.1"),
        subjects(&["x/a", "x/b", "y/a"]),
        allow("x/db", vec![peer_pods("app=web")], vec![tcp(PortRef::Name("web".into()), None)]),
        allow_to("y/out", vec![peer_block("0.0.0.0/0", &[])], vec![tcp(PortRef::Number(443), Some(8443))]),
    ]
}

fn compile(events: &[Event]) -> Compiler {
    let mut compiler = Compiler::new(guarded());
    events.iter().for_each(|event| tell(&mut compiler, event));
    compiler.commit();
    compiler
}

/// `x/a ingress 10.0.0.2 TCP 80`.
fn ask(compiler: &Compiler, question: &str) -> Verdict {
    let words: Vec<_> = question.split(' ').collect();
    let direction = if words[1] == "ingress" { Direction::Ingress } else { Direction::Egress };
    let protocol = Protocol::ALL.iter().find(|p| p.name() == words[3]).map_or(1, |p| p.number());
    let port = words.get(4).map(|port| port.parse().unwrap());
    judge(compiler.state(), &object(words[0]), direction, words[2].parse().unwrap(), protocol, port).0
}

fn check(events: &[Event], allowed: &[&str], denied: &[&str]) {
    let compiler = compile(events);
    for question in allowed {
        assert_eq!(ask(&compiler, question), Verdict::Allow, "{question}");
    }
    for question in denied {
        assert_eq!(ask(&compiler, question), Verdict::Deny, "{question}");
    }
}

fn check_problems(events: &[Event], expected: &Expect) {
    let text: String = compile(events).problems().iter().map(|problem| format!("{problem}\n")).collect();
    expected.assert_eq(&text);
}

#[test]
fn named_ports_are_those_of_the_selected_pod_on_the_way_in_and_of_the_destination_on_the_way_out() {
    let mut events = busy();
    events.push(allow_to("x/out", vec![peer_pods("")], vec![tcp(PortRef::Name("web".into()), None)]));
    check(
        &events,
        &["x/a ingress 10.0.0.2 TCP 80", "x/b egress 10.0.0.1 TCP 80", "x/a egress 10.0.0.2 TCP 8080"],
        &[
            "x/a ingress 10.0.0.2 TCP 8080",
            "x/a ingress 10.0.0.2 UDP 80",
            "x/b egress 10.0.0.1 TCP 8080",
            "x/b egress 10.0.0.3 TCP 80",
        ],
    );
}

#[test]
fn a_policy_with_too_many_prefixes_opens_those_that_it_may_name() {
    let at = |number: usize| format!("172.16.{}.{}", number / 256, number % 256);
    let host = |number| format!("{}/32", at(number));
    let blocks = (0..super::super::network::MAX_PREFIXES + 100).map(|number| peer_block(&host(number), &[]));
    let mut events = busy();
    events.push(allow_to("x/out", blocks.collect(), vec![]));
    let compiler = compile(&events);
    let last = super::super::network::MAX_PREFIXES - 1;
    for (number, verdict) in [(0, Verdict::Allow), (last, Verdict::Allow), (last + 1, Verdict::Deny)] {
        assert_eq!(ask(&compiler, &format!("x/a egress {} TCP 80", at(number))), verdict, "{number}");
    }
    let problems: Vec<String> = compiler.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems.iter().filter(|problem| problem.contains("4096 prefixes")).count(),
        1,
        "{problems:?}"
    );
}

#[test]
fn nobody_s_address_in_a_pod_cidr_is_allowed_by_no_rule_and_denied_by_every_deny() {
    let everything =
        NetworkPolicySpec { ingress: Some(vec![IngressRule::default()]), ..NetworkPolicySpec::default() };
    let mut events = busy();
    events.push(Event::Network(object("y/all"), Some(everything)));
    check(
        &events,
        &["y/a ingress 10.0.0.1 TCP 1", "y/a ingress 8.8.8.8 ICMP"],
        &["y/a ingress 10.0.0.9 TCP 1"],
    );
    events.push(cluster("deny", "Admin", vec![to("Deny", networks("8.8.8.8/32"))]));
    check(
        &events,
        &["x/a egress 10.0.0.2 TCP 1"],
        &["x/a egress 10.0.0.9 TCP 1", "x/a egress 8.8.8.8 TCP 1"],
    );
    let first =
        cluster("a", "Admin", vec![to("Pass", networks("10.0.0.0/8")), to("Accept", networks("10.0.0.0/8"))]);
    events.push(first);
    check(&events, &["x/a egress 10.0.0.2 TCP 1"], &["x/a egress 10.0.0.9 TCP 1"]);
}

#[test]
fn without_a_policy_unknown_addresses_are_as_free_as_others() {
    let events = [namespace("x", ""), pod("x/a", "", "10.0.0.1", ""), subjects(&["x/a"])];
    check(
        &events,
        &["x/a egress 10.0.0.9 TCP 1", "x/a ingress 10.0.0.9 ICMP"],
        &["x/b egress 8.8.8.8 TCP 1"],
    );
}

#[test]
fn what_two_claim_is_unknown_wherever_it_lies_until_one_lets_go() {
    let mut events = busy();
    events.push(pod("y/b", "app=web", "10.0.0.2", ""));
    events.push(node("n2", "192.0.2.1"));
    let compiler = compile(&events);
    for address in ["10.0.0.2", "192.0.2.1"] {
        let row = compiler.state().addresses[&address.parse::<IpAddr>().unwrap()];
        assert_eq!((row.class, row.node), (ClassId::UNKNOWN, false), "{address}");
    }
    assert_eq!(ask(&compiler, "x/a ingress 10.0.0.2 TCP 80"), Verdict::Deny);
    check_problems(
        &events,
        &expect![[r#"
            address 10.0.0.2: claimed by pod x/b, pod y/b; nobody's until that is settled, so no rule allows it; delete the wrong object or correct its address
            address 192.0.2.1: claimed by node n1, node n2; nobody's until that is settled, so no rule allows it; delete the wrong object or correct its address
        "#]],
    );
    events.push(Event::Pod(object("y/b"), None));
    check(&events, &["x/a ingress 10.0.0.2 TCP 80"], &[]);
}

#[test]
fn a_pod_of_a_namespace_that_is_not_known_is_not_known() {
    let mut events = busy();
    events.push(Event::Namespace("x".into(), None));
    let compiler = compile(&events);
    assert!(!compiler.state().subjects.contains_key(&object("x/a")));
    assert_eq!(compiler.state().addresses[&"10.0.0.2".parse::<IpAddr>().unwrap()].class, ClassId::UNKNOWN);
}

#[test]
fn an_ipv6_block_says_nothing_of_ipv4_even_where_ipv4_is_mapped_into_it() {
    let mut events = busy();
    let blocks = vec![peer_block("::/0", &[]), peer_block("::ffff:0:0/96", &[])];
    events.push(allow("x/six", blocks, Vec::new()));
    check(&events, &["x/a ingress 2001:db8::1 TCP 9"], &["x/a ingress 8.8.8.8 TCP 9"]);
    let compiler = compile(&events);
    let blocks: Vec<_> = compiler.state().blocks.keys().map(ToString::to_string).collect();
    assert_eq!(blocks, ["0.0.0.0/0", "10.0.0.0/28", "::/0", "fd00::/124"]);
}

#[test]
fn a_pod_is_never_kept_from_itself() {
    check(
        &busy(),
        &["x/a ingress 10.0.0.1 TCP 9", "x/a egress fd00::1 ICMP"],
        &["x/b ingress 10.0.0.1 TCP 9"],
    );
}

#[test]
fn blocks_match_pods_and_an_exception_takes_away_from_its_own_block_alone() {
    let mut events = busy();
    let blocks = vec![peer_block("10.0.0.0/8", &["10.0.0.2/31"]), peer_block("10.0.0.3/32", &[])];
    events.push(allow("x/blocks", blocks, Vec::new()));
    check(
        &events,
        &["x/b ingress 10.0.0.1 TCP 9", "x/b ingress 10.0.0.3 TCP 9", "x/b ingress 10.9.0.0 TCP 9"],
        &["x/a ingress 10.0.0.2 TCP 9", "x/b ingress 8.8.8.8 TCP 9"],
    );
}

#[test]
fn a_port_s_name_means_nothing_at_an_address_that_only_a_network_names() {
    let entry = ClusterProtocol { destination_named_port: Some("web".into()), ..ClusterProtocol::default() };
    let everything = ClusterPeer { namespaces: Some(LabelSelector::default()), ..ClusterPeer::default() };
    let rule = |peer| ClusterRule { protocols: Some(vec![entry.clone()]), ..to("Deny", peer) };
    let mut events = busy();
    events.push(cluster("c", "Admin", vec![rule(networks("10.0.0.0/8"))]));
    check(&events, &["x/a egress 10.0.0.2 TCP 8080", "x/a egress 10.0.0.9 TCP 8080"], &[]);
    events.push(cluster("c", "Admin", vec![rule(everything)]));
    check(
        &events,
        &["x/a egress 10.0.0.2 TCP 80"],
        &["x/a egress 10.0.0.2 TCP 8080", "x/a egress 10.0.0.9 TCP 8080", "x/a egress 10.0.0.9 SCTP 1"],
    );
}

#[test]
fn labels_that_no_policy_in_use_mentions_do_not_exist() {
    let mut compiler = compile(&busy());
    let before = compiler.classes.len();
    tell(&mut compiler, &pod("y/z", "app=web,version=7", "10.0.0.7", ""));
    // Selects nobody here, so its selectors are not in use.
    tell(&mut compiler, &allow("w/other", vec![peer_pods("version=7")], Vec::new()));
    let delta = compiler.commit();
    assert_eq!(compiler.classes.len(), before);
    assert!(!delta.verdicts_may_change && delta.rows_put.is_empty() && delta.tables_put.is_empty());
    assert_eq!(delta.addresses_put.len(), 1);
}

#[test]
fn the_class_of_a_pod_that_is_gone_stays_until_it_is_forgotten_and_its_address_taken_again_counts() {
    let mut compiler = compile(&busy());
    // One that is a subject takes its own table with it.
    tell(&mut compiler, &subjects(&["x/a", "y/a"]));
    compiler.commit();
    let address: IpAddr = "10.0.0.2".parse().unwrap();
    let class = compiler.state().addresses[&address].class;
    let rows = |compiler: &Compiler| {
        let tables = compiler.state().tables.values();
        tables.flat_map(|table| table.rows.keys()).filter(|(_, of)| *of == class).count()
    };
    let before = rows(&compiler);
    assert!(before > 0);
    tell(&mut compiler, &Event::Pod(object("x/b"), None));
    assert!(compiler.commit().addresses_removed.contains(&address));
    assert_eq!(rows(&compiler), before);
    compiler.forget(address);
    compiler.commit();
    assert_eq!(rows(&compiler), 0);

    tell(&mut compiler, &Event::Pod(object("y/a"), None));
    compiler.commit();
    tell(&mut compiler, &pod("x/new", "", "10.0.0.3", ""));
    assert!(compiler.commit().verdicts_may_change, "flows of its former owner are to be judged anew");
}

#[test]
fn pods_with_the_same_policies_share_a_table_and_equal_functions_a_number() {
    let mut events = busy();
    events.push(pod("x/c", "app=other", "10.0.0.4", "web:80"));
    events.push(subjects(&["x/a", "x/b", "x/c"]));
    let compiler = compile(&events);
    let table = |name: &str| compiler.state().subjects[&object(name)].table;
    assert_eq!(table("x/a"), table("x/c"));
    assert_ne!(table("x/a"), table("x/b"), "the same name is another port there");
}

#[test]
fn what_a_function_says_is_the_same_for_everything_it_has_no_row_for() {
    let compiler = compile(&busy());
    let state = compiler.state();
    let table = &state.tables[&state.subjects[&object("x/a")].table];
    assert_eq!(table.fallback, [FnId::DENY, FnId::ALLOW]);
    let classes: BTreeMap<_, _> = table.rows.iter().collect();
    assert_eq!(classes.len(), 1, "web is one class in both namespaces' pods that x selects: {classes:?}");
}

#[test]
fn wrong_network_policies_are_named_by_object_field_value_and_remedy() {
    let strange = PolicyPort { protocol: Some("ICMP".into()), ..PolicyPort::default() };
    let both = PolicyPeer { namespace_selector: Some(selector("")), ..peer_block("10.0.0.0/8", &[]) };
    let ports = vec![
        tcp(PortRef::Number(80), Some(79)),
        tcp(PortRef::Number(0), None),
        tcp(PortRef::Name("nope".into()), None),
        tcp(PortRef::Name("web".into()), Some(90)),
        strange,
    ];
    let peers = vec![
        peer_block("10.0.0.0/33", &[]),
        peer_block("10.0.0.0/8", &["192.0.2.0/24", "0.0.0.0/0"]),
        both,
        PolicyPeer::default(),
    ];
    let mut events = busy();
    events.push(allow("x/wrong", peers, ports));
    let mut many = selector("");
    let values = (0..1_001).map(|i| i.to_string()).collect();
    many.match_expressions.push(Requirement { key: "k".into(), operator: "In".into(), values });
    let requirement = Requirement { key: "k".into(), operator: "Near".into(), values: vec![] };
    let near = LabelSelector { match_labels: Labels::new(), match_expressions: vec![requirement] };
    let huge = PolicyPeer { pod_selector: Some(many), namespace_selector: Some(near), ip_block: None };
    events.push(allow_to("x/huge", vec![huge], Vec::new()));
    let types = NetworkPolicySpec { policy_types: Some(vec!["Both".into()]), ..NetworkPolicySpec::default() };
    events.push(Event::Network(object("x/types"), Some(types)));
    check_problems(
        &events,
        &expect![[r#"
        NetworkPolicy x/huge: spec.egress[0].to[0].namespaceSelector.matchExpressions[0].operator="Near" is none of In, NotIn, Exists, DoesNotExist; this peer matches nothing until it is corrected
        NetworkPolicy x/huge: spec.egress[0].to[0].podSelector="1002 labels, requirements and values" is a huge selector (more than 1000), which slows every change of a pod down; it is obeyed; give the pods a label of their own instead
        NetworkPolicy x/types: spec.policyTypes[0]="Both" is neither Ingress nor Egress; it isolates nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].from[0].ipBlock.cidr="10.0.0.0/33" is not a CIDR; this peer matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].from[1].ipBlock.except[0]="192.0.2.0/24" is outside its cidr 10.0.0.0/8; it takes nothing away; it must be a part of cidr
        NetworkPolicy x/wrong: spec.ingress[0].from[1].ipBlock.except[1]="0.0.0.0/0" contains the whole cidr 10.0.0.0/8; this peer matches nothing; it must be a part of cidr
        NetworkPolicy x/wrong: spec.ingress[0].from[2]="ipBlock and a selector" has an ipBlock beside a selector; this peer matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].from[3]="{}" has none of podSelector, namespaceSelector, ipBlock; this peer matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].ports[0].endPort="79" is below port 80; this port matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].ports[1].port="0" is not a port from 1 to 65535; this port matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].ports[3].endPort="90" cannot end a range that begins with a port's name; this port matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].ports[4].protocol="ICMP" is none of TCP, UDP, SCTP; this port matches nothing until it is corrected
        NetworkPolicy x/wrong: spec.ingress[0].ports[2].port="nope" (TCP): no container of the pods that the policy selects names such a port, so it matches nothing; correct it or name the port in the pods
    "#]],
    );
    // The other policies stay in force, and so does what is right in a wrong one.
    check(&events, &["x/a ingress 10.0.0.2 TCP 80"], &["x/a ingress 10.0.0.3 TCP 80"]);
}

#[test]
fn wrong_cluster_policies_are_named_by_object_field_value_and_what_happens_meanwhile() {
    let domain = ClusterPeer { domain_names: Some(vec!["example.org".into()]), ..ClusterPeer::default() };
    let empty = ClusterRule { protocols: Some(vec![]), ..to("Pass", networks("8.8.8.8/32")) };
    let range = ClusterPort { number: None, range: Some(PortRange { start: 90, end: 80 }) };
    let ports = ClusterProtocolPorts { destination_port: Some(range) };
    let backwards = ClusterProtocol { tcp: Some(ports), ..ClusterProtocol::default() };
    let backwards = ClusterRule { protocols: Some(vec![backwards]), ..to("Accept", networks("8.8.8.8/32")) };
    let rules =
        vec![to("Accept", domain.clone()), backwards, empty, to("Deny", domain), to("Log", networks("::/0"))];
    let mut events = busy();
    events.push(cluster("wrong", "Adm", rules));
    let spec = ClusterNetworkPolicySpec {
        tier: "Baseline".into(),
        priority: 1_001,
        ingress: vec![ClusterRule {
            action: "Accept".into(),
            from: vec![networks("8.8.8.8/32"), ClusterPeer::default()],
            ..ClusterRule::default()
        }],
        ..ClusterNetworkPolicySpec::default()
    };
    events.push(Event::Cluster("bare".into(), Some(spec)));
    check_problems(
        &events,
        &expect![[r#"
        ClusterNetworkPolicy bare: spec.ingress[0].from[0]="networks" is a peer of egress rules alone; this peer matches nothing until it is corrected
        ClusterNetworkPolicy bare: spec.ingress[0].from[1]="{}" has no field that is known here; this peer matches nothing until it is corrected
        ClusterNetworkPolicy bare: spec.priority="1001" is not from 0 to 1000; it is obeyed as if that were allowed; choose one from there
        ClusterNetworkPolicy bare: spec.subject="{}" has neither namespaces nor pods; the policy holds for every pod until it is corrected
        ClusterNetworkPolicy wrong: spec.egress[0].to[0]="domainNames" is a peer that is not known here; this peer matches nothing until it is corrected
        ClusterNetworkPolicy wrong: spec.egress[1].protocols[0].tcp.destinationPort.range.end="80" is not above start 90; this entry matches nothing until it is corrected
        ClusterNetworkPolicy wrong: spec.egress[2].protocols="[]" needs at least one entry; the rule denies everything of everybody until it is corrected
        ClusterNetworkPolicy wrong: spec.egress[3].to[0]="domainNames" is a peer that is not known here; the rule denies everything of everybody until it is corrected
        ClusterNetworkPolicy wrong: spec.egress[4].action="Log" is none of Accept, Deny, Pass; the rule denies everything of everybody until it is corrected
        ClusterNetworkPolicy wrong: spec.tier="Adm" is neither Admin nor Baseline; taken for Admin until it is corrected
    "#]],
    );
    check(&events, &[], &["x/a egress 10.0.0.2 TCP 80", "x/a egress 8.8.8.8 TCP 80"]);
}

#[test]
fn a_rule_says_its_name_and_keeps_its_number_while_its_policy_lives() {
    let mut compiler = compile(&busy());
    let web: IpAddr = "10.0.0.2".parse().unwrap();
    let decides = |compiler: &Compiler, port| {
        let (_, rule) = judge(compiler.state(), &object("x/a"), Direction::Ingress, web, 6, Some(port));
        (rule, compiler.rule(rule).map(ToString::to_string).unwrap_or_default())
    };
    let (number, name) = decides(&compiler, 80);
    assert_eq!(name, "NetworkPolicy x/db ingress[0]");
    assert_eq!(decides(&compiler, 81).1, "NetworkPolicy x/db ingress isolation");
    tell(&mut compiler, &allow("x/db", vec![peer_pods("app=web")], vec![tcp(PortRef::Number(81), None)]));
    compiler.commit();
    assert_eq!(decides(&compiler, 81), (number, name));
    tell(&mut compiler, &Event::Network(object("x/db"), None));
    compiler.commit();
    assert_eq!(decides(&compiler, 81), (0, String::new()));
    assert!(compiler.rule(number).is_some(), "events that come late still find it");
}

#[test]
fn explanations_are_sentences() {
    let mut world = World::default();
    busy().iter().for_each(|event| world.note(event));
    let compiler = world.compile();
    let explain = |subject: &str, direction, source: &str, destination: &str, protocol, port| {
        let flow = Flow {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            port,
        };
        compiler.explain(&object(subject), direction, flow).to_string() + "\n"
    };
    let text = [
        explain("x/a", Direction::Ingress, "10.0.0.2", "10.0.0.1", 6, Some(80)),
        explain("x/a", Direction::Ingress, "192.0.2.1", "10.0.0.1", 6, Some(80)),
        explain("x/a", Direction::Egress, "10.0.0.1", "8.8.8.8", 1, None),
        explain("x/a", Direction::Egress, "10.0.0.1", "10.0.0.1", 17, Some(53)),
        explain("y/a", Direction::Egress, "10.0.0.3", "8.8.8.8", 6, Some(443)),
        explain("y/a", Direction::Egress, "10.0.0.3", "10.0.0.9", 6, Some(443)),
        explain("z/a", Direction::Egress, "10.0.0.3", "10.0.0.9", 6, Some(443)),
    ];
    expect![[r#"
        ingress of x/a from 10.0.0.2 (pod x/b), TCP port 80: allowed: NetworkPolicy x/db ingress[0]
        ingress of x/a from 192.0.2.1 (node n1), TCP port 80: denied: NetworkPolicy x/db isolates the pod, and no rule allows
        egress of x/a to 8.8.8.8 (outside the cluster), protocol 1: allowed: no policy says anything of it
        egress of x/a to 10.0.0.1 (pod x/a), UDP port 53: allowed: the pod itself, which no policy keeps it from
        egress of y/a to 8.8.8.8 (outside the cluster), TCP port 443: allowed: NetworkPolicy y/out egress[0]
        egress of y/a to 10.0.0.9 (unknown), TCP port 443: denied: NetworkPolicy y/out isolates the pod, and no rule allows
        egress of z/a to 10.0.0.9 (unknown), TCP port 443: denied: the pod or its namespace is not known yet
    "#]].assert_eq(&text.concat());
}
