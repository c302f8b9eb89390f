//! One running device: its descriptors, its threads, its end.
//!
//! Threads: one carries packets ([`carry`](super::carry)), or one for each lane and one that reads for them ([`read`](super::read)), and some
//! help these to encrypt and decrypt ([`crew`](crate::noise::bulk::crew)); one runs
//! timers, one accepts clients, one per client. All wait for their descriptors and for the stop flag. The first that fails raises
//! the flag and leaves the cause.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::carry::{self, Wire};
use super::listen::{ListenError, Listener};
use super::pulse::{Pulse, Pulses};
use super::queue::{Queue, Strays};
use super::tun::{TunError, mtu_by_name, open_tun};
use super::udp::{Paths, Sockets};
use super::{Stop, link, read as reader, ready, server};
use crate::clock::Moment;
use crate::engine::lanes::Lanes;
use crate::engine::{Engine, MAX_PACKET, SCRATCH, Underlay, lock, read, write};
use crate::noise::bulk::crew::Crew;
use crate::offload::{Offloads, Techniques};

/// How often timers run, as the engine wants it.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at the MTU, at what the paths to peers take, and at the socket's path.
const TICKS_PER_LOOK: u32 = 10;

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the interface.
    pub name: String,
    /// MTU in bytes that the interface starts with.
    pub mtu: u32,
    /// What makes packets cross TUN and sockets many at a time, as far as the kernel has it.
    pub techniques: Techniques,
    /// How many threads carry its packets.
    pub lanes: Lanes,
    /// How many help all of them with what is much to encrypt or decrypt, at most [`MAX_HELPERS`](crate::noise::bulk::crew::MAX_HELPERS).
    pub helpers: u8,
    /// Directory of the sockets `NAME.sock` and `NAME.stats`.
    pub uapi_dir: PathBuf,
    /// Where its threads are entered.
    pub pulses: Pulses,
}

/// Why a device could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The interface.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The directory of the sockets.
    #[error("directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// MTU, queue length or address mode of the interface.
    #[error("interface {name}: MTU {mtu} and link attributes cannot be set: {source}")]
    Link {
        /// The interface.
        name: String,
        /// The MTU.
        mtu: u32,
        /// The cause.
        source: io::Error,
    },
    /// A thread or an event descriptor.
    #[error("interface {name}: {source}")]
    Resources {
        /// The interface.
        name: String,
        /// The cause.
        source: io::Error,
    },
}

/// What the threads of a device share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) uapi: Listener,
    pub(super) stats: Listener,
    pub(super) stop: Stop,
    pub(super) index: u32,
    pub(super) tun: OwnedFd,
    pub(super) offloads: Offloads,
    pub(super) techniques: Techniques,
    /// One for each thread that carries packets.
    pub(super) lanes: Box<[Lane]>,
    pub(super) crew: Option<Arc<Crew>>,
    /// Raised when a lane has room again and somebody waits for that.
    pub(super) room: Stop,
    /// To ask about interfaces by.
    asker: UnixDatagram,
    fwmark: AtomicU32,
    failure: Mutex<Option<String>>,
}

impl Shared {
    /// The interface's present MTU in bytes.
    pub(super) fn mtu(&self) -> io::Result<usize> {
        // By its index where it has another name now.
        mtu_by_name(&self.asker, &self.name).or_else(|_| link::mtu_of(self.index))
    }
}

/// What the thread of a lane has for itself.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Lane {
    pub(super) sockets: RwLock<Option<Arc<Sockets>>>,
    /// What the host sends to its peers; `None` of one lane, which reads that itself.
    pub(super) queue: Option<Queue>,
    pub(super) strays: Strays,
    /// The interface's MTU, and when it was asked for.
    pub(super) mtu: Mutex<Option<(Instant, usize)>>,
    /// Raised when `sockets` are others, or there are strays.
    pub(super) called: Stop,
}

impl Lane {
    fn new(several: bool) -> io::Result<Self> {
        let queue = several.then(Queue::new).transpose()?;
        Ok(Self {
            sockets: RwLock::new(None),
            queue,
            strays: Strays::default(),
            mtu: Mutex::default(),
            called: Stop::new()?,
        })
    }
}

/// A running device; dropping it ends it.
#[derive(Debug)]
pub struct Device {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Device {
    /// Creates the interface, its sockets and its threads. It has no key and no peers yet, and is down.
    ///
    /// # Errors
    /// The first thing that could not be had; whatever was made before it is undone.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let Options { name, mtu, techniques, lanes, helpers, uapi_dir, pulses } = options;
        let (tun, offloads) = open_tun(name, *techniques)?;
        let resources = |source| StartError::Resources { name: name.clone(), source };
        let index = link::index_of(name).map_err(resources)?;
        link::configure(index, *mtu).map_err(|source| StartError::Link {
            name: name.clone(),
            mtu: *mtu,
            source,
        })?;
        std::fs::create_dir_all(uapi_dir)
            .map_err(|source| StartError::Directory { path: uapi_dir.clone(), source })?;
        let bytes = usize::try_from(*mtu).unwrap_or(MAX_PACKET);
        let own: io::Result<Box<[Lane]>> = (0..lanes.count()).map(|_| Lane::new(!lanes.is_one())).collect();
        let shared = Arc::new(Shared {
            engine: Engine::with_lanes(bytes, *lanes),
            // The interface is ours now, so a socket of that name that still answers is a stranger's.
            stats: Listener::bind(&socket_path(uapi_dir, name, "stats"))?,
            uapi: Listener::bind(&socket_path(uapi_dir, name, "sock"))?,
            stop: Stop::new().map_err(resources)?,
            name: name.clone(),
            index,
            tun,
            offloads,
            techniques: *techniques,
            lanes: own.map_err(resources)?,
            crew: Crew::new(name, *helpers, techniques.many).map_err(resources)?,
            room: Stop::new().map_err(resources)?,
            asker: UnixDatagram::unbound().map_err(resources)?,
            fwmark: AtomicU32::new(0),
            failure: Mutex::new(None),
        });
        let mut device = Self { shared, threads: Vec::new() };
        let mut bodies: Vec<(String, Body)> =
            vec![("timers".to_owned(), Box::new(run_timers)), ("accept".to_owned(), Box::new(server::serve))];
        if lanes.is_one() {
            bodies.push(("carry".to_owned(), Box::new(|shared, pulse| carry::run(shared, 0, pulse))));
        } else {
            bodies.push(("read".to_owned(), Box::new(reader::run)));
            for lane in 0..lanes.count() {
                let body: Body = Box::new(move |shared, pulse| carry::run(shared, lane, pulse));
                bodies.push((format!("carry{lane}"), body));
            }
        }
        for (what, body) in bodies {
            let thread = spawn(&device.shared, what, pulses, body).map_err(resources)?;
            device.threads.push(thread);
        }
        Ok(device)
    }

    /// Waits until the device fails (`Some(cause)`) or `stop` is raised (`None`).
    #[must_use]
    pub fn wait(&self, stop: &Stop, pulse: &Pulse) -> Option<String> {
        loop {
            match ready(&[stop.as_fd(), self.shared.stop.as_fd(), pulse.as_fd()], None) {
                Ok([true, ..]) => return None,
                Ok([_, true, _]) => {
                    let cause = lock(&self.shared.failure).take();
                    return Some(cause.unwrap_or_else(|| "a thread ended".to_owned()));
                }
                Ok([false, false, true]) => pulse.answer(),
                Ok([false, false, false]) => {}
                Err(e) => return Some(e.to_string()),
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.stop.raise();
        for thread in self.threads.drain(..) {
            join(thread);
        }
        // Client threads see the flag at once. The last one to let go removes interface and sockets.
        let deadline = Instant::now() + Duration::from_secs(1);
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(super) fn socket_path(dir: &Path, name: &str, suffix: &str) -> PathBuf {
    dir.join(format!("{name}.{suffix}"))
}

/// A panic has been reported by the thread's own [`Watch`].
fn join(thread: JoinHandle<()>) {
    let _ = thread.join();
}

type Body = Box<dyn FnOnce(&Arc<Shared>, &Pulse) -> io::Result<()> + Send>;

/// Ends the device when a thread ends otherwise than by the stop flag, by panic too.
struct Watch<'a> {
    shared: &'a Shared,
    what: &'a str,
}

impl Watch<'_> {
    fn fail(&self, cause: &str) {
        lock(&self.shared.failure).get_or_insert_with(|| format!("{}: {cause}", self.what));
        self.shared.stop.raise();
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("panicked");
        }
    }
}

fn spawn(shared: &Arc<Shared>, what: String, pulses: &Pulses, body: Body) -> io::Result<JoinHandle<()>> {
    let (shared, name) = (Arc::clone(shared), format!("{}-{what}", shared.name));
    let pulse = pulses.enter(&name)?;
    std::thread::Builder::new().name(name).spawn(move || {
        let watch = Watch { shared: &shared, what: &what };
        if let Err(e) = body(&shared, &pulse) {
            watch.fail(&e.to_string());
        }
    })
}

fn run_timers(shared: &Arc<Shared>, pulse: &Pulse) -> io::Result<()> {
    let mut scratch = vec![0; SCRATCH];
    let mut ticks = 0u32;
    loop {
        if pulse.wait(&shared.stop, TICK) {
            return Ok(());
        }
        shared.engine.handle_timers(Moment::now(), &mut scratch, &mut Wire(shared, &shared.lanes[0]));
        ticks = ticks.wrapping_add(1);
        if !ticks.is_multiple_of(TICKS_PER_LOOK) {
            continue;
        }
        match shared.mtu() {
            Ok(mtu) => shared.engine.set_mtu(mtu),
            Err(e) => tracing::debug!(interface = shared.name, error = %e, "MTU not read"),
        }
        let paths = Paths::new(shared.fwmark());
        shared.engine.look_at_paths(|endpoint| paths.mtu_to(endpoint));
        if !shared.uapi.is_reachable() {
            // To remove the socket is how `wg-quick` and others ask a userspace device to go away.
            return Err(io::Error::other("the configuration socket was removed"));
        }
    }
}

impl Underlay for Arc<Shared> {
    fn bind(&self, port: u16) -> io::Result<()> {
        let made = Sockets::bind(port, self.fwmark(), self.techniques, self.engine.lanes())?;
        let port = made.first().map_or(0, |sockets| sockets.port);
        let mut old = Vec::new();
        for (lane, sockets) in self.lanes.iter().zip(made) {
            old.extend(write(&lane.sockets).replace(Arc::new(sockets)));
            lane.called.raise();
        }
        // Whoever carries packets holds the old ones for some more bursts. Their port must be free when we answer.
        let deadline = Instant::now() + Duration::from_millis(100);
        while old.iter().any(|old| Arc::strong_count(old) > 1) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        drop(old);
        tracing::info!(interface = self.name, port, "listening");
        Ok(())
    }

    fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        for lane in &self.lanes {
            if let Some(sockets) = read(&lane.sockets).as_ref() {
                sockets.set_fwmark(fwmark)?;
            }
        }
        self.fwmark.store(fwmark, Ordering::Relaxed);
        Ok(())
    }

    fn port(&self) -> u16 {
        self.lanes.first().and_then(|lane| read(&lane.sockets).as_ref().map(|s| s.port)).unwrap_or(0)
    }

    fn fwmark(&self) -> u32 {
        self.fwmark.load(Ordering::Relaxed)
    }
}
