//! When a rotation begins by itself.

use std::time::Duration;

use mesh_core::announcement::Epoch;
use mesh_core::name::NodeName;
use sha2::{Digest as _, Sha256};

use super::facts::{Now, Observed, Settings};

/// How far the making of a key may lie ahead of now, in seconds: clocks are set by a little all the time.
const AHEAD: u64 = 300;
/// How long an agent runs before it believes that: at a boot the clock may be years behind until it is set.
pub(super) const SET: Duration = Duration::from_secs(900);

/// When the rotation of this node is due, in seconds since 1970: when the older of its keys reaches the period, less
/// the jitter; at once where one still seems to be made in the future, since its age is not known. None: never by schedule.
pub fn due(settings: &Settings, observed: &Observed<'_>, now: Now) -> Option<u64> {
    if settings.period.is_zero() {
        return None;
    }
    let ahead = |made| made > now.unix.saturating_add(AHEAD);
    if now.uptime >= SET && observed.slots.iter().filter_map(|slot| slot.made).any(ahead) {
        return Some(now.unix);
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
