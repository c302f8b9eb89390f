//! Long-lived numbered streams, for "no packet of an established stream is lost".

use super::unspecified;
use crate::error::{Context, LabError};
use crate::namespace::{Namespace, runtime};
use crate::wait::eventually;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// Bytes of the sequence number at the start of every record.
const NUMBER: usize = 8;

/// How the records travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One connection; nothing is lost unless the connection is.
    Tcp,
    /// One datagram per record.
    Udp,
}

/// A stream to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// How the records travel.
    pub transport: Transport,
    /// Where the server listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the client sends to, if not to `listen`: for instance a service address.
    pub dial: Option<SocketAddr>,
    /// Source address of the client; the kernel's choice without.
    pub source: Option<IpAddr>,
    /// One record per interval; late ones are sent in a burst.
    pub interval: Duration,
    /// Follows the sequence number in every record.
    pub payload: Vec<u8>,
}

impl StreamOptions {
    /// A hundred records a second of 64 bytes.
    #[must_use]
    pub fn new(transport: Transport, listen: SocketAddr) -> Self {
        let payload = vec![0x5a; 64 - NUMBER];
        Self { transport, listen, dial: None, source: None, interval: Duration::from_millis(10), payload }
    }

    /// Sets the time between records.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Sets what follows the sequence number.
    #[must_use]
    pub fn payload(self, payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), ..self }
    }
}

/// Lost records that a report names.
const NAMED: usize = 8;

/// What became of the records so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Records the client gave to its socket.
    pub sent: u64,
    /// Different records the server got.
    pub received: u64,
    /// Sent and not received; records on their way are among them while the stream runs.
    pub lost: u64,
    /// The numbers of the first of those, at most eight, from 0.
    pub missing: Vec<u64>,
    /// Received after a later one.
    pub reordered: u64,
    /// Received again.
    pub duplicated: u64,
    /// Longest time between two records at the server, the time since the last one included while some are
    /// missing.
    pub longest_gap: Duration,
    /// Why a side ended early, if it did.
    pub error: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, lost, missing, reordered, duplicated, longest_gap, error } = self;
        write!(
            f,
            "{sent} sent, {received} received, {lost} lost (first {missing:?}), {reordered} reordered, {duplicated} duplicated, \
             longest gap {longest_gap:?}"
        )?;
        error.iter().try_for_each(|e| write!(f, ", ended early: {e}"))
    }
}

/// Counts numbered records as they arrive: a pure function of numbers and times.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    seen: Vec<u64>,
    received: u64,
    reordered: u64,
    duplicated: u64,
    highest: Option<u64>,
    last: Option<Instant>,
    longest_gap: Duration,
}

impl Tracker {
    /// A record has arrived. Numbers beyond `limit` are none of ours and are ignored.
    pub fn arrive(&mut self, number: u64, limit: u64, now: Instant) {
        let Some(word) = usize::try_from(number / 64).ok().filter(|_| number < limit) else { return };
        if let Some(last) = self.last {
            self.longest_gap = self.longest_gap.max(now - last);
        }
        self.last = Some(now);
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        self.reordered += u64::from(self.highest.is_some_and(|h| number < h));
        self.highest = self.highest.max(Some(number));
    }

    fn missing(&self, sent: u64) -> impl Iterator<Item = u64> + '_ {
        let has = |number: u64| {
            let word = usize::try_from(number / 64).ok().and_then(|word| self.seen.get(word));
            word.is_some_and(|word| word & (1 << (number % 64)) != 0)
        };
        (0..sent).filter(move |number| !has(*number))
    }

    /// The verdict when `sent` records were sent, the last of them at `sent_at`.
    #[must_use]
    pub fn report(&self, sent: u64, sent_at: Option<Instant>) -> Report {
        let open = sent_at.and_then(|at| Some(at.saturating_duration_since(self.last?))).unwrap_or_default();
        let lost = sent.saturating_sub(self.received);
        Report {
            sent,
            received: self.received,
            lost,
            missing: if lost > 0 { self.missing(sent).take(NAMED).collect() } else { Vec::new() },
            reordered: self.reordered,
            duplicated: self.duplicated,
            longest_gap: if lost > 0 { self.longest_gap.max(open) } else { self.longest_gap },
            error: None,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    tracker: Tracker,
    sent: u64,
    sent_at: Option<Instant>,
    error: Option<String>,
}

/// A running stream from a client to a server namespace. Dropping it ends both sides.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Mutex<Shared>>,
    address: SocketAddr,
    interval: Duration,
    stop_sending: watch::Sender<bool>,
    stop_receiving: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts the server and then the client; with TCP the connection is established when this returns.
    pub fn start(client: &Namespace, server: &Namespace, options: &StreamOptions) -> Result<Self, LabError> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (stop_sending, sending) = watch::channel(false);
        let (stop_receiving, receiving) = watch::channel(false);
        let (to, from) = (options.clone(), options.clone());
        let of_server = Arc::clone(&shared);
        let (listening, served) = launch(server, move |ready| receive(to, of_server, receiving, ready))?;
        let mut stream = Self {
            shared,
            address: listening,
            interval: options.interval,
            stop_sending,
            stop_receiving,
            threads: vec![served],
        };
        let dial =
            SocketAddr::new(options.dial.unwrap_or(listening).ip(), options.dial.unwrap_or(listening).port());
        let of_client = Arc::clone(&stream.shared);
        let (_, sent) = launch(client, move |ready| send(from, dial, of_client, sending, ready))?;
        stream.threads.push(sent);
        Ok(stream)
    }

    /// Between two records.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What became of the records so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let shared = lock(&self.shared);
        Report { error: shared.error.clone(), ..shared.tracker.report(shared.sent, shared.sent_at) }
    }

    /// Stops sending, waits at most `grace` for the records on their way, and gives the final report.
    #[must_use]
    pub fn stop(mut self, grace: Duration) -> Report {
        self.stop_sending.send_replace(true);
        if let Some(client) = (self.threads.len() > 1).then(|| self.threads.pop()).flatten() {
            // A TCP client that is stuck in a full socket gives up at the end of its grace.
            let _ = eventually(grace, "the end of the client", || {
                if client.is_finished() { Ok(()) } else { Err("it is sending") }
            });
            self.threads.push(client);
        }
        // Records that do not come are lost; the report says so.
        let _ = eventually(grace, "the last record", || {
            let report = self.report();
            if report.lost == 0 || report.error.is_some() { Ok(()) } else { Err(report) }
        });
        self.report()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop_sending.send_replace(true);
        self.stop_receiving.send_replace(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::warn!(address = %self.address, "a side of a stream panicked");
            }
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("no panic under this lock")
}

type Ready = SyncSender<Result<SocketAddr, LabError>>;

/// Starts one side and waits until it is ready.
fn launch<F: Future<Output = Result<(), LabError>>>(
    namespace: &Namespace,
    side: impl FnOnce(Ready) -> F + Send + 'static,
) -> Result<(SocketAddr, JoinHandle<()>), LabError> {
    let (ready, started) = sync_channel(1);
    let name = namespace.name().to_owned();
    let thread = namespace.thread(move || {
        let failed = ready.clone();
        if let Err(e) = runtime(&name).and_then(|rt| rt.block_on(side(ready))) {
            // Nobody listens once the side was ready; it has recorded its failure then.
            let _ = failed.try_send(Err(e));
        }
    });
    let address = started.recv().expect("invariant: a side sends before it ends")?;
    Ok((address, thread))
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone means stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn receive(
    options: StreamOptions,
    shared: Arc<Mutex<Shared>>,
    stop: watch::Receiver<bool>,
    ready: Ready,
) -> Result<(), LabError> {
    let listen = options.listen;
    let size = NUMBER + options.payload.len();
    let arrive = |record: &[u8]| {
        if record.len() == size && record[NUMBER..] == options.payload {
            let number = record[..NUMBER].try_into().map_or(u64::MAX, u64::from_be_bytes);
            let mut shared = lock(&shared);
            // The client counts after sending, so the record may be one ahead.
            let limit = shared.sent + 1;
            shared.tracker.arrive(number, limit, Instant::now());
        }
    };
    let work = async {
        match options.transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(listen).await.context("listen on", listen)?;
                let address = listener.local_addr().context("listen on", listen)?;
                let _ = ready.send(Ok(address));
                let (mut stream, _) = listener.accept().await.context("accept on", listen)?;
                let mut record = vec![0; size];
                while stream.read_exact(&mut record).await.is_ok() {
                    arrive(&record);
                }
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(listen).await.context("listen on", listen)?;
                let address = socket.local_addr().context("listen on", listen)?;
                let _ = ready.send(Ok(address));
                let mut record = vec![0; size + 1];
                loop {
                    if let Ok(length) = socket.recv(&mut record).await {
                        arrive(&record[..length]);
                    }
                }
            }
        }
        Ok(())
    };
    tokio::select! { done = work => done, () = stopped(stop) => Ok(()) }
}

async fn send(
    options: StreamOptions,
    dial: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    stop: watch::Receiver<bool>,
    ready: Ready,
) -> Result<(), LabError> {
    let local = SocketAddr::new(options.source.unwrap_or(unspecified(dial.ip())), 0);
    let mut tick = tokio::time::interval(options.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0_u64;
    let mut record = vec![0; NUMBER];
    record.extend(&options.payload);
    let mut next = |record: &mut Vec<u8>| {
        record[..NUMBER].copy_from_slice(&number.to_be_bytes());
        number += 1;
    };
    let count = || {
        let mut shared = lock(&shared);
        shared.sent += 1;
        shared.sent_at = Some(Instant::now());
    };
    let halt = stopped(stop.clone());
    tokio::pin!(halt);
    match options.transport {
        Transport::Tcp => {
            let socket = if dial.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
                .context("open", "TCP")?;
            socket.set_nodelay(true).context("set TCP_NODELAY for", dial)?;
            socket.bind(local).context("bind", local)?;
            let mut stream = tokio::time::timeout(CONNECT_DEADLINE, socket.connect(dial))
                .await
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))
                .and_then(|r| r)
                .context("connect to", dial)?;
            let _ = ready.send(Ok(local));
            loop {
                tokio::select! { _ = tick.tick() => {}, () = &mut halt => return Ok(()) }
                next(&mut record);
                let written = tokio::select! {
                    written = stream.write_all(&record) => written,
                    () = &mut halt => return Ok(()),
                };
                if let Err(e) = written {
                    lock(&shared).error = Some(format!("connection to {dial}: {e}"));
                    return Ok(());
                }
                count();
            }
        }
        Transport::Udp => {
            let socket = UdpSocket::bind(local).await.context("bind", local)?;
            let _ = ready.send(Ok(local));
            loop {
                tokio::select! { _ = tick.tick() => {}, () = &mut halt => return Ok(()) }
                next(&mut record);
                // A datagram the kernel refuses (no route, ICMP error before) is a lost one.
                let _ = socket.send_to(&record, dial).await;
                count();
            }
        }
    }
}

/// For establishing the connection of a TCP stream.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
