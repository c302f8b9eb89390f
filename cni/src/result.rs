//! Results: ours, merged with that of earlier plugins (SPEC.md "Section 5").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proto::cni::{Attached, ExpectedRoute};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::json::Field;
use crate::version::SpecVersion;

/// A `prevResult` whose interfaces, addresses and routes we understand. Everything else in it is kept as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Previous {
    raw: Map<String, Value>,
    interfaces: Vec<PreviousInterface>,
    ips: Vec<PreviousIp>,
    routes: Vec<ExpectedRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PreviousInterface {
    name: String,
    sandbox: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PreviousIp {
    address: IpAddr,
    interface: Option<usize>,
}

impl Previous {
    /// Reads a `prevResult`.
    ///
    /// # Errors
    /// Code 7, naming the key that is malformed.
    pub(crate) fn parse(field: &Field<'_>) -> Result<Self, Error> {
        let object = field.object()?;
        let list = |key| object.get(key).map_or(Ok(Vec::new()), |field| field.array());
        let remedy = "correct the plugin that made prevResult";
        let mut interfaces = Vec::new();
        for entry in list("interfaces")? {
            let entry = entry.object()?;
            let name = entry.required("name", remedy)?.string()?.to_owned();
            let sandbox = entry.get("sandbox").map_or(Ok(""), |field| field.string())?.to_owned();
            interfaces.push(PreviousInterface { name, sandbox });
        }
        let mut ips = Vec::new();
        for entry in list("ips")? {
            let entry = entry.object()?;
            let address = entry.required("address", remedy)?;
            let net: IpNet = address
                .string()?
                .parse()
                .map_err(|_| address.wrong("an address with prefix length, such as 10.1.0.7/32"))?;
            let interface = entry.get("interface").map(|field| {
                let index = field.value().as_u64().and_then(|index| usize::try_from(index).ok());
                index
                    .filter(|index| *index < interfaces.len())
                    .ok_or_else(|| field.wrong("an index into interfaces"))
            });
            ips.push(PreviousIp { address: net.addr(), interface: interface.transpose()? });
        }
        let mut routes = Vec::new();
        for entry in list("routes")? {
            let entry = entry.object()?;
            let destination = entry.required("dst", remedy)?;
            let dst: IpNet = destination
                .string()?
                .parse()
                .map_err(|_| destination.wrong("a destination with prefix length, such as 0.0.0.0/0"))?;
            let gateway = entry.get("gw").filter(|field| !field.is_empty());
            let gw = gateway
                .map(|field| field.string()?.parse::<IpAddr>().map_err(|_| field.wrong("an IP address")));
            routes.push(ExpectedRoute { dst, gw: gw.transpose()? });
        }
        Ok(Self { raw: object.map().clone(), interfaces, ips, routes })
    }

    /// Refuses a result in which an earlier plugin has made our interface: one namespace cannot have two, and a
    /// second main plugin would give the pod addresses that the mesh does not route.
    ///
    /// # Errors
    /// Code 7.
    pub fn refuse_interface(&self, ifname: &str) -> Result<(), Error> {
        match self.interfaces.iter().find(|one| one.name == ifname && !one.sandbox.is_empty()) {
            None => Ok(()),
            Some(one) => Err(Error::NotFirst { ifname: ifname.to_owned(), sandbox: one.sandbox.clone() }),
        }
    }

    /// Addresses that the result attributes to interface `ifname` of a sandbox; without `interfaces` all of them.
    ///
    /// # Errors
    /// Code 7 when there are interfaces, but not this one.
    pub fn addresses_of(&self, ifname: &str) -> Result<Vec<IpAddr>, Error> {
        let ours = |index: usize| {
            self.interfaces.get(index).is_some_and(|one| one.name == ifname && !one.sandbox.is_empty())
        };
        if !self.interfaces.is_empty() && !(0..self.interfaces.len()).any(ours) {
            return Err(Error::NotOurs { ifname: ifname.to_owned() });
        }
        let attributed = |ip: &&PreviousIp| match ip.interface {
            Some(index) => ours(index),
            None => self.interfaces.is_empty(),
        };
        Ok(self.ips.iter().filter(attributed).map(|ip| ip.address).collect())
    }

    /// Its routes.
    pub fn routes(&self) -> &[ExpectedRoute] {
        &self.routes
    }

    /// The result as a later plugin returns it unchanged.
    pub(crate) fn into_value(self, version: SpecVersion) -> Value {
        let mut raw = self.raw;
        raw.insert("cniVersion".to_owned(), json!(version.as_str()));
        Value::Object(raw)
    }
}

/// An interface, in the shape of `version`.
pub(crate) fn interface(
    version: SpecVersion,
    name: &str,
    mac: &str,
    mtu: Option<u32>,
    sandbox: Option<&str>,
) -> Value {
    let mut interface = Map::new();
    interface.insert("name".to_owned(), json!(name));
    interface.insert("mac".to_owned(), json!(mac));
    if let Some(mtu) = mtu.filter(|_| version >= SpecVersion::V1_1_0) {
        interface.insert("mtu".to_owned(), json!(mtu));
    }
    if let Some(sandbox) = sandbox {
        interface.insert("sandbox".to_owned(), json!(sandbox));
    }
    Value::Object(interface)
}

/// An address, in the shape of `version`.
pub(crate) fn address(
    version: SpecVersion,
    address: IpNet,
    gateway: Option<IpAddr>,
    interface: usize,
) -> Value {
    let mut ip = Map::new();
    if version < SpecVersion::V1_0_0 {
        ip.insert("version".to_owned(), json!(if address.addr().is_ipv4() { "4" } else { "6" }));
    }
    ip.insert("interface".to_owned(), json!(interface));
    ip.insert("address".to_owned(), json!(address));
    if let Some(gateway) = gateway {
        ip.insert("gateway".to_owned(), json!(gateway));
    }
    Value::Object(ip)
}

/// The result of ADD: what the agent made, appended to what earlier plugins made.
/// Interfaces are the veth on the host, then the pod's; every address points at the latter.
pub fn add_result(
    version: SpecVersion,
    attached: &Attached,
    ifname: &str,
    netns: &str,
    dns: Map<String, Value>,
    previous: Option<Previous>,
) -> Value {
    let previous = previous.unwrap_or_default();
    let ours = previous.interfaces.len() + 1;
    let mut result = previous.raw;
    result.insert("cniVersion".to_owned(), json!(version.as_str()));
    let mut append = |key: &str, items: Vec<Value>| {
        let list = result.entry(key).or_insert_with(|| json!([]));
        match list {
            Value::Array(values) => values.extend(items),
            other @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_)) => {
                *other = Value::Array(items);
            }
        }
    };
    let mtu = Some(attached.mtu);
    append(
        "interfaces",
        vec![
            interface(version, &attached.host_ifname, &attached.host_mac, mtu, None),
            interface(version, ifname, &attached.pod_mac, mtu, Some(netns)),
        ],
    );
    let ips = attached.ips.iter().map(|ip| address(version, ip.address, Some(ip.gateway), ours));
    append("ips", ips.collect());
    let default_route = |gateway: IpAddr| {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        json!({"dst": format!("{any}/0"), "gw": gateway})
    };
    append("routes", attached.ips.iter().map(|ip| default_route(ip.gateway)).collect());
    if !dns.is_empty() || !matches!(result.get("dns"), Some(Value::Object(_))) {
        result.insert("dns".to_owned(), Value::Object(dns));
    }
    Value::Object(result)
}
