//! Namespaces and devices: a node with five pods, slots and uplinks.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

use netlab::netlink::{Route, VethEnd};
use netlab::{MacAddr, Namespace};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::names::{LOCAL_PODS, REMOTE};

/// Devices of layer 3: the slots, and what holds first packets.
const TUNNELS: [&str; 3] = ["slot", "slot1", "hold"];
/// Links beside the pods': one with the guard, one that nobody guards.
const OTHERS: [&str; 2] = ["uplink", "stray"];

/// Of pods' links and of slots.
pub(crate) const MTU: u16 = 1420;

/// Namespaces and devices. Pods are all in one namespace: only that it is another than the node's matters to a redirect.
pub(crate) struct Stage {
    namespace: Namespace,
    pods: Namespace,
    devices: BTreeMap<&'static str, u32>,
    tunnels: Vec<SyncDevice>,
}

pub(crate) fn pod_mac(pod: &str) -> [u8; 6] {
    [2, 0, 0, 0, 1, pod.as_bytes()[0]]
}

pub(crate) fn host_mac(pod: &str) -> [u8; 6] {
    [2, 0, 0, 0, 2, pod.as_bytes()[0]]
}

impl Stage {
    pub(crate) fn new() -> Self {
        let namespace =
            Namespace::net_only("node").build().expect("a namespace can be made: tests need root");
        let pods = Namespace::net_only("pods").build().expect("another namespace");
        let inside = pods.netns_fd().try_clone_to_owned().expect("descriptors are left");
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            namespace.sysctl(key, "1").expect("a namespace of our own can be told to forward");
        }
        let tunnels = namespace.run(|| TUNNELS.map(tunnel).into_iter().collect());
        let devices = namespace.netlink(async move |nl| {
            let here = File::open("/proc/thread-self/ns/net").expect("threads have a namespace");
            for pod in LOCAL_PODS {
                let near = VethEnd { name: pod, mac: MacAddr::new(host_mac(pod)), mtu: u32::from(MTU) };
                let far = format!("{pod}-in");
                let far = VethEnd { name: &far, mac: MacAddr::new(pod_mac(pod)), mtu: u32::from(MTU) };
                nl.veth_add(near, far, inside.as_fd()).await?;
            }
            for other in OTHERS {
                let near = VethEnd { name: other, mac: MacAddr::unique(), mtu: 1500 };
                let far = format!("{other}-out");
                let far = VethEnd { name: &far, mac: MacAddr::unique(), mtu: 1500 };
                nl.veth_add(near, far, here.as_fd()).await?;
            }
            let mut devices = BTreeMap::new();
            for name in LOCAL_PODS.into_iter().chain(OTHERS).chain(TUNNELS) {
                nl.link_up(name).await?;
                devices.insert(name, nl.link_index(name).await?);
            }
            for net in REMOTE {
                nl.route_add(&Route::to(net.parse().expect("a prefix")).device("slot")).await?;
            }
            Ok(devices)
        });
        let devices = devices.expect("devices of the bench can be made");
        Self { namespace, pods, devices, tunnels }
    }

    /// Moves the calling thread to the node.
    pub(crate) fn enter(&self) {
        let enter = move_into_link_name_space(self.namespace.netns_fd(), Some(LinkNameSpaceType::Network));
        enter.expect("a namespace of our own can be entered: tests of the programs need root");
    }

    /// Index of a device; pods give the host's end of their link.
    pub(crate) fn device(&self, name: &str) -> u32 {
        *self.devices.get(name).unwrap_or_else(|| panic!("the node has no device {name:?}"))
    }

    /// Where the pods' ends of their links are, `a-in` and so on.
    pub(crate) fn pods(&self) -> &Namespace {
        &self.pods
    }

    /// A device of layer 3, as its owner reads and writes it.
    pub(crate) fn tunnel(&self, name: &str) -> &SyncDevice {
        let at = TUNNELS.iter().position(|known| *known == name).expect("a device of layer 3");
        &self.tunnels[at]
    }
}

fn tunnel(name: &str) -> SyncDevice {
    let device = DeviceBuilder::new().layer(Layer::L3).name(name).mtu(MTU).build_sync();
    device.unwrap_or_else(|error| panic!("TUN device {name}: {error}"))
}
