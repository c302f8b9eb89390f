//! Services of several clusters: the Multi-Cluster Services API (KEP-1645, `multicluster.x-k8s.io`).
//!
//! ```text
//!  own ServiceExports, Services, slices ─┐                ┌─► ServiceImport          ─┐
//!                                        ├─► [`decide`] ──┼─► derived Service         ├─ written to the own API server
//!  other clusters' exports, by stream ───┘   in every     ├─► EndpointSlices          │
//!                                            cluster      └─► ServiceExport's status ─┘
//! ```
//!
//! Namespace and name are one service in all clusters. [`merge`] makes it from the exports and is the same function of the
//! same facts everywhere; [`decide`] adds what is this cluster's own: its namespaces, its families, the addresses that its
//! API server gave to the derived Services.
//!
//! A ClusterSetIP is the cluster IP of a *derived Service*, so the API server allocates it, and every proxy serves it: the
//! slices carry its name as `kubernetes.io/service-name`. They are made for the own endpoints, too. Our own table prefers
//! those ([`crate::service`], slices without [`LABEL_REMOTE`](crate::service::model::LABEL_REMOTE)) and takes the others
//! while none of them is ready, without anybody having to write anything; `trafficDistribution` chooses among those that are
//! left, by hints. `internalTrafficPolicy: Local` means this node's own endpoints, never another cluster's.
//!
//! # For who does it
//!
//! - **Read.** An [`Export`] is a ServiceExport, the Service of its name and that Service's slices. Leave out slices that are
//!   ours ([`is_ours`]); a Service that is ours is [`ServiceKind::Derived`]. What other clusters say comes as the same types,
//!   after the rules of trust: addresses inside their own prefixes, no name but their own as the exporter.
//! - **When.** Whatever changes of one name concerns that name alone: [`decide_one`]. A cluster that falls silent or comes
//!   back ([`Leases`]), a namespace, [`Own`]: all names that it touches. A derived Service that got its addresses: its name.
//! - **Write**, in this order: imports (their UID is the owner reference of the next two, `controller: false`), derived
//!   Services, slices that are new or changed, slices that are gone, Services, imports that are gone. New slices before old
//!   ones, or endpoints are missing while a full slice becomes two. Touch nothing that is not ours; before the first
//!   complete snapshot of a peer (or the end of its lease) take nothing of it away. Status is a subresource, of imports and
//!   exports alike; `status.endpointSliceObjects` of KEP-1645 is not in the CRDs of `mcs-api`.
//! - **Names.** Give each [`Decision`] to [`names::Zone::set`], also the empty ones.
//! - **Admission.** Whoever may write slices can draw any Service's traffic. `clustermesh` writes slices with
//!   [`LABEL_SLICE_MANAGED_BY`]` = `[`MANAGER`] and `kubernetes.io/service-name` absent or `mcs-…`, and no others: a policy for
//!   its account should hold it to that, and agents refuse addresses in a slice with
//!   [`LABEL_REMOTE`](crate::service::model::LABEL_REMOTE) outside that cluster's prefixes.
//!
//! # Where the API leaves a choice
//!
//! - A port of the union goes to every cluster that has a port of that protocol and number, whatever it is called there, and
//!   to no other (KEP-1645, "Service Port").
//! - An unnamed port is called [`UNNAMED`] once there are several; slices bear both names, so nobody is cut by the change.
//! - Families are those of the oldest export that this cluster has; a derived Service keeps its first one.
//! - An export that does not count (no Service, `ExternalName`, a derived Service) is in no conflict.
//! - `Ready` is `Ready`, not `Exported`: others fetch. A silent cluster stays in `status.clusters`.
//! - Of two exports of one second the smaller cluster name is the older. A cluster can lie about the age of its exports and
//!   settle a dispute so: namespaces are the same authority everywhere, says the KEP; admins restrict ServiceExports by RBAC.

mod condition;
mod facts;
mod lease;
mod merge;
pub mod names;
mod objects;
mod plan;
mod problem;
mod slices;
mod table;

pub use condition::{Condition, MAX_MESSAGE, Status};
pub use facts::{
    DerivedState, DnsLabel, DnsLabelError, Endpoint, Endpoints, Export, ExportedPort, ExportedService,
    Exports, Facts, InternalTrafficPolicy, Own, PortName, PortNumber, PortNumbers, ServiceKind,
    SessionAffinity,
};
pub use lease::Leases;
pub use merge::{Conflict, ImportKind, ImportPort, MAX_PORTS, Merged, UNNAMED, merge};
pub use objects::{
    LABEL_MANAGED_BY, LABEL_SERVICE_NAME, LABEL_SLICE_MANAGED_BY, LABEL_SOURCE_CLUSTER, MANAGER,
    derived_name, is_ours,
};
pub use plan::{Decision, DerivedService, Here, Import, Plan, decide, decide_one};
pub use problem::McsProblem;
pub use slices::{MAX_ENDPOINTS, Slice, SliceEndpoint, SlicePort};
