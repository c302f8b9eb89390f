//! The `hawser.dev/wireguard` annotation of a Node: JSON text to [`Announcement`] and back.
//!
//! ```json
//! {"v":1,
//!  "slots":[{"epoch":7,"publicKey":"…","port":51880},{"epoch":8,"publicKey":"…","port":51881,"draining":true}],
//!  "endpoints":["192.0.2.1"],
//!  "kem":"…",
//!  "kemRequired":true,
//!  "hostTraffic":true}
//! ```
//!
//! `draining`, `kemRequired` and `hostTraffic` are false and `endpoints` empty where they are absent; `kem` (base64 of 32 bytes) is optional. Fields
//! that version 1 does not know are ignored, so that a later agent can add some while older ones run; a change that
//! older agents must not ignore takes a new `v`. The same field twice in one object is refused at any depth: two
//! readers could disagree about which one counts.

mod json;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_core::announcement::{Announcement, Epoch, MAX_ENDPOINTS, SlotAnnouncement};
use mesh_core::key::{KeyError, PublicKey};
use mesh_core::slot::Slot;
use serde::Serialize;

use self::json::{Json, JsonError, Object};
use crate::excerpt::Excerpt;
use crate::public::{RefusedKey, validate_public};

/// Longest annotation that is read, in bytes: about six times the longest that version 1 can need, and small
/// against the 256 KiB of annotations that an object may have.
pub const MAX_LENGTH: usize = 4096;

/// The version of the annotation that is written and read.
pub const VERSION: u64 = 1;

/// A place in the annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The whole value.
    Whole,
    /// `v`.
    Version,
    /// `slots`.
    Slots,
    /// `slots[i]`.
    Slot(Slot),
    /// `slots[i].epoch`.
    Epoch(Slot),
    /// `slots[i].publicKey`.
    PublicKey(Slot),
    /// `slots[i].port`.
    Port(Slot),
    /// `slots[i].draining`.
    Draining(Slot),
    /// `endpoints`.
    Endpoints,
    /// `endpoints[i]`.
    Endpoint(usize),
    /// `kem`.
    Kem,
    /// `kemRequired`.
    KemRequired,
    /// `hostTraffic`.
    HostTraffic,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("the annotation"),
            Self::Version => f.write_str("v"),
            Self::Slots => f.write_str("slots"),
            Self::Slot(slot) => write!(f, "slots[{}]", slot.index()),
            Self::Epoch(slot) => write!(f, "slots[{}].epoch", slot.index()),
            Self::PublicKey(slot) => write!(f, "slots[{}].publicKey", slot.index()),
            Self::Port(slot) => write!(f, "slots[{}].port", slot.index()),
            Self::Draining(slot) => write!(f, "slots[{}].draining", slot.index()),
            Self::Endpoints => f.write_str("endpoints"),
            Self::Endpoint(index) => write!(f, "endpoints[{index}]"),
            Self::Kem => f.write_str("kem"),
            Self::KemRequired => f.write_str("kemRequired"),
            Self::HostTraffic => f.write_str("hostTraffic"),
        }
    }
}

/// Why an address cannot be a tunnel endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableEndpoint {
    /// `::` or within `0.0.0.0/8`.
    #[error("it is unspecified")]
    Unspecified,
    /// Within `127.0.0.0/8`, or `::1`.
    #[error("it is a loopback address")]
    Loopback,
    /// Within `169.254.0.0/16` or `fe80::/10`.
    #[error("it is link-local")]
    LinkLocal,
    /// A multicast address.
    #[error("it is a multicast address")]
    Multicast,
    /// `255.255.255.255`.
    #[error("it is the broadcast address")]
    Broadcast,
    /// Within `::ffff:0:0/96`.
    #[error("it is an IPv4 address mapped into IPv6; write it as IPv4")]
    Mapped,
}

/// Why an annotation is refused. Messages are short and safe to log whatever the annotation holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnouncementError {
    /// Longer than [`MAX_LENGTH`]; it is not parsed.
    #[error("the annotation is {length} bytes long, at most {MAX_LENGTH} are read")]
    TooLong {
        /// Bytes.
        length: usize,
    },
    /// Not JSON.
    #[error("the annotation is not JSON: {reason}")]
    NotJson {
        /// What the parser found, and where.
        reason: Excerpt,
    },
    /// A field twice in one object.
    #[error("field {name} occurs twice in one object")]
    DuplicateField {
        /// Its name.
        name: Excerpt,
    },
    /// A field that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// Which.
        field: Field,
    },
    /// A value of the wrong type, or a number out of range.
    #[error("{field} is {found}, wanted {wanted}")]
    Type {
        /// Which.
        field: Field,
        /// What it is.
        found: Excerpt,
        /// What it must be.
        wanted: &'static str,
    },
    /// A version that this agent does not know.
    #[error("v is {found}, this agent reads {VERSION}; upgrade the older of the two agents")]
    Version {
        /// The version.
        found: u64,
    },
    /// Not two slots.
    #[error("slots has {found} entries, wanted 2")]
    SlotCount {
        /// How many.
        found: usize,
    },
    /// Epoch zero.
    #[error("{field} is 0, epochs begin at 1")]
    EpochZero {
        /// Which.
        field: Field,
    },
    /// Both slots have the same epoch.
    #[error("both slots have epoch {0}, wanted different ones", epoch.0)]
    EqualEpochs {
        /// The epoch.
        epoch: Epoch,
    },
    /// Both slots have the same key.
    #[error("both slots have publicKey {key}, wanted different ones")]
    EqualKeys {
        /// The key.
        key: PublicKey,
    },
    /// Port zero.
    #[error("{field} is 0, wanted 1 to 65535")]
    PortZero {
        /// Which.
        field: Field,
    },
    /// Both slots have the same port.
    #[error("both slots have port {port}, wanted different ones")]
    EqualPorts {
        /// The port.
        port: u16,
    },
    /// A key that is not base64 of 32 bytes.
    #[error("{field} {found} is not a WireGuard key: {source}")]
    KeyMalformed {
        /// Which.
        field: Field,
        /// Its text.
        found: Excerpt,
        /// Why not.
        source: KeyError,
    },
    /// A key that no honest node has.
    #[error("{field} {key} {source}")]
    KeyRefused {
        /// Which.
        field: Field,
        /// The key.
        key: PublicKey,
        /// Why.
        source: RefusedKey,
    },
    /// More than [`MAX_ENDPOINTS`].
    #[error("endpoints has {found} entries, wanted at most {MAX_ENDPOINTS}")]
    EndpointCount {
        /// How many.
        found: usize,
    },
    /// Not an IP address.
    #[error("{field} {found} is not an IPv4 or IPv6 address")]
    EndpointMalformed {
        /// Which.
        field: Field,
        /// Its text.
        found: Excerpt,
    },
    /// An address to which other nodes cannot send.
    #[error("{field} {address} cannot be a tunnel endpoint: {reason}")]
    EndpointUnusable {
        /// Which.
        field: Field,
        /// The address.
        address: IpAddr,
        /// Why.
        reason: UnusableEndpoint,
    },
    /// Not base64 of 32 bytes.
    #[error("kem {found} is not the base64 of 32 bytes")]
    KemMalformed {
        /// Its text.
        found: Excerpt,
    },
}

/// The text of the annotation: one line, fields in the order of the design, equal texts for equal announcements.
///
/// Says nothing about whether other nodes will accept it: that is [`check`].
pub fn encode(announcement: &Announcement) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct WireSlot {
        epoch: u64,
        public_key: PublicKey,
        port: u16,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        draining: bool,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire<'a> {
        v: u64,
        slots: [WireSlot; 2],
        endpoints: &'a [IpAddr],
        #[serde(skip_serializing_if = "Option::is_none")]
        kem: Option<String>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        kem_required: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        host_traffic: bool,
    }
    let slots = Slot::ALL.map(|slot| {
        let SlotAnnouncement { epoch, public_key, port, draining } = *announcement.slot(slot);
        WireSlot { epoch: epoch.0, public_key, port, draining }
    });
    let kem = announcement.kem.map(|hash| STANDARD.encode(hash));
    let Announcement { ref endpoints, kem_required, host_traffic, .. } = *announcement;
    serde_json::to_string(&Wire { v: VERSION, slots, endpoints, kem, kem_required, host_traffic })
        .expect("invariant: a struct of numbers and strings is always JSON")
}

/// Parses the annotation and applies [`check`].
pub fn decode(text: &str) -> Result<Announcement, AnnouncementError> {
    if text.len() > MAX_LENGTH {
        return Err(AnnouncementError::TooLong { length: text.len() });
    }
    let whole = json::parse(text).map_err(|error| match error {
        JsonError::Syntax(reason) => AnnouncementError::NotJson { reason: Excerpt::plain(reason) },
        JsonError::Duplicate(name) => AnnouncementError::DuplicateField { name: Excerpt::of(&name) },
    })?;
    let Json::Object(mut whole) = whole else {
        return Err(wrong(Field::Whole, &whole, "an object"));
    };
    match number(&mut whole, "v", Field::Version)? {
        VERSION => {}
        found => return Err(AnnouncementError::Version { found }),
    }
    let slots = take(&mut whole, "slots", Field::Slots)?;
    let Json::Array(slots) = slots else {
        return Err(wrong(Field::Slots, &slots, "an array of two slots"));
    };
    let [zero, one]: [Json; 2] =
        slots.try_into().map_err(|slots: Vec<Json>| AnnouncementError::SlotCount { found: slots.len() })?;
    let slots = [parse_slot(Slot::Zero, zero)?, parse_slot(Slot::One, one)?];
    let endpoints = match whole.remove("endpoints") {
        None => Vec::new(),
        Some(value) => parse_endpoints(value)?,
    };
    let kem = whole.remove("kem").map(parse_kem).transpose()?;
    let kem_required = flag(&mut whole, "kemRequired", Field::KemRequired)?;
    let host_traffic = flag(&mut whole, "hostTraffic", Field::HostTraffic)?;
    let announcement = Announcement { slots, endpoints, kem, kem_required, host_traffic };
    check(&announcement)?;
    Ok(announcement)
}

/// What must hold of every announcement, own ones before they are published included: epochs and ports not zero,
/// epochs, keys and ports different in the two slots, keys as [`validate_public`] wants them, at most
/// [`MAX_ENDPOINTS`] endpoints, each one that other nodes can send to.
pub fn check(announcement: &Announcement) -> Result<(), AnnouncementError> {
    for slot in Slot::ALL {
        let SlotAnnouncement { epoch, public_key, port, draining: _ } = *announcement.slot(slot);
        if epoch == Epoch(0) {
            return Err(AnnouncementError::EpochZero { field: Field::Epoch(slot) });
        }
        if port == 0 {
            return Err(AnnouncementError::PortZero { field: Field::Port(slot) });
        }
        validate_public(public_key).map_err(|source| AnnouncementError::KeyRefused {
            field: Field::PublicKey(slot),
            key: public_key,
            source,
        })?;
    }
    let [zero, one] = &announcement.slots;
    if zero.epoch == one.epoch {
        return Err(AnnouncementError::EqualEpochs { epoch: zero.epoch });
    }
    if zero.public_key == one.public_key {
        return Err(AnnouncementError::EqualKeys { key: zero.public_key });
    }
    if zero.port == one.port {
        return Err(AnnouncementError::EqualPorts { port: zero.port });
    }
    if announcement.endpoints.len() > MAX_ENDPOINTS {
        return Err(AnnouncementError::EndpointCount { found: announcement.endpoints.len() });
    }
    for (index, address) in announcement.endpoints.iter().enumerate() {
        if let Some(reason) = unusable(*address) {
            let field = Field::Endpoint(index);
            return Err(AnnouncementError::EndpointUnusable { field, address: *address, reason });
        }
    }
    Ok(())
}

/// Why other nodes cannot send to an address, if they cannot.
pub fn unusable(address: IpAddr) -> Option<UnusableEndpoint> {
    use UnusableEndpoint::{Broadcast, LinkLocal, Loopback, Mapped, Multicast, Unspecified};
    match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some(Unspecified),
        IpAddr::V4(v4) if v4.is_loopback() => Some(Loopback),
        IpAddr::V4(v4) if v4.is_link_local() => Some(LinkLocal),
        IpAddr::V4(v4) if v4.is_multicast() => Some(Multicast),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(Broadcast),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(Unspecified),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Loopback),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(LinkLocal),
        IpAddr::V6(v6) if v6.is_multicast() => Some(Multicast),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some(Mapped),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn parse_slot(slot: Slot, value: Json) -> Result<SlotAnnouncement, AnnouncementError> {
    let Json::Object(mut object) = value else {
        return Err(wrong(Field::Slot(slot), &value, "an object"));
    };
    let epoch = Epoch(number(&mut object, "epoch", Field::Epoch(slot))?);
    let field = Field::PublicKey(slot);
    let key = take(&mut object, "publicKey", field)?;
    let Json::String(text) = key else {
        return Err(wrong(field, &key, "a string"));
    };
    let public_key = text.parse().map_err(|source| AnnouncementError::KeyMalformed {
        field,
        found: Excerpt::of(&text),
        source,
    })?;
    let field = Field::Port(slot);
    let port = number(&mut object, "port", field)?;
    let port = u16::try_from(port).map_err(|_| AnnouncementError::Type {
        field,
        found: Excerpt::plain(port),
        wanted: "1 to 65535",
    })?;
    let draining = flag(&mut object, "draining", Field::Draining(slot))?;
    Ok(SlotAnnouncement { epoch, public_key, port, draining })
}

fn parse_endpoints(value: Json) -> Result<Vec<IpAddr>, AnnouncementError> {
    let Json::Array(values) = value else {
        return Err(wrong(Field::Endpoints, &value, "an array of addresses"));
    };
    if values.len() > MAX_ENDPOINTS {
        return Err(AnnouncementError::EndpointCount { found: values.len() });
    }
    let parse = |(index, value)| {
        let field = Field::Endpoint(index);
        let Json::String(text) = value else {
            return Err(wrong(field, &value, "a string"));
        };
        text.parse().map_err(|_| AnnouncementError::EndpointMalformed { field, found: Excerpt::of(&text) })
    };
    values.into_iter().enumerate().map(parse).collect()
}

fn parse_kem(value: Json) -> Result<[u8; 32], AnnouncementError> {
    let Json::String(text) = value else {
        return Err(wrong(Field::Kem, &value, "a string"));
    };
    let malformed = || AnnouncementError::KemMalformed { found: Excerpt::of(&text) };
    let bytes = STANDARD.decode(&text).map_err(|_| malformed())?;
    bytes.try_into().map_err(|_| malformed())
}

fn take(object: &mut Object, name: &str, field: Field) -> Result<Json, AnnouncementError> {
    object.remove(name).ok_or(AnnouncementError::Missing { field })
}

/// False where it is absent.
fn flag(object: &mut Object, name: &str, field: Field) -> Result<bool, AnnouncementError> {
    match object.remove(name) {
        None => Ok(false),
        Some(Json::Bool(value)) => Ok(value),
        Some(other) => Err(wrong(field, &other, "true or false")),
    }
}

fn number(object: &mut Object, name: &str, field: Field) -> Result<u64, AnnouncementError> {
    let value = take(object, name, field)?;
    let Json::Natural(number) = value else {
        return Err(wrong(field, &value, "a whole number from 0 to 2^64 - 1"));
    };
    Ok(number)
}

fn wrong(field: Field, found: &Json, wanted: &'static str) -> AnnouncementError {
    AnnouncementError::Type { field, found: found.excerpt(), wanted }
}

#[cfg(test)]
mod tests;
