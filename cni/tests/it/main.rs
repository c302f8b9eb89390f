//! The real binary against a test agent, real namespaces, real directories. Needs root.

mod agent;
mod chain;
mod chroot;
mod deletes;
mod install;
mod loopback;
mod support;
mod table;
