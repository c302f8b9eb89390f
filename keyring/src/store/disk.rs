//! Files in one locked directory, by its descriptor: nobody can swap the directory between two steps.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::error::{Action, FileKind, StoreError};

/// Permission bits of group and others.
const FOREIGN: u32 = 0o077;
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A directory that belongs to this user alone and to this process while it is open.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
}

/// A file that has no name any more. It is gone from the disk when dropped.
#[derive(Debug)]
pub(super) struct Replaced {
    path: PathBuf,
    handle: File,
    length: usize,
}

impl Directory {
    /// Opens, creates if absent, checks, locks.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(|errno| failed(Action::Inspect, path, errno))?;
                return Err(StoreError::Kind {
                    path: path.to_owned(),
                    found: kind(&stat),
                    wanted: FileKind::Directory,
                });
            }
            Err(errno) => return Err(failed(Action::Open, path, errno)),
        };
        check(path, &handle, FileKind::Directory, DIRECTORY_MODE)?;
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), handle }),
            Err(Errno::WOULDBLOCK) => Err(StoreError::InUse { dir: path.to_owned() }),
            Err(errno) => Err(failed(Action::Lock, path, errno)),
        }
    }

    /// The path by which it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The first `max` + 1 bytes of a file, if it exists.
    pub(super) fn read(&self, name: &str, max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = self.path_of(name);
        let Some(mut file) = self.open_file(name, OFlags::RDONLY)? else {
            return Ok(None);
        };
        let mut bytes = Zeroizing::new(vec![0; max + 1]);
        let mut length = 0;
        while length < bytes.len() {
            match file.read(&mut bytes[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(Action::Read, &path, error)),
            }
        }
        bytes.truncate(length);
        Ok(Some(bytes))
    }

    /// Puts `content` in a file, durably: afterwards, and after a crash at any moment, the file is wholly the old one or
    /// wholly the new one. Returns the old one.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<Option<Replaced>, StoreError> {
        self.remove_leftover(name)?;
        let temporary = temporary(name);
        // A file that is not ours alone is left alone.
        let old =
            self.open_file(name, OFlags::RDWR)?.map(|handle| self.replaced(name, handle)).transpose()?;
        let written = self.write_temporary(&temporary, content).and_then(|()| self.rename(&temporary, name));
        written.inspect_err(|_| {
            // The first error is the one to report; what stays is removed before the next write.
            let _ = rustix::fs::unlinkat(&self.handle, &temporary, AtFlags::empty());
        })?;
        Ok(old)
    }

    fn replaced(&self, name: &str, handle: File) -> Result<Replaced, StoreError> {
        let path = self.path_of(name);
        let stat = rustix::fs::fstat(&handle).map_err(|errno| failed(Action::Inspect, &path, errno))?;
        Ok(Replaced { path, handle, length: usize::try_from(stat.st_size).unwrap_or(0) })
    }

    /// Gives a file another's name, durably.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        rustix::fs::renameat(&self.handle, from, &self.handle, to)
            .map_err(|errno| failed(Action::Rename, &self.path_of(to), errno))?;
        self.handle.sync_all().map_err(|error| failed(Action::Sync, &self.path, error))
    }

    /// Overwrites the bytes of a file with zeros, durably.
    pub(super) fn wipe(&self, name: &str) -> Result<(), StoreError> {
        let Some(handle) = self.open_file(name, OFlags::RDWR)? else { return Ok(()) };
        self.replaced(name, handle)?.wipe()
    }

    /// Is there a file of this name?
    pub(super) fn has(&self, name: &str) -> Result<bool, StoreError> {
        match rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed(Action::Inspect, &self.path_of(name), errno)),
        }
    }

    /// When a file was written, in seconds since 1970.
    pub(super) fn modified(&self, name: &str) -> Option<u64> {
        let stat = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_mtime).ok()
    }

    fn write_temporary(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let path = self.path_of(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(FILE_MODE);
        let file = rustix::fs::openat(&self.handle, name, flags, mode);
        let mut file = File::from(file.map_err(|errno| failed(Action::Create, &path, errno))?);
        // The umask of the process may have taken bits away.
        rustix::fs::fchmod(&file, mode).map_err(|errno| failed(Action::SetMode, &path, errno))?;
        file.write_all(content).map_err(|error| failed(Action::Write, &path, error))?;
        file.sync_all().map_err(|error| failed(Action::Sync, &path, error))
    }

    /// The names of all entries, in order.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let failed = |errno| failed(Action::Read, &self.path, errno);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.handle).map_err(failed)? {
            // A name that is not text is nobody's of ours.
            if let Ok(name) = entry.map_err(failed)?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// Takes a file's name away, durably, if it exists. Returns the file.
    pub(super) fn remove(&self, name: &str) -> Result<Option<Replaced>, StoreError> {
        let path = self.path_of(name);
        let Some(handle) = self.open_file(name, OFlags::RDWR)? else {
            return Ok(None);
        };
        let removed = self.replaced(name, handle)?;
        rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())
            .map_err(|errno| failed(Action::Remove, &path, errno))?;
        self.handle.sync_all().map_err(|error| failed(Action::Sync, &self.path, error))?;
        Ok(Some(removed))
    }

    /// Removes the temporary file of a write that did not finish.
    pub(super) fn remove_leftover(&self, name: &str) -> Result<(), StoreError> {
        let name = temporary(name);
        match rustix::fs::unlinkat(&self.handle, &name, AtFlags::empty()) {
            // A read-only file system says ROFS whether the file exists or not.
            Ok(()) | Err(Errno::NOENT | Errno::ROFS) => Ok(()),
            Err(errno) => Err(failed(Action::Remove, &self.path_of(&name), errno)),
        }
    }

    /// Opens a file if it exists, and refuses what is not a regular file of ours alone. Does not hang on a pipe.
    fn open_file(&self, name: &str, access: OFlags) -> Result<Option<File>, StoreError> {
        let path = self.path_of(name);
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(handle) => {
                let file = File::from(handle);
                check(&path, &file, FileKind::Regular, FILE_MODE)?;
                Ok(Some(file))
            }
            Err(Errno::NOENT) => Ok(None),
            // A symbolic link, a socket, a directory opened for writing.
            Err(errno @ (Errno::LOOP | Errno::NXIO | Errno::ISDIR)) => {
                let stat = rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
                let found = stat.map(|stat| kind(&stat)).map_err(|_| failed(Action::Open, &path, errno))?;
                Err(StoreError::Kind { path, found, wanted: FileKind::Regular })
            }
            Err(errno) => Err(failed(Action::Open, &path, errno)),
        }
    }
}

impl Replaced {
    /// Overwrites its bytes with zeros.
    pub(super) fn wipe(mut self) -> Result<(), StoreError> {
        let zeros = vec![0; self.length];
        let wiped = self.handle.write_all(&zeros).and_then(|()| self.handle.sync_all());
        wiped.map_err(|error| failed(Action::Wipe, &self.path, error))
    }
}

fn temporary(name: &str) -> String {
    format!(".{name}.tmp")
}

/// Creates the directory (0700) and its missing parents (0755), and syncs the entry.
fn create(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|error| failed(Action::Create, parent, error))?;
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(|error| failed(Action::Sync, parent, error)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(Action::Create, path, error)),
    }
}

/// Refuses what is of another kind, belongs to another user or is open to others.
fn check(path: &Path, handle: &File, wanted: FileKind, mode: u32) -> Result<(), StoreError> {
    let stat = rustix::fs::fstat(handle).map_err(|errno| failed(Action::Inspect, path, errno))?;
    let path = path.to_owned();
    let found = kind(&stat);
    if found != wanted {
        return Err(StoreError::Kind { path, found, wanted });
    }
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own {
        return Err(StoreError::Owner { path, found: stat.st_uid, wanted: own });
    }
    let bits = stat.st_mode & 0o7777;
    if bits & FOREIGN != 0 {
        return Err(StoreError::Mode { path, found: bits, wanted: mode });
    }
    Ok(())
}

fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => FileKind::Special,
    }
}

fn failed(action: Action, path: &Path, source: impl Into<io::Error>) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), source: source.into() }
}
