//! The socket on which readers ask for flows: one request line, then lines until they have enough.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proto::flows::{Body, Line, Lost, LostSource, MAX_LINE, Refusal, Request, VERSION};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

use super::Board;

/// A reader that connects and asks nothing is let go after this.
const REQUEST: Duration = Duration::from_secs(5);
/// A reader that takes nothing for this long is let go.
const STUCK: Duration = Duration::from_secs(30);
/// Readers at once.
const READERS: usize = 32;

/// Serves readers for ever.
pub async fn serve(listener: UnixListener, board: Arc<Board>, node: String) {
    let slots = Arc::new(tokio::sync::Semaphore::new(READERS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(err = %error, "Could not accept a reader of flows");
                // Out of descriptors, most likely: without a pause this would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (board, node, slots) = (Arc::clone(&board), node.clone(), Arc::clone(&slots));
        tokio::spawn(async move {
            let permit = slots.try_acquire_owned();
            if let Err(error) = talk(stream, &board, &node, permit.is_ok()).await {
                tracing::debug!(err = %error, "A reader of flows is gone");
            }
            drop(permit);
        });
    }
}

async fn talk(stream: UnixStream, board: &Board, node: &str, room: bool) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let asked = tokio::time::timeout(REQUEST, request(BufReader::new(read))).await;
    let request = match asked.unwrap_or_else(|_| Err("no request came; send one line of JSON".to_owned())) {
        Ok(request) if room => request,
        Ok(_) => {
            let message = format!("{READERS} readers are connected already; end one of them");
            return refuse(&mut write, message).await;
        }
        Err(message) => return refuse(&mut write, message).await,
    };
    let (recent, mut news) = board.read(&request.filter, request.last);
    for line in recent {
        send(&mut write, &line).await?;
    }
    if !request.follow {
        return Ok(());
    }
    loop {
        let line = match news.recv().await {
            Ok(news) => news.line(&request.filter),
            Err(RecvError::Lagged(count)) => Some(lost(node, count)),
            Err(RecvError::Closed) => return Ok(()),
        };
        if let Some(line) = line {
            send(&mut write, &line).await?;
        }
    }
}

/// How many a slow reader misses. What it would have filtered out counts, too: nobody looked at it any more.
fn lost(node: &str, count: u64) -> Line {
    Line::new(Body::Lost(Lost {
        time: Timestamp::now(),
        node_name: node.to_owned(),
        source: LostSource::Reader,
        num_events_lost: count,
    }))
}

async fn request(read: impl AsyncBufReadExt + Unpin) -> Result<Request, String> {
    let mut text = String::new();
    let mut bounded = read.take(MAX_LINE as u64);
    bounded.read_line(&mut text).await.map_err(|error| format!("the request cannot be read: {error}"))?;
    let request: Request =
        serde_json::from_str(&text).map_err(|error| format!("the request cannot be read: {error}"))?;
    if request.v != VERSION {
        return Err(format!(
            "v={}: this agent speaks version {VERSION}; use the hawser of its release",
            request.v
        ));
    }
    Ok(request)
}

async fn refuse(write: &mut (impl AsyncWriteExt + Unpin), message: String) -> std::io::Result<()> {
    send(write, &Line::new(Body::Error(Refusal { message }))).await
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    match tokio::time::timeout(STUCK, write.write_all(&text)).await {
        Ok(result) => result,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// Makes the socket as [`crate::cni::listen`] does.
///
/// # Errors
/// The path cannot be used, or another agent answers on it.
pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    crate::cni::listen(path)
}

#[cfg(test)]
mod tests;
