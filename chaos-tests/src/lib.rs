//! The lab: clusters of namespaces on one machine, with the real agent, tunnel and CNI plugin, an embedded Kubernetes
//! API, a fake runtime that does what libcni does, faults, and captures on every wire.
//!
//! - [`cluster`]: a lab of nodes, up and down.
//! - [`node`], [`pod`]: what it is made of.
//! - [`runtime`]: calls the CNI binary as containerd and CRI-O do.
//! - [`matrix`]: probes between everything, each with a canary of its own.
//! - [`raw`]: frames that the kernel would not send.
//! - [`witness`]: what a scenario watches while it breaks things.
//! - [`objects`], [`kube_proxy`]: what a user, and a cluster beside us, would have there.
//! - [`kubelet`]: runs pods that a command under test makes.
//! - [`load`]: requests and responses for benches.
//! - [`deploy`]: the manifests that every lab is installed from.
//! - [`demo`]: what `make demo` shows.

pub mod ask;
pub mod bench_clustermesh;
pub mod bench_cni;
pub mod bench_datapath;
pub mod bench_memory;
pub mod bench_tunnel;
pub mod bench_watch;
pub mod binaries;
pub mod cluster;
pub mod demo;
pub mod deploy;
pub mod joined;
pub mod kube_proxy;
pub mod kubelet;
pub mod load;
pub mod matrix;
pub mod namer;
pub mod node;
pub mod objects;
pub mod plain;
pub mod pod;
pub mod raw;
pub mod runtime;
mod usage;
pub mod witness;

pub use cluster::{Lab, LabOptions};
pub use node::Node;
pub use pod::Pod;
