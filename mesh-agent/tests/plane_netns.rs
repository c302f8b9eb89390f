//! What the data path forgets of pods that are gone, and keeps of others, in the kernel's own maps.

mod nft_lab;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use datapath::abi::{Flow, Tuple};
use mesh_agent::plane::Plane;
use mesh_agent::policy::Attached;
use nft_lab::Lab;

/// Where the data path of a test is pinned. What a crashed one leaves is found by this name, and removed, by the tests of the
/// data path.
struct Pins(PathBuf);

impl Pins {
    fn new(test: &str) -> Self {
        Self(Path::new("/sys/fs/bpf").join(format!("hawser-test-{}-plane-{test}", std::process::id())))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(ifindex: u32, ips: [&str; 2]) -> Attached {
    Attached {
        veth: format!("hw{ifindex:013}"),
        ifindex,
        pod: None,
        ips: ips.into_iter().map(ip).collect(),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        slow: false,
        host_ports: BTreeSet::new(),
        own: None,
    }
}

/// A flow as the programs remember it.
fn speaks(plane: &Plane, from: &str, to: &str) {
    let tuple = Tuple { src: ip(from).into(), dst: ip(to).into(), protocol: 17, ..Tuple::default() };
    let flow = Flow { until: datapath::now_ns() + 60_000_000_000, ..Flow::default() };
    plane.datapath().maps().flows.put(&tuple, &flow).expect("there is room");
}

fn flows_of(plane: &Plane, address: &str) -> usize {
    plane.datapath().flows_of(ip(address)).expect("the map is read").len()
}

#[test]
fn flows_go_with_a_pod_that_vanished_while_no_agent_ran_and_those_of_others_stay() {
    let lab = Lab::new(&["node"]);
    let pins = Pins::new("flows");
    lab.inside("node", || {
        let plane = Plane::open(&pins.0, &[]).unwrap_or_else(|error| panic!("{error}"));
        // Neither has a link: that of one went a moment ago, which is no concern of this.
        let stays = pod(1001, ["10.244.1.5", "fd00:10:244:1::5"]);
        let vanished = pod(1002, ["10.244.1.6", "fd00:10:244:1::6"]);
        for pod in [&stays, &vanished] {
            plane.place(pod).expect("there is room");
        }
        for (from, to) in [
            ("10.244.1.6", "192.0.2.1"),
            ("10.244.2.9", "10.244.1.6"),
            ("fd00:10:244:1::6", "2001:db8::1"),
            ("10.244.1.5", "192.0.2.1"),
            ("fd00:10:244:1::5", "2001:db8::1"),
        ] {
            speaks(&plane, from, to);
        }

        plane.reconcile(std::slice::from_ref(&stays)).expect("it is compared");
        let left = |address: &str| flows_of(&plane, address);
        assert_eq!(["10.244.1.6", "fd00:10:244:1::6"].map(left), [0, 0]);
        assert_eq!(["10.244.1.5", "fd00:10:244:1::5"].map(left), [1, 1]);

        // What was made since then, by a packet that was on its way, goes with the attachment, though nobody is placed there.
        speaks(&plane, "10.244.2.9", "10.244.1.6");
        assert_eq!(left("10.244.1.6"), 1);
        plane.disconnect(&vanished.ips);
        assert_eq!(left("10.244.1.6"), 0);
        assert_eq!(["10.244.1.5", "fd00:10:244:1::5"].map(left), [1, 1]);
    });
}
