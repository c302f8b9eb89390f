//! A switch at kernel speed: a bridge in a namespace of its own, with partitions per ordered pair of ports.
//!
//! The bridge learns and forwards as any switch does. Cuts are rules of an nf_tables table of the bridge
//! family, `iifname i oifname j drop`, replaced as a whole in one transaction: a partition takes hold, and
//! ends, for all pairs at the same moment.

use crate::capture::{Capture, CaptureOptions};
use crate::error::LabError;
use crate::labdir::LabDir;
use crate::link::{Endpoint, PortId, await_ready, make_veth};
use crate::namespace::Namespace;
use crate::nft;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

const DEVICE: &str = "br0";

/// The kernel's limit for one bridge (`BR_MAX_PORTS`).
const MAX_PORTS: usize = 1023;

/// A switch whose ports are veth pairs to other namespaces.
#[derive(Debug)]
pub struct Bridge {
    namespace: Namespace,
    state: Mutex<State>,
    devices: DeviceMap,
}

/// Which device of the switch is which port.
pub(crate) type DeviceMap = Arc<Mutex<BTreeMap<u32, PortId>>>;

#[derive(Debug, Default)]
struct State {
    ports: usize,
    cuts: BTreeSet<(PortId, PortId)>,
}

/// Packets and bytes at a port, as the node sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortCounters {
    /// Packets the node sent into the switch.
    pub sent: u64,
    /// Packets the switch gave to the node.
    pub received: u64,
}

fn device(port: PortId) -> String {
    format!("p{}", port.0)
}

impl Bridge {
    /// Makes a switch without ports.
    pub fn new(name: &str) -> Result<Self, LabError> {
        Self::build(name, None)
    }

    /// As [`Bridge::new`], recorded in a laboratory.
    pub fn in_lab(name: &str, lab: &LabDir) -> Result<Self, LabError> {
        Self::build(name, Some(lab))
    }

    fn build(name: &str, lab: Option<&LabDir>) -> Result<Self, LabError> {
        let builder = Namespace::net_only(name);
        let namespace = if let Some(lab) = lab { builder.lab(lab) } else { builder }.build()?;
        // The switch itself must not speak: no neighbour discovery, no multicast reports.
        namespace.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        namespace.netlink(async |nl| {
            nl.bridge_add(DEVICE).await?;
            nl.link_up(DEVICE).await
        })?;
        Ok(Self { namespace, state: Mutex::default(), devices: DeviceMap::default() })
    }

    /// The namespace the bridge lives in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Connects a namespace with a new port. The device is configured and up when this returns. All ports
    /// hear each other until told otherwise.
    pub fn attach(&self, node: &Namespace, endpoint: &Endpoint) -> Result<PortId, LabError> {
        let mut state = self.state.lock().expect("no panic under this lock");
        let port = PortId(state.ports);
        if port.0 >= MAX_PORTS {
            return Err(LabError::SwitchFull { switch: self.namespace.name().to_owned(), limit: MAX_PORTS });
        }
        self.connect(port, node, endpoint)?;
        state.ports += 1;
        Ok(port)
    }

    /// Connects a node again with an existing port, as after a reboot; cuts stay as they are.
    pub fn reattach(&self, port: PortId, node: &Namespace, endpoint: &Endpoint) -> Result<(), LabError> {
        self.check(port)?;
        // The kernel removes the device of a namespace that ended, but takes its time.
        self.namespace.netlink(async move |nl| match nl.link_del(&device(port)).await {
            Err(LabError::NoDevice { .. }) => Ok(()),
            Err(LabError::Netlink { .. }) if nl.link_index(&device(port)).await.is_err() => Ok(()),
            other => other,
        })?;
        self.connect(port, node, endpoint)
    }

    fn connect(&self, port: PortId, node: &Namespace, endpoint: &Endpoint) -> Result<(), LabError> {
        let outer = Endpoint::new(device(port)).mtu(endpoint.mtu);
        make_veth(&self.namespace, &outer, node, endpoint)?;
        let index = self.namespace.netlink(async move |nl| {
            nl.link_controller(&device(port), DEVICE).await?;
            nl.link_index(&device(port)).await
        })?;
        // Known before it is up, so that a capture can place its first frame.
        self.devices.lock().expect("no panic under this lock").insert(index, port);
        self.namespace.netlink(async move |nl| nl.link_up(&device(port)).await)?;
        let end = endpoint.clone();
        node.netlink(async move |nl| end.configure(nl).await)?;
        await_ready(&self.namespace, &device(port))?;
        await_ready(node, &endpoint.device)
    }

    /// Takes the whole port down: the node loses its carrier.
    pub fn port_down(&self, port: PortId) -> Result<(), LabError> {
        self.check(port)?;
        self.namespace.netlink(async move |nl| nl.link_down(&device(port)).await)
    }

    /// Brings the port up again.
    pub fn port_up(&self, port: PortId) -> Result<(), LabError> {
        self.check(port)?;
        self.namespace.netlink(async move |nl| nl.link_up(&device(port)).await)
    }

    /// Drops frames from one port to another; the opposite direction is not affected.
    pub fn cut(&self, from: PortId, to: PortId) -> Result<(), LabError> {
        self.set_cuts(|cuts| _ = cuts.insert((from, to)))
    }

    /// Ends [`Bridge::cut`] for this direction.
    pub fn heal(&self, from: PortId, to: PortId) -> Result<(), LabError> {
        self.set_cuts(|cuts| _ = cuts.remove(&(from, to)))
    }

    /// Lets ports hear only ports of the same group, both ways. A port in no group hears nobody. Earlier cuts
    /// end.
    pub fn partition(&self, groups: &[&[PortId]]) -> Result<(), LabError> {
        let ports = self.state.lock().expect("no panic under this lock").ports;
        let together = |a, b| groups.iter().any(|g| g.contains(&a) && g.contains(&b));
        self.set_cuts(|cuts| {
            *cuts = pairs(ports).filter(|(a, b)| !together(*a, *b)).collect();
        })
    }

    /// Ends all cuts.
    pub fn heal_all(&self) -> Result<(), LabError> {
        self.set_cuts(BTreeSet::clear)
    }

    fn set_cuts(&self, change: impl FnOnce(&mut BTreeSet<(PortId, PortId)>)) -> Result<(), LabError> {
        let mut state = self.state.lock().expect("no panic under this lock");
        let mut wanted = state.cuts.clone();
        change(&mut wanted);
        for (a, b) in &wanted {
            self.check_in(&state, *a)?;
            self.check_in(&state, *b)?;
        }
        let pairs: Vec<_> = wanted.iter().map(|(a, b)| (device(*a), device(*b))).collect();
        self.namespace.run(move || nft::replace_cuts(&pairs))?;
        state.cuts = wanted;
        Ok(())
    }

    /// Counters of a port.
    pub fn counters(&self, port: PortId) -> Result<PortCounters, LabError> {
        self.check(port)?;
        let link = self.namespace.netlink(async move |nl| nl.link(&device(port)).await)?;
        Ok(PortCounters { sent: link.rx_packets, received: link.tx_packets })
    }

    /// Starts a capture of everything that enters any port, present and future.
    pub fn capture(&self, options: CaptureOptions) -> Result<Capture, LabError> {
        Capture::of_bridge(&self.namespace, Arc::clone(&self.devices), options)
    }

    fn check(&self, port: PortId) -> Result<(), LabError> {
        self.check_in(&self.state.lock().expect("no panic under this lock"), port)
    }

    fn check_in(&self, state: &State, port: PortId) -> Result<(), LabError> {
        let ports = state.ports;
        if port.0 < ports {
            return Ok(());
        }
        Err(LabError::NoPort { switch: self.namespace.name().to_owned(), port: port.0, ports })
    }
}

/// All ordered pairs of different ports.
pub(crate) fn pairs(ports: usize) -> impl Iterator<Item = (PortId, PortId)> {
    let all = move || (0..ports).map(PortId);
    all().flat_map(move |a| all().filter(move |b| a != *b).map(move |b| (a, b)))
}
