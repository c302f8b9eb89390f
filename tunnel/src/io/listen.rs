//! Unix sockets with a path: one owner at a time, readable by root only.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A process answers on the path.
    #[error("socket {path}: another live process serves it: stop that process first")]
    Live {
        /// The path.
        path: PathBuf,
    },
    /// The path is something else than a socket.
    #[error("socket {path}: the path exists and is not a socket: remove it")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Any other failure.
    #[error("socket {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A listening socket that removes its path when dropped, unless the path is no longer its own.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    path: PathBuf,
    id: (u64, u64),
}

impl Listener {
    /// Listens on a path with mode 0600. The socket of a dead process is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        let fail = |source: io::Error| ListenError::Io { path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if is_live(path).map_err(fail)? => {
                return Err(ListenError::Live { path: path.to_owned() });
            }
            Ok(_) => std::fs::remove_file(path).map_err(fail)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(e)),
        }
        let socket = bind_private(path).map_err(fail)?;
        let id = identity(path).map_err(fail)?;
        Ok(Self { socket, path: path.to_owned(), id })
    }

    /// Whether the path still leads to this socket.
    pub(super) fn is_reachable(&self) -> bool {
        identity(&self.path).is_ok_and(|id| id == self.id)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_reachable()
            && let Err(e) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %e, "socket not removed");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Whether somebody accepts connections on the path; does not wait for one who is slow.
fn is_live(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before bind(2), which creates the path with this mode: nobody else can ever connect.
    fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, BACKLOG)?;
    Ok(fd.into())
}
