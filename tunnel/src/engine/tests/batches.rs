//! Many at a time: what leaves and arrives is what one at a time would.

use super::*;
use crate::offload::checksum::tests::slowly;
use crate::offload::vnet::{Header, Segmentation};

/// A TCP super-packet from 10.0.0.1 to 10.0.0.2 with a partial checksum, and what the kernel says of it.
pub(super) fn super_packet(payload: usize, segment: u16, id: u16) -> (Header, Vec<u8>) {
    let mut p = v4([10, 0, 0, 1], [10, 0, 0, 2], 20 + payload);
    p[4..6].copy_from_slice(&id.to_be_bytes());
    p[6] = 0x40;
    p[9] = 6;
    let sum = !slowly(&p[..20]);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p[20..40].copy_from_slice(&[0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 1, 0, 0, 0, 0]);
    for (n, byte) in p[40..].iter_mut().enumerate() {
        *byte = u8::try_from(n * 31 % 251).unwrap();
    }
    let mut pseudo = p[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(u16::try_from(20 + payload).unwrap().to_be_bytes());
    p[36..38].copy_from_slice(&slowly(&pseudo).to_be_bytes());
    let header = Header { checksum: Some((20, 16)), segmentation: Segmentation::Tcp4, segment, headers: 40 };
    (header, p)
}

#[test]
fn a_super_packet_leaves_as_its_segments_and_is_delivered_in_one_piece() {
    let (a, b) = pair();
    let (header, packet) = super_packet(60_000, 1380, 7);
    let segments = split::tests::all(&header, packet.clone()).unwrap();
    let out = a.transmit_super(&header, &packet);
    assert_eq!(out.udp.len(), 44);
    assert!(out.udp.iter().all(|(to, d)| *to == b.addr && d.len() <= 1452));
    let mut row: Vec<u8> = out.udp.iter().flat_map(|(_, d)| d.clone()).collect();
    let got = b.receive_many(&row, 1452, a.addr);
    assert_eq!(got.tun, segments);
    assert_eq!(got.pieces, [44], "the host's stack is entered once");
    assert_eq!(b.count(Counter::DataDelivered), 44 + 1, "packets are counted, not pieces");
    assert_eq!(a.count(Counter::DataSent), 44 + 1);
    let peer = |n: &Node, of: PublicKey| {
        let view = n.engine.view(&n.net).peers.into_iter().find(|p| p.public_key == of).unwrap();
        (view.tx_bytes, view.rx_bytes)
    };
    assert_eq!(peer(&a, b.public()).0, peer(&b, a.public()).1, "and so are bytes");
    // A second time: all of it is a replay. An altered one does not spoil its neighbours.
    assert!(b.receive_many(&row, 1452, a.addr).tun.is_empty());
    assert_eq!(b.count(Counter::ReplayOrAuth), 44);
    row = a.transmit_super(&header, &packet).udp.into_iter().flat_map(|(_, d)| d).collect();
    row[1452 * 20 + 700] ^= 1;
    let got = b.receive_many(&row, 1452, a.addr);
    assert_eq!((got.tun.len(), got.pieces), (43, vec![20, 23]));
    assert_eq!(b.count(Counter::ReplayOrAuth), 45);
}

#[test]
fn a_host_that_takes_no_super_packets_gets_each_packet_by_itself() {
    let (a, b) = pair();
    let (header, packet) = super_packet(60_000, 1380, 7);
    let segments = split::tests::all(&header, packet.clone()).unwrap();
    let row: Vec<u8> = a.transmit_super(&header, &packet).udp.into_iter().flat_map(|(_, d)| d).collect();
    let (mut out, mut inbox) = (Out { picky: true, ..Out::default() }, Inbox::new(Offloads::ALL));
    b.engine.handle_datagrams(&row, 1452, a.addr, &mut inbox, &mut out);
    b.engine.deliver(&mut inbox, &mut out);
    assert_eq!(out.tun, segments);
    assert_eq!(out.pieces, [1; 44]);
    assert_eq!((b.count(Counter::DataDelivered), b.count(Counter::TunWrite)), (44 + 1, 0));
}

#[test]
fn segments_wait_for_a_session_and_drops_are_counted_by_segment() {
    let (a, b) = (Node::new(1), Node::new(2));
    let (header, packet) = super_packet(13_800, 1380, 1);
    a.transmit_super(&header, &packet);
    assert_eq!(a.count(Counter::NoPeer), 10);
    a.peer(b.public(), |p| p.prefixes = vec![PrefixOp::Add("10.0.0.2/32".parse().unwrap())]);
    a.transmit_super(&header, &packet);
    assert_eq!(a.count(Counter::NoEndpoint), 10);
    a.knows(&b, &["10.0.0.2/32"]);
    b.knows(&a, &["10.0.0.1/32"]);
    let got = settle(&[&a, &b], 0, a.transmit_super(&header, &packet));
    assert_eq!(got[&1], split::tests::all(&header, packet.clone()).unwrap());
    // More than wait for a session.
    b.peer(a.public(), |p| p.remove = true);
    a.peer(b.public(), |p| p.preshared_key = psk(1));
    for _ in 0..30 {
        a.transmit_super(&header, &packet);
    }
    assert_eq!(a.count(Counter::QueueFull), 300 - 256);
}

#[test]
fn a_row_of_datagrams_may_be_of_several_sessions_and_kinds() {
    let (a, b) = pair();
    let c = Node::new(3);
    c.knows(&b, &["10.0.0.2/32"]);
    b.knows(&c, &["10.0.0.3/32"]);
    let ping = |from: u8| v4([10, 0, 0, from], [10, 0, 0, 2], 80);
    settle(&[&a, &b, &c], 2, c.transmit(&ping(3)));
    let one = |n: &Node, from| n.transmit(&ping(from)).udp.remove(0).1;
    let foreign = a.transmit(&v4([10, 0, 0, 3], [10, 0, 0, 2], 80)).udp.remove(0).1;
    let mut row = [one(&a, 1), one(&c, 3), foreign, vec![4; 144], one(&a, 1)].concat();
    row.extend([1, 0, 0]);
    let got = b.receive_many(&row, 144, a.addr);
    assert_eq!(got.tun, [ping(1), ping(3), ping(1)]);
    assert_eq!(b.count(Counter::WrongSource), 1);
    assert_eq!(b.count(Counter::Malformed), 2);
    assert_eq!(b.endpoint_of(c.public()), Some(a.addr), "each of them proves its sender's address");
    assert!(b.receive_many(&[], 0, a.addr).tun.is_empty());
}

proptest! {
    #[test]
    fn one_after_the_other_or_in_a_row_the_same_arrives(
        payloads in prop::collection::vec((1usize..9000, 500u16..1400, any::<u16>()), 1..8), cut in 1usize..2000,
    ) {
        let (a, b) = pair();
        let mut expected = Vec::new();
        let mut sent = Vec::new();
        for (payload, segment, id) in payloads {
            let (header, packet) = super_packet(payload, segment, id);
            expected.extend(split::tests::all(&header, packet.clone()).unwrap());
            sent.extend(a.transmit_super(&header, &packet).udp.into_iter().map(|d| d.1));
        }
        prop_assert_eq!(sent.len(), expected.len());
        let mut got = Vec::new();
        for run in sent.chunk_by(|x, y| x.len() == y.len()) {
            got.extend(b.receive_many(&run.concat(), run[0].len(), a.addr).tun);
        }
        // PSH is where the kernel would put it, too: at the end of each piece it is in already.
        prop_assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            prop_assert_eq!(&got[40..], &expected[40..]);
            prop_assert_eq!(&got[24..28], &expected[24..28]);
        }
        // A row that is cut where no datagram ends is noise.
        let noise = sent.concat();
        prop_assert!(b.receive_many(&noise, cut, a.addr).tun.is_empty());
    }
}
