//! Asking a [`Namer`](crate::namer::Namer) who it is.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use netlab::probe::{self, Canary};
use netlab::{Namespace, eventually};
use socket2::{Domain, Socket, Type};

/// For what is set to be in force everywhere.
const SOON: Duration = Duration::from_secs(20);

/// How a question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ask {
    /// A connection.
    Tcp,
    /// A datagram.
    Udp,
    /// To the kernel; nobody says who answers.
    Icmp,
}

/// Long enough for an answer on a busy machine, short enough to wait for none.
pub const PATIENCE: Duration = Duration::from_millis(400);

impl Ask {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];

    /// One try: who answered.
    ///
    /// # Errors
    /// What was seen instead of an answer; `TimedOut` or `WouldBlock` for nothing at all.
    pub fn once(self, from: &Namespace, to: SocketAddr, patience: Duration) -> io::Result<String> {
        match self {
            Self::Tcp | Self::Udp => self.once_by(from, 0, to, patience),
            Self::Icmp => {
                let canary = Canary::new(b"are you there?".to_vec()).tries(1).deadline(patience);
                let answer = probe::ping(from, to.ip(), &canary);
                answer.map(|_| String::new()).map_err(|error| io::Error::new(io::ErrorKind::TimedOut, error))
            }
        }
    }

    /// The same from a source port, for who counts flows: the kernel draws ports at random, and would once in some thousand
    /// times draw that of an earlier question, which is no new flow. Identifiers of ICMP it takes in order.
    ///
    /// # Errors
    /// As for [`once`](Self::once); the port is taken.
    pub fn once_by(
        self,
        from: &Namespace,
        port: u16,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<String> {
        match self {
            Self::Tcp => from.run(move || greeting(&connect_by(port, to, patience)?)),
            Self::Udp => from.run(move || {
                let socket = datagrams_by(port, to)?;
                exchange(&socket, b"who are you?", patience)
            }),
            Self::Icmp => self.once(from, to, patience),
        }
    }
}

/// A connection, with its patience for reads.
///
/// # Errors
/// There is none in time.
pub fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    connect_by(0, to, patience)
}

fn connect_by(port: u16, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if port != 0 {
        socket.bind(&SocketAddr::new(any(to), port).into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(stream)
}

/// The name that a connection is greeted with.
///
/// # Errors
/// It is not, in time.
pub fn greeting(stream: &TcpStream) -> io::Result<String> {
    let mut line = String::new();
    // Nothing more comes before something is said, so the buffer takes no more than this line.
    BufReader::new(stream).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(name) => Ok(name.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Says something on a greeted connection and waits for its echo.
///
/// # Errors
/// It does not come back.
pub fn echo(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    io::Read::read_exact(&mut stream, &mut back)?;
    if back == text.as_bytes() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A UDP socket that talks with `to` alone.
///
/// # Errors
/// There is none.
pub fn datagrams(to: SocketAddr) -> io::Result<UdpSocket> {
    datagrams_by(0, to)
}

fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn datagrams_by(port: u16, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((any(to), port))?;
    socket.connect(to)?;
    Ok(socket)
}

/// A datagram and its answer: who gave it.
///
/// # Errors
/// None came in time.
pub fn exchange(socket: &UdpSocket, payload: &[u8], patience: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    socket.send(payload)?;
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        // Whatever else comes answers an earlier try.
        if let Some(name) = text.strip_suffix(&*String::from_utf8_lossy(payload)) {
            return Ok(name.trim_end().to_owned());
        }
    }
}

/// Waits until `from` is answered by `to`, or is not, over all three protocols and at every address.
///
/// # Errors
/// What is still otherwise at the deadline.
pub fn settle(from: &Namespace, to: &[IpAddr], port: u16, allowed: bool) -> Result<()> {
    let word = if allowed { "is let" } else { "is not let" };
    let what = format!("{} {word} to {to:?} port {port}", from.name());
    eventually(SOON, &what, || {
        for ip in to {
            for ask in Ask::ALL {
                let answer = ask.once(from, SocketAddr::new(*ip, port), PATIENCE);
                if answer.is_ok() != allowed {
                    return Err(format!("{ask:?} {ip}: {answer:?}"));
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Waits until a datagram to a port where nobody answers is let through, or is not. Nobody has to listen: a port that
/// is let through and closed says so.
///
/// # Errors
/// It is still otherwise at the deadline.
pub fn settle_udp(from: &Namespace, to: SocketAddr, allowed: bool) -> Result<()> {
    eventually(SOON, &format!("{} and UDP to {to}: {allowed}", from.name()), || {
        let refused = from.run(move || -> io::Result<bool> {
            let socket = datagrams(to)?;
            Ok(matches!(exchange(&socket, b"?", PATIENCE), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused))
        });
        match refused {
            Ok(open) if open == allowed => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    Ok(())
}
