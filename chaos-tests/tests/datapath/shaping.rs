//! Rates that a pod's annotations ask for hold, in both directions and on every way, and nothing of them outlives the pod.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chaos_tests::pod::PodSpec;
use chaos_tests::{Lab, Pod};
use netlab::{Namespace, eventually};
use serde_json::json;

use crate::{SOON, lab};

/// Towards the pod, in bit/s.
const INGRESS: u32 = 24_000_000;
/// From it.
const EGRESS: u32 = 12_000_000;
/// How long is sent: many times what may wait in front of a rate.
const TIME: Duration = Duration::from_secs(2);
const PORT: u16 = 8080;
const IDLE: Duration = Duration::from_secs(20);

/// What arrives of a connection's bytes, in bit/s of payload, from its first byte to its last.
fn throughput(from: &Namespace, to: &Namespace, at: SocketAddr) -> Result<f64> {
    let listener = to.run(move || TcpListener::bind(at))?;
    let receiver = to.thread(move || -> std::io::Result<f64> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(IDLE))?;
        let mut buffer = vec![0; 64 << 10];
        let mut bytes = stream.read(&mut buffer)?;
        let begun = Instant::now();
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
                return Ok(bytes as f64 * 8.0 / begun.elapsed().as_secs_f64());
            }
            bytes += length;
        }
    });
    from.run(move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(IDLE))?;
        let (begun, bytes) = (Instant::now(), vec![0x5a; 16 << 10]);
        while begun.elapsed() < TIME {
            stream.write_all(&bytes)?;
        }
        Ok(())
    })?;
    receiver.join().map_err(|_| anyhow!("the receiver panicked"))?.context("the receiver")
}

fn shaped(lab: &Lab) -> Result<Pod> {
    // What containerd sends: Go's names, and a burst that nobody asked for.
    let bandwidth = json!({"IngressRate": INGRESS, "IngressBurst": u32::MAX, "EgressRate": EGRESS, "EgressBurst": u32::MAX});
    lab.add_pod_of(
        &PodSpec::new(1, "shaped")
            .annotation("kubernetes.io/ingress-bandwidth", "24M")
            .annotation("kubernetes.io/egress-bandwidth", "12M")
            .runtime_config(json!({"bandwidth": bandwidth})),
    )
}

/// Near its rate: not over it, and not far below on a busy machine.
fn near(rate: f64, wanted: u32) -> bool {
    let share = rate / f64::from(wanted);
    (0.5..1.2).contains(&share)
}

#[test]
fn a_pods_rates_hold_in_both_directions_for_pods_near_and_far_and_its_node() -> Result<()> {
    let lab = lab("shaping", 2)?;
    let [near_pod, far, free] = [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?, lab.add_pod(1, "free")?];
    let pod = shaped(&lab)?;
    for v4 in [true, false] {
        let at = |pod: &Pod| Ok::<_, anyhow::Error>(SocketAddr::new(pod.ip(v4).context("an address")?, PORT));
        let control = throughput(&near_pod.namespace, &free.namespace, at(&free)?)?;
        ensure!(
            control > 2.0 * f64::from(INGRESS),
            "{control:.0} bit/s without a rate: this machine proves nothing"
        );
        println!("IPv4 {v4}: without a rate {:.1} Mbit/s", control / 1e6);
        let say = |what: &str, rate: f64, wanted: u32| {
            println!("IPv4 {v4}: {what}: {:.1} of {:.1} Mbit/s", rate / 1e6, f64::from(wanted) / 1e6);
            ensure!(near(rate, wanted), "{what}: {rate:.0} bit/s with a rate of {wanted}");
            Ok(())
        };
        for (name, peer) in [("near", &near_pod), ("far", &far)] {
            let to = throughput(&peer.namespace, &pod.namespace, at(&pod)?)?;
            say(&format!("from {name}"), to, INGRESS)?;
            let from = throughput(&pod.namespace, &peer.namespace, at(peer)?)?;
            say(&format!("to {name}"), from, EGRESS)?;
        }
        let host = throughput(&lab.node(1).namespace, &pod.namespace, at(&pod)?)?;
        say("from its node", host, INGRESS)?;
    }
    Ok(())
}

#[test]
fn rates_are_checked_put_back_and_gone_with_their_pod() -> Result<()> {
    let mut lab = lab("rates", 1)?;
    let pod = shaped(&lab)?;
    let veth = pod.result["interfaces"][0]["name"].as_str().context("a name")?.to_owned();
    let shaper = veth.replacen("hw", "hs", 1);
    let queues = |lab: &Lab| lab.node(1).sh("tc qdisc show");
    let check = |lab: &Lab| {
        let host = &lab.node(1).namespace;
        chaos_tests::runtime::Runtime::of(host)?.check(host, &pod.sandbox, &pod.result)
    };
    let before = queues(&lab)?;
    for wanted in [format!("qdisc tbf 1: dev {veth} root"), format!("qdisc tbf 1: dev {shaper} root")] {
        ensure!(before.contains(&wanted), "no {wanted:?} in {before}");
    }
    check(&lab)?;
    let tamper: [(String, &str); 4] = [
        (format!("tc qdisc del dev {veth} root"), "the rate towards the pod is gone"),
        (format!("tc qdisc del dev {shaper} root"), "the rate from the pod is gone"),
        (format!("tc filter del dev {veth} ingress prio 26743"), "is not led through"),
        (format!("ip link del {shaper}"), "is gone or down"),
    ];
    for (command, complaint) in tamper {
        lab.node(1).sh(&command)?;
        let error = check(&lab).err().context("CHECK is content with it")?.to_string();
        ensure!(error.contains(complaint), "{error}, wanted {complaint:?}");
        eventually(SOON, &format!("the agent repairs {command}"), || {
            check(&lab).map_err(|error| format!("{error:#}"))
        })?;
    }
    // A successor finds all of it right.
    lab.node_mut(1).stop_agent()?;
    lab.node_mut(1).start_agent()?;
    eventually(SOON, "the next agent is ready", || lab.node(1).ready())?;
    check(&lab)?;
    pod.remove(&lab)?;
    let after = lab.node(1).sh("ip -o link show")?;
    ensure!(!after.contains(&shaper) && !after.contains(&veth), "left: {after}");
    Ok(())
}
