//! Echo over TCP and UDP.

use super::{Canary, within};
use crate::error::{Context, LabError};
use crate::namespace::{Namespace, runtime};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::oneshot;

/// A server inside a namespace that sends back what it gets, until dropped.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Listens for TCP connections; port 0 takes a free one.
    pub fn tcp(namespace: &Namespace, listen: SocketAddr) -> Result<Self, LabError> {
        let bind = async move || {
            let listener = TcpListener::bind(listen).await?;
            Ok((listener.local_addr()?, listener))
        };
        Self::start(namespace, listen, bind, |listener| async move {
            // A failed accept concerns one connection.
            loop {
                if let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let (mut from, mut to) = stream.split();
                        // The client sees a failure by itself.
                        let _ = tokio::io::copy(&mut from, &mut to).await;
                    });
                }
            }
        })
    }

    /// Listens for datagrams; port 0 takes a free one. Answers leave from the address the request came to
    /// only if `listen` is not unspecified.
    pub fn udp(namespace: &Namespace, listen: SocketAddr) -> Result<Self, LabError> {
        let bind = async move || {
            let socket = UdpSocket::bind(listen).await?;
            Ok((socket.local_addr()?, socket))
        };
        Self::start(namespace, listen, bind, |socket| async move {
            let mut buffer = vec![0_u8; 65_536];
            loop {
                // Errors are those of earlier answers that came back as ICMP.
                if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(&buffer[..length], from).await;
                }
            }
        })
    }

    fn start<S: 'static, F: Future<Output = ()>>(
        namespace: &Namespace,
        listen: SocketAddr,
        bind: impl AsyncFnOnce() -> io::Result<(SocketAddr, S)> + Send + 'static,
        serve: impl FnOnce(S) -> F + Send + 'static,
    ) -> Result<Self, LabError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, bound) = sync_channel(1);
        let name = namespace.name().to_owned();
        let thread = namespace.thread(move || {
            let rt = match runtime(&name) {
                Ok(rt) => rt,
                Err(e) => {
                    let _ = ready.send(Err(e));
                    return;
                }
            };
            rt.block_on(async move {
                match bind().await.context("listen on", listen) {
                    Ok((address, socket)) => {
                        // The receiver waits below; it cannot be gone.
                        let _ = ready.send(Ok(address));
                        tokio::select! { () = serve(socket) => {}, _ = stopped => {} }
                    }
                    Err(e) => _ = ready.send(Err(e)),
                }
            });
        });
        let address = bound.recv().expect("invariant: the thread sends before it ends")?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(address = %self.address, "an echo server panicked");
        }
    }
}

/// Connects to a TCP echo server, sends the payload, checks the echo. Returns how long that took.
pub fn tcp(namespace: &Namespace, to: SocketAddr, canary: &Canary) -> Result<Duration, LabError> {
    let owned = canary.clone();
    let answer = namespace.block_on(async move {
        let attempt = async {
            let began = Instant::now();
            let fail = |e: io::Error| e.to_string();
            let socket =
                if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(fail)?;
            socket.bind(owned.local(to.ip())).map_err(fail)?;
            let mut stream = socket.connect(to).await.map_err(fail)?;
            let (mut from, mut into) = stream.split();
            let mut echo = vec![0; owned.payload.len()];
            // At once: a payload larger than all buffers would block otherwise.
            let (sent, got) = tokio::join!(into.write_all(&owned.payload), from.read_exact(&mut echo));
            sent.map_err(fail)?;
            got.map_err(fail)?;
            if echo == owned.payload {
                Ok(began.elapsed())
            } else {
                Err("the echo differs from what was sent".into())
            }
        };
        within(owned.deadline * owned.tries, attempt).await
    });
    answer.map_err(|what| canary.failure("TCP echo", to, what))
}

/// Sends the payload to a UDP echo server until an echo comes or the tries are used up. Returns how long the
/// successful try took.
pub fn udp(namespace: &Namespace, to: SocketAddr, canary: &Canary) -> Result<Duration, LabError> {
    let owned = canary.clone();
    let answer = namespace.block_on(async move {
        let fail = |e: io::Error| e.to_string();
        let socket = UdpSocket::bind(owned.local(to.ip())).await.map_err(fail)?;
        socket.connect(to).await.map_err(fail)?;
        let mut last = String::from("no try was allowed");
        for number in 1..=owned.tries {
            let attempt = async {
                let began = Instant::now();
                socket.send(&owned.payload).await.map_err(fail)?;
                let mut echo = vec![0; 65_536];
                let length = socket.recv(&mut echo).await.map_err(fail)?;
                let same = echo[..length] == owned.payload;
                if same { Ok(began.elapsed()) } else { Err("the echo differs from what was sent".to_owned()) }
            };
            match within(owned.deadline, attempt).await {
                Ok(time) => return Ok(time),
                Err(what) => last = format!("{what} (try {number} of {})", owned.tries),
            }
        }
        Err(last)
    });
    answer.map_err(|what| canary.failure("UDP echo", to, what))
}
