//! Addresses that change hands under churn: nobody is judged as who had the address before.
//!
//! All addresses of a small pool go from pods that are let in to pods that are not and back, and every pod uses the same
//! source port, so that its packets are, to the byte, those of a flow that its predecessor had.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::pod::{PodSpec, addresses, make_namespace};
use chaos_tests::runtime::{Runtime, Sandbox};
use chaos_tests::{Lab, LabOptions, Pod};
use netlab::{Namespace, eventually};
use serde_json::{Value, json};

use crate::lab_of;
use crate::support::ask::exchange;
use crate::support::objects::{apply, network_policy, selector};
use crate::support::{Namer, settle};

/// Roles of the generations of pods, one after the other.
const ROLES: [&str; 4] = ["good", "bad", "good", "bad"];
/// Pods of a generation: all addresses of a /28 but the gateway's and the near server's.
const POOL: usize = 12;
const PORT: u16 = 8080;
/// Everybody's source port.
const SOURCE: u16 = 5555;
/// Addresses rest for half a minute before they are given away again.
const REST: Duration = Duration::from_secs(60);
/// How long a pod that may not send goes on trying.
const INSIST: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(2);

/// One pod of a generation.
struct Young {
    spec: PodSpec,
    namespace: Namespace,
    sandbox: Sandbox,
    result: Value,
    ip: IpAddr,
}

/// A process in the pod's namespace that sends its role all the time.
struct Eager {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Eager {
    fn start(namespace: &Namespace, role: &'static str, targets: Vec<SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = namespace.thread(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SOURCE))?;
            let mut sent = 0;
            while !stopped.load(Ordering::Acquire) {
                for to in &targets {
                    // Refused as long as there is no way out.
                    sent += u64::from(socket.send_to(role.as_bytes(), *to).is_ok());
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(sent)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        Ok(self.thread.join().map_err(|_| anyhow::anyhow!("a pod's process panicked"))??)
    }
}

/// Makes one pod, as soon as there is an address for it; a pod that may not send tries all the time.
fn grow(lab: &Lab, role: &'static str, name: String, targets: &[SocketAddr]) -> Result<(Young, u64)> {
    let spec = PodSpec::new(1, name).label("role", role);
    let uid = spec.create_object(lab)?;
    let host = &lab.node(1).namespace;
    let (namespace, path) = make_namespace(host, &lab.dir, &netlab::unique_name("young"))?;
    let sandbox = Sandbox::of_pod(&netlab::unique_name("c"), &path, &spec.project, &spec.name, &uid);
    let eager = (role == "bad").then(|| Eager::start(&namespace, role, targets.to_vec()));
    let runtime = Runtime::of(host)?;
    let result = eventually(REST, &format!("ADD of {}", spec.name), || {
        runtime.add(host, &sandbox).map_err(|error| format!("{error:#}"))
    })?;
    let ip = addresses(&result).into_iter().find(IpAddr::is_ipv4).context("an IPv4 address")?;
    let mut sent = 0;
    match eager {
        Some(eager) => {
            std::thread::sleep(INSIST);
            sent = eager.stop()?;
        }
        None => answered(&namespace, &spec.name, targets)?,
    }
    Ok((Young { spec, namespace, sandbox, result, ip }, sent))
}

/// A pod that is let in, is so at once.
fn answered(namespace: &Namespace, name: &str, targets: &[SocketAddr]) -> Result<()> {
    for to in targets.iter().copied() {
        let name = name.to_owned();
        let answer = namespace.run(move || -> io::Result<String> {
            // A child that another test starts at this moment holds the former socket until it has its program.
            let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SOURCE));
            let socket = eventually(PATIENCE, "the source port is free", bind).map_err(io::Error::other)?;
            socket.connect(to)?;
            exchange(&socket, name.as_bytes(), PATIENCE)
        });
        answer.with_context(|| format!("the first datagram to {to}"))?;
    }
    Ok(())
}

fn end(lab: &Lab, young: Young) -> Result<()> {
    let host = &lab.node(1).namespace;
    Runtime::of(host)?.del(host, &young.sandbox, Some(&young.result))?;
    Namespace::unpin(host, &young.sandbox.netns)?;
    let store = lab.api().store();
    store
        .delete_now("pods", Some(&young.spec.project), &young.spec.name)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(young.namespace.close()?)
}

fn server(lab: &Lab, node: u8, name: &str) -> Result<(Pod, Namer)> {
    let pod = lab.add_pod(node, name)?;
    let namer = Namer::new(&pod.namespace, name, &pod.ips, PORT)?;
    let from = [json!({"podSelector": selector("role", "good")})];
    let spec = json!({"podSelector": selector("app", name), "policyTypes": ["Ingress"], "ingress": [{"from": from}]});
    apply(lab, &network_policy(name, spec))?;
    Ok((pod, namer))
}

#[test]
fn an_address_that_changes_hands_is_never_judged_as_its_former_owner() -> Result<()> {
    let lab =
        lab_of(LabOptions { pod_prefix: 28, ..LabOptions::new(netlab::unique_name("reuse")).nodes(2) })?;
    let servers = [server(&lab, 1, "near")?, server(&lab, 2, "far")?];
    let stranger = lab.add_pod(2, "stranger")?;
    for (pod, namer) in &servers {
        settle(&stranger.namespace, &pod.ips, PORT, false)?;
        namer.forget();
    }
    let targets: Vec<SocketAddr> =
        servers.iter().filter_map(|(pod, _)| Some(SocketAddr::new(pod.ip(true)?, PORT))).collect();
    let mut owners: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    let mut insisted = 0;
    for (generation, role) in ROLES.into_iter().enumerate() {
        let grown: Vec<Result<(Young, u64)>> = std::thread::scope(|scope| {
            let one = |index| {
                let (lab, targets) = (&lab, &targets);
                scope.spawn(move || grow(lab, role, format!("{role}-{generation}-{index}"), targets))
            };
            let all: Vec<_> = (0..POOL).map(one).collect();
            all.into_iter().map(|thread| thread.join().expect("a pod's thread panicked")).collect()
        });
        for one in grown {
            let (young, sent) = one.with_context(|| format!("generation {generation}"))?;
            insisted += sent;
            owners.entry(young.ip).or_default().push(role);
            end(&lab, young)?;
        }
        for (pod, namer) in &servers {
            let strays: BTreeSet<String> = namer
                .heard()
                .iter()
                .filter(|heard| heard.payload.as_deref() == Some(b"bad"))
                .map(|heard| heard.from.to_string())
                .collect();
            ensure!(
                strays.is_empty(),
                "{} was reached in generation {generation} by {strays:?}, of {owners:?}",
                pod.name
            );
            ensure!(namer.count() >= POOL, "{} has heard of the good ones", pod.name);
        }
    }
    let handed: usize =
        owners.values().map(|roles| roles.windows(2).filter(|pair| pair[0] != pair[1]).count()).sum();
    println!(
        "{} addresses changed hands {handed} times; {insisted} packets of those who may not, none heard",
        owners.len()
    );
    ensure!(handed >= 2 * POOL, "{owners:?}");
    Ok(())
}
