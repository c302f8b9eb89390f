//! What a data path has left in the kernel, found and taken away without loading one: for uninstallation.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::clsact;
use crate::error::{Error, Result};
use crate::program::{Hook, LinkKind};

/// A filter of ours in the clsact queueing discipline of a link: how programs are attached where the kernel has no tcx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Index of the link.
    pub ifindex: u32,
    /// Where it is.
    pub hook: Hook,
    /// What the link was taken for.
    pub kind: LinkKind,
}

/// A directory of pins, taken for this process: no agent can open a data path there meanwhile.
#[derive(Debug)]
pub struct Remains {
    root: PathBuf,
    /// None: there is no such directory.
    lock: Option<OwnedFd>,
}

impl Remains {
    /// Takes the directory, which need not be there; makes and mounts nothing.
    ///
    /// # Errors
    /// [`Error::InUse`]: an agent has it. [`Error::Directory`]: it cannot be opened.
    pub fn open(root: &Path) -> Result<Self> {
        let failed = |action| move |errno: rustix::io::Errno| directory(root, action)(errno.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = match rustix::fs::open(root, flags, Mode::empty()) {
            Ok(lock) => lock,
            Err(rustix::io::Errno::NOENT) => return Ok(Self { root: root.to_owned(), lock: None }),
            Err(errno) => return Err(failed("open")(errno)),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root: root.to_owned(), lock: Some(lock) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: root.to_owned() }),
            Err(errno) => Err(failed("lock")(errno)),
        }
    }

    /// The directory, if it is there.
    pub fn root(&self) -> Option<&Path> {
        self.lock.as_ref().map(|_| self.root.as_path())
    }

    /// What is in it: directories of layouts ([`is_layout`]), and whatever else somebody put there. In order.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn entries(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        if self.lock.is_none() {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(directory(&self.root, "list"))? {
            all.push(entry.map_err(directory(&self.root, "list"))?.path());
        }
        all.sort();
        Ok(all.into_iter().partition(|path| is_layout(path)))
    }

    /// Filters of ours on all links of the calling thread's network namespace, in order.
    ///
    /// # Errors
    /// The kernel does not list links or filters.
    pub fn filters(&self) -> Result<Vec<Filter>> {
        let unlisted = |ifindex| {
            move |source| Error::Attach { ifindex, action: "look for", program: "all programs", source }
        };
        let mut all = Vec::new();
        for ifindex in clsact::links().map_err(unlisted(0))? {
            for hook in [Hook::Ingress, Hook::Egress] {
                let found = clsact::filters(ifindex, hook).map_err(unlisted(ifindex))?;
                all.extend(found.into_iter().map(|(kind, _)| Filter { ifindex, hook, kind }));
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Takes the programs of a layout off their links, then deletes its pins and its directory. One that is gone is fine.
    ///
    /// # Errors
    /// The first thing that the kernel refused. What was not reached is still in force and pinned.
    pub fn remove_layout(&self, layout: &Path) -> Result<()> {
        let links = layout.join("links");
        let entries = match fs::read_dir(&links) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return delete(layout),
            Err(error) => return Err(directory(&links, "list")(error)),
        };
        for entry in entries {
            crate::attach::remove(&entry.map_err(directory(&links, "list"))?.path())?;
        }
        delete(layout)
    }

    /// Takes a filter off its link. One that is gone is fine.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_filter(&self, filter: Filter) -> Result<()> {
        let Filter { ifindex, hook, kind } = filter;
        let failed = |source| Error::Attach { ifindex, action: "take off", program: kind.name(), source };
        clsact::detach(ifindex, hook, kind).map(drop).map_err(failed)
    }

    /// Deletes the directory itself, which has to be empty.
    ///
    /// # Errors
    /// It is not, or the kernel refused.
    pub fn remove_root(&self) -> Result<()> {
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(directory(&self.root, "delete")(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn directory<'a>(path: &'a Path, action: &'static str) -> impl Fn(io::Error) -> Error + use<'a> {
    move |source| Error::Directory { path: path.to_owned(), action, source }
}

fn delete(layout: &Path) -> Result<()> {
    match fs::remove_dir_all(layout) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(directory(layout, "delete")(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Called `v` and a number, and nothing is in it but what a data path of any version pins: maps, and links in `links`. What is in a
/// layout goes with it, so one that has somebody else's directories in it is none.
pub(crate) fn is_layout(path: &Path) -> bool {
    let named = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let is = |entry: &fs::DirEntry, directory: bool| {
        entry.file_type().is_ok_and(|kind| kind.is_dir() == directory)
    };
    let all = |path: &Path, fits: &dyn Fn(&fs::DirEntry) -> bool| {
        fs::read_dir(path).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| fits(&entry))))
    };
    let pins = |path: &Path| all(path, &|entry| is(entry, false));
    named(path).strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
        && all(path, &|entry| {
            is(entry, false) || (entry.file_name() == "links" && is(entry, true) && pins(&entry.path()))
        })
}
