//! A pin directory of a test's own.

use std::fs;
use std::path::{Path, PathBuf};

const PINS: &str = "/sys/fs/bpf";
const PREFIX: &str = "hawser-differential-";

/// Deleted at the end; those of test processes that crashed are deleted when one is made.
pub(crate) struct PinDir(PathBuf);

impl PinDir {
    pub(crate) fn new() -> Self {
        // Where no BPF file system is mounted yet there is nothing to reap.
        for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner: Option<u32> =
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Self(Path::new(PINS).join(format!("{PREFIX}{}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
