//! Why the store refuses. No message holds any content of a key file.

use std::fmt;
use std::io;
use std::path::PathBuf;

use mesh_core::announcement::Epoch;

use super::format::FORMAT;
use crate::private::RandomError;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create a directory or file.
    Create,
    /// Open it.
    Open,
    /// Ask for its kind, owner and mode.
    Inspect,
    /// Take the lock.
    Lock,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Set the mode.
    SetMode,
    /// Sync to the disk.
    Sync,
    /// Put the new file in place of the old.
    Rename,
    /// Remove.
    Remove,
    /// Overwrite the old key.
    Wipe,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Inspect => "inspect",
            Self::Lock => "lock",
            Self::Read => "read",
            Self::Write => "write",
            Self::SetMode => "set the mode of",
            Self::Sync => "sync",
            Self::Rename => "rename into place",
            Self::Remove => "remove",
            Self::Wipe => "overwrite the old content of",
        })
    }
}

/// What a path is instead of what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A pipe, socket or device.
    Special,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Regular => "a regular file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Special => "a pipe, socket or device",
        })
    }
}

/// What is wrong with the content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// No bytes.
    #[error("it is empty")]
    Empty,
    /// More bytes than any valid file has.
    #[error("it is longer than {max} bytes")]
    TooLong {
        /// Most bytes of a valid file.
        max: usize,
    },
    /// The end is missing.
    #[error("it ends after {lines} whole lines of {wanted}")]
    Truncated {
        /// Lines with their end.
        lines: usize,
        /// Lines of a valid file.
        wanted: usize,
    },
    /// More lines than it should have.
    #[error("it goes on after line {wanted}")]
    Surplus {
        /// Lines of a valid file.
        wanted: usize,
    },
    /// A line is not what it must be.
    #[error("line {line} is not \"{wanted}\" and its value")]
    Line {
        /// From 1.
        line: usize,
        /// Its first word.
        wanted: &'static str,
    },
    /// Private and public key do not belong together.
    #[error("the private key in it does not belong to the public key in it")]
    Mismatch,
    /// The sum over the content is another.
    #[error("its sha256 line does not fit the lines above")]
    Checksum,
}

/// Why keys could not be read or written. Each message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: Action,
        /// On what.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error("{dir} is in use by another process; only one agent may run on a node: stop the other one", dir = dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// Not the kind of file that it must be.
    #[error("{path} is {found}, wanted {wanted}; move it away", path = path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it is.
        found: FileKind,
        /// What it must be.
        wanted: FileKind,
    },
    /// It belongs to somebody else, who may know the key.
    #[error("{path} belongs to user {found}, wanted {wanted}; if that user may know the keys, move it away (new keys with higher epochs will be made), else: chown {wanted} {path}", path = path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// The user this process runs as.
        wanted: u32,
    },
    /// Group or others may use it.
    #[error("{path} has mode {found:04o}, wanted {wanted:04o}; if nobody else may have read it: chmod {wanted:o} {path}, else move it away: a new key with a higher epoch will be made", path = path.display())]
    Mode {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        found: u32,
        /// The wanted ones.
        wanted: u32,
    },
    /// Half written, or changed since.
    #[error("{path} is damaged: {damage}; restore it, or move it away: a new one with a higher epoch will be made", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In what way.
        damage: Damage,
    },
    /// Written by a later version.
    #[error("{path} has format {found}, this version reads {FORMAT}; run the version that wrote it, or move it away: a new one with a higher epoch will be made", path = path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// One key file was copied over the other.
    #[error("slot0.key and slot1.key in {dir} hold the same key or epoch ({}); move one of them away: a new key with a higher epoch will be made", epoch.0, dir = dir.display())]
    EqualSlots {
        /// The directory.
        dir: PathBuf,
        /// Epoch of slot zero.
        epoch: Epoch,
    },
    /// There is no greater epoch.
    #[error("the epochs in {dir} are exhausted (2^64 - 1 was given out or asked for); move the directory away and remove the annotation of this node", dir = dir.display())]
    EpochsExhausted {
        /// The directory.
        dir: PathBuf,
    },
    /// No random bytes for a key.
    #[error(transparent)]
    Random(#[from] RandomError),
}
