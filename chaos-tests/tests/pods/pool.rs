//! A pool of addresses that runs out.

use std::time::Duration;

use chaos_tests::pod::addresses;
use chaos_tests::{Lab, LabOptions};
use netlab::eventually;
use serde_json::Value;

use crate::common::{ATTACHMENTS, LONG, Prepared, await_pool, files, lab_of, refused};

/// Notes of Events with this reason.
fn events(lab: &Lab, reason: &str) -> Vec<String> {
    let events: Vec<Value> = lab.api().store().list("events.events.k8s.io", None).unwrap();
    let text =
        |event: &Value| event["note"].as_str().or(event["message"].as_str()).unwrap_or_default().to_owned();
    events.iter().filter(|event| event["reason"] == reason).map(text).collect()
}

#[test]
fn a_full_pool_warns_at_ninety_percent_names_itself_and_gives_back_the_oldest_first() {
    let mut options = LabOptions::new(netlab::unique_name("pool")).nodes(1);
    options.pod_prefix = 28;
    let lab = lab_of(options);
    // A /28 without network, mesh and broadcast address.
    let capacity = 13;
    await_pool(&lab, 1, "capacity", capacity);
    let mut pods = Vec::new();
    let mut add = || {
        let pod = Prepared::new(&lab, 1, &format!("pod-{}", pods.len()));
        let result = pod.add(&lab).unwrap();
        pods.push((pod, result));
    };
    // 11 of 13 are 84 %, 12 are 92 %.
    (0..11).for_each(|_| add());
    await_pool(&lab, 1, "used", 11);
    assert_eq!(events(&lab, "PoolNearlyFull"), Vec::<String>::new());
    add();
    await_pool(&lab, 1, "used", 12);
    let warned = eventually(Duration::from_secs(3), "the Event", || match events(&lab, "PoolNearlyFull") {
        events if events.is_empty() => Err("none"),
        events => Ok(events),
    });
    let note = warned.unwrap().remove(0);
    for word in ["node-1", "10.244.1.0/28", "90 %", "13"] {
        assert!(note.contains(word), "{note:?} names no {word}");
    }
    assert_eq!(lab.node(1).metric("hawser_problems{kind=\"PoolNearlyFull\"}").unwrap(), 1.0);
    add();

    let late = Prepared::new(&lab, 1, "late");
    let (error, _) = refused(|| late.add(&lab));
    eprintln!("{error}");
    assert_eq!(error.code, 101);
    for word in ["node-1", "10.244.1.0/28", "13 of 13"] {
        assert!(error.msg.contains(word), "{error} names no {word}");
    }

    // The last address changed nothing about the warning, and the loop has turned since.
    let turns = lab.node(1).metric("hawser_reconcile_seconds_count").unwrap();
    lab.node(1).sh("ip addr add 198.51.100.1/32 dev lo").unwrap();
    let turned = || match lab.node(1).metric("hawser_reconcile_seconds_count") {
        Ok(now) if now > turns => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually(Duration::from_secs(10), "another turn", turned).unwrap();
    assert_eq!(events(&lab, "PoolNearlyFullResolved"), Vec::<String>::new());
    assert_eq!(events(&lab, "PoolNearlyFull").len(), 1);

    // Freed in another order than they were handed out; each rests half a minute.
    let freed: Vec<_> = [7, 2, 5].iter().map(|index| &pods[*index]).collect();
    for (pod, result) in &freed {
        pod.del(&lab, Some(result)).unwrap();
    }
    let (error, _) = refused(|| late.add(&lab));
    assert_eq!(error.code, 11, "{error}");
    assert!(error.msg.contains("10 of 13") && error.msg.contains("3 more in quarantine"), "{error}");
    assert!(error.details.contains("30 s"), "{error}");
    let add_late = || late.add(&lab).map_err(|error| error.to_string());
    let result = eventually(Duration::from_secs(40), "an address has rested", add_late).unwrap();
    assert_eq!(addresses(&result)[0], addresses(&freed[0].1)[0], "the one that was freed first");
    let forgotten = || {
        let files = files(&lab, 1, ATTACHMENTS);
        if files.iter().any(|file| file.ends_with(".freed")) { Err(format!("{files:?}")) } else { Ok(()) }
    };
    eventually(LONG, "the files of what was freed are forgotten after its rest", forgotten).unwrap();
}
