//! Noise_IKpsk2 (sections 5.4.2 and 5.4.3): who begins sends an initiation, the other answers, and both have the keys of a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use x25519_dalek::{PublicKey as Point, ReusableSecret, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use super::aead::Key;
use super::hash::{Hash, Symmetric, hash};
use super::messages::{INITIATION, RESPONSE, TYPE_INITIATION, TYPE_RESPONSE, field, response_sender, sender};
use super::wiped::wiped;
use crate::keys::{PresharedKey, PrivateKey, PublicKey};

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// Where the fields of an initiation lie: sender 4, ephemeral 8, static 40, timestamp 88, MACs 116.
const INITIATION_EPHEMERAL: usize = 8;
const INITIATION_STATIC: usize = 40;
const INITIATION_TIMESTAMP: usize = 88;
const INITIATION_MACS: usize = 116;
/// The same of an answer: sender 4, receiver 8, ephemeral 12, nothing 44, MACs 60.
const RESPONSE_EPHEMERAL: usize = 12;
const RESPONSE_NOTHING: usize = 44;
const RESPONSE_MACS: usize = 60;

/// The key with which others check the first MAC of messages to whom this key belongs.
pub(super) fn mac1_key(public: &[u8; 32]) -> Hash {
    hash(&[LABEL_MAC1, public])
}

/// The key for cookies that are made by whom this key belongs to.
pub(super) fn cookie_key(public: &[u8; 32]) -> Hash {
    hash(&[LABEL_COOKIE, public])
}

/// TAI64N of a UNIX time: 8 bytes of seconds and 4 of nanoseconds, big-endian. Leap seconds are those of 1970, as in the kernel and in
/// wireguard-go.
#[must_use]
pub fn timestamp(unix: Duration) -> [u8; 12] {
    const BASE: u64 = (1 << 62) + 10;
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&BASE.saturating_add(unix.as_secs()).to_be_bytes());
    stamp[8..].copy_from_slice(&unix.subsec_nanos().to_be_bytes());
    stamp
}

/// The device's key pair.
pub struct Own {
    private: StaticSecret,
    public: Point,
    /// The time of the last initiation under this key, in nanoseconds since 1970: peers take none that is not later.
    stamped: AtomicU64,
}

impl std::fmt::Debug for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Own").field(&self.public.as_bytes()).finish()
    }
}

impl Own {
    /// The pair of a private key.
    #[must_use]
    pub fn new(key: &PrivateKey) -> Self {
        wiped(|| {
            let private = StaticSecret::from(*key.expose());
            let public = Point::from(&private);
            Self { private, public, stamped: AtomicU64::new(0) }
        })
    }

    /// A time for an initiation: this one, or a moment after the last.
    pub(super) fn stamp(&self, wall: Duration) -> Duration {
        let wall = u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX);
        let next = |last: u64| wall.max(last.saturating_add(1));
        let last = self.stamped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        Duration::from_nanos(next(last.unwrap_or_default()))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::new(self.public.to_bytes())
    }

    /// Learns who sent an initiation; `None` if it is not for us. Its sender is proven by [`Parties::authenticate`] alone.
    #[must_use]
    pub fn recognise(&self, message: &[u8; INITIATION]) -> Option<Half> {
        wiped(|| self.named(message))
    }

    fn named(&self, message: &[u8; INITIATION]) -> Option<Half> {
        let mut state = Symmetric::new(self.public.as_bytes());
        let ephemeral: [u8; 32] = field(message, INITIATION_EPHEMERAL);
        state.mix_hash(&ephemeral);
        state.mix_key(&ephemeral);
        let ephemeral = Point::from(ephemeral);
        let key = state.mix_key_for(shared(&self.private.diffie_hellman(&ephemeral))?);
        let peer = state.open(&key, &message[INITIATION_STATIC..INITIATION_TIMESTAMP])?;
        let timestamp = field(message, INITIATION_TIMESTAMP);
        Some(Half { state, peer: PublicKey::new(peer), ephemeral, timestamp, remote: sender(message) })
    }
}

/// The secret, unless everybody knows it: what a point of low order makes (section 5.4 calls it zero).
fn shared(secret: &SharedSecret) -> Option<&[u8; 32]> {
    secret.was_contributory().then(|| secret.as_bytes())
}

/// An initiation of which the sender's name is known.
pub struct Half {
    state: Symmetric,
    peer: PublicKey,
    ephemeral: Point,
    timestamp: [u8; 12 + super::messages::TAG],
    remote: u32,
}

impl Half {
    /// Whom it names.
    #[must_use]
    pub const fn peer(&self) -> &PublicKey {
        &self.peer
    }
}

impl std::fmt::Debug for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Half").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// An initiation of ours that can be answered.
pub(super) struct Initiated {
    state: Symmetric,
    ephemeral: ReusableSecret,
    local: u32,
}

impl Initiated {
    /// Our index.
    pub(super) const fn local(&self) -> u32 {
        self.local
    }
}

/// What a handshake makes.
pub(super) struct Keys {
    pub(super) sending: Arc<Key>,
    pub(super) receiving: Arc<Key>,
    /// The peer's index.
    pub(super) remote: u32,
}

/// The keys of both, and what follows from them.
pub(super) struct Parties {
    own: Arc<Own>,
    peer: Point,
    shared: SharedSecret,
    psk: Zeroizing<[u8; 32]>,
    mac1_key: Hash,
    cookie_key: Hash,
}

impl Parties {
    /// `None`: the peer's key is of low order.
    pub(super) fn new(own: Arc<Own>, peer: &PublicKey, psk: Option<&PresharedKey>) -> Option<Self> {
        let point = Point::from(*peer.as_bytes());
        let secret = own.private.diffie_hellman(&point);
        shared(&secret)?;
        Some(Self {
            own,
            peer: point,
            shared: secret,
            psk: Zeroizing::new(psk.map_or([0; 32], |psk| *psk.expose())),
            mac1_key: mac1_key(peer.as_bytes()),
            cookie_key: cookie_key(peer.as_bytes()),
        })
    }

    pub(super) const fn own(&self) -> &Arc<Own> {
        &self.own
    }

    pub(super) const fn mac1_key(&self) -> &Hash {
        &self.mac1_key
    }

    pub(super) const fn cookie_key(&self) -> &Hash {
        &self.cookie_key
    }

    /// Makes an initiation, without its MACs.
    pub(super) fn initiate(&self, local: u32, timestamp: [u8; 12]) -> ([u8; INITIATION], Box<Initiated>) {
        let mut message = [0; INITIATION];
        message[0] = TYPE_INITIATION;
        message[4..8].copy_from_slice(&local.to_le_bytes());
        let mut state = Symmetric::new(self.peer.as_bytes());
        let ephemeral = ReusableSecret::random();
        let point = Point::from(&ephemeral).to_bytes();
        message[INITIATION_EPHEMERAL..INITIATION_STATIC].copy_from_slice(&point);
        state.mix_hash(&point);
        state.mix_key(&point);
        // The peer's key is of no low order, so this secret is none that everybody knows.
        let key = state.mix_key_for(ephemeral.diffie_hellman(&self.peer).as_bytes());
        state.seal(&key, self.own.public.as_bytes(), &mut message[INITIATION_STATIC..INITIATION_TIMESTAMP]);
        let key = state.mix_key_for(self.shared.as_bytes());
        state.seal(&key, &timestamp, &mut message[INITIATION_TIMESTAMP..INITIATION_MACS]);
        (message, Box::new(Initiated { state, ephemeral, local }))
    }

    /// Proves who sent an initiation, which must name this peer; its timestamp.
    pub(super) fn authenticate(&self, mut half: Half) -> Option<([u8; 12], Half)> {
        let key = half.state.mix_key_for(self.shared.as_bytes());
        let timestamp = half.state.open(&key, &half.timestamp)?;
        Some((timestamp, half))
    }

    /// Makes an answer, without its MACs, to an initiation that is authentic.
    pub(super) fn respond(&self, half: Half, local: u32) -> Option<([u8; RESPONSE], Keys)> {
        let Half { mut state, ephemeral: theirs, remote, .. } = half;
        let mut message = [0; RESPONSE];
        message[0] = TYPE_RESPONSE;
        message[4..8].copy_from_slice(&local.to_le_bytes());
        message[8..12].copy_from_slice(&remote.to_le_bytes());
        let ephemeral = ReusableSecret::random();
        let point = Point::from(&ephemeral).to_bytes();
        message[RESPONSE_EPHEMERAL..RESPONSE_NOTHING].copy_from_slice(&point);
        state.mix_hash(&point);
        state.mix_key(&point);
        state.mix_key(shared(&ephemeral.diffie_hellman(&theirs))?);
        state.mix_key(shared(&ephemeral.diffie_hellman(&self.peer))?);
        let key = state.mix_psk(&self.psk);
        state.seal(&key, &[], &mut message[RESPONSE_NOTHING..RESPONSE_MACS]);
        let [theirs, ours] = state.split().map(Arc::new);
        Some((message, Keys { sending: ours, receiving: theirs, remote }))
    }

    /// Reads the answer to an initiation of ours.
    pub(super) fn finish(&self, initiated: &Initiated, message: &[u8; RESPONSE]) -> Option<Keys> {
        let mut state = initiated.state.clone();
        let theirs: [u8; 32] = field(message, RESPONSE_EPHEMERAL);
        state.mix_hash(&theirs);
        state.mix_key(&theirs);
        let theirs = Point::from(theirs);
        state.mix_key(shared(&initiated.ephemeral.diffie_hellman(&theirs))?);
        state.mix_key(shared(&self.own.private.diffie_hellman(&theirs))?);
        let key = state.mix_psk(&self.psk);
        state.open::<0>(&key, &message[RESPONSE_NOTHING..RESPONSE_MACS])?;
        let [ours, theirs] = state.split().map(Arc::new);
        Some(Keys { sending: ours, receiving: theirs, remote: response_sender(message) })
    }
}
