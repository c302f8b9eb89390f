use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::checksum::tests::slowly;
use super::super::split::tests::all;
use super::*;

/// One packet of a flow, as its sender made it.
#[derive(Clone, Debug)]
struct Piece {
    flow: u8,
    payload: usize,
    /// What is unusual about it.
    quirk: Quirk,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Quirk {
    None,
    Push,
    Fin,
    Cwr,
    Ece,
    Syn,
    Urg,
    Window,
    Ack,
    Option,
    CongestionExperienced,
    HopLimit,
    Repeated,
    Gap,
    WrongChecksum,
    NoChecksum,
    OtherId,
    Fragment,
    IpOptions,
    WrongHeaderChecksum,
    ReservedBit,
}

/// Where a sender is.
#[derive(Clone, Copy, Debug)]
struct At {
    sequence: u32,
    id: u16,
}

fn put(field: &mut [u8], sum: u16) {
    field.copy_from_slice(&(!sum).to_be_bytes());
}

/// Flows 0 to 7: bit 0 IPv6, bit 1 UDP, bit 2 another port. IPv4 of the other port may be fragmented or has no
/// identification.
fn build(piece: &Piece, at: &mut At) -> Vec<u8> {
    let six = piece.flow & 1 != 0;
    let udp = piece.flow & 2 != 0;
    let quirk = piece.quirk;
    let mut transport = vec![0x1f, 0x90, 0xc0, piece.flow];
    if udp {
        transport.extend(u16::try_from(8 + piece.payload).unwrap().to_be_bytes());
        transport.extend([0, 0]);
    } else {
        if quirk == Quirk::Gap {
            at.sequence = at.sequence.wrapping_add(1);
        }
        let back = if quirk == Quirk::Repeated { 100 } else { 0 };
        transport.extend(at.sequence.wrapping_sub(back).to_be_bytes());
        at.sequence = at.sequence.wrapping_add(u32::try_from(piece.payload).unwrap());
        let ack = if quirk == Quirk::Ack { 8 } else { 9 };
        let flags = 0x10
            | [
                (Quirk::Push, 0x08),
                (Quirk::Fin, 0x01),
                (Quirk::Cwr, 0x80),
                (Quirk::Ece, 0x40),
                (Quirk::Syn, 0x02),
                (Quirk::Urg, 0x20),
            ]
            .into_iter()
            .find_map(|(other, flag)| (other == quirk).then_some(flag))
            .unwrap_or(0);
        let window = if quirk == Quirk::Window { 1 } else { 2 };
        transport.extend([9, 9, 9, ack, 0x80, flags, window, 0, 0, 0, 0, 0]);
        transport.extend([1, 1, 8, 10, 0, 0, 0, u8::from(quirk == Quirk::Option), 0, 0, 0, 1]);
    }
    transport.extend((0..piece.payload).map(|n| u8::try_from((n * 7) & 0xff).unwrap()));
    let len = transport.len();
    let ce = u8::from(quirk == Quirk::CongestionExperienced);
    let hops = if quirk == Quirk::HopLimit { 62 } else { 63 };
    let protocol = if udp { UDP } else { TCP };
    let mut ip = if six {
        let mut ip = vec![0x60, 0x20 | ce << 4, 0x12, 0x34];
        ip.extend(u16::try_from(len).unwrap().to_be_bytes());
        ip.extend([protocol, hops]);
        ip.extend([0xfd; 16]);
        ip.extend([0xfc; 16]);
        ip
    } else {
        let options = if quirk == Quirk::IpOptions { 4 } else { 0 };
        let mut fragment = if piece.flow & 4 == 0 { 0x40 } else { 0 };
        if quirk == Quirk::Fragment {
            fragment |= 0x20;
        }
        if quirk == Quirk::ReservedBit {
            fragment |= 0x80;
        }
        if quirk == Quirk::OtherId {
            at.id = at.id.wrapping_add(77);
        }
        let mut ip = vec![0x45 + options / 4, 0x02 | ce];
        ip.extend(u16::try_from(20 + usize::from(options) + len).unwrap().to_be_bytes());
        ip.extend(at.id.to_be_bytes());
        // UDP that may not be fragmented has always the same one.
        if !(udp && fragment & 0x40 != 0) {
            at.id = at.id.wrapping_add(1);
        }
        ip.extend([fragment, 0, hops, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.extend(vec![1; options.into()]);
        let sum = slowly(&ip);
        put(&mut ip[10..12], if quirk == Quirk::WrongHeaderChecksum { sum ^ 1 } else { sum });
        ip
    };
    let mut covered = ip[if six { 8..40 } else { 12..20 }].to_vec();
    covered.extend([0, protocol]);
    covered.extend(u16::try_from(len).unwrap().to_be_bytes());
    covered.extend(&transport);
    let field = if udp { 6..8 } else { 16..18 };
    let sum = slowly(&covered);
    put(&mut transport[field.clone()], if quirk == Quirk::WrongChecksum { sum ^ 0x100 } else { sum });
    if udp && transport[field.clone()] == [0, 0] {
        transport[field.clone()].fill(0xff);
    }
    if udp && quirk == Quirk::NoChecksum {
        transport[field].fill(0);
    }
    ip.extend(transport);
    ip
}

fn packets(pieces: &[Piece]) -> Vec<Vec<u8>> {
    let mut senders: BTreeMap<u8, At> = BTreeMap::new();
    let first = At { sequence: u32::MAX - 3000, id: u16::MAX - 2 };
    pieces.iter().map(|p| build(p, senders.entry(p.flow).or_insert(first))).collect()
}

/// What is written for these packets: header, bytes, how many.
fn coalesce(packets: &[Vec<u8>], offloads: Offloads) -> Vec<(Header, Vec<u8>, usize)> {
    let mut buffer = Vec::new();
    let mut coalescer = Coalescer::new(offloads);
    let at: Vec<_> = packets
        .iter()
        .map(|p| {
            let start = buffer.len();
            buffer.extend(p);
            start..buffer.len()
        })
        .collect();
    at.into_iter().for_each(|at| coalescer.push(&buffer, at));
    let mut written = Vec::new();
    coalescer.drain(&mut buffer, |header, pieces, count| written.push((*header, pieces.concat(), count)));
    assert!(coalescer.is_empty());
    written
}

/// A packet without what no stack looks at: PSH of TCP, and an identification where nothing may be fragmented, with
/// the checksums that cover them.
fn seen_by_a_stack(packet: &[u8]) -> Vec<u8> {
    let mut p = packet.to_vec();
    if p[0] == 0x45 && p[6] & 0x40 != 0 {
        p[4..6].fill(0);
        p[10..12].fill(0);
    }
    let transport = if p[0] >> 4 == 6 { 40 } else { usize::from(p[0] & 15) * 4 };
    let protocol = if p[0] >> 4 == 6 { p[6] } else { p[9] };
    if protocol == TCP {
        let push = p[transport + 13] & PSH;
        p[transport + 13] &= !PSH;
        let sum = &mut p[transport + 16..transport + 18];
        let without = Sum::default().bytes(sum).word(push.into()).fold();
        // Zero has two forms.
        sum.copy_from_slice(if without == [0xff, 0xff] { &[0, 0] } else { &without });
    }
    p
}

fn piece() -> impl Strategy<Value = Piece> {
    use Quirk::*;
    let quirk = prop_oneof![
        30 => Just(None),
        2 => Just(Push),
        1 => prop::sample::select(vec![
            Fin, Cwr, Ece, Syn, Urg, Window, Ack, Option, CongestionExperienced, HopLimit, Repeated, Gap,
            WrongChecksum, NoChecksum, OtherId, Fragment, IpOptions, WrongHeaderChecksum, ReservedBit,
        ]),
    ];
    let payload = prop_oneof![8 => Just(1368usize), 4 => Just(100), 1 => 0usize..1500];
    (prop_oneof![4 => Just(0u8), 4 => 0u8..8], payload, quirk).prop_map(|(flow, payload, quirk)| Piece {
        flow,
        payload,
        quirk,
    })
}

/// By addresses: the order of what shows no ports matters, too.
fn by_flow(packets: Vec<Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        let key = if packet[0] >> 4 == 6 { packet[8..44].to_vec() } else { packet[12..24].to_vec() };
        flows.entry(key).or_default().push(packet);
    }
    flows
}

proptest! {
    #[test]
    fn cut_again_the_packets_are_those_that_came_and_each_flow_keeps_its_order(
        pieces in prop::collection::vec(piece(), 1..120),
    ) {
        let packets = packets(&pieces);
        let mut back = Vec::new();
        for (header, bytes, count) in coalesce(&packets, Offloads::ALL) {
            let cut = all(&header, bytes).expect("what was joined can be cut");
            prop_assert_eq!(cut.len(), count);
            back.extend(cut);
        }
        prop_assert_eq!(back.len(), packets.len());
        let seen = |packets: Vec<Vec<u8>>| by_flow(packets.iter().map(|p| seen_by_a_stack(p)).collect());
        prop_assert_eq!(seen(back), seen(packets));
    }

    #[test]
    fn packets_alone_are_untouched(piece in piece()) {
        let packets = packets(&[piece]);
        let written = coalesce(&packets, Offloads::ALL);
        prop_assert_eq!(written, vec![(Header::PLAIN, packets[0].clone(), 1)]);
    }

    #[test]
    fn what_is_not_permitted_is_not_joined(pieces in prop::collection::vec(piece(), 1..40)) {
        let packets = packets(&pieces);
        let none = Offloads { vnet: true, tcp: false, udp: false };
        let written: Vec<_> = coalesce(&packets, none).into_iter().map(|w| w.1).collect();
        prop_assert_eq!(written, packets);
    }

    #[test]
    fn any_well_formed_packets_are_survived(
        many in prop::collection::vec((prop::collection::vec(any::<u8>(), 20..200), 0u8..4), 1..20),
    ) {
        let packets: Vec<_> = many.into_iter().map(|(mut p, kind)| {
            let len = p.len();
            if kind & 1 == 0 || len < 40 {
                p[0] = 0x45;
                p[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                p[9] = if kind & 2 == 0 { TCP } else { UDP };
            } else {
                p[0] = 0x60;
                p[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
                p[6] = if kind & 2 == 0 { TCP } else { UDP };
            }
            p
        }).collect();
        let count: usize = coalesce(&packets, Offloads::ALL).iter().map(|w| w.2).sum();
        prop_assert_eq!(count, packets.len());
    }
}

fn counts(pieces: &[(u8, usize, Quirk)]) -> Vec<usize> {
    let pieces: Vec<_> =
        pieces.iter().map(|&(flow, payload, quirk)| Piece { flow, payload, quirk }).collect();
    coalesce(&packets(&pieces), Offloads::ALL).into_iter().map(|w| w.2).collect()
}

#[test]
fn what_follows_each_other_is_joined_and_what_ends_a_run_ends_it() {
    use Quirk::*;
    let many = |flow, n| vec![(flow, 1368, None); n];
    for flow in 0..8 {
        assert_eq!(counts(&many(flow, 40)), [40], "flow {flow}");
        assert_eq!(counts(&many(flow, 50)), [47, 3], "64 KiB are full");
        let mut short = many(flow, 3);
        short.push((flow, 5, None));
        short.extend(many(flow, 2));
        assert_eq!(counts(&short), [4, 2], "a shorter one ends it");
        assert_eq!(counts(&[(flow, 5, None), (flow, 1368, None), (flow, 1368, None)]), [1, 2]);
    }
    assert_eq!(counts(&vec![(0, 10, None); 130]), [64, 64, 2]);
    for (flow, quirk, expect) in [
        (0, Push, vec![5]),
        (1, Push, vec![5]),
        (0, Fin, vec![3, 2]),
        (0, Cwr, vec![2, 1, 2]),
        (0, Syn, vec![2, 1, 2]),
        (0, Urg, vec![2, 1, 2]),
        (0, Ece, vec![2, 1, 2]),
        (0, Window, vec![2, 1, 2]),
        (0, Ack, vec![2, 1, 2]),
        (0, Option, vec![2, 1, 2]),
        (1, CongestionExperienced, vec![2, 1, 2]),
        (2, CongestionExperienced, vec![2, 1, 2]),
        (3, HopLimit, vec![2, 1, 2]),
        (0, Gap, vec![2, 3]),
        (0, Repeated, vec![2, 1, 2]),
        (2, WrongChecksum, vec![2, 1, 2]),
        (0, WrongChecksum, vec![2, 1, 2]),
        (0, WrongHeaderChecksum, vec![2, 1, 2]),
        (3, NoChecksum, vec![2, 1, 2]),
        (4, OtherId, vec![2, 3]),
        (6, OtherId, vec![2, 3]),
        (0, Fragment, vec![2, 1, 2]),
        (0, IpOptions, vec![2, 1, 2]),
    ] {
        let mut pieces = vec![(flow, 1368, None); 5];
        pieces[2].2 = quirk;
        assert_eq!(counts(&pieces), expect, "{quirk:?} in flow {flow}");
    }
}

#[test]
fn flows_that_alternate_are_joined_each_for_itself() {
    let mixed: Vec<_> = (0..80).map(|n| (n % 8, 1000, Quirk::None)).collect();
    assert_eq!(counts(&mixed), [10; 8]);
}
