//! Many ADDs and DELs at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use chaos_tests::LabOptions;
use chaos_tests::pod::{addresses, create_object};
use netlab::{Output, eventually};
use serde_json::json;

use crate::common::{
    ATTACHMENTS, LONG, Prepared, answers, await_pool, await_traces, files, in_parallel, lab, lab_of, traces,
    veths,
};

const MANY: usize = 500;
const THREADS: usize = 24;

#[test]
fn five_hundred_pods_at_once_get_addresses_of_their_own_and_leave_nothing() {
    let mut options = LabOptions::new(netlab::unique_name("many")).nodes(1);
    options.pod_prefix = 22;
    let lab = lab_of(options);
    let before = traces(&lab, 1);
    let pods = in_parallel(THREADS, MANY, |number| Prepared::new(&lab, 1, &format!("pod-{number}")));

    let begun = Instant::now();
    let results = in_parallel(THREADS, MANY, |number| {
        let pod = &pods[number];
        (pod, pod.add(&lab).unwrap_or_else(|error| panic!("ADD of {}: {error:#}", pod.name)))
    });
    eprintln!("{MANY} ADDs by {THREADS} threads: {:?}", begun.elapsed());
    let ips: Vec<IpAddr> = results.iter().flat_map(|(_, result)| addresses(result)).collect();
    assert_eq!(ips.len(), 2 * MANY, "one of each family");
    assert_eq!(ips.iter().collect::<BTreeSet<_>>().len(), ips.len(), "no address twice");
    assert_eq!(veths(&lab, 1).len(), MANY);
    assert_eq!(files(&lab, 1, ATTACHMENTS).len(), MANY);
    await_pool(&lab, 1, "used", u64::try_from(MANY).unwrap());
    for (pod, result) in results.iter().step_by(97) {
        answers(&pod.namespace, &addresses(&results[0].1)).unwrap();
        pod.check(&lab, result).unwrap();
    }

    let begun = Instant::now();
    in_parallel(THREADS, MANY, |number| {
        let (pod, result) = &results[number];
        pod.del(&lab, Some(result)).unwrap_or_else(|error| panic!("DEL of {}: {error:#}", pod.name));
    });
    eprintln!("{MANY} DELs: {:?}", begun.elapsed());
    await_traces(&lab, 1, &before);
    await_pool(&lab, 1, "used", 0);
}

#[test]
fn adds_and_dels_that_alternate_on_many_threads_never_share_an_address() {
    let lab = lab("mix", 1);
    let before = traces(&lab, 1);
    // 24 alive and 200 at rest: the pool of 253 wraps round and has to wait for none.
    let live: Mutex<BTreeSet<IpAddr>> = Mutex::default();
    in_parallel(12, 12, |thread| {
        for round in 0..16 {
            let pod = Prepared::new(&lab, 1, &format!("pod-{thread}-{round}"));
            let result = pod.add(&lab).unwrap_or_else(|error| panic!("ADD of {}: {error:#}", pod.name));
            let ips = addresses(&result);
            for ip in &ips {
                assert!(live.lock().unwrap().insert(*ip), "{ip} of {} belongs to another pod", pod.name);
            }
            pod.check(&lab, &result).unwrap();
            for ip in &ips {
                live.lock().unwrap().remove(ip);
            }
            pod.del(&lab, Some(&result)).unwrap();
        }
    });
    await_traces(&lab, 1, &before);
    await_pool(&lab, 1, "used", 0);
}

#[test]
fn a_del_that_races_with_its_add_leaves_a_whole_pod_or_none() {
    let lab = lab("race", 1);
    let before = traces(&lab, 1);
    in_parallel(8, 80, |number| {
        let pod = Prepared::new(&lab, 1, &format!("pod-{number}"));
        let (added, deleted) = std::thread::scope(|scope| {
            let add = scope.spawn(|| pod.add(&lab));
            let del = scope.spawn(|| pod.del(&lab, None));
            (add.join().unwrap(), del.join().unwrap())
        });
        deleted.unwrap();
        if let Ok(result) = &added
            && let Err(error) = pod.check(&lab, result)
        {
            // DEL came second.
            assert!(error.to_string().contains("no attachment for container"), "{error:#}");
        }
        pod.del(&lab, None).unwrap();
    });
    await_traces(&lab, 1, &before);
    await_pool(&lab, 1, "used", 0);
}

/// A runtime whose patience ends kills the plugin and calls DEL; the agent still waits for the pod to be known.
#[test]
fn an_add_whose_plugin_was_killed_is_undone_by_its_del() {
    let lab = lab("cutoff", 1);
    let before = traces(&lab, 1);
    let pod = Prepared::of_uid(&lab, 1, "late", "0b5d3a4e-0000-4000-8000-000000000001");
    let host = &lab.node(1).namespace;
    let input = json!({"cniVersion": "1.0.0", "name": "hawser", "type": "hawser-cni"}).to_string();
    let script = format!("printf '%s' '{input}' | exec /opt/cni/bin/hawser-cni");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).env("CNI_COMMAND", "ADD").env("CNI_PATH", "/opt/cni/bin");
    command.env("CNI_CONTAINERID", &pod.sandbox.container_id).env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", &pod.sandbox.netns).env("CNI_ARGS", &pod.sandbox.args);
    let asked = lab.api().faults();
    asked.reset_counters();
    let plugin = host.spawn(command, Output::Null).unwrap();
    let waits = || match asked.requests(kubeapi::Verb::Get, "pods") {
        0 => Err("not asked yet"),
        _ => Ok(()),
    };
    eventually(LONG, "the agent asks the API for the unknown pod", waits).unwrap();
    plugin.kill().unwrap();
    pod.del(&lab, None).unwrap();
    // Whoever still waited for the pod would go through with its ADD now, though nobody wants it any more.
    create_object(&lab, 1, "late", &json!({"kubernetes.io/config.hash": pod.uid})).unwrap();
    let ended = || {
        let metrics =
            lab.node(1).http(mesh_core::numbers::PORT_METRICS, "/metrics").map_err(|e| e.to_string())?;
        if metrics.contains("hawser_cni_requests_total{verb=\"add\"") { Ok(()) } else { Err(metrics) }
    };
    eventually(LONG, "the agent has done with the ADD", ended).unwrap();
    await_traces(&lab, 1, &before);
    assert_eq!(veths(&lab, 1).len(), 0);
}
