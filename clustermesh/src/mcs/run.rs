//! The controller: watches, judges what changed, writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use mesh_core::clusters::{Borders, Change};
use mesh_core::ipam::Millis;
use mesh_core::mcs::Decision;
use mesh_core::policy::model::ObjectName;
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;

use super::diff::{Observed, Op, diff};
use super::events::{self, Findings, Subject};
use super::follow::{News, follow};
use super::kind::Kind;
use super::metrics::Metrics;
use super::own::Own;
use super::pace::{Outcome, Pace, Place};
use super::problem::Problem;
use super::world::{Judged, Settings, World};
use super::write::{Written, write};
use crate::dns::Names;
use crate::told::Told;

/// Objects that watches may be ahead by: a list of a large cluster comes faster than it is folded.
const NEWS: usize = 1_024;
/// What is folded before names are judged: what comes in a burst for one name is judged once.
const BATCH: usize = 4_096;
/// Names that are judged before news are looked at again.
const NAMES: usize = 64;
/// Names that are written at a time: more would only make an API server queue them.
const WRITERS: usize = 8;
/// Between two looks at whether quarrels are over.
const TIDY: Duration = Duration::from_secs(30);

/// What the controller hears from the rest of the daemon.
#[derive(Debug)]
pub struct Inputs {
    /// What other clusters tell. The controller ends with it.
    pub told: mpsc::Receiver<Told>,
    /// How far each peer reaches; none: not known yet, and then nothing is written.
    pub borders: watch::Receiver<Option<Arc<Borders>>>,
    /// This replica leads: it alone writes. Names are served by all.
    pub leads: watch::Receiver<bool>,
    /// This cluster's exports are served to others.
    pub serving: watch::Receiver<bool>,
}

/// Everything that the controller needs.
pub struct Controller<P> {
    /// The own API server.
    pub client: Client,
    /// What an administrator says.
    pub settings: Settings,
    /// What it hears.
    pub inputs: Inputs,
    /// Takes what this cluster tells of its exports. First called when all of them are known, with everything, also if that
    /// is nothing; then with each difference, in order. Of every replica, whether it leads or not.
    pub publish: P,
    /// Where names are asked for.
    pub names: Arc<Names>,
    /// What is counted.
    pub metrics: Metrics,
    /// Name of this replica, in Events.
    pub instance: String,
}

impl<P> fmt::Debug for Controller<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What is wrong with one name, and whose object says so.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wrong {
    subject: Option<Subject>,
    problems: BTreeSet<Problem>,
}

struct Running<P> {
    client: Client,
    publish: P,
    names: Arc<Names>,
    metrics: Metrics,
    world: World,
    pace: Pace,
    own: Own,
    /// Names that have something to write and may not now.
    parked: BTreeSet<ObjectName>,
    /// Those for which there was no writer.
    queued: BTreeSet<ObjectName>,
    writers: JoinSet<Written>,
    writing: BTreeMap<task::Id, ObjectName>,
    refused: BTreeMap<ObjectName, Problem>,
    /// What somebody undoes, until the quarrel is over.
    undone: BTreeMap<ObjectName, (Place, Problem)>,
    wrong: BTreeMap<ObjectName, Wrong>,
    counts: BTreeMap<&'static str, i64>,
    findings: watch::Sender<Arc<Findings>>,
    news_of_findings: bool,
    leads: bool,
    /// What is not published yet, since not all is known.
    unpublished: Vec<Change>,
    published: bool,
    began: Instant,
    /// When it was looked last what is over.
    looked: Millis,
}

/// As long as names are decided here. Those of an earlier term may have been taken away since, by another leader.
struct Term(Arc<Names>);

impl Term {
    fn begin(names: &Arc<Names>) -> Self {
        names.forget();
        Self(Arc::clone(names))
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.0.forget();
    }
}

impl<P: FnMut(Vec<Change>) + Send> Controller<P> {
    /// Runs until nobody tells anything any more. To be dropped at any await: what was written stays, and whoever comes
    /// next goes on from there.
    pub async fn run(self) {
        let Self { client, settings, mut inputs, publish, names, metrics, instance } = self;
        let _term = Term::begin(&names);
        let (tell, mut news) = mpsc::channel(NEWS);
        let mut tasks = JoinSet::new();
        for kind in Kind::ALL {
            tasks.spawn(follow(kind, client.clone(), tell.clone(), metrics.clone()));
        }
        let (findings, heard) = watch::channel(Arc::default());
        tasks.spawn(events::run(client.clone(), instance, heard));
        let mut running = Running {
            client,
            publish,
            names,
            metrics,
            world: World::new(settings),
            pace: Pace::default(),
            own: Own::default(),
            parked: BTreeSet::new(),
            queued: BTreeSet::new(),
            writers: JoinSet::new(),
            writing: BTreeMap::new(),
            refused: BTreeMap::new(),
            undone: BTreeMap::new(),
            wrong: BTreeMap::new(),
            counts: BTreeMap::new(),
            findings,
            news_of_findings: false,
            leads: false,
            unpublished: Vec::new(),
            published: false,
            began: Instant::now(),
            looked: Millis(0),
        };
        let mut tidy = tokio::time::interval(TIDY);
        running.borders(&mut inputs.borders);
        running.switches(&mut inputs);
        loop {
            running.work();
            let more = running.world.is_complete() && running.world.has_dirty();
            let deadline = running.deadline();
            tokio::select! {
                Some(done) = running.writers.join_next_with_id() => running.ended(done),
                Some(one) = news.recv() => {
                    running.news(one);
                    for _ in 1..BATCH {
                        let Ok(one) = news.try_recv() else { break };
                        running.news(one);
                    }
                }
                told = inputs.told.recv() => {
                    let Some(one) = told else { return };
                    running.told(one);
                    for _ in 1..BATCH {
                        let Ok(one) = inputs.told.try_recv() else { break };
                        running.told(one);
                    }
                }
                Ok(()) = inputs.borders.changed() => running.borders(&mut inputs.borders),
                Ok(()) = inputs.leads.changed() => running.switches(&mut inputs),
                Ok(()) = inputs.serving.changed() => running.switches(&mut inputs),
                _ = tidy.tick() => running.tidy(),
                () = tokio::time::sleep_until(deadline) => running.tick(),
                () = std::future::ready(()), if more => task::yield_now().await,
            }
        }
    }
}

impl<P: FnMut(Vec<Change>) + Send> Running<P> {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// When time alone makes a difference.
    fn deadline(&self) -> Instant {
        // What is over since then was not looked at yet.
        let looked = self.looked;
        let parked = self.pace.next_deadline(looked).filter(|_| !self.parked.is_empty());
        let next = self.world.next_deadline().into_iter().chain(parked).min();
        let longest = Millis(self.now().0 + 3_600_000);
        // A millisecond more, since the clock is read in whole ones.
        self.began + Duration::from_millis(next.unwrap_or(longest).0 + 1)
    }

    fn tick(&mut self) {
        let now = self.now();
        self.looked = now;
        self.world.tick(now);
        let free: Vec<ObjectName> =
            self.parked.iter().filter(|name| self.pace.may(name, now)).cloned().collect();
        for name in free {
            self.parked.remove(&name);
            self.world.again(name);
        }
    }

    fn tidy(&mut self) {
        self.pace.tidy(self.now());
        let over = self.undone.extract_if(.., |_, (place, _)| !self.pace.is_quarrel(place));
        for (name, _) in over {
            self.world.again(name);
        }
    }

    fn news(&mut self, news: News) {
        match news {
            News::Complete(kind) => self.world.complete(kind),
            News::Object(kind, name, seen) => {
                self.world.object(kind, &name, seen.as_deref());
                let stamp = seen.as_ref().map(|seen| seen.stamp());
                if let Some(free) = self.pace.saw(&(kind, name), stamp)
                    && self.parked.remove(&free)
                {
                    self.world.again(free);
                }
            }
        }
    }

    fn told(&mut self, told: Told) {
        let now = self.now();
        self.world.told(told, now);
    }

    fn borders(&mut self, borders: &mut watch::Receiver<Option<Arc<Borders>>>) {
        let now = self.now();
        if let Some(borders) = borders.borrow_and_update().clone() {
            self.world.borders(borders, now);
        }
    }

    fn switches(&mut self, inputs: &mut Inputs) {
        self.world.serving(*inputs.serving.borrow_and_update());
        let leads = *inputs.leads.borrow_and_update();
        if leads && !self.leads {
            self.world.all_again();
        }
        self.news_of_findings |= leads != self.leads;
        self.leads = leads;
    }

    fn ended(&mut self, done: Result<(task::Id, Written), JoinError>) {
        match done {
            Ok((id, written)) => {
                self.writing.remove(&id);
                self.written(written);
            }
            Err(error) => {
                tracing::error!(err = %error, "A writer failed");
                if let Some(name) = self.writing.remove(&error.id()) {
                    let (wrote, outcome, refused) = (Vec::new(), Outcome::Failed, None);
                    self.written(Written { name, wrote, outcome, refused });
                }
            }
        }
    }

    fn written(&mut self, written: Written) {
        let Written { name, wrote, outcome, refused } = written;
        let (now, world) = (self.now(), &self.world);
        self.pace.end(&name, wrote, outcome, now, |(kind, object)| world.stamp(*kind, object));
        match refused {
            Some(problem) => drop(self.refused.insert(name.clone(), problem)),
            None if outcome == Outcome::Done => drop(self.refused.remove(&name)),
            None => {}
        }
        self.parked.remove(&name);
        self.world.again(name);
    }

    /// Judges what changed.
    fn work(&mut self) {
        if !self.world.is_complete() {
            return;
        }
        for _ in 0..NAMES {
            let Some(name) = self.world.take_dirty() else { break };
            self.judge(&name);
        }
        let first = !self.published && !self.world.has_dirty();
        self.published |= first;
        if self.published && (first || !self.unpublished.is_empty()) {
            (self.publish)(std::mem::take(&mut self.unpublished));
        }
        if self.published && self.world.knows_all_names() && !self.world.has_dirty() {
            // For good: a peer that is added later makes no name unknown that was known.
            self.names.set_complete();
        }
        self.metrics.state(self.world.imports(), self.own.len(), self.world.silent().len());
        if std::mem::take(&mut self.news_of_findings) {
            self.tell_findings();
        }
        // Whoever waits for a writer is judged again when there is one: it may want something else by then, or nothing.
        for _ in self.writers.len()..WRITERS {
            let Some(name) = self.queued.pop_first() else { break };
            self.world.again(name);
        }
    }

    fn judge(&mut self, name: &ObjectName) {
        let Judged { decision, mut problems, told, hold } = self.world.judge(name);
        self.unpublished.extend(self.own.set(name, told));
        let observed = self.world.observed(name, &decision);
        let now = self.now();
        let todo = diff(name, &observed, &decision, &hold, &timestamp());
        let subject = subject(name, &observed);
        problems.extend(todo.problems);
        let names = if todo.import_taken { &Decision::default() } else { &decision };
        problems.extend(self.names.set(name, names).into_iter().map(Problem::from));
        if todo.ops.is_empty() {
            self.parked.remove(name);
            self.queued.remove(name);
            self.refused.remove(name);
            self.pace.content(name);
        } else if self.leads {
            self.write(name, todo.ops, now);
        }
        problems.extend(self.refused.get(name).cloned());
        problems.extend(self.undone.get(name).map(|(_, problem)| problem.clone()));
        self.note(name, Wrong { subject, problems: problems.into_iter().collect() });
    }

    /// Writes what may be written now.
    fn write(&mut self, name: &ObjectName, mut ops: Vec<Op>, now: Millis) {
        if !self.pace.may(name, now) {
            self.parked.insert(name.clone());
            return;
        }
        if self.writers.len() >= WRITERS {
            self.queued.insert(name.clone());
            return;
        }
        let pace = &self.pace;
        let calm = |op: &Op| pace.may_write(&(op.kind, op.object.clone()), op.content(), now);
        if let Some(op) = ops.iter().find(|op| !calm(op)) {
            let (kind, object) = (op.kind, op.object.name.clone());
            let problem = Problem::WriteUndone { name: name.clone(), kind, object };
            self.undone.insert(name.clone(), ((kind, op.object.clone()), problem));
        }
        ops.retain(calm);
        if ops.is_empty() {
            self.pace.rest(name, now);
            self.parked.insert(name.clone());
            return;
        }
        self.parked.remove(name);
        self.queued.remove(name);
        self.pace.begin(name);
        let subject = (name.clone(), self.refused.contains_key(name));
        let writer = write(self.client.clone(), subject, ops, self.metrics.clone());
        self.writing.insert(self.writers.spawn(writer).id(), name.clone());
    }

    /// Remembers what is wrong with a name, and logs what is new of it.
    fn note(&mut self, name: &ObjectName, wrong: Wrong) {
        let before = self.wrong.remove(name).unwrap_or_default();
        for problem in wrong.problems.difference(&before.problems) {
            tracing::warn!(
                namespace = name.namespace,
                service = name.name,
                code = problem.code(),
                "{problem}"
            );
        }
        self.news_of_findings |= before != wrong;
        if !wrong.problems.is_empty() {
            self.wrong.insert(name.clone(), wrong);
        }
    }

    fn tell_findings(&mut self) {
        let mut counts = BTreeMap::new();
        for problem in self.wrong.values().flat_map(|wrong| &wrong.problems) {
            *counts.entry(problem.code()).or_insert(0) += 1;
        }
        self.metrics.problems(&counts, &self.counts);
        self.counts = counts;
        let mut all = Findings::new();
        for wrong in self.wrong.values().filter(|_| self.leads) {
            if let Some(subject) = &wrong.subject {
                all.insert(subject.clone(), wrong.problems.clone());
            }
        }
        self.findings.send_replace(Arc::new(all));
    }
}

/// Whose owner should hear what is wrong with a name.
fn subject(name: &ObjectName, observed: &Observed<'_>) -> Option<Subject> {
    let export = observed.export.map(|export| (Kind::Export, &export.stamp));
    let import = observed.import.map(|import| (Kind::Import, &import.stamp));
    let (kind, stamp) = export.or(import)?;
    Some(Subject { kind, name: name.clone(), uid: stamp.uid.clone() })
}

/// The present, as `metav1.Time`.
fn timestamp() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}
