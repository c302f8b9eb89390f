//! Ten thousand services: what a full compile and one event cost. Work is counted and asserted; times are printed alone,
//! since they depend on the machine.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use mesh_core::policy::model::ObjectName;
use mesh_core::service::model::{
    EndpointFacts, EndpointSliceFacts, LABEL_SERVICE_NAME, OwnNode, ServiceFacts, ServicePort, SlicePort,
};
use mesh_core::service::{Compiler, Limits};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 5;

fn name(number: u32) -> ObjectName {
    ObjectName { namespace: format!("ns-{}", number % 100), name: format!("svc-{number}") }
}

fn service(number: u32) -> ServiceFacts {
    let mut facts = ServiceFacts::default();
    facts.spec.cluster_ips = vec![Ipv4Addr::from(0x0a60_0000 + number + 1).to_string()];
    facts.spec.ports = vec![ServicePort { name: "http".to_owned(), port: 80, ..ServicePort::default() }];
    facts
}

fn slice(number: u32, endpoints: u32) -> EndpointSliceFacts {
    let mut facts = EndpointSliceFacts { address_type: "IPv4".to_owned(), ..EndpointSliceFacts::default() };
    facts.metadata.labels.insert(LABEL_SERVICE_NAME.to_owned(), name(number).name);
    facts.ports = vec![SlicePort { name: "http".to_owned(), port: Some(8080), ..SlicePort::default() }];
    facts.endpoints = (0..endpoints)
        .map(|index| EndpointFacts {
            addresses: vec![Ipv4Addr::from(0x0a80_0000 + number * 16 + index).to_string()],
            node_name: Some(format!("node-{}", index % 3)),
            ..EndpointFacts::default()
        })
        .collect();
    facts
}

fn own() -> OwnNode {
    OwnNode { name: Some("node-1".parse().expect("a name")), ..OwnNode::default() }
}

#[allow(clippy::print_stdout, reason = "numbers for people")]
fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    #[allow(clippy::disallowed_methods, reason = "a test may look at the clock; nothing is asserted of it")]
    let start = std::time::Instant::now();
    let done = run();
    #[allow(clippy::disallowed_methods, reason = "as above")]
    let took = start.elapsed();
    println!("{what}: {took:?}");
    done
}

#[test]
#[allow(clippy::print_stdout, reason = "numbers for people")]
fn one_event_among_ten_thousand_services_costs_one_service() {
    let mut compiler = Compiler::new(Limits { places: 1 << 23, ..Limits::default() });
    compiler.set_node(own());
    for number in 0..SERVICES {
        compiler.set_service(name(number), Some(service(number)));
        compiler.set_slice(name(number), Some(slice(number, ENDPOINTS)));
    }
    let delta = timed("full compile of 10,000 services with 5 endpoints", || compiler.commit());
    assert_eq!(compiler.problems(), BTreeSet::new());
    assert_eq!(delta.backends_set.len(), (SERVICES * ENDPOINTS) as usize);
    assert_eq!(delta.frontends_set.len(), 2 * SERVICES as usize);
    assert_eq!(compiler.work().tables, SERVICES as usize);
    let places: usize = delta.places.iter().map(|run| run.backends.len()).sum();
    println!("{places} places, {} MiB in the kernel at 8 bytes each", (places * 8) >> 20);

    compiler.set_slice(name(4711), Some(slice(4711, ENDPOINTS - 1)));
    let delta = timed("one endpoint less", || compiler.commit());
    let work = compiler.work();
    assert_eq!((work.owners, work.tables, work.keys), (1, 1, 2));
    assert_eq!((delta.backends_set.len(), delta.backends_removed.len()), (0, 1));
    assert!(delta.frontends_set.is_empty(), "the table stays where it is");
    let places: usize = delta.places.iter().map(|run| run.backends.len()).sum();
    assert!(places < 509, "{places} places written");

    compiler.set_service(name(4711), None);
    timed("one service less", || compiler.commit());
    assert_eq!(compiler.work().owners, 1);
    assert_eq!(compiler.state().frontends.len(), 2 * (SERVICES as usize - 1));

    let again = timed("nothing", || compiler.commit());
    assert!(again.is_empty());
}

#[test]
#[allow(clippy::print_stdout, reason = "numbers for people")]
fn a_service_of_a_thousand_endpoints_rolls_by_small_changes() {
    let mut compiler = Compiler::new(Limits::default());
    compiler.set_node(own());
    compiler.set_service(name(1), Some(service(1)));
    compiler.set_slice(name(1), Some(slice(1, 1000)));
    timed("table of 1,000 endpoints", || compiler.commit());
    compiler.set_slice(name(1), Some(slice(1, 999)));
    let delta = timed("one endpoint less of 1,000", || compiler.commit());
    let places: usize = delta.places.iter().map(|run| run.backends.len()).sum();
    println!("{places} places in {} runs", delta.places.len());
    assert!(places < 131_071 / 8, "{places} of 131071 places written");
}
