//! Peers of one device are carried by several threads.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::THREADS;
use crate::alive::Hanging;
use crate::lab::{Lab, Node, Ns, Program, Stream, eventually};
use crate::traffic::tcp_both_ways;

const SOON: Duration = Duration::from_secs(10);

fn ip(node: &Node) -> IpAddr {
    node.inner4().parse().unwrap()
}

/// A hub that was told of its peers one by one, so that the n-th is in lane n modulo threads, and they of it alone.
fn hub(peers: usize) -> Lab {
    let lab = Lab::new(1 + peers);
    let (hub, others) = lab.nodes.split_first().unwrap();
    for other in others {
        hub.knows(other, Some(other.v4()), "");
        other.knows(hub, Some(hub.v4()), "");
    }
    lab
}

/// Datagrams with numbers, in bursts, forty flows of which two busy processors can carry: of what is more than that the device's queue
/// drops anybody's, and TCP beside it waits for minutes. Each that arrives has a higher number than the one before.
struct Ordered {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Ordered {
    fn start(from: (&Ns, IpAddr), to: (&Ns, IpAddr), port: u16) -> Self {
        let sender = from.0.udp(SocketAddr::new(from.1, 0));
        let receiver = to.0.udp(SocketAddr::new(to.1, port));
        let target = SocketAddr::new(to.1, port);
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let mut n = 0u64;
            while !stopping.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    let _ = sender.send_to(&n.to_be_bytes(), target);
                    n += 1;
                }
                std::thread::sleep(Duration::from_millis(40));
            }
            for _ in 0..5 {
                let _ = sender.send_to(&u64::MAX.to_be_bytes(), target);
            }
            n
        });
        let receiver = std::thread::spawn(move || Self::receive(&receiver));
        Self { stop, sender, receiver }
    }

    fn receive(socket: &UdpSocket) -> u64 {
        let (mut buf, mut next, mut arrived) = ([0; 8], 0, 0);
        while socket.recv(&mut buf).is_ok() {
            let n = u64::from_be_bytes(buf);
            if n == u64::MAX {
                break;
            }
            assert!(n >= next, "{n} arrived after {}", next - 1);
            (next, arrived) = (n + 1, arrived + 1);
        }
        arrived
    }

    fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        (self.sender.join().unwrap(), self.receiver.join().unwrap())
    }
}

#[test]
fn twenty_peers_on_four_threads_have_each_flow_in_order_in_both_directions() {
    let lab = hub(20);
    let (hub, others) = lab.nodes.split_first().unwrap();
    for other in others {
        other.ns.reaches(&hub.inner4());
    }
    let flows: Vec<_> = (9000..)
        .zip(others)
        .flat_map(|(port, other)| {
            let (inner, outer) = ((&hub.ns, ip(hub)), (&other.ns, ip(other)));
            [Ordered::start(inner, outer, port), Ordered::start(outer, inner, port)]
        })
        .collect();
    let begun = Instant::now();
    tcp_both_ways(&hub.ns, &others[2].ns, SocketAddr::new(ip(&others[2]), 7000), 4 << 20);
    tcp_both_ways(&others[3].ns, &hub.ns, SocketAddr::new(ip(hub), 7000), 4 << 20);
    eventually("a while is over", SOON, || begun.elapsed() > Duration::from_secs(3));
    for flow in flows {
        let (sent, arrived) = flow.finish();
        // A machine with less to give than is sent loses some at sockets and devices.
        assert!(arrived * 2 > sent, "{arrived} of {sent} arrived");
    }
    assert_eq!(hub.count("packets.strayed"), 0, "the kernel knows whose a datagram is");
    let text = hub.ns.run("cat /proc/net/udp");
    assert_eq!(text.lines().filter(|line| line.contains(":CAA8 ")).count(), usize::from(THREADS), "{text}");
}

#[test]
fn a_thread_that_hangs_costs_its_own_peers_packets_alone_and_what_it_cannot_take_is_counted() {
    let lab = hub(4);
    let (hub, others) = lab.nodes.split_first().unwrap();
    for other in others {
        other.ns.reaches(&hub.inner4());
    }
    // The second peer's: it sends nothing, whatever it is given.
    let hanging = Hanging::of(hub.process.as_ref().unwrap(), &["hawser0-carry1"]);
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, flood, target) =
        (Arc::clone(&stop), hub.ns.udp(SocketAddr::new(ip(hub), 0)), SocketAddr::new(ip(&others[1]), 9));
    let flooding = std::thread::spawn(move || {
        while !stopping.load(Ordering::Relaxed) {
            for _ in 0..20 {
                let _ = flood.send_to(&[0; 1300], target);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    eventually("its room is full", SOON, || hub.count("drops.busy") > 0);
    for other in [0, 2, 3] {
        assert!(hub.ns.loses_nothing(&others[other].inner4(), 50), "the others' are carried");
    }
    stop.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
    drop(hanging);
    hub.ns.reaches(&others[1].inner4());
    let (busy, stream) =
        (hub.count("drops.busy"), Stream::start((&hub.ns, ip(hub)), (&others[1].ns, ip(&others[1])), 500));
    stream.flows(250);
    let (sent, arrived) = stream.finish();
    assert_eq!((sent - arrived, hub.count("drops.busy")), (0, busy), "nothing of it is left");
}

#[test]
fn peers_of_all_threads_follow_a_changed_port_and_go_on_when_the_hub_was_killed() {
    let mut lab = hub(5);
    {
        let (hub, others) = lab.nodes.split_first().unwrap();
        others.iter().for_each(|other| other.ns.reaches(&hub.inner4()));
        let streams: Vec<_> = others
            .iter()
            .map(|other| Stream::start((&hub.ns, ip(hub)), (&other.ns, ip(other)), 200))
            .collect();
        for port in [41000, 41001, 51880] {
            hub.set(&format!("listen_port={port}\n"));
            for other in others {
                eventually("it follows", SOON, || {
                    other.get().contains(&format!("endpoint=192.0.2.1:{port}\n"))
                });
            }
            // Asked while it carries.
            assert_eq!(hub.get().matches("public_key").count(), 5);
        }
        for stream in streams {
            let (sent, arrived) = stream.finish();
            assert_eq!(arrived, sent, "what the hub sends leaves from the old port or the new one");
        }
        assert_eq!(hub.count("handshakes.completed"), 5);
    }
    lab.nodes[0].kill();
    lab.nodes[0].start();
    let (hub, others) = lab.nodes.split_first().unwrap();
    hub.configure();
    for other in others {
        hub.knows(other, Some(other.v4()), "persistent_keepalive_interval=1\n");
    }
    for other in others {
        other.ns.reaches(&hub.inner4());
    }
}

#[test]
fn a_port_that_others_share_is_in_use_all_the_same() {
    let lab = Lab::with(&[Program::Ours]);
    let hub = &lab.nodes[0];
    let shared = hub.ns.within(|| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Datagram,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReusePort, &true).unwrap();
        let at: nix::sys::socket::SockaddrIn = "0.0.0.0:41000".parse().unwrap();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &at).unwrap();
        socket
    });
    assert_eq!(hub.uapi("set=1\nlisten_port=41000\n"), "errno=-98\n\n");
    drop(shared);
    eventually("the port is free", SOON, || hub.uapi("set=1\nlisten_port=41000\n") == "errno=0\n\n");
}
