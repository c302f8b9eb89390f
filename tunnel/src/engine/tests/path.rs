//! Packets for a path that takes less than the tunnel's MTU.

use super::batches::super_packet;
use super::*;
use crate::path::error;

/// What the path takes, and what is left of it inside.
const PATH: usize = 1380;
const ROOM: usize = PATH - 60;

fn uncut(len: usize) -> Vec<u8> {
    let mut packet = v4([10, 0, 0, 1], [10, 0, 0, 2], len - 20);
    packet[6] = 0x40;
    packet
}

/// Nodes between which the path is so wide, as the first one knows.
fn narrowed(mtu: usize) -> (Node, Node) {
    let (a, b) = pair();
    a.engine.look_at_paths(|endpoint| {
        assert_eq!(endpoint, b.addr);
        Some(mtu)
    });
    (a, b)
}

#[test]
fn who_sends_too_long_packets_is_told_and_nothing_of_them_leaves() {
    let (a, _b) = narrowed(PATH);
    let packet = uncut(ROOM + 1);
    let out = a.transmit(&packet);
    assert!(out.udp.is_empty());
    assert_eq!(out.tun, [error(&packet, 1320).unwrap()]);
    assert_eq!(a.count(Counter::TooLong), 1);
    // Padding does not make it longer than the path takes, either.
    for len in [ROOM, ROOM - 1, ROOM - 7, ROOM - 15] {
        let out = a.transmit(&uncut(len));
        assert_eq!((out.udp.len(), out.tun.len()), (1, 0));
        assert!(out.udp[0].1.len() + 28 <= PATH, "{}", out.udp[0].1.len());
    }
    // What may be cut is sent as it is.
    assert_eq!(a.transmit(&v4([10, 0, 0, 1], [10, 0, 0, 2], 1400)).udp.len(), 1);
    assert_eq!(a.count(Counter::TooLong), 1);
}

#[test]
fn of_a_super_packet_its_first_segment_is_quoted_and_all_are_counted() {
    let (a, _b) = narrowed(PATH);
    let (header, packet) = super_packet(13_000, 1300, 7);
    let first = split::tests::all(&header, packet.clone()).unwrap().remove(0);
    let out = a.transmit_super(&header, &packet);
    assert!(out.udp.is_empty());
    assert_eq!(out.tun, [error(&first, 1320).unwrap()]);
    assert_eq!(a.count(Counter::TooLong), 10);
    let (header, packet) = super_packet(12_800, 1280, 7);
    assert_eq!(a.transmit_super(&header, &packet).udp.len(), 10);
}

#[test]
fn a_limit_ends_with_what_the_path_takes_or_with_another_endpoint() {
    let packet = uncut(1400);
    let (a, b) = narrowed(PATH);
    a.engine.look_at_paths(|_| Some(1500));
    assert_eq!(a.transmit(&packet).udp.len(), 1);
    a.engine.look_at_paths(|_| Some(PATH));
    assert!(a.transmit(&packet).udp.is_empty());
    a.engine.look_at_paths(|_| None);
    assert_eq!(a.transmit(&packet).udp.len(), 1);
    for moved in [true, false] {
        a.engine.look_at_paths(|_| Some(PATH));
        assert!(a.transmit(&packet).udp.is_empty());
        if moved {
            let word = b.transmit(&v4([10, 0, 0, 2], [10, 0, 0, 1], 8)).udp.remove(0).1;
            a.receive(&word, "198.51.100.1:9".parse().unwrap());
        } else {
            a.peer(b.public(), |p| p.endpoint = Some(b.addr));
        }
        assert_eq!(a.transmit(&packet).udp.len(), 1);
    }
}

#[test]
fn a_path_is_looked_at_only_while_something_is_sent_or_it_has_a_limit() {
    let (a, _b) = pair();
    let looks = |mtu: usize| {
        let mut looks = 0;
        a.engine.look_at_paths(|_| {
            looks += 1;
            Some(mtu)
        });
        looks
    };
    assert_eq!([looks(1500), looks(1500)], [1, 0]);
    a.transmit(&uncut(100));
    assert_eq!([looks(PATH), looks(PATH), looks(PATH)], [1, 1, 1]);
}

#[test]
fn a_super_packet_cut_for_an_mtu_that_was_lowered_since_is_too_long_as_well() {
    let (a, _b) = pair();
    let (header, packet) = super_packet(13_000, 1300, 7);
    let send = |mtu: Option<usize>| {
        let (mut out, mut outbox) = (Out { mtu, ..Out::default() }, Outbox::new());
        let mut buffer = vec![0; MAX_PACKET];
        buffer[..packet.len()].copy_from_slice(&packet);
        a.engine.handle_tun_packet(&header, &mut buffer, packet.len(), &mut outbox, &mut out);
        a.engine.flush(&mut outbox, &mut out);
        (out.udp.len(), out.tun.len())
    };
    assert_eq!(send(Some(1280)), (10, 0), "1340 are not more than the 1420 that are known");
    a.engine.set_mtu(1280);
    assert_eq!(send(Some(1280)), (0, 1));
    assert_eq!(send(Some(1420)), (10, 0), "it was raised again, and that is noticed at once");
    assert_eq!(a.count(Counter::TooLong), 10);
}
