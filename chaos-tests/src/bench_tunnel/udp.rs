//! Datagrams as fast as one socket sends them, and how many arrive.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlab::Namespace;

const PORT: u16 = 9100;
/// How long the receiver waits for a stray at the end.
const REST: Duration = Duration::from_millis(50);

/// Sends datagrams of `size` bytes for `duration` without a pause. Thousands received a second, and the share of
/// those sent that did not arrive, in percent.
pub(super) fn flood(
    from: &Namespace,
    (place, address): (&Namespace, std::net::Ipv4Addr),
    size: usize,
    duration: Duration,
) -> Result<(f64, f64)> {
    let to = SocketAddr::new(address.into(), PORT);
    let receiver = place.run(move || UdpSocket::bind(to)).context("bind the receiver")?;
    // More than a flood of its duration holds, so that the path is measured and not this socket.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, 64 << 20)?;
    receiver.set_read_timeout(Some(REST))?;
    let done = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&done);
    let counting = std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        let mut received = 0u32;
        loop {
            match receiver.recv(&mut buffer) {
                Ok(_) => received += 1,
                Err(_) if over.load(Ordering::Relaxed) => return received,
                Err(_) => {}
            }
        }
    });
    let sending = from.run(move || -> Result<(u32, Duration)> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        let bytes = vec![7; size];
        let (mut sent, begun) = (0, Instant::now());
        while begun.elapsed() < duration {
            // A queue that is full on the way refuses some: they were not sent.
            if socket.send(&bytes).is_ok() {
                sent += 1;
            }
        }
        Ok((sent, begun.elapsed()))
    });
    done.store(true, Ordering::Relaxed);
    let received = counting.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let (sent, took) = sending?;
    let lost = f64::from(sent.saturating_sub(received)) / f64::from(sent.max(1));
    Ok((f64::from(received) / took.as_secs_f64() / 1e3, lost * 100.0))
}
