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
//! slices carry its name as `kubernetes.io/service-name`. They are made for the own endpoints, too.
mod condition;
mod facts;
mod lease;
mod merge;
pub mod names;
mod objects;
mod plan;
mod problem;
mod slices;

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
