//! What runs in a pod that is asked: echoes, and takes bytes. It answers nobody who does not have the run's token, so it is of no use
//! to strangers, and two of them cannot talk to each other.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::question::{OTHER_PORT, PORT};

/// Bytes of a run's token.
pub const TOKEN: usize = 16;
/// What a client wants of a connection: bytes back.
pub const ECHO: u8 = b'e';
/// What a client wants of a connection: the number of its bytes.
pub const COUNT: u8 = b'c';
/// Connections at the same time; a run has a few from each node.
const CONNECTIONS: usize = 256;
/// A client that says nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(30);
/// Longest datagram.
const DATAGRAM: usize = 2048;

/// Serves both ports until the process ends.
///
/// # Errors
/// A port cannot be had.
pub fn serve(name: &str, token: [u8; TOKEN]) -> io::Result<()> {
    let mut threads = Vec::new();
    for port in [PORT, OTHER_PORT] {
        let (listener, socket) = (bind(port, TcpListener::bind)?, bind(port, UdpSocket::bind)?);
        let who = name.to_owned();
        threads.push(thread::spawn(move || connections(&listener, &who, token)));
        let who = name.to_owned();
        threads.push(thread::spawn(move || datagrams(&socket, &who, &token)));
    }
    for thread in threads {
        // None ends by itself.
        drop(thread.join());
    }
    Ok(())
}

/// On all addresses of both families; where there is no IPv6, of IPv4.
fn bind<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into()))
}

fn connections(listener: &TcpListener, name: &str, token: [u8; TOKEN]) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors or memory: those that are open end by themselves.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (name, open) = (name.to_owned(), Arc::clone(&open));
        thread::spawn(move || {
            // A client that breaks off is the client's business.
            drop(connection(stream, &name, &token));
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn connection(mut stream: TcpStream, name: &str, token: &[u8; TOKEN]) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut head = [0; TOKEN + 1];
    stream.read_exact(&mut head)?;
    if head[..TOKEN] != *token {
        return Err(ErrorKind::PermissionDenied.into());
    }
    stream.write_all(format!("{name}\n").as_bytes())?;
    let (mut buffer, mut count) = (vec![0; 64 << 10], 0_u64);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        count += u64::try_from(length).unwrap_or(0);
        if head[TOKEN] == ECHO {
            stream.write_all(&buffer[..length])?;
        }
    }
    if head[TOKEN] == COUNT {
        stream.write_all(&count.to_be_bytes())?;
    }
    Ok(())
}

fn datagrams(socket: &UdpSocket, name: &str, token: &[u8; TOKEN]) {
    let mut buffer = [0; DATAGRAM];
    loop {
        // Errors of a socket that is bound are of earlier answers.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(payload) = buffer[..length].strip_prefix(token.as_slice()) {
            let answer = [payload, name.as_bytes()].concat();
            drop(socket.send_to(&answer, from));
        }
    }
}
