//! Any bytes from the TUN device, with any header before them. Only well-formed packets for a peer are sent, and the peer
//! gets what the kernel would have made of them; or nothing, and their sender is told that the path takes less.
#![no_main]

#[path = "tunnel_common.rs"]
#[allow(dead_code)]
mod tunnel_common;

use std::cell::RefCell;

use boringtun::noise::TunnResult;
use libfuzzer_sys::fuzz_target;
use tunnel::engine::{MAX_PACKET, Outbox};
use tunnel::offload::vnet::{Header, LEN};
use tunnel_common::{Out, Pair, cut};

thread_local! {
    static STATE: RefCell<(Pair, Outbox, Vec<u8>)> =
        RefCell::new((Pair::connected(), Outbox::new(), vec![0; MAX_PACKET]));
}

fuzz_target!(|bytes: &[u8]| {
    // Half of them without anything to cut, so that plain packets are met often.
    let Some((first, rest)) = bytes.split_first_chunk::<LEN>() else { return };
    let (header, bytes) =
        if first[0] & 0x80 == 0 { (Header::decode(first), rest) } else { (Some(Header::PLAIN), bytes) };
    let Some(header) = header else { return };
    STATE.with_borrow_mut(|(pair, outbox, buffer)| {
        pair.refresh();
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        let mut out = Out::default();
        // Narrow for every other one.
        let path = if first[0] & 0x40 == 0 { 1500 } else { 1000 };
        pair.engine.look_at_paths(|_| Some(path));
        pair.engine.handle_tun_packet(&header, buffer, len, outbox, &mut out);
        pair.engine.flush(outbox, &mut out);
        let made = cut(&header, bytes[..len].to_vec()).unwrap_or_default();
        assert!(out.udp.is_empty() || out.udp.len() == made.len());
        assert!(out.tun.is_empty() || (path == 1000 && out.udp.is_empty()));
        for told in &out.tun {
            let header = tunnel::packet::parse(told).expect("a malformed error");
            let longest = made.iter().map(Vec::len).max().expect("an error about nothing");
            assert!(header.len == told.len() && told.len() <= longest);
        }
        for ((_, datagram), made) in out.udp.iter().zip(made) {
            let header = tunnel::packet::parse(&made).expect("a malformed packet was sent");
            let mut plain = vec![0; datagram.len()];
            match pair.tunn.decapsulate(None, datagram, &mut plain) {
                TunnResult::WriteToTunnelV4(p, _) | TunnResult::WriteToTunnelV6(p, _) => {
                    assert_eq!(p, &made[..header.len]);
                }
                other => panic!("the peer did not understand: {other:?}"),
            }
        }
    });
});
