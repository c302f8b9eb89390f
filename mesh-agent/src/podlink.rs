//! The veth pair between a pod and its node, made, checked and removed. Nothing here chooses addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::IpNet;
use mesh_core::numbers::TABLE_PODS;
use mesh_core::plan::{Route, Target};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteScope, RouteType};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::host::{Host, SysctlError, pod_veth_sysctls};
use crate::kernel::{Kernel, KernelError, errno};
use crate::netns::{NetnsError, within};

/// What connects one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Name of the end on the host.
    pub veth: String,
    /// Its hardware address.
    pub host_mac: [u8; 6],
    /// Name of the end in the pod.
    pub ifname: String,
    /// Its hardware address.
    pub pod_mac: [u8; 6],
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Address of the pod and the gateway of its default route, per family.
    pub ips: Vec<(IpAddr, IpAddr)>,
    /// Addresses of the node, at most one of each family, from which it speaks to the pod.
    pub home: BTreeSet<IpAddr>,
}

/// Why a pod could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum PodLinkError {
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A netlink request of ours was refused.
    #[error("Could not {what}: {source}")]
    Request {
        /// What was asked.
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A setting of the host's end could not be made.
    #[error(transparent)]
    Setting(#[from] SysctlError),
    /// A sysctl in the pod could not be set.
    #[error("Could not set {path} to {value}: {source}; is /proc/sys/net writable for the agent?")]
    Sysctl {
        /// The file.
        path: String,
        /// What was to be written.
        value: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel took an address and does not receive what is sent to it.
    #[error(
        "the kernel has not made the local route of {address} in the pod's network namespace within {waited} s; \
         is the interface up, and does nobody change the namespace meanwhile?"
    )]
    NotLocal {
        /// The pod's.
        address: IpAddr,
        /// Seconds.
        waited: u64,
    },
    /// The data path is not on the host's end.
    #[error("{0}")]
    DataPath(String),
    /// The interface is there already.
    #[error("interface {0} already exists in the pod's network namespace")]
    Exists(String),
    /// CHECK found something changed.
    #[error("{0}")]
    Changed(String),
}

fn refused(what: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> PodLinkError {
    move |source| PodLinkError::Request { what: what(), source }
}

/// A locally administered unicast hardware address that an attachment always gets again.
pub fn mac(veth: &str, end: &str) -> [u8; 6] {
    let digest = Sha256::new().chain_update(veth).chain_update("/").chain_update(end).finalize();
    // 02: locally administered, unicast (IEEE 802, clause 8.2).
    [0x02, digest[0], digest[1], digest[2], digest[3], digest[4]]
}

/// `02:aa:…` for results.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Makes the pair, addresses and routes of both sides. On failure nothing is left. `guard` gets the index of the host's end
/// before that is up: what it puts there is there before the pod can send.
///
/// # Errors
/// See [`PodLinkError`].
pub async fn connect<R>(
    kernel: &Kernel,
    netns: OwnedFd,
    link: &PodLink,
    guard: impl FnOnce(u32) -> R + Send,
) -> Result<(), PodLinkError>
where
    R: Future<Output = Result<(), String>> + Send,
{
    let copy = netns.try_clone().map_err(NetnsError::Start)?;
    let name = link.ifname.clone();
    if within(copy, async move || has_link(&name).await).await?? {
        return Err(PodLinkError::Exists(link.ifname.clone()));
    }
    // A leftover of our own earlier try, cut off half way: its pod end cannot be where it was wanted.
    kernel.remove_link(&link.veth).await?;
    let result = make(kernel, netns, link, guard).await;
    if result.is_err()
        && let Err(error) = kernel.remove_link(&link.veth).await
    {
        tracing::warn!(veth = link.veth, err = %error, "Could not remove a half-made link");
    }
    result
}

async fn has_link(name: &str) -> Result<bool, KernelError> {
    let kernel = Kernel::connect().map_err(KernelError::socket)?;
    Ok(kernel.links().await?.contains_key(name))
}

async fn make<R>(
    kernel: &Kernel,
    netns: OwnedFd,
    link: &PodLink,
    guard: impl FnOnce(u32) -> R + Send,
) -> Result<(), PodLinkError>
where
    R: Future<Output = Result<(), String>> + Send,
{
    create_pair(kernel, &netns, link).await?;
    host_sysctls(link)?;
    let index = kernel.index(&link.veth).await?;
    guard(index).await.map_err(PodLinkError::DataPath)?;
    let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).mtu(link.mtu).up().build();
    let what = || format!("bring up {}", link.veth);
    kernel.handle().link().set(up).execute().await.map_err(refused(what))?;
    let inside = link.clone();
    within(netns, async move || inside_pod(&inside).await).await??;
    for (address, _) in &link.ips {
        neighbour(kernel, index, *address, link.pod_mac).await?;
        let source = link.home.iter().copied().find(|home| mesh_core::prefix::same_family(*home, *address));
        let target = Target::Device { device: link.veth.clone(), source };
        kernel.put_route(&Route { table: TABLE_PODS, prefix: IpNet::from(*address), target }).await?;
    }
    Ok(())
}

async fn create_pair(kernel: &Kernel, netns: &OwnedFd, link: &PodLink) -> Result<(), PodLinkError> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(link.ifname.clone()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::Address(link.pod_mac.to_vec()),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(link.veth.clone()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::Address(link.host_mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let what = || format!("create the link {} and its end {} in the pod", link.veth, link.ifname);
    kernel.handle().link().add(message).execute().await.map_err(refused(what))
}

/// Settings of the host's end, before it is up.
fn host_sysctls(link: &PodLink) -> Result<(), PodLinkError> {
    let family = |v4: bool| link.ips.iter().any(|(address, _)| address.is_ipv4() == v4);
    let proc_sys = crate::container::proc_sys();
    let kernel_ipv6 = proc_sys.join("net/ipv6").exists();
    let mut settings = pod_veth_sysctls(&link.veth, family(true), family(false), kernel_ipv6);
    settings.retain(|setting| proc_sys.join(&setting.key).exists());
    Ok(Host::default().set(&settings)?)
}

fn set(path: &str, value: &'static str) -> Result<(), PodLinkError> {
    std::fs::write(path, value).map_err(|source| PodLinkError::Sysctl {
        path: path.to_owned(),
        value,
        source,
    })
}

async fn inside_pod(link: &PodLink) -> Result<(), PodLinkError> {
    let kernel = Kernel::connect().map_err(KernelError::socket)?;
    let ipv6 = link.ips.iter().any(|(address, _)| address.is_ipv6());
    if ipv6 {
        // Some runtimes make namespaces without IPv6; duplicate address detection has nobody to ask on this link.
        let conf = format!("{}/net/ipv6/conf", crate::container::proc_sys().display());
        set(&format!("{conf}/lo/disable_ipv6"), "0")?;
        let base = format!("{conf}/{}", link.ifname);
        set(&format!("{base}/disable_ipv6"), "0")?;
        set(&format!("{base}/accept_ra"), "0")?;
        set(&format!("{base}/accept_dad"), "0")?;
    }
    for name in ["lo", link.ifname.as_str()] {
        let index = kernel.index(name).await?;
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        let what = || format!("bring up {name} in the pod");
        kernel.handle().link().set(up).execute().await.map_err(refused(what))?;
    }
    let index = kernel.index(&link.ifname).await?;
    for (address, gateway) in &link.ips {
        kernel.put_address(&link.ifname, *address).await?;
        neighbour(&kernel, index, *gateway, link.host_mac).await?;
        pod_routes(&kernel, index, *address, *gateway).await?;
    }
    for (address, _) in &link.ips {
        await_local(&kernel, *address).await?;
    }
    Ok(())
}

/// Waits until the pod receives what is sent to its address. An IPv6 address is a source at once, but the kernel makes its
/// local route later, in a worker (`addrconf_dad_work`): an answer to the pod's first packet could come before that, and
/// would be dropped.
async fn await_local(kernel: &Kernel, address: IpAddr) -> Result<(), PodLinkError> {
    /// Far more than a worker needs that has to wait for others at the kernel's lock of all networking.
    const PATIENCE: Duration = Duration::from_secs(5);
    const LOOK: Duration = Duration::from_micros(500);
    let begun = tokio::time::Instant::now();
    while !is_local(kernel, address).await? {
        if begun.elapsed() > PATIENCE {
            let waited = PATIENCE.as_secs();
            return Err(PodLinkError::NotLocal { address, waited });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Does the kernel of this namespace receive what is sent to this address?
async fn is_local(kernel: &Kernel, address: IpAddr) -> Result<bool, PodLinkError> {
    const UNREACHABLE: [Errno; 2] = [Errno::NETUNREACH, Errno::HOSTUNREACH];
    let what = || format!("look up the route to {address} in the pod");
    let invalid = |_| PodLinkError::Request { what: what(), source: rtnetlink::Error::RequestFailed };
    let request = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, IpNet::from(address).prefix_len())
        .map_err(invalid)?
        .build();
    let mut found = kernel.handle().route().get(request).execute();
    match found.try_next().await {
        Ok(route) => Ok(route.is_some_and(|route| route.header.kind == RouteType::Local)),
        Err(error) if errno(&error).is_some_and(|errno| UNREACHABLE.contains(&errno)) => Ok(false),
        Err(source) => Err(PodLinkError::Request { what: what(), source }),
    }
}

/// The gateway is on no common subnet (the pod's address is a host address): a route to it, and the default by it.
async fn pod_routes(
    kernel: &Kernel,
    index: u32,
    address: IpAddr,
    gateway: IpAddr,
) -> Result<(), PodLinkError> {
    let what = || format!("route the pod by its gateway {gateway}");
    let invalid = |_| PodLinkError::Request { what: what(), source: rtnetlink::Error::RequestFailed };
    let length = IpNet::from(gateway).prefix_len();
    let scope = if gateway.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    let direct = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(gateway, length)
        .map_err(invalid)?
        .output_interface(index)
        .scope(scope)
        .kind(RouteType::Unicast);
    let direct = if gateway.is_ipv4() { direct.pref_source(address).map_err(invalid)? } else { direct };
    kernel.handle().route().add(direct.build()).replace().execute().await.map_err(refused(what))?;
    let any: IpAddr = if gateway.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() };
    let default = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(any, 0)
        .map_err(invalid)?
        .output_interface(index)
        .gateway(gateway)
        .map_err(invalid)?
        .onlink()
        .kind(RouteType::Unicast);
    kernel.handle().route().add(default.build()).replace().execute().await.map_err(refused(what))
}

async fn neighbour(kernel: &Kernel, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), PodLinkError> {
    let request = kernel.handle().neighbours().add(index, address);
    let request = request.link_layer_address(&mac).state(NeighbourState::Permanent).replace();
    request.execute().await.map_err(refused(|| format!("set the neighbour {address}")))
}

/// Is everything that [`connect`] made still there? Of default routes those by the gateways in `defaults`.
///
/// # Errors
/// [`PodLinkError::Changed`] says what is not.
pub async fn check(
    kernel: &Kernel,
    netns: OwnedFd,
    link: &PodLink,
    defaults: BTreeSet<IpAddr>,
) -> Result<(), PodLinkError> {
    let changed = |text: String| Err(PodLinkError::Changed(text));
    let state = kernel.observe().await?;
    let Some(host) = state.links.get(&link.veth) else {
        return changed(format!("link {} is gone from the node", link.veth));
    };
    if !host.up {
        return changed(format!("link {} is down on the node", link.veth));
    }
    for (address, _) in &link.ips {
        // The node's own addresses come and go.
        let led = |route: &Route| {
            let to_pod = matches!(&route.target, Target::Device { device, .. } if *device == link.veth);
            route.table == TABLE_PODS && route.prefix == IpNet::from(*address) && to_pod
        };
        if !state.routes.iter().any(led) {
            return changed(format!("route to {address} by {} is gone from the node", link.veth));
        }
    }
    let inside = link.clone();
    within(netns, async move || check_inside(&inside, &defaults).await).await?
}

async fn check_inside(link: &PodLink, defaults: &BTreeSet<IpAddr>) -> Result<(), PodLinkError> {
    let changed = |text: String| Err(PodLinkError::Changed(text));
    let kernel = Kernel::connect().map_err(KernelError::socket)?;
    let state = kernel.observe().await?;
    let Some(own) = state.links.get(&link.ifname) else {
        return changed(format!("interface {} is gone from the pod", link.ifname));
    };
    if !own.up {
        return changed(format!("interface {} is down in the pod", link.ifname));
    }
    for (address, gateway) in &link.ips {
        if !state.addresses.contains(&(own.index, IpNet::from(*address))) {
            return changed(format!("address {address} is gone from {} in the pod", link.ifname));
        }
        if defaults.contains(gateway) && !has_default_route(&kernel, own.index, *gateway).await? {
            return changed(format!("the default route by {gateway} is gone from the pod"));
        }
    }
    Ok(())
}

async fn has_default_route(kernel: &Kernel, index: u32, gateway: IpAddr) -> Result<bool, PodLinkError> {
    use netlink_packet_route::route::RouteAttribute as A;
    let request = if gateway.is_ipv4() {
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
    } else {
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
    };
    let mut dump = kernel.handle().route().get(request).execute();
    let what = || "list the pod's routes".to_owned();
    while let Some(route) = dump.try_next().await.map_err(refused(what))? {
        let by = route.attributes.contains(&A::Gateway(gateway.into()));
        if route.header.destination_prefix_length == 0 && by && route.attributes.contains(&A::Oif(index)) {
            return Ok(true);
        }
    }
    Ok(false)
}
