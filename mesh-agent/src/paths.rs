//! What the paths to peers take: echoes of the tunnel's MTU to their mesh addresses, through the tunnel in use, which may not be cut
//! into fragments. They are sent when somebody asks for them, [`AT_ONCE`] peers in a round at most and one round in [`PAUSE`], so that
//! in a large cluster neither a node nor its network notices. [`search`] decides what to try next, [`packet`] knows the bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::evidence::{NodeEvidence, PathEvidence, PathResult};
use mesh_core::name::NodeName;
use mesh_core::plan::Desired;
use mesh_core::prefix::same_family;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::agent::unix;
use crate::icmp;

mod packet;
mod search;

use packet::{Echo, Heard};
use search::{Outcome, Search};

/// Peers that are tried in one round.
pub const AT_ONCE: usize = 8;
/// Pause after a round.
pub const PAUSE: Duration = Duration::from_secs(10);
/// How long the answer to an echo is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// Messages that are read from one socket before the other is looked at.
const MESSAGES: usize = 256;
/// How long a round may take. What is not known by then stays so until the next one.
const ROUND: Duration = Duration::from_secs(12);
/// Longest packet.
const LONGEST: usize = 65_536;

/// What is known of them.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    known: Arc<Mutex<Known>>,
    /// When the last round ended; held while one is under way.
    round: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

/// What rounds have brought.
#[derive(Debug, Default)]
struct Known {
    paths: BTreeMap<NodeName, PathEvidence>,
    /// Why the last one came to nothing.
    trouble: Option<String>,
}

/// A peer that is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    peer: NodeName,
    to: IpAddr,
    from: IpAddr,
}

impl Paths {
    /// Shows in evidence what is known.
    pub fn show(&self, evidence: &mut NodeEvidence) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, path) in &mut evidence.peers {
            path.path = known.paths.get(peer).copied();
        }
        if let Some(host) = &mut evidence.host {
            host.path_trouble.clone_from(&known.trouble);
        }
    }

    /// Tries the next peers, unless somebody else has just done so; how many were tried.
    pub async fn try_some(&self, us: &NodeName, desired: &Desired) -> usize {
        let mut last = Arc::clone(&self.round).lock_owned().await;
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return 0;
        }
        let targets = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let peers: BTreeSet<&NodeName> = desired.peer_mesh.values().collect();
            known.paths.retain(|peer, _| peers.contains(peer));
            next(us, &desired.mesh, &desired.peer_mesh, &known.paths)
        };
        let (count, mtu, known) = (targets.len(), desired.mtu, Arc::clone(&self.known));
        // In a task of its own: who asked may go away, and the round is not to be asked for again at once.
        let work = tokio::task::spawn_blocking(move || {
            let found = round(&targets, mtu);
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.trouble = found.as_ref().err().map(ToString::to_string);
            match found {
                Ok(found) => {
                    let at = unix();
                    let evidence = found
                        .into_iter()
                        .map(|(peer, result)| (peer, PathEvidence { at, size: mtu, result }));
                    known.paths.extend(evidence);
                }
                Err(error) => {
                    tracing::warn!(err = %error, "Could not try what the paths to peers take");
                }
            }
            *last = Some(Instant::now());
        });
        drop(work.await);
        count
    }
}

/// Whom to try next: who was not tried yet, then who was not for the longest time. Nodes begin behind their own name, since otherwise
/// all of them would try the same few first.
fn next(
    us: &NodeName,
    own: &BTreeSet<IpAddr>,
    peers: &BTreeMap<IpAddr, NodeName>,
    known: &BTreeMap<NodeName, PathEvidence>,
) -> Vec<Target> {
    let mut by_peer: BTreeMap<&NodeName, Target> = BTreeMap::new();
    for (to, peer) in peers {
        let Some(from) = own.iter().find(|from| same_family(**from, *to)) else { continue };
        by_peer.entry(peer).or_insert_with(|| Target { peer: peer.clone(), to: *to, from: *from });
    }
    let mut all: Vec<Target> = by_peer.into_values().collect();
    all.sort_by_key(|target| (known.get(&target.peer).map(|path| path.at), target.peer < *us));
    all.truncate(AT_ONCE);
    all
}

/// A peer in a round.
struct Trial<'a> {
    target: &'a Target,
    search: Search,
    /// What this step has brought.
    outcome: Option<Outcome>,
}

/// One round over all of them.
fn round(targets: &[Target], mtu: u32) -> io::Result<BTreeMap<NodeName, PathResult>> {
    let mut nonce = [0; packet::NONCE];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let mut mouths = BTreeMap::new();
    let mut ears = Vec::new();
    for v4 in [true, false] {
        if targets.iter().any(|target| target.to.is_ipv4() == v4) {
            ears.push((v4, UdpSocket::from(icmp::socket(v4)?)));
            mouths.insert(v4, icmp::whole_packets(v4)?);
        }
    }
    let trial = |target| Trial { target, search: Search::new(mtu), outcome: None };
    let mut trials: Vec<Trial<'_>> = targets.iter().map(trial).collect();
    let begun = Instant::now();
    let mut buffer = vec![0; LONGEST];
    for sequence in 1..u16::MAX {
        if begun.elapsed() >= ROUND || trials.iter().all(|trial| trial.search.next().is_none()) {
            break;
        }
        for trial in &mut trials {
            trial.outcome = None;
            let Some(size) = trial.search.next() else { continue };
            let Target { to, from, .. } = trial.target;
            let echo = Echo { from: *from, to: *to, size, sequence, nonce };
            // What cannot be sent is not answered; one that is larger than the kernel knows to fit is among it.
            if let Some(mouth) = mouths.get(&to.is_ipv4()) {
                drop(mouth.send_to(&echo.packet(), &SocketAddr::new(*to, 0).into()));
            }
        }
        listen(&ears, (&nonce, sequence), &mut buffer, &mut trials)?;
        for trial in &mut trials {
            trial.search.take(trial.outcome.take().unwrap_or(Outcome::Nothing));
        }
    }
    let result = |trial: &Trial<'_>| Some((trial.target.peer.clone(), trial.search.result()?));
    Ok(trials.iter().filter_map(result).collect())
}

/// Listens until everybody has answered, for [`PATIENCE`] at most.
fn listen(
    ears: &[(bool, UdpSocket)],
    (nonce, sequence): (&[u8; packet::NONCE], u16),
    buffer: &mut [u8],
    trials: &mut [Trial<'_>],
) -> io::Result<()> {
    let begun = Instant::now();
    while trials.iter().any(|trial| trial.search.next().is_some() && trial.outcome.is_none()) {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        let mut waits: Vec<_> = ears.iter().map(|(_, ear)| PollFd::new(ear, PollFlags::IN)).collect();
        poll(&mut waits, Some(&Timespec::try_from(left).map_err(io::Error::other)?))?;
        let ready: Vec<bool> = waits.iter().map(|wait| wait.revents().contains(PollFlags::IN)).collect();
        for ((v4, ear), _) in ears.iter().zip(ready).filter(|(_, ready)| *ready) {
            // A raw socket hears everybody's ICMP, without end if there is enough of it; the other ear has its turn, too.
            for _ in 0..MESSAGES {
                let Some((from, length)) = icmp::receive(ear, buffer)? else { break };
                let Some(heard) = packet::heard(*v4, &buffer[..length], nonce, sequence) else { continue };
                let (whose, outcome) = match heard {
                    Heard::Answer => (from, Outcome::Answered),
                    Heard::TooBig { to, mtu } => (to, Outcome::Told(mtu)),
                };
                if let Some(trial) = trials.iter_mut().find(|trial| trial.target.to == whose) {
                    trial.outcome.get_or_insert(outcome);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_tried_in_turn_a_few_at_once_and_begin_behind_the_own_name() {
        let name = |number: usize| -> NodeName { format!("n{number:02}").parse().unwrap() };
        let own = BTreeSet::from(["10.0.5.1".parse().unwrap()]);
        let mut peers: BTreeMap<IpAddr, NodeName> = (0..20)
            .filter(|number| *number != 5)
            .map(|number| (format!("10.0.{number}.1").parse().unwrap(), name(number)))
            .collect();
        // Without an address of our family there is nowhere to send from.
        peers.insert("fd00::1".parse().unwrap(), name(99));
        peers.insert("fd00::2".parse().unwrap(), name(6));
        let mut known = BTreeMap::new();
        let mut order = Vec::new();
        for at in 1..=3 {
            let targets = next(&name(5), &own, &peers, &known);
            assert!(targets.len() <= AT_ONCE && targets.iter().all(|target| target.to.is_ipv4()));
            for target in targets {
                order.push(target.peer.clone());
                let evidence = PathEvidence { at, size: 1420, result: PathResult::Fits };
                known.insert(target.peer, evidence);
            }
        }
        let wanted: Vec<NodeName> = (6..20).chain(0..5).map(name).collect();
        assert_eq!(order[..wanted.len()], wanted);
        assert_eq!(
            order[wanted.len()..],
            wanted[..order.len() - wanted.len()],
            "then those of the longest ago"
        );
    }
}
