//! Policy changes under traffic, and no packet meets half a change.
//!
//! Two policies allow exactly one of two ports each. So every probe tells which policy judged it: a probe to the first
//! port that arrives was judged by A, one that does not by B; to the second port the other way round. Read in the order
//! in which they were sent, the probes of one sender must show as many changes as were made: a packet judged by a
//! mixture, by an older table after a newer one, or by nothing, is at least two changes more.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::pod::PodSpec;
use chaos_tests::{Lab, Pod};
use netlab::{Namespace, eventually};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::ask::{datagrams, settle_udp};
use crate::support::objects::{apply, network_policy, selector};
use crate::{SOON, lab};

const FLIPS: usize = 100;
/// Allowed by A to `x` and by B to `y`.
const FIRST: u16 = 1001;
/// Allowed by B to `x` and by A to `y`.
const SECOND: u16 = 1002;
/// Allowed to `x` by both, by different rules; to `y` by none.
const THIRD: u16 = 1003;
/// Allowed to everybody by both: what does not arrive here was lost on the way.
const CONTROL: u16 = 1004;
const PORTS: [u16; 4] = [FIRST, SECOND, THIRD, CONTROL];
/// Between two probes of one sender.
const INTERVAL: Duration = Duration::from_micros(300);
/// Bytes that may wait at a server.
const BUFFER: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    A,
    B,
}

impl Policy {
    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Isolates the servers, but for its ports.
    fn object(self) -> Value {
        let (x, y) = match self {
            Self::A => (FIRST, SECOND),
            Self::B => (SECOND, FIRST),
        };
        let third = match self {
            Self::A => json!({"podSelector": selector("app", "x")}),
            Self::B => json!({"podSelector": {"matchExpressions": [
                {"key": "app", "operator": "In", "values": ["x", "z"]}, {"key": "role", "operator": "Exists"}]}}),
        };
        let rule =
            |peer: Value, port: u16| json!({"from": [peer], "ports": [{"protocol": "UDP", "port": port}]});
        let app = |name: &str| json!({"podSelector": selector("app", name)});
        let everybody = json!({"ports": [{"protocol": "UDP", "port": CONTROL}]});
        network_policy(
            "flip",
            json!({
                "podSelector": selector("role", "server"), "policyTypes": ["Ingress"],
                "ingress": [rule(app("x"), x), rule(app("y"), y), rule(third, THIRD), everybody],
            }),
        )
    }
}

/// One probe, as it is written into its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Probe {
    sender: u8,
    port: u16,
    number: u64,
}

impl Probe {
    fn bytes(self) -> [u8; 11] {
        let mut bytes = [self.sender; 11];
        bytes[1..3].copy_from_slice(&self.port.to_be_bytes());
        bytes[3..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let [sender, high, low, number @ ..] = *bytes.first_chunk::<11>()?;
        Some(Self { sender, port: u16::from_be_bytes([high, low]), number: u64::from_be_bytes(number) })
    }

    /// By which policy it was judged, if it arrived or not.
    fn tells(self, arrived: bool) -> Option<Policy> {
        let first = match (self.sender, self.port) {
            (b'x', FIRST) | (b'y', SECOND) => Policy::A,
            (b'x', SECOND) | (b'y', FIRST) => Policy::B,
            _ => return None,
        };
        Some(if arrived { first } else { first.other() })
    }
}

/// A server's sockets and what arrived there.
struct Server {
    name: String,
    arrived: Arc<Mutex<BTreeSet<Probe>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(pod: &Pod) -> Result<Self> {
        let (arrived, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for (ip, port) in pod.ips.iter().flat_map(|ip| PORTS.map(|port| (*ip, port))) {
            let socket = pod.namespace.run(move || receiver(SocketAddr::new(ip, port)))?;
            let (log, stop): (Arc<Mutex<BTreeSet<Probe>>>, Arc<AtomicBool>) =
                (Arc::clone(&arrived), Arc::clone(&stop));
            threads.push(pod.namespace.thread(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Acquire) {
                    if let Ok(length) = socket.recv(&mut buffer)
                        && let Some(probe) = Probe::read(&buffer[..length])
                    {
                        log.lock().expect("no panic under this lock").insert(probe);
                    }
                }
            }));
        }
        Ok(Self { name: pod.name.clone(), arrived, stop, threads })
    }

    /// Has something arrived, after this number, that only this policy lets in?
    fn follows(&self, sender: u8, after: u64, policy: Policy) -> bool {
        let arrived = self.arrived.lock().expect("no panic under this lock");
        PORTS.iter().any(|port| {
            let probe = Probe { sender, port: *port, number: after + 1 };
            let last = Probe { number: u64::MAX, ..probe };
            probe.tells(true) == Some(policy) && arrived.range(probe..last).next().is_some()
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn receiver(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &BUFFER)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// Sends probes to every server in turn: to each port over a flow that lasts, and over a new one.
struct Sender {
    id: u8,
    sent: Arc<Mutex<Vec<Probe>>>,
    number: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Sender {
    fn start(id: u8, namespace: &Namespace, target: IpAddr, cpu: usize) -> Self {
        let (sent, number, stop) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let (log, counter, stopped) = (Arc::clone(&sent), Arc::clone(&number), Arc::clone(&stop));
        let thread = namespace.thread(move || {
            // What one CPU sends is judged in that order; a thread that moves could overtake itself.
            let mut cpus = rustix::thread::CpuSet::new();
            cpus.set(cpu);
            rustix::thread::sched_setaffinity(None, &cpus)?;
            probe_on(id, target, &log, &counter, &stopped)
        });
        Self { id, sent, number, stop, thread: Some(thread) }
    }

    fn stop(&mut self) -> Result<Vec<Probe>> {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        Ok(self.sent.lock().expect("no panic under this lock").clone())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.stop());
    }
}

fn probe_on(
    id: u8,
    target: IpAddr,
    log: &Mutex<Vec<Probe>>,
    number: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<()> {
    let lasting: Vec<UdpSocket> =
        PORTS.iter().map(|port| datagrams(SocketAddr::new(target, *port))).collect::<io::Result<_>>()?;
    while !stop.load(Ordering::Acquire) {
        for (port, lasting) in PORTS.iter().zip(&lasting) {
            let fresh = datagrams(SocketAddr::new(target, *port))?;
            for socket in [lasting, &fresh] {
                let probe =
                    Probe { sender: id, port: *port, number: number.fetch_add(1, Ordering::AcqRel) + 1 };
                // Written down first: it may have arrived before the next line.
                log.lock().expect("no panic under this lock").push(probe);
                socket.send(&probe.bytes())?;
                std::thread::sleep(INTERVAL);
            }
        }
    }
    Ok(())
}

/// The changes that one sender's probes show at one server.
struct Story {
    changes: usize,
    /// Probes that tell something.
    told: usize,
    lost: usize,
    /// Probes to the third port that went wrong.
    wrong: Vec<Probe>,
    glitches: Vec<String>,
}

impl Story {
    fn read(sent: &[Probe], arrived: &BTreeSet<Probe>) -> Self {
        let mut story = Self { changes: 0, told: 0, lost: 0, wrong: Vec::new(), glitches: Vec::new() };
        let mut now = Policy::A;
        let mut since = 0;
        for probe in sent {
            let came = arrived.contains(probe);
            match probe.port {
                CONTROL if !came => story.lost += 1,
                THIRD if came != (probe.sender == b'x') => story.wrong.push(*probe),
                _ => {}
            }
            let Some(policy) = probe.tells(came) else { continue };
            story.told += 1;
            if policy != now {
                // Flips are tens of milliseconds apart.
                if since < 8 {
                    story
                        .glitches
                        .push(format!("{policy:?} at {probe:?}, {since} probes after {now:?} began"));
                }
                (now, since) = (policy, 0);
                story.changes += 1;
            }
            since += 1;
        }
        story
    }
}

/// Flips under traffic from both senders to one server; what was seen, one line each.
fn flip(lab: &Lab, senders: [&Pod; 2], server: &Pod, v4: bool) -> Result<Vec<String>> {
    apply(lab, &Policy::A.object())?;
    let target = server.ip(v4).context("an address")?;
    let both = || [b'x', b'y'].into_iter().zip(senders);
    for (id, pod) in both() {
        // Nothing before policy A is in force, or the story would begin with another.
        settle_udp(&pod.namespace, SocketAddr::new(target, probe_port(id, Policy::A)), true)?;
        settle_udp(&pod.namespace, SocketAddr::new(target, probe_port(id, Policy::B)), false)?;
    }
    let at = Server::start(server)?;
    let mut probing: Vec<Sender> = Vec::new();
    for (cpu, (id, pod)) in both().enumerate() {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        probing.push(Sender::start(id, &pod.namespace, target, cpu % cpus));
    }
    let mut policy = Policy::A;
    for round in 0..FLIPS {
        policy = policy.other();
        apply(lab, &policy.object())?;
        for sender in &probing {
            let since = sender.number.load(Ordering::Acquire);
            eventually(SOON, &format!("flip {round}: {} shows it", char::from(sender.id)), || {
                let shown = at.follows(sender.id, since, policy);
                if shown { Ok(()) } else { Err(format!("no probe after {since} was let in by {policy:?}")) }
            })?;
        }
    }
    let mut lines = Vec::new();
    for sender in &mut probing {
        let sent = sender.stop()?;
        let last = *sent.last().context("probes were sent")?;
        let control = sent.iter().rev().find(|probe| probe.port == CONTROL).copied().unwrap_or(last);
        eventually(SOON, "the last probes arrive", || {
            let arrived = at.arrived.lock().expect("no panic under this lock").contains(&control);
            if arrived { Ok(()) } else { Err(format!("{control:?} has not")) }
        })?;
        let story = Story::read(&sent, &at.arrived.lock().expect("no panic under this lock"));
        let who = format!("{} to {} v{}", char::from(sender.id), at.name, if v4 { 4 } else { 6 });
        lines.push(format!("{who}: {} probes tell of {} changes, {FLIPS} made", story.told, story.changes));
        ensure!(story.lost == 0, "{who}: the way itself lost {} probes: nothing can be said", story.lost);
        ensure!(story.wrong.is_empty(), "{who}: {:?}", &story.wrong[..story.wrong.len().min(5)]);
        ensure!(story.changes == FLIPS, "{who}: {} changes: {:#?}", story.changes, story.glitches);
    }
    Ok(lines)
}

/// The port that a policy opens to a sender.
fn probe_port(id: u8, policy: Policy) -> u16 {
    let opens = |port: &&u16| Probe { sender: id, port: **port, number: 0 }.tells(true) == Some(policy);
    *PORTS.iter().find(opens).expect("invariant: each policy opens one port to each sender")
}

#[test]
fn no_packet_is_judged_by_a_mixture_while_policy_flips_a_hundred_times() -> Result<()> {
    let lab = lab("flip", 2)?;
    let sender = |name: &str| lab.add_pod_of(&PodSpec::new(1, name).label("role", "sender"));
    let server = |node, name: &str| lab.add_pod_of(&PodSpec::new(node, name).label("role", "server"));
    let [x, y] = [sender("x")?, sender("y")?];
    let [near, far] = [server(1, "near")?, server(2, "far")?];
    for (to, v4) in [(&near, true), (&far, true), (&far, false)] {
        println!("{}", flip(&lab, [&x, &y], to, v4)?.join("\n"));
    }
    Ok(())
}

#[test]
fn a_story_has_as_many_changes_as_were_made_and_two_more_for_each_mixture() {
    let probe = |number, port| Probe { sender: b'x', port, number };
    let sent: Vec<Probe> =
        (0..40).map(|number| probe(number, if number % 2 == 0 { FIRST } else { SECOND })).collect();
    let under = |policy: &dyn Fn(u64) -> Policy| -> BTreeSet<Probe> {
        sent.iter().filter(|p| p.tells(true) == Some(policy(p.number))).copied().collect()
    };
    let clean = under(&|number| if number < 20 { Policy::A } else { Policy::B });
    assert_eq!(Story::read(&sent, &clean).changes, 1);
    let mut both = clean.clone();
    both.insert(probe(31, SECOND));
    both.insert(probe(30, FIRST));
    assert_eq!(Story::read(&sent, &both).changes, 3, "a port that B does not open");
    let mut none = clean;
    none.remove(&probe(31, SECOND));
    assert_eq!(Story::read(&sent, &none).changes, 3, "neither port is open");
}
