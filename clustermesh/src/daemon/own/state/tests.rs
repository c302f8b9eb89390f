use mesh_core::announcement::{Epoch, SlotAnnouncement};
use mesh_core::clusters::ClusterState;
use mesh_core::key::PublicKey;
use proptest::prelude::*;

use super::*;

fn fact(key: u8, created: i64, cidrs: &[&str], announced: bool) -> NodeFact {
    let slot = |number: u8| SlotAnnouncement {
        epoch: Epoch(u64::from(number)),
        public_key: PublicKey::from_bytes([number; 32]),
        port: 51880,
        draining: false,
    };
    let announcement = Announcement {
        slots: [slot(2 * key + 1), slot(2 * key + 2)],
        endpoints: Vec::new(),
        kem: None,
        kem_required: false,
        host_traffic: false,
    };
    NodeFact {
        uid: format!("uid-{created}"),
        created,
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        internal_ips: vec![format!("192.0.2.{}", key + 1).parse().unwrap()],
        endpoints: None,
        announcement: announced.then_some(announcement),
    }
}

fn name(text: &str) -> Arc<NodeName> {
    Arc::new(text.parse().unwrap())
}

fn pod_name(number: u8) -> ObjectName {
    ObjectName { namespace: format!("ns{}", number % 2), name: format!("p{number}") }
}

fn pod(labels: u8, ips: &[IpAddr]) -> PodFact {
    let labels = Labels::from([("app".to_owned(), labels.to_string())]);
    PodFact { labels, ips: ips.iter().copied().collect(), ports: BTreeSet::new() }
}

fn state() -> OwnState {
    OwnState::new("here".parse().unwrap(), vec!["10.1.0.0/16".parse().unwrap()])
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Node(u8, Option<NodeFact>),
    Pod(u8, Option<PodFact>),
    Space(u8, Option<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let cidrs = prop::sample::select(vec![
        vec!["10.1.0.0/24"],
        vec!["10.1.1.0/24"],
        vec!["10.1.0.0/23"],
        vec!["10.9.0.0/24"],
        vec![],
    ]);
    let node = (0u8..3, 0i64..3, cidrs, any::<bool>())
        .prop_map(|(n, age, cidrs, announced)| fact(n, age, &cidrs, announced));
    let address = (0u8..3, 0u8..4).prop_map(|(net, host)| IpAddr::from([10, 1, net, host]));
    let pod = (0u8..2, prop::collection::vec(address, 0..3)).prop_map(|(labels, ips)| pod(labels, &ips));
    prop_oneof![
        1 => (0u8..3, prop::option::of(node)).prop_map(|(n, fact)| Step::Node(n, fact)),
        3 => (0u8..4, prop::option::of(pod)).prop_map(|(n, fact)| Step::Pod(n, fact)),
        1 => (0u8..2, prop::option::of(0u8..2)).prop_map(|(n, labels)| Step::Space(n, labels)),
    ]
}

#[test]
fn an_address_that_an_administrator_gave_a_node_is_ours_as_its_internal_ips_are() {
    let mut own = state();
    let administered: IpAddr = "198.51.100.7".parse().unwrap();
    let fact = NodeFact { endpoints: Some(vec![administered]), ..fact(0, 0, &["10.1.0.0/24"], true) };
    own.all_nodes(BTreeMap::from([(name("n0"), fact)]));
    let wanted = ["192.0.2.1".parse().unwrap(), administered].map(|address| (address, "n0".parse().unwrap()));
    assert_eq!(own.own().addresses, BTreeMap::from(wanted));
}

proptest! {
    /// Whatever happens in whatever order, what was told adds up to what is told of the same facts at once.
    #[test]
    fn changes_add_up_to_what_there_is(steps in prop::collection::vec(step(), 0..40)) {
        let (mut own, mut told) = (state(), ClusterState::default());
        let (mut nodes, mut pods, mut spaces) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for step in steps {
            let changes = match step {
                Step::Node(n, fact) => {
                    let name = name(&format!("n{n}"));
                    match fact.clone() {
                        Some(fact) => drop(nodes.insert(Arc::clone(&name), fact)),
                        None => drop(nodes.remove(&name)),
                    }
                    own.node(name, fact)
                }
                Step::Pod(n, fact) => {
                    match fact.clone() {
                        Some(fact) => drop(pods.insert(pod_name(n), fact)),
                        None => drop(pods.remove(&pod_name(n))),
                    }
                    own.pod(pod_name(n), fact)
                }
                Step::Space(n, labels) => {
                    let name: Arc<str> = format!("ns{n}").into();
                    let labels = labels.map(|l| Arc::new(Labels::from([("l".to_owned(), l.to_string())])));
                    match labels.clone() {
                        Some(labels) => drop(spaces.insert(Arc::clone(&name), labels)),
                        None => drop(spaces.remove(&name)),
                    }
                    own.namespace(name, labels)
                }
            };
            for change in changes {
                prop_assert!(told.apply(change.clone()), "{change:?} changes nothing");
            }
            for endpoint in told.endpoints.values() {
                prop_assert!(told.label_sets.contains_key(&endpoint.labels));
                prop_assert!(told.nodes.contains_key(&endpoint.node));
            }
        }
        let used: BTreeSet<LabelSetId> = told.endpoints.values().map(|endpoint| endpoint.labels).collect();
        prop_assert_eq!(used, told.label_sets.keys().copied().collect());
        // All at once, as a new leader hears it: the same, numbers of label sets included.
        let (mut other, mut at_once) = (state(), ClusterState::default());
        for change in [other.all_pods(pods), other.all_namespaces(spaces), other.all_nodes(nodes)].concat() {
            at_once.apply(change);
        }
        prop_assert_eq!(&told, &at_once);
        // And nothing once more.
        let (pods, nodes, spaces) = (own.pods.clone(), own.nodes.clone(), own.namespaces.clone());
        prop_assert_eq!([own.all_pods(pods), own.all_nodes(nodes), own.all_namespaces(spaces)].concat(), vec![]);
    }
}

#[test]
fn only_pods_at_addresses_of_announced_nodes_are_told_and_addresses_that_two_claim_are_nobodys() {
    let mut own = state();
    own.node(name("n1"), Some(fact(1, 0, &["10.1.1.0/24"], true)));
    own.node(name("n2"), Some(fact(2, 0, &["10.1.2.0/24"], false)));
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let told = |own: &OwnState| own.told_endpoints.keys().map(ToString::to_string).collect::<Vec<_>>();
    own.pod(pod_name(1), Some(pod(1, &[ip("10.1.1.7"), ip("192.0.2.1"), ip("10.1.1.1")])));
    own.pod(pod_name(2), Some(pod(1, &[ip("10.1.2.7")])));
    assert_eq!(told(&own), ["10.1.1.7"], "not the host network, the mesh address, a node without keys");
    own.pod(pod_name(3), Some(pod(2, &[ip("10.1.1.7")])));
    assert_eq!(told(&own), [""; 0]);
    own.pod(pod_name(1), None);
    assert_eq!(told(&own), ["10.1.1.7"]);
    assert_eq!(own.told_nodes[&name("n1")].announcement.endpoints, [ip("192.0.2.2")], "its InternalIP");
}
