//! Which rule of which object decides, in words: for `hawser policy explain`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::compile::{Compiler, Decision, Peer, RuleRef};
use super::model::{Direction, Flow, ObjectName, Protocol, Verdict};
use super::problems::PolicyRef;

/// Who a peer is to policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerIdentity {
    /// A pod.
    Pod(ObjectName),
    /// A node, by name.
    Node(String),
    /// Inside a pod CIDR, or claimed by two, or of a namespace that is not known: nobody's that we know.
    Unknown,
    /// Outside the cluster.
    World,
}

/// Why a flow may pass, or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The peer is the pod itself, which no policy keeps it from.
    Itself,
    /// The pod or its namespace is not known: it has no policy yet, and nothing passes.
    SubjectUnknown,
    /// The first rule that matches, in the order of tiers and priorities.
    Rule(RuleRef),
    /// These NetworkPolicies isolate the pod in this direction, and none of their rules allows.
    Isolated(Vec<PolicyRef>),
    /// No policy says anything of it.
    NoPolicy,
}

/// The verdict on one flow at one pod, and its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The pod whose policy is asked.
    pub subject: ObjectName,
    /// Which of its policies.
    pub direction: Direction,
    /// Who is at the other end.
    pub peer: PeerIdentity,
    /// The flow.
    pub flow: Flow,
    /// What policy says, audit or not.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The pod's namespace is audited: what is denied passes all the same, and is reported.
    pub audit: bool,
}

impl Compiler {
    /// Says which rule decides about a flow at `subject`, a pod of this node: as its destination for
    /// [`Direction::Ingress`], as its source for [`Direction::Egress`]. It agrees with [`super::tables::judge`] on what the
    /// last commit made. What the own node sends to its pods passes whatever this says.
    pub fn explain(&self, subject: &ObjectName, direction: Direction, flow: Flow) -> Explanation {
        let address = match direction {
            Direction::Ingress => flow.source,
            Direction::Egress => flow.destination,
        };
        let known = self.state().subjects.get(subject);
        let (verdict, reason) = match known {
            Some(known) if known.ips.contains(&address) => (Verdict::Allow, Reason::Itself),
            Some(known) => {
                let signature = self.signature(address);
                let peer = signature.as_deref().map_or(Peer::Unknown, Peer::Known);
                let decision = self
                    .side_of(known.table, direction)
                    .map(|side| side.decide(peer, flow.protocol, flow.port));
                self.reason(subject, direction, decision)
            }
            None => (Verdict::Deny, Reason::SubjectUnknown),
        };
        let audit = known.is_some_and(|known| known.audit);
        let peer = self.identity(address);
        Explanation { subject: subject.clone(), direction, peer, flow, verdict, reason, audit }
    }

    fn reason(
        &self,
        subject: &ObjectName,
        direction: Direction,
        decision: Option<Decision>,
    ) -> (Verdict, Reason) {
        match decision {
            None => (Verdict::Deny, Reason::SubjectUnknown),
            Some(Decision::Default) => (Verdict::Allow, Reason::NoPolicy),
            Some(Decision::Isolated { .. }) => {
                (Verdict::Deny, Reason::Isolated(self.isolating(subject, direction)))
            }
            Some(Decision::Rule { allow, rule }) => {
                let verdict = if allow { Verdict::Allow } else { Verdict::Deny };
                (verdict, self.rule(rule).map_or(Reason::NoPolicy, |rule| Reason::Rule(rule.clone())))
            }
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As it is asked for: the cluster last.
            Self::Pod(name) => match name.namespace.split_once('@') {
                Some((namespace, cluster)) => write!(f, "pod {namespace}/{}@{cluster}", name.name),
                None => write!(f, "pod {}/{}", name.namespace, name.name),
            },
            Self::Node(name) => write!(f, "node {name}"),
            Self::Unknown => f.write_str("unknown"),
            Self::World => f.write_str("outside the cluster"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("the pod itself, which no policy keeps it from"),
            Self::SubjectUnknown => f.write_str("the pod or its namespace is not known yet"),
            Self::Rule(rule) => write!(f, "{rule}"),
            Self::Isolated(policies) => {
                for (i, policy) in policies.iter().enumerate() {
                    write!(f, "{}{policy}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(if policies.len() == 1 { " isolates" } else { " isolate" })?;
                f.write_str(" the pod, and no rule allows")
            }
            Self::NoPolicy => f.write_str("no policy says anything of it"),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direction, preposition, peer) = match self.direction {
            Direction::Ingress => ("ingress of", "from", self.flow.source),
            Direction::Egress => ("egress of", "to", self.flow.destination),
        };
        let verdict = match (self.verdict, self.audit) {
            (Verdict::Allow, _) => "allowed",
            (Verdict::Deny, false) => "denied",
            (Verdict::Deny, true) => "passes, audited",
        };
        let subject = &self.subject;
        write!(
            f,
            "{direction} {}/{} {preposition} {peer} ({}), ",
            subject.namespace, subject.name, self.peer
        )?;
        match Protocol::ALL.iter().find(|known| known.number() == self.flow.protocol) {
            Some(protocol) => write!(f, "{}", protocol.name())?,
            None => write!(f, "protocol {}", self.flow.protocol)?,
        }
        if let Some(port) = self.flow.port {
            write!(f, " port {port}")?;
        }
        write!(f, ": {verdict}: {}", self.reason)
    }
}
