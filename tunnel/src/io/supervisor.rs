//! Keeps one device running: waits for a name that is taken, starts again what failed, hands over to who waits ([`succession`]).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use zeroize::Zeroizing;

use super::Stop;
use super::device::{Device, Options, StartError};
use super::pulse::{self, Pulse};
use super::succession::{self, Mark, Part};
use super::tun::TunError;
use crate::noise::bulk::Bulk;

/// Between two attempts while the name is taken. Short, since a successor waits for its predecessor to exit.
const RETRY: Duration = Duration::from_millis(200);
/// Between two attempts after any other obstacle: an attempt may create the interface and take it back.
const RETRY_SLOWLY: Duration = Duration::from_secs(2);
/// For a successor to take the device that was handed over to it: it tries every [`RETRY`].
const HAND_OVER: Duration = Duration::from_secs(10);
/// For the engine, and for threads, to answer one who asks whether a device carries: less than a probe's five seconds, all told.
const ANSWER: Duration = Duration::from_millis(1500);
/// Between two log lines about the same obstacle.
const REMIND: Duration = Duration::from_secs(10);

/// Runs a device until `stop` is raised. A device that fails is started again, without key and peers: whoever
/// configured it finds it empty and configures it again. With `pulse` it says that it goes on, while it waits, too; `waits` is that of
/// the process.
pub fn run(options: &Options, stop: &Stop, pulse: &Pulse, waits: &Waits) {
    let interface = options.name.as_str();
    let mut reported: Option<(String, Instant)> = None;
    // That this process waits for the device, or has handed it over.
    let (mut part, mut handed_over) = (None, false);
    while !stop.is_raised() {
        let mut pause = RETRY;
        match Device::start(options) {
            Ok(device) => {
                (reported, part, handed_over) = (None, None, false);
                let (mtu, cipher) = (options.mtu, Bulk::new(options.techniques.many).name());
                tracing::info!(interface, mtu, cipher, dir = %options.uapi_dir.display(), "device is up for configuration");
                let failed = device.wait(stop, pulse);
                let awaited = failed.is_some() && succession::is_awaited(&options.uapi_dir, interface);
                match failed {
                    Some(cause) if awaited => {
                        tracing::info!(interface, cause, "handing the device over to who waits")
                    }
                    Some(cause) => tracing::error!(
                        interface,
                        cause,
                        "device failed, starting it afresh without configuration"
                    ),
                    None => {}
                }
                drop(device);
                tracing::info!(interface, "device is gone");
                if awaited {
                    handed_over = !waits.for_any();
                    if handed_over {
                        part = mark(Part::Former, options, waits);
                    }
                    hand_over(options, stop, pulse);
                }
            }
            Err(e) => {
                if !matches!(e, StartError::Tun(TunError::Taken { .. })) {
                    pause = RETRY_SLOWLY;
                } else if part.is_none() {
                    // Again and again: another one may have the part, or look at it.
                    part = mark(if handed_over { Part::Former } else { Part::Next }, options, waits);
                }
                let text = e.to_string();
                let due = reported.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() > REMIND);
                if due {
                    tracing::warn!(interface, error = text, "device cannot start yet, trying again");
                    reported = Some((text, Instant::now()));
                }
            }
        }
        if pulse.wait(stop, pause) {
            break;
        }
    }
}

/// For how many devices a process waits.
#[derive(Clone, Debug, Default)]
pub struct Waits(Arc<AtomicUsize>);

impl Waits {
    fn for_any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

/// A part that this process has in a device, until dropped.
#[derive(Debug)]
struct Has {
    _mark: Mark,
    /// It is counted there.
    waits: Option<Waits>,
}

impl Drop for Has {
    fn drop(&mut self) {
        if let Some(waits) = &self.waits {
            waits.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Says what this process is to the device. Without that it gets it when its owner exits, and probes take it for broken.
fn mark(part: Part, options: &Options, waits: &Waits) -> Option<Has> {
    let mark = match Mark::take(part, &options.uapi_dir, &options.name) {
        Ok(mark) => mark?,
        Err(error) => {
            tracing::warn!(interface = options.name, ?part, %error, "others cannot be told about the interface");
            return None;
        }
    };
    let waits = (part == Part::Next).then(|| {
        waits.0.fetch_add(1, Ordering::SeqCst);
        waits.clone()
    });
    Some(Has { _mark: mark, waits })
}

/// Leaves the name alone until whoever waits for it has it.
fn hand_over(options: &Options, stop: &Stop, pulse: &Pulse) {
    let begun = Instant::now();
    while succession::is_awaited(&options.uapi_dir, &options.name) && begun.elapsed() < HAND_OVER {
        if pulse.wait(stop, RETRY) {
            return;
        }
    }
    tracing::info!(interface = options.name, took = ?begun.elapsed(), "device was handed over");
}

/// Succeeds if each interface is served by a process of the caller's PID namespace whose engine answers, or was until that handed it
/// over: in a container, by its own main process, and not by that of another container which has it still. Where `alive` is given,
/// all threads of the process that has that socket must go on besides.
///
/// # Errors
/// Names the interface, and who serves it instead; or what does not answer.
pub fn check(interfaces: &[String], uapi_dir: &Path, alive: Option<&Path>) -> anyhow::Result<()> {
    for interface in interfaces.iter().filter(|interface| !succession::was_ours(uapi_dir, interface)) {
        let path = super::device::socket_path(uapi_dir, interface, "sock");
        let stream = UnixStream::connect(&path)
            .with_context(|| format!("{}: nobody serves {interface}", path.display()))?;
        let served_by = getsockopt(&stream, PeerCredentials)
            .with_context(|| format!("{}: who serves {interface} is not known", path.display()))?;
        // The kernel shows processes of other namespaces as 0.
        anyhow::ensure!(
            served_by.pid() != 0,
            "{}: a process of another container serves {interface}",
            path.display()
        );
        configuration_is_told(&stream)
            .with_context(|| format!("{}: the engine of {interface} does not answer", path.display()))?;
    }
    alive.map_or(Ok(()), |door| pulse::check(door, ANSWER))
}

/// Asks for a device's configuration, and reads it to its end. Nothing of it is kept: it has the private key.
fn configuration_is_told(mut stream: &UnixStream) -> io::Result<()> {
    const END: &[u8] = b"errno=0\n\n";
    let deadline = Instant::now() + ANSWER;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(b"get=1\n\n")?;
    let mut text = Zeroizing::new([0; 16384]);
    let mut kept = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut text[kept..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => kept + other?,
        };
        if text[..read].ends_with(END) {
            return Ok(());
        }
        if text[..read].ends_with(b"\n\n") {
            return Err(io::Error::other("it refuses to tell its configuration"));
        }
        // The end may come in two pieces.
        kept = read.min(END.len());
        text.copy_within(read - kept..read, 0);
    }
}
