//! The directory of pins: `<pin_dir>/v<HW_ABI>`, with the maps, and links in `links`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;

use crate::abi::HW_ABI;
use crate::error::{Error, Result};

/// Magic number of the BPF file system (`linux/magic.h`).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Where systems have it.
const USUAL: &str = "/sys/fs/bpf";

/// The directory of pins, ours while this lives.
#[derive(Debug)]
pub(crate) struct PinDirectory {
    root: PathBuf,
    _lock: OwnedFd,
}

fn failed<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::Directory { path: path.to_owned(), action, source }
}

fn is_bpf(path: &Path) -> io::Result<bool> {
    let magic = rustix::fs::statfs(path)?.f_type;
    Ok(u64::try_from(magic).is_ok_and(|magic| magic & 0xffff_ffff == BPF_FS_MAGIC))
}

/// The nearest directory at or above it that is there.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or_else(|| Path::new("/"))
}

/// Mounts a BPF file system where none is: at its usual place if the directory lies there, else at the directory itself.
fn mount(root: &Path) -> Result<()> {
    if is_bpf(nearest(root)).map_err(failed(root, "look at its file system"))? {
        return Ok(());
    }
    let at = if root.starts_with(USUAL) { Path::new(USUAL) } else { root };
    if at == root {
        make(root)?;
    }
    rustix::mount::mount(
        "bpf",
        at,
        "bpf",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        Some(c"mode=0700"),
    )
    .map_err(|error| failed(at, "mount a BPF file system")(error.into()))
}

fn make(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path, "make"))
}

impl PinDirectory {
    /// Makes what is not there, and takes it for this process.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        mount(root)?;
        make(root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|error| failed(root, "open")(error.into()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse { path: root.to_owned() }),
            Err(error) => return Err(failed(root, "lock")(error.into())),
        }
        let directory = Self { root: root.to_owned(), _lock: lock };
        make(&directory.links())?;
        Ok(directory)
    }

    /// Where this layout's maps are pinned.
    pub(crate) fn maps(&self) -> PathBuf {
        self.root.join(format!("v{HW_ABI}"))
    }

    /// Where its links are.
    pub(crate) fn links(&self) -> PathBuf {
        self.maps().join("links")
    }

    /// Deletes what agents with other layouts left: their programs are off their links then. Returns the directories.
    pub(crate) fn remove_others(&self) -> Result<Vec<PathBuf>> {
        let own = self.maps();
        let mut removed = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed(&self.root, "list"))? {
            let path = entry.map_err(failed(&self.root, "list"))?.path();
            if path != own && crate::remains::is_layout(&path) {
                for link in fs::read_dir(path.join("links")).into_iter().flatten().flatten() {
                    crate::attach::remove(&link.path())?;
                }
                fs::remove_dir_all(&path).map_err(failed(&path, "delete"))?;
                removed.push(path);
            }
        }
        Ok(removed)
    }

    /// Deletes everything of ours.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.root).map_err(failed(&self.root, "delete"))
    }
}
