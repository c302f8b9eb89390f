//! All maps that the agent shares with the programs: their definitions, and how they are found again.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::Pod;

use crate::abi::{self, counters::HW_COUNTERS};
use crate::error::{Error, Result};
use crate::map::{Array, Counters, Keyed};
use crate::sys;

/// Entries that the maps have room for. Fixed when a map is made: see [`Error::Definition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Addresses of pods and nodes of all clusters.
    pub addresses: u32,
    /// Prefixes that policies name.
    pub blocks: u32,
    /// Classes times tables. While an agent takes over from another there are those of both.
    pub rows: u32,
    /// Prefixes of ports of all port functions. As `rows`.
    pub ports: u32,
    /// Pods of this node.
    pub endpoints: u32,
    /// Addresses of this node and of its pods.
    pub locals: u32,
    /// Links that have a program.
    pub devices: u32,
    /// Prefixes that the guard keeps from uplinks, and those that it exempts.
    pub guarded: u32,
    /// Flows known; the kernel forgets the oldest when there are more.
    pub flows: u32,
    /// Packets that come in fragments and are not through.
    pub fragments: u32,
    /// Addresses and ports of services.
    pub frontends: u32,
    /// Places in the tables of services, eight bytes of memory each.
    pub places: u32,
    /// Endpoints of services.
    pub backends: u32,
    /// Clients that a service shall know again.
    pub affinities: u32,
    /// Bytes of the ring of events: a power of two and a multiple of a page.
    pub events: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        let services = mesh_core::service::Limits::default();
        Self {
            // Of 50,000 pods and 5,000 nodes with both families, and what vanished lately; allocated one by one.
            addresses: 262_144,
            blocks: 131_072,
            rows: 524_288,
            ports: 131_072,
            endpoints: 1024,
            locals: 4096,
            devices: 4096,
            guarded: 1024,
            // 112 bytes each: 28 MiB, allocated at once.
            flows: 262_144,
            fragments: 8192,
            frontends: services.frontends,
            places: services.places,
            backends: services.backends,
            affinities: 65_536,
            events: 1 << 20,
        }
    }
}

/// Kinds of maps (`enum bpf_map_type`).
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const RING: u32 = 27;

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) name: &'static str,
    kind: u32,
    key: usize,
    value: usize,
    pub(crate) entries: u32,
    flags: u32,
}

fn of<K, V>(name: &'static str, kind: u32, entries: u32, flags: u32) -> Definition {
    Definition { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries, flags }
}

/// All of them, by name.
pub(crate) fn definitions(c: &Capacities) -> [Definition; 18] {
    [
        of::<abi::Addr, abi::Address>("addresses", HASH, c.addresses, NO_PREALLOC),
        of::<abi::AffinityKey, abi::Affinity>("affinities", LRU_HASH, c.affinities, 0),
        of::<u32, abi::Backend>("backends", HASH, c.backends, NO_PREALLOC),
        of::<abi::Prefix, abi::Block>("blocks", LPM_TRIE, c.blocks, NO_PREALLOC),
        of::<u32, u64>("counters", PER_CPU_ARRAY, HW_COUNTERS, 0),
        of::<u32, u32>("devices", HASH, c.devices, NO_PREALLOC),
        of::<u32, abi::Endpoint>("endpoints", HASH, c.endpoints, NO_PREALLOC),
        of::<(), ()>("events", RING, c.events, 0),
        of::<abi::Prefix, u32>("exempt", LPM_TRIE, c.guarded, NO_PREALLOC),
        of::<abi::Tuple, abi::Flow>("flows", LRU_HASH, c.flows, 0),
        of::<abi::FragmentKey, abi::Fragment>("fragments", LRU_HASH, c.fragments, 0),
        of::<abi::FrontendKey, abi::Frontend>("frontends", HASH, c.frontends, NO_PREALLOC),
        of::<abi::Prefix, u32>("guarded", LPM_TRIE, c.guarded, NO_PREALLOC),
        of::<abi::Addr, abi::Local>("locals", HASH, c.locals, NO_PREALLOC),
        of::<u32, u32>("places", ARRAY, c.places, 0),
        of::<abi::PortKey, u32>("ports", LPM_TRIE, c.ports, NO_PREALLOC),
        of::<abi::RowKey, u32>("rows", HASH, c.rows, NO_PREALLOC),
        of::<u32, abi::State>("state", ARRAY, 1, 0),
    ]
}

impl Definition {
    /// Compares with a map in the kernel.
    pub(crate) fn check(&self, map: &OwnedFd, path: &Path) -> Result<()> {
        let found = sys::map_info(map).map_err(|source| Error::Map {
            map: self.name,
            action: "read its definition".to_owned(),
            source,
        })?;
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let properties = [
            ("type", found.kind, self.kind),
            ("key size", found.key_size, size(self.key)),
            ("value size", found.value_size, size(self.value)),
            ("number of entries", found.max_entries, self.entries),
            ("set of flags", found.flags, self.flags),
        ];
        match properties.into_iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(()),
            Some((property, found, wanted)) => {
                Err(Error::Definition { map: self.name, path: path.to_owned(), property, found, wanted })
            }
        }
    }
}

/// All maps, open. What each holds is told in `bpf/abi.h`.
///
/// Public for tests and tools; the agent uses the methods of [`crate::Datapath`].
#[derive(Debug)]
pub struct Maps {
    /// Classes of addresses.
    pub addresses: Keyed<abi::Addr, abi::Address>,
    /// Backends that clients were given before.
    pub affinities: Keyed<abi::AffinityKey, abi::Affinity>,
    /// Backends by number.
    pub backends: Keyed<u32, abi::Backend>,
    /// Classes of prefixes.
    pub blocks: Keyed<abi::Prefix, abi::Block>,
    /// What happened, by `HW_COUNT_*`.
    pub counters: Counters,
    /// Kinds of links, by interface index.
    pub devices: Keyed<u32, u32>,
    /// Pods of this node, by interface index of the host's end.
    pub endpoints: Keyed<u32, abi::Endpoint>,
    /// The ring of events.
    pub(crate) events: OwnedFd,
    /// Prefixes that the guard lets pass.
    pub exempt: Keyed<abi::Prefix, u32>,
    /// Conntrack.
    pub flows: Keyed<abi::Tuple, abi::Flow>,
    /// Ports of packets in fragments.
    pub fragments: Keyed<abi::FragmentKey, abi::Fragment>,
    /// What clients call services.
    pub frontends: Keyed<abi::FrontendKey, abi::Frontend>,
    /// Prefixes that the guard keeps from uplinks.
    pub guarded: Keyed<abi::Prefix, u32>,
    /// Where addresses of this node live.
    pub locals: Keyed<abi::Addr, abi::Local>,
    /// Tables of services: numbers of backends.
    pub places: Array<u32>,
    /// Port functions.
    pub ports: Keyed<abi::PortKey, u32>,
    /// What tables say of classes.
    pub rows: Keyed<abi::RowKey, u32>,
    /// The one state.
    pub state: Array<abi::State>,
}

impl Maps {
    /// Opens what is pinned in `directory`, and compares it with its definition.
    pub(crate) fn open(directory: &Path, capacities: &Capacities) -> Result<Self> {
        let definitions = definitions(capacities);
        let open = |name: &'static str| -> Result<(OwnedFd, &'static str, u32)> {
            let definition =
                definitions.iter().find(|d| d.name == name).expect("invariant: all maps are defined");
            let path = directory.join(name);
            let map =
                open_pin(&path)?.ok_or_else(|| Error::Object(format!("there is no map {name} in it")))?;
            definition.check(&map, &path)?;
            Ok((map, name, definition.entries))
        };
        Ok(Self {
            addresses: keyed(open("addresses")?),
            affinities: keyed(open("affinities")?),
            backends: keyed(open("backends")?),
            blocks: keyed(open("blocks")?),
            counters: open("counters").map(|(map, name, _)| Counters::new(map, name))?,
            devices: keyed(open("devices")?),
            endpoints: keyed(open("endpoints")?),
            events: open("events")?.0,
            exempt: keyed(open("exempt")?),
            flows: keyed(open("flows")?),
            fragments: keyed(open("fragments")?),
            frontends: keyed(open("frontends")?),
            guarded: keyed(open("guarded")?),
            locals: keyed(open("locals")?),
            places: open("places").map(|(map, name, entries)| Array::new(map, name, entries))?,
            ports: keyed(open("ports")?),
            rows: keyed(open("rows")?),
            state: open("state").map(|(map, name, entries)| Array::new(map, name, entries))?,
        })
    }
}

fn keyed<K: Pod + std::fmt::Debug, V: Pod>(
    (map, name, entries): (OwnedFd, &'static str, u32),
) -> Keyed<K, V> {
    Keyed::new(map, name, entries)
}

/// Compares whatever is pinned already.
pub(crate) fn check_pins(directory: &Path, capacities: &Capacities) -> Result<()> {
    for definition in definitions(capacities) {
        let path = directory.join(definition.name);
        if let Some(map) = open_pin(&path)? {
            definition.check(&map, &path)?;
        }
    }
    Ok(())
}

fn open_pin(path: &Path) -> Result<Option<OwnedFd>> {
    sys::open(path).map_err(|source| Error::Directory { path: path.to_owned(), action: "open", source })
}

impl Maps {
    /// A second descriptor of the ring, for a reader of its own.
    pub(crate) fn ring(&self) -> Result<OwnedFd> {
        self.events.as_fd().try_clone_to_owned().map_err(|source| Error::Map {
            map: "events",
            action: "duplicate its descriptor".to_owned(),
            source,
        })
    }
}
