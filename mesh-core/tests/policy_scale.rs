//! 50,000 pods on 5,000 nodes under 2,000 policies, compiled for one node with 110 pods: what everything costs at first, and
//! what one event costs. Work is counted and asserted; times and bytes are printed alone.
//!
//! `cargo test --release -p mesh-core --test policy_scale -- --nocapture` for the numbers of the README.

use std::collections::BTreeSet;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::policy::compile::Compiler;
use mesh_core::policy::model::*;
use mesh_core::policy::tables::{AddressRow, ClassId, Delta, FnId, PortPrefix, PortVerdict, RowKey, State};

const PODS: u32 = 50_000;
const NODES: u32 = 5_000;
const POLICIES: u32 = 2_000;
const NAMESPACES: u32 = 500;
/// Pods of a Deployment: alike but for their addresses.
const REPLICAS: u32 = 10;
/// Pods of this node: the kubelet's default limit.
const SUBJECTS: u32 = 110;
const EVENTS: u32 = 200;

fn word(key: &str, value: String) -> (String, String) {
    (key.to_owned(), value)
}

fn namespace_of(pod: u32) -> u32 {
    pod / REPLICAS % NAMESPACES
}

fn pod_name(pod: u32) -> ObjectName {
    ObjectName { namespace: format!("ns-{}", namespace_of(pod)), name: format!("pod-{pod}") }
}

fn pod(number: u32, version: u32) -> PodFacts {
    let deployment = number / REPLICAS;
    let labels = Labels::from([
        word("app.kubernetes.io/name", format!("app-{deployment}")),
        word("pod-template-hash", format!("{:08x}", deployment.wrapping_mul(2_654_435_761))),
        word("role", ["web", "api", "db", "cache"][deployment as usize / NAMESPACES as usize % 4].to_owned()),
        word("version", version.to_string()),
    ]);
    let port = NamedPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 8_080 };
    let v4 = Ipv4Addr::from(0x0a00_0000 + number * 4 + 1);
    let v6 = (0xfd00_u128 << 112) + u128::from(number);
    PodFacts {
        labels,
        ips: BTreeSet::from([v4.into(), IpAddr::from(v6.to_be_bytes())]),
        ports: BTreeSet::from([port]),
    }
}

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    let match_labels = pairs.iter().map(|(key, value)| word(key, (*value).to_owned())).collect();
    LabelSelector { match_labels, match_expressions: Vec::new() }
}

fn tcp(port: PortRef, end_port: Option<i64>) -> Option<Vec<PolicyPort>> {
    Some(vec![PolicyPort { protocol: None, port: Some(port), end_port }])
}

/// Four for each namespace, as people write them: close it, open it inside, let the ingress in, let it out to the database.
fn policy(number: u32) -> (ObjectName, NetworkPolicySpec) {
    let namespace = format!("ns-{}", number % NAMESPACES);
    let kind = number / NAMESPACES;
    let name = ["close", "inside", "front", "out"][kind as usize % 4];
    let own = PolicyPeer { pod_selector: Some(LabelSelector::default()), ..PolicyPeer::default() };
    let mut spec = NetworkPolicySpec::default();
    match kind % 4 {
        0 => spec.policy_types = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        1 => {
            spec.ingress = Some(vec![IngressRule { from: Some(vec![own.clone()]), ports: None }]);
            spec.egress = Some(vec![EgressRule { to: Some(vec![own]), ports: None }]);
        }
        2 => {
            let team = format!("team-{}", number % 20);
            let front = PolicyPeer {
                pod_selector: Some(selector(&[("role", "web")])),
                namespace_selector: Some(selector(&[("team", &team)])),
                ip_block: None,
            };
            spec.pod_selector = selector(&[("role", "api")]);
            let ports = tcp(PortRef::Name("http".to_owned()), None);
            spec.ingress = Some(vec![IngressRule { from: Some(vec![front]), ports }]);
        }
        _ => {
            let cidr = format!("192.0.2.{}/30", number % 60 * 4);
            let block = IpBlock { cidr, except: Vec::new() };
            let peer = PolicyPeer { ip_block: Some(block), ..PolicyPeer::default() };
            let ports = tcp(PortRef::Number(5_432), Some(5_440));
            spec.egress = Some(vec![EgressRule { to: Some(vec![peer]), ports }]);
            spec.policy_types = Some(vec!["Egress".to_owned()]);
        }
    }
    (ObjectName { namespace, name: name.to_owned() }, spec)
}

/// Nobody may reach the nodes' kubelets; everybody may ask for names.
fn cluster_policy() -> ClusterNetworkPolicySpec {
    let everybody = || ClusterPeer { namespaces: Some(LabelSelector::default()), ..ClusterPeer::default() };
    let port = |number| ClusterPort { number: Some(number), range: None };
    let entry = |number| ClusterProtocolPorts { destination_port: Some(port(number)) };
    let rule = |action: &str, peer, protocol| ClusterRule {
        action: action.to_owned(),
        to: vec![peer],
        protocols: Some(vec![protocol]),
        ..ClusterRule::default()
    };
    let nodes = ClusterPeer { nodes: Some(LabelSelector::default()), ..ClusterPeer::default() };
    let kubelet = ClusterProtocol { tcp: Some(entry(10_250)), ..ClusterProtocol::default() };
    let dns = ClusterProtocol { udp: Some(entry(53)), ..ClusterProtocol::default() };
    ClusterNetworkPolicySpec {
        tier: "Admin".to_owned(),
        subject: ClusterSubject { namespaces: Some(LabelSelector::default()), pods: None },
        egress: vec![rule("Deny", nodes, kubelet), rule("Accept", everybody(), dns)],
        ..ClusterNetworkPolicySpec::default()
    }
}

#[allow(clippy::disallowed_methods, reason = "a test may look at the clock; nothing is asserted of it")]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let done = run();
    (done, start.elapsed())
}

#[allow(clippy::print_stdout, reason = "numbers for people")]
fn say(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}, most {:?} ({} times)", at(50), at(99), at(100), times.len());
}

/// What the state takes by itself: keys and values, without the trees that hold them.
fn bytes(state: &State) -> usize {
    let tables: usize =
        state.tables.values().map(|table| table.rows.len() * size_of::<(RowKey, FnId)>()).sum();
    let functions: usize =
        state.functions.values().map(|f| f.len() * size_of::<(PortPrefix, PortVerdict)>()).sum();
    state.addresses.len() * size_of::<(IpAddr, AddressRow)>()
        + state.blocks.len() * size_of::<(IpNet, ClassId)>()
        + tables
        + functions
}

fn cluster() -> Compiler {
    let mut compiler =
        Compiler::new(vec!["10.0.0.0/8".parse().expect("a CIDR"), "fd00::/16".parse().expect("a CIDR")]);
    for number in 0..NAMESPACES {
        let labels = Labels::from([word("team", format!("team-{}", number % 20))]);
        compiler.set_namespace(format!("ns-{number}"), Some(NamespaceFacts { labels, audit: false }));
    }
    for number in 0..NODES {
        let name = format!("node-{number}");
        let ips = BTreeSet::from([IpAddr::from(Ipv4Addr::from(0xac10_0000 + number))]);
        let labels = Labels::from([word("kubernetes.io/hostname", name.clone())]);
        compiler.set_node(name.parse().expect("a name"), Some(NodePolicyFacts { labels, ips }));
    }
    for number in 0..PODS {
        compiler.set_pod(pod_name(number), Some(pod(number, 1)));
    }
    for number in 0..POLICIES {
        let (name, spec) = policy(number);
        compiler.set_network_policy(name, Some(spec));
    }
    compiler.set_cluster_policy("cluster".to_owned(), Some(cluster_policy()));
    compiler.set_subjects((0..SUBJECTS).map(|number| pod_name(number * (PODS / SUBJECTS))).collect());
    compiler
}

/// Pod `number` is changed, removed and added again. Returns what each commit said.
fn pod_events(compiler: &mut Compiler, number: u32, times: &mut [Vec<Duration>; 3]) -> [Delta; 3] {
    let facts = [Some(pod(number, 2)), None, Some(pod(number, 1))];
    let mut deltas = Vec::new();
    for (facts, times) in facts.into_iter().zip(times) {
        let (delta, took) = timed(|| {
            compiler.set_pod(pod_name(number), facts);
            compiler.commit()
        });
        let work = compiler.work();
        assert!(work.addresses <= 2 && work.profiles <= 1 && work.blocks == 0, "pod {number}: {work:?}");
        assert!(work.subjects == 0 && work.tables == 0, "no pod of this node is concerned: {work:?}");
        times.push(took);
        deltas.push(delta);
    }
    deltas.try_into().expect("one for each event")
}

#[test]
#[allow(clippy::print_stdout, reason = "numbers for people")]
fn one_event_among_50_000_pods_costs_what_it_affects() {
    let (mut compiler, told) = timed(cluster);
    let (delta, compiled) = timed(|| compiler.commit());
    assert_eq!(compiler.problems(), []);
    let state = compiler.state();
    let rows: usize = state.tables.values().map(|table| table.rows.len()).sum();
    let classes: BTreeSet<_> = state.addresses.values().map(|row| row.class).collect();
    println!("all facts told: {told:?}; first commit: {compiled:?}");
    println!(
        "{} addresses, {} blocks, {} classes, {} tables with {rows} rows, {} functions: {} KiB",
        state.addresses.len(),
        state.blocks.len(),
        classes.len(),
        state.tables.len(),
        state.functions.len(),
        bytes(state) >> 10,
    );
    assert_eq!(delta.addresses_put.len(), (2 * PODS + NODES) as usize);
    assert_eq!(compiler.state().subjects.len(), SUBJECTS as usize);
    // Labels that no policy of this node mentions do not exist: far fewer classes than Deployments.
    assert!(classes.len() < 600, "{}", classes.len());

    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for event in 0..EVENTS {
        // Never one of this node's own.
        let number = 1 + event * (PODS / EVENTS);
        let [changed, removed, added] = pod_events(&mut compiler, number, &mut times);
        assert!(changed.is_empty(), "nobody mentions a version");
        assert_eq!(removed.addresses_removed.len(), 2);
        assert_eq!((added.addresses_put.len(), added.rows_put.len()), (2, 0));
    }
    let [changed, removed, added] = times;
    say("a label of a pod changes", changed);
    say("a pod goes", removed);
    say("a pod comes", added);
    policy_events(&mut compiler);
}

fn policy_events(compiler: &mut Compiler) {
    let (mut unused, mut used, mut wide) = (Vec::new(), Vec::new(), Vec::new());
    let own = compiler.state().subjects.keys().next().expect("a subject").namespace.clone();
    for round in 0..20_u32 {
        let (mut name, spec) = policy(NAMESPACES);
        name.name = "added".to_owned();
        // In a namespace without pods here.
        name.namespace = "elsewhere".to_owned();
        let (delta, took) = timed(|| {
            compiler.set_network_policy(name.clone(), (round % 2 == 0).then(|| spec.clone()));
            compiler.commit()
        });
        assert!(delta.is_empty() && compiler.work().profiles == 0);
        unused.push(took);

        name.namespace.clone_from(&own);
        let mut spec = spec;
        spec.ingress.iter_mut().flatten().for_each(|rule| {
            rule.from = Some(vec![PolicyPeer {
                pod_selector: Some(selector(&[("role", "db")])),
                ..PolicyPeer::default()
            }]);
        });
        let ((), took) = timed(|| {
            compiler.set_network_policy(name.clone(), (round % 2 == 0).then(|| spec.clone()));
            compiler.commit();
        });
        let work = compiler.work();
        assert!(work.profiles < 100 && work.addresses < 500, "one namespace's pods: {work:?}");
        used.push(took);

        spec.ingress.iter_mut().flatten().for_each(|rule| {
            rule.from = Some(vec![PolicyPeer {
                namespace_selector: Some(selector(&[("team", "team-7")])),
                ..PolicyPeer::default()
            }]);
        });
        name.name = "wide".to_owned();
        let ((), took) = timed(|| {
            compiler.set_network_policy(name.clone(), (round % 2 == 0).then(|| spec.clone()));
            compiler.commit();
        });
        assert!(compiler.work().addresses <= (2 * PODS / 20) as usize, "a twentieth of the pods");
        wide.push(took);
    }
    say("a policy that holds for no pod here comes or goes", unused);
    say("a policy about pods of one namespace comes or goes", used);
    say("a policy about a twentieth of all pods comes or goes", wide);
}
