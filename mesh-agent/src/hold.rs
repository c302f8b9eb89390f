//! First packets of peers that nobody has told this node of yet, kept for a moment instead of lost.
//!
//! A pod may send before the watch has told other nodes of it. The data path gives the first packet of such a flow to a
//! TUN device; here it waits until the address is known, and goes back in by the same device, where it is judged as if it
//! had just come. What nobody makes known in time is dropped and counted, as it would have been at once.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Name of the device.
pub const DEVICE: &str = "hawserh";
/// A sender of TCP tries again after a second by itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// Packets held at once: each node's pods that start within a second, and then some. More are dropped.
const CAPACITY: usize = 1024;
/// How often it is asked whether an address is known by now, while something is held.
const LOOK: Duration = Duration::from_millis(2);
/// Longest packet that the data path holds (`HW_HOLD_LENGTH`).
const LONGEST: usize = 9216;

/// What became of held packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Went back in.
    pub released: u64,
    /// Nobody knew their peer in time.
    pub expired: u64,
    /// No room, or no packet that could be read.
    pub refused: u64,
}

/// Held packets, oldest first. Time is an argument.
#[derive(Debug, Default)]
struct Queue {
    held: VecDeque<Held>,
}

#[derive(Debug)]
struct Held {
    packet: Vec<u8>,
    ends: [IpAddr; 2],
    until: Instant,
}

impl Queue {
    /// False: there was no room, or it is no IP packet.
    fn push(&mut self, packet: &[u8], now: Instant) -> bool {
        let Some(ends) = ends(packet).filter(|_| self.held.len() < CAPACITY) else { return false };
        self.held.push_back(Held { packet: packet.to_vec(), ends, until: now + PATIENCE });
        true
    }

    /// Takes out what is known by now, in the order in which it came, and what waited too long.
    fn ripe(&mut self, known: &dyn Fn(IpAddr) -> bool, now: Instant) -> (Vec<Vec<u8>>, u64) {
        let (mut released, mut expired) = (Vec::new(), 0);
        self.held.retain_mut(|held| {
            if held.ends.iter().all(|end| known(*end)) {
                released.push(std::mem::take(&mut held.packet));
                false
            } else if held.until <= now {
                expired += 1;
                false
            } else {
                true
            }
        });
        (released, expired)
    }
}

/// Source and destination of an IP packet.
fn ends(packet: &[u8]) -> Option<[IpAddr; 2]> {
    match packet.first()? >> 4 {
        4 => {
            let at = |from: usize| {
                packet.get(from..from + 4)?.try_into().ok().map(|octets: [u8; 4]| octets.into())
            };
            Some([at(12)?, at(16)?])
        }
        6 => {
            let at = |from: usize| {
                packet.get(from..from + 16)?.try_into().ok().map(|octets: [u8; 16]| octets.into())
            };
            Some([at(8)?, at(24)?])
        }
        _ => None,
    }
}

/// The device and the thread that serves it; both end when this is dropped.
#[derive(Debug)]
pub struct Hold {
    index: u32,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hold {
    /// Makes the device in the network namespace of the calling thread and serves it. `known` tells whether the data path knows an
    /// address, or does not need to; `told` hears what became of packets.
    ///
    /// # Errors
    /// The device could not be made, such as for a name in use.
    pub fn start(
        known: impl Fn(IpAddr) -> bool + Send + 'static,
        told: impl Fn(Tally) + Send + 'static,
    ) -> std::io::Result<Self> {
        let device = DeviceBuilder::new()
            .layer(Layer::L3)
            .name(DEVICE)
            .mtu(u16::MAX - 36)
            .enable(true)
            .build_sync()?;
        device.set_nonblocking(true)?;
        let index = device.if_index()?;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let serve = move || serve(&device, &known, &told, &asked);
        let thread = std::thread::Builder::new().name("hold".to_owned()).spawn(serve)?;
        Ok(Self { index, stop, thread: Some(thread) })
    }

    /// Index of the device.
    pub const fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(device: &SyncDevice, known: &dyn Fn(IpAddr) -> bool, told: &dyn Fn(Tally), stop: &AtomicBool) {
    /// How long the thread may be deaf to its end.
    const IDLE: Duration = Duration::from_millis(200);
    let mut queue = Queue::default();
    let mut buffer = vec![0; LONGEST];
    while !stop.load(Ordering::Relaxed) {
        let pause = if queue.held.is_empty() { IDLE } else { LOOK };
        let timeout = Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() };
        let fd = device.as_fd();
        // Interrupted or not: what is there is read.
        let _woken = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
        let mut tally = Tally::default();
        // Bounded by the device's own queue.
        while let Ok(length) = device.recv(&mut buffer) {
            tally.refused += u64::from(!queue.push(&buffer[..length], Instant::now()));
        }
        let (released, expired) = queue.ripe(known, Instant::now());
        tally.expired = expired;
        for packet in released {
            match device.send(&packet) {
                Ok(_) => tally.released += 1,
                Err(error) => {
                    tally.refused += 1;
                    tracing::debug!(err = %error, "Could not give back a held packet");
                }
            }
        }
        if tally != Tally::default() {
            told(tally);
        }
    }
}

#[cfg(test)]
mod tests;
