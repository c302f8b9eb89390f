//! How much one core can seal and open, with the noise library that `mesh-tunnel` uses and nothing else to do.

use anyhow::{Context, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use xtask::bench::Row;

use super::BENCH;

/// Bytes of an inner packet, as most of a stream in bulk are.
const PACKET: usize = 1420;
/// Packets sealed in a row, then opened: as many as one call of a socket carries.
const ROW: usize = 45;
/// Rows of one measurement.
const ROWS: usize = 400;

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

/// Processor time that this thread has had, in seconds: other work on the machine does not count.
#[allow(clippy::cast_precision_loss, reason = "far fewer nanoseconds than 2^52")]
fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Rows of sealing and opening in Gbit/s of inner packets, and of both per GB, to be held against a tunnel's.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let (mut from, mut to) = pair()?;
    let mut packet = vec![0; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(PACKET)?.to_be_bytes());
    let mut sealed = vec![0; (PACKET + 32) * ROW];
    let mut opened = vec![0; PACKET + 32];
    let (mut seal, mut open, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut sealing, mut opening) = (0.0, 0.0);
        for _ in 0..ROWS {
            let begun = now();
            for datagram in sealed.chunks_mut(PACKET + 32) {
                let TunnResult::WriteToNetwork(_) = from.encapsulate(&packet, datagram) else {
                    bail!("not sealed")
                };
            }
            let between = now();
            for datagram in sealed.chunks(PACKET + 32) {
                let TunnResult::WriteToTunnelV4(..) = to.decapsulate(None, datagram, &mut opened) else {
                    bail!("not opened")
                };
            }
            sealing += between - begun;
            opening += now() - between;
        }
        #[allow(clippy::cast_precision_loss, reason = "a few million")]
        let gigabytes = (ROWS * ROW * PACKET) as f64 / 1e9;
        seal.push(gigabytes * 8.0 / sealing);
        open.push(gigabytes * 8.0 / opening);
        both.push((sealing + opening) / gigabytes);
    }
    let row = |metric: &str, unit: &str, values: &[f64]| {
        Row::of(BENCH, "one core, noise alone", metric, unit, values).context("no rounds")
    };
    Ok(vec![row("seal", "Gbit/s", &seal)?, row("open", "Gbit/s", &open)?, row("CPU per GB", "s", &both)?])
}
