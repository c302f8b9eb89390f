//! The thread that reads TAP devices, asks what happens to each frame, and writes it when its time has come.

use super::faults::{Backlog, Cause, Draws, Fate, Faults, decide};
use crate::capture::{Frame, Recorder};
use crate::link::PortId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime};
use tun_rs::SyncDevice;

/// Frames read from one port before the others have their turn.
const TURN: usize = 64;

/// Longer than any frame of a TAP device without offload.
const READ_BUFFER: usize = 64 << 10;

/// What happened to the frames of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PairCounters {
    /// Frames that were to go this way.
    pub offered: u64,
    /// Frames given to the receiver, duplicates included.
    pub delivered: u64,
    /// Lost at random.
    pub lost: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Dropped in front of the bandwidth limit.
    pub queue_full: u64,
    /// Swallowed by the black hole.
    pub black_holed: u64,
    /// Dropped by a cut.
    pub cut: u64,
    /// Refused by the receiver's device, because it is down or detached.
    pub refused: u64,
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) faults: Faults,
    pub(super) cut: bool,
    pub(super) counters: PairCounters,
    backlog: Backlog,
    rng: StdRng,
}

pub(super) struct State {
    seed: u64,
    ports: Vec<Option<Arc<SyncDevice>>>,
    pairs: BTreeMap<(PortId, PortId), Pair>,
    stations: BTreeMap<[u8; 6], PortId>,
    queue: BinaryHeap<Reverse<Parcel>>,
    parcels: u64,
    recorders: Vec<Weak<Mutex<Recorder>>>,
    /// Passes after which every device had been read empty.
    drained: u64,
    /// Passes somebody waits for.
    wanted: u64,
    stopped: bool,
}

/// A frame on its way. Ordered by arrival, then by entry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    at: Duration,
    number: u64,
    from: PortId,
    to: PortId,
    data: Arc<[u8]>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    passed: Condvar,
    wake: OwnedFd,
    start: Instant,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(seed: u64, wake: OwnedFd) -> Self {
        let state = State {
            seed,
            ports: Vec::new(),
            pairs: BTreeMap::new(),
            stations: BTreeMap::new(),
            queue: BinaryHeap::new(),
            parcels: 0,
            recorders: Vec::new(),
            drained: 0,
            wanted: 0,
            stopped: false,
        };
        Self { state: Mutex::new(state), passed: Condvar::new(), wake, start: Instant::now() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// Makes the thread look at its ports again.
    pub(super) fn wake(&self) {
        // A full counter (EAGAIN) wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.wake();
    }

    /// Waits until every frame that was in a device at the time of the call has been read; `false` when that
    /// took longer than `deadline`.
    pub(super) fn sync(&self, deadline: Duration) -> bool {
        let mut state = self.lock();
        // The pass under way may have read a device before the frame was in it.
        let target = state.drained + 2;
        state.wanted = state.wanted.max(target);
        self.wake();
        let (state, _) = self
            .passed
            .wait_timeout_while(state, deadline, |s| s.drained < target && !s.stopped)
            .expect("no panic under this lock");
        state.drained >= target || state.stopped
    }
}

impl State {
    pub(super) fn ports(&self) -> usize {
        self.ports.len()
    }

    pub(super) fn add_port(&mut self, tap: SyncDevice) -> PortId {
        self.ports.push(Some(Arc::new(tap)));
        PortId(self.ports.len() - 1)
    }

    /// Replaces the device of a port and forgets the stations behind it.
    pub(super) fn set_tap(&mut self, port: PortId, tap: Option<SyncDevice>) -> Option<Arc<SyncDevice>> {
        self.stations.retain(|_, p| *p != port);
        std::mem::replace(&mut self.ports[port.index()], tap.map(Arc::new))
    }

    /// Somebody deleted the device: polling it would spin.
    fn lose(&mut self, port: PortId, tap: &Arc<SyncDevice>) {
        if self.ports[port.index()].as_ref().is_some_and(|now| Arc::ptr_eq(now, tap)) {
            tracing::warn!(%port, "the device of this port was deleted from its namespace");
            self.set_tap(port, None);
        }
    }

    pub(super) fn add_recorder(&mut self, recorder: Weak<Mutex<Recorder>>) {
        self.recorders.retain(|r| r.strong_count() > 0);
        self.recorders.push(recorder);
    }

    pub(super) fn pair(&mut self, from: PortId, to: PortId) -> &mut Pair {
        let seed = pair_seed(self.seed, from, to);
        self.pairs.entry((from, to)).or_insert_with(|| Pair {
            faults: Faults::default(),
            cut: false,
            counters: PairCounters::default(),
            backlog: Backlog::default(),
            rng: StdRng::seed_from_u64(seed),
        })
    }

    /// A frame has entered: learn, record, and send it on its ways.
    fn enter(&mut self, from: PortId, data: &[u8], now: Duration) {
        let data: Arc<[u8]> = data.into();
        for recorder in self.recorders.iter().filter_map(Weak::upgrade) {
            let frame = Frame { at: SystemTime::now(), port: from, data: Arc::clone(&data) };
            recorder.lock().expect("no panic under this lock").offer(frame, 0);
        }
        let (Some(destination), Some(source)) = (mac(&data, 0), mac(&data, 6)) else { return };
        if source[0] & 1 == 0 {
            self.stations.insert(source, from);
        }
        match self.stations.get(&destination).copied().filter(|_| destination[0] & 1 == 0) {
            Some(to) if to == from => {}
            Some(to) => self.send(from, to, &data, now),
            None => (0..self.ports.len()).map(PortId).filter(|to| *to != from).for_each(|to| {
                self.send(from, to, &data, now);
            }),
        }
    }

    fn send(&mut self, from: PortId, to: PortId, data: &Arc<[u8]>, now: Duration) {
        let pair = self.pair(from, to);
        pair.counters.offered += 1;
        let draws = Draws::next(&mut pair.rng);
        if pair.cut {
            pair.counters.cut += 1;
            return;
        }
        match decide(&pair.faults, &mut pair.backlog, draws, now, data.len()) {
            Fate::Drop(Cause::Loss) => pair.counters.lost += 1,
            Fate::Drop(Cause::BlackHole) => pair.counters.black_holed += 1,
            Fate::Drop(Cause::QueueFull) => pair.counters.queue_full += 1,
            Fate::Arrive { at, twice, reordered } => {
                pair.counters.duplicated += u64::from(twice);
                pair.counters.reordered += u64::from(reordered);
                for _ in 0..=usize::from(twice) {
                    self.parcels += 1;
                    let number = self.parcels;
                    self.queue.push(Reverse(Parcel { at, number, from, to, data: Arc::clone(data) }));
                }
            }
        }
    }

    /// Gives every frame whose time has come to its receiver.
    fn deliver(&mut self, now: Duration) {
        while self.queue.peek().is_some_and(|Reverse(p)| p.at <= now) {
            let Some(Reverse(Parcel { from, to, data, .. })) = self.queue.pop() else { return };
            let written = self.ports[to.index()].clone().is_some_and(|tap| tap.send(&data).is_ok());
            let counters = &mut self.pair(from, to).counters;
            if written { counters.delivered += 1 } else { counters.refused += 1 }
        }
    }
}

fn mac(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

/// Different for every pair, so that their fates are independent (`SplitMix64`'s finalizer).
fn pair_seed(seed: u64, from: PortId, to: PortId) -> u64 {
    let pair = ((from.index() as u64) << 32) | to.index() as u64;
    let mut z = seed ^ pair.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The switch's thread.
pub(super) fn run(shared: &Shared) {
    let mut buffer = vec![0_u8; READ_BUFFER];
    let mut hurry = false;
    loop {
        let (taps, wait) = {
            let state = shared.lock();
            if state.stopped {
                shared.passed.notify_all();
                return;
            }
            let next = state.queue.peek().map(|Reverse(p)| p.at.saturating_sub(shared.start.elapsed()));
            let wait = if hurry || state.wanted > state.drained { Some(Duration::ZERO) } else { next };
            (state.ports.clone(), wait)
        };
        if !await_frames(shared, &taps, wait) {
            // The kernel refuses to poll: a bug here, and spinning would hide it.
            shared.lock().stopped = true;
            shared.passed.notify_all();
            return;
        }
        hurry = false;
        for (index, tap) in taps.iter().enumerate() {
            let Some(tap) = tap else { continue };
            for turn in 0..=TURN {
                if turn == TURN {
                    hurry = true;
                    break;
                }
                match tap.recv(&mut buffer) {
                    Ok(length) => {
                        shared.lock().enter(PortId(index), &buffer[..length], shared.start.elapsed())
                    }
                    Err(e) => {
                        if e.raw_os_error() == Some(rustix::io::Errno::BADFD.raw_os_error()) {
                            shared.lock().lose(PortId(index), tap);
                        }
                        // Otherwise it is empty or down.
                        break;
                    }
                }
            }
        }
        drop(taps);
        let mut state = shared.lock();
        state.deliver(shared.start.elapsed());
        if !hurry {
            state.drained += 1;
            shared.passed.notify_all();
        }
    }
}

/// Waits for a frame, a change or the time. `false` on a failure that will not pass.
fn await_frames(shared: &Shared, taps: &[Option<Arc<SyncDevice>>], wait: Option<Duration>) -> bool {
    let mut fds = vec![PollFd::new(&shared.wake, PollFlags::IN)];
    fds.extend(taps.iter().flatten().map(|tap| PollFd::new(&**tap, PollFlags::IN)));
    let wait = wait.and_then(|w| Timespec::try_from(w).ok());
    match poll(&mut fds, wait.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return true,
        Err(error) => {
            tracing::error!(%error, "a switch cannot poll its devices");
            return false;
        }
    }
    if !fds[0].revents().is_empty() {
        // Emptied so that it can wake again; EAGAIN when somebody was faster.
        let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8]);
    }
    true
}
