//! Services in the maps, and what a former agent left there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesh_core::policy::model::Protocol;
use mesh_core::service::tables::{Backend, BackendId, Delta, Frontend, FrontendKey, ServiceNumber, State};

use crate::abi::{self, HW_BACKEND_LEAVING};
use crate::error::{Error, Result};
use crate::load::Datapath;

/// What a former agent left in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledServices {
    /// For `mesh_core::service::Compiler::adopt`.
    pub state: State,
    /// No number of a service or a backend that any map mentions is above it: flows and affinities included.
    pub highest: u32,
}

fn key_of(key: &FrontendKey) -> abi::FrontendKey {
    abi::FrontendKey {
        addr: key.addr.into(),
        port: key.port.into(),
        protocol: key.protocol.map_or(0, Protocol::number),
        pad: 0,
    }
}

fn key_from(key: &abi::FrontendKey) -> Result<FrontendKey> {
    let protocol = match key.protocol {
        0 => None,
        number => {
            Some(Protocol::ALL.into_iter().find(|known| known.number() == number).ok_or_else(|| {
                Error::Object(format!(
                    "the map frontends holds {key:?}, whose protocol is none of TCP, UDP and SCTP"
                ))
            })?)
        }
    };
    Ok(FrontendKey { addr: key.addr.ip(), port: key.port.get(), protocol })
}

fn frontend_of(value: &Frontend) -> abi::Frontend {
    abi::Frontend {
        base: value.base,
        count: value.count,
        service: value.service.0,
        affinity: value.affinity,
        flags: value.flags,
        pad: 0,
    }
}

fn frontend_from(value: &abi::Frontend) -> Frontend {
    Frontend {
        base: value.base,
        count: value.count,
        service: ServiceNumber(value.service),
        affinity: value.affinity,
        flags: value.flags,
    }
}

fn backend_of(value: &Backend) -> abi::Backend {
    let flags = if value.leaving { HW_BACKEND_LEAVING } else { 0 };
    abi::Backend { addr: value.addr.ip().into(), port: value.addr.port().into(), flags, pad: 0 }
}

fn backend_from(value: &abi::Backend) -> Backend {
    let ip: IpAddr = value.addr.ip();
    Backend { addr: SocketAddr::new(ip, value.port.get()), leaving: value.flags & HW_BACKEND_LEAVING != 0 }
}

impl Datapath {
    /// Does what a delta says, in its order. Doing it again changes nothing, so after an error the same delta is to be applied
    /// once more before the next.
    ///
    /// When [`Datapath::wait_for_packets`] returned after it, `Compiler::quiesced` may be told.
    pub fn apply_services(&self, delta: &Delta) -> Result<()> {
        let maps = self.maps();
        for (id, backend) in &delta.backends_set {
            maps.backends.put(&id.0, &backend_of(backend))?;
        }
        for run in &delta.places {
            let numbers: Vec<u32> = run.backends.iter().map(|id| id.0).collect();
            maps.places.set_range(run.first, &numbers)?;
        }
        for (key, frontend) in &delta.frontends_set {
            maps.frontends.put(&key_of(key), &frontend_of(frontend))?;
        }
        for key in &delta.frontends_removed {
            maps.frontends.delete(&key_of(key))?;
        }
        for id in &delta.backends_removed {
            maps.backends.delete(&id.0)?;
        }
        // Nobody finds the affinities of services that are gone; their time ends them.
        Ok(())
    }

    /// What is in the maps.
    ///
    /// # Errors
    /// A map cannot be read, or holds what no agent writes: then [`Datapath::clear_services`] is the remedy.
    pub fn installed_services(&self) -> Result<InstalledServices> {
        let maps = self.maps();
        let mut state = State::default();
        for (key, value) in maps.frontends.entries()? {
            state.frontends.insert(key_from(&key)?, frontend_from(&value));
        }
        for (number, value) in maps.backends.entries()? {
            state.backends.insert(BackendId(number), backend_from(&value));
        }
        let regions: BTreeMap<u32, u32> =
            state.frontends.values().filter(|f| f.count > 0).map(|f| (f.base, f.count)).collect();
        for (base, count) in regions {
            let places = maps.places.range(base, count)?;
            state.tables.insert(base, places.into_iter().map(BackendId).collect());
        }
        let highest = self.highest_number(&state)?;
        Ok(InstalledServices { state, highest })
    }

    fn highest_number(&self, state: &State) -> Result<u32> {
        let mut highest = state.backends.keys().map(|id| id.0).max().unwrap_or(0);
        highest = highest.max(state.frontends.values().map(|f| f.service.0).max().unwrap_or(0));
        highest = highest.max(state.tables.values().flatten().map(|id| id.0).max().unwrap_or(0));
        let maps = self.maps();
        maps.affinities.walk(maps.affinities.capacity(), |key, value| {
            highest = highest.max(key.service).max(value.backend);
        })?;
        maps.flows.walk(maps.flows.capacity(), |_, flow| highest = highest.max(flow.service))?;
        Ok(highest)
    }

    /// Takes all services away: pods reach none until the next delta. What clients were given before goes on.
    pub fn clear_services(&self) -> Result<()> {
        let maps = self.maps();
        let keys: Vec<_> = maps.frontends.entries()?.into_iter().map(|(key, _)| key).collect();
        maps.frontends.delete_all(&keys)?;
        let keys: Vec<_> = maps.backends.entries()?.into_iter().map(|(key, _)| key).collect();
        maps.backends.delete_all(&keys).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_of_services_come_back() {
        let addr: IpAddr = "10.96.0.10".parse().unwrap();
        let keys = [
            FrontendKey { addr, port: 53, protocol: Some(Protocol::Udp) },
            FrontendKey::node_port(addr, 30_000, Protocol::Sctp),
            FrontendKey::node_port("::1".parse().unwrap(), 30_000, Protocol::Tcp),
            FrontendKey::address(addr),
        ];
        for key in keys {
            assert_eq!(key_from(&key_of(&key)).unwrap(), key);
        }
        // Any node's IPv4 address is mapped, any node's IPv6 address all zeros (abi.h).
        assert_eq!(key_of(&keys[1]).addr.w[8..], [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(key_of(&keys[2]).addr.w, [0; 16]);
        let frontend = Frontend { base: 7, count: 251, service: ServiceNumber(3), affinity: 60, flags: 1 };
        assert_eq!(frontend_from(&frontend_of(&frontend)), frontend);
        for leaving in [true, false] {
            let backend = Backend { addr: "[fd00::7]:8080".parse().unwrap(), leaving };
            assert_eq!(backend_from(&backend_of(&backend)), backend);
        }
        let strange = abi::FrontendKey { protocol: 47, ..key_of(&keys[0]) };
        assert!(key_from(&strange).unwrap_err().to_string().contains("frontends"));
    }
}
