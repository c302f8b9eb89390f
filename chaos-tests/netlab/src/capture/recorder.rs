//! What happens to a frame once it is read: memory, file, live searches. No I/O but the file's.

use super::pcapng::Writer;
use super::{CaptureOptions, Frame, Health, Hit};
use crate::classify::Policy;
use crate::error::{Context, LabError};
use memchr::memmem::Finder;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) type SharedRecorder = Arc<Mutex<Recorder>>;

/// Hits and offenders kept of the live searches: the first ones tell the story.
const LIVE_LIMIT: usize = 1000;

pub(crate) fn lock(recorder: &SharedRecorder) -> MutexGuard<'_, Recorder> {
    recorder.lock().expect("no panic under this lock")
}

#[derive(Debug)]
pub(crate) struct Recorder {
    memory: usize,
    used: usize,
    frames: Vec<Frame>,
    finders: Vec<Finder<'static>>,
    hits: Vec<Hit>,
    policy: Option<Policy>,
    offenders: Vec<Frame>,
    per_device: BTreeMap<u32, u64>,
    file: Option<Writer<BufWriter<File>>>,
    health: Health,
}

impl Recorder {
    pub(crate) fn shared(options: CaptureOptions) -> Result<SharedRecorder, LabError> {
        let CaptureOptions { file, memory, needles, policy, buffer: _ } = options;
        let file = file
            .map(|path| {
                let out = File::create(&path).context("create the capture file", path.display())?;
                Writer::new(BufWriter::new(out)).context("write the capture file", path.display())
            })
            .transpose()?;
        let finders = needles.iter().map(|n| Finder::new(n).into_owned()).collect();
        Ok(Arc::new(Mutex::new(Self {
            memory,
            used: 0,
            frames: Vec::new(),
            finders,
            hits: Vec::new(),
            policy,
            offenders: Vec::new(),
            per_device: BTreeMap::new(),
            file,
            health: Health::default(),
        })))
    }

    /// Records a frame that came in through a device of the switch, by its index.
    pub(crate) fn offer(&mut self, frame: Frame, device: u32) {
        self.health.captured += 1;
        *self.per_device.entry(device).or_default() += 1;
        if let Some(writer) = &mut self.file
            && let Err(e) = writer.frame(&frame)
        {
            self.health.file_error = Some(e.to_string());
            self.file = None;
        }
        for finder in &self.finders {
            let found = finder.find_iter(&frame.data).map(|offset| Hit { frame: frame.clone(), offset });
            self.hits.extend(found.take(LIVE_LIMIT.saturating_sub(self.hits.len())));
        }
        if self.offenders.len() < LIVE_LIMIT && self.policy.as_ref().is_some_and(|p| !p.allows(&frame.data)) {
            self.offenders.push(frame.clone());
        }
        if self.memory == 0 {
            return;
        }
        if self.used + frame.data.len() > self.memory {
            self.health.evicted += 1;
            return;
        }
        self.used += frame.data.len();
        self.frames.push(frame);
    }

    pub(crate) fn truncated(&mut self) {
        self.health.truncated += 1;
    }

    /// The kernel's drop counter of the socket, which only grows.
    pub(crate) fn dropped(&mut self, total: u64) {
        self.health.dropped = self.health.dropped.max(total);
    }

    pub(crate) fn failed(&mut self, error: String) {
        self.health.read_error.get_or_insert(error);
    }

    pub(crate) fn captured_at(&self, device: u32) -> u64 {
        self.per_device.get(&device).copied().unwrap_or(0)
    }

    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    pub(super) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    pub(super) fn take_frames(&mut self) -> Vec<Frame> {
        self.used = 0;
        std::mem::take(&mut self.frames)
    }

    pub(super) fn hits(&self) -> &[Hit] {
        &self.hits
    }

    pub(super) fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    pub(super) fn offenders(&self) -> &[Frame] {
        &self.offenders
    }

    pub(super) fn clear(&mut self) {
        self.take_frames();
        self.hits.clear();
        self.offenders.clear();
    }

    pub(super) fn close_file(&mut self) {
        if let Some(writer) = self.file.take()
            && let Err(e) = writer.finish()
        {
            self.health.file_error = Some(e.to_string());
        }
    }
}
