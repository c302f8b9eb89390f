//! An embedded Kubernetes API for the lab: what kube and kubectl need, over real TLS, with faults on demand.
//!
//! ```no_run
//! # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
//! use kubeapi::{Fault, Filter, Server, User, Verb};
//! use serde_json::json;
//!
//! let server = Server::builder()
//!     .listen("127.0.0.1:0".parse()?)
//!     .san("192.0.2.1")
//!     .event_window(1000)
//!     .state_dir(None)
//!     .start()
//!     .await?;
//! let admin = server.kubeconfig(&User::admin());
//! let agent = server.tokens().issue(User::agent_of_node("n1", "uid-of-n1"));
//! server.store().create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))?;
//! let fault = server.faults().inject(Filter::on(Verb::Watch, "nodes"), Fault::Freeze);
//! server.faults().remove(fault);
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What differs from the real server
//! No controllers: nodes stay as they are written, pods on nodes go when somebody deletes them with grace 0,
//! owner references are not collected. Services get cluster IPs where [`Builder::service_cidrs`] says so, and so does the ServiceCIDR `kubernetes`. No other defaulting and field checks of built-in kinds beyond what
//! `store::lifecycle` names, no pruning, defaulting and CEL of custom ones. RBAC objects and ValidatingAdmissionPolicies are in
//! force, the latter within the bounds that module `admission` names; of a kubelet's limits (NodeRestriction) only those of
//! [`default_policy`]. Bodies in protobuf or CBOR are refused
//! (415), so kubectl's typed generators need `--dry-run=client -o yaml | kubectl create -f -`. A watch that starts in the future is refused at once instead of after three seconds.

mod admission;
mod auth;
mod call;
mod cluster_ips;
mod discovery;
mod error;
mod faults;
mod fields;
mod forward;
mod http_api;
mod managed;
mod patch;
mod persist;
mod proxy;
mod rbac;
mod resource;
mod routes;
mod schema;
mod selectors;
mod server;
mod store;
mod tables;
mod tls;
mod util;
mod view;
mod watching;

pub use admission::Reason;
pub use auth::{Admission, AdmissionRequest, Attributes, Authorizer, Tokens, User, Verb, default_policy};
pub use error::{ApiError, ApplyConflict, Cause};
pub use faults::{Fault, FaultId, Faults, Filter, Served};
pub use forward::Kubelets;
pub use patch::Patch;
pub use proxy::{CONNECT, Dialer};
pub use resource::{Resource, Version};
pub use server::{Builder, Server, StartError};
pub use store::{Snapshot, Store};
pub use tls::TlsError;
