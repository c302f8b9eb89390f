//! When a rotation begins by itself.

use std::time::Duration;

use mesh_core::announcement::Epoch;
use mesh_core::name::NodeName;
use sha2::{Digest as _, Sha256};

use super::facts::{Observed, Settings};

/// When the rotation of this node is due, in seconds since 1970: when the older of its keys reaches the period, less
/// the jitter. None: never by schedule.
pub fn due(settings: &Settings, observed: &Observed<'_>) -> Option<u64> {
    if settings.period.is_zero() {
        return None;
    }
    let made = observed.slots.iter().filter_map(|slot| slot.made.map(|made| (made, slot.epoch))).min()?;
    let early = jitter(observed.node, made.1, settings.period / 4);
    Some(made.0.saturating_add(settings.period.saturating_sub(early).as_secs()))
}

/// A time from zero up to `span`, the same whenever it is asked for, and as good as random over nodes and epochs:
/// nodes that were installed together part, and never meet again by themselves.
pub fn jitter(node: &NodeName, epoch: Epoch, span: Duration) -> Duration {
    let mut hash = Sha256::new();
    hash.update(node.as_str());
    hash.update(epoch.0.to_be_bytes());
    let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
    span.mul_f64(f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX))
}
