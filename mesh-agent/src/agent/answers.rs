//! Asking peers' kernels for an answer, and noting by which slot it comes: a peer's answers take the routes that its pods'
//! packets take, whatever its agent does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::name::NodeName;
use mesh_core::slot::Slot;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::icmp;
use crate::single::Single;

/// Messages that are read from one socket before the others are looked at.
const AT_ONCE: usize = 256;
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(800);
/// Longest answer that is read: an IPv4 header with options and our question.
const ANSWER: usize = 256;
/// Header of an ICMP echo.
const HEADER: usize = 8;

/// Longest time between two questions that belong to one row of unanswered ones.
const ROW: Duration = Duration::from_secs(30);

/// What is known of each peer that was asked.
type Heard = BTreeMap<NodeName, Asked>;

/// What became of the questions to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    /// By which slot it answered last, and when.
    answered: Option<(Slot, Instant)>,
    /// The first and the last of the questions that it has left unanswered since.
    unanswered: Option<(Instant, Instant)>,
}

impl Asked {
    fn answers(&mut self, slot: Slot, question: Instant) {
        (self.answered, self.unanswered) = (Some((slot, question)), None);
    }

    /// This question, which was sent, found no answer.
    fn is_silent(&mut self, question: Instant) {
        let row = self.unanswered.filter(|(_, last)| question.duration_since(*last) <= ROW);
        self.unanswered = Some((row.map_or(question, |(first, _)| first), question));
    }

    /// For how long it has answered nothing though it was asked all the time.
    fn unanswered_for(&self, now: Instant) -> Option<Duration> {
        let (first, last) = self.unanswered?;
        (now.duration_since(last) <= ROW).then(|| last.duration_since(first))
    }
}

/// Asks, one round at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    heard: Arc<Mutex<Heard>>,
    single: Single,
}

impl Answers {
    /// By which slot this peer answered last, and how long ago.
    pub(super) fn of(&self, peer: &NodeName) -> Option<(Slot, Duration)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(peer)?.answered.map(|(slot, at)| (slot, at.elapsed()))
    }

    /// For how long this peer has left all questions unanswered; none: it was not asked lately, or it has answered since.
    pub(super) fn unanswered_for(&self, peer: &NodeName) -> Option<Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(peer)?.unanswered_for(Instant::now())
    }

    /// Sends an echo to each of these, at its mesh address, and listens for a moment. Another round may be under way: then
    /// this one is left out, and asked again with the next step.
    pub(super) fn ask(&self, peers: BTreeMap<IpAddr, NodeName>) {
        if peers.is_empty() {
            return;
        }
        let Some(inside) = self.single.enter() else { return };
        let heard = Arc::clone(&self.heard);
        tokio::task::spawn_blocking(move || {
            let _inside = inside;
            if let Err(error) = round(&peers, &heard) {
                tracing::warn!(err = %error, "Could not ask peers for an answer; a draining slot waits for its deadline");
            }
        });
    }
}

fn round(peers: &BTreeMap<IpAddr, NodeName>, heard: &Mutex<Heard>) -> io::Result<()> {
    // What tells our questions from everybody else's, and from those of the rounds before.
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let begun = Instant::now();
    let families = [true, false].map(|v4| peers.keys().any(|address| address.is_ipv4() == v4));
    let mut ears = Vec::new();
    for (v4, _) in [true, false].into_iter().zip(families).filter(|(_, wanted)| *wanted) {
        for slot in Slot::ALL {
            let ear = icmp::socket(v4)?;
            match ear.bind_device(Some(slot.device().as_bytes())) {
                Ok(()) => ears.push((slot, v4, UdpSocket::from(ear))),
                // A device that is missing hears nothing.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let mut silent = BTreeSet::new();
    for (v4, _) in [true, false].into_iter().zip(families).filter(|(_, wanted)| *wanted) {
        let mouth = icmp::socket(v4)?;
        let question = echo(v4, &nonce);
        for address in peers.keys().filter(|address| address.is_ipv4() == v4) {
            // One that cannot be sent says nothing about who was to be asked.
            if mouth.send_to(&question, &SocketAddr::new(*address, 0).into()).is_ok() {
                silent.insert(*address);
            }
        }
    }
    let mut buffer = [0; ANSWER];
    // Something was left unread: an answer, or what others have sent.
    let mut left_over = false;
    while !silent.is_empty() && begun.elapsed() < PATIENCE {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let mut waits: Vec<_> = ears.iter().map(|(_, _, ear)| PollFd::new(ear, PollFlags::IN)).collect();
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        poll(&mut waits, Some(&left))?;
        let ready: Vec<bool> = waits.iter().map(|wait| wait.revents().contains(PollFlags::IN)).collect();
        left_over = false;
        for ((slot, v4, ear), _) in ears.iter().zip(ready).filter(|(_, ready)| *ready) {
            // A raw socket hears everybody's ICMP, without end if there is enough of it; the other ears have their turn, too.
            let mut emptied = false;
            for _ in 0..AT_ONCE {
                let Some((from, length)) = icmp::receive(ear, &mut buffer)? else {
                    emptied = true;
                    break;
                };
                let ours = answers(*v4, &buffer[..length], &nonce);
                let Some(peer) = peers.get(&from).filter(|_| ours) else { continue };
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                // The time of the question: routes may have changed since the answer was sent, never before.
                heard.entry(peer.clone()).or_default().answers(*slot, begun);
                silent.remove(&from);
            }
            left_over |= !emptied;
        }
    }
    if left_over {
        return Ok(());
    }
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    for peer in silent.iter().filter_map(|address| peers.get(address)) {
        heard.entry(peer.clone()).or_default().is_silent(begun);
    }
    Ok(())
}

/// An ICMP or ICMPv6 echo request (RFC 792, RFC 4443 4.1). The kernel computes ICMPv6's checksum (RFC 3542 3.1).
fn echo(v4: bool, nonce: &[u8]) -> Vec<u8> {
    let mut message = vec![if v4 { 8 } else { 128 }, 0, 0, 0, nonce[0], nonce[1], 0, 1];
    message.extend_from_slice(nonce);
    if v4 {
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    message
}

/// RFC 1071, over an even number of bytes.
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (folded + (folded >> 16)).to_be_bytes();
    !u16::from_be_bytes([high, low])
}

/// Is it the answer to our question? An IPv4 socket of this kind hands out the IP header as well.
fn answers(v4: bool, packet: &[u8], nonce: &[u8]) -> bool {
    let message = if v4 {
        let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
        packet.get(header..).unwrap_or_default()
    } else {
        packet
    };
    message.first() == Some(if v4 { &0 } else { &129 }) && message.get(HEADER..) == Some(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_ours_by_its_nonce_alone() {
        let nonce = [7; 16];
        for v4 in [true, false] {
            let mut message = echo(v4, &nonce);
            assert!(!answers(v4, &message, &nonce), "a question is no answer");
            message[0] = if v4 { 0 } else { 129 };
            let packet = |message: &[u8]| if v4 { [&[0x45; 20], message].concat() } else { message.to_vec() };
            assert!(answers(v4, &packet(&message), &nonce));
            assert!(!answers(v4, &packet(&message), &[8; 16]));
            for length in 0..packet(&message).len() {
                assert!(!answers(v4, &packet(&message)[..length], &nonce), "cut at {length}");
            }
        }
    }

    #[test]
    fn a_row_of_questions_is_unanswered_until_an_answer_and_a_pause_begins_another() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut asked = Asked::default();
        let after = |asked: &Asked, seconds| asked.unanswered_for(at(seconds)).map(|time| time.as_secs());
        assert_eq!(after(&asked, 0), None, "nobody asked");
        asked.is_silent(at(0));
        assert_eq!(after(&asked, 5), Some(0), "one question is no row");
        asked.is_silent(at(20));
        asked.is_silent(at(50));
        assert_eq!(
            (after(&asked, 51), after(&asked, 81)),
            (Some(50), None),
            "asked lately, and not any more"
        );
        asked.is_silent(at(90));
        assert_eq!(after(&asked, 91), Some(0));
        asked.answers(Slot::One, at(95));
        assert_eq!((after(&asked, 96), asked.answered), (None, Some((Slot::One, at(95)))));
    }

    #[test]
    fn a_message_with_its_checksum_sums_up_to_nothing() {
        let message = echo(true, &[0xab; 16]);
        assert_eq!(checksum(&message), 0);
    }
}
