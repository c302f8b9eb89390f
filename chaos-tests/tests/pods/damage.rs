//! Files that are not as they should be, and a disk that is full.

use std::time::Duration;

use chaos_tests::pod::addresses;
use netlab::eventually;
use serde_json::json;

use crate::common::{
    ATTACHMENTS, LONG, Prepared, answers, await_pool, await_traces, files, lab, refused, restart, traces,
};

/// A device as shaped pods have it, of nobody: the last one by its name, and so the last that the agent looks at.
const NOBODYS: &str = "hsfffffffffffff";

/// Waits until an agent has removed every device that, as it sees it, no pod sends through.
fn await_look_at_shapers(node: &chaos_tests::Node) {
    node.sh(&format!("ip link add {NOBODYS} type ifb")).unwrap();
    eventually(LONG, "the agent removes a device of nobody", || match node.sh("ip -o link") {
        Ok(links) if !links.contains(NOBODYS) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

#[test]
fn a_damaged_attachment_keeps_its_address_and_its_way_out_and_troubles_nobody_else() {
    let mut lab = lab("damage", 1);
    let before = traces(&lab, 1);
    for (case, content) in
        [("half", "{\"v\":1,\"id\":{\"containerId\":\"c\""), ("empty", ""), ("future", "{\"v\":9}")]
    {
        let kept = Prepared::new(&lab, 1, &format!("kept-{case}"));
        let kept_result = kept.add(&lab).unwrap();
        let others = files(&lab, 1, ATTACHMENTS);
        let mut hurt = Prepared::new(&lab, 1, &format!("hurt-{case}"));
        // What it sends goes through a device, which nothing tells of but its file.
        hurt.sandbox.runtime_config =
            json!({"bandwidth": {"egressRate": 12_000_000, "egressBurst": u32::MAX}});
        let hurt_result = hurt.add(&lab).unwrap();
        let now = files(&lab, 1, ATTACHMENTS);
        let file = now.difference(&others).next().unwrap();
        lab.node_mut(1).kill_agent().unwrap();
        lab.node(1).write_file(&format!("{ATTACHMENTS}/{file}"), content).unwrap();
        restart(&mut lab, 1);
        let log = lab.node(1).log("mesh-agent").unwrap();
        assert!(
            log.lines().any(|line| line.contains("ERROR") && line.contains(file)),
            "{case}: the log names no {file}"
        );
        await_look_at_shapers(lab.node(1));
        // Both still run, and no address of theirs is given to anybody.
        let taken = [addresses(&kept_result), addresses(&hurt_result)].concat();
        answers(&lab.node(1).namespace, &taken).unwrap();
        kept.check(&lab, &kept_result).unwrap();
        for number in 0..3 {
            let new = Prepared::new(&lab, 1, &format!("new-{case}-{number}"));
            let result = new.add(&lab).unwrap();
            assert!(addresses(&result).iter().all(|ip| !taken.contains(ip)), "{case}: {result}");
            new.del(&lab, Some(&result)).unwrap();
        }
        hurt.del(&lab, Some(&hurt_result)).unwrap();
        kept.del(&lab, Some(&kept_result)).unwrap();
        await_traces(&lab, 1, &before);
    }
    await_pool(&lab, 1, "used", 0);
}

#[test]
fn an_agent_with_a_bad_key_file_refuses_to_start_and_leaves_the_data_path_alone() {
    let mut lab = lab("keys", 2);
    let [a, b] = [lab.add_pod(1, "a").unwrap(), lab.add_pod(2, "b").unwrap()];
    answers(&a.namespace, &b.ips).unwrap();
    let key = "/var/lib/hawser/keys/slot0.key";
    lab.node(1).sh(&format!("cp -a {key} /run/slot0.key")).unwrap();
    for (case, damage, remedy) in [
        ("wrong mode", format!("chmod 0644 {key}"), "chmod 600"),
        ("half written", format!("truncate -s 20 {key}"), "move it away"),
        ("empty", format!("truncate -s 0 {key}"), "move it away"),
    ] {
        lab.node_mut(1).kill_agent().unwrap();
        lab.node(1).sh(&damage).unwrap();
        let read = lab.node(1).log("mesh-agent").unwrap().len();
        lab.node_mut(1).start_agent().unwrap();
        let status = lab.node(1).agent().unwrap().wait(Duration::from_secs(10)).unwrap();
        assert!(!status.success(), "{case}: {status}");
        let log = lab.node(1).log("mesh-agent").unwrap()[read..].to_owned();
        eprintln!("{case}: {}", log.trim());
        assert!(log.contains(key) && log.contains(remedy), "{case}: names file and remedy? {log}");
        answers(&a.namespace, &b.ips).unwrap();
        answers(&b.namespace, &a.ips).unwrap();
        lab.node(1).sh(&format!("cp -a /run/slot0.key {key}")).unwrap();
        restart(&mut lab, 1);
    }
    answers(&a.namespace, &b.ips).unwrap();
}

#[test]
fn a_full_state_directory_refuses_pods_by_name_and_leaks_nothing() {
    let lab = lab("full", 1);
    let node = lab.node(1);
    let running = lab.add_pod(1, "running").unwrap();
    let pod = Prepared::new(&lab, 1, "pod");
    // Over the directory and not in it: a file system of its own, with room for nothing.
    let stays = ["running"].len();
    assert_eq!(files(&lab, 1, ATTACHMENTS).len(), stays);
    node.sh(&format!("mount -t tmpfs -o size=4k,nr_inodes=1 full {ATTACHMENTS}")).unwrap();
    let before = traces(&lab, 1);
    for _ in 0..3 {
        let (error, _) = refused(|| pod.add(&lab));
        eprintln!("{error}");
        assert_eq!(error.code, 5, "{error}");
        assert!(error.msg.contains(ATTACHMENTS) && error.msg.contains("No space left"), "{error}");
        await_traces(&lab, 1, &before);
    }
    answers(&node.namespace, &running.ips).unwrap();
    node.sh(&format!("umount {ATTACHMENTS}")).unwrap();
    let result = eventually(LONG, "ADD", || pod.add(&lab).map_err(|error| error.to_string())).unwrap();
    pod.check(&lab, &result).unwrap();
    pod.del(&lab, Some(&result)).unwrap();
}
