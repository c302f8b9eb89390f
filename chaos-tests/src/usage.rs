//! What a process needs, read from /proc.

use std::time::Duration;

use anyhow::{Context, Result};
use netlab::eventually;

/// Ticks of a second in /proc, of every architecture that we are built for.
const USER_HZ: f64 = 100.0;
/// A process that has worked off what there is.
const IDLE: Duration = Duration::from_secs(120);

/// A number, to reckon with.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}

/// CPU seconds of a process, in the kernel and outside.
pub(crate) fn seconds(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may have blanks; utime and stime are fields 14 and 15 of all.
    let rest = text.rsplit(')').next().unwrap_or_default();
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks: f64 = ticks.collect::<Result<Vec<_>, _>>()?.into_iter().sum();
    Ok(ticks / USER_HZ)
}

/// The same, once it stands still.
pub(crate) fn until_idle(pid: i32) -> Result<f64> {
    let mut last = seconds(pid)?;
    eventually(IDLE, "the process is done", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = seconds(pid).map_err(|error| format!("{error:#}"))?;
        let done = now - last < 0.02;
        last = now;
        if done { Ok(()) } else { Err("busy".to_owned()) }
    })?;
    Ok(last)
}

/// A line of a process's status in kB (`VmRSS:`, `VmHWM:`), as MB.
pub(crate) fn memory(pid: i32, line: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|found| found.strip_prefix(line)).with_context(|| line.to_owned())?;
    let kilobytes: f64 = value.trim().trim_end_matches(" kB").parse().context("kB")?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// Memory of the BPF maps that a process has open, as the kernel accounts for them, in MB.
pub(crate) fn bpf_memory(pid: i32) -> Result<f64> {
    let (mut bytes, mut seen) = (0, std::collections::BTreeSet::new());
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that was closed meanwhile.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        if let (Some(map), Some(locked)) = (field("map_id:"), field("memlock:"))
            && seen.insert(map)
        {
            bytes += locked;
        }
    }
    Ok(count(bytes) / 1e6)
}
