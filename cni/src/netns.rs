//! The container's network namespace: opened, verified, entered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, fstatfs, open};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Opens `path` and verifies that it is a network namespace, and not the plugin's own unless that is permitted.
///
/// # Errors
/// Code 8 for a path that is none; code 5 when it cannot be entered for another reason.
pub fn open_netns(path: &str, own_permitted: bool) -> Result<OwnedFd, Error> {
    let failed = |error: Errno| Error::NetnsOpen { path: path.to_owned(), source: error.into() };
    // NONBLOCK: a FIFO by that name would otherwise hold us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let netns = open(path, flags, Mode::empty()).map_err(failed)?;
    let not_netns = || Error::NotNetns { path: path.to_owned() };
    if u64::try_from(fstatfs(&netns).map_err(failed)?.f_type) != Ok(NSFS_MAGIC) {
        return Err(not_netns());
    }
    // Namespaces of every kind live on nsfs; only one of the network can be entered as such.
    match enter(netns.as_fd(), || ()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Err(not_netns()),
        Err(source) => return Err(Error::InNetns { path: path.to_owned(), step: "entering it", source }),
    }
    if own_permitted {
        return Ok(netns);
    }
    let step = "comparing it with /proc/thread-self/ns/net";
    let own = open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(fstat)
        .map_err(|error| Error::InNetns { path: path.to_owned(), step, source: error.into() })?;
    let theirs = fstat(&netns).map_err(failed)?;
    if (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino) {
        return Err(Error::OwnNetns { path: path.to_owned() });
    }
    Ok(netns)
}

/// Runs `work` inside the namespace, on a thread of its own that ends with it.
///
/// # Errors
/// Of `setns(2)`; `EINVAL` means that it is no network namespace.
pub(crate) fn enter<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = std::thread::Builder::new().spawn_scoped(scope, || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })?;
        inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}
