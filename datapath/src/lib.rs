//! The eBPF data path: the programs in `src/bpf`, compiled by `build.rs`, and what loads, attaches and feeds them.
//!
//! [`Datapath`] is what is in the kernel: programs, links and maps, pinned so that they outlive the agent. Each part is
//! observed and written by methods of it that do not wait and keep nothing in mind: links ([`Datapath::attach`]), this
//! node's pods and addresses ([`Datapath::put_endpoint`]), the guard ([`Datapath::set_guarded`]), services
//! ([`Datapath::apply_services`]), counters, conntrack, events ([`FlowReader`]). Policy alone has a memory, since its changes
//! have an order: [`PolicyBanks`] does what [`bank`] decides.
//!
//! This crate is one of the two that may use `unsafe`: it lives in [`abi`] (plain data for the kernel), `sys` (the `bpf`
//! system call) and `grace`.

pub mod abi;
mod apply;
mod attach;
pub mod bank;
mod bpffs;
mod clsact;
mod counters;
mod error;
mod events;
mod flows;
mod grace;
mod load;
mod map;
mod maps;
mod node;
mod program;
mod remains;
mod room;
mod services;
mod sys;

pub use apply::{Applied, Links, PolicyBanks};
pub use attach::{AttachMode, Attachment};
pub use bank::Change;
pub use counters::CounterValues;
pub use error::{Error, Result};
pub use events::{EventKind, FlowEvent, FlowReader, POLL_INTERVAL};
pub use flows::{FlowUsage, now_ns};
pub use load::{Datapath, LoadOptions};
pub use map::{Array, Counters, Keyed};
pub use maps::{Capacities, Maps};
pub use node::{Endpoint, Local};
pub use program::{Hook, LinkKind, Program};
pub use remains::{Filter, Remains};
pub use services::InstalledServices;
