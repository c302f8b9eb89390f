//! What people ask a compiler.

use std::net::IpAddr;
use std::sync::Arc;

use super::Compiler;
use super::normal::Policy;
use super::owners::{Owner, Who};
use super::program::{Side, named};
use crate::policy::classes::Signature;
use crate::policy::explain::PeerIdentity;
use crate::policy::model::{Direction, ObjectName, Protocol, foreign_port};
use crate::policy::problems::{PolicyProblem, PolicyRef};
use crate::policy::tables::{ClassId, TableId, index};

impl Compiler {
    /// Port names of a policy that nobody has who could be meant.
    pub(super) fn unknown_names<'a>(
        &'a self,
        policy: &'a Policy,
    ) -> impl Iterator<Item = PolicyProblem> + 'a {
        let missing = policy.names.iter().filter(|used| {
            let foreign = foreign_port(&used.name);
            let naming = self.owners.naming(&used.name).chain(self.owners.naming(&foreign));
            !naming.into_iter().any(|id| match self.owners.profile(id).map(|p| &*p.who) {
                Some(Who::Pod { namespace, labels, ports }) => {
                    let labels_of = self.namespaces.get(namespace).map(|facts| &facts.labels);
                    let meant = used.direction == Direction::Egress
                        || labels_of.is_some_and(|of| policy.subject.governs(namespace, of, labels));
                    let has = |name| !named(ports, name, used.protocol).is_empty();
                    meant && (has(&used.name) || has(&foreign))
                }
                Some(Who::Node { .. }) | None => false,
            })
        });
        missing.map(|used| PolicyProblem::PortNameUnknown {
            object: policy.object.clone(),
            field: used.field.clone(),
            name: used.name.clone(),
            protocols: used.protocol.map_or("any protocol", Protocol::name).to_owned(),
            whose: match used.direction {
                Direction::Ingress => "the pods that the policy selects".to_owned(),
                Direction::Egress => "any pod".to_owned(),
            },
        })
    }

    /// What policy can tell about an address; none: nothing, it is unknown.
    pub(crate) fn signature(&self, address: IpAddr) -> Option<Arc<Signature>> {
        match self.state().class(address) {
            ClassId::UNKNOWN => None,
            class => Some(self.classes.signature(class).cloned().unwrap_or_default()),
        }
    }

    pub(crate) fn side_of(&self, table: TableId, direction: Direction) -> Option<&Side> {
        Some(self.shelf.program(table)?.side(direction))
    }

    /// Whose an address is.
    pub(crate) fn identity(&self, address: IpAddr) -> PeerIdentity {
        match (self.state().class(address), self.owners.of_address(address)) {
            (ClassId::UNKNOWN, _) => PeerIdentity::Unknown,
            (_, Some((Owner::Pod(name), _))) => PeerIdentity::Pod(name.clone()),
            (_, Some((Owner::Node(name), _))) => PeerIdentity::Node(name.as_str().to_owned()),
            (_, None) => PeerIdentity::World,
        }
    }

    /// NetworkPolicies that isolate a subject, in order.
    pub(crate) fn isolating(&self, subject: &ObjectName, direction: Direction) -> Vec<PolicyRef> {
        let ids = self.subjects.get(subject).map(|record| &record.policies);
        let policies =
            ids.into_iter().flatten().filter_map(|id| self.policies.get(id)).map(|record| &record.policy);
        let isolating = policies.filter(|policy| policy.isolates[index(direction)]);
        let mut found: Vec<_> = isolating.map(|policy| policy.object.clone()).collect();
        found.sort();
        found
    }
}
