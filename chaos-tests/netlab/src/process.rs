//! Processes inside a namespace: own process group, output kept, always reaped.

use crate::error::{Context, LabError};
use crate::labdir::LabDir;
use crate::wait::{NotObserved, eventually};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;

/// Where the output of a process goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Nowhere.
    Null,
    /// Both streams appended to this file of the host, seen from the caller's namespace.
    File(PathBuf),
    /// Both streams kept as lines, to be read with [`Process::lines`].
    Lines,
    /// To the laboratory's own output.
    Inherit,
}

/// As [`Output`], with its file open.
#[derive(Debug)]
pub(crate) enum OpenOutput {
    Null,
    Files(File, File),
    Lines,
    Inherit,
}

impl Output {
    pub(crate) fn open(self) -> Result<OpenOutput, LabError> {
        Ok(match self {
            Self::Null => OpenOutput::Null,
            Self::Lines => OpenOutput::Lines,
            Self::Inherit => OpenOutput::Inherit,
            Self::File(path) => {
                let file = File::options().create(true).append(true).open(&path);
                let file = file.context("open the log", path.display())?;
                let second = file.try_clone().context("duplicate the log", path.display())?;
                OpenOutput::Files(file, second)
            }
        })
    }
}

/// A finished command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    /// Standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A running process. Dropping it kills its process group and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    pidfd: OwnedFd,
    pid: Pid,
    command: String,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// Longest line kept of a process's output; the rest of it becomes the next line.
const LINE_LIMIT: u64 = 64 * 1024;

impl Process {
    /// Starts the command on the calling thread, whose namespaces it inherits.
    pub(crate) fn spawn(
        mut command: Command,
        output: OpenOutput,
        lab: Option<&LabDir>,
    ) -> Result<Self, LabError> {
        let label = describe(&command);
        command.stdin(Stdio::null()).process_group(0);
        match output {
            OpenOutput::Null => command.stdout(Stdio::null()).stderr(Stdio::null()),
            OpenOutput::Files(out, err) => command.stdout(out).stderr(err),
            OpenOutput::Lines => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
            OpenOutput::Inherit => command.stdout(Stdio::inherit()).stderr(Stdio::inherit()),
        };
        let mut child = start(&mut command, &label, lab)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            readers.push(collect_lines(out, &lines));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(collect_lines(err, &lines));
        }
        let pid = Pid::from_child(&child);
        // The child is not reaped yet, so the number is still its own.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(e) => {
                end(&mut child);
                return Err(e).context("open a pidfd of", label);
            }
        };
        Ok(Self { child: Mutex::new(child), pidfd, pid, command: label, lines, readers })
    }

    /// The process id, which is also the process group's.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        pidfd_send_signal(&self.pidfd, signal).context("signal", &self.command)
    }

    /// Sends a signal to the process and its children that did not leave the group.
    pub fn signal_group(&self, signal: Signal) -> Result<(), LabError> {
        kill_process_group(self.pid, signal).context("signal the process group of", &self.command)
    }

    /// How it ended, or `None` while it runs.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, LabError> {
        let mut child = self.child.lock().expect("no panic under this lock");
        child.try_wait().context("wait for", &self.command)
    }

    /// Waits for the end. An error after the deadline; the process goes on then.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus, LabError> {
        if !readable(&self.pidfd, deadline).context("wait for", &self.command)? {
            let what = format!("the end of {}", self.command);
            let last = String::from("it is running");
            return Err(NotObserved { what, deadline, probes: 1, last }.into());
        }
        let mut child = self.child.lock().expect("no panic under this lock");
        child.wait().context("wait for", &self.command)
    }

    /// Asks the process to end (SIGTERM), and kills its group when it has not after `grace`.
    pub fn stop(&self, grace: Duration) -> Result<ExitStatus, LabError> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        match self.wait(grace) {
            Err(LabError::NotObserved(_)) => self.kill(),
            other => other,
        }
    }

    /// Kills the process group (SIGKILL) and reaps the process.
    pub fn kill(&self) -> Result<ExitStatus, LabError> {
        let mut child = self.child.lock().expect("no panic under this lock");
        if let Some(status) = child.try_wait().context("wait for", &self.command)? {
            return Ok(status);
        }
        // The process is not reaped, so the group's number is still its own.
        kill_process_group(self.pid, Signal::KILL).context("kill the process group of", &self.command)?;
        child.wait().context("wait for", &self.command)
    }

    /// The lines written so far, for [`Output::Lines`].
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic under this lock").clone()
    }

    /// Waits for a line for which `matches` holds, for [`Output::Lines`].
    pub fn wait_for_line(
        &self,
        deadline: Duration,
        what: &str,
        matches: impl Fn(&str) -> bool,
    ) -> Result<String, LabError> {
        let found = eventually(deadline, &format!("{what} in the output of {}", self.command), || {
            let lines = self.lines();
            let seen = lines.iter().find(|l| matches(l)).cloned();
            seen.ok_or_else(|| format!("{} lines, the last: {:?}", lines.len(), lines.last()))
        })?;
        Ok(found)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        end(child);
        // Readers end with the last holder of the pipes. A grandchild outside the group may be one, so they
        // are not joined; they hold nothing but memory.
        self.readers.clear();
    }
}

/// Kills the group and reaps, unless that is done.
pub(crate) fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

/// Runs a command on the calling thread to its end, see [`crate::Namespace::exec`].
pub(crate) fn exec(
    mut command: Command,
    input: Vec<u8>,
    deadline: Duration,
    lab: Option<&LabDir>,
) -> Result<ExecOutput, LabError> {
    let label = describe(&command);
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = start(&mut command, &label, lab)?;
    let pid = Pid::from_child(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(mut stdin) = stdin {
        // A child that does not read its input ends with EPIPE or is killed at the deadline.
        thread::spawn(move || stdin.write_all(&input));
    }
    let out = stdout.map(collect_bytes);
    let err = stderr.map(collect_bytes);
    let ended = pidfd_open(pid, PidfdFlags::empty())
        .map_err(std::io::Error::from)
        .and_then(|fd| readable(&fd, deadline));
    if !matches!(ended, Ok(true)) {
        end(&mut child);
        ended.context("wait for", &label)?;
        let text = |c: Option<Collector>| c.map(Collector::now).unwrap_or_default();
        return Err(LabError::CommandTimeout {
            command: label,
            after: deadline,
            stdout: text(out),
            stderr: text(err),
        });
    }
    let status = child.wait().context("wait for", &label)?;
    let rest = deadline.saturating_sub(began.elapsed()).max(Duration::from_millis(100));
    let bytes = |c: Option<Collector>| c.map(|c| c.finish(rest)).unwrap_or_default();
    Ok(ExecOutput { status, stdout: bytes(out), stderr: bytes(err) })
}

fn start(command: &mut Command, label: &str, lab: Option<&LabDir>) -> Result<Child, LabError> {
    if let Some(lab) = lab {
        let (key, value) = lab.mark();
        command.env(key, value);
    }
    let mut start = || command.spawn().context("start", label);
    match lab {
        Some(lab) => lab.start_process(start),
        None => start(),
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn readable(fd: &OwnedFd, deadline: Duration) -> std::io::Result<bool> {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = rustix::event::Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn collect_lines(stream: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(stream.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            lines.lock().expect("no panic under this lock").push(text);
            line.clear();
        }
    })
}

/// Reads a stream to its end on a thread, so that a full pipe does not block the writer.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    done: std::sync::mpsc::Receiver<()>,
}

fn collect_bytes(mut stream: impl Read + Send + 'static) -> Collector {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let (tx, done) = std::sync::mpsc::channel();
    let sink = Arc::clone(&bytes);
    thread::spawn(move || {
        let _signal = tx;
        let mut chunk = [0_u8; 8192];
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            sink.lock().expect("no panic under this lock").extend_from_slice(&chunk[..n]);
        }
    });
    Collector { bytes, done }
}

impl Collector {
    /// Everything until the end of the stream; a daemon left behind may keep it open, hence the bound.
    fn finish(self, bound: Duration) -> Vec<u8> {
        let _ = self.done.recv_timeout(bound);
        std::mem::take(&mut *self.bytes.lock().expect("no panic under this lock"))
    }

    fn now(self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic under this lock")).into_owned()
    }
}
