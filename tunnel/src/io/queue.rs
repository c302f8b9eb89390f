//! What waits for the thread of one lane: packets of the host, which another thread has read, and datagrams that came to another one.
//!
//! Packets travel in the buffers that they were read into, without a copy; short ones share a buffer. Empty buffers go back. So what
//! a lane holds is bounded by [`ROOM`](crate::engine::ROOM), doubled at most by what is not filled.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Stop;
use crate::engine::{Consignee, MAX_PACKET, lock};
use crate::offload::vnet;

/// Bytes of a buffer: the longest packet with its header.
const BUFFER: usize = vnet::LEN + MAX_PACKET;
/// A packet up to this is copied to others, if there are any that wait; so all buffers but the last are half full.
const SHORT: usize = BUFFER / 2;
/// Empty buffers that are kept.
const SPARE: usize = 8;
/// Bytes of strayed datagrams that may wait.
const STRAYS: usize = 1 << 20;

/// Packets in one buffer.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) bytes: Box<[u8]>,
    used: usize,
    pub(super) packets: Vec<Packet>,
}

/// A packet in a parcel, as it was read: with the kernel's header in front if the device has them.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) at: Range<usize>,
    pub(super) to: Consignee,
}

impl Parcel {
    fn empty() -> Self {
        Self { bytes: vec![0; BUFFER].into(), used: 0, packets: Vec::new() }
    }

    fn add(&mut self, len: usize, to: Consignee) {
        self.packets.push(Packet { at: self.used..self.used + len, to });
        self.used += len;
    }
}

/// Datagrams of one source that lie in a row, as they were received.
#[derive(Debug)]
pub(super) struct Stray {
    pub(super) from: SocketAddr,
    pub(super) segment: usize,
    pub(super) bytes: Box<[u8]>,
}

/// Packets of the host for one lane: one thread pushes, one pops.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Raised while there is something.
    pub(super) filled: Stop,
    /// Of the packets that were pushed and not given back.
    waiting: AtomicUsize,
    /// Who pushes waits for room.
    wanted: AtomicBool,
    /// How many buffers were given back.
    turns: AtomicUsize,
    /// The lane waits for its sockets.
    blocked: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    parcels: VecDeque<Parcel>,
    spare: Vec<Parcel>,
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            filled: Stop::new()?,
            waiting: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            turns: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
        })
    }

    /// Bytes that wait, with what each packet takes besides.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Grows with each buffer that the lane is done with.
    pub(super) fn turns(&self) -> usize {
        self.turns.load(Ordering::Relaxed)
    }

    /// Says whether the lane waits for its sockets, and so nobody can hurry it.
    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// A buffer to read into.
    pub(super) fn buffer(&self) -> Parcel {
        lock(&self.state).spare.pop().unwrap_or_else(Parcel::empty)
    }

    /// Puts a packet in, which is `parcel.bytes[..len]` of a buffer without packets. The buffer is another one afterwards.
    pub(super) fn push(&self, parcel: &mut Parcel, len: usize, to: Consignee) {
        self.waiting.fetch_add(to.begin(len), Ordering::SeqCst);
        let mut state = lock(&self.state);
        if let Some(last) = state.parcels.back_mut()
            && len <= SHORT
            && last.used + len <= BUFFER
        {
            last.bytes[last.used..last.used + len].copy_from_slice(&parcel.bytes[..len]);
            last.add(len, to);
            return;
        }
        parcel.add(len, to);
        let next = state.spare.pop().unwrap_or_else(Parcel::empty);
        let first = state.parcels.is_empty();
        state.parcels.push_back(std::mem::replace(parcel, next));
        if first {
            // With the lock held, as it is lowered: so it is up whenever there is something.
            self.filled.raise();
        }
    }

    /// The packets that have waited longest.
    pub(super) fn pop(&self) -> Option<Parcel> {
        let mut state = lock(&self.state);
        let parcel = state.parcels.pop_front();
        if state.parcels.is_empty() {
            self.filled.lower();
        }
        parcel
    }

    /// Gives a buffer back whose packets wait no more. Whether somebody has waited for that.
    #[must_use]
    pub(super) fn give_back(&self, mut parcel: Parcel) -> bool {
        let done = parcel.packets.drain(..).map(|packet| packet.to.end(packet.at.len())).sum();
        parcel.used = 0;
        let mut state = lock(&self.state);
        if state.spare.len() < SPARE {
            state.spare.push(parcel);
        }
        drop(state);
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_sub(done, Ordering::SeqCst);
        self.wanted.swap(false, Ordering::SeqCst)
    }

    /// Says that who pushes waits from now on. To be followed by another look at what waits: the lane may be done with it already.
    pub(super) fn want_room(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }
}

/// Datagrams for a lane that came to others.
#[derive(Debug, Default)]
pub(super) struct Strays(Mutex<(VecDeque<Stray>, usize)>);

impl Strays {
    /// Puts some in, or says that there is no room.
    #[must_use]
    pub(super) fn push(&self, from: SocketAddr, segment: usize, bytes: &[u8]) -> bool {
        let mut waiting = lock(&self.0);
        // One of each length at least.
        let all = waiting.1 + bytes.len() + 256;
        if all > STRAYS {
            return false;
        }
        waiting.1 = all;
        waiting.0.push_back(Stray { from, segment, bytes: bytes.into() });
        true
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !lock(&self.0).0.is_empty()
    }

    /// All that there are, in the order in which they came.
    pub(super) fn take(&self) -> VecDeque<Stray> {
        std::mem::take(&mut *lock(&self.0)).0
    }
}

#[cfg(test)]
mod tests;
