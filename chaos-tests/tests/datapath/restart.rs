//! The agent dies under policy and service traffic, and comes back to an API that says nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use chaos_tests::node::Attached;
use chaos_tests::pod::{PodSpec, make_namespace};
use chaos_tests::runtime::{Runtime, Sandbox, code};
use chaos_tests::witness::{flowing, lossless, usual_pace};
use chaos_tests::{Lab, Node, Pod};
use kubeapi::{Fault, Filter, Verb};
use netlab::probe::{Stream, StreamOptions, Transport};
use netlab::{Namespace, eventually};
use proto::cni::PENDING_DELETES;
use serde_json::json;

use crate::support::ask::{datagrams, exchange};
use crate::support::objects::{
    BACKEND_PORT, Endpoint, SERVICE_PORT, apply, cluster_ips, ingress_only, network_policy, service,
    set_endpoints, with_cluster_ips,
};
use crate::support::{Ask, Counts, Namer, settle};
use crate::{MESH, SOON, lab};

/// Where the servers of new flows listen; the streams have the backend's port.
const PORT: u16 = 8081;
/// An answer of an allowed flow takes microseconds; on a busy or emulated machine more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody answers a denied one.
const SHORT: Duration = Duration::from_millis(30);

/// Asks over new flows, one after the other, until dropped.
#[derive(Debug)]
struct Questions {
    name: String,
    asked: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Questions {
    fn start(from: &Namespace, targets: Vec<SocketAddr>, patience: Duration) -> Self {
        let (asked, answered): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (ask, answer, stopped) = (Arc::clone(&asked), Arc::clone(&answered), Arc::clone(&stop));
        let thread = from.thread(move || {
            for to in targets.iter().cycle() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let said = datagrams(*to).and_then(|socket| exchange(&socket, b"new", patience));
                answer.fetch_add(u64::from(said.is_ok()), Ordering::AcqRel);
                ask.fetch_add(1, Ordering::AcqRel);
                // A pace, not a wait.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { name: from.name().to_owned(), asked, answered, stop, thread: Some(thread) }
    }

    /// Waits for this many questions more.
    fn goes_on(&self, more: u64) -> Result<()> {
        let wanted = self.asked.load(Ordering::Acquire) + more;
        eventually(MESH, &format!("{} goes on asking", self.name), || {
            let asked = self.asked.load(Ordering::Acquire);
            if asked >= wanted { Ok(()) } else { Err(format!("{asked} of {wanted}")) }
        })?;
        Ok(())
    }

    /// How many were asked and answered in all.
    fn stop(&mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(namespace = %self.name, "questions panicked");
        }
        (self.asked.load(Ordering::Acquire), self.answered.load(Ordering::Acquire))
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Two servers, on either node, which let in `client` alone, and a service for each of them.
struct Stage {
    lab: Lab,
    client: Pod,
    stranger: Pod,
    near: Pod,
    far: Pod,
    _servers: Vec<Namer>,
}

impl Stage {
    fn new(name: &str) -> Result<Self> {
        let lab = lab(name, 2)?;
        let [client, stranger] = [lab.add_pod(1, "client")?, lab.add_pod(1, "stranger")?];
        let [near, far] = [lab.add_pod(1, "near")?, lab.add_pod(2, "far")?];
        let mut servers = Vec::new();
        for (pod, number) in [(&near, 50), (&far, 51)] {
            apply(&lab, &network_policy(&pod.name, ingress_only(&pod.name, &["client"])))?;
            apply(&lab, &service(&pod.name, &with_cluster_ips(number)))?;
            set_endpoints(&lab, &pod.name, &[Endpoint::ready(pod)])?;
            servers.push(Namer::new(&pod.namespace, &pod.name, &pod.ips, PORT)?);
        }
        for pod in [&near, &far] {
            settle(&client.namespace, &pod.ips, PORT, true)?;
            settle(&stranger.namespace, &pod.ips, PORT, false)?;
        }
        Ok(Self { lab, client, stranger, near, far, _servers: servers })
    }

    /// Where the servers are.
    fn targets(&self) -> Vec<SocketAddr> {
        [&self.near, &self.far]
            .into_iter()
            .flat_map(|pod| &pod.ips)
            .map(|ip| SocketAddr::new(*ip, PORT))
            .collect()
    }

    /// TCP and UDP, both families, to both servers, by their own addresses and by their services'.
    fn streams(&self) -> Result<Vec<Stream>> {
        let mut streams = Vec::new();
        let pace = usual_pace()?;
        for (pod, number) in [(&self.near, 50), (&self.far, 51)] {
            for ip in &pod.ips {
                let service = cluster_ips(number).into_iter().find(|s| s.is_ipv4() == ip.is_ipv4());
                let service = SocketAddr::new(service.context("a service's address")?, SERVICE_PORT);
                for transport in [Transport::Tcp, Transport::Udp] {
                    let own = StreamOptions::new(transport, SocketAddr::new(*ip, 0)).interval(pace);
                    let backend = SocketAddr::new(*ip, BACKEND_PORT);
                    let by_service = StreamOptions { dial: Some(service), listen: backend, ..own.clone() };
                    for options in [own, by_service] {
                        streams.push(Stream::start(&self.client.namespace, &pod.namespace, &options)?);
                    }
                }
            }
        }
        Ok(streams)
    }
}

fn ready(node: &Node) -> Result<()> {
    eventually(MESH, "the agent is ready", || node.ready())?;
    Ok(())
}

/// How each node's programs are on its links.
fn attached(lab: &Lab) -> Result<Vec<(String, Attached)>> {
    lab.nodes.iter().map(|node| Ok((node.name.clone(), node.attached()?))).collect()
}

/// How many flows with this address at either end a node's data path remembers.
fn flows_of(node: &Node, ip: IpAddr) -> Result<usize> {
    /// `struct hw_tuple`, which begins with both addresses.
    type Tuple = [u8; 40];
    /// `struct hw_flow`.
    type Flow = [u8; 64];
    let address = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let pins = node.pins().to_owned();
    node.namespace.run(move || -> Result<usize> {
        let mut count = 0;
        for layout in std::fs::read_dir(&pins)? {
            let map = Map::from_map_data(MapData::from_pin(layout?.path().join("flows"))?)?;
            let flows: HashMap<MapData, Tuple, Flow> = HashMap::try_from(map)?;
            for tuple in flows.keys() {
                count += usize::from(tuple?[..32].chunks(16).any(|end| end == address));
            }
        }
        Ok(count)
    })
}

#[test]
fn an_agent_that_is_killed_is_not_missed_by_policy_or_services() -> Result<()> {
    let mut stage = Stage::new("killed")?;
    let streams = stage.streams()?;
    flowing(&streams, 20)?;
    let mut allowed = Questions::start(&stage.client.namespace, stage.targets(), PATIENCE);
    let mut denied = Questions::start(&stage.stranger.namespace, stage.targets(), SHORT);
    let attached = attached(&stage.lab)?;
    for (name, attached) in &attached {
        println!("note: {name}: {attached}");
        ensure!(attached.tcx == 0 || attached.clsact == 0, "{name}: {attached}, which is one way too many");
    }
    for number in [1, 2, 1] {
        stage.lab.node_mut(number).kill_agent()?;
        flowing(&streams, 100)?;
        allowed.goes_on(50)?;
        denied.goes_on(20)?;
        let started = Instant::now();
        stage.lab.node_mut(number).start_agent()?;
        ready(stage.lab.node(number))?;
        println!("node-{number}: a new agent was ready after {:?}", started.elapsed());
        flowing(&streams, 100)?;
        allowed.goes_on(50)?;
        denied.goes_on(20)?;
    }
    let after = self::attached(&stage.lab)?;
    ensure!(after == attached, "restarts have changed links: {attached:?} before, {after:?} after");
    // The new agents go on where the old ones were: what is changed now is in force.
    settle(&stage.stranger.namespace, &stage.near.ips, PORT, false)?;
    let ((asked, answered), (tried, let_in)) = (allowed.stop(), denied.stop());
    let count = streams.len();
    let sent: u64 = streams.iter().map(|stream| stream.report().sent).sum();
    let gap = lossless(streams)?;
    println!(
        "three agents killed: {count} streams, {sent} records, 0 lost, longest gap {gap:?}; {answered} of {asked} new \
         flows answered; {let_in} of {tried} denied ones let in"
    );
    ensure!(answered == asked, "{} of {asked} allowed flows were not answered", asked - answered);
    ensure!(let_in == 0, "{let_in} of {tried} denied flows were let in");
    for pod in [&stage.near, &stage.far] {
        apply(&stage.lab, &network_policy(&pod.name, ingress_only(&pod.name, &["stranger"])))?;
        settle(&stage.stranger.namespace, &pod.ips, PORT, true)?;
        settle(&stage.client.namespace, &pod.ips, PORT, false)?;
    }
    Ok(())
}

#[test]
fn before_the_first_snapshot_old_pods_keep_what_they_had_and_new_ones_are_closed() -> Result<()> {
    let mut stage = Stage::new("frozen")?;
    let streams = stage.streams()?;
    flowing(&streams, 20)?;
    let mut allowed = Questions::start(&stage.client.namespace, stage.targets(), PATIENCE);
    let mut denied = Questions::start(&stage.stranger.namespace, stage.targets(), SHORT);
    stage.lab.node_mut(1).kill_agent()?;
    // Everything is told but one kind of policy.
    let faults = stage.lab.api().faults();
    let silence = Fault::Status { code: 500, retry_after: None };
    let fault = faults.inject(Filter::on(Verb::List, "networkpolicies"), silence.clone());
    let watch = faults.inject(Filter::on(Verb::Watch, "networkpolicies"), silence);
    stage.lab.node_mut(1).start_agent()?;
    eventually(MESH, "the agent asks for policies in vain", || {
        let hits = faults.hits(fault) + faults.hits(watch);
        if hits >= 3 { Ok(()) } else { Err(format!("{hits} times")) }
    })?;
    flowing(&streams, 100)?;
    allowed.goes_on(50)?;
    denied.goes_on(20)?;

    // A new pod whose process does not wait to be asked.
    let spec = PodSpec::new(1, "newcomer");
    let uid = spec.create_object(&stage.lab)?;
    let host = &stage.lab.node(1).namespace;
    let (namespace, path) = make_namespace(host, &stage.lab.dir, &netlab::unique_name("c"))?;
    let sandbox = Sandbox::of_pod(&netlab::unique_name("c"), &path, &spec.project, &spec.name, &uid);
    let mut eager = Questions::start(&namespace, stage.targets(), SHORT);
    let refused = Runtime::of(host)?.add(host, &sandbox).err().context("ADD before the first snapshot")?;
    ensure!(code(&refused) == Some(11), "not \"try again later\": {refused:#}");
    Runtime::of(host)?.del(host, &sandbox, None)?;
    let (tried, let_in) = eager.stop();
    ensure!(let_in == 0, "a new pod was let in {let_in} times of {tried}");
    flowing(&streams, 50)?;
    faults.remove(fault);
    faults.remove(watch);
    ready(stage.lab.node(1))?;
    let sandbox = Sandbox { container_id: netlab::unique_name("c"), ..sandbox };
    let result = eventually(SOON, "ADD succeeds once everything is known", || {
        Runtime::of(host)
            .and_then(|runtime| runtime.add(host, &sandbox))
            .map_err(|error| format!("{error:#}"))
    })?;
    settle(&namespace, &stage.near.ips, PORT, false)?;
    Runtime::of(host)?.del(host, &sandbox, Some(&result))?;
    let ((asked, answered), (strange, strangers)) = (allowed.stop(), denied.stop());
    let gap = lossless(streams)?;
    println!(
        "{answered} of {asked} allowed, {strangers} of {strange} denied flows answered, streams lost 0, longest gap \
         {gap:?}; new pod: {refused}; {:?}",
        Counts::of(stage.lab.node(1))?
    );
    ensure!(answered == asked && strangers == 0, "{answered} of {asked}; {strangers} of {strange}");
    ensure!(json!(tried) != json!(0), "the new pod has tried");
    Ok(())
}

#[test]
fn flows_of_a_pod_that_ends_while_no_agent_runs_are_forgotten() -> Result<()> {
    let mut lab = lab("forgotten", 1)?;
    let [server, gone] = [lab.add_pod(1, "server")?, lab.add_pod(1, "gone")?];
    let _server = Namer::new(&server.namespace, "server", &server.ips, PORT)?;
    for ip in &server.ips {
        let answer = Ask::Udp.once(&gone.namespace, SocketAddr::new(*ip, PORT), PATIENCE)?;
        ensure!(answer == "server", "{answer} has answered");
    }
    let ips = gone.ips.clone();
    for ip in &ips {
        ensure!(flows_of(lab.node(1), *ip)? > 0, "the test sees no flow of {ip}");
    }
    let veth = gone.result["interfaces"][0]["name"].as_str().context("a name")?.to_owned();
    lab.node_mut(1).kill_agent()?;
    // DEL is only written down.
    gone.remove(&lab)?;
    eventually(SOON, "the pod's link goes with its namespace", || match lab.node(1).sh("ip -o link show") {
        Ok(links) if !links.contains(&veth) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    lab.node_mut(1).start_agent()?;
    ready(lab.node(1))?;
    eventually(MESH, "the note is executed", || match lab.node(1).sh(&format!("ls {PENDING_DELETES}")) {
        Ok(notes) if notes.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    for ip in &ips {
        // Whoever gets the address next could go on with them; by themselves they end after three minutes.
        let left = flows_of(lab.node(1), *ip)?;
        ensure!(left == 0, "{left} flows of {ip} are left");
    }
    Ok(())
}
