use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::engine::lanes::Lanes;
use crate::engine::{Engine, Underlay};
use crate::keys::PublicKey;
use crate::uapi::{PeerRequest, PrefixOp, SetRequest};

struct NoNetwork(Cell<u16>);

impl Underlay for NoNetwork {
    fn bind(&self, port: u16) -> io::Result<()> {
        self.0.set(port);
        Ok(())
    }
    fn set_fwmark(&self, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn port(&self) -> u16 {
        self.0.get()
    }
    fn fwmark(&self) -> u32 {
        0
    }
}

/// Peers at 10.0.0.N.
fn consignees(count: u8) -> Vec<Consignee> {
    let engine = Engine::with_lanes(1420, Lanes::new(2).unwrap());
    let peers = (0..count).map(|n| {
        let mut peer = PeerRequest::new(PublicKey::new([n + 1; 32]));
        peer.prefixes = vec![PrefixOp::Add(format!("10.0.0.{n}/32").parse().unwrap())];
        peer
    });
    let request = SetRequest { peers: peers.collect(), ..SetRequest::default() };
    engine.set(&request, &NoNetwork(Cell::new(1))).unwrap();
    let to = |n| {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[3] = 20;
        packet[16..].copy_from_slice(&[10, 0, 0, n]);
        engine.consignee(&vnet::Header::PLAIN, &mut packet).unwrap()
    };
    (0..count).map(to).collect()
}

proptest! {
    #[test]
    fn packets_come_out_as_they_went_in_and_in_their_order(
        steps in prop::collection::vec(
            (0u8..3, prop_oneof![1usize..200, 1000usize..40_000, 60_000usize..=vnet::LEN + MAX_PACKET], any::<bool>()),
            1..60,
        ),
    ) {
        let (queue, to) = (Queue::new().unwrap(), consignees(3));
        let mut buffer = queue.buffer();
        let mut expected = VecDeque::new();
        let popped = |expected: &mut VecDeque<(u64, usize, u8)>| {
            prop_assert_eq!(queue.filled.is_raised(), !expected.is_empty());
            let Some(parcel) = queue.pop() else {
                prop_assert!(expected.is_empty());
                return Ok(false);
            };
            for packet in &parcel.packets {
                let (peer, len, mark) = expected.pop_front().expect("one that went in");
                prop_assert_eq!((packet.to.id(), packet.at.len()), (peer, len));
                prop_assert!(parcel.bytes[packet.at.clone()].iter().all(|byte| *byte == mark));
                prop_assert!(packet.at.end <= parcel.bytes.len());
            }
            let _ = queue.give_back(parcel);
            Ok(true)
        };
        for (n, (peer, len, pop)) in steps.into_iter().enumerate() {
            let (to, mark) = (to[usize::from(peer)].clone(), u8::try_from(n).unwrap());
            prop_assert!(buffer.packets.is_empty());
            buffer.bytes[..len].fill(mark);
            expected.push_back((to.id(), len, mark));
            queue.push(&mut buffer, len, to);
            prop_assert!(queue.waiting() >= expected.iter().map(|(_, len, _)| len).sum());
            if pop {
                popped(&mut expected)?;
            }
        }
        while popped(&mut expected)? {}
        prop_assert_eq!(queue.waiting(), 0);
        prop_assert_eq!(to.iter().map(Consignee::waiting).sum::<usize>(), 0);
        prop_assert!(!queue.filled.is_raised());
    }
}

#[test]
fn buffers_are_half_full_but_for_one_so_memory_is_twice_what_waits() {
    let (queue, to) = (Queue::new().unwrap(), consignees(1));
    let mut buffer = queue.buffer();
    for len in [SHORT, 1, SHORT, SHORT + 1, 10].into_iter().cycle().take(500) {
        queue.push(&mut buffer, len, to[0].clone());
    }
    let state = lock(&queue.state);
    let held = state.parcels.iter().map(|parcel| parcel.bytes.len()).sum::<usize>();
    assert!(held <= 2 * queue.waiting() + BUFFER, "{held} bytes for {}", queue.waiting());
}

#[test]
fn who_waits_for_room_is_told_once() {
    let (queue, to) = (Queue::new().unwrap(), consignees(1));
    let mut buffer = queue.buffer();
    let mut turn = || {
        queue.push(&mut buffer, 60_000, to[0].clone());
        queue.give_back(queue.pop().unwrap())
    };
    assert!(!turn());
    queue.want_room();
    assert_eq!([turn(), turn()], [true, false]);
    assert_eq!(queue.turns(), 3);
}

#[test]
fn strays_are_bounded_and_keep_their_order() {
    let strays = Strays::default();
    let from = "192.0.2.1:1".parse().unwrap();
    let taken = (0u8..100).filter(|n| strays.push(from, 1452, &[*n; 40_000])).count();
    assert!((20..30).contains(&taken), "{taken}");
    let order: Vec<_> = strays.take().into_iter().map(|stray| usize::from(stray.bytes[0])).collect();
    assert_eq!(order, (0..taken).collect::<Vec<_>>());
    assert!(strays.push(from, 1452, &[0; 40_000]) && strays.take().len() == 1);
}
