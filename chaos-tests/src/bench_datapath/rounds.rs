//! Subjects measured in turns, and what becomes of it: rows with ratios.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use netlab::Namespace;
use xtask::bench::Row;

use super::{BENCH, CPU};
use crate::load::{self, Buffers, Carried, Exchange};

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
    /// For a stream in bulk, with each kind of buffers.
    pub(super) bulk: Duration,
}

/// What is measured, each in rounds of its own. New connections come last: thousands of them leave work for some time
/// (TIME_WAIT, the agent reads of each), which would fall on what is measured next.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Steady,
    Bulk(Buffers),
    Fresh,
}

impl Kind {
    const ALL: [Self; 4] =
        [Self::Steady, Self::Bulk(Buffers::Fixed), Self::Bulk(Buffers::Tuned), Self::Fresh];

    /// The quantities: name, unit.
    const fn metrics(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Steady => &[("request-response p50", "us"), ("request-response p99", "us")],
            Self::Bulk(Buffers::Fixed) => &[("throughput, buffers of 1 MiB", "Gbit/s")],
            Self::Bulk(Buffers::Tuned) => &[("throughput", "Gbit/s")],
            Self::Fresh => &[("connect+request rate", "1/s")],
        }
    }

    fn once(self, to: SocketAddr, plan: Plan) -> Result<Vec<f64>> {
        load::stay(CPU)?;
        match self {
            Self::Steady => {
                let times = load::measure(Exchange::Rr, to, plan.exchange)?;
                Ok(vec![times.p50, times.p99])
            }
            Self::Bulk(buffers) => Ok(vec![Carried::rate(&[load::bulk(to, plan.bulk, buffers)?]) / 1e9]),
            Self::Fresh => Ok(vec![load::measure(Exchange::Crr, to, plan.exchange)?.rate]),
        }
    }
}

/// Measures all in turns. The first one is what the others are held against.
pub(super) fn measure(section: &str, paths: &[Path<'_>], plan: Plan) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let mut values = vec![vec![Vec::new(); kind.metrics().len()]; paths.len()];
        // The first round warms caches and neighbours up.
        for round in 0..=plan.rounds {
            for turn in 0..paths.len() {
                let at = (turn + round) % paths.len();
                let measured =
                    one(&paths[at], kind, plan).with_context(|| format!("{section}, {}", paths[at].name))?;
                if round > 0 {
                    values[at].iter_mut().zip(measured).for_each(|(values, value)| values.push(value));
                }
            }
        }
        for (metric, (name, unit)) in kind.metrics().iter().enumerate() {
            for (path, values_of) in paths.iter().zip(&values) {
                let subject = format!("{section}, {}", path.name);
                let row = Row::of(BENCH, &subject, name, unit, &values_of[metric]);
                let (own, first) = (&values_of[metric], &values[0][metric]);
                rows.extend(row.map(|row| row.against(&paths[0].name, own, first)));
            }
        }
    }
    Ok(rows)
}

fn one(path: &Path<'_>, kind: Kind, plan: Plan) -> Result<Vec<f64>> {
    let to = path.to;
    let measured = path.from.thread(move || kind.once(to, plan)).join();
    measured.map_err(|_| anyhow::anyhow!("the client panicked"))?
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
