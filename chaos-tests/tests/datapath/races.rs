//! Pods that live for a moment, and use it: what is forbidden to them, and what is allowed.
//!
//! A process in the pod's namespace tries all the time, from before ADD is called until a moment after it returned, so
//! its first packet is the first that the namespace can send at all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_tests::pod::{PodSpec, addresses, make_namespace};
use chaos_tests::raw::Ear;
use chaos_tests::runtime::{Runtime, Sandbox};
use chaos_tests::witness::drops;
use chaos_tests::{Lab, LabOptions, Pod};
use netlab::{Namespace, eventually};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::ask::{connect, greeting};
use crate::support::objects::{apply, cluster_policy, ingress_only, network_policy, selector};
use crate::support::{Counts, Namer, Times, settle};
use crate::{SOON, lab_of};

/// Namespaces that are used again and again.
const WORKERS: usize = 4;
/// Nothing but what is forbidden goes there.
const FORBIDDEN: u16 = 4444;
const ALLOWED: u16 = 8080;
const CANARY: &[u8] = b"a canary of a pod that may not send this";
/// How long a pod goes on trying after its ADD.
const MOMENT: Duration = Duration::from_millis(5);
/// A SYN that was lost is sent again after a second; nobody waits for a third.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Who needed this long has sent a second one.
const LATE: Duration = Duration::from_millis(900);

/// How many pods: `HAWSER_SHORT_LIVED_PODS`, or few enough for every day.
fn many() -> usize {
    std::env::var("HAWSER_SHORT_LIVED_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

fn big_lab(name: &str) -> Result<Lab> {
    // Freed addresses rest for a while, and more pods come than a /24 has.
    lab_of(LabOptions { pod_prefix: 21, ..LabOptions::new(netlab::unique_name(name)).nodes(2) })
}

/// A network namespace that one short-lived pod after the other lives in.
struct Slot<'a> {
    lab: &'a Lab,
    namespace: Namespace,
    path: String,
}

impl<'a> Slot<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let name = netlab::unique_name("slot");
        let (namespace, path) = make_namespace(&lab.node(1).namespace, &lab.dir, &name)?;
        Ok(Self { lab, namespace, path })
    }

    /// Makes a pod here, does `live` with its addresses once ADD has returned, and ends it.
    fn pod<T>(&self, spec: &PodSpec, live: impl FnOnce(&[IpAddr]) -> Result<T>) -> Result<T> {
        let uid = spec.create_object(self.lab)?;
        let host = &self.lab.node(1).namespace;
        let sandbox = Sandbox::of_pod(&netlab::unique_name("c"), &self.path, &spec.project, &spec.name, &uid);
        let runtime = Runtime::of(host)?;
        let result = runtime.add(host, &sandbox).with_context(|| format!("ADD of {}", spec.name))?;
        let outcome = live(&addresses(&result));
        runtime.del(host, &sandbox, Some(&result))?;
        let store = self.lab.api().store();
        store
            .delete_now("pods", Some(&spec.project), &spec.name)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        outcome
    }
}

/// Runs `work` for every number below `many` on all slots; everything it gave, and the first error.
fn in_slots<T: Send>(
    lab: &Lab,
    many: usize,
    work: impl Fn(&Slot<'_>, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = || -> Result<()> {
        let slot = Slot::new(lab)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= many {
                return Ok(());
            }
            let one = work(&slot, number).with_context(|| format!("pod {number}"))?;
            done.lock().expect("no panic under this lock").push(one);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(run)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })?;
    Ok(done.into_inner().expect("no panic under this lock"))
}

/// Tries all targets over UDP and TCP until told to stop; how many packets could be sent.
fn hammer(targets: &[SocketAddr], stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Acquire) {
        for to in targets {
            sent += u64::from(try_udp(*to).is_ok()) + u64::from(try_tcp(*to));
        }
        // Other pods want these CPUs too.
        std::thread::sleep(Duration::from_micros(100));
    }
    sent
}

fn try_udp(to: SocketAddr) -> io::Result<usize> {
    crate::support::ask::datagrams(to)?.send(CANARY)
}

fn try_tcp(to: SocketAddr) -> bool {
    let begun = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&to.into())
    };
    // On its way, since nobody answers.
    begun().is_err_and(|error| error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32))
}

/// Is it UDP or TCP to [`FORBIDDEN`]?
fn is_forbidden(frame: &[u8]) -> bool {
    let transport = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(14).map(|first| 14 + usize::from(first & 15) * 4),
        Some([0x86, 0xdd]) => Some(54),
        _ => None,
    };
    let port = transport.and_then(|at| frame.get(at + 2..at + 4));
    port.is_some_and(|port| *port == FORBIDDEN.to_be_bytes())
}

/// A way to forbid, with a target on each node that is forbidden by it alone.
const WAYS: [&str; 3] = ["own-egress", "their-ingress", "admin-deny"];

/// The policies of all ways. Each forbids what carries its label to the target of its name.
fn forbid(lab: &Lab) -> Result<()> {
    let [own, theirs, admin] = WAYS;
    let egress = json!({"podSelector": selector("way", own), "policyTypes": ["Egress"], "egress": []});
    apply(lab, &network_policy(own, egress))?;
    for node in [1, 2] {
        let target = format!("{theirs}-{node}");
        apply(lab, &network_policy(&target, ingress_only(&target, &["friend"])))?;
    }
    let short = json!({"pods": {"namespaceSelector": {}, "podSelector": selector("way", admin)}});
    apply(
        lab,
        &cluster_policy(
            admin,
            json!({
                "tier": "Admin", "priority": 1,
                "subject": {"pods": {"namespaceSelector": {}, "podSelector": selector("target", admin)}},
                "ingress": [{"action": "Deny", "from": [short]}],
            }),
        ),
    )
}

#[test]
fn no_short_lived_pod_gets_a_forbidden_packet_through() -> Result<()> {
    let lab = big_lab("forbid")?;
    forbid(&lab)?;
    let mut targets: Vec<Pod> = Vec::new();
    for way in WAYS {
        for node in [1, 2] {
            let spec = PodSpec::new(node, format!("{way}-{node}")).label("target", way);
            targets.push(lab.add_pod_of(&spec)?);
        }
    }
    // The policies are in force: pods of each way that are there already are not let to its targets, but others are.
    let servers = targets.iter().map(|pod| Namer::new(&pod.namespace, &pod.name, &pod.ips, FORBIDDEN));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    let friend = lab.add_pod(1, "friend")?;
    for way in WAYS {
        let one = lab.add_pod_of(&PodSpec::new(1, format!("old-{way}")).label("way", way))?;
        for target in targets.iter().filter(|pod| pod.name.starts_with(way)) {
            settle(&one.namespace, &target.ips, FORBIDDEN, false).with_context(|| way.to_owned())?;
            settle(&friend.namespace, &target.ips, FORBIDDEN, true)?;
        }
    }
    servers.iter().for_each(Namer::forget);
    let ears = targets.iter().map(|pod| Ear::new(&pod.namespace)).collect::<Result<Vec<_>>>()?;
    let at: Vec<Vec<SocketAddr>> = WAYS
        .iter()
        .map(|way| {
            let of_way = targets.iter().filter(|pod| pod.name.starts_with(way));
            of_way.flat_map(|pod| pod.ips.iter().map(|ip| SocketAddr::new(*ip, FORBIDDEN))).collect()
        })
        .collect();
    let many = many();
    let before = Counts::of(lab.node(1))?;
    let begun = Instant::now();
    let sent = in_slots(&lab, many, |slot, number| {
        let way = number % WAYS.len();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (stopped, to) = (std::sync::Arc::clone(&stop), at[way].clone());
        let hammering = slot.namespace.thread(move || hammer(&to, &stopped));
        let spec = PodSpec::new(1, format!("short-{number}")).label("way", WAYS[way]);
        let lived = slot.pod(&spec, |_| {
            std::thread::sleep(MOMENT);
            Ok(())
        });
        stop.store(true, Ordering::Release);
        let sent = hammering.join().map_err(|_| anyhow::anyhow!("the pod's process panicked"))?;
        lived.map(|()| sent)
    })?;
    let took = begun.elapsed();
    let idle = sent.iter().filter(|sent| **sent == 0).count();
    // A last packet that is allowed proves that the ears hear.
    for (target, ear) in targets.iter().zip(&ears) {
        settle(&friend.namespace, &target.ips, FORBIDDEN, true)?;
        let stray = ear.count_by(|frame| is_forbidden(frame) && !of_friend(frame, &friend));
        ensure!(stray == 0, "{} has heard {stray} frames of short-lived pods", target.name);
        ensure!(ear.count_by(is_forbidden) > 0, "{} has not even heard its friend", target.name);
    }
    drop(servers);
    let since = Counts::of(lab.node(1))?.since(&before);
    println!(
        "{many} pods in {took:?}, {} packets tried, {idle} pods sent none, none heard by {} targets: {since:?}",
        sent.iter().sum::<u64>(),
        targets.len()
    );
    ensure!(idle * 10 < many, "{idle} of {many} pods had no time to send");
    Ok(())
}

fn of_friend(frame: &[u8], friend: &Pod) -> bool {
    match friend.ip(frame.get(12..14) == Some(&[0x08, 0x00])) {
        Some(IpAddr::V4(ip)) => frame.get(26..30) == Some(&ip.octets()),
        Some(IpAddr::V6(ip)) => frame.get(22..38) == Some(&ip.octets()),
        None => false,
    }
}

/// A connection at once, and how long it took; a pod's `live` of the allowed kind.
fn connects(namespace: &Namespace, to: SocketAddr) -> Result<Duration> {
    let begun = Instant::now();
    let name = namespace.run(move || greeting(&connect(to, PATIENCE)?));
    let name = name.with_context(|| format!("a connection to {to} after {:?}", begun.elapsed()))?;
    ensure!(name == "target", "{name} has answered");
    Ok(begun.elapsed())
}

fn only_role(role: &str) -> Value {
    let from = [json!({"podSelector": selector("role", role)})];
    json!({"podSelector": selector("app", "target"), "policyTypes": ["Ingress"], "ingress": [{"from": from}]})
}

#[test]
fn no_short_lived_pod_fails_to_reach_what_it_may_on_another_node() -> Result<()> {
    let lab = big_lab("allow")?;
    let target = lab.add_pod(2, "target")?;
    let _server = Namer::new(&target.namespace, "target", &target.ips, ALLOWED)?;
    // Let in by its label alone, which the other node has to know in time.
    apply(&lab, &network_policy("roles", only_role("short")))?;
    let old = lab.add_pod_of(&PodSpec::new(1, "old").label("role", "short"))?;
    let other = lab.add_pod(1, "other")?;
    settle(&old.namespace, &target.ips, ALLOWED, true)?;
    settle(&other.namespace, &target.ips, ALLOWED, false)?;
    let many = many();
    let to = |number: usize| SocketAddr::new(target.ips[number % target.ips.len()], ALLOWED);
    let usual: Times = (0..200)
        .map(|number| connects(&old.namespace, to(number)))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .collect();
    let counted = || lab.nodes.iter().map(Counts::of).collect::<Result<Vec<_>>>();
    let before = counted()?;
    let begun = Instant::now();
    let outcomes = in_slots(&lab, many, |slot, number| {
        let spec = PodSpec::new(1, format!("short-{number}")).label("role", "short");
        slot.pod(&spec, |ips| {
            let outcome = connects(&slot.namespace, to(number));
            if outcome.as_ref().map_or(true, |took| *took > LATE) {
                let after = begun.elapsed();
                println!(
                    "pod {number}, {ips:?}, to {}: {outcome:?}, done {after:.3?} after the first",
                    to(number)
                );
            }
            Ok(outcome)
        })
    })?;
    let took = begun.elapsed();
    let failed: Vec<String> =
        outcomes.iter().filter_map(|one| Some(format!("{:#}", one.as_ref().err()?))).collect();
    let times: Times = outcomes.into_iter().flatten().collect();
    let since: Vec<_> = counted()?.iter().zip(&before).map(|(now, then)| now.since(then)).collect();
    let late = times.above(LATE);
    println!(
        "{many} pods in {took:?}; their first connection: {times}; an old pod's: {usual}; {late} needed a second SYN; \
         added delay p50 {:.2?}, p99 {:.2?}; the nodes: {since:?}; drops of devices and sockets: {}",
        times.quantile(50).saturating_sub(usual.quantile(50)),
        times.quantile(99).saturating_sub(usual.quantile(99)),
        drops(lab.nodes.iter().map(|node| &node.namespace).chain([&target.namespace])),
    );
    ensure!(failed.is_empty(), "{} failed: {}", failed.len(), failed[..failed.len().min(5)].join("; "));
    ensure!(late * 100 <= many, "{late} of {many} lost their first packet");
    eventually(SOON, "the others are still not let in", || {
        let answer = connects(&other.namespace, to(0));
        if answer.is_err() { Ok(()) } else { Err("let in") }
    })?;
    Ok(())
}
