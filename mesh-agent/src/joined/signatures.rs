//! Which nodes of joined clusters their clusters have signed: of the others nothing is believed, whoever tells them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use clustermesh::signed::Signers;
use clustermesh::tls::{Roots, RootsError};
use mesh_core::clusters::{ClusterName, ClusterState, RemoteNode};
use mesh_core::name::NodeName;

/// The authorities of all clusters, and what they have signed.
#[derive(Debug, Default)]
pub(super) struct Signatures(BTreeMap<ClusterName, Cluster>);

#[derive(Debug, Default)]
struct Cluster {
    /// The bundle that could be read last, and the authorities in it.
    trusted: Option<Trusted>,
    /// Nodes that were looked at, and whether they are signed: a look costs a verification.
    seen: BTreeMap<Arc<NodeName>, (Arc<RemoteNode>, bool)>,
}

#[derive(Debug)]
struct Trusted {
    bundle: String,
    roots: Roots,
    signers: Signers,
}

impl Signatures {
    /// The trust bundle of a cluster.
    ///
    /// # Errors
    /// It cannot be read; the former one stays in force.
    pub(super) fn trust(&mut self, cluster: &ClusterName, bundle: &str) -> Result<(), RootsError> {
        let of = self.0.entry(cluster.clone()).or_default();
        if of.trusted.as_ref().is_some_and(|known| known.bundle == bundle) {
            return Ok(());
        }
        let roots = Roots::parse(bundle)?;
        if of.trusted.as_ref().is_none_or(|known| known.roots != roots) {
            of.seen.clear();
        }
        let signers = Signers::from(&roots);
        of.trusted = Some(Trusted { bundle: bundle.to_owned(), roots, signers });
        Ok(())
    }

    /// The trust bundle that is in force.
    pub(super) fn bundle(&self, cluster: &ClusterName) -> Option<&str> {
        self.0.get(cluster)?.trusted.as_ref().map(|trusted| trusted.bundle.as_str())
    }

    /// Forgets all clusters but these.
    pub(super) fn keep(&mut self, clusters: &BTreeSet<&ClusterName>) {
        self.0.retain(|cluster, _| clusters.contains(cluster));
    }

    /// Looks at the nodes of a cluster that are new.
    pub(super) fn look(&mut self, cluster: &ClusterName, state: &ClusterState) {
        let of = self.0.entry(cluster.clone()).or_default();
        of.seen.retain(|name, _| state.nodes.contains_key(name));
        for (name, node) in &state.nodes {
            if of.seen.get(name).is_some_and(|(known, _)| Arc::ptr_eq(known, node)) {
                continue;
            }
            let signed = match (&of.trusted, &node.signed) {
                (Some(trusted), Some(signed)) => trusted.signers.signed(cluster, signed),
                (None, _) | (_, None) => false,
            };
            of.seen.insert(Arc::clone(name), (Arc::clone(node), signed));
        }
    }

    /// Is this node, as it is, signed? What was not looked at is not.
    pub(super) fn signed(&self, cluster: &ClusterName, name: &NodeName, node: &Arc<RemoteNode>) -> bool {
        let seen = self.0.get(cluster).and_then(|of| of.seen.get(name));
        seen.is_some_and(|(known, signed)| *signed && Arc::ptr_eq(known, node))
    }

    /// A state with those of its nodes alone that are signed; of other things it may have none.
    pub(super) fn only<'a>(&self, cluster: &ClusterName, state: &'a ClusterState) -> Cow<'a, ClusterState> {
        let good = |(name, node): &(&Arc<NodeName>, &Arc<RemoteNode>)| self.signed(cluster, name, node);
        if state.nodes.iter().all(|one| good(&one)) {
            return Cow::Borrowed(state);
        }
        let nodes = state.nodes.iter().filter(good);
        let nodes = nodes.map(|(name, node)| (Arc::clone(name), Arc::clone(node))).collect();
        Cow::Owned(ClusterState { nodes, ..ClusterState::default() })
    }

    /// Clusters with nodes that are not signed: the first of them, and how many there are.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&ClusterName, &NodeName, usize)> {
        self.0.iter().filter_map(|(cluster, of)| {
            let mut refused = of.seen.iter().filter(|(_, (_, signed))| !signed);
            let (first, _) = refused.next()?;
            Some((cluster, first.as_ref(), 1 + refused.count()))
        })
    }
}
