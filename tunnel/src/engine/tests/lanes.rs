//! Several threads, each with a lane.

use super::*;
use crate::engine::lanes::MAX_LANES;
use crate::noise::bulk::Bulk;

fn many(n: u8, lanes: u8) -> Node {
    let mut node = Node::new(n);
    node.engine = Engine::with_lanes(1420, Lanes::new(lanes).unwrap());
    node.set(SetRequest {
        private_key: Some(Some(node.private.clone())),
        listen_port: Some(51880),
        ..SetRequest::default()
    });
    node
}

fn lane_of(node: &Node, peer: &Node) -> usize {
    read(&node.engine.registry).by_key[&peer.public()].lane
}

fn inner(n: u8) -> [u8; 4] {
    [10, 0, 0, n]
}

/// A node with lanes and nodes that know it, and have sent it a packet.
fn star(lanes: u8, others: u8) -> (Node, Vec<Node>) {
    let hub = many(1, lanes);
    let others: Vec<_> = (2..2 + others).map(Node::new).collect();
    for (n, other) in (2..).zip(&others) {
        hub.knows(other, &[&format!("10.0.0.{n}/32")]);
        other.knows(&hub, &["10.0.0.1/32"]);
        let ping = v4(inner(n), inner(1), 8);
        assert_eq!(settle(&[&hub, other], 1, other.transmit(&ping))[&0], [ping]);
    }
    (hub, others)
}

#[test]
fn peers_are_spread_evenly_and_what_they_send_shows_their_lane() {
    let (hub, others) = star(4, 12);
    let mut lanes: Vec<_> = others.iter().map(|other| lane_of(&hub, other)).collect();
    for (n, other) in (2..).zip(&others) {
        let data = other.transmit(&v4(inner(n), inner(1), 8)).udp.remove(0).1;
        assert_eq!(hub.engine.lanes().of_datagram(&data), Some(lane_of(&hub, other)));
        let mut packet = v4(inner(1), inner(n), 8);
        let consignee = hub.engine.consignee(&vnet::Header::PLAIN, &mut packet).unwrap();
        assert_eq!(consignee.lane(), lane_of(&hub, other));
    }
    lanes.sort_unstable();
    assert_eq!(lanes, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    // One goes and the next one takes its place; the others stay where they are.
    let before: Vec<_> = others[1..].iter().map(|other| lane_of(&hub, other)).collect();
    let freed = lane_of(&hub, &others[0]);
    hub.peer(others[0].public(), |p| p.remove = true);
    let newcomer = Node::new(99);
    hub.knows(&newcomer, &["10.0.0.99/32"]);
    assert_eq!(lane_of(&hub, &newcomer), freed);
    // And with other keys, too.
    hub.peer(others[1].public(), |p| p.preshared_key = psk(7));
    hub.set(SetRequest {
        private_key: Some(Some(PrivateKey::new([77; 32]).unwrap())),
        ..SetRequest::default()
    });
    let after: Vec<_> = others[1..].iter().map(|other| lane_of(&hub, other)).collect();
    assert_eq!(after, before);
}

#[test]
fn an_answer_to_us_shows_the_lane_of_who_answers() {
    for lanes in [2, 3, MAX_LANES] {
        let hub = many(1, lanes);
        for n in 2..8 {
            let other = Node::new(n);
            hub.knows(&other, &[&format!("10.0.0.{n}/32")]);
            other.knows(&hub, &["10.0.0.1/32"]);
            let initiation = hub.transmit(&v4(inner(1), inner(n), 8)).udp.remove(0).1;
            assert_eq!(hub.engine.lanes().of_datagram(&initiation), None);
            let answer = other.receive(&initiation, hub.addr).udp.remove(0).1;
            assert_eq!(hub.engine.lanes().of_datagram(&answer), Some(lane_of(&hub, &other)));
        }
    }
}

#[test]
fn a_prefix_is_moved_for_all_lanes_at_once() {
    let (hub, others) = star(3, 2);
    let (a, b) = (&others[0], &others[1]);
    // To whom it goes, by who reads; and from whom it is accepted, whatever the lane.
    let owner = || {
        let mut packet = v4(inner(1), [10, 9, 0, 1], 8);
        hub.engine.consignee(&vnet::Header::PLAIN, &mut packet).map(|to| to.id())
    };
    let accepted = |from: &Node, lane: usize| {
        let data = from.transmit(&v4([10, 9, 0, 1], inner(1), 8)).udp.remove(0).1;
        let (mut out, mut inbox) = (Out::default(), Inbox::of_lane(lane, Offloads::ALL, Bulk::default()));
        hub.engine.handle_datagrams(&data, data.len(), from.addr, &mut inbox, &mut out);
        hub.engine.deliver(&mut inbox, &mut out);
        out.tun.len() == 1
    };
    let id = |node: &Node| Some(read(&hub.engine.registry).by_key[&node.public()].id);
    assert_eq!(owner(), None);
    assert_eq!(hub.count(Counter::NoPeer), 1);
    for (has, has_not) in [(a, b), (b, a), (a, b)] {
        hub.peer(has.public(), |p| p.prefixes = vec![PrefixOp::Add("10.9.0.0/16".parse().unwrap())]);
        assert_eq!(owner(), id(has));
        for lane in 0..3 {
            assert!(accepted(has, lane) && !accepted(has_not, lane), "lane {lane}");
        }
    }
    hub.peer(a.public(), |p| p.remove = true);
    assert_eq!(owner(), None);
    assert!(!accepted(a, lane_of(&hub, b)));
}

#[test]
fn what_nobody_gets_is_counted_by_its_segments() {
    let hub = many(1, 2);
    let (header, mut packet) = batches::super_packet(13_800, 1380, 1);
    assert!(hub.engine.consignee(&header, &mut packet).is_none());
    assert_eq!(hub.count(Counter::NoPeer), 10);
    assert!(hub.engine.consignee(&vnet::Header::PLAIN, &mut [0x50; 40]).is_none());
    assert_eq!(hub.count(Counter::Malformed), 1);
    hub.engine.count_as(Counter::Busy, &header, &mut packet);
    assert_eq!(hub.count(Counter::Busy), 10);
}
