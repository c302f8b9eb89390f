use proptest::prelude::*;

use super::*;
use crate::offload::checksum::tests::slowly;
use crate::packet;

const DF: u16 = 0x4000;

fn v4(protocol: u8, fragment: u16, len: usize) -> Vec<u8> {
    let mut p = vec![8; len];
    p[..20].fill(0);
    (p[0], p[9]) = (0x45, protocol);
    p[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    p[6..8].copy_from_slice(&fragment.to_be_bytes());
    p[12..16].copy_from_slice(&[10, 0, 0, 1]);
    p[16..20].copy_from_slice(&[10, 0, 0, 2]);
    p
}

fn v6(next: u8, len: usize) -> Vec<u8> {
    let mut p = vec![200; len];
    p[..40].fill(0);
    (p[0], p[6]) = (0x60, next);
    p[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
    (p[8], p[23], p[24], p[39]) = (0xfd, 1, 0xfd, 2);
    p
}

fn with(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    packet
}

#[test]
fn a_path_has_room_for_what_is_left_beside_headers_of_its_family() {
    let endpoint = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(room(1500, endpoint("192.0.2.1:1")), 1440);
    assert_eq!(room(1500, endpoint("[2001:db8::1]:1")), 1420);
    assert_eq!(room(40, endpoint("192.0.2.1:1")), 0);
}

#[test]
fn who_can_send_shorter_and_says_not_to_cut_is_told_and_nobody_else() {
    let check = |packet: Vec<u8>, room, expected| {
        assert_eq!(told(&packet, packet.len(), room), expected, "{:?}…", &packet[..40]);
    };
    check(v4(17, DF, 1300), 1300, None);
    check(v4(17, DF, 1301), 1300, Some(1300));
    check(v4(17, 0, 1301), 1300, None);
    check(v6(17, 1301), 1300, Some(1300));
    check(v6(17, 1300), 1300, None);
    // Below what everybody must be able to carry nobody is told to go; what is shorter is sent.
    check(v4(17, DF, 1301), 68, Some(576));
    check(v4(17, DF, 576), 68, None);
    check(v6(17, 1301), 68, Some(1280));
    check(v6(17, 1280), 68, None);
    // Of later pieces, of errors, and to or from many, nothing is said.
    check(v4(17, DF | 100, 1301), 1300, None);
    check(v4(17, DF | 0x2000, 1301), 1300, Some(1300));
    for (kind, expected) in [(3, None), (11, None), (8, Some(1300)), (0, Some(1300))] {
        check(with(v4(1, DF, 1301), 20, &[kind]), 1300, expected);
    }
    for group in [[224, 0, 0, 1], [255; 4], [0; 4]] {
        check(with(v4(17, DF, 1301), 12, &group), 1300, None);
        check(with(v4(17, DF, 1301), 16, &group), 1300, None);
    }
    check(with(v6(44, 1301), 42, &[0, 1]), 1300, Some(1300));
    check(with(v6(44, 1301), 42, &[0, 9]), 1300, None);
    for (kind, expected) in [(1, None), (127, None), (128, Some(1300))] {
        check(with(v6(58, 1301), 40, &[kind]), 1300, expected);
    }
    check(with(v6(17, 1301), 24, &[0xff, 2]), 1300, Some(1300));
    check(with(v6(17, 1301), 8, &[0xff, 2]), 1300, None);
    check(with(v6(17, 1301), 8, &[0; 16]), 1300, None);
}

#[test]
fn the_error_is_what_the_rfcs_say() {
    let packet = v4(6, DF, 1400);
    let said = error(&packet, 1300).unwrap();
    assert_eq!(said.len(), 576);
    assert_eq!(said[20..28], [3, 4, said[22], said[23], 0, 0, 0x05, 0x14]);
    assert_eq!(said[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
    assert_eq!(said[28..], packet[..548]);
    let packet = v6(6, 1400);
    let said = error(&packet, 1300).unwrap();
    assert_eq!(said.len(), 1280);
    assert_eq!(said[40..48], [2, 0, said[42], said[43], 0, 0, 0x05, 0x14]);
    assert_eq!(said[8..40], [&packet[24..40], &packet[8..24]].concat());
    assert_eq!(said[48..], packet[..1232]);
}

proptest! {
    #[test]
    fn every_error_is_a_packet_with_good_sums_and_shorter_than_what_it_is_about(
        bytes in prop::collection::vec(any::<u8>(), 0..3000), six: bool, room in 0usize..2000,
    ) {
        let mut packet = bytes;
        if let Some(first) = packet.first_mut() {
            *first = if six { 0x60 } else { 0x45 };
        }
        let Some(told) = told(&packet, packet.len(), room) else { return Ok(()) };
        prop_assert!(usize::from(told) < packet.len() && usize::from(told) >= room);
        let said = error(&packet, told).unwrap();
        let parsed = packet::parse(&said).unwrap();
        prop_assert!(parsed.len == said.len() && said.len() <= packet.len());
        if six {
            let icmp = &said[40..];
            let pseudo = [&said[8..40], &u32::try_from(icmp.len()).unwrap().to_be_bytes(), &[0, 0, 0, 58]].concat();
            prop_assert_eq!(slowly(&[&pseudo, icmp].concat()), 0xffff);
        } else {
            prop_assert_eq!(slowly(&said[..20]), 0xffff);
            prop_assert_eq!(slowly(&said[20..]), 0xffff);
        }
        prop_assert_eq!(super::told(&said, said.len(), 0), None, "nothing is said of an error");
    }
}
