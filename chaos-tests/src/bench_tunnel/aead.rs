//! How much one core can seal and open, with the noise library that `mesh-tunnel` uses and nothing else to do.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use xtask::bench::Row;

use super::BENCH;

/// Bytes of an inner packet, as most of a stream in bulk are.
const PACKET: usize = 1420;
/// Packets of one measurement, within the replay window's reach.
const PACKETS: u32 = 20_000;

/// Two ends with a session.
fn pair() -> Result<(Tunn, Tunn)> {
    let (a, b) = (StaticSecret::from([1; 32]), StaticSecret::from([2; 32]));
    let (pa, pb) = (PublicKey::from(&a), PublicKey::from(&b));
    let mut ends = (Tunn::new(a, pb, None, None, 1, None), Tunn::new(b, pa, None, None, 2, None));
    let mut message = vec![0; 2048];
    let TunnResult::WriteToNetwork(initiation) = ends.0.format_handshake_initiation(&mut message, false)
    else {
        bail!("no initiation")
    };
    let initiation = initiation.to_vec();
    let TunnResult::WriteToNetwork(response) = ends.1.decapsulate(None, &initiation, &mut message) else {
        bail!("no response")
    };
    let response = response.to_vec();
    let TunnResult::WriteToNetwork(keepalive) = ends.0.decapsulate(None, &response, &mut message) else {
        bail!("no session")
    };
    let keepalive = keepalive.to_vec();
    ends.1.decapsulate(None, &keepalive, &mut message);
    Ok(ends)
}

/// Rows of sealing and opening, in Gbit/s of inner packets.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let (mut from, mut to) = pair()?;
    let mut packet = vec![0; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(PACKET)?.to_be_bytes());
    let mut sealed = vec![0; PACKET + 32];
    let mut opened = vec![0; PACKET + 32];
    let (mut seal, mut open) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut sealing, mut opening) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
        for _ in 0..PACKETS {
            let begun = Instant::now();
            let TunnResult::WriteToNetwork(_) = from.encapsulate(&packet, &mut sealed) else {
                bail!("not sealed")
            };
            let between = Instant::now();
            let TunnResult::WriteToTunnelV4(..) = to.decapsulate(None, &sealed, &mut opened) else {
                bail!("not opened")
            };
            sealing += between - begun;
            opening += between.elapsed();
        }
        let rate = |took: std::time::Duration| f64::from(PACKETS) * 1420.0 * 8.0 / took.as_secs_f64() / 1e9;
        seal.push(rate(sealing));
        open.push(rate(opening));
    }
    let row =
        |metric: &str, values: &[f64]| Row::of(BENCH, "one core, noise alone", metric, "Gbit/s", values);
    Ok(vec![row("seal", &seal).context("no rounds")?, row("open", &open).context("no rounds")?])
}
