//! Reading every frame that enters a bridge's ports by a packet socket (packet(7)).

use super::Frame;
use super::recorder::{SharedRecorder, lock};
use crate::bridge::DeviceMap;
use crate::error::{Context, LabError};
use crate::namespace::Namespace;
use crate::wait::eventually;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Larger than the largest frame with segmentation offload (64 KiB and headers); "BIG TCP" is not used.
const READ_BUFFER: usize = 128 << 10;

/// `PACKET_OUTGOING` of linux/if_packet.h: the copy that leaves through another port.
const PACKET_OUTGOING: u8 = 4;

/// Frames per acquisition of the recorder's lock.
const BATCH: usize = 256;

/// Frames each device of the switch has received from its node, by device index: a port that was connected
/// again has a new device.
type Counters = BTreeMap<u32, u64>;
type Question = Sender<Result<Counters, LabError>>;

#[derive(Debug)]
pub(super) struct Reader {
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    questions: Option<Sender<Question>>,
    baseline: Counters,
}

impl Reader {
    pub(super) fn start(
        namespace: &Namespace,
        devices: DeviceMap,
        recorder: SharedRecorder,
        buffer: usize,
    ) -> Result<Self, LabError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("make", "an eventfd")?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let (ready, opened) = sync_channel(1);
        let known = Arc::clone(&devices);
        let reading = namespace.thread(move || match open(buffer) {
            Ok(socket) => {
                // The receiver waits below; it cannot be gone.
                let _ = ready.send(Ok(()));
                if let Err(e) = read(&socket, &stopped, &known, &recorder) {
                    lock(&recorder).failed(e.to_string());
                }
            }
            Err(e) => _ = ready.send(Err(e)),
        });
        opened.recv().expect("invariant: the thread sends before it ends")?;
        let (questions, inbox) = channel();
        let counting = namespace.thread(move || answer(&inbox, &devices));
        let mut reader = Self {
            stop,
            threads: vec![reading, counting],
            questions: Some(questions),
            baseline: Counters::new(),
        };
        // Read after the socket is open: a frame in between is captured and not counted, which is harmless.
        reader.baseline = reader.counters()?;
        Ok(reader)
    }

    fn counters(&self) -> Result<Counters, LabError> {
        let (tx, rx) = channel();
        let questions = self.questions.as_ref().expect("invariant: taken in drop only");
        questions.send(tx).expect("invariant: the thread ends with its inbox");
        rx.recv().expect("invariant: every question is answered")
    }

    /// Waits until all counted frames are recorded; returns how many are not.
    pub(super) fn sync(&self, recorder: &SharedRecorder, deadline: Duration) -> Result<u64, LabError> {
        let counted = self.counters()?;
        let missing = || {
            let recorder = lock(recorder);
            let of_device = |(device, now): (&u32, &u64)| {
                let expected = now.saturating_sub(self.baseline.get(device).copied().unwrap_or(0));
                expected.saturating_sub(recorder.captured_at(*device))
            };
            let total: u64 = counted.iter().map(of_device).sum();
            (total, recorder.health().dropped)
        };
        // Frames the kernel owns up to have been dropped will not come.
        let settled = eventually(deadline, "all counted frames", || match missing() {
            (total, dropped) if total <= dropped => Ok(()),
            (total, _) => Err(total),
        });
        Ok(if settled.is_ok() { 0 } else { missing().0 })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.questions.take();
        if let Err(error) = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()) {
            tracing::warn!(%error, "cannot end a capture");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::warn!("a capture thread panicked");
            }
        }
    }
}

fn open(buffer: usize) -> Result<OwnedFd, LabError> {
    let object = "a packet socket";
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd =
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).context("open", object)?;
    setsockopt(&fd, sockopt::RcvBufForce, &buffer).context("enlarge the buffer of", object)?;
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true).context("set SO_TIMESTAMPNS on", object)?;
    setsockopt(&fd, sockopt::RxqOvfl, &1).context("set SO_RXQ_OVFL on", object)?;
    Ok(fd)
}

fn read(
    socket: &OwnedFd,
    stop: &OwnedFd,
    devices: &DeviceMap,
    recorder: &SharedRecorder,
) -> Result<(), LabError> {
    let mut buffer = vec![0_u8; READ_BUFFER];
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("poll", "a packet socket")?,
        };
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        let mut batch = Vec::new();
        let mut dropped = 0;
        while batch.len() < BATCH {
            match receive(socket, &mut buffer)? {
                None => break,
                Some(Received { index, at, bytes, drops }) => {
                    dropped = dropped.max(drops);
                    let port = devices.lock().expect("no panic under this lock").get(&index).copied();
                    if let Some(port) = port {
                        batch.push((
                            at,
                            index,
                            port,
                            bytes.min(READ_BUFFER) < bytes,
                            buffer[..bytes.min(READ_BUFFER)].into(),
                        ));
                    }
                }
            }
        }
        let mut recorder = lock(recorder);
        recorder.dropped(dropped);
        for (at, index, port, truncated, data) in batch {
            if truncated {
                recorder.truncated();
            }
            recorder.offer(Frame { at, port, data }, index);
        }
    }
}

struct Received {
    /// Device it came in through; 0 for a copy that goes out.
    index: u32,
    at: SystemTime,
    /// Its length, which may be more than was read.
    bytes: usize,
    /// Frames dropped by this socket since it was opened.
    drops: u64,
}

/// One frame, or `None` when there is none now.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<Received>, LabError> {
    let mut control = cmsg_space!(TimeSpec, u32);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    let message = loop {
        match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(message) => break message,
            Err(Errno::EINTR) => {}
            // ENETDOWN: a port went down; the socket goes on.
            Err(Errno::EAGAIN | Errno::ENETDOWN) => return Ok(None),
            Err(e) => return Err(e).context("read", "a packet socket"),
        }
    };
    let (mut at, mut drops) = (None, 0);
    for part in message.cmsgs().context("read control messages of", "a packet socket")? {
        if let ControlMessageOwned::ScmTimestampns(t) = part {
            let since = Duration::new(t.tv_sec().cast_unsigned(), u32::try_from(t.tv_nsec()).unwrap_or(0));
            at = Some(UNIX_EPOCH + since);
        } else if let ControlMessageOwned::RxqOvfl(n) = part {
            drops = u64::from(n);
        }
    }
    let entered = message.address.filter(|a| a.pkttype() != PACKET_OUTGOING);
    let index = entered.and_then(|a| u32::try_from(a.ifindex()).ok()).unwrap_or(0);
    Ok(Some(Received { index, at: at.unwrap_or_else(SystemTime::now), bytes: message.bytes, drops }))
}

/// Answers each question with the packets each port has received from its node.
fn answer(inbox: &Receiver<Question>, devices: &DeviceMap) {
    while let Ok(question) = inbox.recv() {
        let links = crate::namespace::runtime("a switch")
            .and_then(|rt| rt.block_on(async { crate::Netlink::connect()?.links().await }));
        let devices = devices.lock().expect("no panic under this lock").clone();
        let counted = links.map(|links| {
            let ports = links.iter().filter(|l| devices.contains_key(&l.index));
            ports.map(|l| (l.index, l.rx_packets)).collect::<Counters>()
        });
        // The asker may have given up.
        let _ = question.send(counted);
    }
}
