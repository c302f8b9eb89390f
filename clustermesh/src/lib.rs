//! Exchange between clusters (design D10).
//!
//! Each cluster's `clustermesh` serves its own state and mirrors those of the others; agents follow their own cluster's
//! `clustermesh` alone. Whoever follows hears [`Told`], whatever happened to the stream in between.

#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod dns;
pub mod follow;
#[cfg(feature = "daemon")]
pub mod mcs;
pub mod quiet;
pub mod session;
pub mod signed;
pub mod tls;
pub mod told;

pub use told::Told;
