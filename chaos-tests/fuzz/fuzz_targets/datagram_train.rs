//! Any row of datagrams of a session, as the underlay hands them over in one call: altered, repeated, delayed, of lengths of
//! their own, among noise, with foreign sources. The host gets each that is in order once, unaltered, as they came; and
//! of a row that is cut where no datagram ends, nothing else.
#![no_main]

#[path = "tunnel_common.rs"]
#[allow(dead_code)]
mod tunnel_common;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use tunnel_common::{Out, Pair, peer_addr};

/// Far below the replay window, so that a delay alone drops nothing.
const MOST: usize = 400;

thread_local! {
    static PAIR: RefCell<Pair> = RefCell::new(Pair::connected());
}

/// A packet of a protocol that is never joined to another.
fn packet(serial: usize, len: u8, foreign: bool) -> Vec<u8> {
    let mut packet = vec![len; 28 + usize::from(len)];
    packet[..20].fill(0);
    packet[0] = 0x45;
    let total = u16::try_from(packet.len()).expect("short");
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[9] = 253;
    packet[12..16].copy_from_slice(&[if foreign { 11 } else { 10 }, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet[20..28].copy_from_slice(&(serial as u64).to_be_bytes());
    packet
}

/// Hands over what lies in rows: of equal length, and a shorter one ends a row. With `cut`, at wrong places.
fn receive(pair: &mut Pair, datagrams: &[Vec<u8>], cut: Option<usize>) -> Out {
    let mut out = Out::default();
    let mut rest = datagrams;
    while let Some(first) = rest.first() {
        let equal = rest.iter().take_while(|d| d.len() == first.len()).count();
        let shorter = usize::from(rest.get(equal).is_some_and(|d| d.len() < first.len()));
        let row = rest[..equal + shorter].concat();
        let segment = cut.unwrap_or(first.len());
        // A call never brings more than this.
        for part in row.chunks(60_000 / segment * segment) {
            pair.engine.handle_datagrams(part, segment, peer_addr(), &mut pair.inbox, &mut out);
        }
        rest = &rest[equal + shorter..];
    }
    pair.engine.deliver(&mut pair.inbox, &mut out);
    out
}

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, steps)) = bytes.split_first() else { return };
    let cut = (cut & 1 == 1).then_some(usize::from(*cut) + 1);
    PAIR.with_borrow_mut(|pair| {
        pair.refresh();
        // Each with what the host gets of it.
        let (mut arriving, mut delayed) = (Vec::new(), Vec::new());
        for (serial, step) in steps.chunks_exact(2).take(MOST).enumerate() {
            let (fate, len) = (step[0], step[1]);
            let packet = packet(serial, len, fate & 0x10 != 0);
            let mut datagram = pair.encrypt(&packet);
            let expected = (fate & 0x10 == 0).then_some(packet);
            match fate & 7 {
                0 => {
                    let at = usize::from(fate >> 5) * (datagram.len() - 1) / 7;
                    datagram[at] ^= 1;
                    arriving.push((datagram, None));
                }
                1 => {
                    arriving.push((datagram.clone(), expected));
                    arriving.push((datagram, None));
                }
                2 => delayed.push((datagram, expected)),
                3 => arriving.push((vec![fate >> 5; datagram.len()], None)),
                _ => arriving.push((datagram, expected)),
            }
        }
        arriving.append(&mut delayed);
        let (datagrams, expected): (Vec<_>, Vec<_>) = arriving.into_iter().unzip();
        let mut expected = expected.into_iter().flatten();
        let out = receive(pair, &datagrams, cut);
        if cut.is_none() {
            assert!(out.tun.into_iter().eq(expected), "lost, altered, or in another order");
        } else {
            assert!(out.tun.into_iter().all(|got| expected.any(|packet| packet == got)), "made up, or twice");
        }
    });
});
