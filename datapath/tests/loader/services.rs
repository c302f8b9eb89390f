//! Services: what was applied is found again.

use std::collections::{BTreeMap, BTreeSet};

use datapath::abi::{Affinity, AffinityKey};
use mesh_core::policy::model::Protocol;
use mesh_core::service::tables::{
    Backend, BackendId, Delta, Frontend, FrontendKey, PlaceRun, ServiceNumber, State,
};

use super::lab::{PinDir, open, options};

fn backend(number: u32, leaving: bool) -> (BackendId, Backend) {
    let addr = format!("10.1.0.{number}:80").parse().unwrap();
    (BackendId(number), Backend { addr, leaving })
}

fn frontend(base: u32, count: u32, service: u32) -> Frontend {
    Frontend { base, count, service: ServiceNumber(service), affinity: 0, flags: 0 }
}

fn key(last: u8) -> FrontendKey {
    FrontendKey { addr: [10, 96, 0, last].into(), port: 80, protocol: Some(Protocol::Tcp) }
}

#[test]
fn what_an_agent_applied_the_next_one_finds() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    // The first table begins at 0 and is longer than a batch, the other lies at the end of the array.
    let places: Vec<BackendId> = (0..4093).map(|place| BackendId(1 + place % 3)).collect();
    let last = vec![BackendId(4); 251];
    let delta = Delta {
        commit: 1,
        backends_set: BTreeMap::from([
            backend(1, false),
            backend(2, true),
            backend(3, false),
            backend(4, false),
        ]),
        places: vec![
            PlaceRun { first: 0, backends: places.clone() },
            PlaceRun { first: 8192 - 251, backends: last.clone() },
        ],
        frontends_set: BTreeMap::from([
            (key(1), frontend(0, 4093, 5)),
            (key(2), frontend(8192 - 251, 251, 6)),
            (FrontendKey::address(key(1).addr), Frontend { flags: 2, ..frontend(0, 0, 0) }),
        ]),
        ..Delta::default()
    };
    datapath.apply_services(&delta).unwrap();
    datapath.wait_for_packets().unwrap();
    let mut state = State {
        frontends: delta.frontends_set.clone(),
        tables: BTreeMap::from([(0, places), (8192 - 251, last)]),
        backends: delta.backends_set.clone(),
    };
    drop(datapath);
    let datapath = open(&options(&pins));
    let found = datapath.installed_services().unwrap();
    assert_eq!((found.state, found.highest), (state.clone(), 6));

    let removal = Delta {
        frontends_removed: BTreeSet::from([key(2)]),
        backends_removed: BTreeSet::from([BackendId(4)]),
        services_removed: BTreeSet::from([ServiceNumber(6)]),
        ..Delta::default()
    };
    datapath.apply_services(&removal).unwrap();
    // Twice is once.
    datapath.apply_services(&removal).unwrap();
    state.frontends.remove(&key(2));
    state.tables.remove(&(8192 - 251));
    state.backends.remove(&BackendId(4));
    let affinity = Affinity { until: 0, backend: 77, pad: 0 };
    datapath.maps().affinities.put(&AffinityKey { service: 5, ..AffinityKey::default() }, &affinity).unwrap();
    let found = datapath.installed_services().unwrap();
    assert_eq!((found.state, found.highest), (state, 77));

    datapath.clear_services().unwrap();
    assert_eq!(datapath.installed_services().unwrap().state, State::default());
}

#[test]
fn a_place_outside_of_the_array_is_an_error() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    let run = PlaceRun { first: 8190, backends: vec![BackendId(1); 4] };
    let refused = datapath.apply_services(&Delta { places: vec![run], ..Delta::default() }).unwrap_err();
    assert!(refused.to_string().contains("map places"), "{refused}");
    assert!(datapath.maps().places.range(8190, 4).is_err());
}
