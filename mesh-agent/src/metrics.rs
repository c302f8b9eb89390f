//! Metrics, prefix `hawser_`. Labels are enums or fixed words; never a pod, an address or a key.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_core::host::HostPath;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

mod joined;
mod plane;

use joined::JoinedMetrics;
use plane::PlaneMetrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Word {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CniCall {
    verb: String,
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    cidr: String,
    state: String,
}

type Words = Family<Word, Counter>;
type Gauges = Family<Word, Gauge>;

/// Every metric of the agent. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    watch_errors: Words,
    problems: Gauges,
    findings: Gauges,
    operations: Words,
    failures: Words,
    drift: Words,
    reconcile: Histogram,
    peers: Gauges,
    cni: Family<CniCall, Counter>,
    cni_seconds: Family<Word, Histogram>,
    pool: Family<PoolLabel, Gauge>,
    /// The pod CIDRs that are shown.
    pools: Arc<Mutex<BTreeSet<String>>>,
    firewall: Words,
    firewall_drift: Counter,
    tunnel_restored: Words,
    overwritten: Counter,
    keys_replaced: Words,
    psks: Gauges,
    host_traffic: Gauges,
    last_success: Gauge<f64, AtomicU64>,
    plane: PlaneMetrics,
    joined: JoinedMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn word(kind: &str) -> Word {
    Word { kind: kind.to_owned() }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Self {
        let seconds = || Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        let mut r = Registry::with_prefix("hawser");
        let watch_errors = Words::default();
        r.register("watch_errors", "Interruptions of API watches, by resource", watch_errors.clone());
        let problems = Gauges::default();
        r.register("problems", "Present problems, by code", problems.clone());
        let findings = Gauges::default();
        r.register("host_findings", "Present findings about the host, by code", findings.clone());
        let operations = Words::default();
        r.register("operations", "Operations applied, by kind", operations.clone());
        let failures = Words::default();
        r.register("operation_failures", "Operations that failed, by kind", failures.clone());
        let drift = Words::default();
        r.register(
            "drift_repaired",
            "Operations that repaired what somebody else changed, by kind",
            drift.clone(),
        );
        let reconcile = seconds();
        r.register_with_unit("reconcile", "Time of one reconciliation", Unit::Seconds, reconcile.clone());
        let peers = Gauges::default();
        r.register(
            "peers",
            "Peers over both slots: alive (handshake under 180 s old) or silent",
            peers.clone(),
        );
        let cni = Family::<CniCall, Counter>::default();
        r.register("cni_requests", "CNI requests, by verb and CNI error code (0: success)", cni.clone());
        let cni_seconds = Family::<Word, Histogram>::new_with_constructor(seconds as fn() -> Histogram);
        r.register_with_unit(
            "cni_request",
            "Time of a CNI request, by verb",
            Unit::Seconds,
            cni_seconds.clone(),
        );
        let pool = Family::<PoolLabel, Gauge>::default();
        r.register("pool_addresses", "Addresses of a pod CIDR: used, resting, capacity", pool.clone());
        let firewall = Words::default();
        r.register("firewall_packets", "Packets counted by our nf_tables rules, by rule", firewall.clone());
        let firewall_drift = Counter::default();
        r.register(
            "firewall_repaired",
            "Times our nf_tables table had to be put back",
            firewall_drift.clone(),
        );
        let tunnel_restored = Words::default();
        r.register(
            "tunnel_restored",
            "Devices that were gone and are programmed again",
            tunnel_restored.clone(),
        );
        let overwritten = Counter::default();
        r.register(
            "announcement_overwritten",
            "Times somebody else wrote our annotation",
            overwritten.clone(),
        );
        let psks = Gauges::default();
        r.register(
            "preshared_keys",
            "Slots of pairs: open (both sides have seen a post-quantum pre-shared key at work) or waiting to be agreed",
            psks.clone(),
        );
        let host_traffic = Gauges::default();
        r.register(
            "host_traffic_peers",
            "Other nodes by how this node's own traffic to them goes: plain, waiting for a handshake, tunnel, or cut",
            host_traffic.clone(),
        );
        let keys_replaced = Words::default();
        r.register(
            "keys_replaced",
            "WireGuard keys that were replaced and destroyed: silent (nobody used them any more) or overdue",
            keys_replaced.clone(),
        );
        let last_success = Gauge::<f64, AtomicU64>::default();
        let help = "Time of the last reconciliation without a failure";
        r.register_with_unit("reconcile_success_timestamp", help, Unit::Seconds, last_success.clone());
        let plane = PlaneMetrics::new(&mut r);
        let joined = JoinedMetrics::new(&mut r);
        let metrics = Self {
            registry: Arc::new(r),
            plane,
            joined,
            watch_errors,
            problems,
            findings,
            operations,
            failures,
            drift,
            reconcile,
            peers,
            cni,
            cni_seconds,
            pool,
            pools: Arc::default(),
            firewall,
            firewall_drift,
            tunnel_restored,
            overwritten,
            keys_replaced,
            psks,
            host_traffic,
            last_success,
        };
        for code in mesh_core::problem::Problem::CODES {
            metrics.problems.get_or_create(&word(code)).set(0);
        }
        for kind in ["silent", "overdue"] {
            metrics.keys_replaced.get_or_create(&word(kind)).inc_by(0);
        }
        for kind in mesh_core::diff::Op::KINDS {
            metrics.drift.get_or_create(&word(kind)).inc_by(0);
        }
        metrics
    }

    /// Text for Prometheus.
    pub fn render(&self) -> String {
        let mut out = String::new();
        match text::encode(&mut out, &self.registry) {
            Ok(()) => out,
            Err(error) => format!("# {error}\n"),
        }
    }

    /// A watch was interrupted.
    pub fn watch_error(&self, watch: &str) {
        self.watch_errors.get_or_create(&word(watch)).inc();
    }

    /// The present problems, by code.
    pub fn set_problems<'a>(&self, codes: impl Iterator<Item = &'a str>) {
        for code in mesh_core::problem::Problem::CODES {
            self.problems.get_or_create(&word(code)).set(0);
        }
        for code in codes {
            self.problems.get_or_create(&word(code)).inc();
        }
    }

    /// The present findings about the host, by code.
    pub fn set_findings<'a>(&self, codes: impl Iterator<Item = &'a str>) {
        self.findings.clear();
        for code in codes {
            self.findings.get_or_create(&word(code)).inc();
        }
    }

    /// An operation was applied, as a repair or not, or failed.
    pub fn operation(&self, kind: &str, repair: bool, failed: bool) {
        let counter = if failed { &self.failures } else { &self.operations };
        counter.get_or_create(&word(kind)).inc();
        if repair && !failed {
            self.drift.get_or_create(&word(kind)).inc();
        }
    }

    /// A reconciliation ended.
    pub fn reconciled(&self, took: Duration, success_at: Option<Duration>) {
        self.reconcile.observe(took.as_secs_f64());
        if let Some(at) = success_at {
            self.last_success.set(at.as_secs_f64());
        }
    }

    /// Peers of both slots.
    pub fn set_peers(&self, alive: usize, silent: usize) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.peers.get_or_create(&word("alive")).set(count(alive));
        self.peers.get_or_create(&word("silent")).set(count(silent));
    }

    /// Slots of pairs with a pre-shared key that both sides have seen at work, and without.
    pub fn set_psks(&self, (open, waiting): (usize, usize)) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.psks.get_or_create(&word("open")).set(count(open));
        self.psks.get_or_create(&word("waiting")).set(count(waiting));
    }

    /// How this node's own traffic to each other node goes.
    pub fn set_host_traffic<'a>(&self, paths: impl Iterator<Item = &'a HostPath>) {
        let mut counts = [("plain", 0), ("waiting", 0), ("tunnel", 0), ("cut", 0)];
        for path in paths {
            let place = match path {
                HostPath::Plain => 0,
                HostPath::Waiting => 1,
                HostPath::Tunnel => 2,
                HostPath::Dead | HostPath::Cut => 3,
            };
            counts[place].1 += 1;
        }
        for (kind, count) in counts {
            self.host_traffic.get_or_create(&word(kind)).set(count);
        }
    }

    /// A CNI request was answered.
    pub fn cni(&self, verb: &str, code: u32, took: Duration) {
        self.cni.get_or_create(&CniCall { verb: verb.to_owned(), code }).inc();
        self.cni_seconds.get_or_create(&word(verb)).observe(took.as_secs_f64());
    }

    /// How full all pools of this node are. A Node that is made anew may have others than before.
    pub fn set_pools(&self, usages: &[mesh_core::ipam::Usage]) {
        let cidrs: BTreeSet<String> = usages.iter().map(|usage| usage.cidr.to_string()).collect();
        // Not all of them anew: somebody may read them meanwhile.
        let mut shown = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.difference(&cidrs) {
            for state in ["used", "resting", "capacity"] {
                self.pool.remove(&PoolLabel { cidr: gone.clone(), state: state.to_owned() });
            }
        }
        *shown = cidrs;
        drop(shown);
        for usage in usages {
            let states = [("used", usage.used), ("resting", usage.resting), ("capacity", usage.capacity)];
            for (state, value) in states {
                let label = PoolLabel { cidr: usage.cidr.to_string(), state: state.to_owned() };
                self.pool.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
    }

    /// A rule of our firewall has counted `packets` more.
    pub fn firewall(&self, rule: &str, packets: u64) {
        self.firewall.get_or_create(&word(rule)).inc_by(packets);
    }

    /// Our table was not as we left it.
    pub fn firewall_repaired(&self) {
        self.firewall_drift.inc();
    }

    /// A device came back.
    pub fn tunnel_restored(&self, device: &str) {
        self.tunnel_restored.get_or_create(&word(device)).inc();
    }

    /// A key was replaced; `overdue`: though somebody may still have used it.
    pub fn key_replaced(&self, overdue: bool) {
        self.keys_replaced.get_or_create(&word(if overdue { "overdue" } else { "silent" })).inc();
    }

    /// Our annotation was overwritten.
    pub fn announcement_overwritten(&self) {
        self.overwritten.inc();
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::ipam::Usage;

    use super::*;

    #[test]
    fn a_pod_cidr_that_the_node_has_no_more_is_not_shown() {
        let metrics = Metrics::new();
        let usage = |cidr: &str| Usage { cidr: cidr.parse().unwrap(), used: 3, resting: 1, capacity: 253 };
        metrics.set_pools(&[usage("10.1.0.0/24"), usage("fd01::/64")]);
        assert!(metrics.render().contains("hawser_pool_addresses{cidr=\"10.1.0.0/24\",state=\"used\"} 3"));
        metrics.set_pools(&[usage("10.2.0.0/24")]);
        let text = metrics.render();
        let mut shown: Vec<&str> =
            text.lines().filter(|line| line.starts_with("hawser_pool_addresses{")).collect();
        shown.sort_unstable();
        assert_eq!(
            shown,
            [
                "hawser_pool_addresses{cidr=\"10.2.0.0/24\",state=\"capacity\"} 253",
                "hawser_pool_addresses{cidr=\"10.2.0.0/24\",state=\"resting\"} 1",
                "hawser_pool_addresses{cidr=\"10.2.0.0/24\",state=\"used\"} 3",
            ]
        );
    }
}
