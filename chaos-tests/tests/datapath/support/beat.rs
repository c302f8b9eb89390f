//! Small packets at short intervals over an established flow, and when the last of them arrived.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlab::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use super::Ask;

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long a thread that waits for a packet does not look whether it shall end.
const LOOK: Duration = Duration::from_millis(50);
/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Shared {
    begun: Instant,
    /// Nanoseconds after `begun` of the last arrival, and how many there were.
    last: AtomicU64,
    count: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn arrived(&self) {
        let nanos = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Release);
        self.count.fetch_add(1, Ordering::Release);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }
}

/// A flow that beats until dropped. TCP and UDP beat at the server, ICMP where the replies come back to.
#[derive(Debug)]
pub(crate) struct Beat {
    pub(crate) ask: Ask,
    pub(crate) ip: IpAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Beat {
    /// Establishes the flow from `client` to `ip`, which `server` has.
    ///
    /// # Errors
    /// It could not be established.
    pub(crate) fn start(ask: Ask, client: &Namespace, server: &Namespace, ip: IpAddr) -> Result<Self> {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            last: AtomicU64::new(0),
            count: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let threads = match ask {
            Ask::Tcp => tcp(&shared, client, server, ip),
            Ask::Udp => udp(&shared, client, server, ip),
            Ask::Icmp => icmp(&shared, client, ip),
        };
        let threads = threads.with_context(|| format!("{ask:?} from {} to {ip}", client.name()))?;
        Ok(Self { ask, ip, shared, threads })
    }

    /// When the last packet arrived; none: never.
    pub(crate) fn last(&self) -> Option<Instant> {
        let nanos = self.shared.last.load(Ordering::Acquire);
        (nanos > 0).then(|| self.shared.begun + Duration::from_nanos(nanos))
    }

    /// How many packets arrived.
    pub(crate) fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Acquire)
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::warn!(ask = ?self.ask, ip = %self.ip, "a beat panicked");
            }
        }
    }
}

/// Sends until told to stop; errors are what a cut flow has.
fn send_on(
    shared: &Arc<Shared>,
    client: &Namespace,
    mut send: impl FnMut() + Send + 'static,
) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    client.thread(move || {
        while shared.goes_on() {
            send();
            std::thread::sleep(INTERVAL);
        }
    })
}

/// Receives until told to stop; `receive` waits for [`LOOK`] at most.
fn receive_on(
    shared: &Arc<Shared>,
    at: &Namespace,
    mut receive: impl FnMut() -> io::Result<usize> + Send + 'static,
) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    at.thread(move || {
        while shared.goes_on() {
            match receive() {
                Ok(0) => return,
                Ok(_) => shared.arrived(),
                Err(_) => {}
            }
        }
    })
}

fn tcp(
    shared: &Arc<Shared>,
    client: &Namespace,
    server: &Namespace,
    ip: IpAddr,
) -> Result<Vec<JoinHandle<()>>> {
    let listener = server.run(move || TcpListener::bind((ip, 0)))?;
    let to = listener.local_addr()?;
    let mut out = client.run(move || TcpStream::connect_timeout(&to, CONNECT))?;
    let (mut into, _) = listener.accept()?;
    out.set_nodelay(true)?;
    // A writer of a cut connection fills its buffer, and has to end all the same.
    out.set_nonblocking(true)?;
    into.set_read_timeout(Some(LOOK))?;
    let mut buffer = [0; 4096];
    let receiver = receive_on(shared, server, move || into.read(&mut buffer));
    let sender = send_on(shared, client, move || drop(out.write(&[0x55; 16])));
    Ok(vec![sender, receiver])
}

fn udp(
    shared: &Arc<Shared>,
    client: &Namespace,
    server: &Namespace,
    ip: IpAddr,
) -> Result<Vec<JoinHandle<()>>> {
    let into = server.run(move || UdpSocket::bind((ip, 0)))?;
    let to = into.local_addr()?;
    let out = client.run(move || super::ask::datagrams(to))?;
    into.set_read_timeout(Some(LOOK))?;
    let mut buffer = [0; 64];
    let receiver = receive_on(shared, server, move || {
        let (length, from) = into.recv_from(&mut buffer)?;
        // Answered, so that the flow is an established one.
        drop(into.send_to(&buffer[..length], from));
        Ok(length)
    });
    let sender = send_on(shared, client, move || drop(out.send(&[0x55; 16])));
    Ok(vec![sender, receiver])
}

fn icmp(shared: &Arc<Shared>, client: &Namespace, ip: IpAddr) -> Result<Vec<JoinHandle<()>>> {
    client.sysctl("net.ipv4.ping_group_range", "0 2147483647")?;
    let (domain, protocol, kind) = if ip.is_ipv4() {
        (Domain::IPV4, Protocol::ICMPV4, 8)
    } else {
        (Domain::IPV6, Protocol::ICMPV6, 128)
    };
    let socket = client.run(move || -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.connect(&SocketAddr::new(ip, 0).into())?;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(socket)
    })?;
    let mut replies = socket.try_clone()?;
    let mut buffer = [0; 256];
    let receiver = receive_on(shared, client, move || replies.read(&mut buffer));
    let mut sequence = 0_u16;
    let sender = send_on(shared, client, move || {
        sequence = sequence.wrapping_add(1);
        let mut request = vec![kind, 0, 0, 0, 0, 0];
        request.extend(sequence.to_be_bytes());
        request.extend([0x55; 16]);
        drop(socket.send(&request));
    });
    Ok(vec![sender, receiver])
}
