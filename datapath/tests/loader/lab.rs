//! A pin directory of a test's own, and a node with a neighbour on a cable.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use datapath::{Capacities, Datapath, LoadOptions};
use netlab::netlink::VethEnd;
use netlab::{MacAddr, Namespace, eventually};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PINS: &str = "/sys/fs/bpf";
const PREFIX: &str = "hawser-test-";

/// A directory for pins, deleted at the end; those of test processes that crashed are deleted when one is made.
#[derive(Debug)]
pub(crate) struct PinDir(PathBuf);

impl PinDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        reap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(Path::new(PINS).join(format!("{PREFIX}{}-{number}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn reap() {
    // Where no BPF file system is mounted yet there is nothing to reap.
    for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Sizes that cost little.
pub(crate) fn small() -> Capacities {
    Capacities {
        addresses: 1024,
        blocks: 256,
        rows: 1024,
        ports: 1024,
        endpoints: 64,
        locals: 64,
        devices: 64,
        guarded: 64,
        flows: 4096,
        fragments: 256,
        frontends: 256,
        places: 8192,
        backends: 256,
        affinities: 256,
        events: 4096,
    }
}

pub(crate) fn options(pins: &PinDir) -> LoadOptions {
    LoadOptions { pin_dir: pins.path().to_owned(), capacities: small(), ..LoadOptions::default() }
}

pub(crate) fn open(options: &LoadOptions) -> Datapath {
    Datapath::open(options).unwrap_or_else(|error| panic!("tests of the loader need root: {error:#?}"))
}

/// Addresses of the two ends of the cable.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PORT: u16 = 9;

/// The test's thread is in the node's namespace, whose `wire` leads to a neighbour.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    neighbour: Namespace,
    pub(crate) wire: u32,
    receiver: UdpSocket,
}

impl Node {
    pub(crate) fn new() -> Self {
        let make =
            |name| Namespace::net_only(name).build().expect("a namespace can be made: tests need root");
        let (namespace, neighbour) = (make("node"), make("neighbour"));
        let near = netlab::Endpoint::new("wire").address("10.9.0.1/24".parse().expect("a prefix"));
        let far = netlab::Endpoint::new("eth0").address("10.9.0.2/24".parse().expect("a prefix"));
        netlab::veth_pair(&namespace, &near, &neighbour, &far).expect("a cable can be made");
        let wire = namespace.netlink(async |nl| nl.link_index("wire").await).expect("it is there");
        move_into_link_name_space(namespace.netns_fd(), Some(LinkNameSpaceType::Network))
            .expect("a namespace of our own can be entered");
        let receiver = UdpSocket::bind((HERE, PORT)).expect("the address is here");
        receiver.set_nonblocking(true).expect("a socket can be told not to wait");
        Self { namespace, neighbour, wire, receiver }
    }

    /// Makes a pair of links that lead nowhere. Returns the first one's index.
    pub(crate) fn dummy(&self, name: &'static str) -> u32 {
        let made = self.namespace.netlink(async move |nl| {
            let here = File::open("/proc/thread-self/ns/net").expect("threads have a namespace");
            let other = format!("{name}-out");
            let near = VethEnd { name, mac: MacAddr::unique(), mtu: 1500 };
            let far = VethEnd { name: &other, mac: MacAddr::unique(), mtu: 1500 };
            nl.veth_add(near, far, here.as_fd()).await?;
            nl.link_index(name).await
        });
        made.expect("links can be made")
    }

    pub(crate) fn remove(&self, name: &'static str) {
        self.namespace.netlink(async move |nl| nl.link_del(name).await).expect("the link is there");
    }

    /// Sends datagrams from the neighbour to here, one after the other.
    pub(crate) fn send(&self, count: u64) -> JoinHandle<()> {
        self.neighbour.thread(move || {
            let socket = UdpSocket::bind((THERE, 0)).expect("the address is there");
            for _ in 0..count {
                socket.send_to(b"hello", SocketAddr::from((HERE, PORT))).expect("the neighbour can send");
            }
        })
    }

    /// Sends datagrams from the neighbour to here until it is told to stop. Returns how many.
    pub(crate) fn send_until(&self, stop: &Arc<AtomicBool>) -> JoinHandle<u64> {
        let stop = Arc::clone(stop);
        self.neighbour.thread(move || {
            let socket = UdpSocket::bind((THERE, 0)).expect("the address is there");
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                socket.send_to(b"hello", SocketAddr::from((HERE, PORT))).expect("the neighbour can send");
                count += 1;
            }
            count
        })
    }

    /// How many datagrams have arrived since the last call.
    pub(crate) fn arrived(&self) -> u64 {
        let mut count = 0;
        let mut buffer = [0; 16];
        while self.receiver.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    }

    /// A datagram from the neighbour arrives here.
    pub(crate) fn can_hear(&self) {
        let heard = eventually(Duration::from_secs(10), "a datagram arrives", || {
            self.send(1).join().expect("it was sent");
            if self.arrived() == 0 { Err("none came") } else { Ok(()) }
        });
        heard.unwrap();
    }
}

/// Waits until a counter has this value.
pub(crate) fn counted(datapath: &Datapath, name: &str, value: u64) {
    let seen = eventually(Duration::from_secs(10), name, || {
        let counters = datapath.counters().expect("counters can be read").named();
        match counters[name] {
            count if count == value => Ok(()),
            count => Err(format!("{count} instead of {value}")),
        }
    });
    seen.unwrap();
}
