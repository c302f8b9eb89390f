//! Subjects measured in turns.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::topology::{FIRST_SERVER, MANY_STREAMS, Topology};
use super::udp;
use crate::load::{self, Buffers, Carried, Exchange};
use crate::usage;

/// Ticks of a second in /proc, of every architecture that we are built for.
const USER_HZ: f64 = 100.0;
/// Bytes of small and large datagrams.
const SMALL: usize = 64;
const LARGE: usize = 1372;

/// The quantities: name, unit.
pub(super) const METRICS: [(&str, &str); 12] = [
    ("TCP, 1 stream", "Gbit/s"),
    ("TCP, 4 streams", "Gbit/s"),
    ("TCP, a stream to each peer", "Gbit/s"),
    ("CPU per GB, 1 stream", "s"),
    ("CPU per GB, 4 streams", "s"),
    ("CPU per GB, a stream to each peer", "s"),
    ("request-response p50", "us"),
    ("request-response p99", "us"),
    ("UDP 64 B received", "1000/s"),
    ("UDP 64 B lost", "%"),
    ("UDP 1372 B received", "1000/s"),
    ("UDP 1372 B lost", "%"),
];

/// What was measured of one subject: for each metric, the value of each round.
pub(super) type Values = [Vec<f64>; METRICS.len()];

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    pub(super) bulk: Duration,
    pub(super) exchange: Duration,
    pub(super) flood: Duration,
}

/// Measures all in turns.
pub(super) fn in_turns(made: &[Topology], plan: Plan) -> Result<Vec<Values>> {
    let mut values = vec![[const { Vec::new() }; METRICS.len()]; made.len()];
    // The first round warms caches, neighbours and sessions up.
    for round in 0..=plan.rounds {
        for turn in 0..made.len() {
            let at = (turn + round) % made.len();
            let measured = one(&made[at], plan).with_context(|| made[at].subject.name())?;
            if round > 0 {
                for (values, value) in values[at].iter_mut().zip(measured) {
                    values.push(value);
                }
            }
        }
    }
    Ok(values)
}

fn one(made: &Topology, plan: Plan) -> Result<[f64; METRICS.len()]> {
    let (one, cpu_one) = streams(made, 1, plan.bulk)?;
    let (four, cpu_four) = streams(made, usize::from(MANY_STREAMS), plan.bulk)?;
    let peers = made.servers.len();
    let (each, cpu_each) = if peers > 1 { streams(made, peers, plan.bulk)? } else { (f64::NAN, f64::NAN) };
    let to = SocketAddr::new(made.servers[0].1.into(), FIRST_SERVER);
    let times = made.client.run(move || load::measure(Exchange::Rr, to, plan.exchange))?;
    let server = (&made.servers[0].0, made.servers[0].1);
    let small = udp::flood(&made.client, server, SMALL, plan.flood)?;
    let large = udp::flood(&made.client, server, LARGE, plan.flood)?;
    Ok([
        one, four, each, cpu_one, cpu_four, cpu_each, times.p50, times.p99, small.0, small.1, large.0,
        large.1,
    ])
}

/// So many streams at once, spread over the peers: Gbit/s of all, and seconds of processor of all tunnels per GB, all that they
/// had for all that was carried.
fn streams(made: &Topology, count: usize, duration: Duration) -> Result<(f64, f64)> {
    let before = processor(made)?;
    let running: Vec<_> = (0..count)
        .map(|n| {
            let port = u16::try_from(n / made.servers.len()).unwrap_or_default();
            let address = made.servers[n % made.servers.len()].1;
            let to = SocketAddr::new(address.into(), FIRST_SERVER + port);
            made.client.thread(move || load::bulk(to, duration, Buffers::Tuned))
        })
        .collect();
    let mut carried = Vec::with_capacity(count);
    for stream in running {
        carried.push(stream.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
    }
    let seconds = processor(made)? - before;
    let gigabytes = usage::count(carried.iter().map(|one| one.bytes).sum()) / 1e9;
    // Who has no process of its own has no row of this.
    let each = if made.tunnels.is_empty() { f64::NAN } else { seconds / gigabytes };
    Ok((Carried::rate(&carried) / 1e9, each))
}

/// Seconds of processor that a subject's tunnels have had, user and system.
fn processor(made: &Topology) -> Result<f64> {
    let mut ticks = 0u32;
    for tunnel in &made.tunnels {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", tunnel.id())).with_context(|| {
            format!("a tunnel of {} has ended: {:?}", made.subject.name(), tunnel.lines())
        })?;
        let fields = text.rsplit_once(')').map(|(_, rest)| rest).context("/proc/PID/stat")?;
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u32>()?;
        }
    }
    Ok(f64::from(ticks) / USER_HZ)
}
