//! Whether every thread that serves a device still goes on: each is asked by an event, and answers between two pieces of its work.
//!
//! A thread that waits for packets, or for a device that another process has, wakes up and answers; one that hangs, in a lock, in the
//! kernel, in a loop, or since the process was stopped, does not. Nothing is done until somebody asks, on a socket ([`serve`], [`check`]):
//! for the liveness probe of an orchestrator. Threads of configuration clients are not asked: each has a bounded time, and whatever
//! they could hold for ever (a lock of the engine) the others want, too.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::listen::{ListenError, Listener};
use super::{Stop, ready};
use crate::engine::lock;

/// For a thread to answer. A burst of packets takes a millisecond, what the kernel is asked for under its lock of all network
/// devices a second on a machine that makes hundreds of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the answer to come: longer, since a thread that hangs is to be named.
pub const ANSWER: Duration = PATIENCE.saturating_add(Duration::from_secs(2));
/// What is answered when all threads go on.
const ALIVE: &str = "alive\n";

/// The threads of a process that may be asked.
#[derive(Clone, Debug)]
pub struct Pulses(Arc<Register>);

#[derive(Debug)]
struct Register {
    threads: Mutex<Vec<Arc<Thread>>>,
    /// Raised with each answer.
    answered: Stop,
}

#[derive(Debug)]
struct Thread {
    name: String,
    /// Raised with each question.
    wake: Stop,
    owes: AtomicBool,
}

impl Pulses {
    /// Nobody yet.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Register { threads: Mutex::default(), answered: Stop::new()? })))
    }

    /// Enters a thread, from now on until the pulse is dropped.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn enter(&self, name: &str) -> io::Result<Pulse> {
        let thread = Thread { name: name.to_owned(), wake: Stop::new()?, owes: AtomicBool::new(false) };
        let thread = Arc::new(thread);
        lock(&self.0.threads).push(Arc::clone(&thread));
        Ok(Pulse { thread, register: Arc::clone(&self.0) })
    }

    /// Asks all threads that there are, and waits at most so long for their answers. Names those that owe one; a thread that ended
    /// owes nothing. To be asked by one at a time.
    fn silent(&self, patience: Duration) -> Vec<String> {
        let asked = lock(&self.0.threads).clone();
        for thread in &asked {
            thread.owes.store(true, Ordering::SeqCst);
            thread.wake.raise();
        }
        let deadline = Instant::now() + patience;
        loop {
            // Before the look, so that no answer after it is missed.
            self.0.answered.lower();
            let threads = lock(&self.0.threads);
            let owes = |thread: &&Arc<Thread>| {
                thread.owes.load(Ordering::SeqCst) && threads.iter().any(|other| Arc::ptr_eq(other, thread))
            };
            let silent: Vec<String> = asked.iter().filter(owes).map(|thread| thread.name.clone()).collect();
            drop(threads);
            let left = deadline.saturating_duration_since(Instant::now());
            if silent.is_empty() || left.is_zero() {
                return silent;
            }
            let _answered = self.0.answered.wait(left);
        }
    }
}

/// The pulse of one thread, to be waited for beside all else that the thread waits for.
#[derive(Debug)]
pub struct Pulse {
    thread: Arc<Thread>,
    register: Arc<Register>,
}

impl Pulse {
    /// Answers if somebody has asked. To be called between two pieces of work, when this can be read.
    pub fn answer(&self) {
        // In this order: an event that comes after the look stays, and wakes once more.
        self.thread.wake.lower();
        if self.thread.owes.swap(false, Ordering::SeqCst) {
            self.register.answered.raise();
        }
    }

    /// As [`Stop::wait`], and answers meanwhile.
    #[must_use]
    pub fn wait(&self, stop: &Stop, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match ready(&[stop.as_fd(), self.as_fd()], Some(left)) {
                Ok([true, _]) => return true,
                Ok([false, true]) => self.answer(),
                Ok([false, false]) | Err(_) if left.is_zero() => return false,
                // Cut off by a signal, or nothing can be waited for: a pause it is all the same.
                Ok([false, false]) => {}
                Err(_) => std::thread::sleep(left),
            }
        }
    }
}

impl AsFd for Pulse {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.thread.wake.as_fd()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        lock(&self.register.threads).retain(|thread| !Arc::ptr_eq(thread, &self.thread));
        self.register.answered.raise();
    }
}

/// The socket on which [`check`] asks. Of this process alone: in a directory that no other container has.
#[derive(Debug)]
pub struct Door(Listener);

impl Door {
    /// Makes it; that of a dead process is replaced.
    ///
    /// # Errors
    /// The path is no socket, or somebody answers there.
    pub fn open(path: &Path) -> Result<Self, ListenError> {
        Listener::bind(path).map(Self)
    }

    /// Answers whoever asks, one after the other, until `stop` is raised.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn serve(&self, pulses: &Pulses, stop: &Stop) -> io::Result<()> {
        loop {
            let [stopped, asked] = ready(&[stop.as_fd(), self.0.socket.as_fd()], None)?;
            if stopped {
                return Ok(());
            }
            if !asked {
                continue;
            }
            let mut client = match self.0.socket.accept() {
                Ok((client, _)) => client,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => {
                    tracing::warn!(error = %e, "who asks whether this process is alive was not accepted");
                    let _ = stop.wait(Duration::from_millis(50));
                    continue;
                }
            };
            let silent = pulses.silent(PATIENCE);
            let text = if silent.is_empty() {
                ALIVE.to_owned()
            } else {
                let silent = silent.join(", ");
                tracing::error!(threads = silent, patience = ?PATIENCE, "threads make no progress");
                format!("no progress for {} s: {silent}\n", PATIENCE.as_secs())
            };
            // Far smaller than a socket's buffer; who is gone already has drawn conclusions.
            if let Err(e) = client.set_nonblocking(true).and_then(|()| client.write_all(text.as_bytes())) {
                tracing::debug!(error = %e, "answer about progress not sent");
            }
        }
    }
}

/// Succeeds if every thread of the process that has this socket goes on, and that is known within `patience`.
///
/// # Errors
/// Names the threads that do not, as far as there was time to learn of them, or the socket.
pub fn check(door: &Path, patience: Duration) -> anyhow::Result<()> {
    let at = door.display();
    let mut stream = UnixStream::connect(door).with_context(|| format!("{at}: no mesh-tunnel answers"))?;
    stream.set_read_timeout(Some(patience)).with_context(|| format!("{at}: no deadline"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{at}: mesh-tunnel hangs or was stopped"))?;
    anyhow::ensure!(answer == ALIVE, "{at}: mesh-tunnel hangs: {}", answer.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn who_answers_or_ended_is_alive_and_who_does_neither_is_named() {
        let (pulses, stop) = (Pulses::new().unwrap(), Arc::new(Stop::new().unwrap()));
        assert_eq!(pulses.silent(LONG), [""; 0]);
        let waits = pulses.enter("waits").unwrap();
        let until = Arc::clone(&stop);
        let waiting = std::thread::spawn(move || waits.wait(&until, LONG));
        // Again and again, and at once: a question that was answered counts for the next one no more.
        for _ in 0..100 {
            assert_eq!(pulses.silent(LONG), [""; 0]);
        }
        let hangs = pulses.enter("hangs").unwrap();
        for _ in 0..2 {
            assert_eq!(pulses.silent(SHORT), ["hangs"]);
        }
        hangs.answer();
        assert_eq!(pulses.silent(SHORT), ["hangs"]);
        drop(hangs);
        assert_eq!(pulses.silent(LONG), [""; 0]);
        stop.raise();
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_pause_is_as_long_as_it_was_asked_for_however_often_it_is_interrupted() {
        let (pulses, stop) = (Pulses::new().unwrap(), Stop::new().unwrap());
        let pulse = pulses.enter("a").unwrap();
        let begun = Instant::now();
        let asks = std::thread::spawn(
            move || while begun.elapsed() < 3 * SHORT && pulses.silent(LONG).is_empty() {},
        );
        assert!(!pulse.wait(&stop, 4 * SHORT));
        assert!(begun.elapsed() >= 4 * SHORT, "{:?}", begun.elapsed());
        asks.join().unwrap();
    }
}
