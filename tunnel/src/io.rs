//! Descriptors and threads. Nothing here decides about a packet.

mod carry;
pub mod device;
mod link;
mod listen;
pub mod pulse;
mod queue;
mod read;
pub mod server;
mod succession;
pub mod supervisor;
mod tun;
mod udp;
mod watch;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A flag that threads can wait for beside their descriptors. Once raised it stays raised.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// A flag that is down.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Raises the flag and wakes everybody who waits for it.
    pub fn raise(&self) {
        // Fails only when the counter is about to overflow, and then the flag is up already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the flag down again, for who waits for events.
    pub(crate) fn lower(&self) {
        // Fails only if it is down.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Whether the flag is up.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for the flag, at most so long; whether it is up.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        matches!(ready(&[self.0.as_fd()], Some(timeout)), Ok([true]))
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors can be read (or has failed), at most `timeout`; says which.
fn ready<const N: usize>(fds: &[BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    ready_for(&fds.map(|fd| (fd, PollFlags::IN)), timeout)
}

/// As [`ready`], for whatever each descriptor is asked for.
fn ready_for<const N: usize>(
    fds: &[(BorrowedFd<'_>, PollFlags); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    let timeout = timeout.map(|t| Timespec::try_from(t).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) => Ok(polled.each_ref().map(|p| !p.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; N]),
        Err(e) => Err(e.into()),
    }
}
