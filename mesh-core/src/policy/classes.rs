//! Classes of addresses (design D5): what the selectors and blocks in use can tell about them, numbered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::model::{Labels, NamedPort};
use super::selector::{PodMatch, PodMatchIndex, Selector, SelectorIndex, take};
use super::tables::ClassId;

/// One thing that a peer of a rule can ask of an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Atom {
    /// It is one of these pods'.
    Pods(PodMatch),
    /// It is one of these nodes'.
    Nodes(Selector),
    /// It lies in this block.
    Block(Block),
}

/// A block without its exceptions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    pub(crate) cidr: IpNet,
    /// All inside `cidr`.
    pub(crate) except: BTreeSet<IpNet>,
}

impl Block {
    /// Keeps of the exceptions what they take away.
    pub(crate) fn new(cidr: IpNet, except: &[IpNet]) -> Self {
        let cidr = cidr.trunc();
        let common = |e: &IpNet| {
            let e = e.trunc();
            if cidr.contains(&e) { Some(e) } else { e.contains(&cidr).then_some(cidr) }
        };
        Self { cidr, except: except.iter().filter_map(common).collect() }
    }

    /// Does it contain all of `prefix`? Asked only of prefixes that no CIDR of the block lies strictly inside of.
    pub(crate) fn contains(&self, prefix: &IpNet) -> bool {
        self.cidr.contains(prefix) && !self.except.iter().any(|e| e.contains(prefix))
    }
}

/// Number of an atom in use; not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AtomId(u64);

#[derive(Debug)]
struct AtomRecord {
    atom: Arc<Atom>,
    /// Policies in use that mention it.
    uses: usize,
}

/// The atoms of policies in use, and the port names that their egress rules mention.
#[derive(Debug, Default)]
pub(crate) struct Atoms {
    ids: BTreeMap<Arc<Atom>, AtomId>,
    records: BTreeMap<AtomId, AtomRecord>,
    pods: PodMatchIndex<AtomId>,
    nodes: SelectorIndex<AtomId>,
    names: BTreeMap<String, usize>,
    last: u64,
}

impl Atoms {
    /// One more policy in use mentions it. Its number, if it is the first.
    pub(crate) fn hold(&mut self, atom: &Arc<Atom>) -> Option<AtomId> {
        if let Some(record) = self.ids.get(atom).and_then(|id| self.records.get_mut(id)) {
            record.uses += 1;
            return None;
        }
        self.last += 1;
        let id = AtomId(self.last);
        match &**atom {
            Atom::Pods(pods) => self.pods.insert(pods, id),
            Atom::Nodes(selector) => self.nodes.insert(selector, id),
            Atom::Block(_) => {}
        }
        self.ids.insert(Arc::clone(atom), id);
        self.records.insert(id, AtomRecord { atom: Arc::clone(atom), uses: 1 });
        Some(id)
    }

    /// One policy less. The number that it had, if it was the last.
    pub(crate) fn release(&mut self, atom: &Arc<Atom>) -> Option<AtomId> {
        let id = *self.ids.get(atom)?;
        let record = self.records.get_mut(&id)?;
        record.uses -= 1;
        if record.uses > 0 {
            return None;
        }
        match &**atom {
            Atom::Pods(pods) => self.pods.remove(pods, id),
            Atom::Nodes(selector) => self.nodes.remove(selector, id),
            Atom::Block(_) => {}
        }
        self.ids.remove(atom);
        self.records.remove(&id);
        Some(id)
    }

    pub(crate) fn id(&self, atom: &Arc<Atom>) -> Option<AtomId> {
        self.ids.get(atom).copied()
    }

    /// One more policy in use mentions this port name; true if it is the first.
    pub(crate) fn hold_name(&mut self, name: &str) -> bool {
        let uses = self.names.entry(name.to_owned()).or_default();
        *uses += 1;
        *uses == 1
    }

    /// One policy less; true if it was the last.
    pub(crate) fn release_name(&mut self, name: &str) -> bool {
        let Some(uses) = self.names.get_mut(name) else { return false };
        *uses -= 1;
        let last = *uses == 0;
        if last {
            self.names.remove(name);
        }
        last
    }

    pub(crate) fn mentions(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// All that match a pod, in order.
    pub(crate) fn of_pod(&self, namespace: &str, namespace_labels: &Labels, labels: &Labels) -> Vec<AtomId> {
        let mut found = self.pods.candidates(namespace, namespace_labels, labels);
        found.retain(|id| match self.records.get(id).map(|record| &*record.atom) {
            Some(Atom::Pods(pods)) => pods.matches(namespace, namespace_labels, labels),
            Some(Atom::Nodes(_) | Atom::Block(_)) | None => false,
        });
        found.sort_unstable();
        found
    }

    /// All that match a node, in order.
    pub(crate) fn of_node(&self, labels: &Labels) -> Vec<AtomId> {
        let mut found = Vec::new();
        self.nodes.candidates(labels, &mut found);
        found.retain(|id| match self.records.get(id).map(|record| &*record.atom) {
            Some(Atom::Nodes(selector)) => selector.matches(labels),
            Some(Atom::Pods(_) | Atom::Block(_)) | None => false,
        });
        found.sort_unstable();
        found
    }
}

/// All that policy can tell about an address: a class's meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Signature {
    /// Atoms that match it, in order.
    pub(crate) atoms: Vec<AtomId>,
    /// Its ports with a name that is mentioned, in order.
    pub(crate) ports: Vec<NamedPort>,
}

impl Signature {
    /// Of what matches the owner and what contains the address, both in order.
    pub(crate) fn of(owner: &[AtomId], blocks: &[AtomId], ports: &[NamedPort]) -> Self {
        let mut atoms = Vec::with_capacity(owner.len() + blocks.len());
        atoms.extend_from_slice(owner);
        atoms.extend_from_slice(blocks);
        atoms.sort_unstable();
        Self { atoms, ports: ports.to_vec() }
    }

    fn is_empty(&self) -> bool {
        self.atoms.is_empty() && self.ports.is_empty()
    }
}

#[derive(Debug)]
struct ClassRecord {
    signature: Arc<Signature>,
    /// Addresses and blocks, those that are gone included.
    members: usize,
}

/// The classes there are.
#[derive(Debug)]
pub(crate) struct Classes {
    by_signature: BTreeMap<Arc<Signature>, ClassId>,
    records: BTreeMap<ClassId, ClassRecord>,
    by_atom: BTreeMap<AtomId, BTreeSet<ClassId>>,
    by_name: BTreeMap<String, BTreeSet<ClassId>>,
    /// Made since the last [`Self::sweep`].
    fresh: BTreeSet<ClassId>,
    /// Without members; one may come back before the sweep.
    idle: BTreeSet<ClassId>,
    next: u32,
}

impl Classes {
    pub(crate) fn starting_at(first: u32) -> Self {
        Self {
            by_signature: BTreeMap::new(),
            records: BTreeMap::new(),
            by_atom: BTreeMap::new(),
            by_name: BTreeMap::new(),
            fresh: BTreeSet::new(),
            idle: BTreeSet::new(),
            next: first.max(ClassId::FIRST.0),
        }
    }

    /// One more member of the class with this signature.
    pub(crate) fn enter(&mut self, signature: Signature) -> ClassId {
        if signature.is_empty() {
            return ClassId::WORLD;
        }
        if let Some(id) = self.by_signature.get(&signature).copied() {
            if let Some(record) = self.records.get_mut(&id) {
                record.members += 1;
            }
            self.idle.remove(&id);
            return id;
        }
        let id = ClassId(self.next);
        self.next = self.next.checked_add(1).expect("one class a millisecond lasts for seven weeks");
        for atom in &signature.atoms {
            self.by_atom.entry(*atom).or_default().insert(id);
        }
        for port in &signature.ports {
            self.by_name.entry(port.name.clone()).or_default().insert(id);
        }
        let signature = Arc::new(signature);
        self.by_signature.insert(Arc::clone(&signature), id);
        self.records.insert(id, ClassRecord { signature, members: 1 });
        self.fresh.insert(id);
        id
    }

    /// One member less.
    pub(crate) fn leave(&mut self, id: ClassId) {
        let Some(record) = self.records.get_mut(&id) else { return };
        record.members -= 1;
        if record.members == 0 {
            self.idle.insert(id);
        }
    }

    /// What a class means; none: unknown, or the world.
    pub(crate) fn signature(&self, id: ClassId) -> Option<&Arc<Signature>> {
        self.records.get(&id).map(|record| &record.signature)
    }

    /// All that one of the atoms matches or that have a port of one of the names.
    pub(crate) fn touched_by<'a>(
        &self,
        atoms: impl Iterator<Item = &'a AtomId>,
        names: impl Iterator<Item = &'a String>,
    ) -> BTreeSet<ClassId> {
        let by_atom = atoms.filter_map(|atom| self.by_atom.get(atom)).flatten();
        by_atom.chain(names.filter_map(|name| self.by_name.get(name)).flatten()).copied().collect()
    }

    /// Drops what has no members. Returns the new ones that stay and the old ones that went, with their meaning.
    pub(crate) fn sweep(&mut self) -> (Vec<ClassId>, Vec<(ClassId, Arc<Signature>)>) {
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.idle) {
            let Some(record) = self.records.remove(&id) else { continue };
            self.by_signature.remove(&record.signature);
            for atom in &record.signature.atoms {
                if let Some(set) = self.by_atom.get_mut(atom) {
                    set.remove(&id);
                    if set.is_empty() {
                        self.by_atom.remove(atom);
                    }
                }
            }
            for port in &record.signature.ports {
                take(&mut self.by_name, &port.name, id);
            }
            if !self.fresh.remove(&id) {
                gone.push((id, record.signature));
            }
        }
        (std::mem::take(&mut self.fresh).into_iter().collect(), gone)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }
}
