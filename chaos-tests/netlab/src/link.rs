//! Hardware addresses, endpoints, and the simplest link: a veth pair between two namespaces.

use crate::error::LabError;
use crate::namespace::Namespace;
use crate::netlink::{Netlink, VethEnd};
use crate::wait::eventually_async;
use ipnet::IpNet;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A hardware address of six bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// From its bytes.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// A locally administered unicast address that this process has not used yet.
    #[must_use]
    pub fn unique() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let [a, b, c, d] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        Self([0x02, 0x48, a, b, c, d])
    }

    /// Its bytes.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Group bit of IEEE 802: multicast or broadcast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A port of a [`crate::Bridge`] or [`crate::Wire`], in the order of attachment from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub(crate) usize);

impl PortId {
    /// Position in the order of attachment.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A network device to make inside a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Device name, 1 to 15 bytes.
    pub device: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses with the prefix length of their link.
    pub addresses: Vec<IpNet>,
}

impl Endpoint {
    /// A device with a hardware address of its own, MTU 1500 and no addresses.
    #[must_use]
    pub fn new(device: impl Into<String>) -> Self {
        Self { device: device.into(), mac: MacAddr::unique(), mtu: 1500, addresses: Vec::new() }
    }

    /// Adds an address with the prefix length of its link.
    #[must_use]
    pub fn address(mut self, address: IpNet) -> Self {
        self.addresses.push(address);
        self
    }

    /// Sets the MTU in bytes.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// Sets the hardware address.
    #[must_use]
    pub fn mac(self, mac: MacAddr) -> Self {
        Self { mac, ..self }
    }

    pub(crate) fn veth_end(&self) -> VethEnd<'_> {
        VethEnd { name: &self.device, mac: self.mac, mtu: self.mtu }
    }

    /// Adds the addresses and brings the device up.
    pub(crate) async fn configure(&self, netlink: &Netlink) -> Result<(), LabError> {
        for address in &self.addresses {
            netlink.addr_add(&self.device, *address).await?;
        }
        netlink.link_up(&self.device).await
    }
}

/// How long the kernel may take to work off a change of carrier; it rations itself to one batch a second.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// Connects two namespaces by a veth pair with both ends configured, up and ready for traffic.
pub fn veth_pair(a: &Namespace, a_end: &Endpoint, b: &Namespace, b_end: &Endpoint) -> Result<(), LabError> {
    make_veth(a, a_end, b, b_end)?;
    for (namespace, end) in [(a, a_end.clone()), (b, b_end.clone())] {
        namespace.netlink(async move |nl| end.configure(nl).await)?;
    }
    await_ready(a, &a_end.device)?;
    await_ready(b, &b_end.device)
}

/// Waits until a device takes traffic: until then the kernel drops what is sent.
pub(crate) fn await_ready(namespace: &Namespace, device: &str) -> Result<(), LabError> {
    let (device, what) = (device.to_owned(), format!("readiness of {device} in {}", namespace.name()));
    let waited = namespace.netlink(async move |nl| {
        Ok(eventually_async(READY_DEADLINE, &what, async || {
            let link = nl.link(&device).await.map_err(|e| e.to_string())?;
            if link.operational { Ok(()) } else { Err(format!("up {}, carrier {}", link.up, link.carrier)) }
        })
        .await)
    })?;
    Ok(waited?)
}

pub(crate) fn make_veth(
    a: &Namespace,
    a_end: &Endpoint,
    b: &Namespace,
    b_end: &Endpoint,
) -> Result<(), LabError> {
    use crate::error::Context;
    let fd = b.netns_fd().try_clone_to_owned().context("duplicate the descriptor of namespace", b.name())?;
    let (near, far) = (a_end.clone(), b_end.clone());
    a.netlink(async move |nl| nl.veth_add(near.veth_end(), far.veth_end(), fd.as_fd()).await)
}
