//! Clocks that a test sets, beneath everything that reads one.
//!
//! `Engine` reads clocks itself (`tunnel::clock`), for each row of packets. A feature that mocks them would be united by cargo
//! into the program `mesh-tunnel` whenever tests are built with it, and that program's sessions would never end. So the
//! reading itself is replaced, in this test's executable alone: the linker prefers its `clock_gettime` to the C library's.
//! What runs is what ships. Only a thread that has set its clocks sees them.

#![allow(unsafe_code, reason = "a function of the C library is replaced")]

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use nix::libc::{self, c_int, clockid_t, timespec};

/// What a machine's clocks show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// `CLOCK_MONOTONIC`: stands while the machine sleeps.
    pub(crate) steady: Duration,
    /// `CLOCK_BOOTTIME`: goes on while it sleeps.
    pub(crate) boot: Duration,
    /// `CLOCK_REALTIME`, since 1970: whatever somebody has set it to.
    pub(crate) wall: Duration,
}

thread_local! {
    static SHOWN: Cell<Option<Clocks>> = const { Cell::new(None) };
}

/// Sets the clocks of this thread.
pub(crate) fn show(clocks: Clocks) {
    SHOWN.set(Some(clocks));
}

/// Stands for the C library's function of this name, in this executable.
///
/// # Safety
/// As of clock_gettime(2): `time` must point to a `timespec` that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // The cell has no destructor and needs no memory, so it can be read at any time in a thread's life.
    let shown = SHOWN.try_with(Cell::get).ok().flatten().and_then(|clocks| match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE => {
            Some(clocks.steady)
        }
        libc::CLOCK_BOOTTIME => Some(clocks.boot),
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(clocks.wall),
        _ => None,
    });
    let Some(shown) = shown else {
        // SAFETY: the arguments are the caller's, who keeps this function's contract, which is the call's own.
        let outcome = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return c_int::try_from(outcome).unwrap_or(-1);
    };
    let shown = timespec {
        tv_sec: i64::try_from(shown.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(shown.subsec_nanos()),
    };
    // SAFETY: the caller promises that `time` may be written.
    unsafe { time.write(shown) };
    0
}

#[test]
fn every_clock_is_the_one_that_was_set_and_other_threads_have_their_own() {
    let at = |steady, boot, wall| {
        show(Clocks {
            steady: Duration::from_secs(steady),
            boot: Duration::from_secs(boot),
            wall: Duration::from_secs(wall),
        });
    };
    at(10, 20, 2_000_000_000);
    let (instant, wall) = (Instant::now(), SystemTime::now());
    at(11, 25, 1_999_999_000);
    assert_eq!(instant.elapsed(), Duration::from_secs(1));
    assert_eq!(wall.duration_since(SystemTime::now()).unwrap(), Duration::from_secs(1000));
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    assert_eq!(Duration::from(boot), Duration::from_secs(25), "`Moment` reads it by this function");
    let elsewhere = std::thread::spawn(|| {
        let start = Instant::now();
        while start.elapsed().is_zero() {
            std::hint::spin_loop();
        }
        SystemTime::now()
    });
    assert!(elsewhere.join().unwrap() != SystemTime::now());
}
