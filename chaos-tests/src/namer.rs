//! A server that says who it is, and remembers what came.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use netlab::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;

/// Something that came to a [`Namer`].
#[derive(Clone, Debug)]
pub struct Heard {
    /// Who sent it, as the server sees it.
    pub from: SocketAddr,
    /// A datagram's payload; none: a connection was opened.
    pub payload: Option<Vec<u8>>,
}

/// Answers on one port of all its addresses, over TCP and UDP. A connection is greeted with the name and a line feed, and
/// echoed from then on; a datagram is answered with the name, a space and what it held.
#[derive(Debug)]
pub struct Namer {
    /// Its port.
    pub port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Log = Arc<Mutex<Vec<Heard>>>;

impl Namer {
    /// Serves until dropped.
    ///
    /// # Errors
    /// The port is taken.
    pub fn new(namespace: &Namespace, name: &str, ips: &[IpAddr], port: u16) -> Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, bound) = sync_channel(1);
        let heard: Log = Arc::default();
        let (log, name, ips) = (Arc::clone(&heard), name.to_owned(), ips.to_vec());
        let label = format!("{name} on port {port} of {ips:?}");
        let thread = namespace.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            // The receiver waits below; it cannot be gone.
            let result = runtime.and_then(|runtime| {
                runtime.block_on(async {
                    for ip in ips {
                        serve(SocketAddr::new(ip, port), &name, &log).await?;
                    }
                    let _ = ready.send(Ok(()));
                    drop(stopped.await);
                    Ok(())
                })
            });
            if let Err(error) = result {
                let _ = ready.send(Err(error));
            }
        });
        bound.recv().context("a server's thread ended")?.with_context(|| label)?;
        Ok(Self { port, heard, stop: Some(stop), thread: Some(thread) })
    }

    /// What came so far, oldest first.
    ///
    /// # Panics
    /// Its server has panicked.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panic under this lock").clone()
    }

    /// How many datagrams and connections came so far.
    ///
    /// # Panics
    /// Its server has panicked.
    pub fn count(&self) -> usize {
        self.heard.lock().expect("no panic under this lock").len()
    }

    /// Forgets what came so far.
    ///
    /// # Panics
    /// Its server has panicked.
    pub fn forget(&self) {
        self.heard.lock().expect("no panic under this lock").clear();
    }
}

impl Drop for Namer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(port = self.port, "a server panicked");
        }
    }
}

fn remember(log: &Log, from: SocketAddr, payload: Option<&[u8]>) {
    let heard = Heard { from, payload: payload.map(<[u8]>::to_vec) };
    log.lock().expect("no panic under this lock").push(heard);
}

async fn serve(at: SocketAddr, name: &str, log: &Log) -> io::Result<()> {
    let listener = TcpListener::bind(at).await?;
    let socket = UdpSocket::bind(at).await?;
    let (greeting, connections) = (format!("{name}\n"), Arc::clone(log));
    tokio::spawn(async move {
        loop {
            // A failed accept concerns one connection.
            if let Ok((stream, from)) = listener.accept().await {
                remember(&connections, from, None);
                tokio::spawn(greet(stream, greeting.clone()));
            }
        }
    });
    let (name, datagrams) = (format!("{name} "), Arc::clone(log));
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            // Errors are those of earlier answers that came back as ICMP.
            if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                remember(&datagrams, from, Some(&buffer[..length]));
                drop(socket.send_to(&[name.as_bytes(), &buffer[..length]].concat(), from).await);
            }
        }
    });
    Ok(())
}

async fn greet(mut stream: TcpStream, greeting: String) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting.as_bytes()).await?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
