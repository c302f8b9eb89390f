//! Tables and port functions in use, and what each table says of each class.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::book::Book;
use super::ports::Outcome;
use super::program::{Peer, Program};
use crate::policy::classes::{AtomId, Classes, Signature};
use crate::policy::model::Direction;
use crate::policy::selector::take;
use crate::policy::tables::{ClassId, FnId, PortFunction, RowKey, TableId, index};

/// Both directions.
pub(crate) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Classes that one direction of a table cannot tell apart.
#[derive(Debug)]
struct Group {
    function: FnId,
    classes: BTreeSet<ClassId>,
}

/// One direction of a table.
#[derive(Debug)]
struct Groups {
    atoms: BTreeSet<AtomId>,
    names: BTreeSet<String>,
    fallback: FnId,
    unknown: FnId,
    /// By the part of their signatures that the table asks for.
    groups: BTreeMap<Signature, Group>,
}

#[derive(Debug)]
struct Shelved {
    program: Arc<Program>,
    subjects: usize,
    sides: [Groups; 2],
}

/// Functions by what they say.
#[derive(Debug)]
struct Functions {
    ids: BTreeMap<PortFunction, FnId>,
    uses: BTreeMap<FnId, usize>,
    idle: BTreeSet<FnId>,
    next: u32,
}

impl Functions {
    fn hold(&mut self, outcome: Outcome, book: &mut Book) -> FnId {
        let function = match outcome {
            Outcome::Deny => return FnId::DENY,
            Outcome::Allow => return FnId::ALLOW,
            Outcome::Ports(function) => function,
        };
        if let Some(id) = self.ids.get(&function) {
            *self.uses.entry(*id).or_default() += 1;
            self.idle.remove(id);
            return *id;
        }
        let id = FnId(self.next);
        self.next = self.next.checked_add(1).expect("one function a millisecond lasts for seven weeks");
        self.uses.insert(id, 1);
        book.add_function(id, function.clone());
        self.ids.insert(function, id);
        id
    }

    fn release(&mut self, id: FnId) {
        let Some(uses) = self.uses.get_mut(&id) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.idle.insert(id);
        }
    }

    fn sweep(&mut self, book: &mut Book) {
        for id in std::mem::take(&mut self.idle) {
            self.uses.remove(&id);
            if let Some(function) = book.state.functions.get(&id) {
                self.ids.remove(function);
            }
            book.remove_function(id);
        }
    }
}

/// All tables in use.
#[derive(Debug)]
pub(crate) struct Shelf {
    tables: BTreeMap<TableId, Shelved>,
    ids: BTreeMap<Arc<Program>, TableId>,
    /// Who asks for an atom.
    by_atom: BTreeMap<AtomId, BTreeSet<(TableId, Direction)>>,
    /// Who asks for a port name in the destination.
    by_name: BTreeMap<String, BTreeSet<(TableId, Direction)>>,
    functions: Functions,
    /// Made since the last sweep.
    fresh: BTreeSet<TableId>,
    /// Without subjects; one may come back before the sweep.
    idle: BTreeSet<TableId>,
    next: u32,
}

impl Shelf {
    pub(crate) fn starting_at(table: u32, function: u32) -> Self {
        let functions = Functions {
            ids: BTreeMap::new(),
            uses: BTreeMap::new(),
            idle: BTreeSet::new(),
            next: function.max(FnId::FIRST.0),
        };
        Self {
            tables: BTreeMap::new(),
            ids: BTreeMap::new(),
            by_atom: BTreeMap::new(),
            by_name: BTreeMap::new(),
            functions,
            fresh: BTreeSet::new(),
            idle: BTreeSet::new(),
            next: table.max(1),
        }
    }

    /// One more subject with this program.
    pub(crate) fn enter(&mut self, program: Program, book: &mut Book) -> TableId {
        if let Some(id) = self.ids.get(&program).copied()
            && let Some(table) = self.tables.get_mut(&id)
        {
            table.subjects += 1;
            self.idle.remove(&id);
            return id;
        }
        let id = TableId(self.next);
        self.next = self.next.checked_add(1).expect("one table a millisecond lasts for seven weeks");
        let program = Arc::new(program);
        let sides = DIRECTIONS.map(|direction| {
            let side = program.side(direction);
            let (atoms, names) = (side.atoms(), side.names());
            for atom in &atoms {
                self.by_atom.entry(*atom).or_default().insert((id, direction));
            }
            for name in &names {
                self.by_name.entry(name.clone()).or_default().insert((id, direction));
            }
            let fallback = self.functions.hold(side.outcome(Peer::Known(&Signature::default())), book);
            let unknown = self.functions.hold(side.outcome(Peer::Unknown), book);
            Groups { atoms, names, fallback, unknown, groups: BTreeMap::new() }
        });
        book.add_table(id, [sides[0].fallback, sides[1].fallback]);
        for (direction, side) in DIRECTIONS.iter().zip(&sides) {
            if side.unknown != side.fallback {
                let key = RowKey { table: id, direction: *direction, class: ClassId::UNKNOWN };
                book.add_row(key, side.unknown);
            }
        }
        self.ids.insert(Arc::clone(&program), id);
        self.tables.insert(id, Shelved { program, subjects: 1, sides });
        self.fresh.insert(id);
        id
    }

    /// One subject less.
    pub(crate) fn leave(&mut self, id: TableId) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        table.subjects -= 1;
        if table.subjects == 0 {
            self.idle.insert(id);
        }
    }

    pub(crate) fn program(&self, id: TableId) -> Option<&Program> {
        self.tables.get(&id).map(|table| &*table.program)
    }

    /// Brings tables, classes and functions up to date with each other. Returns how many tables and classes were new.
    pub(crate) fn settle(&mut self, classes: &mut Classes, book: &mut Book) -> (usize, usize) {
        for id in std::mem::take(&mut self.idle) {
            self.drop_table(id, book);
        }
        let (fresh, gone) = classes.sweep();
        for (class, signature) in gone {
            for (table, direction) in self.asking(&signature) {
                self.remove(table, direction, class, &signature, book);
            }
        }
        let tables = std::mem::take(&mut self.fresh);
        for table in &tables {
            for direction in DIRECTIONS {
                let Some(shelved) = self.tables.get(table) else { continue };
                let side = &shelved.sides[index(direction)];
                for class in classes.touched_by(side.atoms.iter(), side.names.iter()) {
                    if let Some(signature) = classes.signature(class) {
                        self.add(*table, direction, class, signature, book);
                    }
                }
            }
        }
        for class in &fresh {
            let Some(signature) = classes.signature(*class) else { continue };
            for (table, direction) in self.asking(signature) {
                if !tables.contains(&table) {
                    self.add(table, direction, *class, signature, book);
                }
            }
        }
        self.functions.sweep(book);
        (tables.len(), fresh.len())
    }

    /// Who asks for anything in a signature.
    fn asking(&self, signature: &Signature) -> BTreeSet<(TableId, Direction)> {
        let by_atom = signature.atoms.iter().filter_map(|atom| self.by_atom.get(atom)).flatten();
        let by_name = signature.ports.iter().filter_map(|port| self.by_name.get(&port.name)).flatten();
        by_atom.chain(by_name).copied().collect()
    }

    fn add(
        &mut self,
        id: TableId,
        direction: Direction,
        class: ClassId,
        signature: &Signature,
        book: &mut Book,
    ) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let side = &mut table.sides[index(direction)];
        let asked = side.asked(signature);
        let group = match side.groups.get_mut(&asked) {
            Some(group) => group,
            None => {
                let outcome = table.program.side(direction).outcome(Peer::Known(&asked));
                let function = self.functions.hold(outcome, book);
                side.groups.entry(asked).or_insert(Group { function, classes: BTreeSet::new() })
            }
        };
        group.classes.insert(class);
        if group.function != side.fallback {
            book.add_row(RowKey { table: id, direction, class }, group.function);
        }
    }

    fn remove(
        &mut self,
        id: TableId,
        direction: Direction,
        class: ClassId,
        signature: &Signature,
        book: &mut Book,
    ) {
        let Some(table) = self.tables.get_mut(&id) else { return };
        let side = &mut table.sides[index(direction)];
        let asked = side.asked(signature);
        book.remove_row(RowKey { table: id, direction, class });
        let Some(group) = side.groups.get_mut(&asked) else { return };
        group.classes.remove(&class);
        if group.classes.is_empty() {
            self.functions.release(group.function);
            side.groups.remove(&asked);
        }
    }

    fn drop_table(&mut self, id: TableId, book: &mut Book) {
        let Some(table) = self.tables.remove(&id) else { return };
        self.ids.remove(&table.program);
        self.fresh.remove(&id);
        for (direction, side) in DIRECTIONS.into_iter().zip(table.sides) {
            for atom in &side.atoms {
                if let Some(set) = self.by_atom.get_mut(atom) {
                    set.remove(&(id, direction));
                    if set.is_empty() {
                        self.by_atom.remove(atom);
                    }
                }
            }
            for name in &side.names {
                take(&mut self.by_name, name, (id, direction));
            }
            self.functions.release(side.fallback);
            self.functions.release(side.unknown);
            for group in side.groups.values() {
                self.functions.release(group.function);
            }
        }
        book.remove_table(id);
    }
}

impl Groups {
    /// The part of a signature that matters here.
    fn asked(&self, signature: &Signature) -> Signature {
        Signature {
            atoms: signature.atoms.iter().filter(|atom| self.atoms.contains(atom)).copied().collect(),
            ports: signature.ports.iter().filter(|port| self.names.contains(&port.name)).cloned().collect(),
        }
    }
}
