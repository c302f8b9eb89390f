//! ADD waits for the identity of its pod and gets none from thin air.

use std::time::Duration;

use chaos_tests::pod::{NAMESPACE, addresses, create_object};
use kubeapi::{Fault, Filter, Verb};
use netlab::eventually;
use serde_json::{Value, json};

use crate::common::{LONG, Prepared, await_traces, lab, refused, traces};

const NOBODY: &str = "0b5d3a4e-0000-4000-8000-00000000000f";
/// The agent waits ten seconds for a pod and asks once more.
const UNKNOWN: Duration = Duration::from_secs(15);

/// Addresses that the agents of other nodes read from a pod's object.
fn announced(lab: &chaos_tests::Lab, name: &str) -> String {
    let pod: Value = lab.api().store().get("pods", Some(NAMESPACE), name).unwrap();
    pod["metadata"]["annotations"]["hawser.dev/ips"].as_str().unwrap_or_default().to_owned()
}

fn joined(result: &Value) -> String {
    addresses(result).iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn the_addresses_are_on_the_pods_object_before_add_returns() {
    let lab = lab("ips", 1);
    for number in 0..5 {
        let pod = Prepared::new(&lab, 1, &format!("pod-{number}"));
        let result = pod.add(&lab).unwrap();
        assert_eq!(announced(&lab, &pod.name), joined(&result));
    }
}

/// As where a webhook for pods fails closed, and its own pods wait for these very ADDs after a power cut.
#[test]
fn a_pod_is_connected_and_corrected_though_every_change_of_pods_themselves_fails() {
    let lab = lab("webhook", 1);
    let down = Fault::Status { code: 500, retry_after: None };
    let fault = lab.api().faults().inject(Filter::on(Verb::Patch, "pods"), down);
    let pod = Prepared::new(&lab, 1, "pod");
    let result = pod.add(&lab).unwrap();
    assert_eq!(announced(&lab, &pod.name), joined(&result));
    pod.check(&lab, &result).unwrap();
    pod.del(&lab, Some(&result)).unwrap();
    let cleared = || {
        let said = announced(&lab, &pod.name);
        if said.is_empty() { Ok(()) } else { Err(said) }
    };
    eventually(LONG, "the address that was given back is taken off the pod", cleared).unwrap();
    assert_eq!(lab.api().faults().hits(fault), 0, "somebody patches pods themselves");
}

#[test]
fn add_waits_for_a_pod_that_comes_into_being_after_it_began() {
    let lab = lab("early", 1);
    // Which UID a pod gets is not known before; a static pod's is.
    let pod = Prepared::of_uid(&lab, 1, "static", "8d7fe25e11b4a1a2c2b0b77e4f9d6c11");
    lab.api().faults().reset_counters();
    let result = std::thread::scope(|scope| {
        let add = scope.spawn(|| pod.add(&lab));
        let asked = || match lab.api().faults().requests(Verb::Get, "pods") {
            0 => Err("not yet"),
            _ => Ok(()),
        };
        eventually(LONG, "the agent asks for the pod that is not there", asked).unwrap();
        create_object(&lab, 1, "static", &json!({"kubernetes.io/config.hash": pod.uid})).unwrap();
        add.join().unwrap()
    })
    .unwrap();
    assert_eq!(announced(&lab, "static"), joined(&result));
    pod.check(&lab, &result).unwrap();
}

#[test]
fn a_pod_that_a_silent_watch_does_not_show_is_found_by_asking() {
    let lab = lab("frozen", 1);
    let old = Prepared::new(&lab, 1, "reused");
    let result = old.add(&lab).unwrap();
    lab.api().faults().inject(Filter::on(Verb::Watch, "pods"), Fault::Freeze);
    lab.api().faults().reset_counters();

    let fresh = Prepared::new(&lab, 1, "fresh");
    let fresh_result = fresh.add(&lab).unwrap();
    assert_eq!(announced(&lab, "fresh"), joined(&fresh_result));

    // The watch still shows the old pod of this name, and its sandbox still stands.
    lab.api().store().delete_now("pods", Some(NAMESPACE), "reused").unwrap();
    let new = Prepared::new(&lab, 1, "reused");
    assert_ne!(old.uid, new.uid);
    let new_result = new.add(&lab).unwrap();
    assert_ne!(addresses(&result), addresses(&new_result));
    assert_eq!(announced(&lab, "reused"), joined(&new_result));
    assert!(lab.api().faults().requests(Verb::Get, "pods") >= 2, "the watch told it after all");
    old.del(&lab, Some(&result)).unwrap();
    new.check(&lab, &new_result).unwrap();
}

#[test]
fn an_unknown_and_a_replaced_pod_are_refused_with_11_in_time_and_leave_nothing() {
    let lab = lab("unknown", 1);
    let nobody = Prepared::of_uid(&lab, 1, "nobody", NOBODY);
    let old = Prepared::new(&lab, 1, "replaced");
    lab.api().store().delete_now("pods", Some(NAMESPACE), "replaced").unwrap();
    let new = create_object(&lab, 1, "replaced", &json!({})).unwrap();
    let before = traces(&lab, 1);
    let refusals = std::thread::scope(|scope| {
        let adds = [&nobody, &old].map(|pod| scope.spawn(|| refused(|| pod.add(&lab))));
        adds.map(|add| add.join().unwrap())
    });
    for ((error, took), words) in refusals
        .iter()
        .zip([["default/nobody", NOBODY, "does not know it"], ["default/replaced", &old.uid, &new]])
    {
        eprintln!("refused after {took:?}: {error}");
        assert_eq!(error.code, 11, "{error}");
        assert!(
            words.iter().all(|word| error.to_string().contains(word)),
            "{error} names not all of {words:?}"
        );
        assert!(*took < UNKNOWN, "{took:?}");
    }
    await_traces(&lab, 1, &before);
    assert_eq!(announced(&lab, "replaced"), "", "the new pod bears no address of the old one");
}

#[test]
fn without_the_api_nobody_is_connected_and_nothing_is_left() {
    let mut lab = lab("noapi", 1);
    // One that the agent's watch has shown, and one that it has not.
    let known = Prepared::new(&lab, 1, "known");
    let probe = lab.add_pod(1, "probe").unwrap();
    let unknown = Prepared::of_uid(&lab, 1, "unknown", NOBODY);
    let before = traces(&lab, 1);
    lab.stop_api();
    let (errors, lab_ref) = (
        std::thread::scope(|scope| {
            let adds = [&known, &unknown].map(|pod| scope.spawn(|| refused(|| pod.add(&lab))));
            adds.map(|add| add.join().unwrap())
        }),
        &lab,
    );
    for (error, took) in errors {
        eprintln!("refused after {took:?}: {error}");
        assert_eq!(error.code, 11, "{error}");
        assert!(took < Duration::from_secs(40), "{took:?}");
    }
    await_traces(lab_ref, 1, &before);
    // A pod that runs goes on, and can be deleted.
    crate::common::answers(&lab.node(1).namespace, &probe.ips).unwrap();
    lab.restart_api().unwrap();
    let result =
        eventually(LONG, "ADD works again", || known.add(&lab).map_err(|e| format!("{e:#}"))).unwrap();
    assert_eq!(announced(&lab, "known"), joined(&result));
}
