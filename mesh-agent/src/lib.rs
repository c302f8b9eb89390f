//! The node agent: it watches, plans with `mesh-core`, and applies.
//!
//! ```text
//! watch ─► cache ─► facts ─┐                       ┌─► kernel (rtnetlink), wireguard (defguard), guard (nf_tables, host)
//! keyring ─────────────────┼─► agent: view ─► plan ┤
//! kernel, wireguard ───────┘        ▲         diff └─► publish (annotation, Events), http, metrics
//! hawser-cni ─► cni ─► attachments ─┘
//! ```

pub mod agent;
pub mod announced;
pub mod attachments;
pub use mesh_core::cache;
mod claim;
pub mod cni;
pub mod condition;
pub mod config;
pub mod container;
pub mod devices;
pub mod evidence;
pub mod facts;
pub mod flows;
pub mod guard;
pub mod hold;
pub mod host;
pub mod host_ports;
pub mod http;
mod icmp;
pub mod joined;
mod kept;
pub mod kernel;
pub mod lease;
pub mod letters;
pub mod lookup;
pub mod metrics;
pub mod monitor;
pub mod names;
pub mod netns;
pub mod nft;
pub mod notes;
pub mod paths;
pub mod plane;
pub mod podlink;
pub mod policy;
pub mod publish;
pub mod servers;
pub mod service_cidrs;
pub mod shaping;
mod single;
pub mod start;
pub mod status;
mod supervise;
pub mod taint;
pub mod uninstall;
pub mod watch;
pub mod wireguard;
