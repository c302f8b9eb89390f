//! What is decided, against what the API has: operations in the order in which they may be done, and none where nothing is
//! to be done.
//!
//! ```text
//!  import ─► derived Service ─► slices new or changed ─► slices gone ─► Service gone ─► import gone ─► status
//!    │ its UID owns the next two, so they wait for it
//! ```
//!
//! At most one operation an object and round: what else it needs is found in the next one, when the first is seen. Each names
//! the version of the object that was looked at, and is refused by the API server if there is another.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::clusters::ClusterName;
use mesh_core::mcs::{Decision, Import};
use mesh_core::policy::model::ObjectName;
use serde_json::{Value, json};

use super::kind::Kind;
use super::problem::Problem;
use super::render::{self, Keys, Wanted};
use super::seen::{ExportSeen, ImportSeen, ServiceSeen, SliceSeen, Stamp};

/// What the API has of one name.
#[derive(Clone, Debug, Default)]
pub struct Observed<'a> {
    /// The ServiceExport.
    pub export: Option<&'a ExportSeen>,
    /// The ServiceImport, whoever made it.
    pub import: Option<&'a ImportSeen>,
    /// Derived Services of the name, and whatever has the name that one should have.
    pub services: BTreeMap<&'a str, &'a ServiceSeen>,
    /// Slices of ours for the name, and whatever has the name that one should have.
    pub slices: BTreeMap<&'a str, &'a SliceSeen>,
}

/// What must not be done yet, since a peer has told nothing so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Slices of these clusters stay.
    pub guarded: BTreeSet<ClusterName>,
    /// The decision rests on what the import itself says: exports' status waits.
    pub stand_in: bool,
    /// The import does not say enough: nothing is done.
    pub frozen: bool,
}

/// What is done to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// POST of the whole object.
    Create(Value),
    /// JSON merge patch.
    Patch(Value),
    /// JSON merge patch of the status.
    Status(Value),
    /// DELETE, if it is this one in this version.
    Delete(Stamp),
}

impl Act {
    /// A word for it.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Create(_) => "creation",
            Self::Patch(_) => "change",
            Self::Status(_) => "status",
            Self::Delete(_) => "deletion",
        }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// Kind of the object.
    pub kind: Kind,
    /// Its name.
    pub object: ObjectName,
    /// What to do.
    pub act: Act,
    /// Whose endpoints are in it, if it is a slice.
    pub source: Option<ClusterName>,
}

/// What is to be done about one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Todo {
    /// In order.
    pub ops: Vec<Op>,
    /// What stands in the way.
    pub problems: Vec<Problem>,
    /// Somebody else's import has the name: nothing of the service is served here.
    pub import_taken: bool,
}

/// Compares. `now` as in `lastTransitionTime` (RFC 3339).
pub fn diff(name: &ObjectName, seen: &Observed<'_>, wanted: &Decision, hold: &Hold, now: &str) -> Todo {
    let mut todo = Todo::default();
    if hold.frozen {
        return todo;
    }
    let mut late = Vec::new();
    if let Some(export) = seen.export.filter(|_| !hold.stand_in) {
        late.extend(export_status(name, export, wanted, now));
    }
    // Whose import owns what is made. None: nothing may be there.
    let mut owner = None;
    match (&wanted.import, seen.import) {
        (Some(import), None) => {
            let body = render::import(import).creation(&name.namespace, &name.name);
            todo.op(Kind::Import, name, &name.name, Act::Create(body));
            todo.ops.append(&mut late);
            return todo;
        }
        (Some(_), Some(import)) if !import.ours => {
            todo.import_taken = true;
            todo.problems.push(Problem::ImportTaken { name: name.clone() });
        }
        (Some(_), Some(import)) if import.deleting => {
            // It takes along what it owns. What is there now would be owned by one that is gone.
            todo.ops.append(&mut late);
            return todo;
        }
        (Some(import), Some(present)) => {
            owner = Some(present);
            let body = render::import(import);
            if body.print == present.print {
                late.extend(import_status(name, present, import, now));
            } else {
                let patch = body.patch(&present.stamp, &present.written);
                todo.op(Kind::Import, name, &name.name, Act::Patch(patch));
            }
        }
        (None, _) => {}
    }
    todo.services(name, seen, wanted, owner);
    let (new, gone) = slices(name, seen, wanted, hold, owner, &mut todo.problems);
    todo.ops.extend(new);
    todo.ops.extend(gone);
    let kept = wanted.service.as_ref().filter(|_| owner.is_some()).map(|service| service.name.as_str());
    for (service, present) in &seen.services {
        let ours = present.of.as_deref() == Some(name.name.as_str());
        if ours && !present.deleting && kept != Some(*service) {
            todo.op(Kind::Service, name, service, Act::Delete(present.stamp.clone()));
        }
    }
    if let (None, Some(present)) = (&wanted.import, seen.import)
        && present.ours
        && !present.deleting
    {
        todo.op(Kind::Import, name, &name.name, Act::Delete(present.stamp.clone()));
    }
    todo.ops.append(&mut late);
    todo
}

impl Todo {
    fn op(&mut self, kind: Kind, beside: &ObjectName, object: &str, act: Act) {
        self.ops.push(op(kind, beside, object, act));
    }

    fn services(
        &mut self,
        name: &ObjectName,
        seen: &Observed<'_>,
        wanted: &Decision,
        owner: Option<&ImportSeen>,
    ) {
        let (Some(service), Some(import)) = (&wanted.service, owner) else { return };
        let body = render::service(service, &name.name, &import.stamp.uid);
        let present = seen.services.get(service.name.as_str());
        let ours = present.is_none_or(|present| present.of.as_deref() == Some(name.name.as_str()));
        // A stranger's is in the decision already, and one that is being deleted must be gone first.
        if ours && present.is_none_or(|present| !present.deleting) {
            let place = present.map(|present| (&present.stamp, present.print));
            self.ops.extend(put(name, &service.name, &body, place));
        }
    }
}

fn op(kind: Kind, beside: &ObjectName, object: &str, act: Act) -> Op {
    let object = ObjectName { namespace: beside.namespace.clone(), name: object.to_owned() };
    Op { kind, object, act, source: None }
}

/// Makes an object what it should be.
fn put(
    beside: &ObjectName,
    object: &str,
    wanted: &Wanted,
    present: Option<(&Stamp, render::Print)>,
) -> Option<Op> {
    let act = match present {
        None => Act::Create(wanted.creation(&beside.namespace, object)),
        Some((_, print)) if print == wanted.print => return None,
        Some((stamp, _)) => Act::Patch(wanted.patch(stamp, &Keys::default())),
    };
    Some(op(wanted.kind, beside, object, act))
}

fn slices(
    name: &ObjectName,
    seen: &Observed<'_>,
    wanted: &Decision,
    hold: &Hold,
    owner: Option<&ImportSeen>,
    problems: &mut Vec<Problem>,
) -> (Vec<Op>, Vec<Op>) {
    let mut new = Vec::new();
    for (slice, facts) in wanted.slices.iter().filter(|_| owner.is_some()) {
        let Some(import) = owner else { continue };
        let present = match seen.slices.get(slice.as_str()) {
            None => None,
            Some(present) => match &present.ours {
                Some(ours) => Some((&present.stamp, ours.print)),
                None => {
                    problems.push(Problem::SliceTaken { name: name.clone(), slice: slice.clone() });
                    continue;
                }
            },
        };
        let op = put(name, slice, &render::slice(facts, &import.stamp.uid), present);
        new.extend(op.map(|op| Op { source: Some(facts.source.clone()), ..op }));
    }
    let mut gone = Vec::new();
    for (slice, present) in &seen.slices {
        let Some(ours) = present.ours.as_ref().filter(|ours| ours.of == name.name) else { continue };
        let guarded = ours.source.as_ref().is_some_and(|cluster| hold.guarded.contains(cluster));
        let kept = owner.is_some() && (wanted.slices.contains_key(*slice) || guarded);
        if !kept {
            let act = Act::Delete(present.stamp.clone());
            gone.push(Op { source: ours.source.clone(), ..op(Kind::Slice, name, slice, act) });
        }
    }
    (new, gone)
}

fn status(stamp: &Stamp, status: Value) -> Act {
    Act::Status(json!({
        "metadata": { "uid": stamp.uid, "resourceVersion": stamp.version },
        "status": status,
    }))
}

fn export_status(name: &ObjectName, export: &ExportSeen, wanted: &Decision, now: &str) -> Option<Op> {
    let conditions = render::conditions(&export.conditions, &wanted.export, now)?;
    let act = status(&export.stamp, json!({ "conditions": conditions }));
    Some(op(Kind::Export, name, &name.name, act))
}

fn import_status(name: &ObjectName, present: &ImportSeen, wanted: &Import, now: &str) -> Option<Op> {
    let clusters: Vec<&str> = wanted.clusters.iter().map(ClusterName::as_str).collect();
    let conditions = render::conditions(&present.conditions, std::slice::from_ref(&wanted.ready), now);
    if present.clusters == clusters && conditions.is_none() {
        return None;
    }
    let clusters: Vec<Value> = clusters.into_iter().map(|cluster| json!({ "cluster": cluster })).collect();
    let conditions = conditions.unwrap_or_else(|| present.conditions.clone());
    let act = status(&present.stamp, json!({ "clusters": clusters, "conditions": conditions }));
    Some(op(Kind::Import, name, &name.name, act))
}
