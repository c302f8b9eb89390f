//! The UAPI and statistics sockets of a device.
//!
//! Each client has a thread, a bounded request and a bounded time, so one that is stuck harms nobody.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::device::Shared;
use super::pulse::Pulse;
use super::{Stop, ready};
use crate::uapi::{self, Request, UapiError};

/// Clients at a time. The agent and a few `wg` calls need a handful.
const MAX_CLIENTS: usize = 32;
/// How long a client may be silent after an answer.
const IDLE: Duration = Duration::from_secs(30);
/// How long one request, or its answer, may take; also how long a client has until its first request begins.
const TRANSFER: Duration = Duration::from_secs(5);
/// Bytes of a request: 65536 peers at about 400 bytes each.
const MAX_REQUEST: usize = 32 << 20;
/// Bytes of a line: the longest valid one is a key of 64 digits with its name.
const MAX_LINE: usize = 1024;
/// `EAGAIN`, for a client too many.
const BUSY: i32 = -11;

/// Finds complete requests in a stream: each ends with an empty line.
#[derive(Debug)]
pub struct Framer {
    bytes: Zeroizing<Vec<u8>>,
    scanned: usize,
    line_start: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Self { bytes: Zeroizing::new(Vec::with_capacity(4096)), scanned: 0, line_start: 0 }
    }
}

impl Framer {
    /// Whether no part of a request has arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds bytes from the stream.
    pub fn push(&mut self, new: &[u8]) {
        let needed = self.bytes.len() + new.len();
        if needed > self.bytes.capacity() {
            // Vec would grow by moving, and leave what may be a key behind: grow by hand, wiping.
            let mut bigger = Zeroizing::new(Vec::with_capacity(needed.max(self.bytes.capacity() * 2)));
            bigger.extend_from_slice(&self.bytes);
            self.bytes = bigger;
        }
        self.bytes.extend_from_slice(new);
    }

    /// Takes the first complete request, with its empty line, out of the buffer.
    ///
    /// # Errors
    /// [`UapiError::TooLong`]: the stream cannot be followed any further.
    pub fn next_request(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, UapiError> {
        while let Some(at) = self.bytes[self.scanned..].iter().position(|b| *b == b'\n') {
            let end = self.scanned + at;
            if end - self.line_start > MAX_LINE {
                return Err(UapiError::TooLong { limit: MAX_LINE });
            }
            let empty = end == self.line_start;
            self.scanned = end + 1;
            self.line_start = end + 1;
            if empty {
                let rest = Zeroizing::new(self.bytes[self.scanned..].to_vec());
                let mut request = std::mem::replace(&mut self.bytes, rest);
                request.truncate(self.scanned);
                self.scanned = 0;
                self.line_start = 0;
                return Ok(Some(request));
            }
        }
        self.scanned = self.bytes.len();
        if self.bytes.len() - self.line_start > MAX_LINE {
            return Err(UapiError::TooLong { limit: MAX_LINE });
        }
        if self.bytes.len() > MAX_REQUEST {
            return Err(UapiError::TooLong { limit: MAX_REQUEST });
        }
        Ok(None)
    }
}

/// Accepts clients until the device stops.
pub(super) fn serve(shared: &Arc<Shared>, pulse: &Pulse) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let fds =
            [shared.uapi.socket.as_fd(), shared.stats.socket.as_fd(), shared.stop.as_fd(), pulse.as_fd()];
        let [uapi, stats, stop, asked] = ready(&fds, None)?;
        if stop {
            return Ok(());
        }
        if asked {
            pulse.answer();
        }
        if uapi && let Some(client) = accept(&shared.uapi.socket) {
            serve_client(shared, client, &clients);
        }
        if stats && let Some(mut client) = accept(&shared.stats.socket) {
            // The text is far smaller than a socket buffer; a client that cannot take it gets a part.
            let text = shared.engine.counters().to_json(&shared.name) + "\n";
            let sent = client.set_nonblocking(true).and_then(|()| client.write_all(text.as_bytes()));
            if let Err(e) = sent {
                tracing::debug!(interface = shared.name, error = %e, "statistics not sent");
            }
        }
    }
}

fn accept(listener: &std::os::unix::net::UnixListener) -> Option<UnixStream> {
    match listener.accept() {
        Ok((client, _)) => Some(client),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
        Err(e) => {
            // Out of descriptors, or the client is gone already. The pause keeps the former from spinning.
            tracing::warn!(error = %e, "client not accepted");
            std::thread::sleep(Duration::from_millis(50));
            None
        }
    }
}

/// Counts a client as long as it is served.
struct Served(Arc<AtomicUsize>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_client(shared: &Arc<Shared>, client: UnixStream, clients: &Arc<AtomicUsize>) {
    let before = clients.fetch_add(1, Ordering::Relaxed);
    let served = Served(Arc::clone(clients));
    if before >= MAX_CLIENTS {
        tracing::warn!(interface = shared.name, limit = MAX_CLIENTS, "too many configuration clients");
        refuse(&client, BUSY);
        return;
    }
    let shared = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name(format!("{}-uapi", shared.name)).spawn(move || {
        let _served = served;
        if let Err(e) = converse(&shared, &client) {
            tracing::debug!(interface = shared.name, error = %e, "configuration client lost");
        }
    });
    if let Err(e) = spawned {
        tracing::warn!(error = %e, "no thread for a configuration client");
    }
}

fn refuse(mut client: &UnixStream, errno: i32) {
    // The client is being sent away; whether it hears why is its affair.
    let _ = client.set_nonblocking(true);
    let _ = client.write_all(uapi::format_errno(errno).as_bytes());
}

/// Answers one client's requests until it leaves, is silent for too long, or sends what is no request.
fn converse(shared: &Arc<Shared>, mut client: &UnixStream) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(TRANSFER))?;
    let mut framer = Framer::default();
    let mut patience = TRANSFER;
    while let Some(request) = receive(client, &mut framer, patience, &shared.stop)? {
        patience = IDLE;
        match request {
            Ok(text) => client.write_all(shared.answer(&text).as_bytes())?,
            Err(e) => {
                tracing::warn!(interface = shared.name, error = %e, "configuration request refused");
                refuse(client, e.errno());
                return Ok(());
            }
        }
    }
    Ok(())
}

type Received = Result<Zeroizing<Vec<u8>>, UapiError>;

fn receive(
    mut client: &UnixStream,
    framer: &mut Framer,
    patience: Duration,
    stop: &Stop,
) -> io::Result<Option<Received>> {
    let mut deadline = Instant::now() + if framer.is_empty() { patience } else { TRANSFER };
    let mut chunk = Zeroizing::new([0; 16384]);
    loop {
        match framer.next_request() {
            Ok(Some(request)) => return Ok(Some(Ok(request))),
            Ok(None) => {}
            Err(e) => return Ok(Some(Err(e))),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let [readable, stopped] = ready(&[client.as_fd(), stop.as_fd()], Some(left))?;
        if stopped || (left.is_zero() && !readable) {
            return Ok(None);
        }
        if !readable {
            continue;
        }
        let n = match client.read(&mut chunk[..]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if n == 0 {
            return Ok(None);
        }
        if framer.is_empty() {
            deadline = Instant::now() + TRANSFER;
        }
        framer.push(&chunk[..n]);
    }
}

impl Shared {
    /// The answer to one complete request.
    fn answer(self: &Arc<Self>, text: &[u8]) -> Zeroizing<String> {
        let scope = |name: &str| super::link::index_of(name).ok();
        let outcome = match uapi::parse(text, &scope) {
            Ok(Request::Get) => return uapi::format_get(&self.engine.view(self)),
            Ok(Request::Set(set)) => self.engine.set(&set, self),
            Err(e) => Err(e),
        };
        let errno = match outcome {
            Ok(()) => 0,
            Err(e) => {
                tracing::warn!(interface = self.name, error = %e, "configuration request refused");
                e.errno()
            }
        };
        Zeroizing::new(uapi::format_errno(errno))
    }
}

#[cfg(test)]
mod tests;
