//! Maps that are too small: who comes too late is named, rejects or has less, and gets the rest when there is room.

use super::kernel::Kernel;
use super::object;
use super::semantics::{service, slice, world};
use crate::service::{Compiler, Limits, ServiceProblem};

fn endpoints(of: &str, net: u8, count: u8) -> crate::service::model::EndpointSliceFacts {
    let words: Vec<String> = (1..=count).map(|host| format!("10.2.{net}.{host}")).collect();
    slice(of, &words.join(" "))
}

/// Services `a`, `b`, … with so many endpoints each, at 10.96.0.1 and on.
fn compiler(limits: Limits, counts: &[u8]) -> Compiler {
    let mut compiler = Compiler::new(limits);
    compiler.set_node(world().own);
    for (net, count) in (1_u8..).zip(counts) {
        let name = char::from(b'a' + net - 1).to_string();
        compiler.set_service(object(&name), Some(service("ClusterIP", &[&format!("10.96.0.{net}")])));
        compiler.set_slice(object(&name), Some(endpoints(&name, net, *count)));
    }
    compiler
}

fn codes(compiler: &Compiler) -> Vec<String> {
    let problems = compiler.problems();
    problems.iter().map(|p| format!("{} {}", p.owner(), p.code())).collect()
}

/// Places of each frontend with backends, by its last byte.
fn places(compiler: &Compiler) -> Vec<u32> {
    let fronts = compiler.state().frontends.iter().filter(|(key, _)| key.port > 0);
    fronts.map(|(_, front)| front.count).collect()
}

#[test]
fn a_table_that_finds_no_room_is_smaller_or_rejects_until_there_is_room() {
    let limits = Limits { places: 1024 + 256, ..Limits::default() };
    let mut compiler = compiler(limits, &[6, 6, 6]);
    let mut kernel = Kernel::default();
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(places(&compiler), [1021, 251, 0]);
    assert_eq!(codes(&compiler), ["Service x/b ServicePlacesFull", "Service x/c ServicePlacesFull"]);
    let sentences: Vec<String> = compiler.problems().iter().map(ToString::to_string).collect();
    expect_test::expect![[r#"
        Service x/b: port "p": no room for a table of 1021 places for 6 endpoints, 251 are given (0: clients are refused; fewer: spread less evenly); raise the limit of places (1280)
        Service x/c: port "p": no room for a table of 1021 places for 6 endpoints, 0 are given (0: clients are refused; fewer: spread less evenly); raise the limit of places (1280)"#]].assert_eq(&sentences.join("\n"));

    compiler.set_service(object("a"), None);
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(places(&compiler), [251, 0], "its places are still looked at");
    compiler.quiesced(kernel.quiesce());
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(places(&compiler), [1021, 0]);
    compiler.quiesced(kernel.quiesce());
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(places(&compiler), [1021, 251], "what the second left is enough for a smaller one");
    assert_eq!(codes(&compiler), ["Service x/c ServicePlacesFull"]);
}

#[test]
fn a_service_that_cannot_grow_its_table_keeps_it_and_serves_all() {
    let mut compiler = compiler(Limits { places: 512, ..Limits::default() }, &[3]);
    let mut kernel = Kernel::default();
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(places(&compiler), [509]);
    compiler.set_slice(object("a"), Some(endpoints("a", 1, 20)));
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(places(&compiler), [509]);
    let table = compiler.state().tables.values().next().unwrap();
    let different: std::collections::BTreeSet<_> = table.iter().collect();
    assert_eq!(different.len(), 20);
    assert_eq!(codes(&compiler), ["Service x/a ServicePlacesFull"]);
}

#[test]
fn backends_that_find_no_room_are_counted_and_come_later() {
    let mut compiler = compiler(Limits { backends: 8, ..Limits::default() }, &[5, 5]);
    let mut kernel = Kernel::default();
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(compiler.state().backends.len(), 8);
    let missing: Vec<usize> = compiler
        .problems()
        .iter()
        .filter_map(
            |p| if let ServiceProblem::NoBackends { missing, .. } = p { Some(*missing) } else { None },
        )
        .collect();
    assert_eq!(missing, [2]);
    compiler.set_slice(object("a"), Some(endpoints("a", 1, 3)));
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(compiler.state().backends.len(), 6, "those that go are in the map until the delta is applied");
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(compiler.state().backends.len(), 8);
    assert_eq!(codes(&compiler), Vec::<String>::new());
}

#[test]
fn addresses_that_find_no_room_are_named_and_come_later() {
    let mut compiler = compiler(Limits { frontends: 3, ..Limits::default() }, &[1, 1]);
    let mut kernel = Kernel::default();
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(compiler.state().frontends.len(), 3);
    assert_eq!(codes(&compiler), ["Service x/b ServiceFrontendsFull"]);
    compiler.set_service(object("a"), None);
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(compiler.state().frontends.len(), 1);
    kernel.apply(&compiler.commit()).unwrap();
    assert_eq!(compiler.state().frontends.len(), 2);
    assert_eq!(codes(&compiler), Vec::<String>::new());
}

#[test]
fn one_endpoint_more_changes_few_places() {
    let mut compiler = compiler(Limits::default(), &[30]);
    compiler.commit();
    compiler.set_slice(object("a"), Some(endpoints("a", 1, 31)));
    let delta = compiler.commit();
    let written: usize = delta.places.iter().map(|run| run.backends.len()).sum();
    assert!(delta.frontends_set.is_empty(), "the table stays where it is");
    assert_eq!(delta.backends_set.len(), 1);
    assert!(written < 4093 / 4, "{written} of 4093 places were written");
}
