//! The data path's counters, as the agent's metrics show them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use chaos_tests::Node;

/// Every sample of a node's data path at one moment.
#[derive(Clone, PartialEq)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().filter(|(_, count)| **count != 0)).finish()
    }
}

/// Of which metric a sample is: what happened, and why something was dropped.
const FAMILIES: [&str; 2] = ["hawser_datapath_events_total", "hawser_datapath_drops_total"];

impl Counts {
    /// Of a node, now.
    ///
    /// # Errors
    /// The agent does not answer, or shows no such counters.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let text = node.http(mesh_core::numbers::PORT_METRICS, "/metrics")?;
        let samples = text.lines().filter(|line| FAMILIES.iter().any(|family| line.starts_with(family)));
        let counts: BTreeMap<String, u64> = samples.filter_map(sample).collect();
        ensure!(!counts.is_empty(), "{} shows no counters of its data path", node.name);
        Ok(Self(counts))
    }

    /// What was counted under this word (`ingress-fast`, or a reason for drops).
    ///
    /// # Errors
    /// There is no such word.
    pub(crate) fn get(&self, word: &str) -> Result<u64> {
        let known = || self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.0.get(word).copied().with_context(|| format!("no counter {word:?} among {}", known()))
    }

    /// What was counted since an earlier moment.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = |word: &String| before.0.get(word).copied().unwrap_or_default();
        Self(self.0.iter().map(|(word, now)| (word.clone(), now.saturating_sub(earlier(word)))).collect())
    }

    /// Exactly these counts of what is told apart, and zero of the others of `among`.
    ///
    /// # Errors
    /// Names every other count.
    pub(crate) fn exactly(&self, among: &[&str], wanted: &[(&str, u64)]) -> Result<()> {
        for word in among {
            let expect = wanted.iter().find(|(name, _)| name == word).map_or(0, |(_, count)| *count);
            let seen = self.get(word)?;
            ensure!(seen == expect, "{word}: {seen}, expected {expect}; all: {self:?}");
        }
        Ok(())
    }
}

/// The word and value of `metric{label="word"} value`; drops get the prefix `drop-`.
fn sample(line: &str) -> Option<(String, u64)> {
    let (head, value) = line.rsplit_once(' ')?;
    let word = head.split('"').nth(1)?.replace('_', "-");
    let word = if line.starts_with(FAMILIES[1]) { format!("drop-{word}") } else { word };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter below 2^52")]
    Some((word, value.parse::<f64>().ok()? as u64))
}
