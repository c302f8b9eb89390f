//! A network laboratory in one process: namespaces with private mounts, links with faults, captures that
//! say when they are incomplete, and traffic probes.
//!
//! Everything is built from system calls and netlink; no external program is started by the library itself.
//! All operations need root (`CAP_SYS_ADMIN` and `CAP_NET_ADMIN` in the initial user namespace).
//!
//! | you want | use |
//! |---|---|
//! | a node or a pod | [`Namespace`] |
//! | a cable between two of them | [`veth_pair`] |
//! | a switch at kernel speed, with partitions | [`Bridge`] |
//! | a switch with loss, delay, reordering | [`Wire`] |
//! | to know what crossed a switch | [`Capture`] |
//! | to leave nothing behind, even after SIGKILL | [`LabDir`] |
//! | to wait for a condition | [`eventually`] |
//! | to send traffic | [`probe`] |

mod bridge;
pub mod capture;
pub mod classify;
mod error;
mod labdir;
mod link;
mod namespace;
pub mod netlink;
mod nft;
pub mod probe;
mod process;
mod procfs;
mod wait;
pub mod wire;

pub use bridge::{Bridge, PortCounters};
pub use capture::{Capture, CaptureOptions, Frame, Hit};
pub use error::LabError;
pub use labdir::{LabDir, Reaped, become_subreaper, reap};
pub use link::{Endpoint, MacAddr, PortId, veth_pair};
pub use namespace::{Namespace, NamespaceBuilder};
pub use netlink::Netlink;
pub use process::{ExecOutput, Output, Process, Signal};
pub use wait::{NotObserved, eventually, eventually_async, slowness, unique_name};
pub use wire::Wire;
