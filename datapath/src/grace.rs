//! Waiting until every packet that is on its way through a program has left it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::load::Datapath;
use crate::sys;

/// `MEMBARRIER_CMD_GLOBAL`: the kernel waits for an RCU grace period (about 10 ms).
const MEMBARRIER_GLOBAL: libc::c_int = 1;
/// `BPF_MAP_TYPE_ARRAY`, `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
const ARRAY: u32 = 2;
const ARRAY_OF_MAPS: u32 = 12;

/// What is used to wait where the kernel has no membarrier (with `nohz_full` it refuses it).
#[derive(Debug, Default)]
pub(crate) struct Grace {
    maps: OnceLock<(OwnedFd, OwnedFd)>,
}

impl Grace {
    fn wait(&self) -> io::Result<()> {
        match membarrier() {
            Ok(()) => Ok(()),
            Err(_) => self.replace_inner_map(),
        }
    }

    /// Whoever changes a map of maps is let go only when no program can use the former inner map
    /// (`maybe_wait_bpf_programs` in the kernel).
    fn replace_inner_map(&self) -> io::Result<()> {
        if self.maps.get().is_none() {
            let inner = sys::create(ARRAY, 4, 4, 1, None)?;
            let outer = sys::create(ARRAY_OF_MAPS, 4, 4, 1, Some(inner.as_fd()))?;
            let _ = self.maps.set((inner, outer));
        }
        let (inner, outer) = self.maps.get().expect("invariant: set above");
        sys::set_inner_map(outer.as_fd(), 0, inner.as_fd())
    }
}

#[allow(unsafe_code, reason = "a system call without a wrapper")]
fn membarrier() -> io::Result<()> {
    // SAFETY: takes no address.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Datapath {
    /// Returns when no packet that was in a program at the time of the call still is: whoever was told of the former policy,
    /// or the former table of a service, is through. Takes about 10 ms.
    pub fn wait_for_packets(&self) -> Result<()> {
        self.grace.wait().map_err(Error::Grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_waiting_work_on_this_kernel() {
        membarrier().unwrap();
        let grace = Grace::default();
        grace.replace_inner_map().unwrap();
        grace.replace_inner_map().unwrap();
    }
}
