//! What the plugin's installer tells of its node.

use serde::{Deserialize, Serialize};

/// Name of the file, beside the agent's socket, in which the plugin's installer leaves [`CniEvidence`]: of the two programs it alone
/// sees the directory from which runtimes take their network.
pub const CNI_FILE: &str = "cni-install.json";

/// Whether runtimes call our plugin, as its installer sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniEvidence {
    /// When it looked.
    pub at: u64,
    /// It looks again after so many seconds; none: it looked once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_seconds: Option<u64>,
    /// File name of our configuration.
    pub conf_name: String,
    /// Why our configuration is not in place; none: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Configurations of other networks in the same directory, in their order, the first [`OTHER_NETWORKS`] of them.
    pub others: Vec<OtherNetwork>,
}

/// How many configurations of other networks are named.
pub const OTHER_NETWORKS: usize = 16;

/// Another network's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherNetwork {
    /// Its file name.
    pub file: String,
    /// What it calls itself and its plugin, for people.
    pub network: String,
    /// It sorts before ours: runtimes use it, and not ours.
    pub first: bool,
}
