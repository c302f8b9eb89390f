//! A pod's link against a real kernel, in namespaces of each test.

mod nft_lab;

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_agent::kernel::Kernel;
use mesh_agent::podlink::{PodLink, connect, mac};
use nft_lab::Lab;
use rtnetlink::LinkVeth;
use tokio::runtime::Runtime;

fn link(number: u8) -> PodLink {
    let veth = format!("hw{number:013}");
    let ips = [("10.244.1.", "10.244.1.1"), ("fd00:10:244:1::", "fd00:10:244:1::1")];
    PodLink {
        host_mac: mac(&veth, "host"),
        pod_mac: mac(&veth, "pod"),
        veth,
        ifname: format!("eth{number}"),
        mtu: 1400,
        home: Default::default(),
        ips: ips
            .map(|(address, gateway)| {
                let address =
                    if number == 0 { unreachable!("counted from 1") } else { format!("{address}{number}") };
                (address.parse().expect("an address"), gateway.parse().expect("an address"))
            })
            .to_vec(),
    }
}

/// Can the kernel of this namespace receive what is sent to this address?
fn is_received(address: IpAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(address, 0))?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    socket.send_to(b"to itself", socket.local_addr()?)?;
    socket.recv(&mut [0; 16]).map(drop)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Makes and removes links until told to stop: each time the kernel's lock for all of networking (RTNL) is held.
async fn be_busy(stop: &AtomicBool) {
    let kernel = Kernel::connect().expect("netlink");
    while !stop.load(Ordering::Relaxed) {
        let pair = LinkVeth::new("busy0", "busy1").build();
        kernel.handle().link().add(pair).execute().await.expect("a pair of links");
        kernel.remove_link("busy0").await.expect("removed");
    }
}

/// The kernel gives an IPv6 address its local route by a worker, some time after the address can be used as a source: an
/// answer that comes before that finds nobody. On a node where links come and go that is some time indeed.
#[test]
fn a_pods_addresses_receive_as_soon_as_its_link_is_made() {
    let lab = Lab::new(&["node", "pod", "busy-1", "busy-2", "busy-3", "busy-4"]);
    let pod: OwnedFd =
        lab.inside("pod", || File::open("/proc/thread-self/ns/net")).expect("a namespace").into();
    let stop = AtomicBool::new(false);
    let late = std::thread::scope(|scope| {
        for role in ["busy-1", "busy-2", "busy-3", "busy-4"] {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || lab.inside(role, || runtime().block_on(be_busy(stop))));
        }
        let mut late = Vec::new();
        for number in 2..102 {
            let link = link(number);
            let made = lab.inside("node", || {
                runtime().block_on(async {
                    let kernel = Kernel::connect().expect("netlink");
                    let pod = pod.try_clone().expect("a descriptor");
                    connect(&kernel, pod, &link, |_| std::future::ready(Ok(()))).await
                })
            });
            made.unwrap_or_else(|error| panic!("{error}"));
            for (address, _) in &link.ips {
                if let Err(error) = lab.inside("pod", || is_received(*address)) {
                    late.push(format!("{address}: {error}"));
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        late
    });
    assert!(late.is_empty(), "{} of 200 addresses did not receive at once: {late:?}", late.len());
}
