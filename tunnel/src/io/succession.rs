//! Handing a device over to a new process, without the two knowing of each other.
//!
//! ```text
//!   successor: the name is taken ─► locks NAME.next ─────────────────────────► has the device ─► removes NAME.next
//!   agent:                            sees the lock, moves all traffic away ─► removes NAME.sock
//!   incumbent:                                           sees that ─► ends the device, stays away while NAME.next is locked,
//!                                                                     locks NAME.former
//! ```
//!
//! A lock goes with its process, so a successor that died is none. Who has handed a device over stands for it no more: it waits in
//! silence, and has it again only if its successor dies. That it is a former owner counts for probes as much as having the device:
//! an orchestrator that took it for broken would end it before it has handed over the other one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What a process is to a device that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It waits for it.
    Next,
    /// It has handed it over.
    Former,
}

impl Part {
    fn path(self, dir: &Path, name: &str) -> PathBuf {
        let suffix = match self {
            Self::Next => "next",
            Self::Former => "former",
        };
        dir.join(format!("{name}.{suffix}"))
    }
}

/// A file that says so for as long as this lives: locked, with the process's PID namespace in it.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    _lock: File,
}

impl Mark {
    /// Takes a part; `None` if another process has it.
    pub(super) fn take(part: Part, dir: &Path, name: &str) -> io::Result<Option<Self>> {
        std::fs::create_dir_all(dir)?;
        let path = part.path(dir, name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.write_all(pid_namespace()?.as_bytes())?;
        Ok(Some(Self { path, _lock: file }))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a mark could not be removed");
        }
    }
}

/// Such as `pid:[4026531836]`, the same for all processes of a container.
fn pid_namespace() -> io::Result<String> {
    Ok(std::fs::read_link("/proc/self/ns/pid")?.display().to_string())
}

/// The PID namespace of the process that has a part; `None` if nobody has. Not to be asked by one that may have it itself.
fn holder(part: Part, dir: &Path, name: &str) -> Option<String> {
    let mut file = File::open(part.path(dir, name)).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared) != Err(Errno::WOULDBLOCK) {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Does a process wait for a device?
pub(super) fn is_awaited(dir: &Path, name: &str) -> bool {
    holder(Part::Next, dir, name).is_some()
}

/// Has a process of the caller's PID namespace handed a device over?
pub(super) fn was_ours(dir: &Path, name: &str) -> bool {
    let holder = holder(Part::Former, dir, name);
    holder.is_some() && holder == pid_namespace().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_a_part_and_is_seen_for_as_long_as_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(!is_awaited(dir, "wg0"));
        let mark = Mark::take(Part::Next, dir, "wg0").unwrap().unwrap();
        assert!(is_awaited(dir, "wg0") && !is_awaited(dir, "wg1") && !was_ours(dir, "wg0"));
        assert!(Mark::take(Part::Next, dir, "wg0").unwrap().is_none());
        drop(mark);
        assert!(!is_awaited(dir, "wg0"));
        // The file of a process that died has no lock.
        std::fs::write(Part::Next.path(dir, "wg0"), "pid:[1]").unwrap();
        assert!(!is_awaited(dir, "wg0") && Mark::take(Part::Next, dir, "wg0").unwrap().is_some());
        let former = Mark::take(Part::Former, dir, "wg0").unwrap().unwrap();
        assert!(was_ours(dir, "wg0"));
        // Of a process of another container.
        std::fs::write(Part::Former.path(dir, "wg0"), "pid:[1]").unwrap();
        assert!(!was_ours(dir, "wg0"));
        drop(former);
    }
}
