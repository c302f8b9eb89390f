use std::collections::BTreeSet;

use super::*;

fn packet(source: &str, destination: &str, mark: u8) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0x45; 12];
            bytes.extend(source.octets().into_iter().chain(destination.octets()).chain([mark]));
            bytes
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut bytes = vec![0x60; 8];
            bytes.extend(source.octets().into_iter().chain(destination.octets()).chain([mark]));
            bytes
        }
        _ => panic!("one family"),
    }
}

#[test]
fn a_packet_goes_back_when_both_ends_are_known_and_in_the_order_in_which_it_came() {
    let now = Instant::now();
    let mut queue = Queue::default();
    for (destination, mark) in [("10.0.0.2", 1), ("10.0.0.3", 2), ("10.0.0.2", 3)] {
        assert!(queue.push(&packet("10.0.0.1", destination, mark), now));
    }
    assert!(queue.push(&packet("fd00::1", "fd00::2", 4), now));
    let known = |names: &[&str]| {
        let known: BTreeSet<IpAddr> = names.iter().map(|name| name.parse().unwrap()).collect();
        move |address| known.contains(&address)
    };
    let marks =
        |packets: Vec<Vec<u8>>| packets.iter().map(|packet| *packet.last().unwrap()).collect::<Vec<_>>();
    for (names, expect) in [
        (vec!["10.0.0.1"], vec![]),
        (vec!["10.0.0.1", "10.0.0.2"], vec![1, 3]),
        (vec!["10.0.0.2", "10.0.0.3"], vec![]),
        (vec!["10.0.0.1", "10.0.0.3", "fd00::1", "fd00::2"], vec![2, 4]),
    ] {
        let (released, expired) = queue.ripe(&known(&names), now);
        assert_eq!((marks(released), expired), (expect, 0), "{names:?}");
    }
}

#[test]
fn what_nobody_knows_in_time_is_given_up_and_counted() {
    let now = Instant::now();
    let mut queue = Queue::default();
    assert!(queue.push(&packet("10.0.0.1", "10.0.0.2", 1), now));
    let unknown = |_| false;
    let before = now + PATIENCE - Duration::from_millis(1);
    assert_eq!(queue.ripe(&unknown, before), (vec![], 0));
    assert_eq!(queue.ripe(&unknown, now + PATIENCE), (vec![], 1));
    assert_eq!(queue.ripe(&unknown, now + PATIENCE), (vec![], 0));
}

#[test]
fn there_is_an_end_to_what_is_held_and_what_is_no_packet_is_refused() {
    let now = Instant::now();
    let mut queue = Queue::default();
    for broken in [&[][..], &[0x45; 19], &[0x60; 39], &[0x25; 60]] {
        assert!(!queue.push(broken, now), "{broken:?}");
    }
    for _ in 0..CAPACITY {
        assert!(queue.push(&packet("10.0.0.1", "10.0.0.2", 1), now));
    }
    assert!(!queue.push(&packet("10.0.0.1", "10.0.0.2", 1), now));
}
