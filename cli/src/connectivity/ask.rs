//! What runs in a pod that asks. First all questions at once: whether there is an answer at all, and none where none may be. Then
//! what answered is measured, one after the other, so that nothing disturbs it.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::names;
use super::question::{Answer, Ask, Fault, Question, Times};
use super::serve::{COUNT, ECHO, TOKEN};

/// For one try.
const TRY: Duration = Duration::from_secs(1);
/// For what is measured, where somebody has answered already: a packet that is lost is repeated after one second, and three.
const PATIENT: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// For how long nobody may answer: two SYN packets, eight datagrams.
const QUIET: Duration = Duration::from_secs(2);
/// Round trips that are measured: as many as make the 99th of a hundred one of at least two.
const ROUNDS: u32 = 200;
/// A path on which these take longer is slow enough to be seen from fewer.
const ROUNDS_WITHIN: Duration = Duration::from_secs(3);
/// A datagram that is not back is lost.
const LOST: Duration = Duration::from_millis(500);
/// Of this many datagrams one may be lost.
const MAY_LOSE: u32 = 20;
/// Bytes of a round trip.
const PAYLOAD: usize = 64;

/// How questions are asked.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// For a first answer: new addresses, policies and endpoints are told to all nodes.
    pub patience: Duration,
    /// How long the throughput of each way is measured.
    pub throughput: Duration,
    /// For everything.
    pub within: Duration,
}

/// Asks all questions; the answers, in their order.
pub fn ask(questions: &[Question], token: &[u8; TOKEN], manner: Manner) -> Vec<Answer> {
    let begun = Instant::now();
    let reached: Vec<Result<Option<Answer>, Fault>> = thread::scope(|scope| {
        let threads: Vec<_> = questions
            .iter()
            .map(|question| scope.spawn(move || reach(question, token, begun + manner.patience)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Fault::Local))).collect()
    });
    questions
        .iter()
        .zip(reached)
        .map(|(question, reached)| match (reached, question) {
            (Err(fault), _) => Answer::Fault(fault),
            (Ok(Some(answer)), _) => answer,
            (Ok(None), _) if begun.elapsed() > manner.within => Answer::Fault(Fault::Late),
            (Ok(None), Question::Server { ask, at, .. }) => {
                measure(*ask, *at, token, manner.throughput).unwrap_or_else(Answer::Fault)
            }
            (Ok(None), Question::Name { .. }) => Answer::Named,
        })
        .collect()
}

/// Whether it is as expected. `None`: it is, and can be measured.
fn reach(question: &Question, token: &[u8; TOKEN], until: Instant) -> Result<Option<Answer>, Fault> {
    match question {
        Question::Name { name, ips } => names::resolve(name, ips, until).map(Some),
        Question::Server { ask, at, .. } if ask.is_quiet() => quiet(*ask, *at, token).map(Some),
        Question::Server { ask, at, servers } => each(*ask, *at, servers, token, until).map(|()| None),
    }
}

/// Waits until each of the servers has answered.
fn each(
    ask: Ask,
    at: SocketAddr,
    servers: &BTreeSet<String>,
    token: &[u8; TOKEN],
    until: Instant,
) -> Result<(), Fault> {
    let mut missing = servers.clone();
    let mut last = Fault::Silent;
    loop {
        match once(ask, at, token) {
            Ok(name) if !servers.contains(&name) => return Err(Fault::Stranger),
            Ok(name) => drop(missing.remove(&name)),
            Err(fault) => last = fault,
        }
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(if missing.len() < servers.len() { Fault::SomeSilent } else { last });
        }
        thread::sleep(PAUSE);
    }
}

/// One try: who answers.
fn once(ask: Ask, at: SocketAddr, token: &[u8; TOKEN]) -> Result<String, Fault> {
    match ask {
        Ask::Tcp | Ask::Rate | Ask::NoTcp => connect(at, token, ECHO, TRY).map(|(_, name)| name),
        Ask::Udp | Ask::NoUdp => {
            let socket = datagrams(at)?;
            let answer = exchange(&socket, token, b"who are you?", TRY).map_err(|error| fault(&error))?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }
    }
}

/// Watches for a while that nobody answers. A connection is an answer, whatever is said on it.
fn quiet(ask: Ask, at: SocketAddr, token: &[u8; TOKEN]) -> Result<Answer, Fault> {
    let end = Instant::now() + QUIET;
    while Instant::now() < end {
        let tried = match ask {
            Ask::Tcp | Ask::Rate | Ask::NoTcp => {
                TcpStream::connect_timeout(&at, TRY).map(drop).map_err(|error| fault(&error))
            }
            Ask::Udp | Ask::NoUdp => datagrams(at).and_then(|socket| {
                exchange(&socket, token, b"who are you?", TRY / 4).map(drop).map_err(|error| fault(&error))
            }),
        };
        match tried {
            Ok(()) => return Err(Fault::Answered),
            // Who could not ask has heard nothing for another reason.
            Err(Fault::Local) => return Err(Fault::Local),
            Err(_) => thread::sleep(PAUSE),
        }
    }
    Ok(Answer::Quiet)
}

/// A connection, and who is at its other end.
fn connect(
    at: SocketAddr,
    token: &[u8; TOKEN],
    wish: u8,
    within: Duration,
) -> Result<(TcpStream, String), Fault> {
    let begin = || -> io::Result<(TcpStream, String)> {
        let mut stream = TcpStream::connect_timeout(&at, within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        stream.set_nodelay(true)?;
        stream.write_all(&[token.as_slice(), &[wish]].concat())?;
        let (mut name, mut byte) = (Vec::new(), [0]);
        // Names of pods have 63 bytes at most here.
        while name.len() < 64 {
            stream.read_exact(&mut byte)?;
            if byte == *b"\n" {
                return Ok((stream, String::from_utf8_lossy(&name).into_owned()));
            }
            name.push(byte[0]);
        }
        Err(ErrorKind::InvalidData.into())
    };
    begin().map_err(|error| fault(&error))
}

fn datagrams(at: SocketAddr) -> Result<UdpSocket, Fault> {
    let any: SocketAddr =
        if at.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).map_err(|_| Fault::Local)?;
    socket.connect(at).map_err(|error| fault(&error))?;
    Ok(socket)
}

/// A datagram and what comes back behind it. Answers to earlier ones are passed over.
fn exchange(
    socket: &UdpSocket,
    token: &[u8; TOKEN],
    payload: &[u8],
    within: Duration,
) -> io::Result<Vec<u8>> {
    let end = Instant::now() + within;
    socket.send(&[token.as_slice(), payload].concat())?;
    let mut buffer = [0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        if let Some(name) = buffer[..length].strip_prefix(payload) {
            return Ok(name.to_vec());
        }
    }
}

fn measure(ask: Ask, at: SocketAddr, token: &[u8; TOKEN], throughput: Duration) -> Result<Answer, Fault> {
    match ask {
        Ask::Tcp | Ask::NoTcp => connection_times(at, token),
        Ask::Udp | Ask::NoUdp => datagram_times(at, token),
        Ask::Rate => rate(at, token, throughput),
    }
}

fn connection_times(at: SocketAddr, token: &[u8; TOKEN]) -> Result<Answer, Fault> {
    let (mut stream, _) = connect(at, token, ECHO, PATIENT)?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    let mut round = || -> io::Result<Duration> {
        let (sent, mut back) = (Instant::now(), [0; PAYLOAD]);
        stream.write_all(&[0; PAYLOAD])?;
        stream.read_exact(&mut back)?;
        Ok(sent.elapsed())
    };
    for _ in 0..ROUNDS {
        times.push(round().map_err(|_| Fault::Broken)?);
        if begun.elapsed() > ROUNDS_WITHIN {
            break;
        }
    }
    Ok(Answer::Times(summary(times, 0)))
}

fn datagram_times(at: SocketAddr, token: &[u8; TOKEN]) -> Result<Answer, Fault> {
    let socket = datagrams(at)?;
    let (begun, mut times, mut lost) = (Instant::now(), Vec::new(), 0);
    for number in 0..ROUNDS {
        let mut payload = [0; PAYLOAD];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        match exchange(&socket, token, &payload, LOST) {
            Ok(_) => times.push(sent.elapsed()),
            Err(_) => lost += 1,
        }
        if begun.elapsed() > ROUNDS_WITHIN {
            break;
        }
    }
    let came = u32::try_from(times.len()).unwrap_or(ROUNDS);
    if came == 0 {
        return Err(Fault::Silent);
    }
    if lost * MAY_LOSE > came + lost {
        return Err(Fault::Lossy);
    }
    Ok(Answer::Times(summary(times, lost)))
}

/// Of at least one.
fn summary(mut times: Vec<Duration>, lost: u32) -> Times {
    times.sort();
    let at = |share: usize| {
        let time = times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
        time.map_or(0, |time| u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
    };
    Times { p50_us: at(50), p99_us: at(99), lost }
}

fn rate(at: SocketAddr, token: &[u8; TOKEN], throughput: Duration) -> Result<Answer, Fault> {
    let (mut stream, _) = connect(at, token, COUNT, PATIENT)?;
    let mut send = || -> io::Result<(u64, Duration)> {
        let (begun, chunk) = (Instant::now(), vec![0; 64 << 10]);
        while begun.elapsed() < throughput {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        Ok((u64::from_be_bytes(count), begun.elapsed()))
    };
    let (bytes, took) = send().map_err(|_| Fault::Broken)?;
    let micros = took.as_micros().max(1);
    Ok(Answer::Rate(u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)))
}

/// What an error of the kernel means.
#[allow(clippy::wildcard_enum_match_arm, reason = "errors of the kernel are an open set")]
fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Fault::Silent,
        ErrorKind::ConnectionRefused => Fault::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Fault::NoRoute,
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::InvalidData => Fault::Broken,
        _ => Fault::Local,
    }
}

#[cfg(test)]
mod tests;
