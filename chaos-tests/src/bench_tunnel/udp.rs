//! Datagrams as fast as one socket sends them, and how many arrive.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlab::Namespace;

const PORT: u16 = 9100;
/// How long the receiver waits for a stray at the end.
const REST: Duration = Duration::from_millis(50);

/// Sends datagrams of `size` bytes for `duration` without a pause. Thousands received a second, and the share of
/// those sent that did not arrive, in percent. What arrives after the last was sent is not lost, and no speed either: receivers
/// differ in how much may wait for them.
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
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let counting = std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(_) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                Err(_) if over.load(Ordering::Relaxed) => return,
                Err(_) => {}
            }
        }
    });
    let so_far = Arc::clone(&count);
    let sending = from.run(move || -> Result<(u32, u32, Duration)> {
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
        let took = begun.elapsed();
        Ok((sent, so_far.load(Ordering::Relaxed), took))
    });
    done.store(true, Ordering::Relaxed);
    counting.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
    let (sent, meanwhile, took) = sending?;
    let received = count.load(Ordering::Relaxed);
    let lost = f64::from(sent.saturating_sub(received)) / f64::from(sent.max(1));
    Ok((f64::from(meanwhile) / took.as_secs_f64() / 1e3, lost * 100.0))
}
