//! How large the packets are that reach a peer through the tunnel in use.

use serde::{Deserialize, Serialize};

/// What echoes to a peer's mesh address have shown, which may not be cut into fragments on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathEvidence {
    /// When it was tried, in seconds since 1970.
    pub at: u64,
    /// Size of the largest echo, the tunnel's MTU, in bytes with its IP header.
    pub size: u32,
    /// What became of them.
    #[serde(flatten)]
    pub result: PathResult,
}

/// What became of echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum PathResult {
    /// One of the tunnel's MTU was answered.
    Fits,
    /// Small ones were answered, those of the tunnel's MTU were not.
    Narrow {
        /// The largest that was answered, in bytes; none: only those that every path takes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        passes: Option<u32>,
        /// The MTU that somebody named by ICMP: who sends packets that are too large is told so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        told: Option<u32>,
    },
    /// Small ones were not answered either.
    Silent,
}
