//! Requests and responses over TCP, one at a time, and how long each took: `lab load`, for benches.
//!
//! Blocking sockets and one thread, so that what is measured is the path and the two wake-ups that every such exchange
//! has. Both sides set `TCP_NODELAY`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Bytes of a request and of a response.
pub const SIZE: usize = 64;
/// First byte of a request after whose response the server closes, so that the server has the TIME_WAIT and the client
/// never runs out of ports.
const LAST: u8 = b'L';
/// First byte of any other request.
const MORE: u8 = b'M';
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
        stream.write_all(&message)?;
        if message[0] == LAST {
            return Ok(());
        }
    }
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
    let end = Instant::now() + duration;
    while times.is_empty() || Instant::now() < end {
        times.push(exchange()?.as_secs_f64() * 1e6);
    }
    let quantile = |share| crate::bench_cni::quantile(&times, share);
    Ok(Times { count: times.len(), p50: quantile(0.50), p99: quantile(0.99) })
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
        }
    }
}
