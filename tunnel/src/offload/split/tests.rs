use proptest::prelude::*;

use super::super::checksum::tests::slowly;
use super::*;

/// A super-packet as the host's kernel makes one, with its partial checksum.
#[derive(Clone, Debug)]
struct Whole {
    six: bool,
    protocol: u8,
    /// Of TCP, and of IPv4.
    options: Vec<u8>,
    ip_options: Vec<u8>,
    flags: u8,
    payload: Vec<u8>,
    segment: u16,
    id: u16,
    sequence: u32,
}

impl Whole {
    fn build(&self) -> (Header, Vec<u8>) {
        let mut transport = vec![0x1f, 0x90, 0xc0, 0x01];
        if self.protocol == TCP {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([9, 9, 9, 9, 0x50 + u8::try_from(self.options.len() / 4).unwrap() * 0x10]);
            transport.extend([self.flags, 0x12, 0x34, 0, 0, 0, 0]);
            transport.extend(&self.options);
        } else {
            let len = u16::try_from(8 + self.payload.len()).unwrap();
            transport.extend(len.to_be_bytes());
            transport.extend([0, 0]);
        }
        let headers = transport.len();
        transport.extend(&self.payload);
        let len = u16::try_from(transport.len()).unwrap();
        let mut ip = if self.six {
            let mut ip = vec![0x6a, 0xb0, 0x12, 0x34];
            ip.extend(len.to_be_bytes());
            ip.extend([self.protocol, 63]);
            ip.extend((0..32).map(|n| n * 3));
            ip
        } else {
            let header = 20 + self.ip_options.len();
            let mut ip = vec![0x40 + u8::try_from(header / 4).unwrap(), 0xab];
            ip.extend((len + u16::try_from(header).unwrap()).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([0x40, 0, 63, self.protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            ip.extend(&self.ip_options);
            let sum = slowly(&ip);
            ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
            ip
        };
        let start = ip.len();
        let offset = if self.protocol == TCP { 16 } else { 6 };
        let addresses = if self.six { 8..40 } else { 12..20 };
        let mut pseudo = ip[addresses].to_vec();
        pseudo.extend([0, self.protocol]);
        pseudo.extend(len.to_be_bytes());
        transport[offset..offset + 2].copy_from_slice(&slowly(&pseudo).to_be_bytes());
        ip.extend(transport);
        let segmentation = match (self.protocol, self.six) {
            (TCP, false) => Segmentation::Tcp4,
            (TCP, true) => Segmentation::Tcp6,
            _ => Segmentation::Udp,
        };
        let header = Header {
            checksum: Some((u16::try_from(start).unwrap(), u16::try_from(offset).unwrap())),
            segmentation,
            segment: self.segment,
            headers: u16::try_from(start + headers).unwrap(),
        };
        (header, ip)
    }
}

fn whole() -> impl Strategy<Value = Whole> {
    let words = |most: usize| (0..=most).prop_flat_map(|n| prop::collection::vec(any::<u8>(), n * 4..=n * 4));
    let payload = (1usize..9000).prop_flat_map(|n| prop::collection::vec(any::<u8>(), n..=n));
    let segment = prop_oneof![Just(1368u16), Just(536), 40u16..3000];
    (any::<bool>(), prop_oneof![Just(TCP), Just(UDP)], words(10), words(10), any::<u8>(), payload, segment)
        .prop_flat_map(|(six, protocol, options, ip_options, flags, payload, segment)| {
            (any::<u16>(), any::<u32>()).prop_map(move |(id, sequence)| Whole {
                six,
                protocol,
                options: options.clone(),
                ip_options: ip_options.clone(),
                flags,
                payload: payload.clone(),
                segment,
                id,
                sequence,
            })
        })
}

/// Everything that is made of a packet.
pub(crate) fn all(header: &Header, mut packet: Vec<u8>) -> Option<Vec<Vec<u8>>> {
    match plan(header, &mut packet)? {
        Plan::Whole(len) => Some(vec![packet[..len].to_vec()]),
        Plan::Segments(mut segments) => {
            let mut made = Vec::new();
            while let Some(at) = segments.next_in(&mut packet) {
                assert!(at.len() <= segments.longest());
                made.push(packet[at].to_vec());
            }
            assert_eq!(segments.remaining(), 0);
            Some(made)
        }
    }
}

/// Checks lengths and checksums of one packet the slow way.
fn is_sound(packet: &[u8], whole: &Whole) {
    let transport = if whole.six { 40 } else { 20 + whole.ip_options.len() };
    let len = u16::try_from(packet.len() - transport).unwrap();
    let addresses = if whole.six {
        assert_eq!(packet[4..6], len.to_be_bytes());
        8..40
    } else {
        assert_eq!(packet[2..4], u16::try_from(packet.len()).unwrap().to_be_bytes());
        assert_eq!(slowly(&packet[..transport]), 0xffff, "IPv4's checksum");
        12..20
    };
    let mut covered = packet[addresses].to_vec();
    covered.extend([0, whole.protocol]);
    covered.extend(len.to_be_bytes());
    covered.extend(&packet[transport..]);
    assert_eq!(slowly(&covered), 0xffff, "the checksum");
    if whole.protocol == UDP {
        assert_ne!(packet[transport + 6..transport + 8], [0, 0]);
        assert_eq!(packet[transport + 4..transport + 6], len.to_be_bytes());
    }
}

proptest! {
    #[test]
    fn segments_are_sound_and_together_they_are_the_whole(whole in whole()) {
        let (header, packet) = whole.build();
        let made = all(&header, packet.clone()).unwrap();
        let headers = usize::from(header.headers);
        let transport = usize::from(header.checksum.unwrap().0);
        prop_assert_eq!(made.len(), whole.payload.len().div_ceil(usize::from(whole.segment)));
        let mut payload = Vec::<u8>::new();
        for (index, segment) in made.iter().enumerate() {
            is_sound(segment, &whole);
            if whole.protocol == TCP {
                let sequence = whole.sequence.wrapping_add(u32::try_from(payload.len()).unwrap());
                prop_assert_eq!(&segment[transport + 4..transport + 8], &sequence.to_be_bytes());
                let last = index + 1 == made.len();
                let gone = if last { 0 } else { FIN | PSH } | if index > 0 { CWR } else { 0 };
                prop_assert_eq!(segment[transport + 13], whole.flags & !gone);
            }
            if !whole.six {
                let id = whole.id.wrapping_add(u16::try_from(index).unwrap());
                prop_assert_eq!(&segment[4..6], &id.to_be_bytes());
            }
            // All else of the headers is the whole's.
            let changed = if whole.six { [4..6, 4..6] } else { [2..6, 10..12] };
            let moved = if whole.protocol == TCP { [4..8, 13..14, 16..18] } else { [4..6, 6..8, 8..8] };
            for at in 0..headers {
                let counted = changed.iter().any(|r| r.contains(&at))
                    || at >= transport && moved.iter().any(|r| r.contains(&(at - transport)));
                prop_assert!(counted || segment[at] == packet[at], "byte {at} of segment {index}");
            }
            payload.extend(&segment[headers..]);
        }
        prop_assert_eq!(payload, whole.payload);
    }

    #[test]
    fn a_partial_checksum_is_completed(whole in whole()) {
        let (header, packet) = whole.build();
        let alone = Header { segmentation: Segmentation::None, segment: 0, ..header };
        let made = all(&alone, packet.clone()).unwrap();
        prop_assert_eq!(made.len(), 1);
        is_sound(&made[0], &whole);
        let whole_as_it_is = all(&Header::PLAIN, packet.clone()).unwrap();
        prop_assert_eq!(whole_as_it_is, vec![packet]);
    }

    #[test]
    fn no_header_and_no_packet_panics(
        bytes in any::<[u8; super::super::vnet::LEN]>(), whole in whole(), at in 0usize..80, byte: u8, cut in 0usize..9100,
    ) {
        let (own, mut packet) = whole.build();
        let len = packet.len();
        packet[at.min(len - 1)] = byte;
        packet.truncate(cut.max(1));
        for header in [Some(own), Header::decode(&bytes)].into_iter().flatten() {
            for made in all(&header, packet.clone()).into_iter().flatten() {
                prop_assert!(packet::parse(&made).is_some_and(|p| p.len == made.len()));
            }
        }
    }
}

#[test]
fn what_does_not_fit_its_header_is_refused() {
    let whole = Whole {
        six: false,
        protocol: TCP,
        options: vec![],
        ip_options: vec![],
        flags: 0x18,
        payload: vec![7; 3000],
        segment: 1000,
        id: 65535,
        sequence: u32::MAX - 500,
    };
    let (good, packet) = whole.build();
    assert_eq!(all(&good, packet.clone()).unwrap().len(), 3);
    assert_eq!(all(&Header { segment: 2, ..good }, packet.clone()).unwrap().len(), 1500);
    for bad in [
        Header { segment: 0, ..good },
        // A datagram of each byte: no kernel cuts like that, but a pod may ask for it.
        Header { segment: 1, ..good },
        Header { segmentation: Segmentation::Tcp6, ..good },
        Header { segmentation: Segmentation::Udp, ..good },
        Header { checksum: None, ..good },
        Header { checksum: Some((24, 16)), ..good },
        Header { segmentation: Segmentation::None, checksum: Some((3039, 0)), ..good },
    ] {
        assert!(all(&bad, packet.clone()).is_none(), "{bad:?}");
    }
    let mut fragment = packet.clone();
    fragment[6] = 0x20;
    assert!(all(&good, fragment).is_none(), "a fragment is not cut");
}

/// What a pod with a packet socket may say of a packet: its address or port would be another one than policy has judged.
#[test]
fn a_checksum_that_belongs_into_an_address_or_a_port_is_refused() {
    for (six, protocol) in [(true, TCP), (true, UDP), (false, TCP), (false, UDP)] {
        let whole = Whole {
            six,
            protocol,
            options: vec![],
            ip_options: vec![],
            flags: 0x10,
            payload: vec![3; 100],
            segment: 900,
            id: 0,
            sequence: 1,
        };
        let (header, packet) = whole.build();
        let (start, offset) = header.checksum.unwrap();
        let claim = |start, offset| Header {
            segmentation: Segmentation::None,
            segment: 0,
            checksum: Some((start, offset)),
            ..header
        };
        assert!(all(&claim(start, offset), packet.clone()).is_some());
        let addresses = [(start - 20, 2), (start - 20, 18), (start - 4, 2), (start - 2, 0)];
        for (start, offset) in
            addresses.into_iter().chain([(start, 0), (start, 2), (start, 4), (start + 2, 0)])
        {
            assert!(
                all(&claim(start, offset), packet.clone()).is_none(),
                "{six} {protocol} {start} {offset}"
            );
        }
        // In what the packet carries it is the pod's own.
        assert!(all(&claim(start + 20, 4), packet.clone()).is_some());
        let mut fragment = packet.clone();
        if !six {
            fragment[6] = 0x20;
            assert!(all(&claim(start, offset), fragment).is_none(), "a fragment has no whole checksum");
        }
    }
}

#[test]
fn tcp_behind_extension_headers_of_ipv6_is_found() {
    let (header, packet) = Whole {
        six: true,
        protocol: TCP,
        options: vec![1; 12],
        ip_options: vec![],
        flags: 0x10,
        payload: vec![3; 2000],
        segment: 900,
        id: 0,
        sequence: 1,
    }
    .build();
    let mut extended = packet[..40].to_vec();
    extended[6] = 60;
    extended.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend(&packet[40..]);
    let len = u16::try_from(extended.len() - 40).unwrap();
    extended[4..6].copy_from_slice(&len.to_be_bytes());
    let made = all(&Header { checksum: Some((48, 16)), ..header }, extended).unwrap();
    assert_eq!(made.iter().map(|p| p.len() - 80).collect::<Vec<_>>(), [900, 900, 200]);
}
