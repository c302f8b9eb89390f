//! Frames past the kernel's own checks: sent from a device of a namespace as they are, and heard when they come in.

pub mod frame;
pub mod sctp;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use netlab::Namespace;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recvfrom, send,
    setsockopt, socket, sockopt,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// `PACKET_OUTGOING` of linux/if_packet.h.
const PACKET_OUTGOING: u8 = 4;
/// Bytes of frames that may wait to be read: a flood of small ones for a second.
const BUFFER: usize = 16 << 20;

fn packet_socket() -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
    Ok(fd)
}

/// A packet socket that sends on one device.
#[derive(Debug)]
pub struct Injector {
    socket: OwnedFd,
    /// The device's own hardware address.
    pub mac: frame::Mac,
}

impl Injector {
    /// On `device` of a namespace.
    ///
    /// # Errors
    /// There is no such device, or no right to a packet socket.
    pub fn new(namespace: &Namespace, device: &str) -> Result<Self> {
        let (name, device) = (namespace.name().to_owned(), device.to_owned());
        namespace.run(move || {
            let mut all = nix::ifaddrs::getifaddrs()?.filter(|interface| interface.interface_name == device);
            let link = all.find_map(|interface| interface.address?.as_link_addr().copied());
            let link =
                link.with_context(|| format!("{name} has no device {device} with a hardware address"))?;
            let socket = packet_socket()?;
            bind(socket.as_raw_fd(), &link)?;
            Ok(Self { socket, mac: link.addr().context("an Ethernet device")? })
        })
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// The device is down, or refuses its length.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        if sent != frame.len() {
            bail!("{sent} of {} bytes of a frame were sent", frame.len());
        }
        Ok(())
    }
}

/// Everything that comes in at any device of a namespace, `lo` excepted.
#[derive(Debug)]
pub struct Ear {
    name: String,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Ear {
    /// Listens from now on.
    ///
    /// # Errors
    /// No right to a packet socket.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(packet_socket)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let heard = Arc::new(Mutex::default());
        let (log, stopped) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = namespace.thread(move || listen(&socket, &stopped, &log));
        Ok(Self { name: namespace.name().to_owned(), heard, stop, thread: Some(thread) })
    }

    /// How many frames so far hold `needle`.
    pub fn count(&self, needle: &[u8]) -> usize {
        self.count_by(|frame| frame.windows(needle.len()).any(|part| part == needle))
    }

    /// How many frames so far are such.
    pub fn count_by(&self, is: impl Fn(&[u8]) -> bool) -> usize {
        let heard = self.heard.lock().expect("no panic under this lock");
        heard.iter().filter(|frame| is(frame)).count()
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // Without the wake-up the thread cannot be waited for; it ends with the process then.
        if rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!(namespace = %self.name, "an ear panicked");
        }
    }
}

fn listen(socket: &OwnedFd, stop: &OwnedFd, log: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        if matches!(poll(&mut fds, None), Err(error) if error != rustix::io::Errno::INTR)
            || !fds[1].revents().is_empty()
        {
            return;
        }
        // An error is a device that went down; the socket goes on.
        let Ok((length, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else { continue };
        let inwards = from.is_some_and(|from| from.pkttype() != PACKET_OUTGOING && from.family().is_some());
        if inwards {
            log.lock().expect("no panic under this lock").push(buffer[..length].to_vec());
        }
    }
}
