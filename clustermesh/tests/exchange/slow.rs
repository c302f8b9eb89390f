//! A line that carries less than what is to be told.

use std::time::Duration;

use clustermesh::mcs::LEASE;
use serde_json::json;

use super::line::Speed;
use super::world::*;

/// With 1 MiB under way, which a follower allows, an answer to a ping takes 16 s.
const SPEED: Speed = Speed { bytes_per_second: 64 * 1024, latency: Duration::from_millis(50) };

/// A pod whose labels are 13 kB, and its own.
fn large(of: &Cluster, host: u8) {
    let label = |number| (format!("{number:a>63}"), json!(format!("{host:v>63}")));
    let mut labels: serde_json::Map<_, _> = (0..100).map(label).collect();
    labels.insert("app".into(), json!("large"));
    of.create(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{host}"), "namespace": "shop", "labels": labels,
            "annotations": {"hawser.dev/ips": format!("10.{}.1.{host}", of.net)}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_slow_line_all_arrives_by_one_connection_and_no_lease_ends() {
    let (east, west) = (Cluster::start("east", 1).await, Cluster::start("west", 2).await);
    west.line.slow(SPEED);
    // A snapshot of a MiB: 16 s.
    (3..83).for_each(|host| large(&west, host));
    let agent = east.agent();
    // Who comes before it is known is refused, and comes again.
    west.join_with(&east);
    eventually("east is known", || west.condition("east", "Accepted").starts_with("True")).await;
    east.join_with(&west);
    eventually("the snapshot", || agent.pods("west").len() == 81).await;
    // Changes of more than 2 MiB: longer than a lease.
    (83..253).for_each(|host| large(&west, host));
    west.delete_pod(2);
    west.pod(253, "late");
    let wanted = |host: u8| format!("10.2.1.{host} {}", if host == 253 { "late" } else { "large" });
    let wanted: Vec<String> = (3..=253).map(wanted).collect();
    within(2 * DEADLINE, "every change", || agent.pods("west") == wanted).await;
    west.delete_pod(253);
    eventually("the line is free again", || agent.pods("west").len() == 250).await;
    eventually("a beat", || agent.read(|heard| heard.silence[&cluster("west")].0.elapsed().as_secs() < 3))
        .await;
    assert_eq!(west.line.made(), 1, "connections");
    let lease = Duration::from_millis(LEASE);
    for one in ["east", "west"] {
        let longest = agent.read(|heard| heard.silence[&cluster(one)].1);
        assert!(longest < lease, "{one} was not heard of for {longest:?}");
    }
    agent.read(|heard| assert_eq!((heard.gone.len(), heard.ended.len()), (0, 0)));
}
