//! Small asynchronous helpers on rtnetlink, for the network namespace of the calling thread.

mod types;

use crate::error::{Context, LabError, NetlinkContext};
use crate::link::MacAddr;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::NeighbourAddress;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{
    Handle, IpVersion, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
pub use types::{Link, Neighbour, Route, Rule};

pub mod sysctl;

/// The main routing table, `RT_TABLE_MAIN` in linux/rtnetlink.h.
pub const TABLE_MAIN: u32 = 254;

/// A netlink socket in the network namespace of the thread that connected it.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Opens a socket. Must be called inside a tokio runtime, whose threads are in the wanted namespace:
    /// [`crate::Namespace::netlink`] and [`crate::Namespace::block_on`] are.
    pub fn connect() -> Result<Self, LabError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("open", "a route netlink socket")?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// The rtnetlink handle, for requests that have no helper here.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// All devices.
    pub async fn links(&self) -> Result<Vec<Link>, LabError> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.netlink("list", "devices")?;
        Ok(messages.iter().map(Link::from_message).collect())
    }

    /// One device by name.
    pub async fn link(&self, name: &str) -> Result<Link, LabError> {
        check_name(name)?;
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        match Box::pin(request).next().await {
            Some(Ok(message)) => Ok(Link::from_message(&message)),
            Some(Err(rtnetlink::Error::NetlinkError(e)))
                if e.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
            {
                Err(LabError::NoDevice { device: name.to_owned() })
            }
            Some(Err(e)) => Err(e).netlink("look up device", name),
            None => Err(LabError::NoDevice { device: name.to_owned() }),
        }
    }

    /// Index of a device.
    pub async fn link_index(&self, name: &str) -> Result<u32, LabError> {
        Ok(self.link(name).await?.index)
    }

    /// Makes a veth pair: `near` in this namespace, `far` in `far_netns`. Both ends are down and, if they
    /// are in one namespace, must have different names.
    pub async fn veth_add(
        &self,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        far_netns: BorrowedFd<'_>,
    ) -> Result<(), LabError> {
        check_name(near.name)?;
        check_name(far.name)?;
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(far.name)
            .address(far.mac.octets().to_vec())
            .mtu(far.mtu)
            .setns_by_fd(far_netns.as_raw_fd())
            .build();
        let message = LinkVeth::new(near.name, far.name)
            .address(near.mac.octets().to_vec())
            .mtu(near.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        let object = format!("veth pair {} - {}", near.name, far.name);
        self.handle.link().add(message).execute().await.netlink("make", object)
    }

    /// Makes a bridge without spanning tree and multicast snooping.
    pub async fn bridge_add(&self, name: &str) -> Result<(), LabError> {
        check_name(name)?;
        let bridge = LinkBridge::new(name).mcast_snooping(false).build();
        self.handle.link().add(bridge).execute().await.netlink("make bridge", name)
    }

    async fn link_set(
        &self,
        action: &'static str,
        name: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), LabError> {
        let index = self.link_index(name).await?;
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.netlink(action, name)
    }

    /// Brings a device up.
    pub async fn link_up(&self, name: &str) -> Result<(), LabError> {
        self.link_set("bring up", name, LinkMessageBuilder::up).await
    }

    /// Takes a device down.
    pub async fn link_down(&self, name: &str) -> Result<(), LabError> {
        self.link_set("take down", name, LinkMessageBuilder::down).await
    }

    /// Sets the MTU in bytes.
    pub async fn link_mtu(&self, name: &str, mtu: u32) -> Result<(), LabError> {
        self.link_set("set the MTU of", name, |l| l.mtu(mtu)).await
    }

    /// Sets the hardware address.
    pub async fn link_mac(&self, name: &str, mac: MacAddr) -> Result<(), LabError> {
        self.link_set("set the hardware address of", name, |l| l.address(mac.octets().to_vec())).await
    }

    /// Makes a device a port of the bridge `controller`.
    pub async fn link_controller(&self, name: &str, controller: &str) -> Result<(), LabError> {
        let controller = self.link_index(controller).await?;
        self.link_set("attach to a bridge", name, |l| l.controller(controller)).await
    }

    /// Moves a device to another network namespace. It loses its addresses and is down there.
    pub async fn link_move(&self, name: &str, netns: BorrowedFd<'_>) -> Result<(), LabError> {
        let fd = netns.as_raw_fd();
        self.link_set("move to another namespace", name, |l| l.setns_by_fd(fd)).await
    }

    /// Deletes a device (and the peer of a veth).
    pub async fn link_del(&self, name: &str) -> Result<(), LabError> {
        let index = self.link_index(name).await?;
        self.handle.link().del(index).execute().await.netlink("delete device", name)
    }

    /// Adds an address, without duplicate address detection.
    pub async fn addr_add(&self, device: &str, address: IpNet) -> Result<(), LabError> {
        let index = self.link_index(device).await?;
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.netlink("add address", format!("{address} on {device}"))
    }

    /// Removes an address.
    pub async fn addr_del(&self, device: &str, address: IpNet) -> Result<(), LabError> {
        let object = format!("{address} on {device}");
        let index = self.link_index(device).await?;
        let request =
            self.handle.address().get().set_link_index_filter(index).set_address_filter(address.addr());
        let found: Vec<_> = request.execute().try_collect().await.netlink("look up address", &object)?;
        for message in found {
            self.handle.address().del(message).execute().await.netlink("delete address", &object)?;
        }
        Ok(())
    }

    /// The addresses of a device, link-local ones included.
    pub async fn addrs(&self, device: &str) -> Result<Vec<IpNet>, LabError> {
        let index = self.link_index(device).await?;
        let request = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<_> = request.try_collect().await.netlink("list addresses of", device)?;
        Ok(messages
            .iter()
            .filter_map(|m| {
                let find = |local| {
                    m.attributes.iter().find_map(|a| match (a, local) {
                        (AddressAttribute::Local(ip), true) | (AddressAttribute::Address(ip), false) => {
                            Some(*ip)
                        }
                        _ => None,
                    })
                };
                IpNet::new(find(true).or_else(|| find(false))?, m.header.prefix_len).ok()
            })
            .collect())
    }

    /// Adds a route; an equal one is an error.
    pub async fn route_add(&self, route: &Route) -> Result<(), LabError> {
        let message = self.route_message(route).await?;
        self.handle.route().add(message).execute().await.netlink("add route", route)
    }

    /// Adds a route or replaces the one with the same destination, table and metric.
    pub async fn route_replace(&self, route: &Route) -> Result<(), LabError> {
        let message = self.route_message(route).await?;
        self.handle.route().add(message).replace().execute().await.netlink("replace route", route)
    }

    /// Deletes a route.
    pub async fn route_del(&self, route: &Route) -> Result<(), LabError> {
        let message = self.route_message(route).await?;
        self.handle.route().del(message).execute().await.netlink("delete route", route)
    }

    async fn route_message(&self, route: &Route) -> Result<RouteMessage, LabError> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.destination.addr(), route.destination.prefix_len())
            .map_err(|e| rtnetlink::Error::InvalidNla(e.to_string()))
            .netlink("describe route", route)?
            .table_id(route.table);
        if let Some(via) = route.via {
            builder = builder
                .gateway(via)
                .map_err(|e| rtnetlink::Error::InvalidNla(e.to_string()))
                .netlink("describe route", route)?;
        }
        if let Some(source) = route.source {
            builder = builder
                .pref_source(source)
                .map_err(|e| rtnetlink::Error::InvalidNla(e.to_string()))
                .netlink("describe route", route)?;
        }
        if let Some(device) = &route.device {
            builder = builder.output_interface(self.link_index(device).await?);
        }
        if let Some(metric) = route.metric {
            builder = builder.priority(metric);
        }
        if route.onlink {
            builder = builder.onlink();
        }
        let mut message = builder.build();
        if let Some(mtu) = route.mtu {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        Ok(message)
    }

    /// The unicast routes of a table, both families.
    pub async fn routes(&self, table: u32) -> Result<Vec<Route>, LabError> {
        let links = self.links().await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let messages: Vec<_> =
                self.handle.route().get(query).execute().try_collect().await.netlink("list", "routes")?;
            routes.extend(
                messages.iter().filter_map(|m| Route::from_message(m, &links)).filter(|r| r.table == table),
            );
        }
        Ok(routes)
    }

    /// Adds a policy routing rule.
    pub async fn rule_add(&self, rule: &Rule) -> Result<(), LabError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.to_message();
        request.execute().await.netlink("add rule", rule)
    }

    /// Deletes a policy routing rule.
    pub async fn rule_del(&self, rule: &Rule) -> Result<(), LabError> {
        self.handle.rule().del(rule.to_message()).execute().await.netlink("delete rule", rule)
    }

    /// The policy routing rules of both families that look up a table.
    pub async fn rules(&self) -> Result<Vec<Rule>, LabError> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let messages: Vec<RuleMessage> =
                self.handle.rule().get(version).execute().try_collect().await.netlink("list", "rules")?;
            rules.extend(messages.iter().filter_map(Rule::from_message));
        }
        Ok(rules)
    }

    /// Adds or replaces a permanent neighbour entry.
    pub async fn neigh_add(&self, device: &str, address: IpAddr, mac: MacAddr) -> Result<(), LabError> {
        let index = self.link_index(device).await?;
        let request =
            self.handle.neighbours().add(index, address).link_layer_address(&mac.octets()).replace();
        request.execute().await.netlink("add neighbour", format!("{address} on {device}"))
    }

    /// The neighbour entries of a device.
    pub async fn neighs(&self, device: &str) -> Result<Vec<Neighbour>, LabError> {
        let index = self.link_index(device).await?;
        let messages: Vec<_> = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .netlink("list neighbours of", device)?;
        let of_device = messages.iter().filter(|m| m.header.ifindex == index);
        Ok(of_device.filter_map(Neighbour::from_message).collect())
    }
}

/// One end of a veth pair to make.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Device name.
    pub name: &'a str,
    /// Hardware address.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
}

/// The kernel's rule for device names (`dev_valid_name`).
fn check_name(name: &str) -> Result<(), LabError> {
    let bad = name.is_empty()
        || name.len() > 15
        || name == "."
        || name == ".."
        || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if bad { Err(LabError::BadDeviceName { device: name.to_owned() }) } else { Ok(()) }
}

fn route_address(ip: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = ip {
        return Some((*v4).into());
    }
    if let RouteAddress::Inet6(v6) = ip { Some((*v6).into()) } else { None }
}

fn neighbour_address(ip: &NeighbourAddress) -> Option<IpAddr> {
    if let NeighbourAddress::Inet(v4) = ip {
        return Some((*v4).into());
    }
    if let NeighbourAddress::Inet6(v6) = ip { Some((*v6).into()) } else { None }
}

fn is_up(message: &LinkMessage) -> bool {
    message.header.flags.contains(LinkFlags::Up)
}

fn mac_of(attribute: &LinkAttribute) -> Option<MacAddr> {
    if let LinkAttribute::Address(bytes) = attribute {
        <[u8; 6]>::try_from(&bytes[..]).ok().map(MacAddr::new)
    } else {
        None
    }
}

fn lookup_action() -> RuleAction {
    RuleAction::ToTable
}

fn rule_family(rule: &Rule) -> AddressFamily {
    if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn priority_of(attribute: &RuleAttribute) -> Option<u32> {
    if let RuleAttribute::Priority(p) = attribute { Some(*p) } else { None }
}
