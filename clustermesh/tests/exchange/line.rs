//! Lines between clusters: they can be cut and healed, and be slow.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Bytes that go into a slow line at once.
const CHUNK: usize = 1024;
/// Bytes that a slow line itself holds up: the rest waits where a real one has it wait, at who sends.
const BUFFER: u32 = 16 * 1024;

/// How slow a line is, each way for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    pub(crate) bytes_per_second: u32,
    pub(crate) latency: Duration,
}

/// A line to a server that can be cut and healed. Its address stays.
pub(crate) struct Line {
    pub(crate) address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    whole: watch::Sender<bool>,
    speed: Arc<Mutex<Option<Speed>>>,
    made: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Line {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let (whole, state) = watch::channel(true);
        let (made, speed) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Option<Speed>>>::default());
        let (to, counted, slow) = (Arc::clone(&target), Arc::clone(&made), Arc::clone(&speed));
        let task = tokio::spawn(async move {
            loop {
                let Ok((from, _)) = listener.accept().await else { return };
                let target = *to.lock().unwrap();
                let Some(target) = target.filter(|_| *state.borrow()) else { continue };
                let (mut state, counted, speed) =
                    (state.clone(), Arc::clone(&counted), *slow.lock().unwrap());
                tokio::spawn(async move {
                    let socket = TcpSocket::new_v4().unwrap();
                    if speed.is_some() {
                        socket.set_recv_buffer_size(BUFFER).unwrap();
                    }
                    let Ok(to) = socket.connect(target).await else { return };
                    counted.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        () = join(from, to, speed) => {}
                        _ = state.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { address, target, whole, speed, made, task }
    }

    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = Some(target);
    }

    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
        self.made.store(0, Ordering::SeqCst);
    }

    pub(crate) fn heal(&self) {
        self.whole.send_replace(true);
    }

    /// Connections from now on are so slow.
    pub(crate) fn slow(&self, speed: Speed) {
        *self.speed.lock().unwrap() = Some(speed);
    }

    /// Connections that were made since it was cut last.
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn join(mut one: TcpStream, mut other: TcpStream, speed: Option<Speed>) {
    let Some(speed) = speed else {
        drop(tokio::io::copy_bidirectional(&mut one, &mut other).await);
        return;
    };
    let ((from, to), (back, forth)) = (one.split(), other.split());
    tokio::join!(carry(from, forth, speed), carry(back, to, speed));
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, speed: Speed) {
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let sending = async move {
        let (mut buffer, mut free) = (vec![0; CHUNK], Instant::now());
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let bytes = u32::try_from(length).unwrap();
            free = free.max(Instant::now()) + Duration::from_secs(1) * bytes / speed.bytes_per_second;
            sleep_until(free).await;
            if under_way.send((free + speed.latency, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let receiving = async move {
        while let Some((at, bytes)) = arriving.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    };
    tokio::join!(sending, receiving);
}
