//! MACs of handshake messages, and cookies for who asks too much (sections 5.3, 5.4.4 and 5.4.7).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::handshake::{cookie_key, mac1_key};
use super::hash::{Hash, equal, mac};
use super::messages::{COOKIE, TYPE_COOKIE, field};
use crate::clock::Moment;
use crate::keys::PublicKey;

/// Bytes of a MAC, and of a cookie.
const MAC: usize = 16;
/// After so long cookies are made with another secret.
const SECRET_LIFETIME: Duration = Duration::from_secs(120);
const NONCE: usize = 24;

/// Writes both MACs at the end of a message: the second with a cookie, zeros without. The first one.
pub(super) fn write_macs(mac1_key: &Hash, cookie: Option<&[u8; MAC]>, message: &mut [u8]) -> [u8; MAC] {
    let (body, macs) = message.split_at_mut(message.len() - 2 * MAC);
    let mac1 = mac(mac1_key, &[body]);
    let mac2 = cookie.map_or([0; MAC], |cookie| mac(cookie, &[body, &mac1]));
    macs[..MAC].copy_from_slice(&mac1);
    macs[MAC..].copy_from_slice(&mac2);
    mac1
}

/// The body of a message and its MACs.
fn parts(message: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (rest, mac2) = message.split_at(message.len() - MAC);
    let (body, mac1) = rest.split_at(rest.len() - MAC);
    (body, mac1, mac2)
}

/// Reads the cookie in a reply to a message with this first MAC.
pub(super) fn open(key: &Hash, reply: &[u8; COOKIE], mac1: &[u8; MAC]) -> Option<[u8; MAC]> {
    let nonce: [u8; NONCE] = field(reply, 8);
    let payload = Payload { msg: &reply[8 + NONCE..], aad: mac1 };
    let cookie = XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(nonce), payload).ok()?;
    cookie.try_into().ok()
}

/// Checks messages to one device, and makes its cookies.
pub struct Checker {
    mac1_key: Hash,
    cookie_key: Hash,
    /// What cookies are made with, and since when.
    secret: Mutex<Option<(Zeroizing<[u8; 32]>, Moment)>>,
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checker(redacted)")
    }
}

impl Checker {
    /// That of the device with this key.
    #[must_use]
    pub fn new(own: &PublicKey) -> Self {
        let (mac1_key, cookie_key) = (mac1_key(own.as_bytes()), cookie_key(own.as_bytes()));
        Self { mac1_key, cookie_key, secret: Mutex::new(None) }
    }

    /// Whether the sender of a handshake message knows whom he talks to.
    #[must_use]
    pub fn knows_us(&self, message: &[u8]) -> bool {
        let (body, mac1, _) = parts(message);
        equal(&mac(&self.mac1_key, &[body]), mac1)
    }

    /// Whether a message that [`knows_us`](Self::knows_us) has the cookie of its source.
    #[must_use]
    pub fn has_cookie(&self, message: &[u8], source: SocketAddr, now: Moment) -> bool {
        let Some(cookie) = self.cookie(source, now) else { return false };
        let (body, mac1, mac2) = parts(message);
        equal(&mac(&cookie, &[body, mac1]), mac2)
    }

    /// Makes a cookie reply to a message whose sender goes by `sender`. `None` where there are no random numbers.
    #[must_use]
    pub fn reply(
        &self,
        message: &[u8],
        sender: u32,
        source: SocketAddr,
        now: Moment,
    ) -> Option<[u8; COOKIE]> {
        let cookie = self.cookie(source, now)?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let (_, mac1, _) = parts(message);
        let payload = Payload { msg: &cookie, aad: mac1 };
        let sealed =
            XChaCha20Poly1305::new((&self.cookie_key).into()).encrypt(&XNonce::from(nonce), payload).ok()?;
        let mut reply = [0; COOKIE];
        reply[0] = TYPE_COOKIE;
        reply[4..8].copy_from_slice(&sender.to_le_bytes());
        reply[8..8 + NONCE].copy_from_slice(&nonce);
        reply[8 + NONCE..].copy_from_slice(&sealed);
        Some(reply)
    }

    /// The cookie of an address and port.
    fn cookie(&self, source: SocketAddr, now: Moment) -> Option<[u8; MAC]> {
        let mut secret = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        if secret.as_ref().is_none_or(|(_, since)| now.since(*since) >= SECRET_LIFETIME) {
            let mut fresh = Zeroizing::new([0; 32]);
            getrandom::fill(&mut fresh[..]).ok()?;
            *secret = Some((fresh, now));
        }
        let (secret, _) = secret.as_ref()?;
        let port = source.port().to_be_bytes();
        Some(match source.ip() {
            IpAddr::V4(ip) => mac(&secret[..], &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(&secret[..], &[&ip.octets(), &port]),
        })
    }
}

/// Puts the first MAC behind a message to this device, as anybody can.
#[cfg(test)]
pub(crate) fn forge_mac1(checker: &Checker, message: &mut [u8]) {
    write_macs(&checker.mac1_key, None, message);
}
