//! What there should be of a service of the cluster set in this cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::condition::{self, Condition};
use super::facts::{DerivedState, Exports, Facts, InternalTrafficPolicy, Own, SessionAffinity, is_dns_label};
use super::merge::{self, ImportKind, ImportPort, Merged};
use super::objects;
use super::problem::McsProblem;
use super::slices::{self, Slice};
use crate::policy::model::{Labels, ObjectName};
use crate::prefix::Family;
use crate::psk::ClusterName;

/// Sentences about one service that are kept: a thousand wrong endpoints need no thousand Events.
const MOST_PROBLEMS: usize = 16;
/// Bytes of all annotations of an object that the API server takes (`apimachinery`, `TotalAnnotationSizeLimitB`); half of
/// it, so that there is room for those of others.
const MAX_ANNOTATIONS: usize = 128 * 1024;

/// A ServiceImport (`multicluster.x-k8s.io/v1beta1`). Its fields that are not here stay unset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// `metadata.labels`: exported ones, and ours.
    pub labels: Labels,
    /// `metadata.annotations`: exported ones.
    pub annotations: BTreeMap<String, String>,
    /// `spec.type`.
    pub kind: ImportKind,
    /// `spec.ports`.
    pub ports: Vec<ImportPort>,
    /// `spec.ips`: cluster IPs of the derived Service. Empty if headless, or not allocated yet.
    pub ips: Vec<IpAddr>,
    /// `spec.ipFamilies`: those of `ips`, in their order; of a headless one those of its names.
    pub families: Vec<Family>,
    /// `spec.sessionAffinity` and `spec.sessionAffinityConfig`.
    pub session_affinity: SessionAffinity,
    /// `spec.internalTrafficPolicy`; none: headless.
    pub internal_traffic_policy: Option<InternalTrafficPolicy>,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<String>,
    /// `status.clusters`, also those that are silent.
    pub clusters: BTreeSet<ClusterName>,
    /// `status.conditions`: this one.
    pub ready: Condition,
}

/// The Service that gives an import its ClusterSetIP: of type `ClusterIP`, without a selector, owned by the import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerivedService {
    /// [`objects::derived_name`], in the import's namespace.
    pub name: String,
    /// `metadata.labels`. Never exported ones: some of them steer proxies.
    pub labels: Labels,
    /// `spec.ports`; `targetPort` and `nodePort` unset.
    pub ports: Vec<ImportPort>,
    /// `spec.sessionAffinity` and its config.
    pub session_affinity: SessionAffinity,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// One, for `spec.ipFamilies` and a `spec.ipFamilyPolicy` of `SingleStack`; or two, for one of `PreferDualStack`: the API
    /// server then takes those that the cluster has, in its order. The first never changes while the Service lives, since the
    /// API server would refuse it. `spec.trafficDistribution` is unset: without a selector only the slices' hints count, and
    /// older API servers refuse newer values.
    pub families: Vec<Family>,
}

/// What there should be of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The ServiceImport; none: there must be none of ours.
    pub import: Option<Import>,
    /// The derived Service; none: there must be none of ours.
    pub service: Option<DerivedService>,
    /// EndpointSlices by name; there must be no others of ours for this service.
    pub slices: BTreeMap<String, Slice>,
    /// All conditions of the own ServiceExport: `Valid`, `Ready`, `Conflict`. Empty: there is none.
    pub export: Vec<Condition>,
}

/// What there should be, by name. A name without anything is not in it: what is ours of that name must go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By namespace and name.
    pub services: BTreeMap<ObjectName, Decision>,
}

/// What is decided here of one name, beside the exports.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The cluster that decides.
    pub own: &'a Own,
    /// It has the namespace.
    pub namespace: bool,
    /// The Service with the derived name.
    pub derived: Option<&'a DerivedState>,
    /// Why others cannot be told of the own export though its Service is a valid one: it is more than the contract carries. It
    /// is nobody's then, here as elsewhere, or clusters would disagree.
    pub untold: Option<&'a str>,
}

/// Everything. A service's part depends on nothing but its own exports, so whoever keeps count of changes asks
/// [`decide_one`] for those that changed.
pub fn decide(facts: &Facts) -> (Plan, Vec<McsProblem>) {
    let mut plan = Plan::default();
    let mut problems = Vec::new();
    for (name, exports) in &facts.exports {
        let derived =
            ObjectName { namespace: name.namespace.clone(), name: objects::derived_name(&name.name) };
        let here = Here {
            own: &facts.own,
            namespace: facts.namespaces.contains(&name.namespace),
            derived: facts.derived.get(&derived),
            untold: None,
        };
        let (decision, wrong) = decide_one(&here, name, exports);
        problems.extend(wrong);
        if decision != Decision::default() {
            plan.services.insert(name.clone(), decision);
        }
    }
    (plan, problems)
}

/// One name.
pub fn decide_one(here: &Here<'_>, name: &ObjectName, exports: &Exports) -> (Decision, Vec<McsProblem>) {
    let mut problems = Vec::new();
    let decision = decide_all(here, name, exports, &mut problems);
    problems.sort();
    problems.dedup();
    problems.truncate(MOST_PROBLEMS);
    (decision, problems)
}

fn decide_all(
    here: &Here<'_>,
    name: &ObjectName,
    exports: &Exports,
    problems: &mut Vec<McsProblem>,
) -> Decision {
    let mut decision = Decision::default();
    let own_export = exports.get(&here.own.cluster);
    if !is_dns_label(&name.namespace) || !is_dns_label(&name.name) {
        let refused = |cluster: &ClusterName| McsProblem::NameMalformed {
            cluster: cluster.clone(),
            name: name.clone(),
        };
        problems.extend(exports.keys().map(refused));
        let why = "no Service can have this name: wanted a DNS label; rename the export";
        let conditions = own_export.map(|export| condition::of_export(here.own, export, None, Some(why)));
        decision.export = conditions.into_iter().flatten().collect();
        return decision;
    }
    let mut others = Exports::new();
    let exports = if here.untold.is_some() {
        others.extend(
            exports
                .iter()
                .filter(|(cluster, _)| **cluster != here.own.cluster)
                .map(|(c, e)| (c.clone(), e.clone())),
        );
        &others
    } else {
        exports
    };
    let merged = merge::merge(name, exports, problems);
    let conditions =
        own_export.map(|export| condition::of_export(here.own, export, merged.as_ref(), here.untold));
    decision.export = conditions.into_iter().flatten().collect();
    let Some(merged) = merged.filter(|_| here.namespace) else { return decision };
    if merged.ports_left_out > 0 {
        let (left_out, limit) = (merged.ports_left_out, merge::MAX_PORTS);
        problems.push(McsProblem::TooManyPorts { name: name.clone(), left_out, limit });
    }
    import(here, name, exports, &merged, problems, &mut decision);
    decision
}

/// Import, derived Service and slices.
fn import(
    here: &Here<'_>,
    name: &ObjectName,
    exports: &Exports,
    merged: &Merged,
    problems: &mut Vec<McsProblem>,
    decision: &mut Decision,
) {
    let derived = objects::derived_name(&name.name);
    let headless = merged.kind == ImportKind::Headless;
    let taken = here.derived.is_some_and(|state| state.of.as_deref() != Some(&name.name));
    let state = here.derived.filter(|_| !taken && !headless);
    let families = families_here(here.own, merged, state);
    let mut ips: Vec<IpAddr> = state.map(|state| state.cluster_ips.clone()).unwrap_or_default();
    ips.truncate(2); // one of each family, says the API
    let pending = match (headless, taken) {
        (true, _) => None,
        (false, true) => {
            problems.push(McsProblem::DerivedNameTaken { name: name.clone(), derived: derived.clone() });
            Some("a Service that was not derived from this import has the name of the one that would be")
        }
        (false, false) => ips.is_empty().then_some("waits until the API server has allocated a cluster IP"),
    };
    if families.is_empty() {
        let own: Vec<Family> = here.own.families.iter().copied().collect();
        let (exported, own) = (written(&merged.families), written(&own));
        problems.push(McsProblem::FamilyNotSupported { name: name.clone(), exported, own });
        ips.clear();
    } else if headless || !taken {
        for (cluster, export) in exports.iter().filter(|(cluster, _)| merged.clusters.contains(*cluster)) {
            let own = *cluster == here.own.cluster;
            if own || !here.own.silent.contains(cluster) {
                let of = (cluster, own);
                let found = slices::of_cluster(name, merged, of, &families, &export.endpoints, problems);
                decision.slices.extend(found);
            }
        }
    }
    if !headless && !taken && !families.is_empty() {
        decision.service = Some(DerivedService {
            name: derived,
            labels: Labels::from([
                (objects::LABEL_SERVICE_NAME.to_owned(), name.name.clone()),
                (objects::LABEL_MANAGED_BY.to_owned(), objects::MANAGER.to_owned()),
            ]),
            ports: merged.ports.clone(),
            session_affinity: merged.session_affinity,
            internal_traffic_policy: merged.internal_traffic_policy,
            families: families.clone(),
        });
    }
    let (labels, annotations) = exported(name, merged, problems);
    decision.import = Some(Import {
        labels,
        annotations,
        kind: merged.kind,
        ports: merged.ports.clone(),
        families: if headless { families.clone() } else { ips.iter().copied().map(Family::of).collect() },
        ips,
        session_affinity: merged.session_affinity,
        internal_traffic_policy: (!headless).then_some(merged.internal_traffic_policy),
        traffic_distribution: merged.traffic_distribution.clone(),
        clusters: merged.clusters.clone(),
        ready: condition::of_import(pending, !families.is_empty()),
    });
}

/// Families of the import here: those of the service that this cluster has. A derived Service keeps the first that it was
/// given, even when nobody exports for it any more: its ClusterSetIP stays.
fn families_here(own: &Own, merged: &Merged, state: Option<&DerivedState>) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for family in merged.families.iter().filter(|family| own.families.contains(family)) {
        if !families.contains(family) {
            families.push(*family);
        }
    }
    let first = state.and_then(|state| state.cluster_ips.first()).map(|ip| Family::of(*ip));
    if let Some(first) = first.filter(|_| !families.is_empty()) {
        families.retain(|family| *family != first);
        families.insert(0, first);
    }
    families
}

fn written(families: &[Family]) -> String {
    let name = |family: &Family| match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    families.iter().map(name).collect::<Vec<_>>().join(",")
}

/// Labels and annotations of the import: what the oldest exports, as far as the API server would take it.
fn exported(
    name: &ObjectName,
    merged: &Merged,
    problems: &mut Vec<McsProblem>,
) -> (Labels, BTreeMap<String, String>) {
    let mut refuse = |field, (key, value): (&String, &String), reason| {
        problems.push(McsProblem::LabelRefused {
            cluster: merged.oldest.clone(),
            name: name.clone(),
            field,
            key: key.chars().take(64).collect(),
            value: value.chars().take(64).collect(),
            reason,
        });
    };
    let reserved = "the key is not for exporters; choose another domain";
    let malformed = "not a key that the API takes; correct it";
    let mut labels = Labels::new();
    for (key, value) in &merged.labels {
        let field = "spec.exportedLabels";
        if objects::is_reserved(key) {
            refuse(field, (key, value), reserved);
        } else if !objects::is_qualified_name(key) {
            refuse(field, (key, value), malformed);
        } else if !objects::is_label_value(value) {
            refuse(field, (key, value), "not a value that the API takes for a label; correct it");
        } else {
            labels.insert(key.clone(), value.clone());
        }
    }
    labels.insert(objects::LABEL_MANAGED_BY.to_owned(), objects::MANAGER.to_owned());
    let mut annotations = BTreeMap::new();
    let mut size = 0;
    for (key, value) in &merged.annotations {
        let field = "spec.exportedAnnotations";
        let larger = size + key.len() + value.len();
        if objects::is_reserved(key) {
            refuse(field, (key, value), reserved);
        } else if !objects::is_qualified_name(&key.to_lowercase()) {
            refuse(field, (key, value), malformed);
        } else if larger > MAX_ANNOTATIONS {
            refuse(field, (key, value), "more than 128 KiB of annotations; export fewer");
        } else {
            size = larger;
            annotations.insert(key.clone(), value.clone());
        }
    }
    (labels, annotations)
}
