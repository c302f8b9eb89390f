//! One agent's flow socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use proto::flows::{Body, Line, MAX_LINE, Request, VERSION};

/// An agent that lives takes a request of a few hundred bytes at once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an agent's socket gives nothing. Each names the socket and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error(
        "no socket at {path}: mesh-agent makes it when it starts; run this on a node with an agent, \
         or name the agent's flow socket with --socket PATH"
    )]
    Absent {
        /// The socket.
        path: PathBuf,
    },
    /// A socket without a listener.
    #[error(
        "nobody listens on {path}: mesh-agent is not running; look at its log and start it, \
         or name another agent's flow socket with --socket PATH"
    )]
    Refused {
        /// The socket.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("may not connect to {path}: flows name every pod of the node; run this as root")]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The kernel refused anything else.
    #[error("{doing} {path} failed; look whether mesh-agent is running and try again")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The agent said no.
    #[error("the agent on {path} refuses: {message}")]
    Request {
        /// The socket.
        path: PathBuf,
        /// The agent's words.
        message: String,
    },
    /// Another version of the lines.
    #[error(
        "the agent on {path} writes lines of version {theirs}, this program reads {VERSION}: use the hawser of that agent's release"
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// The agent's version.
        theirs: u64,
    },
    /// Not what `proto::flows` says.
    #[error(
        "{path} wrote a line that is none of the agent's ({source}): {text:?}; is this the flow socket of mesh-agent?"
    )]
    Line {
        /// The socket.
        path: PathBuf,
        /// The beginning of the line.
        text: String,
        /// Where it cannot be read.
        source: serde_json::Error,
    },
    /// A line without an end.
    #[error("{path} wrote {MAX_LINE} bytes without a newline; is this the flow socket of mesh-agent?")]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The connection ended in the middle of a line.
    #[error("{path} closed in the middle of a line: the agent has ended; start again when it is back")]
    Cut {
        /// The socket.
        path: PathBuf,
    },
    /// A follower was left alone.
    #[error("{path} closed: the agent has ended; start again when it is back")]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// No answer.
    #[error("the agent on {path} said nothing for {} s: it hangs; look at its log", after.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long.
        after: Duration,
    },
}

/// A line as it came, with what this program knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Without its newline, with fields that this version does not know.
    pub text: String,
    /// Its time.
    pub time: Timestamp,
    /// What it says. Never [`Body::Error`].
    pub body: Body,
}

/// A connection that has sent its request.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
}

impl Client {
    /// Connects and asks.
    pub fn connect(path: &Path, request: &Request) -> Result<Client, Error> {
        let failed = |doing: &'static str| move |source: io::Error| refusal(path, doing, source);
        let mut stream = UnixStream::connect(path).map_err(failed("connecting to"))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(failed("setting up"))?;
        let mut line = serde_json::to_vec(request).map_err(io::Error::from).map_err(failed("asking"))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(failed("asking"))?;
        stream.set_nonblocking(true).map_err(failed("setting up"))?;
        Ok(Client { path: path.to_owned(), stream, partial: Vec::new() })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads once what has come, whole lines into `into`. False: the agent has closed.
    pub fn read(&mut self, into: &mut Vec<Record>) -> Result<bool, Error> {
        let mut chunk = [0; 16 << 10];
        let size = match self.stream.read(&mut chunk) {
            Ok(0) if self.partial.is_empty() => return Ok(false),
            Ok(0) => return Err(Error::Cut { path: self.path.clone() }),
            Ok(size) => size,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(true);
            }
            Err(source) => return Err(refusal(&self.path, "reading", source)),
        };
        for part in chunk[..size].split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if self.partial.len() > MAX_LINE + 1 {
                return Err(Error::TooLong { path: self.path.clone() });
            }
            if self.partial.ends_with(b"\n") {
                self.partial.pop();
                into.push(record(&self.path, &self.partial)?);
                self.partial.clear();
            }
        }
        Ok(true)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn refusal(path: &Path, doing: &'static str, source: io::Error) -> Error {
    let path = path.to_owned();
    #[allow(clippy::wildcard_enum_match_arm, reason = "errors of the kernel are an open set")]
    match source.kind() {
        io::ErrorKind::NotFound => Error::Absent { path },
        io::ErrorKind::ConnectionRefused => Error::Refused { path },
        io::ErrorKind::PermissionDenied => Error::Forbidden { path },
        _ => Error::Io { doing, path, source },
    }
}

/// Reads one line.
fn record(path: &Path, line: &[u8]) -> Result<Record, Error> {
    let path = || path.to_owned();
    let malformed = |source| Error::Line {
        path: path(),
        text: String::from_utf8_lossy(line).chars().take(120).collect(),
        source,
    };
    // The version first: a line of another one need not have the shape of ours.
    let value: serde_json::Value = serde_json::from_slice(line).map_err(malformed)?;
    if let Some(theirs) = value.get("v").and_then(serde_json::Value::as_u64)
        && theirs != u64::from(VERSION)
    {
        return Err(Error::Version { path: path(), theirs });
    }
    let Line { body, .. } = serde_json::from_value(value).map_err(malformed)?;
    let time = match &body {
        Body::Flow(flow) => flow.time,
        Body::Lost(lost) => lost.time,
        Body::Error(refused) => {
            return Err(Error::Request { path: path(), message: refused.message.clone() });
        }
    };
    // JSON that was read is UTF-8.
    Ok(Record { text: String::from_utf8_lossy(line).into_owned(), time, body })
}

#[cfg(test)]
mod tests;
