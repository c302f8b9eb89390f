//! Network policy (design D5, D6): NetworkPolicy `networking.k8s.io/v1` and ClusterNetworkPolicy
//! `policy.networking.k8s.io/v1alpha2`.
//!
//! [`model`] is what the API says, nearly as it says it. From it two things are made by code that shares nothing else:
//! tables for the data path, and the oracle's verdict on one flow, which is slow and obvious.

#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
mod classes;
pub mod compile;
pub mod eval;
pub mod explain;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixture;
pub mod model;
pub mod problems;
mod selector;
pub mod tables;
