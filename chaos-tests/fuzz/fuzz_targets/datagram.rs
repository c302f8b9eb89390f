//! Any bytes from the underlay: raw, shaped like a message, altered messages of a session, and any bytes that a
//! hostile peer encrypts. What reaches the host must be one well-formed packet from an allowed source.
#![no_main]

#[path = "tunnel_common.rs"]
#[allow(dead_code)]
mod tunnel_common;

use std::cell::RefCell;
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use tunnel_common::{Out, Pair};

thread_local! {
    static PAIR: RefCell<Pair> = RefCell::new(Pair::connected());
}

fn check(out: &Out) {
    for packet in &out.tun {
        let header = tunnel::packet::parse(packet).expect("a malformed packet was delivered");
        assert_eq!(header.len, packet.len());
        let allowed = match header.source {
            IpAddr::V4(a) => a.octets()[0] == 10,
            IpAddr::V6(a) => a.octets()[0] == 0xfd,
        };
        assert!(allowed, "a foreign source was delivered");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    PAIR.with_borrow_mut(|pair| {
        pair.refresh();
        let out = match mode % 8 {
            0 => pair.receive(rest),
            kind @ 1..=4 => {
                let mut datagram = vec![kind, 0, 0, 0];
                datagram.extend_from_slice(rest);
                match kind {
                    1 => datagram.resize(148, 0),
                    2 => datagram.resize(92, 0),
                    3 => datagram.resize(64, 0),
                    _ => {}
                }
                let out = pair.receive(&datagram);
                assert!(out.tun.is_empty(), "an unauthenticated packet was delivered");
                out
            }
            5 => {
                let mut datagram = pair.encrypt(&[0x45; 64]);
                let Some((at, flip)) = rest.first().zip(rest.get(1)) else { return };
                let at = usize::from(*at) % datagram.len();
                datagram[at] ^= flip;
                pair.receive(&datagram)
            }
            _ => {
                let datagram = pair.encrypt(rest);
                pair.receive(&datagram)
            }
        };
        check(&out);
    });
});
