//! A switch in user space: a TAP device per node, every frame decided by a pure, seeded function.
//!
//! Frames are learned and forwarded as on any switch; each ordered pair of ports has its own faults, its own
//! random numbers and its own queue. Frames are offered to captures as they enter, before any fault.

mod faults;
mod switch;

use crate::bridge::pairs;
use crate::capture::{Capture, CaptureOptions, Recorder};
use crate::error::{Context, LabError};
use crate::link::{Endpoint, PortId, await_ready};
use crate::namespace::Namespace;
pub use faults::{Backlog, Cause, Draws, Fate, Faults, decide};
use rustix::event::{EventfdFlags, eventfd};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
pub use switch::PairCounters;
use switch::{Shared, State};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Frames a TAP device holds until the switch reads them. Deep, because a burst lost there would be a fault
/// nobody asked for.
const TAP_QUEUE: u32 = 10_000;

/// How long [`Capture`] waits for the switch to have read every frame sent before.
const SYNC_DEADLINE: Duration = Duration::from_secs(5);

/// A switch whose links have faults that can be set while traffic runs.
#[derive(Debug)]
pub struct Wire {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Makes a switch without ports. The seed decides the fate of the n-th frame of every pair of ports.
    pub fn new(name: impl Into<String>, seed: u64) -> Result<Self, LabError> {
        let name = name.into();
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("make", "an eventfd")?;
        let shared = Arc::new(Shared::new(seed, wake));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("wire".into())
            .spawn(move || switch::run(&of_thread))
            .context("start the thread of switch", &name)?;
        Ok(Self { name, shared, thread: Some(thread) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Connects a namespace with a new port. The device is configured and up when this returns.
    ///
    /// The switch keeps the network namespace alive until [`Wire::detach`].
    pub fn attach(&self, node: &Namespace, endpoint: &Endpoint) -> Result<PortId, LabError> {
        let tap = open_tap(node, endpoint)?;
        let port = self.state().add_port(tap);
        self.shared.wake();
        configure(node, endpoint)?;
        Ok(port)
    }

    /// Takes the cable out: the node loses the device.
    pub fn detach(&self, port: PortId) -> Result<(), LabError> {
        self.check(port)?;
        let tap = self.state().set_tap(port, None);
        // The thread may be reading from it; the device goes with the last holder, at its next turn.
        self.shared.wake();
        drop(tap);
        Ok(())
    }

    /// Connects a node (again) with an existing port, whose faults and cuts stay as they are.
    pub fn reattach(&self, port: PortId, node: &Namespace, endpoint: &Endpoint) -> Result<(), LabError> {
        self.detach(port)?;
        let tap = open_tap(node, endpoint)?;
        drop(self.state().set_tap(port, Some(tap)));
        self.shared.wake();
        configure(node, endpoint)
    }

    /// Sets the faults of frames from one port to another.
    pub fn set(&self, from: PortId, to: PortId, faults: Faults) -> Result<(), LabError> {
        self.check(from)?;
        self.check(to)?;
        self.state().pair(from, to).faults = faults;
        Ok(())
    }

    /// Sets the faults between two ports, both ways.
    pub fn set_both(&self, a: PortId, b: PortId, faults: &Faults) -> Result<(), LabError> {
        self.set(a, b, faults.clone())?;
        self.set(b, a, faults.clone())
    }

    /// Sets the faults of all pairs of ports there are now.
    pub fn set_all(&self, faults: &Faults) {
        let mut state = self.state();
        for (a, b) in pairs(state.ports()) {
            state.pair(a, b).faults = faults.clone();
        }
    }

    /// Drops everything from one port to another until healed.
    pub fn cut(&self, from: PortId, to: PortId) -> Result<(), LabError> {
        self.check(from)?;
        self.check(to)?;
        self.state().pair(from, to).cut = true;
        Ok(())
    }

    /// Ends [`Wire::cut`]; other faults stay.
    pub fn heal(&self, from: PortId, to: PortId) -> Result<(), LabError> {
        self.check(from)?;
        self.check(to)?;
        self.state().pair(from, to).cut = false;
        Ok(())
    }

    /// Lets ports hear only ports of the same group, both ways, from one frame to the next. A port in no
    /// group hears nobody. Earlier cuts end; frames on their way still arrive.
    pub fn partition(&self, groups: &[&[PortId]]) {
        let mut state = self.state();
        for (a, b) in pairs(state.ports()) {
            state.pair(a, b).cut = !groups.iter().any(|g| g.contains(&a) && g.contains(&b));
        }
    }

    /// Ends all cuts; other faults stay.
    pub fn heal_all(&self) {
        let mut state = self.state();
        for (a, b) in pairs(state.ports()) {
            state.pair(a, b).cut = false;
        }
    }

    /// What happened to the frames from one port to another.
    pub fn counters(&self, from: PortId, to: PortId) -> Result<PairCounters, LabError> {
        self.check(from)?;
        self.check(to)?;
        Ok(self.state().pair(from, to).counters)
    }

    /// Starts a capture of everything that enters any port, present and future.
    pub fn capture(&self, options: CaptureOptions) -> Result<Capture, LabError> {
        let recorder = Recorder::shared(options)?;
        self.state().add_recorder(Arc::downgrade(&recorder));
        let shared = Arc::downgrade(&self.shared);
        Ok(Capture::of_wire(
            recorder,
            Box::new(move || shared.upgrade().is_none_or(|s| s.sync(SYNC_DEADLINE))),
        ))
    }

    fn check(&self, port: PortId) -> Result<(), LabError> {
        let ports = self.state().ports();
        if port.index() < ports {
            return Ok(());
        }
        Err(LabError::NoPort { switch: self.name.clone(), port: port.index(), ports })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(wire = self.name, "the switch's thread panicked");
        }
    }
}

fn open_tap(node: &Namespace, endpoint: &Endpoint) -> Result<SyncDevice, LabError> {
    let (device, mac) = (endpoint.device.clone(), endpoint.mac);
    let mtu = u16::try_from(endpoint.mtu)
        .map_err(std::io::Error::other)
        .context("set the MTU of TAP device", &endpoint.device)?;
    node.run(move || {
        let tap = DeviceBuilder::new()
            .layer(Layer::L2)
            .name(&device)
            .mac_addr(mac.octets())
            .mtu(mtu)
            .tx_queue_len(TAP_QUEUE)
            .enable(false)
            .build_sync()
            .context("open TAP device", &device)?;
        tap.set_nonblocking(true).context("make nonblocking TAP device", &device)?;
        Ok(tap)
    })
}

fn configure(node: &Namespace, endpoint: &Endpoint) -> Result<(), LabError> {
    let end = endpoint.clone();
    node.netlink(async move |nl| end.configure(nl).await)?;
    await_ready(node, &endpoint.device)
}
