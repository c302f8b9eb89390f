//! Policy and services of this node's pods: what the API says becomes what the data path does.

mod book;
mod claims;
pub mod engine;
mod findings;
mod slices;
pub mod view;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::policy::model::ObjectName;
use tokio::sync::oneshot;

use crate::facts::pod::{HostPort, OwnPod};

/// What the CNI server wants of the thread that decides policy.
#[derive(Debug)]
pub enum Request {
    /// A pod is being connected; the answer comes when its policy is in force.
    Attach(Box<Attached>, oneshot::Sender<Result<(), String>>),
    /// The pod on this link is gone; the answer comes when nothing in the data path knows it.
    Detach(String, oneshot::Sender<Result<(), String>>),
}

/// A pod that is connected to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The host's end of its link.
    pub veth: String,
    /// Index of that.
    pub ifindex: u32,
    /// The pod, and what a runtime calls its UID; none: nobody knows (a file was lost), so no policy can be found.
    pub pod: Option<(ObjectName, Option<String>)>,
    /// Its addresses.
    pub ips: BTreeSet<IpAddr>,
    /// Hardware address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// Its link is shaped, so everything goes by the stack.
    pub slow: bool,
    /// hostPorts that are served for it.
    pub host_ports: BTreeSet<HostPort>,
    /// What the API said of it last.
    pub own: Option<Arc<OwnPod>>,
}
