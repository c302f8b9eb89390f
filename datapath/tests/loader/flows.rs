//! Conntrack from outside: usage, what is over, large maps.

use std::collections::BTreeSet;
use std::net::IpAddr;

use datapath::abi::{Addr, Flow, Fragment, FragmentKey, HW_SCOPE_SERVICE, Tuple};
use datapath::{Endpoint, LoadOptions, now_ns};
use ipnet::IpNet;

use super::lab::{PinDir, open, options, small};

fn address(number: u32) -> Addr {
    let [a, b, c, d] = number.to_be_bytes();
    IpAddr::from([10 | a, b, c, d]).into()
}

fn tuple(number: u32) -> Tuple {
    Tuple { src: address(number), dst: address(0xff_ffff), protocol: 6, ..Tuple::default() }
}

#[test]
fn what_is_over_is_deleted_and_the_rest_stays() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    let now = now_ns();
    for number in 0..1000 {
        let until = if number % 4 == 0 { now - 1 } else { now + 60_000_000_000 };
        let judged = if number % 10 == 1 { [3 << 1 | 1, 0] } else { [3 << 1, 0] };
        let scope = if number % 2 == 0 { HW_SCOPE_SERVICE } else { 0 };
        let flow = Flow { until, judged, ..Flow::default() };
        datapath.maps().flows.put(&Tuple { scope, ..tuple(number) }, &flow).unwrap();
    }
    let fragment = Fragment { until: now - 1, ..Fragment::default() };
    datapath.maps().fragments.put(&FragmentKey::default(), &fragment).unwrap();
    let before = datapath.flow_usage(now).unwrap();
    assert_eq!((before.entries, before.expired, before.revoked, before.flows), (1000, 250, 100, 500));
    assert_eq!(before.capacity, small().flows);
    assert_eq!(datapath.expire_flows(now).unwrap(), before);
    let after = datapath.flow_usage(now).unwrap();
    assert_eq!((after.entries, after.expired), (750, 0));
    assert!(datapath.maps().fragments.entries().unwrap().is_empty());

    let of = datapath.flows_of(address(1).ip()).unwrap();
    assert_eq!(of.iter().map(|(tuple, _)| *tuple).collect::<Vec<_>>(), [tuple(1)]);
    let forgotten = [1, 2, 5, 1000].map(|number| address(number).ip());
    assert_eq!(datapath.forget_flows_of(&BTreeSet::from(forgotten)).unwrap(), 3);
    for ip in forgotten {
        assert_eq!(datapath.flows_of(ip).unwrap(), []);
    }
    assert_eq!(datapath.forget_flows_of(&BTreeSet::new()).unwrap(), 0);
    assert_eq!(datapath.flow_usage(now).unwrap().entries, 747);
}

#[test]
fn a_full_map_says_so_and_every_entry_is_found() {
    let pins = PinDir::new();
    let datapath = open(&LoadOptions { pin_dir: pins.path().to_owned(), ..LoadOptions::default() });
    let map = &datapath.maps().addresses;
    for number in 0..map.capacity() {
        map.put(&address(number), &datapath::abi::Address { class: [number; 2], flags: 0, pad: 0 }).unwrap();
    }
    let refused =
        map.put(&address(map.capacity()), &datapath::abi::Address::default()).unwrap_err().to_string();
    assert!(
        refused.contains("map addresses is full") && refused.contains(&map.capacity().to_string()),
        "{refused}"
    );
    let all: BTreeSet<(Addr, u32)> =
        map.entries().unwrap().into_iter().map(|(key, value)| (key, value.class[0])).collect();
    assert_eq!(all, (0..map.capacity()).map(|number| (address(number), number)).collect());
    let keys: Vec<Addr> = all.into_iter().map(|(key, _)| key).collect();
    // Every second one twice, and one that is not there.
    let some: Vec<Addr> = keys.iter().step_by(2).flat_map(|key| [*key, *key]).chain([Addr::NONE]).collect();
    assert_eq!(map.delete_all(&some).unwrap(), map.capacity() / 2);
    assert_eq!(map.walk(10, |_, _| ()).unwrap(), 10);
    assert_eq!(map.entries().unwrap().len(), keys.len() / 2);
}

#[test]
fn prefixes_are_set_and_found() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpNet>>();
    let first = nets(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/48", "0.0.0.0/0"]);
    assert!(datapath.set_guarded(&first).unwrap());
    assert!(!datapath.set_guarded(&first).unwrap());
    assert_eq!(datapath.guarded().unwrap(), first);
    let second = nets(&["10.1.0.0/16", "fd01::/48"]);
    assert!(datapath.set_guarded(&second).unwrap());
    assert_eq!(datapath.guarded().unwrap(), second);
    assert!(datapath.set_exempt(&nets(&["192.0.2.0/24"])).unwrap());
    assert_eq!(datapath.exempt().unwrap(), nets(&["192.0.2.0/24"]));
}

#[test]
fn endpoints_come_back_as_they_were_put() {
    let pins = PinDir::new();
    let datapath = open(&options(&pins));
    let both = Endpoint {
        ip4: Some("10.1.0.5".parse().unwrap()),
        ip6: Some("fd00::5".parse().unwrap()),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        slow: true,
    };
    let one = Endpoint { ip4: None, slow: false, ..both };
    datapath.put_endpoint(7, &both).unwrap();
    datapath.put_endpoint(9, &one).unwrap();
    assert_eq!(datapath.endpoints().unwrap().into_iter().collect::<Vec<_>>(), [(7, both), (9, one)]);
    assert!(datapath.remove_endpoint(7).unwrap());
    assert!(!datapath.remove_endpoint(7).unwrap());
    assert!(datapath.set_hold(Some(12)).unwrap());
    assert!(!datapath.set_hold(Some(12)).unwrap());
    assert!(datapath.set_flow_events(true).unwrap());
    assert_eq!(datapath.hold().unwrap(), Some(12));
    assert_eq!(datapath.epoch().unwrap(), 1);
    assert!(datapath.set_hold(None).unwrap());
    assert_eq!(datapath.hold().unwrap(), None);
}
