//! Handing a device over to a new process, without the two knowing of each other.
//!
//! ```text
//!   successor: the name is taken ─► locks NAME.next ─────────────────────────► has the device ─► removes NAME.next
//!   agent:                            sees the lock, moves all traffic away ─► removes NAME.sock
//!   incumbent:                                           sees that ─► ends the device, stays away while NAME.next is locked,
//!                                                                     locks NAME.former
//! ```
//!
//! Two that were started at once may have one device each, and wait for the other's. Who waits is no former owner of what it hands over,
//! but waits for that, too: so one of them has both in the end, and is seen to.
//!
//! A lock goes with its process, so a successor that died is none. Who has handed a device over stands for it no more: it waits in
//! silence, and has it again only if its successor dies. That it is a former owner counts for probes as much as having the device:
//! an orchestrator that took it for broken would end it before it has handed over the other one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
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
    /// Takes a part; `None` if another process has it, or looks at it at this moment: to be tried again.
    pub(super) fn take(part: Part, dir: &Path, name: &str) -> io::Result<Option<Self>> {
        std::fs::create_dir_all(dir)?;
        let path = part.path(dir, name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Whoever had it before may have removed the file between the two: then nobody finds this one.
        let id = |found: &std::fs::Metadata| (found.dev(), found.ino());
        if !std::fs::symlink_metadata(&path)
            .is_ok_and(|found| file.metadata().is_ok_and(|own| id(&own) == id(&found)))
        {
            return Ok(None);
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

    /// As tunnels that come and go while others wait: each finds the file of one that is about to remove it.
    #[test]
    fn whoever_has_a_part_is_seen_to_have_it_however_many_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let turns = || {
            let mut had = 0;
            while had < 300 {
                let Some(mark) = Mark::take(Part::Next, dir.path(), "wg0").unwrap() else { continue };
                assert!(is_awaited(dir.path(), "wg0"), "after {had} turns");
                had += 1;
                drop(mark);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(turns);
            }
        });
        assert!(!is_awaited(dir.path(), "wg0"));
    }
}
