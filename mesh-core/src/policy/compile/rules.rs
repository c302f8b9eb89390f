//! Numbers of rules, for people who read flows.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::model::Direction;
use crate::policy::problems::PolicyRef;

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// The policy.
    pub object: PolicyRef,
    /// `spec.ingress` or `spec.egress`.
    pub direction: Direction,
    /// Which rule of it, from 0. None: the policy isolates its pods, and no rule of any policy allows.
    pub index: Option<u32>,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        match self.index {
            Some(index) => write!(f, "{} {direction}[{index}]", self.object),
            None => write!(f, "{} {direction} isolation", self.object),
        }
    }
}

/// How many rules of deleted policies are still known by their number, for events that come late.
const REMEMBERED: usize = 4_096;

/// All rules that have a number. A rule keeps its number while its policy lives, whatever it says.
#[derive(Debug)]
pub(crate) struct Rules {
    numbers: BTreeMap<RuleRef, u32>,
    rules: BTreeMap<u32, RuleRef>,
    deleted: VecDeque<u32>,
    next: u32,
}

impl Rules {
    pub(crate) fn starting_at(first: u32) -> Self {
        Self {
            numbers: BTreeMap::new(),
            rules: BTreeMap::new(),
            deleted: VecDeque::new(),
            next: first.max(1),
        }
    }

    /// The number of a rule, from now on.
    pub(crate) fn number(&mut self, rule: RuleRef) -> u32 {
        if let Some(number) = self.numbers.get(&rule) {
            return *number;
        }
        let number = self.next;
        assert!(number < 1 << 31, "the data path has 31 bits for a rule: one a second lasts for 68 years");
        self.next += 1;
        self.rules.insert(number, rule.clone());
        self.numbers.insert(rule, number);
        number
    }

    /// A policy was deleted: should it come back, its rules get new numbers.
    pub(crate) fn delete(&mut self, object: &PolicyRef) {
        let first = RuleRef { object: object.clone(), direction: Direction::Ingress, index: None };
        let mine = self.numbers.range(first..).take_while(|(rule, _)| rule.object == *object);
        let mine: Vec<_> = mine.map(|(rule, _)| rule.clone()).collect();
        for rule in mine {
            self.deleted.extend(self.numbers.remove(&rule));
        }
        while self.deleted.len() > REMEMBERED {
            if let Some(number) = self.deleted.pop_front() {
                self.rules.remove(&number);
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&RuleRef> {
        self.rules.get(&number)
    }
}
