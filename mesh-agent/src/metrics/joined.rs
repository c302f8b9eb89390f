//! What is heard of joined clusters.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use mesh_core::clusters::Kind;

use super::{Gauges, Metrics, Words, word};

/// Metrics of the stream from `clustermesh`.
#[derive(Clone, Debug, Default)]
pub(super) struct JoinedMetrics {
    connected: Gauge,
    ended: Words,
    left_out: Words,
    clusters: Gauge,
    nodes: Gauge,
    objects: Gauges,
    without_peer: Gauge,
}

impl JoinedMetrics {
    pub(super) fn new(r: &mut Registry) -> Self {
        let metrics = Self::default();
        r.register(
            "clustermesh_connected",
            "1 while clustermesh is followed, else 0",
            metrics.connected.clone(),
        );
        r.register(
            "clustermesh_stream_ends",
            "How often clustermesh could not be followed or the stream ended, by reason",
            metrics.ended.clone(),
        );
        r.register(
            "clustermesh_left_out",
            "What clustermesh said and does not count, by reason",
            metrics.left_out.clone(),
        );
        r.register("joined_clusters", "Clusters that are joined to this one", metrics.clusters.clone());
        r.register("joined_nodes", "Nodes of joined clusters that are peers", metrics.nodes.clone());
        r.register(
            "joined_objects",
            "Objects of joined clusters that are known, by kind; nodes beyond those that are peers too",
            metrics.objects.clone(),
        );
        r.register(
            "joined_backends_without_peer",
            "Backends of joined clusters in no peer's pod CIDRs, which services therefore leave out",
            metrics.without_peer.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// Whether `clustermesh` is followed.
    pub fn clustermesh_connected(&self, connected: bool) {
        self.joined.connected.set(i64::from(connected));
    }

    /// It could not be followed, or no longer.
    pub fn clustermesh_ended(&self, reason: &str) {
        self.joined.ended.get_or_create(&word(reason)).inc();
    }

    /// Something that it said does not count.
    pub fn clustermesh_left_out(&self, reason: &str) {
        self.joined.left_out.get_or_create(&word(reason)).inc();
    }

    /// How many clusters and nodes of theirs are believed.
    pub fn set_joined(&self, clusters: usize, nodes: usize) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.joined.clusters.set(count(clusters));
        self.joined.nodes.set(count(nodes));
    }

    /// How many backends of theirs services leave out.
    pub fn set_joined_without_way(&self, backends: usize) {
        self.joined.without_peer.set(i64::try_from(backends).unwrap_or(i64::MAX));
    }

    /// How many objects of theirs are known.
    pub fn set_joined_objects(&self, counts: &[(Kind, usize)]) {
        for (kind, number) in counts {
            let gauge = self.joined.objects.get_or_create(&word(kind.name()));
            gauge.set(i64::try_from(*number).unwrap_or(i64::MAX));
        }
    }
}
