//! Any packets in a row from a peer. Joined and cut again they are as many, with the same addresses and payload, and
//! what stayed alone is untouched.
#![no_main]

#[path = "tunnel_common.rs"]
#[allow(dead_code)]
mod tunnel_common;

use libfuzzer_sys::fuzz_target;
use tunnel::offload::Offloads;
use tunnel::offload::coalesce::Coalescer;
use tunnel::offload::vnet::Header;
use tunnel_common::cut;

/// The first two bytes say how long the next packet is, and whether it is the one before it, moved on by its length:
/// else hardly two would ever follow each other.
fn packets(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while let Some(([how, len], rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(*len) + 20;
        let mut packet = match packets.last() {
            Some(last) if how & 1 == 1 => {
                let mut next = last.clone();
                let transport = if next[0] >> 4 == 6 { 40 } else { 20 };
                if next.len() > transport + 20 {
                    let headers = transport + usize::from(next[transport + 12] >> 4) * 4;
                    let moved = u32::try_from(next.len().saturating_sub(headers)).unwrap_or(0);
                    let at = transport + 4..transport + 8;
                    let old = u32::from_be_bytes(next[at.clone()].try_into().expect("four bytes"));
                    next[at].copy_from_slice(&old.wrapping_add(moved).to_be_bytes());
                }
                next
            }
            _ => rest[..len.min(rest.len())].to_vec(),
        };
        bytes = if how & 1 == 1 { rest } else { &rest[len.min(rest.len())..] };
        if packet.len() < 20 {
            break;
        }
        let len = packet.len();
        if packet[0] >> 4 == 6 && len >= 40 {
            packet[4..6].copy_from_slice(&u16::try_from(len - 40).expect("short").to_be_bytes());
        } else {
            packet[0] = 0x40 | (packet[0] & 0x0f).clamp(5, u8::try_from(len / 4).unwrap_or(15).min(15));
            packet[2..4].copy_from_slice(&u16::try_from(len).expect("short").to_be_bytes());
        }
        packets.push(packet);
    }
    packets
}

fuzz_target!(|bytes: &[u8]| {
    let packets = packets(bytes);
    let mut buffer = Vec::new();
    let mut coalescer = Coalescer::new(Offloads::ALL);
    let at: Vec<_> = packets
        .iter()
        .map(|p| {
            buffer.extend(p);
            buffer.len() - p.len()..buffer.len()
        })
        .collect();
    at.into_iter().for_each(|at| coalescer.push(&buffer, at));
    let mut back = 0;
    coalescer.drain(&mut buffer, |header, pieces, count| {
        let whole = pieces.concat();
        if *header == Header::PLAIN {
            assert!(packets.contains(&whole), "a packet that stayed alone was altered");
            back += 1;
            return;
        }
        let cut = cut(header, whole).expect("what was joined can be cut");
        assert_eq!(cut.len(), count);
        back += count;
    });
    assert_eq!(back, packets.len());
});
