//! Metrics of the data path, of policy and of services.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datapath::{CounterValues, FlowUsage};
use mesh_core::policy::problems::PolicyProblem;
use mesh_core::policy::tables::State;
use mesh_core::service::{self, ServiceProblem};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Gauges, Metrics, Words, word};
use crate::hold::Tally;
use crate::status::Findings;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// What the data path counts, and how large it is.
#[derive(Clone)]
pub(super) struct PlaneMetrics {
    drops: Family<Reason, Counter>,
    events: Words,
    conntrack: Gauges,
    policy: Gauges,
    services: Gauges,
    problems: Gauges,
    applied: Histogram,
    held: Words,
    flows: Words,
    /// Counters of the kernel as they were last read: they outlive the agent, a counter here only grows.
    before: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl PlaneMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let drops = Family::default();
        r.register("datapath_drops", "Packets that the data path dropped, by reason", drops.clone());
        let events = Words::default();
        r.register("datapath_events", "What the data path did, by kind", events.clone());
        let conntrack = Gauges::default();
        let help = "Entries of conntrack: flows, entries, revoked, expired, capacity";
        r.register("datapath_conntrack_entries", help, conntrack.clone());
        let policy = Gauges::default();
        let help = "Size of compiled policy: addresses, blocks, tables, rows, functions, endpoints";
        r.register("policy_size", help, policy.clone());
        let services = Gauges::default();
        r.register(
            "service_size",
            "Size of compiled services: frontends, places, backends",
            services.clone(),
        );
        let problems = Gauges::default();
        r.register(
            "policy_problems",
            "Present problems of policies, Services and pods, by code",
            problems.clone(),
        );
        let applied = Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0]);
        let help = "Time from an event of the API, or a request, to policy and services in force";
        r.register_with_unit("policy_applied", help, Unit::Seconds, applied.clone());
        let held = Words::default();
        r.register(
            "held_packets",
            "First packets held for unknown peers: released, expired, refused",
            held.clone(),
        );
        let flows = Words::default();
        r.register("flow_events", "Flow events read from the data path: told, lost", flows.clone());
        for code in PolicyProblem::CODES.iter().chain(&ServiceProblem::CODES) {
            problems.get_or_create(&word(code)).set(0);
        }
        let before = Arc::default();
        Self { drops, events, conntrack, policy, services, problems, applied, held, flows, before }
    }
}

fn set(gauges: &Gauges, values: &[(&str, usize)]) {
    for (kind, value) in values {
        gauges.get_or_create(&word(kind)).set(i64::try_from(*value).unwrap_or(i64::MAX));
    }
}

impl Metrics {
    /// The counters of the kernel, as they are now.
    pub fn datapath(&self, values: &CounterValues) {
        let plane = &self.plane;
        let mut before = plane.before.lock().unwrap_or_else(PoisonError::into_inner);
        let mut more = |name: String, now: u64| {
            let before = before.insert(name, now).unwrap_or(0);
            // Maps that were made anew begin at zero.
            if now >= before { now - before } else { now }
        };
        for (reason, value) in &values.drops {
            let label = Reason { reason: reason.name().to_owned() };
            plane.drops.get_or_create(&label).inc_by(more(format!("drop-{reason}"), *value));
        }
        for (count, value) in &values.counts {
            plane.events.get_or_create(&word(count.name())).inc_by(more(count.name().to_owned(), *value));
        }
    }

    /// How full conntrack is.
    pub fn conntrack(&self, usage: &FlowUsage) {
        let all = [
            ("flows", usage.flows),
            ("entries", usage.entries),
            ("revoked", usage.revoked),
            ("expired", usage.expired),
            ("capacity", usage.capacity),
        ];
        let all = all.map(|(kind, value)| (kind, usize::try_from(value).unwrap_or(usize::MAX)));
        set(&self.plane.conntrack, &all);
    }

    /// Policy or services are in force, this long after the oldest of the changes came.
    pub fn policy_applied(&self, took: Duration) {
        self.plane.applied.observe(took.as_secs_f64());
    }

    /// How large the compiled policy is.
    pub fn policy_state(&self, state: &State, endpoints: usize) {
        let rows = state.tables.values().map(|table| table.rows.len()).sum();
        let all = [
            ("addresses", state.addresses.len()),
            ("blocks", state.blocks.len()),
            ("tables", state.tables.len()),
            ("rows", rows),
            ("functions", state.functions.len()),
            ("endpoints", endpoints),
        ];
        set(&self.plane.policy, &all);
    }

    /// How large the compiled services are.
    pub fn service_state(&self, state: &service::State) {
        let places = state.tables.values().map(Vec::len).sum();
        let all =
            [("frontends", state.frontends.len()), ("places", places), ("backends", state.backends.len())];
        set(&self.plane.services, &all);
    }

    /// What is wrong with policies, Services and pods.
    pub fn set_policy_problems(&self, findings: &Findings) {
        let mut by_code: BTreeMap<&str, i64> = BTreeMap::new();
        let all: BTreeSet<&(String, String)> =
            findings.wrong.values().flatten().chain(&findings.trouble).collect();
        for (code, _) in all {
            *by_code.entry(code).or_insert(0) += 1;
        }
        self.plane.problems.clear();
        for code in PolicyProblem::CODES.iter().chain(&ServiceProblem::CODES) {
            self.plane.problems.get_or_create(&word(code)).set(0);
        }
        for (code, count) in by_code {
            self.plane.problems.get_or_create(&word(code)).set(count);
        }
    }

    /// What became of held packets.
    pub fn held(&self, tally: Tally) {
        let all = [("released", tally.released), ("expired", tally.expired), ("refused", tally.refused)];
        for (kind, more) in all {
            self.plane.held.get_or_create(&word(kind)).inc_by(more);
        }
    }

    /// Flow events were told to readers, and others were lost.
    pub fn flow_events(&self, told: u64, lost: u64) {
        self.plane.flows.get_or_create(&word("told")).inc_by(told);
        self.plane.flows.get_or_create(&word("lost")).inc_by(lost);
    }
}
