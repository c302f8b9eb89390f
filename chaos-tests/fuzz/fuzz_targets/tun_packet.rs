//! Any bytes from the TUN device. Only well-formed packets for a peer are sent, and the peer gets them intact.
#![no_main]

#[path = "tunnel_common.rs"]
#[allow(dead_code)]
mod tunnel_common;

use std::cell::RefCell;

use boringtun::noise::TunnResult;
use libfuzzer_sys::fuzz_target;
use tunnel::engine::MAX_PACKET;
use tunnel_common::{Out, Pair};

thread_local! {
    static STATE: RefCell<(Pair, Vec<u8>)> = RefCell::new((Pair::connected(), vec![0; MAX_PACKET]));
}

fuzz_target!(|bytes: &[u8]| {
    STATE.with_borrow_mut(|(pair, buffer)| {
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        let mut out = Out::default();
        pair.engine.handle_tun_packet(buffer, len, &mut pair.scratch, &mut out);
        let Some((_, datagram)) = out.udp.first() else { return };
        let header = tunnel::packet::parse(&bytes[..len]).expect("a malformed packet was sent");
        let mut plain = vec![0; datagram.len()];
        match pair.tunn.decapsulate(None, datagram, &mut plain) {
            TunnResult::WriteToTunnelV4(p, _) | TunnResult::WriteToTunnelV6(p, _) => {
                assert_eq!(p, &bytes[..header.len]);
            }
            other => panic!("the peer did not understand: {other:?}"),
        }
    });
});
