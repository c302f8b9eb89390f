//! Kernel parameters of the calling thread's network namespace.

use crate::error::{Context, LabError};
use std::fs;
use std::path::PathBuf;

/// Writes a parameter, `net.ipv4.ip_forward` or, for device names with a dot, `net/ipv4/conf/eth0.1/forwarding`.
pub fn set(key: &str, value: &str) -> Result<(), LabError> {
    let path = path(key);
    fs::write(&path, value).context("write", format!("{value:?} to {}", path.display()))
}

/// Reads a parameter, without white space at its end.
pub fn get(key: &str) -> Result<String, LabError> {
    let path = path(key);
    Ok(fs::read_to_string(&path).context("read", path.display())?.trim_end().to_owned())
}

fn path(key: &str) -> PathBuf {
    let key = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    PathBuf::from("/proc/sys").join(key)
}
