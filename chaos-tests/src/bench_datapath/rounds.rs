//! Subjects measured in turns, and what becomes of it: rows with ratios.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use netlab::Namespace;
use xtask::bench::Row;

use super::{BENCH, CPU};
use crate::load::{self, Exchange};

/// From where to where.
#[derive(Clone, Debug)]
pub(super) struct Path<'a> {
    pub(super) name: String,
    pub(super) from: &'a Namespace,
    pub(super) to: SocketAddr,
}

impl Path<'_> {
    pub(super) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    /// For requests and responses, and again for new connections.
    pub(super) exchange: Duration,
    /// For a stream in bulk.
    pub(super) bulk: Duration,
}

/// The quantities: name, unit.
const METRICS: [(&str, &str); 4] = [
    ("request-response p50", "us"),
    ("request-response p99", "us"),
    ("connect+request rate", "1/s"),
    ("throughput", "Gbit/s"),
];

/// Measures all in turns. The first one is what the others are held against.
pub(super) fn measure(section: &str, paths: &[Path<'_>], plan: Plan) -> Result<Vec<Row>> {
    let mut values = vec![[const { Vec::new() }; METRICS.len()]; paths.len()];
    // The first round warms caches and neighbours up.
    for round in 0..=plan.rounds {
        for turn in 0..paths.len() {
            let at = (turn + round) % paths.len();
            let measured = one(&paths[at], plan).with_context(|| format!("{section}, {}", paths[at].name))?;
            if round > 0 {
                for (values, value) in values[at].iter_mut().zip(measured) {
                    values.push(value);
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (metric, (name, unit)) in METRICS.into_iter().enumerate() {
        for (path, values_of) in paths.iter().zip(&values) {
            let subject = format!("{section}, {}", path.name);
            let row = Row::of(BENCH, &subject, name, unit, &values_of[metric]);
            let (own, first) = (&values_of[metric], &values[0][metric]);
            rows.extend(row.map(|row| row.against(&paths[0].name, own, first)));
        }
    }
    Ok(rows)
}

fn one(path: &Path<'_>, plan: Plan) -> Result<[f64; METRICS.len()]> {
    let to = path.to;
    path.from
        .thread(move || {
            load::stay(CPU)?;
            let steady = load::measure(Exchange::Rr, to, plan.exchange)?;
            let fresh = load::measure(Exchange::Crr, to, plan.exchange)?;
            let bits = load::bulk(to, plan.bulk)?;
            Ok([steady.p50, steady.p99, fresh.rate, bits / 1e9])
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))?
}

/// Waits until the path carries an exchange.
pub(super) fn await_path(path: &Path<'_>) -> Result<()> {
    let to = path.to;
    let what = format!("{to} answers: {}", path.name);
    netlab::eventually(Duration::from_secs(60), &what, || {
        let tried = path.from.run(move || load::measure(Exchange::Rr, to, Duration::ZERO));
        tried.map(|_| ()).map_err(|error| format!("{error:#}"))
    })?;
    Ok(())
}
