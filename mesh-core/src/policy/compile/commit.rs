//! The work of a commit, in the order in which one thing follows from another.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::normal::{Action, Peers, Policy, PortMatch, Ports, Rank, Rule};
use super::owners::{Owner, OwnerRecord, ProfileId, Told, Who};
use super::program::{Program, Side, Step, named};
use super::regions::Ground;
use super::shelf::DIRECTIONS;
use super::{Compiler, PolicyId, RuleRef, SubjectRecord, Work, in_namespace};
use crate::policy::classes::{Atom, AtomId, Signature};
use crate::policy::model::{Direction, NamedPort, ObjectName};
use crate::policy::selector::NamespaceMatch;
use crate::policy::tables::{AddressRow, ClassId, Delta, Subject, index};

/// Did it come into use, or go out of it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    In,
    Out,
}

impl Compiler {
    /// Does the work that the calls since the last commit cause, and says what changed.
    pub fn commit(&mut self) -> Delta {
        self.work = Work::default();
        let subjects = self.select();
        self.turn_policies();
        self.tell_profiles();
        self.place_blocks();
        self.place_addresses();
        self.work.subjects = subjects.len();
        for name in subjects {
            self.build(&name);
        }
        (self.work.tables, self.work.classes) = self.shelf.settle(&mut self.classes, &mut self.book);
        self.book.close(std::mem::take(&mut self.gone.reused))
    }

    /// Asks which policies hold for the subjects that changed, or whose policies did.
    fn select(&mut self) -> BTreeSet<ObjectName> {
        let mut subjects = std::mem::take(&mut self.dirty.subjects);
        for id in &self.dirty.policies {
            let Some(record) = self.policies.get(id) else { continue };
            let matches = |name: &&ObjectName| self.holds_for(&record.policy, name);
            match &record.policy.subject.namespace {
                NamespaceMatch::Named(namespace) => {
                    subjects.extend(in_namespace(&self.subjects, namespace).filter(matches).cloned());
                }
                NamespaceMatch::Selected(_) => subjects.extend(self.subjects.keys().filter(matches).cloned()),
            }
        }
        for name in &subjects {
            let policies = self.policies_of(name);
            let Some(record) = self.subjects.get_mut(name) else { continue };
            let before = std::mem::replace(&mut record.policies, policies.clone());
            for id in before.difference(&policies) {
                if let Some(policy) = self.policies.get_mut(id) {
                    policy.subjects.remove(name);
                    self.dirty.policies.insert(*id);
                }
            }
            for id in policies.difference(&before) {
                if let Some(policy) = self.policies.get_mut(id) {
                    policy.subjects.insert(name.clone());
                    self.dirty.policies.insert(*id);
                }
            }
        }
        subjects
    }

    /// A pod is no subject any more.
    pub(super) fn let_go(&mut self, name: &ObjectName, record: &SubjectRecord) {
        for id in &record.policies {
            if let Some(policy) = self.policies.get_mut(id) {
                policy.subjects.remove(name);
                self.dirty.policies.insert(*id);
            }
        }
        if let Some(table) = record.table {
            self.shelf.leave(table);
        }
    }

    /// A pod that is known, and so is its namespace.
    fn pod(&self, name: &ObjectName) -> Option<(&OwnerRecord, &Who)> {
        self.namespaces.get(&name.namespace)?;
        let record = self.owners.owner(&Owner::Pod(name.clone()))?;
        Some((record, &*self.owners.profile(record.profile)?.who))
    }

    fn holds_for(&self, policy: &Policy, name: &ObjectName) -> bool {
        let Some(facts) = self.namespaces.get(&name.namespace) else { return false };
        let Some((_, Who::Pod { labels, .. })) = self.pod(name) else { return false };
        policy.subject.governs(&name.namespace, &facts.labels, labels)
    }

    fn policies_of(&self, name: &ObjectName) -> BTreeSet<PolicyId> {
        let Some(facts) = self.namespaces.get(&name.namespace) else { return BTreeSet::new() };
        let Some((_, Who::Pod { labels, .. })) = self.pod(name) else { return BTreeSet::new() };
        let candidates = self.by_subject.candidates(&name.namespace, &facts.labels, labels);
        let holds = |id: &PolicyId| {
            let policy = self.policies.get(id).map(|record| &record.policy);
            policy.is_some_and(|policy| policy.subject.governs(&name.namespace, &facts.labels, labels))
        };
        candidates.into_iter().filter(holds).collect()
    }

    /// Brings the atoms of policies that now hold for somebody into use, and then the others out of it.
    fn turn_policies(&mut self) {
        let retired = std::mem::take(&mut self.dirty.retired);
        let changed = std::mem::take(&mut self.dirty.policies);
        let mut idle = Vec::new();
        for id in changed.union(&retired) {
            let Some(record) = self.policies.get_mut(id) else { continue };
            let wanted = !record.subjects.is_empty();
            let policy = Arc::clone(&record.policy);
            match (std::mem::replace(&mut record.in_use, wanted), wanted) {
                (false, true) => self.turn(&policy, Turn::In),
                (true, false) => idle.push(policy),
                (true, true) | (false, false) => {}
            }
        }
        for policy in idle {
            self.turn(&policy, Turn::Out);
        }
        for id in retired {
            self.policies.remove(&id);
        }
    }

    fn turn(&mut self, policy: &Policy, turn: Turn) {
        for atom in policy.atoms() {
            let id = match turn {
                Turn::In => self.atoms.hold(atom),
                Turn::Out => self.atoms.release(atom),
            };
            if let Some(id) = id {
                self.turn_atom(atom, id, turn);
            }
        }
        for name in policy.egress_names() {
            let first_or_last = match turn {
                Turn::In => self.atoms.hold_name(name),
                Turn::Out => self.atoms.release_name(name),
            };
            if first_or_last {
                let profiles: Vec<_> = self.owners.naming(name).collect();
                self.dirty.profiles.extend(profiles);
            }
        }
    }

    fn turn_atom(&mut self, atom: &Atom, id: AtomId, turn: Turn) {
        let profiles = match atom {
            Atom::Pods(pods) => {
                let all = self.namespaces.iter().map(|(name, facts)| (name, &facts.labels));
                let labels = |name: &str| self.namespaces.get(name).map(|facts| &facts.labels);
                self.owners.pods(pods, all, labels)
            }
            Atom::Nodes(selector) => self.owners.nodes(selector),
            Atom::Block(block) => {
                match turn {
                    Turn::In => self.regions.insert(id, block),
                    Turn::Out => self.regions.remove(id, block),
                }
                let (first, last) = ends(&block.cidr);
                self.dirty.addresses.extend(self.owners.addresses_in(first, last));
                return;
            }
        };
        self.work.profiles += profiles.len();
        for profile in profiles {
            let Some(profile) = self.owners.profile_mut(profile) else { continue };
            // One that nobody has looked at yet is looked at after this.
            let Some(told) = &mut profile.told else { continue };
            match (turn, told.atoms.binary_search(&id)) {
                (Turn::In, Err(at)) => told.atoms.insert(at, id),
                (Turn::Out, Ok(at)) => drop(told.atoms.remove(at)),
                (Turn::In, Ok(_)) | (Turn::Out, Err(_)) => continue,
            }
            self.dirty.addresses.extend(&profile.addresses);
        }
    }

    /// Holds profiles that are new, or whose namespace changed, against all selectors in use.
    fn tell_profiles(&mut self) {
        for id in std::mem::take(&mut self.dirty.profiles) {
            let Some(told) = self.told(id) else { continue };
            self.work.profiles += 1;
            let Some(profile) = self.owners.profile_mut(id) else { continue };
            if profile.told != told {
                profile.told = told;
                self.dirty.addresses.extend(&profile.addresses);
            }
        }
    }

    /// None: there is no such profile any more.
    fn told(&self, id: ProfileId) -> Option<Option<Told>> {
        let who = &self.owners.profile(id)?.who;
        Some(match &**who {
            Who::Node { labels } => Some(Told { atoms: self.atoms.of_node(labels), ports: Vec::new() }),
            Who::Pod { namespace, labels, ports } => self.namespaces.get(namespace).map(|facts| Told {
                atoms: self.atoms.of_pod(namespace, &facts.labels, labels),
                ports: ports.iter().filter(|port| self.atoms.mentions(&port.name)).cloned().collect(),
            }),
        })
    }

    fn place_blocks(&mut self) {
        for net in self.regions.take_dirty() {
            self.work.blocks += 1;
            let class = match self.regions.ground(&net) {
                Ground::Unsaid => None,
                Ground::Guarded => Some(ClassId::UNKNOWN),
                Ground::In(atoms) => Some(self.classes.enter(Signature::of(&[], atoms, &[]))),
            };
            let before = self.book.state.blocks.get(&net).copied();
            self.book.set_block(net, class);
            if let Some(before) = before {
                self.classes.leave(before);
            }
        }
    }

    fn place_addresses(&mut self) {
        for address in std::mem::take(&mut self.dirty.addresses) {
            self.work.addresses += 1;
            let row = self.row(address);
            let before = self.book.state.addresses.get(&address).map(|row| row.class);
            match (before, row) {
                (Some(before), None) => {
                    if let Some(class) = self.gone.insert(address, before) {
                        self.classes.leave(class);
                    }
                }
                (Some(before), Some(_)) => self.classes.leave(before),
                (None, Some(_)) => {
                    if let Some(class) = self.gone.remove(address) {
                        self.classes.leave(class);
                    }
                }
                (None, None) => continue,
            }
            self.book.set_address(address, row);
        }
    }

    /// What an address is now; none: nobody's. Enters its class.
    fn row(&mut self, address: IpAddr) -> Option<AddressRow> {
        if self.owners.claimants(address).is_empty() {
            return None;
        }
        let unknown = AddressRow { class: ClassId::UNKNOWN, node: false };
        let Some((owner, profile)) = self.owners.of_address(address) else { return Some(unknown) };
        let node = matches!(owner, Owner::Node(_));
        let Some(told) = &profile.told else { return Some(AddressRow { node, ..unknown }) };
        let signature = Signature::of(&told.atoms, self.regions.atoms(address), &told.ports);
        Some(AddressRow { class: self.classes.enter(signature), node })
    }

    /// Puts a subject's policies together.
    fn build(&mut self, name: &ObjectName) {
        let known = self.subjects.contains_key(name).then(|| self.pod(name)).flatten();
        let Some((record, Who::Pod { ports, .. })) = known else {
            self.book.set_subject(name, None);
            if let Some(table) = self.subjects.get_mut(name).and_then(|subject| subject.table.take()) {
                self.shelf.leave(table);
            }
            return;
        };
        let (ips, ports) = (record.ips.clone(), ports.clone());
        let audit = self.namespaces.get(&name.namespace).is_some_and(|facts| facts.audit);
        let program = self.program(name, &ports);
        let table = self.shelf.enter(program, &mut self.book);
        if let Some(before) = self.subjects.get_mut(name).and_then(|subject| subject.table.replace(table)) {
            self.shelf.leave(before);
        }
        self.book.set_subject(name, Some(Subject { table, audit, ips }));
    }

    fn program(&mut self, name: &ObjectName, ports: &BTreeSet<NamedPort>) -> Program {
        let ids = self.subjects.get(name).map(|subject| &subject.policies);
        let records = ids.into_iter().flatten().filter_map(|id| self.policies.get(id));
        let mut policies: Vec<_> = records.map(|record| Arc::clone(&record.policy)).collect();
        policies.sort_by(|a, b| (&a.rank, &a.object).cmp(&(&b.rank, &b.object)));
        Program { sides: DIRECTIONS.map(|direction| self.side(direction, &policies, ports)) }
    }

    fn side(&mut self, direction: Direction, policies: &[Arc<Policy>], ports: &BTreeSet<NamedPort>) -> Side {
        let mut side = Side::default();
        for policy in policies {
            if policy.isolates[index(direction)] && side.isolated.is_none() {
                let object = policy.object.clone();
                side.isolated = Some(self.rules.number(RuleRef { object, direction, index: None }));
            }
            for rule in &policy.rules[index(direction)] {
                let Some(step) = self.step(direction, policy, rule, ports) else { continue };
                match policy.rank {
                    Rank::Admin(..) => side.admin.push(step),
                    Rank::Network => side.allows.push(step),
                    Rank::Baseline(..) => side.baseline.push(step),
                }
            }
        }
        if side.isolated.is_some() {
            // NetworkPolicies have the last word.
            side.baseline.clear();
        }
        side
    }

    /// None: it can never match.
    fn step(
        &mut self,
        direction: Direction,
        policy: &Policy,
        rule: &Rule,
        own: &BTreeSet<NamedPort>,
    ) -> Option<Step> {
        let peers = match &rule.peers {
            Peers::Everybody => None,
            Peers::AnyOf(atoms) => {
                let ids: BTreeSet<_> = atoms.iter().filter_map(|atom| self.atoms.id(atom)).collect();
                if ids.is_empty() {
                    return None;
                }
                Some(ids)
            }
        };
        let ports = match (&rule.ports, direction) {
            (Ports::AnyOf(entries), Direction::Ingress) => {
                // Names are those of the subject's own containers.
                let resolve = |entry: &PortMatch| match entry {
                    PortMatch::Name(name, protocol) => named(own, name, *protocol),
                    PortMatch::Protocol(_) | PortMatch::Range(..) => vec![entry.clone()],
                };
                Ports::AnyOf(entries.iter().flat_map(resolve).collect())
            }
            (ports, _) => ports.clone(),
        };
        if matches!(&ports, Ports::AnyOf(entries) if entries.is_empty()) {
            return None;
        }
        debug_assert!(
            policy.rank != Rank::Network || rule.action == Action::Accept,
            "NetworkPolicies only allow"
        );
        let (object, index) = (policy.object.clone(), Some(rule.index));
        let rule_number = self.rules.number(RuleRef { object, direction, index });
        Some(Step { rule: rule_number, action: rule.action, peers, ports })
    }
}

/// First and last address of a block.
fn ends(net: &IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}
