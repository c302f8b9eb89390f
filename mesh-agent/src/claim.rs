//! The state directory belongs to one process: an agent, or who takes Hawser off its node. It is locked from an agent's first act
//! on, before it has asked anybody anything, so that an agent which still waits for an API server is noticed as well; the lock goes
//! with the process, whatever ends it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// The state directory, ours while this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    _lock: OwnedFd,
}

/// Why it is not ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(
        "state directory {} is in use by another process: only one agent may run on a node, and none while mesh-agent uninstall takes Hawser off it; stop the other one",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("state directory {}: cannot {action} it: {source}; see stateDir of the configuration", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
}

impl Claim {
    /// Makes the directory (0700) if it is not there, and takes it.
    pub(crate) fn take(directory: &Path) -> Result<Self, ClaimError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed(directory, "make"))?;
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        Self::take_if_there(directory)?.ok_or_else(|| failed(directory, "open")(gone()))
    }

    /// Takes the directory; none: it is not there, or not any more, and is not made.
    pub(crate) fn take_if_there(directory: &Path) -> Result<Option<Self>, ClaimError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(lock) => lock,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(directory, "open")(error.into())),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // Who took Hawser off the node may have deleted it between the two: a lock on it keeps nobody away.
            Ok(()) => match is_at(&lock, directory) {
                Ok(true) => Ok(Some(Self { _lock: lock })),
                Ok(false) => Ok(None),
                Err(error) => Err(failed(directory, "find")(error.into())),
            },
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ClaimError::InUse { path: directory.to_owned() }),
            Err(error) => Err(failed(directory, "lock")(error.into())),
        }
    }
}

/// Is what was opened still what the path names?
fn is_at(opened: &OwnedFd, path: &Path) -> rustix::io::Result<bool> {
    let ours = rustix::fs::fstat(opened)?;
    match rustix::fs::stat(path) {
        Ok(now) => Ok((ours.st_dev, ours.st_ino) == (now.st_dev, now.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> ClaimError + use<'a> {
    move |source| ClaimError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_state_directory_and_who_only_looks_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("hawser");
        assert!(Claim::take_if_there(&directory).unwrap().is_none() && !directory.exists());
        let first = Claim::take(&directory).unwrap();
        for second in [Claim::take(&directory).map(Some), Claim::take_if_there(&directory)] {
            let refused = second.unwrap_err();
            let named = format!("state directory {} is in use", directory.display());
            assert!(matches!(refused, ClaimError::InUse { .. }) && refused.to_string().starts_with(&named));
        }
        drop(first);
        assert!(Claim::take_if_there(&directory).unwrap().is_some());
        let opened = OwnedFd::from(std::fs::File::open(&directory).unwrap());
        assert!(is_at(&opened, &directory).unwrap());
        for again in [false, true] {
            if again { std::fs::create_dir(&directory) } else { std::fs::remove_dir(&directory) }.unwrap();
            assert!(!is_at(&opened, &directory).unwrap(), "another directory: {again}");
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let refused = Claim::take(&file).unwrap_err().to_string();
        assert!(refused.contains("file: cannot make it") && refused.contains("stateDir"), "{refused}");
    }
}
