//! One question to the node's agent, with deadlines on every step.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::cni::{self, FrameError, Outcome, Request, Response, Verb};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

/// The agent accepts at once; a backlog that stays full means that it hangs.
const CONNECT: Duration = Duration::from_secs(5);
/// ADD waits for the pod to be known and its address to be announced. The kubelet's own limit is two minutes.
const ANSWER_ADD: Duration = Duration::from_secs(60);
/// STATUS is asked every few seconds and holds up the runtime's own status, so it must not wait long.
const ANSWER_STATUS: Duration = Duration::from_secs(10);
/// DEL, CHECK and GC touch only what is there.
const ANSWER: Duration = Duration::from_secs(30);

/// Where the agent is and what to do when it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// Its socket.
    pub socket: PathBuf,
    /// Directory of the notes for DELs that it could not take.
    pub pending_deletes: PathBuf,
    /// Overrides the time that an answer may take, for every verb.
    pub timeout: Option<Duration>,
}

/// Why the agent's answer is not there.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No socket, or nobody behind it.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// Nobody accepts.
    #[error("connection was not accepted within {} s", .after.as_secs())]
    Backlog {
        /// The limit.
        after: Duration,
    },
    /// No complete answer in time.
    #[error("no complete answer within {} s", .after.as_secs())]
    Silent {
        /// The limit.
        after: Duration,
    },
    /// The connection ended before the answer did.
    #[error("connection closed before the answer was complete")]
    Closed,
    /// The connection failed.
    #[error("connection failed: {0}")]
    Stream(#[source] io::Error),
    /// The request does not fit into a frame.
    #[error("the request of {0} bytes does not fit into a frame of {limit} bytes", limit = cni::MAX_FRAME)]
    RequestTooLong(u64),
    /// The answer makes no sense.
    #[error("answer cannot be read: {0}")]
    Garbage(#[source] FrameError),
    /// The answer is of another version.
    #[error("agent speaks version {theirs} of the plugin's protocol, this plugin version {ours}")]
    Version {
        /// Version of the answer.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The answer belongs to another verb.
    #[error("answer does not fit the question {verb}")]
    Unexpected {
        /// The verb asked.
        verb: &'static str,
    },
}

impl AgentError {
    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Connect(_) => {
                "the agent is not running on this node; check its pod in namespace hawser-system and its log"
            }
            Self::Backlog { .. } | Self::Silent { .. } | Self::Closed | Self::Stream(_) => {
                "the agent hangs or restarts; check its log and its connection to the Kubernetes API"
            }
            Self::RequestTooLong(_) => "shorten the network configuration",
            Self::Garbage(_) | Self::Version { .. } | Self::Unexpected { .. } => {
                "plugin and agent are of different releases; the upgrade is under way or hawser-cni install is due"
            }
        }
    }
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] when the time is over, however slowly bytes arrive.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn remaining(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A blocking socket whose time is over says `EAGAIN`.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.remaining()?))?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(socket: &Path) -> Result<UnixStream, AgentError> {
    let failed = |error: Errno| AgentError::Connect(error.into());
    let address = SocketAddrUnix::new(socket).map_err(failed)?;
    let stream =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(failed)?;
    set_socket_timeout(&stream, Timeout::Send, Some(CONNECT)).map_err(failed)?;
    match rustix::io::retry_on_intr(|| connect(&stream, &address)) {
        Ok(()) => Ok(UnixStream::from(stream)),
        Err(Errno::AGAIN) => Err(AgentError::Backlog { after: CONNECT }),
        Err(error) => Err(failed(error)),
    }
}

/// Sends the frame, the descriptor with its first byte.
fn send(timed: &mut Timed<'_>, frame: &[u8], netns: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(netns) = netns else { return timed.write_all(frame) };
    let descriptors = [netns];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    timed.stream.set_write_timeout(Some(timed.remaining()?))?;
    let slices = [IoSlice::new(frame)];
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(timed.stream.as_fd(), &slices, &mut ancillary, SendFlags::NOSIGNAL)
    });
    let sent = sent.map_err(|error| timed_out(error.into()))?;
    timed.write_all(&frame[sent..])
}

fn receive(timed: &mut Timed<'_>) -> Result<Response, FrameError> {
    let mut header = [0; 4];
    timed.read_exact(&mut header)?;
    let mut body = vec![0; cni::body_length(header)?];
    timed.read_exact(&mut body)?;
    let v = cni::version(&body)?;
    if v == cni::VERSION {
        return cni::decode(&body);
    }
    // A refusal reads the same in every version; anything else of another version is not for us to interpret.
    let refusal = cni::decode::<Response>(&body).ok().filter(|r| matches!(r.outcome, Outcome::Failed(_)));
    Ok(refusal.unwrap_or(Response { v, outcome: Outcome::Done }))
}

/// Name of a verb for messages.
fn name(verb: &Verb) -> &'static str {
    match verb {
        Verb::Add(_) => "ADD",
        Verb::Del(_) => "DEL",
        Verb::Check(_) => "CHECK",
        Verb::Status => "STATUS",
        Verb::Gc(_) => "GC",
    }
}

/// Asks the agent behind `options.socket` and waits for its answer.
///
/// # Errors
/// Everything that keeps a complete, fitting answer from us. A refusal is an answer: [`Outcome::Failed`].
pub fn ask(options: &AgentOptions, verb: Verb, netns: Option<BorrowedFd<'_>>) -> Result<Outcome, AgentError> {
    let limit = options.timeout.unwrap_or(match verb {
        Verb::Add(_) => ANSWER_ADD,
        Verb::Status => ANSWER_STATUS,
        Verb::Del(_) | Verb::Check(_) | Verb::Gc(_) => ANSWER,
    });
    let name = name(&verb);
    let wants_attachment = matches!(verb, Verb::Add(_));
    let frame = cni::encode(&Request { v: cni::VERSION, verb }).map_err(|error| match error {
        FrameError::TooLong(length) => AgentError::RequestTooLong(length),
        other @ (FrameError::Io(_) | FrameError::Json(_)) => AgentError::Garbage(other),
    })?;
    let stream = open(&options.socket)?;
    let mut timed = Timed { stream: &stream, until: Instant::now() + limit };
    let closed = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    let fail = |error: io::Error| {
        if error.kind() == io::ErrorKind::TimedOut {
            AgentError::Silent { after: limit }
        } else if closed.contains(&error.kind()) {
            AgentError::Closed
        } else {
            AgentError::Stream(error)
        }
    };
    let sent = send(&mut timed, &frame, netns);
    // An agent that refuses early may answer and close before it has read everything.
    if let Err(error) = sent
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(fail(error));
    }
    let response = receive(&mut timed).map_err(|error| match error {
        FrameError::Io(error) => fail(error),
        other @ (FrameError::TooLong(_) | FrameError::Json(_)) => AgentError::Garbage(other),
    })?;
    match response.outcome {
        Outcome::Failed(failure) => Ok(Outcome::Failed(failure)),
        _ if response.v != cni::VERSION => {
            Err(AgentError::Version { theirs: response.v, ours: cni::VERSION })
        }
        Outcome::Attached(attached) if wants_attachment => Ok(Outcome::Attached(attached)),
        Outcome::Done if !wants_attachment => Ok(Outcome::Done),
        Outcome::Attached(_) | Outcome::Done => Err(AgentError::Unexpected { verb: name }),
    }
}
