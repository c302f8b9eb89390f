//! Requests and responses over TCP, one at a time, and how long each took; and one stream in bulk: `lab load`, for benches.
//!
//! Blocking sockets and one thread, so that what is measured is the path and the two wake-ups that every such exchange
//! has. Both sides set `TCP_NODELAY`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::usage::count;

/// Bytes of a request and of a response.
pub const SIZE: usize = 64;
/// First byte of a request after whose response the server closes, so that the server has the TIME_WAIT and the client
/// never runs out of ports.
const LAST: u8 = b'L';
/// First byte of any other request.
const MORE: u8 = b'M';
/// First byte of a request after which bytes follow until the client has no more; the response is how many they were.
const BULK: u8 = b'B';
/// The same, with buffers of [`FIXED`].
const BULK_FIXED: u8 = b'F';
/// Socket buffers in bytes that hold a stream in bulk to one size: as the kernel tunes them (up to 32 MiB), each connection ends
/// with others, and whether its bytes are in the CPU's cache until they are read moves it by a third, whatever its path.
const FIXED: usize = 1 << 20;
/// Bytes that one call writes or reads of a stream in bulk: more than the kernel makes one packet of.
const CHUNK: usize = 256 << 10;
/// An exchange that takes longer is a broken path, not a slow one.
const DEADLINE: Duration = Duration::from_secs(10);
/// Exchanges before the first that counts: neighbours, caches, the flow itself.
const WARM_UP: usize = 50;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Exchange {
    /// Request and response on one connection.
    Rr,
    /// Connect, request and response, each time anew.
    Crr,
}

/// Times in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// How many exchanges.
    pub count: usize,
    /// Half took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// Exchanges per second, with all that lies between two of them.
    pub rate: f64,
}

/// Keeps the calling thread, and those that it starts, on one CPU.
///
/// # Errors
/// There is no such CPU for this process.
pub fn stay(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("stay on CPU {cpu}"))
}

/// Answers on `listen` for ever, one connection after the other.
///
/// # Errors
/// It cannot listen.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    for stream in listener.incoming() {
        // A client that goes away in the middle costs its own connection.
        let _ = stream.and_then(|stream| answer(&stream));
    }
    Ok(())
}

fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; SIZE];
    loop {
        stream.read_exact(&mut message)?;
        if message[0] == BULK_FIXED {
            setsockopt(&stream, sockopt::RcvBuf, &FIXED)?;
        }
        if [BULK, BULK_FIXED].contains(&message[0]) {
            return sink(stream);
        }
        stream.write_all(&message)?;
        if message[0] == LAST {
            return Ok(());
        }
    }
}

/// Reads until the client has no more, and says how much it was.
fn sink(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut sum: u64 = 0;
    loop {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return stream.write_all(&sum.to_be_bytes());
        }
        sum += u64::try_from(read).unwrap_or(u64::MAX);
    }
}

/// Buffers of a stream in bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// As the kernel tunes them.
    Tuned,
    /// Of 1 MiB at both ends.
    Fixed,
}

/// What one stream has carried.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// All bytes, each of which was received.
    pub bytes: u64,
    /// Before the first was sent.
    pub begun: Instant,
    /// When the last was known to be received.
    pub ended: Instant,
}

impl Carried {
    /// Bits a second of all together, from when the first began until the last has ended: in the time in which only some were at
    /// it, too.
    pub fn rate(all: &[Self]) -> f64 {
        let begun = all.iter().map(|one| one.begun).min();
        let ended = all.iter().map(|one| one.ended).max();
        let (Some(begun), Some(ended)) = (begun, ended) else { return 0.0 };
        count(all.iter().map(|one| one.bytes).sum()) * 8.0 / (ended - begun).as_secs_f64()
    }
}

/// Sends to the server at `to` for `duration`, as fast as one stream goes.
///
/// # Errors
/// The path is broken, or bytes were lost.
pub fn bulk(to: SocketAddr, duration: Duration, buffers: Buffers) -> Result<Carried> {
    let mut stream = connect(to)?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let kind = match buffers {
        Buffers::Tuned => BULK,
        Buffers::Fixed => {
            setsockopt(&stream, sockopt::SndBuf, &FIXED).context("set the send buffer")?;
            BULK_FIXED
        }
    };
    stream.write_all(&[kind; SIZE])?;
    let chunk = vec![0; CHUNK];
    let mut sent: u64 = 0;
    let begun = Instant::now();
    while begun.elapsed() < duration {
        stream.write_all(&chunk).context("send in bulk")?;
        sent += CHUNK as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut received = [0; 8];
    stream.read_exact(&mut received).context("wait for the count")?;
    let ended = Instant::now();
    let received = u64::from_be_bytes(received);
    anyhow::ensure!(received == sent, "{sent} bytes were sent, and {received} received");
    Ok(Carried { bytes: sent, begun, ended })
}

/// Exchanges with the server at `to` for `duration`.
///
/// # Errors
/// The path is broken.
pub fn measure(exchange: Exchange, to: SocketAddr, duration: Duration) -> Result<Times> {
    match exchange {
        Exchange::Rr => {
            let stream = connect(to)?;
            repeat(duration, || {
                let begun = Instant::now();
                talk(&stream, MORE)?;
                Ok(begun.elapsed())
            })
        }
        Exchange::Crr => repeat(duration, || {
            let begun = Instant::now();
            let mut stream = connect(to)?;
            talk(&stream, LAST)?;
            let took = begun.elapsed();
            // Not before the server has closed: who closes first has the TIME_WAIT.
            stream.read(&mut [0]).context("wait for the end")?;
            Ok(took)
        }),
    }
}

fn repeat(duration: Duration, mut exchange: impl FnMut() -> Result<Duration>) -> Result<Times> {
    for _ in 0..WARM_UP {
        exchange()?;
    }
    let mut times = Vec::with_capacity(1 << 18);
    let begun = Instant::now();
    while times.is_empty() || begun.elapsed() < duration {
        times.push(exchange()?.as_secs_f64() * 1e6);
    }
    #[allow(clippy::cast_precision_loss, reason = "fewer exchanges than 2^52")]
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    let quantile = |share| crate::bench_cni::quantile(&times, share);
    Ok(Times { count: times.len(), p50: quantile(0.50), p99: quantile(0.99), rate })
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, DEADLINE).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

fn talk(mut stream: &TcpStream, kind: u8) -> Result<()> {
    let mut message = [kind; SIZE];
    stream.write_all(&message).context("send a request")?;
    stream.read_exact(&mut message).context("wait for the response")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_exchanges_are_timed_and_the_server_serves_the_next() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        std::thread::spawn(move || serve(free));
        netlab::eventually(Duration::from_secs(5), "the server listens", || connect(free).map(drop)).unwrap();
        for exchange in [Exchange::Rr, Exchange::Crr, Exchange::Rr] {
            let times = measure(exchange, free, Duration::from_millis(20)).unwrap();
            assert!(times.count > 0 && times.p50 > 0.0 && times.p99 >= times.p50, "{times:?}");
            assert!(times.rate > 0.0 && times.rate * times.p50 < 2e6, "{times:?}");
        }
        for buffers in [Buffers::Tuned, Buffers::Fixed, Buffers::Tuned] {
            let carried = bulk(free, Duration::from_millis(20), buffers).unwrap();
            assert!(Carried::rate(&[carried, carried]) > Carried::rate(&[carried]));
        }
    }
}
