//! The thread that decides policy and services and writes them: takes all mail that waits, folds it, compiles, applies, answers.
//!
//! Nothing is waited for while there is mail: what comes during a turn is the next one. Before every list has been read,
//! nothing that a former agent left is changed, and what is new is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::{Change, Datapath, PolicyBanks};
use ipnet::IpNet;
use mesh_core::policy::compile::{AskedClusters, Compiler};
use mesh_core::policy::model::ObjectName;
use mesh_core::policy::tables::Delta;
use mesh_core::service;
use tokio::sync::{oneshot, watch};

use super::book::Book;
use super::findings;
use super::view::{Fact, View};
use super::{Attached, Request};
use crate::joined::Foreign;
use crate::metrics::Metrics;
use crate::names::Register;
use crate::plane::Plane;
use crate::status::Findings;
use crate::watch::mail::{Mail, Mailbox};

/// Without mail: how often vanished pods' addresses and problems are looked after.
const IDLE: Duration = Duration::from_secs(1);
/// How often what is wrong is told at most: a full account of a large cluster is work.
const TELL: Duration = Duration::from_secs(1);
/// A policy that denies pods of joined clusters waits so long for somebody to tell of them: without, what others allow by
/// address would be cut. One that accepts them waits for nobody: until they are told of it accepts nothing.
const TELL_OF_CLUSTERS: Duration = Duration::from_secs(10);
/// At an agent's start, when what was in force before still is: longer than `clustermesh` needs to fail over (15 s), and to wait
/// for clusters that it does not reach (30 s).
const TELL_AT_START: Duration = Duration::from_secs(60);
/// After a map could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// What the thread works with.
#[derive(Debug)]
pub struct Parts {
    /// Where changes come from.
    pub mailbox: Arc<Mailbox>,
    /// The data path.
    pub plane: Plane,
    /// What is known.
    pub view: View,
    /// Where names are written.
    pub register: Arc<Register>,
    /// Where what is wrong is told.
    pub findings: watch::Sender<Arc<Findings>>,
    /// Metrics.
    pub metrics: Metrics,
    /// Where is told which pods of joined clusters policy asks for.
    pub asks: watch::Sender<AskedClusters>,
    /// Pods that were attached before the agent began.
    pub known: Vec<Attached>,
    /// Those of them that the data path does not know.
    pub missing: Vec<Attached>,
}

type Answer = oneshot::Sender<Result<(), String>>;

/// The thread's state.
#[derive(Debug)]
pub struct Engine {
    parts: Parts,
    policy: Compiler,
    banks: PolicyBanks,
    services: service::Compiler,
    /// Pods that were connected by an agent without a data path, and have an endpoint by now, but no programs.
    placed: Vec<Attached>,
    adopted: bool,
    /// What there is of services is in force.
    served: bool,
    book: Book,
    waiting: Vec<(String, Answer)>,
    /// The last change of policy could not be written wholly.
    broken: bool,
    services_pending: Option<service::Delta>,
    retry: Option<Instant>,
    applied: bool,
    /// Pods that are closed because what policy says of them has no room.
    closed: BTreeSet<ObjectName>,
    trouble: BTreeSet<(String, String)>,
    untold: bool,
    told: Option<Instant>,
    clock: Instant,
    clusters: Clusters,
}

/// What policy knows of joined clusters, while it asks for their pods.
#[derive(Debug)]
struct Clusters {
    /// Pod CIDRs of the own one.
    own: Vec<IpNet>,
    /// Those of the others.
    guarded: Vec<IpNet>,
    /// Whom policies ask for.
    asked: AskedClusters,
    /// Since when they do at all, and since when for everybody.
    since: [Option<Instant>; 2],
    /// All there is was told.
    complete: bool,
    tell: watch::Sender<AskedClusters>,
}

impl Clusters {
    /// Has to be waited for before anything new is put into force.
    fn awaited(&self, applied: bool) -> bool {
        let [at_all, everybody] = self.since;
        let (since, patience) = if applied { (everybody, TELL_OF_CLUSTERS) } else { (at_all, TELL_AT_START) };
        since.is_some_and(|since| !self.complete && since.elapsed() < patience)
    }

    /// What policies ask for now.
    fn ask(&mut self, asked: &AskedClusters) {
        if *asked == self.asked {
            return;
        }
        self.asked = asked.clone();
        for (since, does) in self.since.iter_mut().zip([!asked.nobody(), asked.everybody()]) {
            *since = does.then(|| since.unwrap_or_else(Instant::now));
        }
        self.tell.send_replace(asked.clone());
    }
}

impl Engine {
    /// Begins with what is in the maps.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(parts: Parts) -> datapath::Result<Self> {
        let banks = PolicyBanks::read(parts.plane.datapath())?;
        let guarded = parts.register.read().guarded.clone();
        let policy = Compiler::new(guarded.clone()).starting_at(banks.first_numbers());
        let clusters = Clusters {
            own: guarded,
            guarded: Vec::new(),
            asked: AskedClusters::default(),
            since: [None; 2],
            complete: false,
            tell: parts.asks.clone(),
        };
        Ok(Self {
            policy,
            banks,
            services: service::Compiler::new(service::Limits::default()),
            placed: Vec::new(),
            adopted: false,
            served: false,
            book: Book::default(),
            waiting: Vec::new(),
            broken: false,
            services_pending: None,
            retry: None,
            applied: false,
            closed: BTreeSet::new(),
            trouble: BTreeSet::new(),
            untold: true,
            told: None,
            clock: Instant::now(),
            clusters,
            parts,
        })
    }

    /// Runs for ever.
    pub fn run(mut self) {
        let mailbox = Arc::clone(&self.parts.mailbox);
        let mut facts = Vec::new();
        for attached in std::mem::take(&mut self.parts.known) {
            self.parts.view.attach(attached, &mut facts);
        }
        self.feed(facts);
        loop {
            let mail = mailbox.wait(IDLE);
            self.turn(mail);
        }
    }

    fn turn(&mut self, mut mail: Mail) {
        let since = mail.since;
        let requests = std::mem::take(&mut mail.requests);
        let foreign = std::mem::take(&mut mail.foreign);
        mail.foreign.reach.clone_from(&foreign.reach);
        let mut facts = self.parts.view.fold(mail, Instant::now());
        let mut gone = Vec::new();
        for request in requests {
            match request {
                Request::Attach(attached, answer) => {
                    self.waiting.push((attached.veth.clone(), answer));
                    self.parts.view.attach(*attached, &mut facts);
                }
                Request::Detach(veth, answer) => {
                    self.waiting.retain(|(waiting, _)| *waiting != veth);
                    for list in [&mut self.parts.missing, &mut self.placed] {
                        list.retain(|missing| missing.veth != veth);
                    }
                    self.parts.view.detach(&veth, &mut facts);
                    gone.push(answer);
                }
            }
        }
        if facts.iter().any(|fact| matches!(fact, Fact::Node(..))) {
            let cidrs = self.parts.view.cidrs();
            self.parts.register.write(|names| names.cidrs = cidrs);
        }
        let mut changed = self.feed(facts);
        changed |= self.clusters(foreign);
        let synced = self.parts.view.synced();
        let ready = self.retry.is_none_or(|at| at <= Instant::now());
        let mut wrote = false;
        if synced.services && ready {
            wrote |= self.apply_services();
            self.served |= self.adopted && self.services_pending.is_none();
        }
        if synced.policy && ready && !self.clusters.awaited(self.applied) {
            wrote |= self.apply_policy();
        }
        if self.applied && !self.book.is_empty() {
            let book = &mut self.book;
            self.parts.register.write(|names| book.publish(names));
        }
        for answer in gone {
            // Whoever asked may have gone.
            drop(answer.send(Ok(())));
        }
        self.answer();
        if let Some(since) = since.filter(|_| wrote) {
            self.parts.metrics.policy_applied(since.elapsed());
        }
        self.untold |= changed;
        self.tell();
    }

    /// Tells the compilers. True: something was told.
    fn feed(&mut self, facts: Vec<Fact>) -> bool {
        let any = !facts.is_empty();
        for fact in facts {
            self.book.note(&fact);
            match fact {
                Fact::Namespace(name, known) => self.policy.set_namespace(name, known),
                Fact::Node(name, known) => {
                    let ips = known.as_ref().map(|known| known.ips.clone()).unwrap_or_default();
                    self.services.set_addresses(name.clone(), ips);
                    self.policy.set_node(name, known);
                }
                Fact::Pod(name, known) => self.policy.set_pod(name, known),
                Fact::NetworkPolicy(name, spec) => self.policy.set_network_policy(name, spec),
                Fact::ClusterPolicy(name, spec) => self.policy.set_cluster_policy(name, spec),
                Fact::Subjects(names) => self.policy.set_subjects(names),
                Fact::Service(name, known) => self.services.set_service(name, known),
                Fact::Slice(name, known) => self.services.set_slice(name, known),
                Fact::OwnNode(own) => self.services.set_node(own),
                Fact::HostPorts(ports) => self.services.set_host_ports(ports),
            }
        }
        any
    }

    /// Pods of joined clusters. Nobody tells of those that no policy asks for, and their addresses are the world's. True:
    /// something was told.
    fn clusters(&mut self, foreign: Foreign) -> bool {
        self.clusters.ask(self.policy.asked_clusters());
        let Foreign { reach, namespaces, pods, complete } = foreign;
        self.clusters.complete = complete.is_some_and(|asked| asked == self.clusters.asked);
        let any = reach.is_some() || !namespaces.is_empty() || !pods.is_empty();
        if let Some(reach) = reach {
            self.clusters.guarded = reach.values().flat_map(|reach| &reach.cidrs).copied().collect();
        }
        // Where some are denied, who is not told of yet matches every Deny and nothing else, from the moment on at which the
        // others are known.
        let others = self.clusters.guarded.iter().filter(|_| self.clusters.asked.everybody());
        let all: Vec<IpNet> = self.clusters.own.iter().chain(others).copied().collect();
        self.policy.set_guarded(&all);
        let namespaces = namespaces.into_iter().map(|(name, known)| Fact::Namespace(name, known));
        let pods = pods.into_iter().map(|(name, known)| Fact::Pod(name, known));
        self.feed(namespaces.chain(pods).collect()) || any
    }

    fn datapath(&self) -> &Datapath {
        self.parts.plane.datapath()
    }

    /// Which link each pod whose policy is known is on.
    fn links(&self) -> BTreeMap<ObjectName, u32> {
        let view = &self.parts.view;
        let names = view.attached().filter_map(|attached| attached.pod.as_ref()).map(|(name, _)| name);
        names.filter_map(|name| Some((name.clone(), view.current(name)?.ifindex))).collect()
    }

    /// Compiles what has changed and puts it in force. True: something was written.
    fn apply_policy(&mut self) -> bool {
        let now = self.clock.elapsed().as_secs();
        let forgotten = self.banks.expired(now);
        for address in &forgotten {
            self.policy.forget(*address);
        }
        let delta = self.policy.commit();
        // What failed is all read and compared anew by the next application.
        let nothing = delta.is_empty() && forgotten.is_empty() && self.waiting.is_empty();
        if nothing && self.applied && !self.broken {
            return false;
        }
        self.place_missing();
        let links = self.links();
        let state = self.policy.state();
        let change = Change { state, delta: &delta, links: &links, forgotten: &forgotten, now };
        let result = self.banks.apply(self.parts.plane.datapath(), &change);
        match result {
            Ok(applied) => {
                self.applied = true;
                (self.broken, self.retry) = (false, None);
                self.clear_trouble("policy-not-applied");
                self.close(applied.closed);
                self.name_rules(&delta);
                self.parts.metrics.policy_state(self.policy.state(), links.len());
                if applied.writes > 0 {
                    tracing::debug!(writes = applied.writes, epoch = applied.epoch, "Policy is in force");
                }
                self.attach_missing();
                applied.writes > 0
            }
            Err(error) => {
                tracing::error!(err = %error, "Could not put policy into force");
                self.set_trouble(
                    "policy-not-applied",
                    format!("policy could not be put into force: {error}"),
                );
                self.broken = true;
                self.retry = Some(Instant::now() + AGAIN);
                false
            }
        }
    }

    /// Remembers who is closed for want of room, and says so.
    fn close(&mut self, closed: BTreeSet<ObjectName>) {
        if closed == self.closed {
            return;
        }
        self.closed = closed;
        if self.closed.is_empty() {
            self.clear_trouble("policy-too-large");
            return;
        }
        let count = self.closed.len();
        let named: Vec<String> =
            self.closed.iter().take(NAMED).map(|name| format!("{}/{}", name.namespace, name.name)).collect();
        let more = if count > NAMED { ", ..." } else { "" };
        let text = format!(
            "what policies say of {count} pods of this node has no room beside the others' ({}{more}): they are closed until their policies have fewer rules, ports and peers that differ",
            named.join(", ")
        );
        tracing::error!(pods = count, "Policies that are too large close the pods that they select");
        self.set_trouble("policy-too-large", text);
    }

    /// Pods that an agent without a data path connected get their endpoint first and their programs when policy is known, so
    /// that they are never cut off.
    fn place_missing(&mut self) {
        for missing in std::mem::take(&mut self.parts.missing) {
            match self.parts.plane.place(&missing) {
                Ok(()) => self.placed.push(missing),
                Err(error) => {
                    tracing::error!(veth = missing.veth, err = %error, "Could not take a running pod into the data path");
                    self.parts.missing.push(missing);
                }
            }
        }
        if self.parts.missing.is_empty() {
            self.parts.plane.pods_placed();
        }
    }

    fn attach_missing(&mut self) {
        for missing in std::mem::take(&mut self.placed) {
            match self.datapath().attach(datapath::LinkKind::Pod, missing.ifindex) {
                Ok(()) => tracing::info!(veth = missing.veth, "A running pod is in the data path now"),
                // The next look at links finds it.
                Err(error) => {
                    tracing::warn!(veth = missing.veth, err = %error, "Could not put the data path onto a running pod's link");
                }
            }
        }
        if self.parts.missing.is_empty() {
            self.parts.plane.pods_attached();
        }
    }

    fn name_rules(&self, delta: &Delta) {
        let rules =
            delta.functions_put.values().flat_map(|function| function.values().map(|verdict| verdict.rule));
        let rules: BTreeSet<u32> = rules.filter(|rule| *rule != 0).collect();
        if rules.is_empty() {
            return;
        }
        let text = |number: &u32| Some((*number, self.policy.rule(*number)?.to_string()));
        let named: Vec<(u32, String)> = rules.iter().filter_map(text).collect();
        self.parts.register.write(|names| {
            names.rules.extend(named);
            while names.rules.len() > MAX_RULES {
                names.rules.pop_first();
            }
        });
    }

    /// Compiles what has changed of services and puts it in force. True: something was written.
    fn apply_services(&mut self) -> bool {
        if !self.adopted && !self.adopt() {
            return false;
        }
        let delta = match self.services_pending.take() {
            // One after the other: what was not written has to be written before the next.
            Some(pending) => pending,
            None => self.services.commit(),
        };
        if delta.is_empty() {
            return false;
        }
        let plane = self.parts.plane.datapath();
        let result = plane.apply_services(&delta).and_then(|()| plane.wait_for_packets());
        match result {
            Ok(()) => {
                self.services.quiesced(delta.commit);
                self.clear_trouble("services-not-applied");
                self.parts.metrics.service_state(self.services.state());
                true
            }
            Err(error) => {
                tracing::error!(err = %error, "Could not put services into force");
                let text = format!("services could not be put into force: {error}");
                self.set_trouble("services-not-applied", text);
                self.services_pending = Some(delta);
                self.retry = Some(Instant::now() + AGAIN);
                false
            }
        }
    }

    /// Takes over the services of a former agent, so that flows and affinities go on. True: done.
    fn adopt(&mut self) -> bool {
        let plane = self.parts.plane.datapath();
        let adopt = |services: &mut service::Compiler| -> Result<(), String> {
            let installed = plane.installed_services().map_err(|error| error.to_string())?;
            services.adopt(installed.state, installed.highest).map_err(|error| error.to_string())
        };
        if let Err(reason) = adopt(&mut self.services) {
            tracing::warn!(reason, "Services of a former agent cannot be taken over; they are made anew");
            let anew = plane
                .clear_services()
                .map_err(|error| error.to_string())
                .and_then(|()| adopt(&mut self.services));
            if let Err(reason) = anew {
                tracing::error!(reason, "Could not begin with services");
                self.set_trouble("services-not-applied", format!("services could not be read: {reason}"));
                self.retry = Some(Instant::now() + AGAIN);
                return false;
            }
        }
        self.adopted = true;
        true
    }

    /// Answers those whose policy is in force, or never will be.
    fn answer(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (veth, answer) in waiting {
            if answer.is_closed() {
                continue;
            }
            match self.in_force(&veth) {
                None => self.waiting.push((veth, answer)),
                // Whoever asked may have gone.
                Some(result) => drop(answer.send(result)),
            }
        }
    }

    fn in_force(&self, veth: &str) -> Option<Result<(), String>> {
        let view = &self.parts.view;
        let Some((name, _)) = view.on(veth).and_then(|attached| attached.pod.as_ref()) else {
            return Some(Err("nobody knows whose link it is".to_owned()));
        };
        match view.current(name) {
            Some(current) if current.veth == veth => {}
            Some(_) | None => return Some(Err("the pod was replaced meanwhile".to_owned())),
        }
        let told = |code: &str| self.trouble.iter().find(|(known, _)| known == code);
        if self.broken {
            return told("policy-not-applied").map(|(_, text)| Err(text.clone()));
        }
        if self.closed.contains(name) {
            return told("policy-too-large").map(|(_, text)| Err(text.clone()));
        }
        // Who asks a service that is not known yet is judged by its address, and not by the backend that he gets.
        if !self.served {
            return told("services-not-applied").map(|(_, text)| Err(text.clone()));
        }
        (self.applied && self.policy.state().subjects.contains_key(name)).then_some(Ok(()))
    }

    fn set_trouble(&mut self, code: &str, text: String) {
        self.clear_trouble(code);
        self.trouble.insert((code.to_owned(), text));
        self.untold = true;
    }

    fn clear_trouble(&mut self, code: &str) {
        let before = self.trouble.len();
        self.trouble.retain(|(known, _)| known != code);
        self.untold |= self.trouble.len() != before;
    }

    /// Says what is wrong, if that may have changed.
    fn tell(&mut self) {
        let early = self.told.is_some_and(|at| at.elapsed() < TELL);
        if !self.untold || early || !self.parts.view.synced().policy {
            return;
        }
        (self.untold, self.told) = (false, Some(Instant::now()));
        let policy = self.policy.problems();
        let services = self.services.problems();
        let found = findings::gather(&policy, &services, &self.parts.view, &self.trouble);
        self.parts.metrics.set_policy_problems(&found);
        self.parts.metrics.set_joined_without_way(self.parts.view.without_way());
        self.parts.findings.send_if_modified(|present| {
            let changed = **present != found;
            if changed {
                *present = Arc::new(found);
            }
            changed
        });
    }
}

/// Names of rules that are kept, the newest; events are read at once.
const MAX_RULES: usize = 65_536;
/// Pods that a sentence names.
const NAMED: usize = 8;
