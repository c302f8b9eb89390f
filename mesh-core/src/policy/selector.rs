//! Selectors that were read, and who they can match without asking each.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{LabelSelector, Labels, Requirement, is_foreign_namespace};
use crate::numbers::LABEL_CLUSTER;

/// A `LabelSelector` in its one normal form: all terms hold. None: everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Selector(BTreeSet<Term>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Term {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
}

/// Why a requirement is none, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Path below the selector, as `matchExpressions[1].operator`.
    pub(crate) field: String,
    /// What stands there.
    pub(crate) value: String,
    /// What is wrong with it.
    pub(crate) wrong: &'static str,
}

/// By what a selector is found: one term that whoever matches must have.
enum Anchor<'a> {
    Values(&'a str, &'a BTreeSet<String>),
    Key(&'a str),
    Nothing,
}

impl Selector {
    /// Reads one, or says which requirement is malformed.
    pub(crate) fn read(selector: &LabelSelector) -> Result<Self, Fault> {
        let mut terms = BTreeSet::new();
        for (key, value) in &selector.match_labels {
            terms.insert(Term::In(key.clone(), BTreeSet::from([value.clone()])));
        }
        for (index, requirement) in selector.match_expressions.iter().enumerate() {
            terms.insert(Term::read(requirement).map_err(|fault| Fault {
                field: format!("matchExpressions[{index}].{}", fault.field),
                ..fault
            })?);
        }
        Ok(Self(terms))
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|term| term.holds(labels))
    }

    /// Is any term about this label?
    fn mentions(&self, label: &str) -> bool {
        self.0.iter().any(|term| match term {
            Term::In(key, _) | Term::NotIn(key, _) | Term::Exists(key) | Term::Absent(key) => key == label,
        })
    }

    fn anchor(&self) -> Anchor<'_> {
        let by_values = self.0.iter().filter_map(|term| match term {
            Term::In(key, values) => Some((key, values)),
            Term::NotIn(..) | Term::Exists(_) | Term::Absent(_) => None,
        });
        if let Some((key, values)) = by_values.min_by_key(|(_, values)| values.len()) {
            return Anchor::Values(key, values);
        }
        let by_key = self.0.iter().find_map(|term| match term {
            Term::Exists(key) => Some(key),
            Term::In(..) | Term::NotIn(..) | Term::Absent(_) => None,
        });
        by_key.map_or(Anchor::Nothing, |key| Anchor::Key(key))
    }

    fn is_anchored(&self) -> bool {
        !matches!(self.anchor(), Anchor::Nothing)
    }
}

impl Term {
    fn read(requirement: &Requirement) -> Result<Self, Fault> {
        let key = requirement.key.clone();
        let values: BTreeSet<_> = requirement.values.iter().cloned().collect();
        let fault = |field: &str, value: String, wrong| Fault { field: field.to_owned(), value, wrong };
        match (requirement.operator.as_str(), values.is_empty()) {
            ("In", false) => Ok(Self::In(key, values)),
            ("NotIn", false) => Ok(Self::NotIn(key, values)),
            ("Exists", true) => Ok(Self::Exists(key)),
            ("DoesNotExist", true) => Ok(Self::Absent(key)),
            ("In" | "NotIn", true) => Err(fault("values", String::new(), "needs at least one value")),
            ("Exists" | "DoesNotExist", false) => Err(fault(
                "values",
                requirement.values.join(","),
                "must be empty for Exists and DoesNotExist",
            )),
            (other, _) => {
                Err(fault("operator", other.to_owned(), "is none of In, NotIn, Exists, DoesNotExist"))
            }
        }
    }

    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::Absent(key) => !labels.contains_key(key),
        }
    }
}

/// Namespaces of pods that are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NamespaceMatch {
    /// The one of this name.
    Named(String),
    /// All whose labels match.
    Selected(Selector),
}

/// Pods that are meant: one selector of its own, though it may have been written as two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodMatch {
    pub(crate) namespace: NamespaceMatch,
    pub(crate) pods: Selector,
}

impl PodMatch {
    /// Every pod of the cluster.
    pub(crate) fn everything() -> Self {
        Self { namespace: NamespaceMatch::Selected(Selector::default()), pods: Selector::default() }
    }

    pub(crate) fn matches(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        let in_namespace = match &self.namespace {
            NamespaceMatch::Named(name) => name == namespace,
            NamespaceMatch::Selected(selector) => {
                (!is_foreign_namespace(namespace) || selector.mentions(LABEL_CLUSTER))
                    && selector.matches(namespace_labels)
            }
        };
        in_namespace && self.pods.matches(labels)
    }

    /// As the subject of a policy: it holds for own pods alone, and another cluster judges its own.
    pub(crate) fn governs(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> bool {
        !is_foreign_namespace(namespace) && self.matches(namespace, namespace_labels, labels)
    }

    /// Can it mean pods of other clusters?
    pub(crate) fn asks_for_clusters(&self) -> bool {
        match &self.namespace {
            NamespaceMatch::Named(_) => false,
            NamespaceMatch::Selected(selector) => selector.mentions(LABEL_CLUSTER),
        }
    }
}

/// From labels to the selectors that can match them.
#[derive(Clone, Debug)]
pub(crate) struct SelectorIndex<Id> {
    by_value: BTreeMap<String, BTreeMap<String, BTreeSet<Id>>>,
    by_key: BTreeMap<String, BTreeSet<Id>>,
    rest: BTreeSet<Id>,
}

impl<Id> Default for SelectorIndex<Id> {
    fn default() -> Self {
        Self { by_value: BTreeMap::new(), by_key: BTreeMap::new(), rest: BTreeSet::new() }
    }
}

impl<Id: Copy + Ord> SelectorIndex<Id> {
    pub(crate) fn insert(&mut self, selector: &Selector, id: Id) {
        match selector.anchor() {
            Anchor::Values(key, values) => {
                let of_key = self.by_value.entry(key.to_owned()).or_default();
                for value in values {
                    of_key.entry(value.clone()).or_default().insert(id);
                }
            }
            Anchor::Key(key) => {
                self.by_key.entry(key.to_owned()).or_default().insert(id);
            }
            Anchor::Nothing => {
                self.rest.insert(id);
            }
        }
    }

    pub(crate) fn remove(&mut self, selector: &Selector, id: Id) {
        match selector.anchor() {
            Anchor::Values(key, values) => {
                if let Some(of_key) = self.by_value.get_mut(key) {
                    for value in values {
                        take(of_key, value, id);
                    }
                    if of_key.is_empty() {
                        self.by_value.remove(key);
                    }
                }
            }
            Anchor::Key(key) => take(&mut self.by_key, key, id),
            Anchor::Nothing => {
                self.rest.remove(&id);
            }
        }
    }

    /// All that can match these labels, each once; whether they do is still to be asked.
    pub(crate) fn candidates(&self, labels: &Labels, found: &mut Vec<Id>) {
        for (key, value) in labels {
            found.extend(self.by_value.get(key).and_then(|of_key| of_key.get(value)).into_iter().flatten());
            found.extend(self.by_key.get(key).into_iter().flatten());
        }
        found.extend(&self.rest);
    }

    fn is_empty(&self) -> bool {
        self.by_value.is_empty() && self.by_key.is_empty() && self.rest.is_empty()
    }
}

/// Takes one out of a map of sets, and the set with its last.
pub(crate) fn take<Id: Ord>(sets: &mut BTreeMap<String, BTreeSet<Id>>, key: &str, id: Id) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// From a pod to the [`PodMatch`]es that can mean it.
#[derive(Clone, Debug)]
pub(crate) struct PodMatchIndex<Id> {
    named: BTreeMap<String, SelectorIndex<Id>>,
    by_pod: SelectorIndex<Id>,
    by_namespace: SelectorIndex<Id>,
}

impl<Id> Default for PodMatchIndex<Id> {
    fn default() -> Self {
        Self {
            named: BTreeMap::new(),
            by_pod: SelectorIndex::default(),
            by_namespace: SelectorIndex::default(),
        }
    }
}

impl<Id: Copy + Ord> PodMatchIndex<Id> {
    pub(crate) fn insert(&mut self, pods: &PodMatch, id: Id) {
        match &pods.namespace {
            NamespaceMatch::Named(name) => {
                self.named.entry(name.clone()).or_default().insert(&pods.pods, id);
            }
            NamespaceMatch::Selected(_) if pods.pods.is_anchored() => self.by_pod.insert(&pods.pods, id),
            NamespaceMatch::Selected(namespaces) => self.by_namespace.insert(namespaces, id),
        }
    }

    pub(crate) fn remove(&mut self, pods: &PodMatch, id: Id) {
        match &pods.namespace {
            NamespaceMatch::Named(name) => {
                if let Some(index) = self.named.get_mut(name) {
                    index.remove(&pods.pods, id);
                    if index.is_empty() {
                        self.named.remove(name);
                    }
                }
            }
            NamespaceMatch::Selected(_) if pods.pods.is_anchored() => self.by_pod.remove(&pods.pods, id),
            NamespaceMatch::Selected(namespaces) => self.by_namespace.remove(namespaces, id),
        }
    }

    /// All that can mean this pod, each once; whether they do is still to be asked.
    pub(crate) fn candidates(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> Vec<Id> {
        let mut found = Vec::new();
        if let Some(index) = self.named.get(namespace) {
            index.candidates(labels, &mut found);
        }
        self.by_pod.candidates(labels, &mut found);
        self.by_namespace.candidates(namespace_labels, &mut found);
        found
    }
}

/// From a selector to those whose labels it can match.
#[derive(Clone, Debug)]
pub(crate) struct LabelIndex<Id>(BTreeMap<String, BTreeMap<String, BTreeSet<Id>>>);

impl<Id> Default for LabelIndex<Id> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Id: Copy + Ord> LabelIndex<Id> {
    pub(crate) fn insert(&mut self, labels: &Labels, id: Id) {
        for (key, value) in labels {
            self.0.entry(key.clone()).or_default().entry(value.clone()).or_default().insert(id);
        }
    }

    pub(crate) fn remove(&mut self, labels: &Labels, id: Id) {
        for (key, value) in labels {
            if let Some(of_key) = self.0.get_mut(key) {
                take(of_key, value, id);
                if of_key.is_empty() {
                    self.0.remove(key);
                }
            }
        }
    }

    /// All that the selector can match, each once, and whether it does is still to be asked. None: it could be anybody.
    pub(crate) fn candidates(&self, selector: &Selector) -> Option<Vec<Id>> {
        match selector.anchor() {
            Anchor::Values(key, values) => {
                let of_key = self.0.get(key);
                let sets = values.iter().filter_map(|value| of_key?.get(value));
                Some(sets.flatten().copied().collect())
            }
            Anchor::Key(key) => {
                Some(self.0.get(key).into_iter().flat_map(BTreeMap::values).flatten().copied().collect())
            }
            Anchor::Nothing => None,
        }
    }
}

#[cfg(test)]
mod tests;
