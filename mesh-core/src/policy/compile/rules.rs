//! Numbers of rules, for people who read flows.

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
