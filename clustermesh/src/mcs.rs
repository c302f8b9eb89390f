//! The controller of the Multi-Cluster Services API (KEP-1645, `multicluster.x-k8s.io`): [`mesh_core::mcs`] decides, this
//! watches and writes.
//!
//! ```text
//!  own API ──► follow ──► seen ─┐                            ┌─► dns::Names
//!                               ├─► World ─► judge ─► diff ──┼─► write ──► own API ──► (seen again)
//!  Told (other clusters) ───────┘   folds, marks names       └─► Own ────► publish: Kind::Service, Kind::Backend
//! ```
//!
//! Everything is by name: what comes marks the names that it concerns, each is judged by itself, and what differs from the
//! API is written, in the order of [`diff`]. Nothing is remembered that is not in the API or told again: a new controller
//! finds all as it should be and writes nothing.
//!
//! # Rules
//!
//! - Nothing is written before all five kinds and the peers are known. A peer that has told nothing yet keeps its slices for
//!   a lease, and the import's own words stand in for its export for as long as it is a peer, so that no address, port or type
//!   changes by a restart.
//! - Only what bears our label is changed or deleted, and only in the version that was looked at. Objects are made by POST,
//!   so nothing of a stranger's is ever taken over.
//! - A cluster is silent when it was not heard for [`LEASE`]: its endpoints leave, its exports stay. The next
//!   [`Told::Heard`](crate::told::Told::Heard) brings them back, all at once.
//! - Backends of other clusters count inside the pod CIDRs of their ClusterPeer alone; own ones outside the own pod CIDRs are
//!   told to nobody.
//! - What was written last is seen before a name is written again; failures wait, quarrels wait longer ([`pace`]).
//!
//! # Rights
//!
//! | group | resources | verbs | for |
//! |---|---|---|---|
//! | (core) | `namespaces` | list, watch, get | an import is made where there is a namespace |
//! | (core) | `services` | list, watch, get, create, patch, delete | exported ones are read, derived ones (`mcs-…`) written |
//! | `discovery.k8s.io` | `endpointslices` | list, watch, get, create, patch, delete | the same |
//! | `multicluster.x-k8s.io` | `serviceexports` | list, watch, get | |
//! | `multicluster.x-k8s.io` | `serviceexports/status` | patch | conditions |
//! | `multicluster.x-k8s.io` | `serviceimports` | list, watch, get, create, patch, delete | |
//! | `multicluster.x-k8s.io` | `serviceimports/status` | patch | clusters, condition `Ready` |
//! | `events.k8s.io` | `events` | create, patch | what is wrong |
//!
//! RBAC knows no labels: an admission policy should hold `create`, `patch` and `delete` of Services and EndpointSlices by this
//! account to those that bear [`MANAGER`](mesh_core::mcs::MANAGER), before and after ([`mesh_core::mcs`], "Admission"). Where
//! the admission plugin `OwnerReferencesPermissionEnforcement` is on nothing more is needed: `blockOwnerDeletion` is not set.

pub mod diff;
mod events;
mod follow;
pub mod kind;
mod metrics;
pub mod own;
pub mod pace;
pub mod problem;
pub mod render;
mod run;
pub mod seen;
pub mod wire;
pub mod world;
mod write;

pub use kind::Kind;
pub use metrics::Metrics;
pub use problem::Problem;
pub use run::{Controller, Inputs};
pub use world::{LEASE, Settings, World};
