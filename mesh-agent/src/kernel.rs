//! The kernel's networking, by rtnetlink: what is there, and the small operations that change it.
//!
//! Nothing here chooses. What is ours is known by [`ROUTE_PROTOCOL`], or (addresses on `lo`) by lying inside the
//! cluster's pod CIDRs; everything else is left alone.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "netlink has more attributes and messages than concern us"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use mesh_core::numbers::ROUTE_PROTOCOL;
use mesh_core::plan::{Route, Rule, Target};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{
    AddressMessageBuilder, Handle, IpVersion, LinkGetRequest, LinkMessageBuilder, LinkUnspec, LinkWireguard,
    RouteMessageBuilder,
};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

mod rules;

use rules::{rule, rule_message};

/// A netlink request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct KernelError {
    /// What was asked, with its object.
    what: String,
    /// What the kernel said.
    source: rtnetlink::Error,
}

impl KernelError {
    /// No netlink socket could be had.
    pub(crate) fn socket(error: std::io::Error) -> Self {
        let what = format!("Could not open a netlink socket: {error}");
        Self { what, source: rtnetlink::Error::RequestFailed }
    }
}

/// Turns a failure into a [`KernelError`] that says what was asked.
pub(crate) fn asked<T>(
    what: impl FnOnce() -> String,
) -> impl FnOnce(rtnetlink::Error) -> Result<T, KernelError> {
    move |source| Err(KernelError { what: what(), source })
}

/// What the kernel answered.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<rustix::io::Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            message.code.map(|code| rustix::io::Errno::from_raw_os_error(code.get().abs()))
        }
        _ => None,
    }
}

pub(crate) fn tolerate(
    result: Result<(), rtnetlink::Error>,
    fine: &[rustix::io::Errno],
    what: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    match result {
        Err(error) if errno(&error).is_some_and(|code| fine.contains(&code)) => Ok(()),
        other => other.or_else(asked(what)),
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the device.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Hardware address; empty for a tunnel.
    pub mac: Vec<u8>,
    /// Packets received since the device was made. Of a slot: inner packets, without keepalives and handshakes.
    pub received: u64,
}

/// What the kernel shows.
#[derive(Clone, Debug, Default)]
pub struct KernelState {
    /// Devices by name.
    pub links: BTreeMap<String, Link>,
    /// Every address with the number of its device.
    pub addresses: Vec<(u32, IpNet)>,
    /// Our routes.
    pub routes: BTreeSet<Route>,
    /// Our rules.
    pub rules: BTreeSet<Rule>,
}

impl KernelState {
    /// Addresses on `lo` inside `guarded`.
    pub fn mesh(&self, guarded: &[IpNet]) -> BTreeSet<IpAddr> {
        let lo = self.links.get("lo").map(|lo| lo.index);
        let ours = |(index, net): &&(u32, IpNet)| {
            Some(*index) == lo && guarded.iter().any(|g| g.contains(&net.addr()))
        };
        self.addresses.iter().filter(ours).map(|(_, net)| net.addr()).collect()
    }
}

/// A connection to the kernel in the network namespace in which it was made.
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: Handle,
    /// Held during a dump: a netlink socket does one at a time, and says EBUSY to the second.
    dump: Arc<Mutex<()>>,
}

impl Kernel {
    /// Connects; the connection's task lives in the current runtime.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn connect() -> std::io::Result<Self> {
        Self::supervised().map(|(kernel, _)| kernel)
    }

    /// The same, and the connection's task. It ends for good with any error of the socket but an overrun, and then every
    /// request fails: whoever lives by the connection has to watch it.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn supervised() -> std::io::Result<(Self, JoinHandle<()>)> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        Ok((Self { handle, dump: Arc::default() }, task))
    }

    /// The netlink handle, for what is not shared.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// To be held during a dump of somebody's own.
    pub(crate) async fn one_dump(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.dump.lock().await
    }

    /// Everything at once. A link that one of our routes leads to is in it, though the kernel's list may lack it.
    ///
    /// # Errors
    /// A dump was refused or cut off.
    pub async fn observe(&self) -> Result<KernelState, KernelError> {
        let _one = self.dump.lock().await;
        let mut links = self.dump_links().await?;
        let names: BTreeMap<u32, &str> =
            links.iter().map(|(name, link)| (link.index, name.as_str())).collect();
        let mut routes = BTreeSet::new();
        let mut rules = BTreeSet::new();
        let mut nameless = Vec::new();
        for request in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut dump = self.handle.route().get(request).execute();
            while let Some(message) =
                dump.try_next().await.or_else(asked(|| "Could not list routes".into()))?
            {
                let is_nameless = |index: u32| !names.contains_key(&index);
                if is_ours(&message) && device(&message).is_some_and(is_nameless) {
                    nameless.push(message);
                } else {
                    routes.extend(route(&message, &names));
                }
            }
        }
        routes.extend(self.routes_by(&nameless, &mut links).await?);
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut dump = self.handle.rule().get(version).execute();
            while let Some(message) =
                dump.try_next().await.or_else(asked(|| "Could not list rules".into()))?
            {
                rules.extend(rule(&message));
            }
        }
        Ok(KernelState { addresses: self.dump_addresses().await?, routes, rules, links })
    }

    /// Routes to devices that a list lacks ([`Self::find_in`] says why). Those are asked for alone and put into it: where a pod's file
    /// is lost, its route alone says which address must not be given to another one.
    async fn routes_by(
        &self,
        routes: &[RouteMessage],
        links: &mut BTreeMap<String, Link>,
    ) -> Result<Vec<Route>, KernelError> {
        let mut found = BTreeMap::new();
        for index in routes.iter().filter_map(device).collect::<BTreeSet<u32>>() {
            // One that is gone has taken its routes along.
            if let Some((name, link)) = self.numbered(index).await? {
                found.insert(index, name.clone());
                links.insert(name, link);
            }
        }
        let names: BTreeMap<u32, &str> = found.iter().map(|(index, name)| (*index, name.as_str())).collect();
        Ok(routes.iter().filter_map(|message| route(message, &names)).collect())
    }

    /// Devices by name.
    ///
    /// # Errors
    /// The dump was refused or cut off.
    pub async fn links(&self) -> Result<BTreeMap<String, Link>, KernelError> {
        let _one = self.dump.lock().await;
        self.dump_links().await
    }

    async fn dump_links(&self) -> Result<BTreeMap<String, Link>, KernelError> {
        // By hand: rtnetlink's own request keeps to itself what flags the answers bear.
        let dump = || {
            let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
            let mut request = NetlinkMessage::from(message);
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            self.handle.clone().request(request)
        };
        steady(dump).await.or_else(asked(|| "Could not list links".into()))
    }

    async fn dump_addresses(&self) -> Result<Vec<(u32, IpNet)>, KernelError> {
        let mut addresses = Vec::new();
        let mut dump = self.handle.address().get().execute();
        while let Some(message) =
            dump.try_next().await.or_else(asked(|| "Could not list addresses".into()))?
        {
            addresses.extend(address(&message));
        }
        Ok(addresses)
    }

    /// Number of a device.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn index(&self, name: &str) -> Result<u32, KernelError> {
        Ok(self.link(name).await?.index)
    }

    /// One device.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn link(&self, name: &str) -> Result<Link, KernelError> {
        let missing = || KernelError {
            what: format!("There is no link {name}"),
            source: rtnetlink::Error::RequestFailed,
        };
        self.find_link(name).await?.ok_or_else(missing)
    }

    /// One device, or that there is none: not the same as not knowing.
    pub(crate) async fn find_link(&self, name: &str) -> Result<Option<Link>, KernelError> {
        // The kernel refuses to look for what no link can be called, instead of saying that there is none.
        if !(1..16).contains(&name.len()) {
            return Ok(None);
        }
        let request = self.handle.link().get().match_name(name.to_owned());
        let found = only(request, || format!("Could not look for link {name}")).await?;
        Ok(found.map(|(_, link)| link))
    }

    /// The same where a list of all devices is at hand. What that lacks is asked for alone: before Linux 6.9 a list leaves out
    /// devices that are there, if others go while it is made.
    pub(crate) async fn find_in(
        &self,
        links: &BTreeMap<String, Link>,
        name: &str,
    ) -> Result<Option<Link>, KernelError> {
        match links.get(name) {
            Some(link) => Ok(Some(link.clone())),
            None => self.find_link(name).await,
        }
    }

    /// Is there a device with this number? It is asked for alone ([`Self::find_in`] says why).
    ///
    /// # Errors
    /// The kernel did not say.
    pub(crate) async fn has_link(&self, index: u32) -> Result<bool, KernelError> {
        Ok(self.numbered(index).await?.is_some())
    }

    /// The device with this number and its name, or that there is none.
    async fn numbered(&self, index: u32) -> Result<Option<(String, Link)>, KernelError> {
        let request = self.handle.link().get().match_index(index);
        only(request, || format!("Could not look for link number {index}")).await
    }

    /// Adds a route, or replaces the one to the same prefix in the same table with the same metric.
    ///
    /// # Errors
    /// Refused, or its device is gone.
    pub async fn put_route(&self, route: &Route) -> Result<(), KernelError> {
        let message = self.route_message(route).await?;
        let result = self.handle.route().add(message).replace().execute().await;
        result.or_else(asked(|| format!("Could not put route {route:?}")))
    }

    /// Removes a route; gone already is fine.
    ///
    /// # Errors
    /// Refused.
    pub async fn remove_route(&self, route: &Route) -> Result<(), KernelError> {
        if let Target::Device { device, .. } = &route.target
            && self.find_link(device).await?.is_none()
        {
            return Ok(()); // With its device, a route is gone too.
        }
        let message = self.route_message(route).await?;
        let result = self.handle.route().del(message).execute().await;
        let gone = [rustix::io::Errno::SRCH, rustix::io::Errno::NOENT, rustix::io::Errno::NODEV];
        tolerate(result, &gone, || format!("Could not remove route {route:?}"))
    }

    async fn route_message(&self, route: &Route) -> Result<RouteMessage, KernelError> {
        let what = || format!("Could not write route {route:?}");
        let invalid = |_| KernelError { what: what(), source: rtnetlink::Error::RequestFailed };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.prefix.addr(), route.prefix.prefix_len())
            .map_err(invalid)?
            .table_id(route.table)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
        if route.metric() != 0 {
            builder = builder.priority(route.metric());
        }
        match &route.target {
            Target::Unreachable => {
                builder = builder.kind(RouteType::Unreachable).scope(RouteScope::Universe);
            }
            Target::Device { device, source } => {
                let scope =
                    if route.prefix.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
                builder =
                    builder.kind(RouteType::Unicast).output_interface(self.index(device).await?).scope(scope);
                if let Some(source) = source {
                    builder = builder.pref_source(*source).map_err(invalid)?;
                }
            }
        }
        Ok(builder.build())
    }

    /// Adds a rule; there already is fine.
    ///
    /// # Errors
    /// Refused.
    pub async fn put_rule(&self, rule: &Rule) -> Result<(), KernelError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        tolerate(request.execute().await, &[rustix::io::Errno::EXIST], || {
            format!("Could not add rule {rule:?}")
        })
    }

    /// Removes a rule; gone already is fine.
    ///
    /// # Errors
    /// Refused.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), KernelError> {
        let result = self.handle.rule().del(rule_message(rule)).execute().await;
        tolerate(result, &[rustix::io::Errno::NOENT], || format!("Could not remove rule {rule:?}"))
    }

    /// Puts a host address on a device, usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// Refused.
    pub async fn put_address(&self, device: &str, address: IpAddr) -> Result<(), KernelError> {
        let index = self.index(device).await?;
        let mut request = self.handle.address().add(index, address, host_length(address)).replace();
        if address.is_ipv6() {
            request.message_mut().header.flags |= netlink_packet_route::address::AddressHeaderFlags::Nodad;
        }
        request.execute().await.or_else(asked(|| format!("Could not put address {address} on {device}")))
    }

    /// Takes a host address from a device; gone already is fine.
    ///
    /// # Errors
    /// Refused.
    pub async fn remove_address(&self, device: &str, address: IpAddr) -> Result<(), KernelError> {
        let index = self.index(device).await?;
        let message = match address {
            IpAddr::V4(v4) => {
                AddressMessageBuilder::<std::net::Ipv4Addr>::new().index(index).address(v4, 32).build()
            }
            IpAddr::V6(v6) => {
                AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index).address(v6, 128).build()
            }
        };
        let result = self.handle.address().del(message).execute().await;
        let gone = [rustix::io::Errno::ADDRNOTAVAIL];
        tolerate(result, &gone, || format!("Could not remove address {address} from {device}"))
    }

    /// Sets the MTU of a device and brings it up.
    ///
    /// # Errors
    /// Refused, or there is no such device.
    pub async fn raise(&self, device: &str, mtu: u32) -> Result<(), KernelError> {
        let index = self.index(device).await?;
        let message = LinkMessageBuilder::<LinkUnspec>::new().index(index).mtu(mtu).up().build();
        let result = self.handle.link().set(message).execute().await;
        result.or_else(asked(|| format!("Could not set MTU {mtu} of {device} and bring it up")))
    }

    /// Makes a kernel WireGuard device; there already is fine.
    ///
    /// # Errors
    /// Refused: most likely the kernel has no WireGuard.
    pub async fn create_wireguard(&self, device: &str) -> Result<(), KernelError> {
        let result = self.handle.link().add(LinkWireguard::new(device).build()).execute().await;
        tolerate(result, &[rustix::io::Errno::EXIST], || {
            format!("Could not create WireGuard device {device}")
        })
    }

    /// Removes a device; gone already is fine. True: it was there.
    ///
    /// # Errors
    /// Refused.
    pub async fn remove_link(&self, device: &str) -> Result<bool, KernelError> {
        let Some(link) = self.find_link(device).await? else { return Ok(false) };
        let result = self.handle.link().del(link.index).execute().await;
        let what = || format!("Could not remove link {device}");
        tolerate(result, &[rustix::io::Errno::NODEV], what)?;
        Ok(true)
    }
}

/// A list of devices that changes are interrupting is made this often.
const ATTEMPTS: u32 = 4;

/// Devices by name, from the answers to `dump`. The kernel says of a list that devices came or went while it was made, since it
/// may have left others out; then it is made again. Where they come and go all the time the last one has to do: of what it
/// lacks, callers ask alone ([`Kernel::find_in`]).
async fn steady<S>(
    mut dump: impl FnMut() -> Result<S, rtnetlink::Error>,
) -> Result<BTreeMap<String, Link>, rtnetlink::Error>
where
    S: Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
{
    let mut links = BTreeMap::new();
    for _ in 0..ATTEMPTS {
        links.clear();
        let mut interrupted = false;
        let mut answers = dump()?;
        while let Some(answer) = answers.next().await {
            let (header, payload) = answer.into_parts();
            interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            match payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                    links.extend(link(&message));
                }
                NetlinkPayload::Error(error) => return Err(rtnetlink::Error::NetlinkError(error)),
                other => {
                    let message = NetlinkMessage::new(header, other);
                    return Err(rtnetlink::Error::UnexpectedMessage(message));
                }
            }
        }
        if !interrupted {
            break;
        }
    }
    Ok(links)
}

/// The device that a request names, or that there is none.
async fn only(
    request: LinkGetRequest,
    what: impl FnOnce() -> String,
) -> Result<Option<(String, Link)>, KernelError> {
    let mut found = request.execute();
    let seen = match found.try_next().await {
        // No word at all, where the connection has ended, does not mean that there is none.
        Ok(message) => message.as_ref().and_then(link).ok_or(rtnetlink::Error::RequestFailed),
        Err(error) if errno(&error) == Some(rustix::io::Errno::NODEV) => return Ok(None),
        Err(error) => Err(error),
    };
    seen.map(Some).or_else(asked(what))
}

fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn link(message: &LinkMessage) -> Option<(String, Link)> {
    let (mut name, mut mtu, mut mac, mut received) = (None, 0, Vec::new(), 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::Address(bytes) => mac.clone_from(bytes),
            LinkAttribute::Stats64(stats) => received = stats.rx_packets,
            _ => {}
        }
    }
    let up = message.header.flags.contains(LinkFlags::Up);
    Some((name?, Link { index: message.header.index, mtu, up, mac, received }))
}

fn address(message: &AddressMessage) -> Option<(u32, IpNet)> {
    // IPv4: Local is the own address, Address the peer's on a point-to-point link. IPv6 has Address alone.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    if message.header.scope == AddressScope::Link {
        return None;
    }
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

/// Number of the device that a route leads to.
fn device(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn route(message: &RouteMessage, names: &BTreeMap<u32, &str>) -> Option<Route> {
    if !is_ours(message) {
        return None;
    }
    let mut table = u32::from(message.header.table);
    let (mut destination, mut device, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(to) => destination = ip(to),
            RouteAttribute::PrefSource(from) => source = ip(from),
            RouteAttribute::Oif(index) => device = names.get(index).map(|name| (*name).to_owned()),
            _ => {}
        }
    }
    let destination = destination.or_else(|| unspecified(message.header.address_family))?;
    let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    let target = if message.header.kind == RouteType::Unreachable {
        Target::Unreachable
    } else {
        Target::Device { device: device?, source }
    };
    Some(Route { table, prefix, target })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn unspecified(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
