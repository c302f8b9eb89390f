//! Captures that collect every frame crossing a switch, and say so when they could not.

mod pcapng;
mod recorder;
mod socket;

use crate::bridge::DeviceMap;
use crate::classify::{self, Policy, Sighting};
use crate::error::LabError;
use crate::link::PortId;
use crate::namespace::Namespace;
use ipnet::IpNet;
use memchr::memmem::Finder;
pub(crate) use recorder::{Recorder, SharedRecorder};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Memory a capture may fill with frames unless told otherwise: a minute of a busy lab link.
const DEFAULT_MEMORY: usize = 256 << 20;

/// How long [`Capture::sync`] waits for frames that counters have seen and the capture has not.
const SYNC_DEADLINE: Duration = Duration::from_secs(5);

/// One frame as it entered a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When: the kernel's time stamp on a bridge, the time of reading on a wire.
    pub at: SystemTime,
    /// Through which port it came in.
    pub port: PortId,
    /// All its bytes from the Ethernet header on. With segmentation offload up to 64 KiB.
    pub data: Arc<[u8]>,
}

/// Where a needle was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The frame.
    pub frame: Frame,
    /// Offset of the needle in the frame, in bytes.
    pub offset: usize,
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, at) = (self.frame.port, self.offset);
        write!(f, "from {port} at byte {at} of {}", classify::summary(&self.frame.data))
    }
}

/// What a capture keeps.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Write a pcapng file here.
    pub file: Option<PathBuf>,
    /// Bytes of frames kept in memory for [`Capture::find`] and [`Capture::frames`]. With 0 nothing is kept,
    /// and only the live searches and the file work; otherwise overflowing it makes the capture lossy.
    pub memory: usize,
    /// Searched in every frame as it passes; hits are kept even when frames are not.
    pub needles: Vec<Vec<u8>>,
    /// Applied to every frame as it passes; offending frames are kept even when frames are not.
    pub policy: Option<Policy>,
    /// Receive buffer of the capture socket in bytes.
    pub buffer: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { file: None, memory: DEFAULT_MEMORY, needles: Vec::new(), policy: None, buffer: 64 << 20 }
    }
}

/// What a capture saw and what it knows to have missed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Frames recorded.
    pub captured: u64,
    /// Frames the kernel dropped because the receive buffer was full.
    pub dropped: u64,
    /// Frames the port counters saw and the capture did not, where the kernel said nothing.
    pub missing: u64,
    /// Frames longer than the read buffer.
    pub truncated: u64,
    /// Frames not kept in memory because [`CaptureOptions::memory`] was full.
    pub evicted: u64,
    /// Why writing the file failed, if it did.
    pub file_error: Option<String>,
    /// Why reading frames or counters failed, if it did.
    pub read_error: Option<String>,
}

impl Health {
    /// Whether every frame was seen and kept.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        *self == Self { captured: self.captured, ..Self::default() }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { captured, dropped, missing, truncated, evicted, file_error, read_error } = self;
        write!(
            f,
            "{captured} frames captured, {dropped} dropped by the kernel, {missing} counted by the ports only, \
             {truncated} truncated, {evicted} not kept in memory"
        )?;
        file_error.iter().try_for_each(|e| write!(f, ", file: {e}"))?;
        read_error.iter().try_for_each(|e| write!(f, ", reading: {e}"))
    }
}

/// A running capture. Every answer first waits for the frames already sent, and is refused when frames were
/// lost. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    recorder: SharedRecorder,
    source: Source,
}

enum Source {
    Bridge(socket::Reader),
    /// Waits until the switch has read every frame sent before; `false` when it cannot tell.
    Wire(Box<dyn Fn() -> bool + Send + Sync>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(reader) => reader.fmt(f),
            Self::Wire(_) => f.write_str("Wire"),
        }
    }
}

impl Capture {
    pub(crate) fn of_bridge(
        namespace: &Namespace,
        devices: DeviceMap,
        options: CaptureOptions,
    ) -> Result<Self, LabError> {
        let buffer = options.buffer;
        let recorder = Recorder::shared(options)?;
        let reader = socket::Reader::start(namespace, devices, Arc::clone(&recorder), buffer)?;
        Ok(Self { recorder, source: Source::Bridge(reader) })
    }

    pub(crate) fn of_wire(recorder: SharedRecorder, sync: Box<dyn Fn() -> bool + Send + Sync>) -> Self {
        Self { recorder, source: Source::Wire(sync) }
    }

    /// Waits until every frame counted by the ports is recorded, or is known to be lost.
    pub fn sync(&self) -> Health {
        let missing = match &self.source {
            Source::Bridge(reader) => reader.sync(&self.recorder, SYNC_DEADLINE).map_err(|e| e.to_string()),
            Source::Wire(sync) if sync() => Ok(0),
            Source::Wire(_) => Err(format!("the switch did not keep up for {SYNC_DEADLINE:?}")),
        };
        let mut health = recorder::lock(&self.recorder).health();
        match missing {
            Ok(missing) => health.missing = missing.saturating_sub(health.dropped),
            Err(e) => health.read_error = Some(e),
        }
        health
    }

    fn complete(&self) -> Result<Health, LabError> {
        let health = self.sync();
        if health.is_complete() { Ok(health) } else { Err(LabError::Lossy(health)) }
    }

    /// Every frame in memory, oldest first.
    pub fn frames(&self) -> Result<Vec<Frame>, LabError> {
        self.complete()?;
        Ok(recorder::lock(&self.recorder).frames().to_vec())
    }

    /// [`Capture::frames`], which are forgotten: what comes meanwhile is in the next ones.
    pub fn take(&self) -> Result<Vec<Frame>, LabError> {
        self.complete()?;
        Ok(recorder::lock(&self.recorder).take_frames())
    }

    /// [`find`] in the frames in memory.
    pub fn find(&self, needle: &[u8]) -> Result<Vec<Hit>, LabError> {
        self.complete()?;
        Ok(find(recorder::lock(&self.recorder).frames(), needle))
    }

    /// What the live search for [`CaptureOptions::needles`] found.
    pub fn hits(&self) -> Result<Vec<Hit>, LabError> {
        self.complete()?;
        Ok(recorder::lock(&self.recorder).hits().to_vec())
    }

    /// Checks every frame in memory against `policy`; the error shows the first that is not allowed.
    pub fn assert_only(&self, policy: &Policy) -> Result<u64, LabError> {
        let health = self.complete()?;
        let recorder = recorder::lock(&self.recorder);
        let bad: Vec<_> = recorder.frames().iter().filter(|f| !policy.allows(&f.data)).collect();
        judge(&bad, policy)?;
        Ok(health.captured)
    }

    /// The verdict of the live check against [`CaptureOptions::policy`]: frames seen, or the offenders.
    pub fn verdict(&self) -> Result<u64, LabError> {
        let health = self.complete()?;
        let recorder = recorder::lock(&self.recorder);
        if let Some(policy) = recorder.policy() {
            judge(&recorder.offenders().iter().collect::<Vec<_>>(), policy)?;
        }
        Ok(health.captured)
    }

    /// [`addresses_inside`] of the frames in memory.
    pub fn addresses_inside(&self, prefixes: &[IpNet]) -> Result<Vec<(Frame, Vec<Sighting>)>, LabError> {
        self.complete()?;
        let recorder = recorder::lock(&self.recorder);
        let seen = addresses_inside(recorder.frames(), prefixes);
        Ok(seen.into_iter().map(|(frame, sightings)| (frame.clone(), sightings)).collect())
    }

    /// Forgets the frames, hits and offenders so far; losses are not forgotten.
    pub fn clear(&self) {
        self.sync();
        recorder::lock(&self.recorder).clear();
    }

    /// Ends the capture, writes the file out and returns all frames in memory.
    pub fn finish(self) -> Result<Vec<Frame>, LabError> {
        let health = self.sync();
        let mut recorder = recorder::lock(&self.recorder);
        recorder.close_file();
        let health = Health { file_error: recorder.health().file_error, ..health };
        if health.is_complete() { Ok(recorder.take_frames()) } else { Err(LabError::Lossy(health)) }
    }
}

/// Every place in `frames` where `needle` is. A needle cut in two by a segment boundary is not found: use short ones and
/// several of them.
pub fn find(frames: &[Frame], needle: &[u8]) -> Vec<Hit> {
    let finder = Finder::new(needle);
    let in_frame = |frame: &Frame| {
        let offsets: Vec<usize> = finder.find_iter(&frame.data).collect();
        let frame = frame.clone();
        offsets.into_iter().map(move |offset| Hit { frame: frame.clone(), offset })
    };
    frames.iter().flat_map(in_frame).collect()
}

/// Each of `frames` that shows an address inside `prefixes` in clear, with where it shows it.
pub fn addresses_inside<'f>(frames: &'f [Frame], prefixes: &[IpNet]) -> Vec<(&'f Frame, Vec<Sighting>)> {
    let seen = frames.iter().map(|frame| (frame, classify::sightings(&frame.data, prefixes)));
    seen.filter(|(_, sightings)| !sightings.is_empty()).collect()
}

fn judge(bad: &[&Frame], policy: &Policy) -> Result<(), LabError> {
    let Some(first) = bad.first() else { return Ok(()) };
    let what = policy.classify(&first.data);
    let first = format!("from {}: {what} ({})", first.port, classify::summary(&first.data));
    Err(LabError::NotAllowed { count: bad.len(), first })
}
