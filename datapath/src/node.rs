//! What the programs know of this node: its pods, its addresses, what the guard keeps from uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;

use ipnet::IpNet;

use crate::abi::{self, Addr, HW_ENDPOINT_SLOW, HW_STATE_FLOWS, Prefix, Side};
use crate::error::{Error, Result};
use crate::load::Datapath;
use crate::map::Keyed;
use crate::program::LinkKind;

/// A pod of this node, as its link is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The only IPv4 address it may speak from.
    pub ip4: Option<Ipv4Addr>,
    /// The only IPv6 address it may speak from, besides link-local ones for neighbour discovery.
    pub ip6: Option<Ipv6Addr>,
    /// Hardware address of the pod's interface.
    pub pod_mac: [u8; 6],
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// Its packets go by the stack, since its link is shaped.
    pub slow: bool,
}

/// Where an address of this node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Local {
    /// It is the node's own.
    Node,
    /// In the pod behind the link with this index.
    Pod(u32),
}

impl From<abi::Endpoint> for Endpoint {
    fn from(value: abi::Endpoint) -> Self {
        Self {
            ip4: value.ip4.some_ip().and_then(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            }),
            ip6: value.ip6.some_ip().and_then(|ip| match ip {
                IpAddr::V4(_) => None,
                IpAddr::V6(ip) => Some(ip),
            }),
            pod_mac: value.pod_mac,
            host_mac: value.host_mac,
            slow: value.flags & HW_ENDPOINT_SLOW != 0,
        }
    }
}

impl Endpoint {
    fn with_sides(self, side: [Side; 2]) -> abi::Endpoint {
        abi::Endpoint {
            ip4: self.ip4.map_or(Addr::NONE, Addr::from),
            ip6: self.ip6.map_or(Addr::NONE, Addr::from),
            pod_mac: self.pod_mac,
            host_mac: self.host_mac,
            flags: if self.slow { HW_ENDPOINT_SLOW } else { 0 },
            side,
        }
    }
}

impl Datapath {
    /// A pod is behind this link. A new one is closed but for its own node until policy is applied; one that is there
    /// keeps its policy.
    pub fn put_endpoint(&self, ifindex: u32, endpoint: &Endpoint) -> Result<()> {
        let _guard = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let map = &self.maps().endpoints;
        let side = map.get(&ifindex)?.map_or([Side::CLOSED; 2], |before| before.side);
        map.put(&ifindex, &endpoint.with_sides(side))
    }

    /// Nobody is behind this link any more: whatever it still sends is dropped. Returns whether somebody was.
    pub fn remove_endpoint(&self, ifindex: u32) -> Result<bool> {
        let _guard = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        self.maps().endpoints.delete(&ifindex)
    }

    /// All pods of this node.
    pub fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>> {
        let all = self.maps().endpoints.entries()?;
        Ok(all.into_iter().map(|(ifindex, endpoint)| (ifindex, endpoint.into())).collect())
    }

    /// Policy of all pods of this node, by bank.
    pub(crate) fn sides(&self) -> Result<BTreeMap<u32, [Side; 2]>> {
        let all = self.maps().endpoints.entries()?;
        Ok(all.into_iter().map(|(ifindex, endpoint)| (ifindex, endpoint.side)).collect())
    }

    /// Sets both sides of an endpoint. One that is gone meanwhile stays away.
    pub(crate) fn set_sides(&self, ifindex: u32, sides: [Side; 2]) -> Result<()> {
        let _guard = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let map = &self.maps().endpoints;
        let Some(before) = map.get(&ifindex)? else { return Ok(()) };
        map.put(&ifindex, &abi::Endpoint { side: sides, ..before })
    }

    /// An address lives here.
    pub fn put_local(&self, address: IpAddr, local: Local) -> Result<()> {
        let ifindex = match local {
            Local::Node => 0,
            Local::Pod(ifindex) => ifindex,
        };
        self.maps().locals.put(&address.into(), &abi::Local { ifindex, flags: 0 })
    }

    /// An address does not live here any more. Returns whether it did.
    pub fn remove_local(&self, address: IpAddr) -> Result<bool> {
        self.maps().locals.delete(&address.into())
    }

    /// All addresses that live here.
    pub fn locals(&self) -> Result<BTreeMap<IpAddr, Local>> {
        let local = |local: abi::Local| match local.ifindex {
            0 => Local::Node,
            ifindex => Local::Pod(ifindex),
        };
        let all = self.maps().locals.entries()?;
        Ok(all.into_iter().map(|(address, value)| (address.ip(), local(value))).collect())
    }

    /// What links are to the programs: [`Datapath::attach`] and [`Datapath::detach`] keep it. A kind that is none of ours
    /// is left out.
    pub fn devices(&self) -> Result<BTreeMap<u32, LinkKind>> {
        let all = self.maps().devices.entries()?;
        Ok(all
            .into_iter()
            .filter_map(|(ifindex, kind)| Some((ifindex, LinkKind::from_number(kind)?)))
            .collect())
    }

    /// Prefixes that the guard keeps from uplinks, whichever end of a packet lies in them. New ones are there before old ones
    /// go. Returns whether anything changed.
    pub fn set_guarded(&self, prefixes: &BTreeSet<IpNet>) -> Result<bool> {
        set_prefixes(&self.maps().guarded, prefixes)
    }

    /// Prefixes that a packet's other end may lie in, so that the guard lets it pass.
    pub fn set_exempt(&self, prefixes: &BTreeSet<IpNet>) -> Result<bool> {
        set_prefixes(&self.maps().exempt, prefixes)
    }

    /// Prefixes that the guard keeps from uplinks.
    pub fn guarded(&self) -> Result<BTreeSet<IpNet>> {
        prefixes(&self.maps().guarded)
    }

    /// Prefixes that the guard exempts.
    pub fn exempt(&self) -> Result<BTreeSet<IpNet>> {
        prefixes(&self.maps().exempt)
    }

    /// Gives first packets of peers that nobody has told us of to this link, or drops them. Returns whether that changed.
    pub fn set_hold(&self, ifindex: Option<u32>) -> Result<bool> {
        self.change_state(|state| state.hold = ifindex.unwrap_or(0))
    }

    /// The link that first packets of unknown peers are given to.
    pub fn hold(&self) -> Result<Option<u32>> {
        Ok(Some(self.maps().state.get(0)?.hold).filter(|ifindex| *ifindex != 0))
    }

    /// Whether flow events are written. Returns whether that changed.
    pub fn set_flow_events(&self, on: bool) -> Result<bool> {
        self.change_state(|state| {
            state.flags = if on { state.flags | HW_STATE_FLOWS } else { state.flags & !HW_STATE_FLOWS };
        })
    }

    /// The epoch that new packets are judged by.
    pub fn epoch(&self) -> Result<u32> {
        Ok(self.maps().state.get(0)?.epoch)
    }

    pub(crate) fn set_epoch(&self, epoch: u32) -> Result<()> {
        self.change_state(|state| state.epoch = epoch).map(drop)
    }

    fn change_state(&self, change: impl FnOnce(&mut abi::State)) -> Result<bool> {
        // The same lock as the endpoints': both are changed rarely, and from few threads.
        let _guard = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.maps().state.get(0)?;
        let mut state = before;
        change(&mut state);
        if state != before {
            self.maps().state.set(0, &state)?;
        }
        Ok(state != before)
    }
}

/// Every entry of a map of prefixes; one that is none of ours is an error, since nobody knows what it does.
fn prefixes(map: &Keyed<Prefix, u32>) -> Result<BTreeSet<IpNet>> {
    let net = |prefix: Prefix| {
        prefix.net().ok_or_else(|| Error::Object(format!("a map holds {prefix:?}, which is no prefix")))
    };
    map.entries()?.into_iter().map(|(prefix, _)| net(prefix)).collect()
}

fn set_prefixes(map: &Keyed<Prefix, u32>, wanted: &BTreeSet<IpNet>) -> Result<bool> {
    let found: BTreeSet<Prefix> = map.entries()?.into_iter().map(|(prefix, _)| prefix).collect();
    let wanted: BTreeSet<Prefix> = wanted.iter().map(|net| Prefix::from(*net)).collect();
    for prefix in wanted.difference(&found) {
        map.put(prefix, &1)?;
    }
    for prefix in found.difference(&wanted) {
        map.delete(prefix)?;
    }
    Ok(found != wanted)
}
