//! Waiting for the same descriptors again and again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFlags, Timespec, epoll};

/// As [`ready_for`](super::ready_for), for a thread that waits for every packet: the kernel is told the descriptors once, not each time.
#[derive(Debug)]
pub(super) struct Watch<const N: usize> {
    epoll: OwnedFd,
    /// What the kernel was told to watch of each.
    told: [Option<PollFlags>; N],
}

impl<const N: usize> Watch<N> {
    /// One that watches nothing yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, told: [None; N] })
    }

    /// Waits until one has what it is asked for (or has failed), at most `timeout`; says which. At each place there must be the same
    /// descriptor in every call, or none in every call; where they are others, another `Watch` is due.
    pub(super) fn ready(
        &mut self,
        fds: &[(Option<BorrowedFd<'_>>, PollFlags); N],
        timeout: Option<Duration>,
    ) -> io::Result<[bool; N]> {
        for (place, (&(fd, flags), told)) in fds.iter().zip(&mut self.told).enumerate() {
            let Some(fd) = fd.filter(|_| *told != Some(flags)) else { continue };
            let mut wanted = epoll::EventFlags::empty();
            wanted.set(epoll::EventFlags::IN, flags.contains(PollFlags::IN));
            wanted.set(epoll::EventFlags::OUT, flags.contains(PollFlags::OUT));
            let data = epoll::EventData::new_u64(place as u64);
            match told {
                None => epoll::add(&self.epoll, fd, data, wanted)?,
                Some(_) => epoll::modify(&self.epoll, fd, data, wanted)?,
            }
            *told = Some(flags);
        }
        let timeout =
            timeout.map(|t| Timespec::try_from(t).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        let mut ready = [false; N];
        let mut room = [const { MaybeUninit::uninit() }; N];
        match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
            Ok((events, _)) => {
                for event in events {
                    let place = usize::try_from(event.data.u64()).unwrap_or(N);
                    if let Some(ready) = ready.get_mut(place) {
                        *ready = true;
                    }
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(ready)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::Stop;
    use super::*;

    #[test]
    fn it_says_which_are_ready_as_long_as_they_are() {
        let stops = [Stop::new().unwrap(), Stop::new().unwrap(), Stop::new().unwrap()];
        let mut watch = Watch::<3>::new().unwrap();
        let all = |second: PollFlags| {
            [(Some(stops[0].as_fd()), PollFlags::IN), (Some(stops[1].as_fd()), second), (None, PollFlags::IN)]
        };
        let now = Some(Duration::ZERO);
        assert_eq!(watch.ready(&all(PollFlags::IN), now).unwrap(), [false; 3]);
        stops[1].raise();
        stops[2].raise();
        for _ in 0..2 {
            assert_eq!(watch.ready(&all(PollFlags::IN), None).unwrap(), [false, true, false]);
        }
        assert_eq!(watch.ready(&all(PollFlags::empty()), now).unwrap(), [false; 3], "it is not asked for");
        assert_eq!(watch.ready(&all(PollFlags::OUT), now).unwrap(), [false, true, false], "it has room");
        stops[1].lower();
        stops[0].raise();
        assert_eq!(watch.ready(&all(PollFlags::IN), now).unwrap(), [true, false, false]);
    }
}
