use std::net::IpAddr;

use mesh_core::clusters::{
    Affinity, Backend, ClusterState, ExportedService, Kind, ServiceKind, TrafficPolicy,
};
use mesh_core::prefix::Family;
use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn service(created: i64) -> Arc<ExportedService> {
    Arc::new(ExportedService {
        created,
        kind: ServiceKind::ClusterSetIp,
        ports: Vec::new(),
        families: vec![Family::V4],
        affinity: Affinity::None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        traffic_distribution: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    })
}

fn backend(ready: bool) -> Arc<Backend> {
    let (hostname, node, zone) = (None, None, None);
    let ports = std::collections::BTreeSet::new();
    Arc::new(Backend { ready, serving: ready, terminating: false, hostname, node, zone, ports })
}

fn telling() -> impl Strategy<Value = Option<Telling>> {
    let backends = btree_map(1..5_u8, any::<bool>(), 0..4);
    proptest::option::weighted(0.8, (0..2_i64, backends)).prop_map(|some| {
        let (created, backends) = some?;
        let backends = backends.into_iter();
        let backends = backends.map(|(host, ready)| (IpAddr::from([10, 1, 0, host]), backend(ready)));
        Some(Telling { service: service(created), backends: backends.collect() })
    })
}

proptest! {
    /// Who applies all changes has what is told, at each step without a backend of a service that is not there; and what
    /// is equal is not told again.
    #[test]
    fn changes_add_up_to_what_is_told(steps in prop::collection::vec((select(vec!["a", "b"]), telling()), 1..12)) {
        let mut own = Own::default();
        let mut state = ClusterState::default();
        let mut wanted: BTreeMap<ObjectName, Telling> = BTreeMap::new();
        for (name, telling) in steps {
            let name = ObjectName { namespace: "shop".to_owned(), name: name.to_owned() };
            let before = wanted.remove(&name);
            let changes = own.set(&name, telling.clone());
            prop_assert!(before != telling || changes.is_empty());
            prop_assert!(own.set(&name, telling.clone()).is_empty());
            for change in changes {
                prop_assert!(state.apply(change), "told though it is so already");
                for (service, _) in state.backends.keys() {
                    prop_assert!(state.services.contains_key(service), "a backend without its service");
                }
            }
            wanted.extend(telling.map(|telling| (name, telling)));
            prop_assert_eq!(own.len(), wanted.len());
            prop_assert_eq!(state.count(Kind::Service), wanted.len());
            for (name, telling) in &wanted {
                prop_assert_eq!(&state.services[name], &telling.service);
                let told = state.backends.iter().filter(|((of, _), _)| **of == *name);
                let told: BTreeMap<IpAddr, Arc<Backend>> = told.map(|((_, at), b)| (*at, Arc::clone(b))).collect();
                prop_assert_eq!(&told, &telling.backends);
            }
            let backends: usize = wanted.values().map(|telling| telling.backends.len()).sum();
            prop_assert_eq!(state.count(Kind::Backend), backends);
        }
    }
}
