//! The CNI plugin's counterpart: a unix socket, one request per connection ([`proto::cni`]).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::cni::{Failure, FrameError, Outcome, Request, Response, VERSION, Verb, code};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

mod attach;
mod capabilities;
mod join;

pub(crate) use attach::{Api, is_pod_veth, now, parse_mac};
pub use attach::{Attacher, Readiness};
pub(crate) use join::attached;

/// A plugin that connects and says nothing is let go after this.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Requests under way at once: more than a kubelet starts (its default is 10 pods a second), little enough to bound memory.
const CONCURRENT: usize = 256;

/// Makes the socket, mode 0600 in a directory of mode 0700. A socket left by a former life is replaced; a live one is
/// another agent, which is an error.
///
/// # Errors
/// The path cannot be used, or another agent answers on it.
pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let what = format!("another agent answers on {}; stop it first", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, what));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves requests for ever.
pub async fn serve(listener: UnixListener, attacher: Arc<Attacher>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONCURRENT));
    loop {
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(err = %error, "Could not accept a CNI request");
                // Out of descriptors, most likely: without a pause this would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let attacher = Arc::clone(&attacher);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &attacher).await {
                tracing::warn!(err = %error, "CNI request came to nothing");
            }
            drop(permit);
        });
    }
}

async fn answer(mut stream: UnixStream, attacher: &Arc<Attacher>) -> Result<(), FrameError> {
    let read = tokio::time::timeout(REQUEST_DEADLINE, read_request(&mut stream)).await;
    let read = read.unwrap_or_else(|_| Err(FrameError::Io(std::io::ErrorKind::TimedOut.into())));
    let outcome = match read {
        Ok((asked, netns)) => {
            // In a task of its own: a plugin that is killed must not cut off work half way.
            let attacher = Arc::clone(attacher);
            let work = tokio::spawn(async move { judge(asked, netns, &attacher).await });
            work.await.unwrap_or_else(|_| {
                Outcome::Failed(Failure::new(
                    code::IO,
                    "mesh-agent failed inside",
                    "see its log; this is a bug",
                ))
            })
        }
        Err(FrameError::Json(error)) => {
            let details =
                "plugin and agent are of different versions; reinstall the plugin with hawser-cni install";
            Outcome::Failed(Failure::new(code::DECODE, format!("request not understood: {error}"), details))
        }
        Err(error) => return Err(error),
    };
    let frame = proto::cni::encode(&Response { v: VERSION, outcome })?;
    stream.write_all(&frame).await?;
    Ok(())
}

/// What came over the socket.
enum Asked {
    /// A request that can be read.
    Request(Box<Request>),
    /// One whose content is not ours to read.
    InAnotherVersion(u16),
}

async fn judge(asked: Asked, netns: Option<OwnedFd>, attacher: &Attacher) -> Outcome {
    let request = match asked {
        Asked::Request(request) => *request,
        Asked::InAnotherVersion(v) => {
            let msg = format!("plugin speaks version {v} of the agent's protocol, the agent {VERSION}");
            let details = "reinstall the plugin with hawser-cni install";
            return Outcome::Failed(Failure::new(code::INCOMPATIBLE, msg, details));
        }
    };
    let begun = Instant::now();
    let (verb, result) = match request.verb {
        Verb::Add(attach) => ("add", attacher.add(attach, netns).await.map(Outcome::Attached)),
        Verb::Del(detach) => ("del", attacher.del(&detach.id).await.map(|()| Outcome::Done)),
        Verb::Check(attach) => ("check", attacher.check(attach, netns).await.map(|()| Outcome::Done)),
        Verb::Status => ("status", attacher.status().map(|()| Outcome::Done)),
        Verb::Gc(gc) => ("gc", attacher.gc(gc).await.map(|()| Outcome::Done)),
    };
    let code = result.as_ref().err().map_or(0, |failure| failure.code);
    attacher.metrics().cni(verb, code, begun.elapsed());
    if let Err(failure) = &result {
        if verb == "status" {
            // Asked every few seconds for as long as it lasts; the reasons are logged where they arise.
            tracing::debug!(verb, code, err = %failure, "CNI request refused");
        } else {
            tracing::warn!(verb, code, err = %failure, "CNI request refused");
        }
    }
    result.unwrap_or_else(Outcome::Failed)
}

/// Reads one frame and the descriptor that came with its first byte.
async fn read_request(stream: &mut UnixStream) -> Result<(Asked, Option<OwnedFd>), FrameError> {
    let mut start = [0_u8; 4096];
    let (count, netns) = stream.async_io(Interest::READABLE, || receive(stream, &mut start)).await?;
    let mut bytes = start[..count].to_vec();
    while bytes.len() < 4 {
        let more = stream.read_buf(&mut bytes).await?;
        if more == 0 {
            return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
    let length = proto::cni::body_length([bytes[0], bytes[1], bytes[2], bytes[3]])?;
    let mut body = bytes.split_off(4);
    if body.len() < length {
        let have = body.len();
        body.resize(length, 0);
        stream.read_exact(&mut body[have..]).await?;
    }
    body.truncate(length);
    let v = proto::cni::version(&body)?;
    if v != VERSION {
        return Ok((Asked::InAnotherVersion(v), netns));
    }
    Ok((Asked::Request(Box::new(proto::cni::decode(&body)?)), netns))
}

fn receive(stream: &UnixStream, buffer: &mut [u8]) -> std::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [std::io::IoSliceMut::new(buffer)];
    let message = rustix::net::recvmsg(stream, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let mut netns = None;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            for descriptor in descriptors {
                netns.get_or_insert(descriptor);
            }
        }
    }
    Ok((message.bytes, netns))
}
