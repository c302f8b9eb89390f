//! Metrics, prefix `hawser_clustermesh_`. Labels are fixed words; never an address, a pod or a key.

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Word {
    kind: String,
}

fn word(kind: &str) -> Word {
    Word { kind: kind.to_owned() }
}

type Words = Family<Word, Counter>;
type Gauges = Family<Word, Gauge>;

/// Every metric of the daemon. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    refused: Words,
    interrupted: Words,
    watch_errors: Words,
    streams: Gauges,
    clusters: Gauges,
    objects: Gauges,
    facts_refused: Gauges,
    sent: Counter,
    sent_bytes: Counter,
    snapshots: Counter,
    leads: Gauge,
    certificate_ends: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Self {
        Self::beside(|_| {})
    }

    /// The same, in one registry with what `others` registers.
    pub fn beside(others: impl FnOnce(&mut Registry)) -> Self {
        let mut root = Registry::default();
        others(&mut root);
        let r = root.sub_registry_with_prefix("hawser_clustermesh");
        let refused = Words::default();
        r.register(
            "refused",
            "Connections, requests, messages and objects that were refused, by reason",
            refused.clone(),
        );
        let interrupted = Words::default();
        r.register("interruptions", "Ends of streams from other clusters, by reason", interrupted.clone());
        let watch_errors = Words::default();
        r.register("watch_errors", "Interruptions of API watches, by resource", watch_errors.clone());
        let streams = Gauges::default();
        r.register("streams", "Followers being served: peer or agent", streams.clone());
        let clusters = Gauges::default();
        r.register("clusters", "Other clusters: joined, and connected", clusters.clone());
        let objects = Gauges::default();
        r.register("objects", "Objects of other clusters that are mirrored, by kind", objects.clone());
        let facts_refused = Gauges::default();
        r.register(
            "facts_refused",
            "Facts of other clusters that are not believed at present, by reason",
            facts_refused.clone(),
        );
        let sent = Counter::default();
        r.register("messages_sent", "Messages sent to followers", sent.clone());
        let sent_bytes = Counter::default();
        r.register(
            "message_bytes_sent",
            "Bytes of messages sent to followers, before TLS",
            sent_bytes.clone(),
        );
        let snapshots = Counter::default();
        r.register("snapshots_sent", "Snapshots begun for followers", snapshots.clone());
        let leads = Gauge::default();
        r.register("leader", "1 while this replica leads", leads.clone());
        let certificate_ends = Gauge::default();
        r.register(
            "certificate_ends_seconds",
            "Time since 1970 at which the own certificate ends",
            certificate_ends.clone(),
        );
        let registry = Arc::new(root);
        Self {
            registry,
            refused,
            interrupted,
            watch_errors,
            streams,
            clusters,
            objects,
            facts_refused,
            sent,
            sent_bytes,
            snapshots,
            leads,
            certificate_ends,
        }
    }

    /// In the text format of OpenMetrics.
    pub fn render(&self) -> String {
        let mut out = String::new();
        match text::encode(&mut out, &self.registry) {
            Ok(()) => out,
            // Writing into a string cannot fail.
            Err(fmt::Error) => String::new(),
        }
    }

    /// Something was refused.
    pub fn refused(&self, reason: &str) {
        self.refused.get_or_create(&word(reason)).inc();
    }

    /// How often something was refused for this reason.
    pub fn refusals(&self, reason: &str) -> u64 {
        self.refused.get_or_create(&word(reason)).get()
    }

    /// A stream from another cluster ended.
    pub fn interrupted(&self, reason: &str) {
        self.interrupted.get_or_create(&word(reason)).inc();
    }

    /// A watch was interrupted.
    pub fn watch_error(&self, what: &str) {
        self.watch_errors.get_or_create(&word(what)).inc();
    }

    /// A follower came; it goes when the guard is dropped.
    pub fn stream(&self, kind: &'static str) -> StreamGuard {
        let gauge = self.streams.get_or_create(&word(kind)).clone();
        gauge.inc();
        StreamGuard(gauge)
    }

    /// How many other clusters are joined, and how many of them are connected.
    pub fn clusters(&self, joined: usize, connected: usize) {
        let set = |kind, number| self.clusters.get_or_create(&word(kind)).set(gauge(number));
        set("joined", joined);
        set("connected", connected);
    }

    /// How many objects of a kind are mirrored.
    pub fn objects(&self, kind: &str, number: usize) {
        self.objects.get_or_create(&word(kind)).set(gauge(number));
    }

    /// How many facts are not believed for a reason, at present.
    pub fn facts_refused(&self, reason: &str, number: usize) {
        self.facts_refused.get_or_create(&word(reason)).set(gauge(number));
    }

    /// A message went to a follower.
    pub fn sent(&self, bytes: usize) {
        self.sent.inc();
        self.sent_bytes.inc_by(u64::try_from(bytes).unwrap_or(0));
    }

    /// A snapshot was begun for a follower.
    pub fn snapshot(&self) {
        self.snapshots.inc();
    }

    /// Snapshots that were begun for followers.
    pub fn snapshots(&self) -> u64 {
        self.snapshots.get()
    }

    /// How often streams from other clusters ended for this reason.
    pub fn interruptions(&self, reason: &str) -> u64 {
        self.interrupted.get_or_create(&word(reason)).get()
    }

    /// Messages that went to followers.
    pub fn messages(&self) -> u64 {
        self.sent.get()
    }

    /// Whether this replica leads.
    pub fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// When the own certificate ends, in seconds since 1970.
    pub fn certificate_ends(&self, at: i64) {
        self.certificate_ends.set(at);
    }
}

fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// One follower that is counted.
#[derive(Debug)]
pub struct StreamGuard(Gauge);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
