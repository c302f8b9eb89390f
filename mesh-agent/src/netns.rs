//! Work inside another network namespace, on a thread of its own that ends with it.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why work in a namespace did not happen.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The descriptor is not a network namespace, or we may not enter it.
    #[error("Could not enter the network namespace: {0}")]
    Enter(rustix::io::Errno),
    /// No thread or runtime.
    #[error("Could not start a thread for the network namespace: {0}")]
    Start(std::io::Error),
    /// The work panicked.
    #[error("Work in the network namespace ended early")]
    Panicked,
}

/// Runs an async function inside `netns` and waits for it. Sockets that it makes belong to that namespace.
///
/// # Errors
/// See [`NetnsError`].
pub async fn within<T, F, R>(netns: OwnedFd, work: F) -> Result<T, NetnsError>
where
    T: Send + 'static,
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = T>,
{
    let (send, receive) = tokio::sync::oneshot::channel();
    let body = move || {
        let result = enter(&netns).and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(NetnsError::Start)?;
            Ok(runtime.block_on(work()))
        });
        // The asker may have gone; then nobody wants to know.
        drop(send.send(result));
    };
    // A fresh thread, not one of a pool: it could not be trusted to come back to its own namespace.
    std::thread::Builder::new().name("netns".to_owned()).spawn(body).map_err(NetnsError::Start)?;
    receive.await.map_err(|_| NetnsError::Panicked)?
}

fn enter(netns: &OwnedFd) -> Result<(), NetnsError> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).map_err(NetnsError::Enter)
}
