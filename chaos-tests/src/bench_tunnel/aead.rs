//! How much one core can seal and open, with the sessions that `mesh-tunnel` has and nothing else to do.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tunnel::clock::Moment;
use tunnel::keys::PrivateKey;
use tunnel::noise::handshake::Own;
use tunnel::noise::messages::{self, Message, OVERHEAD};
use tunnel::noise::{Answer, Noise, Received, Sent};
use xtask::bench::Row;

use super::BENCH;

/// Bytes of an inner packet, as most of a stream in bulk are.
const PACKET: usize = 1420;
/// Packets sealed in a row, then opened: as many as one call of a socket carries.
const ROW: usize = 45;
/// Rows of one measurement.
const ROWS: usize = 400;

/// Two ends with a session.
fn pair(now: Moment) -> Result<(Noise, Noise)> {
    let own = |n: u8| PrivateKey::new([n; 32]).map(|key| Arc::new(Own::new(&key))).context("a key of zeros");
    let (a, b) = (own(1)?, own(2)?);
    let mut from = Noise::new(Arc::clone(&a), &b.public(), None, 1).context("low order")?;
    let mut to = Noise::new(Arc::clone(&b), &a.public(), None, 2).context("low order")?;
    let mut message = vec![0; 2048];
    let n = from.begin(&mut message, now);
    let Some(Message::Initiation(initiation)) = messages::parse(&message[..n]) else {
        bail!("no initiation")
    };
    let half = b.recognise(initiation).context("an initiation for nobody")?;
    let mut answer = vec![0; 2048];
    let n = to.answer(half, &mut answer, now).context("no answer")?;
    let Some(Message::Response(response)) = messages::parse(&answer[..n]) else { bail!("no answer") };
    ensure!(from.answered(response, now) == Answer::Taken, "no session");
    let n = from.keepalive(&mut message, now).context("no session")?;
    ensure!(to.receive(&message[..n], &mut answer, now) == Received::Keepalive, "not the same session");
    Ok((from, to))
}

/// Processor time that this thread has had, in seconds: other work on the machine does not count.
#[allow(clippy::cast_precision_loss, reason = "far fewer nanoseconds than 2^52")]
fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Rows of sealing and opening in Gbit/s of inner packets, and of both per GB, to be held against a tunnel's.
pub(super) fn rows(rounds: usize) -> Result<Vec<Row>> {
    let at = Moment::now();
    let (mut from, mut to) = pair(at)?;
    let mut packet = vec![0; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(PACKET)?.to_be_bytes());
    let mut sealed = vec![0; (PACKET + OVERHEAD) * ROW];
    let mut opened = vec![0; PACKET];
    let (mut seal, mut open, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut sealing, mut opening) = (0.0, 0.0);
        for _ in 0..ROWS {
            let begun = now();
            for datagram in sealed.chunks_mut(PACKET + OVERHEAD) {
                let Sent::Data(message) = from.send(&packet, PACKET, datagram, at) else {
                    bail!("no session")
                };
                message.seal(datagram);
            }
            let between = now();
            for datagram in sealed.chunks(PACKET + OVERHEAD) {
                ensure!(to.receive(datagram, &mut opened, at) == Received::Content(PACKET), "not opened");
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
