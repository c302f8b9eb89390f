//! Metrics of services of several clusters, prefix `hawser_mcs_`. Labels are fixed words; never a name or an address.

use std::collections::BTreeMap;

use mesh_core::mcs::McsProblem;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::kind::Kind;
use super::problem::Problem;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Written {
    resource: &'static str,
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

/// What is counted. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    writes: Family<Written, Counter>,
    conflicts: Family<Written, Counter>,
    failures: Family<Written, Counter>,
    watch_errors: Family<Resource, Counter>,
    problems: Family<Code, Gauge>,
    imports: Gauge,
    exports: Gauge,
    silent: Gauge,
}

impl Metrics {
    /// In a registry; everything is there from the beginning.
    pub fn new(registry: &mut Registry) -> Self {
        let all = Self::default();
        for kind in Kind::ALL {
            drop(all.watch_errors.get_or_create(&Resource { resource: kind.plural() }));
        }
        for code in McsProblem::CODES.into_iter().chain(Problem::CODES) {
            drop(all.problems.get_or_create(&Code { code }));
        }
        registry.register("hawser_mcs_writes", "Objects written to the API server", all.writes.clone());
        let text = "Writes that were refused since somebody else was faster";
        registry.register("hawser_mcs_write_conflicts", text, all.conflicts.clone());
        registry.register("hawser_mcs_write_failures", "Writes that failed otherwise", all.failures.clone());
        let text = "Watches of the API server that were interrupted";
        registry.register("hawser_mcs_watch_errors", text, all.watch_errors.clone());
        let text = "Things that are wrong with services of several clusters";
        registry.register("hawser_mcs_problems", text, all.problems.clone());
        registry.register("hawser_mcs_imports", "Services that are imported", all.imports.clone());
        let text = "Services that other clusters are told of";
        registry.register("hawser_mcs_exports", text, all.exports.clone());
        let text = "Clusters whose endpoints do not count, since they are silent";
        registry.register("hawser_mcs_silent_clusters", text, all.silent.clone());
        all
    }

    /// Something was written.
    pub fn wrote(&self, kind: Kind, verb: &'static str) {
        self.writes.get_or_create(&Written { resource: kind.plural(), verb }).inc();
    }

    /// Something was not, since somebody was faster (`conflict`), or else.
    pub fn did_not_write(&self, kind: Kind, verb: &'static str, conflict: bool) {
        let family = if conflict { &self.conflicts } else { &self.failures };
        family.get_or_create(&Written { resource: kind.plural(), verb }).inc();
    }

    /// A watch was interrupted.
    pub fn watch_error(&self, kind: Kind) {
        self.watch_errors.get_or_create(&Resource { resource: kind.plural() }).inc();
    }

    /// How much there is.
    pub fn state(&self, imports: usize, exports: usize, silent: usize) {
        for (gauge, count) in [(&self.imports, imports), (&self.exports, exports), (&self.silent, silent)] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// How many things are wrong, by code; codes that are not named are zero.
    pub fn problems(&self, counts: &BTreeMap<&'static str, i64>, before: &BTreeMap<&'static str, i64>) {
        for code in before.keys().filter(|code| !counts.contains_key(*code)) {
            self.problems.get_or_create(&Code { code }).set(0);
        }
        for (code, count) in counts {
            self.problems.get_or_create(&Code { code }).set(*count);
        }
    }
}
