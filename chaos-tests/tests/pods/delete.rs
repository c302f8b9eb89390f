//! DEL under all circumstances.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use chaos_tests::LabOptions;
use chaos_tests::pod::addresses;
use chaos_tests::runtime::code;
use netlab::eventually;

use crate::common::{
    ATTACHMENTS, LONG, NOTES, Prepared, answers, await_pool, await_traces, files, in_parallel, lab, lab_of,
    refused, restart, traces, veths,
};

#[test]
fn del_succeeds_twice_without_netns_without_prev_result_and_for_strangers() {
    let lab = lab("del", 1);
    let before = traces(&lab, 1);
    for (case, with_netns, with_result, added) in [
        ("as usual", true, true, true),
        ("without prevResult", true, false, true),
        ("without netns", false, true, true),
        ("without either", false, false, true),
        ("never added", true, false, false),
        ("never added, without netns", false, false, false),
    ] {
        let mut pod = Prepared::new(&lab, 1, &case.replace([' ', ','], "-").to_lowercase());
        let result = added.then(|| pod.add(&lab).unwrap());
        assert_eq!(veths(&lab, 1).len(), usize::from(added), "{case}");
        if !with_netns {
            pod.sandbox.netns.clear();
        }
        let result = result.as_ref().filter(|_| with_result);
        for time in ["first", "second"] {
            pod.del(&lab, result).unwrap_or_else(|error| panic!("{case}, {time} DEL: {error:#}"));
            await_traces(&lab, 1, &before);
        }
    }
    await_pool(&lab, 1, "used", 0);
}

#[test]
fn del_with_the_agent_down_is_written_down_and_done_at_its_start() {
    let mut options = LabOptions::new(netlab::unique_name("down")).nodes(1);
    options.pod_prefix = 29;
    let mut lab = lab_of(options);
    let before = traces(&lab, 1);
    // All five addresses.
    let pods: Vec<_> = (0..5).map(|n| Prepared::new(&lab, 1, &format!("pod-{n}"))).collect();
    let results: Vec<_> = pods.iter().map(|pod| pod.add(&lab).unwrap()).collect();
    lab.node_mut(1).kill_agent().unwrap();
    for (pod, result) in pods.iter().zip(&results) {
        pod.del(&lab, Some(result)).unwrap();
        pod.del(&lab, None).unwrap();
    }
    assert_eq!(files(&lab, 1, NOTES).len(), 5);
    assert_eq!(veths(&lab, 1).len(), 5, "nobody is there to do it");
    restart(&mut lab, 1);
    eventually(LONG, "all notes are executed", || {
        let notes = files(&lab, 1, NOTES);
        if notes.is_empty() { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .unwrap();
    assert_eq!(veths(&lab, 1).len(), 0);
    await_pool(&lab, 1, "used", 0);
    await_pool(&lab, 1, "resting", 5);
    let again = Prepared::new(&lab, 1, "again");
    let (error, _) = refused(|| again.add(&lab));
    assert_eq!(error.code, 11, "{error}");
    assert!(error.msg.contains("0 of 5") && error.msg.contains("5 more in quarantine"), "{error}");
    let left: Vec<String> = traces(&lab, 1).difference(&before).cloned().collect();
    assert!(left.iter().all(|trace| trace.ends_with(NOTES)), "only the directory of notes is new: {left:?}");
}

#[test]
fn a_sandbox_whose_del_was_only_written_down_can_be_added_again() {
    let mut lab = lab("note", 1);
    let pod = Prepared::new(&lab, 1, "pod");
    let first = pod.add(&lab).unwrap();
    lab.node_mut(1).kill_agent().unwrap();
    pod.del(&lab, Some(&first)).unwrap();
    restart(&mut lab, 1);
    // Either the agent or the plugin executes the note, and neither may touch what is made now.
    let second = eventually(LONG, "ADD", || pod.add(&lab).map_err(|error| format!("{error:#}"))).unwrap();
    assert_ne!(addresses(&first), addresses(&second), "the first ones rest");
    eventually(LONG, "the note is gone", || match files(&lab, 1, NOTES) {
        notes if notes.is_empty() => Ok(()),
        notes => Err(format!("{notes:?}")),
    })
    .unwrap();
    pod.check(&lab, &second).unwrap();
    answers(&lab.node(1).namespace, &addresses(&second)).unwrap();
}

#[test]
fn an_agent_killed_amid_adds_keeps_what_succeeded_and_leaks_nothing_of_the_rest() {
    let mut lab = lab("amid", 1);
    let before = traces(&lab, 1);
    let pods: Vec<_> = (0..60).map(|number| Prepared::new(&lab, 1, &format!("pod-{number}"))).collect();
    let added = AtomicUsize::new(0);
    // Killed from beside, since the lab itself is in use.
    let agent = lab.node(1).agent().unwrap();
    let outcomes = std::thread::scope(|scope| {
        scope.spawn(|| {
            let enough = || if added.load(Ordering::Relaxed) >= 12 { Ok(()) } else { Err("too early") };
            eventually(LONG, "a dozen pods are there", enough).unwrap();
            agent.kill().unwrap();
        });
        in_parallel(8, pods.len(), |number| {
            let outcome = pods[number].add(&lab);
            added.fetch_add(usize::from(outcome.is_ok()), Ordering::Relaxed);
            (number, outcome)
        })
    });
    lab.node_mut(1).kill_agent().ok();
    let succeeded: Vec<_> =
        outcomes.iter().filter_map(|(n, o)| Some((&pods[*n], o.as_ref().ok()?))).collect();
    let refused: Vec<_> = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err()).collect();
    eprintln!("{} ADDs succeeded, {} met the killed agent", succeeded.len(), refused.len());
    assert!(!refused.is_empty());
    for error in refused {
        assert_eq!(code(error), Some(11), "{error:#}");
    }
    for (_, result) in &succeeded {
        answers(&lab.node(1).namespace, &addresses(result)).unwrap();
    }
    restart(&mut lab, 1);
    for (pod, result) in &succeeded {
        pod.check(&lab, result).unwrap();
        answers(&lab.node(1).namespace, &addresses(result)).unwrap();
    }
    // A runtime calls DEL after a failed ADD too; it has no result then.
    for (number, outcome) in &outcomes {
        pods[*number].del(&lab, outcome.as_ref().ok()).unwrap();
    }
    await_traces(&lab, 1, &before);
    await_pool(&lab, 1, "used", 0);
}

#[test]
fn a_pod_whose_namespace_vanished_is_freed_without_a_del() {
    let lab = lab("lost", 1);
    let before = traces(&lab, 1);
    let kept = lab.add_pod(1, "kept").unwrap();
    let lost = Prepared::new(&lab, 1, "lost");
    lost.add(&lab).unwrap();
    assert_eq!(files(&lab, 1, ATTACHMENTS).len(), 2);
    let begun = Instant::now();
    lost.vanish(&lab);
    eventually(std::time::Duration::from_secs(15), "the attachment is freed", || {
        let files = files(&lab, 1, ATTACHMENTS);
        if files.iter().filter(|f| f.ends_with(".json")).count() == 1 {
            Ok(())
        } else {
            Err(format!("{files:?}"))
        }
    })
    .unwrap();
    eprintln!("freed after {:?}", begun.elapsed());
    answers(&lab.node(1).namespace, &kept.ips).unwrap();
    kept.remove(&lab).unwrap();
    await_traces(&lab, 1, &before);
}
